"""Sums of products of rows: every operand lies in memory along one loop that is summed over.

A register tile takes some rows of each operand, lanes are partial sums. No operand is turned round,
which pays where a large one is used a few times only. Where the loops that are summed over make up
rows of one operand, the other one is unfolded, so that they make up rows of it too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from convgen.affine import Affine
from convgen.errors import ScheduleError
from convgen.ir.nodes import Kernel, Nest
from convgen.schedule.copies import copy_cycles, first_of
from convgen.schedule.cost import idle_share
from convgen.schedule.directives import Directive, fuse, reorder, unfold
from convgen.schedule.directives.base import find_nest
from convgen.schedule.directives.split import best_cover
from convgen.schedule.facts import Facts, Operand, axis_of, facts_of
from convgen.schedule.machine import STAYS, Machine, level_of, machine_of
from convgen.schedule.normalize import contiguous_pair
from convgen.schedule.tiles import Candidate, chunks_of, mean_height, tile_count
from convgen.target import Target

ROWS = 8  # of one operand in a tile
LONG = 4  # vectors from which a row is worth a tile
UNFOLDED = 1.2  # cycles per element of a copy with a dimension for each axis, moved in squares
SHORT = 4.5  # the same where the squares are not whole
PHASE = 40_000  # cycles that one more phase takes
GAIN = 0.9  # of the cycles that a copy may leave: what it takes is known roughly
HIDDEN = 0.15  # share of the hidden work of a tile that still shows
HELD = (0.5, 0.85, 0.5)  # shares of the caches in which rows stay that are swept again and again
FETCHED = 0.5  # share of the cycles in which rows come that shows: they come in order, and ahead
AHEAD = 0.45  # of a copy that is taken to serve many calls: as many are taken to make their own
STARTED = 30  # cycles of a tile's first loads and of the loops around it


def dots(facts: Facts) -> Iterator[Candidate]:
    """Tiles of rows of one operand and of the other, for loops that both have in rows."""
    for vector, extent in facts.reduces.items():
        if extent < LONG * facts.lanes or not is_dot(facts, vector):
            continue
        first, second = (o.strides for o in _bodies(facts))
        mine = [n for n, e in facts.outputs.items() if n in first and n not in second and e > 1]
        theirs = [n for n, e in facts.outputs.items() if n in second and n not in first and e > 1]
        for one in mine or [""]:
            for other in theirs or [""]:
                yield from _tiles(facts, vector, one, other)


def is_dot(facts: Facts, vector: str) -> bool:
    """True where the nest adds up products of two operands that are contiguous along that loop."""
    operands = _bodies(facts)
    return (
        len(operands) == 2
        and facts.states == 1
        and facts.lanes > 1
        and all(o.strides.get(vector) == 1 and vector not in o.edged for o in operands)
        and not any(o.omits for o in operands)
    )


def _bodies(facts: Facts) -> list[Operand]:
    return [o for o in facts.operands if o.body]


def _tiles(facts: Facts, vector: str, one: str, other: str) -> Iterator[Candidate]:
    """Tiles whose states fit the registers beside the rows of one side and a row of the other."""
    found: dict[tuple[int, int], None] = {}
    for rows in range(1, ROWS + 1):
        fits = [n for n in range(1, ROWS + 1) if _fits(facts, rows, n)]
        for columns in {max(fits, default=0), max(fits, default=0) // 2} - {0}:
            size = (
                min(rows, facts.outputs[one]) if one else 1,
                min(columns, facts.outputs[other]) if other else 1,
            )
            found[size] = None
    for rows, columns in found:
        tile = [(n, _cover(facts, n, size)) for n, size in ((one, rows), (other, columns)) if n]
        if tile:
            yield Candidate(vector, facts.lanes, tuple(t for t in tile if max(t[1]) > 1))


def _fits(facts: Facts, rows: int, columns: int) -> bool:
    return rows * columns + min(rows, columns) + 1 <= facts.registers + 2


def _cover(facts: Facts, name: str, size: int) -> tuple[int, ...]:
    return best_cover(facts.outputs[name], size)


def by_rows(facts: Facts, outer: list[str]) -> list[str]:
    """The outer loops as the largest operand lies in memory; those that do not move it last."""
    largest = max(_bodies(facts), key=lambda o: o.elements)

    def step(name: str) -> int:
        return abs(largest.strides.get(axis_of(name)) or largest.strides.get(name) or 0)

    return sorted(outer, key=step, reverse=True)


def score_dot(facts: Facts, candidate: Candidate, machine: Machine) -> Candidate:
    """The candidate with its cycles."""
    tile = {name: mean_height(facts, name, cover) for name, cover in candidate.tile}
    count = math.prod(tile_count(facts.outputs[name], cover) for name, cover in candidate.tile)
    tiles = count * math.prod(e for n, e in facts.outputs.items() if n not in tile)
    extent = facts.reduces[candidate.vector]
    steps = sum(chunks_of(extent, facts.lanes).values())
    steps *= math.prod(facts.reduces.values()) // extent
    points = math.prod(tile.values())
    loaded = sum(math.prod(tile[n] for n in tile if n in o.strides) for o in _bodies(facts))
    work, loads = points * facts.operations / machine.fma_rate, loaded / machine.load_rate
    each = max(work, loads, machine.latency) + HIDDEN * (work + loads)
    ended = points * (6.0 * math.log2(facts.lanes) + facts.epilogue + 2) + STARTED
    cycles = tiles * (steps * each + ended) + FETCHED * bytes_moved(facts, tile, machine)
    return replace(candidate, cycles=cycles * idle_share(tiles, cycles))


def bytes_moved(facts: Facts, tile: Mapping[str, float], machine: Machine) -> float:
    """Cycles in which the operands come: the largest one's rows once from where it lies and then,
    for each tile of the others, from where a tile's rows stay; the others from where they stay
    beside those."""
    operands = sorted(_bodies(facts), key=lambda o: o.elements, reverse=True)
    total, beside = 0.0, 0.0
    for number, operand in enumerate(operands):
        size = float(operand.elements * operand.bytes)
        times = math.prod(
            e / tile.get(n, 1) for n, e in facts.outputs.items() if n not in operand.strides
        )
        part = size * math.prod(
            tile.get(n, 1) / e for n, e in facts.outputs.items() if n in operand.strides
        )
        if number == 0:
            again, beside = part, part
        else:
            apart = math.prod(
                e
                for n, e in facts.outputs.items()
                if n in operand.strides and n in operands[0].strides
            )
            again = size / apart + beside
        total += size / _rate(facts, size, machine)
        total += max(0.0, times - 1) * size / _rate(facts, again, machine)
    return total


def _rate(facts: Facts, size: float, machine: Machine) -> float:
    return machine.rate_from(level_of(size, facts.caches, HELD))


def unfolded(
    facts: Facts, kernel: Kernel, target: Target, instead: Candidate
) -> tuple[list[Directive], Candidate] | None:
    """The directives that unfold an operand of a nest, with what to choose then, where that takes
    fewer cycles than what is to be done else."""
    nest, machine = facts.nest, machine_of(target)
    packed = (o for o in first_of(facts, instead.packs) if o.hoistable)
    ahead = sum(copy_cycles(facts, o, instead, machine) / o.readers for o in packed)
    least = GAIN * (instead.cycles + AHEAD * ahead)
    order = _row_of_reduces(facts)
    other = next((o for o in _bodies(facts) if not _is_row(facts, o, order)), None)
    if not order or other is None or other.hoistable or other.readers > 1:
        return None
    extents = {**facts.outputs, **facts.reduces}
    outputs = [n for n in facts.outputs if n in other.strides]
    copied = math.prod(extents[n] for n in (*outputs, *order))
    copying = copied * (UNFOLDED if _in_squares(facts, other, order) else SHORT) + PHASE
    work = math.prod(extents.values()) * facts.operations / facts.lanes / machine.fma_rate
    if work + copying >= least or copied * other.bytes > STAYS[2] * facts.l3:
        return None
    try:
        directives, after = _unfolding(nest, kernel, target, other, outputs, order)
    except ScheduleError:
        return None
    facts = facts_of(find_nest(directives[0], after), after, target)
    scored = [score_dot(facts, c, machine) for c in dots(facts)]
    best = min(scored, key=lambda c: c.cycles, default=None)
    if best is None or best.cycles + copying >= least:
        return None
    return directives, replace(best, cycles=best.cycles + copying)


def _in_squares(facts: Facts, operand: Operand, order: list[str]) -> bool:
    """True where an operand and its copy, along the last loop of the order, have whole vectors."""
    extents = {**facts.outputs, **facts.reduces}
    near = any(step == 1 and extents[n] >= facts.lanes for n, step in operand.strides.items())
    return near and extents[order[-1]] >= facts.lanes


def _unfolding(
    nest: Nest,
    kernel: Kernel,
    target: Target,
    operand: Operand,
    outputs: list[str],
    order: list[str],
) -> tuple[list[Directive], Kernel]:
    """Unfold, the loops that are summed over in the order of the rows, and as one."""
    found: list[Directive] = []

    def add(directive: Directive) -> None:
        nonlocal kernel
        kernel = directive.apply(kernel, target)
        found.append(directive)

    alone = [o.name for o in nest.loops if o.reduce is not None and o.name not in order]
    axes = [a for n in (*outputs, *alone, *order) for a in axes_along(nest, n)]
    add(unfold(operand.load.buffer, *axes, nest=nest.name))
    wanted = [*(o.name for o in nest.loops if o.reduce is None), *alone, *order]
    if wanted != [o.name for o in nest.loops]:
        add(reorder(*wanted, nest=nest.name))
    while (pair := contiguous_pair(find_nest(found[0], kernel), kernel)) is not None:
        add(fuse(*pair, nest=nest.name))
    return found, kernel


def axes_along(nest: Nest, loop: str) -> list[str]:
    """The axes that a loop moves, the one that it moves first last."""

    def since(value: Affine) -> int:
        """The first iteration that changes it."""
        start = value.substitute({loop: 0})
        steps = range(1, nest.loop(loop).extent)
        return next((i for i in steps if value.substitute({loop: i}) != start), len(steps) + 1)

    moved = [(axis, value) for axis, value in nest.axes if loop in value.names()]
    return [axis for axis, _ in sorted(moved, key=lambda one: -since(one[1]))]


def _row_of_reduces(facts: Facts) -> list[str]:
    """The loops that are summed over, the fastest last, where they make up rows of one operand and
    not of the other."""
    operands = _bodies(facts)
    nest = facts.nest
    if len(operands) != 2 or len(nest.reduces) != 1 or facts.states != 1 or facts.lanes < 2:
        return []
    combiner = nest.reduces[0].combiner
    if not (combiner.associative and combiner.commutative):
        return []
    for operand in sorted(operands, key=lambda o: -o.elements):
        names = [n for n, e in facts.reduces.items() if e > 1]
        order = sorted(names, key=lambda n: -(operand.strides.get(n) or 0))
        rest = next(o for o in operands if o is not operand)
        if _is_row(facts, operand, order) and not _is_row(facts, rest, order):
            return order
    return []


def _is_row(facts: Facts, operand: Operand, order: list[str]) -> bool:
    """True where loops, the fastest last, walk an operand element by element."""
    count = 1
    for name in reversed(order):
        if operand.strides.get(name) != count:
            return False
        count *= facts.reduces[name]
    return count >= LONG * facts.lanes and not operand.edged and not operand.omits
