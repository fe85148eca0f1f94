"""Long reduce loops whose first and last iterations reach over an edge of an operand: these run
apart, so that the others need no tests."""

from __future__ import annotations

from collections.abc import Container, Iterator

from convgen.ir.nodes import Kernel, Loop, LoopKind, Nest
from convgen.ir.regions import loop_ranges
from convgen.schedule.access import around_tiles, in_loops, loads_of, tile_loops, trips
from convgen.schedule.directives import Directive, peel
from convgen.schedule.facts import Facts, Operand
from convgen.schedule.skipping import Reach

THIN = 4  # an edge is thin where the loop is at least so many times as long
ENDS = 2  # iterations that may run apart of every long axis, however it is cut: one at each end


def share_at_edges(facts: Facts, operand: Operand, tile: Container[str]) -> float:
    """The share of the reduce iterations that run apart, because a tile that moves the loops of
    `tile` meets an edge of an operand in them; 1 where no others are left without tests, and for
    an operand that other outputs read again: a copy serves all."""
    if any(e > 1 and n not in operand.strides for n, e in facts.outputs.items()):
        return 1.0
    inside, found = 1.0, False
    for loops, _ in operand.overhangs:
        if not any(n in tile for n in loops):
            continue
        reach = next((r for r in operand.zeros if _loops_of(r) == loops), None)
        if reach is None or len(reach.inner) != 1:
            return 1.0
        [(_, step, extent)] = reach.inner
        outside = iterations_outside(reach)
        if step <= 0 or outside * THIN > extent:
            return 1.0
        inside, found = inside * (1 - outside / extent), True
    return 1 - inside if found else 1.0


def _loops_of(reach: Reach) -> frozenset[str]:
    return frozenset(n for n, _, _ in (*reach.outputs, *reach.inner))


def iterations_outside(reach: Reach) -> int:
    """How many iterations of the only reduce loop, which moves forwards, some output may take over
    an edge."""
    [(_, step, extent)] = reach.inner
    least = reach.start + sum(min(0, s * (e - 1)) for _, s, e in reach.outputs)
    most = reach.start + sum(max(0, s * (e - 1)) for _, s, e in reach.outputs)
    low = max(0, -(least // step))
    return low + max(0, extent - 1 - (reach.size - 1 - most) // step)


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
        and any(n in tile for n in place.names())
    ]
    count = 0
    for part in parts if forwards else reversed(parts):
        bounds = [(place.bounds({**ranges, name: part}), size) for place, size in places]
        if all(0 <= low and high < size for (low, high), size in bounds):
            break
        count += 1
    return count
