"""Sums in blocks: one reduce loop, or a part of it, runs inside the tiles and the rest around them.

Where what a block reads stays in a near cache, all tiles of a task sweep it there before the next
block comes, and no operand need be packed. The states wait in memory from block to block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from convgen.ir.nodes import Kernel, Nest
from convgen.ir.regions import loop_ranges
from convgen.schedule.access import in_loops, loads_of
from convgen.schedule.cost.reuse import LINE, PAGE
from convgen.schedule.facts import Facts, Operand
from convgen.schedule.machine import FILLED, STAYS, Machine, level_of
from convgen.schedule.tiles import Candidate, tile_count

TASKS = 8  # shares of the tiles, each with states of its own
HIDDEN = 0.1  # share of the states' transfers that shows
LEAST = 12  # iterations of a block, beside which loading and storing the states is little
CUT = 48  # the same of a part of a loop, which is cut only where that gains much
KEPT = 0.8  # share of the first cache that stays while a block is swept
AHEAD = 0.5  # share of the time of a block's lines that shows: others run meanwhile
APART = 2.0  # times as long as others that lines far apart take from the second cache
HELD = 0.3  # share of the second cache that a block may take


@dataclass(frozen=True, slots=True)
class Blocks:
    """inside: the reduce loop that runs inside the tiles, `part` iterations of it; shared: the
    output loop whose tiles are shared out, in `tasks` parts; far: output loops that move an operand
    as a loop around the tiles does, and so change what is read; near: the others, in their order;
    tiles: how many sweep a block."""

    inside: str
    part: int
    shared: str
    tasks: int
    far: tuple[str, ...]
    near: tuple[str, ...]
    tiles: int


def in_blocks(facts: Facts, candidate: Candidate) -> Iterator[Candidate]:
    """A candidate as it would run in blocks: with the whole of the loop inside the tiles where
    others go around, else with the largest parts of it that stay in the first cache and in the
    second, and with the smallest; in fewer tasks, which share more of what they read, too."""
    if not facts.order:
        return
    inside = facts.order[0]
    extent = facts.reduces[inside]
    if any(e > 1 for n, e in facts.reduces.items() if n != inside):
        whole = replace(candidate, block=inside, part=extent)
        if blocks_of(facts, whole):
            yield whole
        return
    parts = [n for n in range(extent // 2, CUT - 1, -1) if extent % n == 0]
    for tasks in (0, TASKS // 2):
        shared = replace(candidate, tasks=tasks)
        near = (n for n in parts if _stays(facts, shared, n, FILLED * facts.l1))
        far = (n for n in reversed(parts) if n >= 2 * CUT)
        second = (n for n in far if _stays(facts, shared, n, HELD * facts.l2))
        third = (n for n in reversed(parts) if _stays(facts, shared, n, HELD * facts.l2))
        for part in dict.fromkeys((next(near, 0), next(second, 0), next(third, 0))):
            if part:
                yield replace(shared, block=inside, part=part)


def _stays(facts: Facts, candidate: Candidate, part: int, limit: float) -> bool:
    """True where a candidate can run in blocks of so many iterations, within some bytes."""
    blocks = blocks_of(facts, replace(candidate, block=facts.order[0], part=part))
    return bool(blocks) and sum(size for _, size in bytes_of_block(facts, blocks)) <= limit


def blocks_of(facts: Facts, candidate: Candidate) -> Blocks | None:
    """How a candidate would run in blocks; None where it cannot, or gains nothing."""
    inside, part = candidate.block, candidate.part
    body = [o for o in facts.operands if o.body]
    around = [n for n, e in facts.reduces.items() if n != inside and e > 1]
    cut = part < facts.reduces[inside]
    plain = all(_is_plain(o, candidate) for o in body)
    if not ((around or cut) and plain and candidate.tile and len(facts.nest.reduces) == 1):
        return None
    if part < LEAST or any(o.hoistable for o in body):
        return None
    if facts.outputs[candidate.vector] % candidate.width:
        return None
    if not all(inside in o.strides for o in body):
        return None
    windows = [w for o in body for w in o.windows]
    far = {n for w in windows if set(around) & w.keys() for n in w if n in facts.outputs}
    counts = tiles_along(facts, candidate)
    tile = dict(candidate.tile)
    if far & {*tile, candidate.vector}:
        return None
    free = [n for n in (*tile, candidate.vector, *facts.outputs) if n not in far]
    even = (n for n in free if len(tile.get(n, (1,))) == 1)
    wanted = candidate.tasks or TASKS
    shares = {n: share for n in even if (share := _share(counts[n], wanted))}
    if not shares:
        return None
    shared = next(iter(shares))
    near = list(dict.fromkeys(n for n in free if counts[n] > 1))
    inner = counts | {shared: counts[shared] // shares[shared]}
    if not any(inner[n] > 1 and n not in o.strides for n in (*near, *far) for o in body):
        return None  # what one tile reads alone gains nothing from staying
    found = Blocks(
        inside,
        part,
        shared,
        shares[shared],
        tuple(n for n in facts.outputs if n in far),
        tuple(near),
        math.prod(inner[n] for n in near),
    )
    read = sum(size for _, size in bytes_of_block(facts, found))
    return found if cut or read <= FILLED * facts.l1 else None


def _is_plain(operand: Operand, candidate: Candidate) -> bool:
    """True where vectors are read as they lie, all of them."""
    shuffled = operand.is_shuffled(candidate.vector, candidate.width)
    return (shuffled or operand.strides.get(candidate.vector, 0) in (0, 1)) and not operand.omits


def tiles_along(facts: Facts, candidate: Candidate) -> dict[str, int]:
    """How many tiles lie along each output loop."""
    cut = dict(candidate.tile)
    counts = {n: tile_count(e, cut.get(n, (1,))) for n, e in facts.outputs.items()}
    return counts | {candidate.vector: facts.outputs[candidate.vector] // candidate.width}


def _share(tiles: int, least: int) -> int:
    """The tasks that so many tiles make, equal and about as many; 0 where there are none."""
    wanted = (*range(least, 2 * least + 1), *range(least - 1, least // 2 - 1, -1))
    return next((n for n in wanted if tiles % n == 0), 0)


def bytes_of_block(facts: Facts, blocks: Blocks) -> list[tuple[Operand, float]]:
    """The operands, with the bytes of lines that the tiles of a block read together."""
    moving = {**facts.outputs, blocks.inside: blocks.part}
    moving[blocks.shared] //= blocks.tasks
    for name in blocks.far:
        moving[name] = 1
    return [(o, _touched(o, moving) * o.bytes) for o in facts.operands if o.body]


def _touched(operand: Operand, moving: dict[str, int]) -> float:
    """Elements of an operand that some loops read together, whole lines where they lie in rows."""
    joint = {n for window in operand.windows for n in window}
    counts = {n: moving.get(n, 1) for n in operand.strides}
    steps = {n: abs(s or 0) for n, s in operand.strides.items()}
    for name, (step, every) in operand.patterned.items():
        counts[name], steps[name] = max(1, counts[name] // every), abs(step)
    total = math.prod(count for n, count in counts.items() if n not in joint)
    for window in operand.windows:
        total *= 1 + sum(step * (moving.get(n, 1) - 1) for n, step in window.items())
    run = 1  # elements side by side
    for step, count in sorted((steps[n], count) for n, count in counts.items()):
        run += step * (count - 1) if step <= run else 0
    return total * max(1.0, LINE / (operand.bytes * run))


def block_cycles(facts: Facts, candidate: Candidate, points: float, machine: Machine) -> float:
    """Cycles of loading and storing the states of a tile for all its blocks: they come from the
    second cache, for the most part while other tiles run."""
    count = math.prod(facts.reduces.values()) // candidate.part
    moved = 2 * points * facts.states * facts.lanes * facts.bytes
    return count * HIDDEN * (moved / machine.l2 + points * facts.states)


def streamed_cycles(facts: Facts, candidate: Candidate, machine: Machine) -> float:
    """What an iteration of a tile waits for the lines that its block brings into a near cache, from
    where the whole operand stays, and for those that do not stay in the first; loops that change
    what is read do not change all of it."""
    blocks = blocks_of(facts, candidate)
    if blocks is None:
        return 0.0
    parts = bytes_of_block(facts, blocks)
    left = KEPT * facts.l1
    waiting = again = 0.0
    for operand, size in sorted(parts, key=lambda part: part[1]):
        stays = math.prod(facts.outputs[n] for n in blocks.far if n not in operand.strides)
        level = level_of(operand.elements * operand.bytes, facts.caches, STAYS)
        waiting += AHEAD * size / machine.rate_from(level) / stays
        left -= size * _sets(facts, operand, blocks)
        if left < 0:
            apart = APART if blocks.part < facts.reduces[blocks.inside] else 1.0
            again += apart * _fresh_lines(operand, candidate) / machine.l2
    return waiting / (blocks.tiles * blocks.part) + again


def _sets(facts: Facts, operand: Operand, blocks: Blocks) -> float:
    """How many times as much of the first cache as its size an operand takes: rows that are a part
    of what lies between them fill the same sets."""
    pitch = abs(operand.strides.get(blocks.inside) or 0) * operand.bytes
    run = operand.bytes * math.prod(
        facts.outputs[n] // (blocks.tasks if n == blocks.shared else 1)
        for n in operand.strides
        if operand.strides[n] == 1 and n in facts.outputs
    )
    return max(1.0, math.gcd(PAGE, pitch) / max(LINE, run))


def _fresh_lines(operand: Operand, candidate: Candidate) -> float:
    """Bytes of the lines of an operand that an iteration of a tile is the first to read."""
    sizes = {n: max(cover) for n, cover in candidate.tile} | {candidate.vector: candidate.width}
    near = [n for n in sizes if operand.strides.get(n) == 1]
    if operand.is_shuffled(candidate.vector, candidate.width):
        _, every = operand.patterned[candidate.vector]
        near.append(candidate.vector)
        sizes[candidate.vector] = -(-candidate.width // every)
    slid = {n for window in operand.windows if candidate.block in window for n in window}
    run = operand.bytes * math.prod(sizes[n] for n in near)
    rows = math.prod(sizes[n] for n in sizes.keys() & operand.strides.keys() - {*near, *slid})
    return -(-run // LINE) * LINE * rows


def all_packed(facts: Facts, candidate: Candidate) -> Candidate:
    """The candidate as if what it reads lay as it reads it: what the first cache holds does."""
    return replace(candidate, packs=frozenset(o.load.buffer for o in facts.operands if o.body))


def edges_along(nest: Nest, name: str, kernel: Kernel) -> tuple[int, int]:
    """How many of the first and of the last iterations of a loop reach over an edge."""
    extent = nest.loop(name).extent
    ranges = {**loop_ranges(nest), name: (0, 1)}
    low = high = 0
    for load in loads_of(nest):
        sizes = kernel.buffer(load.buffer).shape
        for index, edge, size in zip(load.index, load.edges, sizes, strict=True):
            place = in_loops(nest, index)
            step = place.coefficient(name)
            if edge is None or step <= 0:
                continue
            least, most = place.bounds(ranges)
            low = max(low, -(least // step))
            high = max(high, extent - 1 - (size - 1 - most) // step)
    return max(0, low), max(0, high)
