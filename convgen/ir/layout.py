"""Where the elements of a buffer lie in memory: sizes, strides and flat offsets, in elements.

A dimension d of extent E with halo (low, high) has low + E + high places; logical index i is place
i + low. Blocks of d cut the places into digits: the outer one stands where `order` says, the block
digits follow all outer ones. Blocked extents are padded up to a multiple of their blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

from convgen.affine import Affine, Atom
from convgen.errors import InternalError, ShapeError
from convgen.ir.nodes import Buffer, Layout
from convgen.ir.simplify import simplify_affine

ALIGNMENT = 64  # bytes; the start of every temporary and scratch buffer


@dataclass(frozen=True, slots=True)
class Digit:
    """One physical dimension: ((place of `dimension`) // divisor) % extent, at `stride`."""

    dimension: int
    divisor: int
    extent: int
    stride: int
    outermost: bool


def halo_of(layout: Layout, dimension: int) -> tuple[int, int]:
    """(low, high) of a dimension; (0, 0) where the layout gives no halo."""
    return layout.halo[dimension] if layout.halo else (0, 0)


def check_layout(layout: Layout, rank: int) -> None:
    """InternalError unless the layout fits a tensor of that rank."""
    if sorted(layout.order) != list(range(rank)):
        raise InternalError(
            f"layout order {layout.order}: wanted a permutation of {tuple(range(rank))}"
        )
    if layout.halo and len(layout.halo) != rank:
        raise InternalError(f"layout halo {layout.halo}: wanted {rank} pairs")
    for dimension, size in layout.blocks:
        if not 0 <= dimension < rank or size < 1:
            raise InternalError(
                f"layout block {(dimension, size)}: wanted a dimension below {rank}, a size above 0"
            )


def digits(shape: Sequence[int], layout: Layout) -> tuple[Digit, ...]:
    """The physical dimensions, outermost first.

    >>> from convgen.ir.nodes import Layout
    >>> blocked = Layout((0, 2, 1), ((1, 16),))
    >>> [(d.dimension, d.extent, d.stride) for d in digits((2, 20, 3), blocked)]
    [(0, 2, 96), (2, 3, 32), (1, 2, 16), (1, 16, 1)]
    """
    check_layout(layout, len(shape))
    outer = [1] * len(shape)
    inner: list[tuple[int, int, int]] = []  # (dimension, divisor, extent), innermost first
    for dimension, size in reversed(layout.blocks):
        inner.append((dimension, outer[dimension], size))
        outer[dimension] *= size
    found: list[Digit] = []
    stride = 1
    for dimension, divisor, extent in inner:
        found.append(Digit(dimension, divisor, extent, stride, False))
        stride *= extent
    for dimension in reversed(layout.order):
        low, high = halo_of(layout, dimension)
        extent = -(-(low + shape[dimension] + high) // outer[dimension])
        found.append(Digit(dimension, outer[dimension], extent, stride, True))
        stride *= extent
    return tuple(reversed(found))


def physical_shape(buffer: Buffer) -> tuple[int, ...]:
    """Extents of the physical dimensions, outermost first."""
    return tuple(d.extent for d in digits(buffer.shape, buffer.layout))


def size_in_elements(buffer: Buffer) -> int:
    """Elements the buffer occupies, padding and halo included.

    >>> from convgen.types import f32
    >>> size_in_elements(Buffer("B", f32, (2, 20), Layout((0, 1), ((1, 16),)), "packed"))
    64
    """
    total = 1
    for extent in physical_shape(buffer):
        total *= extent
    return total


def size_in_bytes(buffer: Buffer) -> int:
    """Bytes the buffer occupies, padding and halo included."""
    return size_in_elements(buffer) * buffer.dtype.bytes


def strides(buffer: Buffer) -> tuple[int, ...]:
    """For each logical dimension, the distance in elements of neighbours (inside one block)."""
    found = [0] * len(buffer.shape)
    for digit in digits(buffer.shape, buffer.layout):
        found[digit.dimension] = digit.stride  # the innermost digit comes last
    return tuple(found)


def flat_offset(
    buffer: Buffer, index: Sequence[Affine], ranges: Mapping[str, tuple[int, int]] | None = None
) -> Affine:
    """The offset in elements of the logical index, simplified by what is known of its names
    (name -> (lo, hi), hi excluded). Halo elements have indices -low.. and extent..extent+high-1.

    >>> from convgen.types import f32
    >>> c, x = Affine.of("c"), Affine.of("x")
    >>> blocked = Buffer("X", f32, (32, 10), Layout((0, 1), ((0, 16),)), "packed")
    >>> print(flat_offset(blocked, (16 * c + Affine.of("i"), x), {"i": (0, 16)}))
    160*c + i + 16*x
    """
    if len(index) != len(buffer.shape):
        raise InternalError(
            f"buffer {buffer.name}: wanted {len(buffer.shape)} indices, saw {len(index)}"
        )
    terms: list[tuple[Atom, int]] = []
    constant = 0
    for digit in digits(buffer.shape, buffer.layout):
        place = index[digit.dimension] + halo_of(buffer.layout, digit.dimension)[0]
        if digit.divisor > 1:
            place = simplify_affine(place // digit.divisor, ranges or {})
        if not digit.outermost:
            place = simplify_affine(place % digit.extent, ranges or {})
        terms += [(atom, c * digit.stride) for atom, c in place.terms]
        constant += place.constant * digit.stride
    return simplify_affine(Affine.build(terms, constant), ranges or {})


def is_rowmajor(buffer: Buffer) -> bool:
    """True when memory holds the logical elements in row-major order and nothing else."""
    layout = buffer.layout
    plain = not layout.blocks and not any(low or high for low, high in layout.halo)
    return plain and layout.order == tuple(range(len(buffer.shape)))


def align(size: int, alignment: int = ALIGNMENT) -> int:
    """The next multiple of the alignment."""
    return -(-size // alignment) * alignment


def scratch_offsets(buffers: Iterable[Buffer]) -> tuple[dict[str, int], int]:
    """(byte offset of each scratch buffer, bytes in all), in the order given, none shared."""
    offsets: dict[str, int] = {}
    total = 0
    for buffer in buffers:
        if buffer.role == "scratch":
            offsets[buffer.name] = total
            total += align(size_in_bytes(buffer))
    return offsets, total


def layout_tag(layout: Layout) -> str:
    """The layout as text: a letter for each dimension (a the first), outermost first, then the
    blocks with their sizes; capitals for dimensions that have blocks. Halos are left out.
    Elsewhere: oneDNN's format tags.

    >>> layout_tag(Layout((0, 2, 3, 1))), layout_tag(Layout((0, 1, 2, 3), ((1, 16),)))
    ('acdb', 'aBcd16b')
    """
    blocked = {dimension for dimension, _ in layout.blocks}
    letters = (
        ascii_lowercase[d].upper() if d in blocked else ascii_lowercase[d] for d in layout.order
    )
    return "".join(letters) + "".join(f"{n}{ascii_lowercase[d]}" for d, n in layout.blocks)


def parse_layout(tag: str, rank: int, name: str) -> Layout:
    """The layout of such a text, for the array of that name; ShapeError for any other text.

    >>> parse_layout("aBcd16b", 4, "X") == Layout((0, 1, 2, 3), ((1, 16),))
    True
    """
    letters = ascii_lowercase[:rank]
    found = re.fullmatch(r"([A-Za-z]*)((?:[1-9]\d{0,5}[a-z])*)", tag)
    order = found[1].lower() if found else ""
    blocks = re.findall(r"(\d+)([a-z])", found[2]) if found else []
    outside = {letter for _, letter in blocks} - set(letters)
    if found is None or sorted(order) != list(letters) or outside:
        raise ShapeError(
            f"layout {tag!r} of {name}",
            expected=f"each of the letters {letters} once, outermost first, then blocks",
            got=repr(tag),
            hint=f"{letters[:-2]}{letters[-1:]}{letters[-2:-1]}, or {letters}16{letters[-1:]}",
        )
    pairs = tuple((letters.index(letter), int(size)) for size, letter in blocks)
    return Layout(tuple(map(letters.index, order)), pairs)
