"""Long reduce loops whose first and last iterations reach over an edge of an operand: these run
apart, so that the others need no tests."""

from __future__ import annotations

from collections.abc import Container, Iterator

from convgen.ir.nodes import Kernel, Loop, LoopKind, Nest
from convgen.ir.regions import loop_ranges
from convgen.schedule.access import around_tiles, in_loops, loads_of, tile_loops, trips
from convgen.schedule.cost.edges import THIN
from convgen.schedule.directives import Directive, peel

ENDS = 2  # iterations that may run apart of every long axis, however it is cut: one at each end


def peels(nest: Nest, kernel: Kernel, only: str = "") -> list[Directive]:
    """Of all reduce loops, or of one, iterations (tiles, where they are cut) run apart that reach
    over a thin edge along which the tile moves too."""
    if around_tiles(nest):
        return []
    return [peel(*edge) for edge in _thin_edges(nest, kernel) if only in ("", edge[0])]


def _thin_edges(nest: Nest, kernel: Kernel) -> Iterator[tuple[str, int, int]]:
    """Reduce loops with how many of their first and last iterations may reach over an edge."""
    tile = {o.name for o in tile_loops(nest) if o.kind is not LoopKind.SERIAL}
    inner = {o.inner for o in nest.loops if o.segments}
    for loop in nest.loops:
        plain = loop.kind is LoopKind.SERIAL and loop.steps == 1 and loop.name not in inner
        if loop.reduce is None or not plain:
            continue
        low = _outside(nest, loop, kernel, tile, forwards=True)
        high = _outside(nest, loop, kernel, tile, forwards=False)
        moved = {axis for axis, value in nest.axes if {loop.name, loop.base} & value.names()}
        extent = max((last - first for a, first, last in nest.ranges if a in moved), default=0)
        ends = ENDS if extent > ENDS * THIN else 0
        if 0 < low + high < trips(loop) and low + high <= max(ends, trips(loop) // THIN):
            yield loop.name, low, high


def _outside(
    nest: Nest, loop: Loop, kernel: Kernel, tile: Container[str], *, forwards: bool
) -> int:
    """How many iterations from one end of a loop may reach over an edge."""
    parts = [
        (s.start + s.size * i, s.start + s.size * i + 1)
        for s in loop.segments
        for i in range(s.count)
    ]
    name = loop.base if loop.segments else loop.name
    parts = parts or [(i, i + 1) for i in range(loop.extent)]
    ranges = loop_ranges(nest)
    places = [
        (place, size)
        for load in loads_of(nest)
        for index, edge, size in zip(
            load.index, load.edges, kernel.buffer(load.buffer).shape, strict=True
        )
        if edge is not None
        and edge.kind not in ("omit", "halo")
        and name in (place := in_loops(nest, index)).names()
        and place.names() <= ranges.keys()  # others are loops that this nest stands in
        and any(n in tile for n in place.names())
    ]
    count = 0
    for part in parts if forwards else reversed(parts):
        bounds = [(place.bounds({**ranges, name: part}), size) for place, size in places]
        if all(0 <= low and high < size for (low, high), size in bounds):
            break
        count += 1
    return count
