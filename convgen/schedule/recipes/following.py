"""Which operand the points of a tile should follow: where a window slides along an operand, either
its vectors or those of the others stay live while the unrolled loops run."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable

from convgen.ir.nodes import Kernel, Load, Loop, LoopKind, Nest
from convgen.ir.visit import loads
from convgen.schedule.access import (
    in_loops,
    stride_of,
    tile_loops,
    tile_sizes,
    vector_dtype,
    vectors_along,
)
from convgen.schedule.directives.mark import innermost_unrolled
from convgen.schedule.facts import Facts
from convgen.target import Target

TESTS = 3.0  # instructions that tell whether one load lies outside


def follow_of(nest: Nest, kernel: Kernel, target: Target) -> str:
    """The operand whose order keeps the live vectors within the registers where the order of the
    loops does not; "" where there is none."""
    vector = next((o.name for o in tile_loops(nest) if o.kind is LoopKind.VECTOR), "")
    straight = innermost_unrolled(nest)
    if len(nest.reduces) != 1 or not vector or not straight:
        return ""
    read = list(dict.fromkeys(loads(nest.reduces[0].body)))
    moved = [o for o in read if stride_of(kernel.buffer(o.buffer), o.index, nest, vector)]
    tile = tile_loops(nest)
    lanes = max(1, target.lanes(vector_dtype(nest, kernel)))
    if len(moved) < len(read):  # a broadcast would be fetched again for every point
        return ""
    for load in moved:
        slid = _slid(nest, load, straight, tile)
        others = [o for o in moved if o is not load]
        if not slid or any(o.buffer == load.buffer for o in read if o is not load):
            continue
        along_loops = _distinct(nest, load, [*straight, *tile], lanes)
        taps = _taps(nest, load, slid, tile)
        along_operand = 1 + sum(
            min(taps * _distinct(nest, o, tile, lanes), _distinct(nest, o, [*slid, *tile], lanes))
            for o in others
        )
        room = target.vector_registers - math.prod(tile_sizes(nest, lanes).values())
        if along_operand <= room < along_loops + len(others):
            return load.buffer
    return ""


def live_when_unrolled(nest: Nest, loop: Loop, facts: Facts) -> int:
    """Vectors kept live when a reduce loop is unrolled: the operands that its iterations share, in
    the order of the loops or, where nothing is broadcast, of one operand."""
    tile = {o.name: o for o in tile_loops(nest)}
    vector = next((o.name for o in tile.values() if o.kind is LoopKind.VECTOR), "")
    body = [o for o in facts.operands if o.body]
    in_loops_order, taps = 0, 1
    for operand in body:
        both = operand.strides.keys() & tile.keys()
        if loop.name not in operand.strides or not _is_joint(nest, operand.load, loop, tile):
            continue
        counts = [vectors_along(nest, tile[name], facts.lanes) - (name == vector) for name in both]
        in_loops_order += loop.extent - 1 + sum(counts)
        slid = [o for o in innermost_unrolled(nest) if _is_joint(nest, operand.load, o, tile)]
        found = loop.extent
        if slid:  # the vector of the operand is one of the two left free
            found = _taps(nest, operand.load, [loop, *slid], list(tile.values())) - 1
        taps = max(taps, found)
    if not vector or any(not o.strides.get(vector) for o in body):
        return in_loops_order
    return min(in_loops_order, (taps + 1) * vectors_along(nest, tile[vector], facts.lanes))


def tests_when_unrolled(nest: Nest, loop: Loop, facts: Facts) -> float:
    """Instructions by which each point of a tile tells what of an operand along the vector loop
    lies outside, in the iterations of a reduce loop that slides nothing: more code to write out,
    with an address and a mask to keep for each."""
    vector = next((o.name for o in tile_loops(nest) if o.kind is LoopKind.VECTOR), "")
    windows = [w for o in facts.operands for w in o.windows if loop.name in w]
    reached = [(w[n], loop.extent * w[loop.name]) for w in windows for n in w if n in facts.outputs]
    if any(step < reach for step, reach in reached):
        return 0.0
    loaded = [o for o in facts.operands if o.body and {loop.name, vector} <= o.strides.keys()]
    return TESTS * sum(bool(o.edged) for o in loaded)


def ahead(nest: Nest, facts: Facts, target: Target) -> int:
    """Registers that unrolled iterations need beside the states and two that are left free:
    the tile keeps the values of the operand that has the fewest; LLVM loads those of two
    neighbours together, and spills states where they do not fit beside one of the other's.
    Below 512 bits a broadcast needs a register, no multiply-add reads it from memory; where
    it serves a single one, that leaves its sum there, and the states change places."""
    sizes = tile_sizes(nest, facts.lanes)
    kept = [
        math.prod(size for name, size in sizes.items() if name in operand.strides)
        for operand in facts.operands
        if operand.body
    ]
    least = min(kept, default=1)
    return 2 * least - 1 if target.vector_bits >= 512 else 2 * least + (least == 1)


def slides_along(nest: Nest, loop: Loop, room: int, facts: Facts) -> bool:
    """True where the tile keeps the vectors of one operand, those and a value of the other fit the
    last registers (`room` beside the states, two left free), and a reduce loop moves on along them:
    its next iteration loads what is new into what is done with."""
    if loop.extent < 4:
        return False
    sizes = tile_sizes(nest, facts.lanes)
    vector = next((o.name for o in tile_loops(nest) if o.kind is LoopKind.VECTOR), "")
    body = [o for o in facts.operands if o.body]
    kept = [math.prod(n for name, n in sizes.items() if name in o.strides) for o in body]
    beside = sizes.keys() - {vector}
    return any(
        bool(o.strides.get(vector))
        and loop.name in o.strides
        and count == min(kept) <= room + 1
        and _is_joint(nest, o.load, loop, beside)
        for o, count in zip(body, kept, strict=True)
    )


def _is_joint(nest: Nest, load: Load, loop: Loop, tile: Container[str]) -> bool:
    """True where a reduce loop and a loop of the tile move an operand in one dimension."""
    names = (in_loops(nest, index).names() for index in load.index)
    return any(loop.name in own and any(n in tile for n in own) for own in names)


def _taps(nest: Nest, load: Load, slid: list[Loop], tile: list[Loop]) -> int:
    """How many iterations of reduce loops wait for an element while a tile walks an operand in its
    own order: of the slowest dimension those in which points of the tile meet, all of others."""
    total, extents = 1, {o.name: o.extent for o in slid}
    for index in load.index:
        names = in_loops(nest, index).names()
        steps = math.prod(extents[n] for n in names if n in extents)
        meeting = math.prod(o.extent for o in tile if o.name in names)
        total *= min(steps, meeting) if total == 1 else steps
    return total


def _slid(nest: Nest, load: Load, straight: list[Loop], tile: list[Loop]) -> list[Loop]:
    """The unrolled reduce loops that move an operand in a dimension that the tile moves too; none
    where an order of the operand is not one of the loops."""
    found: list[Loop] = []
    outputs = {o.name for o in tile}
    seen: list[str] = []
    for index in load.index:
        place = in_loops(nest, index)
        own = [o for o in straight if o.name in place.names()]
        if len(own) > 1 or {o.name for o in own} & ({*seen} | place.hidden_names()):
            return []
        seen += [o.name for o in own]
        found += own if place.names() & outputs else []
    return found


def _distinct(nest: Nest, load: Load, loops: Iterable[Loop], lanes: int) -> int:
    """The vectors of an operand that these loops read."""
    total = 1
    for index in load.index:
        place = in_loops(nest, index)
        own = [(o, abs(place.coefficient(o.name))) for o in loops if place.coefficient(o.name)]
        if not own:
            continue
        counts = [vectors_along(nest, o, lanes) for o, _ in own]
        step = math.gcd(*(c for _, c in own))
        reach = sum((n - 1) * c // step for n, (_, c) in zip(counts, own, strict=True))
        total *= min(math.prod(counts), reach + 1)
    return total
