"""The positions of a tile: what its expanded loops are at each, vectors along one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from convgen.affine import Affine
from convgen.ir.nodes import Loop
from convgen.passes.flatten.loops import entered, extent_of, parts_of
from convgen.passes.flatten.scope import LANE, Scope


@dataclass(frozen=True, slots=True)
class Tile:
    """Expanded loops in order; `vector` is the one whose iterations lie in lanes ("": none), at
    most `lanes` of them in a vector."""

    loops: tuple[Loop, ...]
    vector: str = ""
    lanes: int = 1


def positions(tile: Tile, scope: Scope) -> Iterator[Scope]:
    """The scopes of all positions, the last loop running fastest."""
    yield from _positions(tile, tile.loops, scope)


def _positions(tile: Tile, loops: Sequence[Loop], scope: Scope) -> Iterator[Scope]:
    if not loops:
        yield scope
        return
    loop, rest = loops[0], loops[1:]
    if loop.name == tile.vector:
        for inside in chunks(loop, tile.lanes, scope):
            yield from _positions(tile, rest, inside)
    elif loop.segments:
        for segment in parts_of(loop, scope):
            for i in range(segment.count):
                inside = entered(loop, segment, scope.bind(loop.name, i), Affine((), i))
                yield from _positions(tile, rest, inside)
    else:
        for i in range(extent_of(loop, scope)):
            yield from _positions(tile, rest, scope.bind(loop.name, i))


def chunks(loop: Loop, lanes: int, scope: Scope) -> Iterator[Scope]:
    """The vectors that make up a vector loop; the last may be partly valid. Their width is that of
    the longest segment."""
    extent = extent_of(loop, scope)
    width = width_of(loop.extent, lanes)
    for start in range(0, extent, width):
        valid = min(width, extent - start)
        inside = scope.bind(loop.name, Affine.of(LANE) + start if width > 1 else start)
        yield replace(inside, lanes=width, valid=valid)


def width_of(extent: int, lanes: int) -> int:
    """Lanes of the vectors of a loop: those of the target, or the power of two that suffices.

    >>> width_of(40, 16), width_of(3, 16), width_of(1, 16)
    (16, 4, 1)
    """
    width = 1
    while width < min(extent, lanes):
        width *= 2
    return width
