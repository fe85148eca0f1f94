"""Mistakes in indices: strides, dilations, paddings, filters, groups, channels, boundaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from convgen.affine import Affine, FloorDiv
from convgen.symbolic.boundary import ZERO, Boundary, boundary_of
from convgen.symbolic.expr import Access
from convgen.symbolic.indexmath import mixed_radix
from convgen.symbolic.mistakes.mistake import Change, Mistake, Place, change_accesses, with_dim
from convgen.symbolic.program import Program


@dataclass(frozen=True)
class _Dim:
    """What an index is made of: positions (axes of the definition), taps (axes of the sum)."""

    positions: tuple[tuple[str, int], ...]
    taps: tuple[tuple[str, int], ...]
    constant: int
    digits: bool

    @property
    def sampled(self) -> bool:
        """A position with something added to it or spread out: an index of samples of a signal."""
        spread = any(abs(c) > 1 for _, c in (*self.positions, *self.taps))
        many = len(self.positions) + len(self.taps) > 1
        return not self.digits and (many or spread or self.constant != 0)


def _dim(index: Affine, place: Place) -> _Dim | None:
    if not index.is_plain:
        return None
    ranges = {**place.outer, **place.inner}
    terms = [(a, c) for a, c in index.terms if isinstance(a, str)]
    extents = {a: ranges[a][1] - ranges[a][0] for a, _ in terms}
    high = max(terms, key=lambda item: item[1], default=("", 0))
    digits = (
        len(terms) == 2
        and index.constant == 0
        and high[0] in place.blocks
        and mixed_radix(terms, extents) is not None
    )
    return _Dim(
        tuple((a, c) for a, c in terms if a in place.outer),
        tuple((a, c) for a, c in terms if a in place.inner),
        index.constant,
        digits,
    )


Edit = Callable[[Affine, _Dim, Place], "Affine | None"]


def index_mistakes(program: Program) -> Iterator[Mistake]:
    """Mistakes in indices, for all dimensions at once and, where there are several, for each."""
    for name, text, edit in _EDITS:
        yield from _in_dims(program, name, text, edit)
        if name == "stride missing":
            yield from _turned(program)
    yield from _no_quotients(program)
    yield from _swapped_taps(program)
    yield from _swapped_channels(program)
    yield from _boundaries(program)


def _sampled(edit: Edit) -> Edit:
    return lambda index, dim, place: edit(index, dim, place) if dim.sampled else None


def _no_stride(index: Affine, dim: _Dim, place: Place) -> Affine | None:
    return _scaled(index, dim.positions)


def _no_dilation(index: Affine, dim: _Dim, place: Place) -> Affine | None:
    return _scaled(index, dim.taps) if dim.positions else None


def _scaled(index: Affine, axes: tuple[tuple[str, int], ...]) -> Affine | None:
    """The coefficients of the axes made 1 (or -1)."""
    found = index
    for name, c in axes:
        if abs(c) > 1:
            found = found.without(name) + Affine.of(name) * (1 if c > 0 else -1)
    return found if found != index else None


def _exchanged(index: Affine, dim: _Dim, place: Place) -> Affine | None:
    """Stride and dilation in each other's place."""
    if len(dim.positions) != 1 or len(dim.taps) != 1:
        return None
    (position, s), (tap, d) = dim.positions[0], dim.taps[0]
    return Affine.of(position) * d + Affine.of(tap) * s + index.constant if s != d else None


def _shift(by: int) -> Edit:
    return lambda index, dim, place: index + by


def _no_padding(index: Affine, dim: _Dim, place: Place) -> Affine | None:
    return index - dim.constant if dim.constant else None


def _other_padding(index: Affine, dim: _Dim, place: Place) -> Affine | None:
    return index - 2 * dim.constant if dim.constant else None


def _no_group(index: Affine, dim: _Dim, place: Place) -> Affine | None:
    if not dim.digits:
        return None
    low = min((*dim.positions, *dim.taps), key=lambda item: item[1])
    return Affine.of(low[0])


def _no_quotients(program: Program) -> Iterator[Mistake]:
    """Block numbers written as quotients: c + 4 * (k // 8)."""

    def change(access: Access, place: Place) -> Access | None:
        new = access
        for d, index in enumerate(access.index):
            terms = tuple(t for t in index.terms if not isinstance(t[0], FloorDiv))
            if terms and terms != index.terms:
                new = with_dim(new, d, Affine(terms, index.constant))
        return new

    yield from _made(program, "group offset missing", "the group's offset is missing", change)


_EDITS: list[tuple[str, str, Edit]] = [
    ("stride missing", "the stride is missing", _sampled(_no_stride)),
    ("dilation missing", "the dilation is missing", _sampled(_no_dilation)),
    ("stride for dilation", "stride and dilation are exchanged", _sampled(_exchanged)),
    ("padding missing", "the padding is missing", _sampled(_no_padding)),
    ("padding sign", "the padding is added where it is taken off", _sampled(_other_padding)),
    ("padding off by one", "padding off by one", _sampled(_shift(-1))),
    ("padding off by one", "padding off by one", _sampled(_shift(1))),
    ("group offset missing", "the group's offset is missing", _no_group),
]


def _in_dims(program: Program, name: str, text: str, edit: Edit) -> Iterator[Mistake]:
    dims = _edited_dims(program, edit)
    choices: list[set[tuple[str, int]]] = [set(dims)]
    tensors = sorted({t for t, _ in dims})
    if len(tensors) > 1:
        choices += [{d for d in dims if d[0] == t} for t in tensors]
    if len(dims) > 1:
        choices += [{d} for d in sorted(dims)]
    seen: list[set[tuple[str, int]]] = []
    for chosen in choices:
        if chosen and chosen not in seen:
            seen.append(chosen)
            yield from _made(program, name, text, _editor(edit, chosen))


def _edited_dims(program: Program, edit: Edit) -> set[tuple[str, int]]:
    found: set[tuple[str, int]] = set()

    def look(access: Access, place: Place) -> None:
        for d, index in enumerate(access.index):
            dim = _dim(index, place)
            if dim is not None and edit(index, dim, place) is not None:
                found.add((access.tensor.name, d))

    change_accesses(program, look)
    return found


def _editor(edit: Edit, chosen: set[tuple[str, int]]) -> Change:
    def change(access: Access, place: Place) -> Access | None:
        new = access
        for d, index in enumerate(access.index):
            dim = _dim(index, place) if (access.tensor.name, d) in chosen else None
            edited = edit(index, dim, place) if dim is not None else None
            if edited is not None:
                new = with_dim(new, d, edited)
        return new

    return change


def _made(program: Program, name: str, text: str, change: Change) -> Iterator[Mistake]:
    found = change_accesses(program, change)
    if found is not None:
        yield Mistake(name, f"{text}: {found[1]}", found[0])


# ---------------------------------------------------------------------------------------------
# Filters and channels


def _taps_of(program: Program) -> set[str]:
    """Axes of sums that are added to positions in some index."""
    found: set[str] = set()

    def look(access: Access, place: Place) -> None:
        for index in access.index:
            dim = _dim(index, place)
            if dim is not None and dim.positions and not dim.digits:
                found.update(a for a, _ in dim.taps)

    change_accesses(program, look)
    return found


def _is_tap(index: Affine, place: Place, taps: set[str]) -> bool:
    """An index of one tap only: of a filter."""
    dim = _dim(index, place)
    return dim is not None and not dim.positions and len(dim.taps) == 1 and dim.taps[0][0] in taps


def _turned(program: Program) -> Iterator[Mistake]:
    taps = _taps_of(program)

    def edit(index: Affine, dim: _Dim, place: Place) -> Affine | None:
        if not _is_tap(index, place, taps):
            return None
        low, high = index.bounds(place.inner)
        return low + high - index if high > low else None

    yield from _in_dims(program, "filter flipped", "filter not flipped, or flipped twice", edit)


def _swapped_taps(program: Program) -> Iterator[Mistake]:
    taps = _taps_of(program)

    def change(access: Access, place: Place) -> Access | None:
        dims = [d for d, i in enumerate(access.index) if _is_tap(i, place, taps)]
        if len(dims) < 2:
            return None
        first, second = dims[-2], dims[-1]
        new = with_dim(access, first, access.index[second])
        return with_dim(new, second, access.index[first])

    yield from _made(program, "kernel transposed", "the kernel is transposed", change)


def _swapped_channels(program: Program) -> Iterator[Mistake]:
    """Two plain indices of a tensor in each other's place, where the extents allow it."""
    taps = _taps_of(program)
    pairs: set[tuple[str, int, int]] = set()

    def look(access: Access, place: Place) -> None:
        plain = [d for d, i in enumerate(access.index) if i.single and i.single not in taps]
        for one in plain:
            for other in plain:
                same = access.tensor.shape[one] == access.tensor.shape[other]
                if one < other and same and access.tensor.role != "constant":
                    pairs.add((access.tensor.name, one, other))

    change_accesses(program, look)
    for name, one, other in sorted(pairs):

        def change(access: Access, place: Place, key: tuple[str, int, int] = (name, one, other)):
            if access.tensor.name != key[0]:
                return None
            new = with_dim(access, key[1], access.index[key[2]])
            return with_dim(new, key[2], access.index[key[1]])

        yield from _made(program, "roles swapped", "two indices have changed places", change)


def _boundaries(program: Program) -> Iterator[Mistake]:
    for mode in ("zero", "replicate", "reflect", "circular"):
        kind = ZERO if mode == "zero" else boundary_of(mode)

        def change(access: Access, place: Place, kind: Boundary = kind) -> Access | None:
            kinds = tuple(kind if b.folds or b.value is not None else b for b in access.boundary)
            return Access(access.tensor, access.index, kinds) if kinds != access.boundary else None

        name = "boundary as zero" if mode == "zero" else "another boundary"
        text = "outside is read as zero" if mode == "zero" else f"the boundary is read as {mode}"
        yield from _made(program, name, text, change)
