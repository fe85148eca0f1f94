"""Which register tiles are worth scoring: the loops beside the vector loop that a tile takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

from convgen.schedule.directives.split import best_cover
from convgen.schedule.facts import Facts

# Loops of a register tile with the sizes that cover them.
Tile: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]

SOURCES = 1  # vectors that stay while parts of them are spread over the lanes
EXACT = 0.8  # share of the room from which tiles of one size are worth a look
SQUARES = ((2, 2), (4, 2), (2, 4), (3, 3), (4, 4))  # of two loops that slide along one operand
WHOLE = 2  # short loops that a tile takes as a whole beside parts of another


@dataclass(frozen=True, slots=True)
class Candidate:
    """A choice: the vector loop ("" for none) and how much of it a tile takes; the other loops of
    the tile with the sizes that cover them; the buffers to pack; the reduce loop of which a part
    runs inside the tiles, the rest and the others around them ("": all run inside); how many tasks
    share them then, at least (0: as many as usual)."""

    vector: str = ""
    width: int = 1
    tile: Tile = ()
    packs: frozenset[str] = frozenset()
    block: str = ""
    part: int = 0
    tasks: int = 0
    cycles: float = math.inf


def tiles(facts: Facts, vector: str, vectors: int) -> Iterator[Tile]:
    """Tiles for a vector loop that takes so many vectors: none; parts of one output loop; of two
    that slide along one operand; short ones as a whole with parts of another."""
    yield ()
    room = (free_registers(facts, vector) - vectors) // (vectors * max(1, facts.states))
    if not facts.reduces or room < 2:
        return
    others = {n: e for n, e in facts.outputs.items() if n != vector and e > 1}
    slid = {n for o in facts.operands if vector in o.strides for w in o.windows for n in w}
    for name, extent in others.items():
        for sizes in heights(extent, room, 4 if name in slid else 2):
            yield ((name, sizes),)
    long = [n for n, extent in others.items() if n in slid and extent > max(map(max, SQUARES))]
    for pair in combinations(long, 2):
        for square in SQUARES:
            if math.prod(square) <= room:
                yield tuple(
                    (n, best_cover(others[n], s)) for n, s in zip(pair, square, strict=True)
                )
    short = [name for name, extent in others.items() if 2 * extent <= room]
    for count in range(1, WHOLE + 1):
        for names in combinations(short, count):
            whole = tuple((name, (others[name],)) for name in names)
            for second, length in others.items():
                left = room_beside(facts, vector, vectors, whole, second)
                if left < count or second in names:
                    continue
                for sizes in heights(length, left, count):
                    yield ((second, sizes), *whole)


def room_beside(facts: Facts, vector: str, vectors: int, whole: Tile, name: str) -> int:
    """How many points of a loop fit the registers beside loops that the tile takes as a whole: the
    vectors that the points along it share are kept too."""
    size = math.prod(max(sizes) for _, sizes in whole)
    kept = vectors
    for operand in facts.operands:
        if operand.body and vector in operand.strides and name not in operand.strides:
            along = math.prod(max(sizes) for n, sizes in whole if n in operand.strides)
            kept = max(kept, vectors * along)
    registers = free_registers(facts, vector)
    free = registers + 1 - kept  # one of the two left free holds the other operand
    return min(free, registers - vectors) // (vectors * size * max(1, facts.states))


def free_registers(facts: Facts, vector: str) -> int:
    """Those for states and operands, beside the mask of a partly used vector and the vectors that
    others are shuffled from."""
    shuffled = any(o.body and vector in o.patterned for o in facts.operands)
    return facts.registers - is_masked(facts, vector) - SOURCES * shuffled


def is_masked(facts: Facts, vector: str) -> bool:
    """True where a partly used vector slides along an operand and the mask of its loads is a vector
    too."""
    rest = facts.outputs.get(vector, 0) % facts.lanes
    slides = any(o.body and vector in o.shifted for o in facts.operands)
    return bool(rest & (rest - 1)) and slides and facts.wide_masks


def heights(extent: int, largest: int, parts: int = 2) -> list[tuple[int, ...]]:
    """Covers of an extent by tiles of at most `largest`, then of parts of it, the largest first.

    >>> heights(19, 14)
    [(10, 9), (7, 6)]
    """
    found: dict[tuple[int, ...], None] = {}
    for limit in (largest, largest // 2, largest // 3, largest // 4)[:parts]:
        if limit >= 1:
            found[best_cover(extent, limit)] = None
            exact = max(d for d in range(1, limit + 1) if extent % d == 0)
            if exact >= EXACT * limit:
                found[exact,] = None
    return list(found)


def mean_height(facts: Facts, name: str, cover: tuple[int, ...]) -> float:
    """The average size of the tiles that cover a loop."""
    return facts.outputs[name] / tile_count(facts.outputs[name], cover)


def tile_count(extent: int, cover: Sequence[int]) -> int:
    return max(1, -(-extent // max(cover)))


def run_of(tile: Tile, strides: Mapping[str, int | None]) -> int:
    """Elements side by side in memory that the loops of a tile make up."""
    run = 1
    for stride, size in sorted((strides.get(n) or 0, max(c)) for n, c in tile):
        if stride == run:
            run *= size
    return run


def chunks_of(extent: int, width: int) -> dict[int, int]:
    """The sizes of the tiles along the vector loop, with how many there are of each."""
    whole, rest = divmod(extent, width)
    return {size: count for size, count in ((width, whole), (rest, 1)) if size and count}
