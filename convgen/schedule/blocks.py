"""Sums in blocks: one reduce loop runs inside the tiles and the others around them.

Where what a block reads stays in the first cache, all tiles of a task sweep it there before the
next block comes, and no operand need be packed. The states wait in memory from block to block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from convgen.ir.nodes import Kernel, Nest
from convgen.ir.regions import loop_ranges
from convgen.schedule.access import in_loops, loads_of
from convgen.schedule.facts import Facts, Operand
from convgen.schedule.machine import FILLED, STAYS, Machine, level_of
from convgen.schedule.reuse import LINE
from convgen.schedule.tiles import Candidate, tile_count

TASKS = 8  # shares of the tiles, each with states of its own
HIDDEN = 0.1  # share of the states' transfers that shows
LEAST = 12  # iterations of a block, beside which loading and storing the states is little


@dataclass(frozen=True, slots=True)
class Blocks:
    """inside: the reduce loop that runs inside the tiles; shared: the output loop whose tiles are
    shared out, in `tasks` parts; far: output loops that move an operand as a loop around the tiles
    does, and so change what is read; near: the others, in their order; tiles: how many sweep a
    block."""

    inside: str
    shared: str
    tasks: int
    far: tuple[str, ...]
    near: tuple[str, ...]
    tiles: int


def blocks_of(facts: Facts, candidate: Candidate) -> Blocks | None:
    """How a candidate would run in blocks; None where it cannot, or gains nothing."""
    inside = facts.order[0] if facts.order else ""
    body = [o for o in facts.operands if o.body]
    around = [n for n, e in facts.reduces.items() if n != inside and e > 1]
    plain = all(_is_plain(o, candidate.vector) for o in body)
    if not (around and plain and candidate.tile and len(facts.nest.reduces) == 1):
        return None
    if facts.reduces[inside] < LEAST or any(o.hoistable for o in body):
        return None
    if facts.outputs[candidate.vector] % candidate.width:
        return None
    if not all(inside in o.strides for o in body):
        return None
    windows = [w for o in body for w in o.windows]
    far = {n for w in windows if set(around) & w.keys() for n in w if n in facts.outputs}
    counts = tiles_along(facts, candidate)
    cut = dict(candidate.tile)
    if far & {*cut, candidate.vector}:
        return None
    free = [n for n in (*cut, candidate.vector, *facts.outputs) if n not in far]
    even = (n for n in free if len(cut.get(n, (1,))) == 1)
    shares = {n: share for n in even if (share := _share(counts[n]))}
    if not shares:
        return None
    shared = next(iter(shares))
    near = [n for n in free if counts[n] > 1]
    inner = counts | {shared: counts[shared] // shares[shared]}
    if not any(inner[n] > 1 and n not in o.strides for n in (*near, *far) for o in body):
        return None  # what one tile reads alone gains nothing from staying
    found = Blocks(
        inside,
        shared,
        shares[shared],
        tuple(n for n in facts.outputs if n in far),
        tuple(dict.fromkeys(near)),
        math.prod(inner[n] for n in near),
    )
    read = sum(size for _, size in bytes_of_block(facts, found))
    return found if read <= FILLED * facts.l1 else None


def _is_plain(operand: Operand, vector: str) -> bool:
    """True where vectors are read as they lie, all of them."""
    contiguous = operand.strides.get(vector, 0) in (0, 1) or vector in operand.patterned
    return contiguous and not operand.omits


def tiles_along(facts: Facts, candidate: Candidate) -> dict[str, int]:
    """How many tiles lie along each output loop."""
    cut = dict(candidate.tile)
    counts = {n: tile_count(e, cut.get(n, (1,))) for n, e in facts.outputs.items()}
    return counts | {candidate.vector: facts.outputs[candidate.vector] // candidate.width}


def _share(tiles: int) -> int:
    """The tasks that so many tiles make, equal and not many; 0 where there are none."""
    wanted = (*range(TASKS, 2 * TASKS + 1), *range(TASKS - 1, TASKS // 2 - 1, -1))
    return next((n for n in wanted if tiles % n == 0), 0)


def bytes_of_block(facts: Facts, blocks: Blocks) -> list[tuple[Operand, float]]:
    """The operands, with the bytes of lines that the tiles of a block read together."""
    moving = {**facts.outputs, blocks.inside: facts.reduces[blocks.inside]}
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
    count = math.prod(e for n, e in facts.reduces.items() if n != candidate.block)
    moved = 2 * points * facts.states * facts.lanes * facts.bytes
    return count * HIDDEN * (moved / machine.l2 + points * facts.states)


def streamed_cycles(facts: Facts, candidate: Candidate, machine: Machine) -> float:
    """What an iteration of a tile waits for the lines that its block brings into the first cache,
    from where the whole operand stays; loops that change what is read do not change all of it."""
    blocks = blocks_of(facts, candidate)
    if blocks is None:
        return 0.0
    waiting = 0.0
    for operand, size in bytes_of_block(facts, blocks):
        stays = math.prod(facts.outputs[n] for n in blocks.far if n not in operand.strides)
        level = level_of(operand.elements * operand.bytes, facts.caches, STAYS)
        waiting += size / machine.rate_from(level) / stays
    return waiting / (blocks.tiles * facts.reduces[blocks.inside])


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
