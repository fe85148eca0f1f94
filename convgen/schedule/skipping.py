"""Iterations of the reduce loops that a tile leaves out, because it lies outside an operand, where
zeros are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from convgen.affine import Affine
from convgen.ir.nodes import Load, ReduceNode
from convgen.ir.sums import adds_up, factors

LONG = 16  # iterations of the innermost reduce loop from which a test in front of it pays
THIN = 0.8  # share of the iterations that lie inside from which the others are not counted
MOST = 20_000  # tiles and iterations of a dimension that are counted one by one


@dataclass(frozen=True, slots=True)
class Reach:
    """A dimension of an operand that is 0 outside: its index is the sum of `step` times each loop,
    from `start`, and it has `size` elements. outputs, inner: (loop, step, extent) of the output
    loops and of the reduce loops."""

    outputs: tuple[tuple[str, int, int], ...]
    inner: tuple[tuple[str, int, int], ...]
    start: int
    size: int


def reach_of(
    place: Affine, size: int, outputs: dict[str, int], inner: dict[str, int]
) -> Reach | None:
    """The reach of an index over loops; None where it cannot be told."""
    if place.hidden_names() or not place.names() <= outputs.keys() | inner.keys():
        return None
    steps = {n: place.coefficient(n) for n in sorted(place.names())}
    return Reach(
        tuple((n, s, outputs[n]) for n, s in steps.items() if n in outputs),
        tuple((n, s, inner[n]) for n, s in steps.items() if n in inner),
        place.constant,
        size,
    )


def leaves_out(load: Load, reduces: tuple[ReduceNode, ...]) -> bool:
    """True for a load whose zeros are factors of all elements of the only sum of a nest."""
    if len(reduces) != 1 or not adds_up(reduces[0].combiner):
        return False
    return load in factors(reduces[0].body)


@lru_cache(maxsize=4096)
def share_inside(reach: Reach, sizes: tuple[tuple[str, int], ...]) -> float:
    """The share of the iterations of a dimension's reduce loops in which some point of a tile of
    so many steps along the output loops lies inside, over all tiles; 1 for thin edges.

    >>> one = Reach((("x", 1, 8),), (("s", -1, 5),), 0, 4)  # x - s in 0..3, x < 8, s < 5
    >>> share_inside(one, ()), share_inside(one, (("x", 8),))
    (0.5, 1.0)
    """
    if sizes and share_inside(reach, ()) == 1.0:
        return 1.0
    lengths = dict(sizes)
    tiles = [list(_parts(step, extent, lengths.get(n, 1))) for n, step, extent in reach.outputs]
    points = [[step * i for i in range(extent)] for _, step, extent in reach.inner]
    total = math.prod(map(len, tiles)) * math.prod(map(len, points))
    if not total or total > MOST:
        return 1.0
    taps = [reach.start + sum(at) for at in product(*points)]
    met = 0
    for tile in product(*tiles):
        low, high = sum(part[0] for part in tile), sum(part[1] for part in tile)
        met += sum(tap + high >= 0 and tap + low < reach.size for tap in taps)
    return met / total if sizes or met < THIN * total else 1.0


def _parts(step: int, extent: int, length: int) -> Iterator[tuple[int, int]]:
    """The smallest and the largest multiple of a step in each part of a loop."""
    for first in range(0, extent, length):
        last = min(extent, first + length) - 1
        yield min(step * first, step * last), max(step * first, step * last)
