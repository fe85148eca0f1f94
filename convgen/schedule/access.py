"""What a nest touches: its loads, the strides of its operands, the size of its tile.

Directives ask these questions to decide legality; recipes ask them to choose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from convgen.affine import Affine, FloorDiv
from convgen.ir.layout import flat_offset
from convgen.ir.nodes import Buffer, Kernel, Load, Loop, LoopKind, Nest
from convgen.ir.regions import loop_extent, loop_ranges
from convgen.ir.visit import loads
from convgen.types import DType, f32

LONGEST = 64  # iterations of a pattern in which vectors pick their elements


def loads_of(nest: Nest) -> list[Load]:
    """The loads of the reduce bodies, then those of the stored values; each once. Attached nests
    are left out."""
    found: dict[Load, None] = {}
    for body in [r.body for r in nest.reduces] + [s.value for s in nest.stores]:
        found |= dict.fromkeys(loads(body))
    return list(found)


def trips(loop: Loop) -> int:
    """How often the body of a loop runs: its extent, or the iterations of all its segments."""
    return sum(s.count for s in loop.segments) if loop.segments else loop.extent


def in_loops(nest: Nest, index: Affine) -> Affine:
    """An index over axes, written over loop variables and bases."""
    return index.substitute(dict(nest.axes))


def unit_bases(nest: Nest) -> tuple[dict[str, Affine], dict[str, tuple[int, int]]]:
    """Bases as multiples of the step they all share, and the ranges that go with it: a base that is
    always a multiple of 32 becomes 32*base."""
    values: dict[str, Affine] = {}
    ranges = loop_ranges(nest)
    for loop in nest.loops:
        if not loop.segments:
            continue
        steps = [s.start for s in loop.segments]
        steps += [s.size for s in loop.segments if s.count > 1]
        step = math.gcd(*steps)
        if step:
            values[loop.base] = Affine.of(loop.base) * step
            low, high = ranges[loop.base]
            ranges[loop.base] = (low // step, (high - 1) // step + 1)
        else:
            values[loop.base] = Affine()
    return values, ranges


def offset_of(buffer: Buffer, index: tuple[Affine, ...], nest: Nest) -> Affine:
    """The offset of an index over axes, in elements, over loop variables and bases."""
    bases, ranges = unit_bases(nest)
    written = tuple(in_loops(nest, i).substitute(bases) for i in index)
    return flat_offset(buffer, written, ranges)


def stride_of(buffer: Buffer, index: tuple[Affine, ...], nest: Nest, loop: str) -> int | None:
    """Elements between neighbours along a loop; None where the step is not constant.

    0 means broadcast, 1 contiguous.
    """
    return strides_of(buffer, index, nest, [loop])[loop]


def strides_of(
    buffer: Buffer, index: tuple[Affine, ...], nest: Nest, loops: Iterable[str]
) -> dict[str, int | None]:
    """The same for each of some loops."""
    offset = offset_of(buffer, index, nest)
    hidden = offset.hidden_names()
    return {n: None if n in hidden else offset.coefficient(n) for n in loops}


def pattern_of(offset: Affine, loop: str, lanes: int) -> tuple[int, int] | None:
    """(elements of a step, iterations after which the pattern comes again) where every vector that
    a loop takes of an offset lies within as many neighbours: the step is that of a plain quotient,
    else 0. None where a vector reaches further, and where what other loops add changes the pattern.

    >>> x = Affine.of("x")
    >>> pattern_of(2 * (x // 3) + 64 * Affine.of("y"), "x", 8), pattern_of(9 * (x // 3), "x", 8)
    ((2, 3), None)
    """
    terms = [(atom, c) for atom, c in offset.terms if loop in Affine.of(atom).names()]
    hidden = [atom for atom, _ in terms if not isinstance(atom, str)]
    moving = Affine(tuple(terms))
    if (
        not hidden
        or moving.names() != frozenset({loop})
        or any(h.value.hidden_names() for h in hidden)
    ):
        return None
    every = math.lcm(*(atom.divisor for atom in hidden))
    if every > LONGEST:
        return None
    for first in range(0, math.lcm(every, lanes), lanes):
        places = [moving.evaluate({loop: first + lane}) for lane in range(lanes)]
        if max(places) - min(places) >= lanes:
            return None
    plain = (
        len(terms) == 1 and isinstance(hidden[0], FloorDiv) and hidden[0].value == Affine.of(loop)
    )
    return terms[0][1] if plain else 0, every


def output_loops(nest: Nest) -> list[Loop]:
    """The loops that belong to no reduce."""
    return [loop for loop in nest.loops if loop.reduce is None]


def outer_loops(nest: Nest) -> list[Loop]:
    """Output loops before the first reduce loop (all output loops where nothing is reduced)."""
    found: list[Loop] = []
    for loop in nest.loops:
        if loop.reduce is not None:
            break
        found.append(loop)
    return found


def tile_loops(nest: Nest) -> list[Loop]:
    """Output loops after the first reduce loop, but for those that run from tile to tile."""
    moving = around_tiles(nest)
    return [o for o in output_loops(nest)[len(outer_loops(nest)) :] if o not in moving]


def around_tiles(nest: Nest) -> list[Loop]:
    """Serial output loops between reduce loops: each reduce has loops that run inside them."""
    first = len(outer_loops(nest))
    last = [
        max((i for i, o in enumerate(nest.loops) if o.reduce == nest.leader(number)), default=0)
        for number in range(len(nest.reduces))
    ]
    return [
        loop
        for loop in nest.loops[first : min(last, default=0)]
        if loop.reduce is None and loop.kind is LoopKind.SERIAL and trips(loop) > 1
    ]


def vector_count(extent: int, lanes: int) -> int:
    """Vectors that hold so many elements."""
    return -(-extent // lanes)


def vectors_along(nest: Nest, loop: Loop, lanes: int) -> int:
    """The vectors that a vector loop takes, the iterations of another."""
    count = loop_extent(nest, loop)
    return vector_count(count, lanes) if loop.kind is LoopKind.VECTOR else count


def tile_sizes(nest: Nest, lanes: int) -> dict[str, int]:
    """For each loop of the tile its iterations, in vectors along a vector loop: their product is
    the vectors of one state."""
    return {loop.name: vectors_along(nest, loop, lanes) for loop in tile_loops(nest)}


def vector_dtype(nest: Nest, kernel: Kernel) -> DType:
    """The type whose vectors fill registers: the widest float that the nest touches, else the
    widest type."""
    found = [kernel.buffer(load.buffer).dtype for load in loads_of(nest)]
    found += [kernel.buffer(s.buffer).dtype for s in nest.stores]
    found += [d for r in nest.reduces for d in r.combiner.dtypes if d.is_float]
    floats = [d for d in found if d.is_float]
    return max(floats or found, key=lambda d: d.bits, default=f32)
