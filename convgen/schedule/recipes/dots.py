"""Sums of products of rows: every operand lies in memory along one loop that is summed over.

A register tile takes some rows of each operand, lanes are partial sums. No operand is turned round,
which pays where a large one is used a few times only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from convgen.schedule.cost.score import idle_share
from convgen.schedule.directives.split import best_cover
from convgen.schedule.facts import Facts, Operand, axis_of
from convgen.schedule.machine import Machine, level_of
from convgen.schedule.tiles import Candidate, chunks_of, mean_height, tile_count

ROWS = 8  # of one operand in a tile
LONG = 4  # vectors from which a row is worth a tile
HIDDEN = 0.15  # share of the hidden work of a tile that still shows
HELD = (0.5, 0.85, 0.5)  # shares of the caches in which rows stay that are swept again and again
FETCHED = 0.5  # share of the cycles in which rows come that shows: they come in order, and ahead
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
