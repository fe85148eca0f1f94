"""Vectors whose lanes read a few neighbouring elements in a fixed pattern: one load, one shuffle.

So the channels of a group are read where lanes run through the filters of several groups."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convgen.affine import Affine
from convgen.passes.flatten.scope import LANE


@dataclass(frozen=True, slots=True)
class Window:
    """`count` neighbouring elements from `start` on, and the one of them that each lane reads;
    lanes that read none have `count`."""

    start: Affine
    count: int
    picked: tuple[int, ...]


def window_of(offset: Affine, valid: int, lanes: int, size: int) -> Window | None:
    """What lanes below `valid` read at an offset in a buffer of so many elements, where it lies
    within a vector of `lanes`; None where it does not, or differs between iterations.

    Windows begin at multiples of `lanes` where they may: neighbouring patterns share one load.

    >>> from convgen.affine import FloorDiv
    >>> group = 4 * Affine.of(FloorDiv(Affine.of(LANE), 4))
    >>> window_of(8 * Affine.of("g") + group + 1, 8, 8, 64)
    Window(start=Affine(terms=(('g', 8),), constant=0), count=8, picked=(1, 1, 1, 1, 5, 5, 5, 5))
    """
    moving = Affine(tuple((a, c) for a, c in offset.terms if LANE in Affine.of(a).names()))
    if moving.names() != frozenset({LANE}):
        return None
    base = offset - moving
    places = [base.constant + moving.evaluate({LANE: lane}) for lane in range(valid)]
    low, high = min(places), max(places)
    first, count = low, high - low + 1
    step = math.gcd(size, *(c for _, c in base.terms))
    if valid == lanes and step % lanes == 0 and high < low // lanes * lanes + lanes:
        first, count = low // lanes * lanes, lanes  # the buffer is made of such vectors
    elif count > lanes or (valid < lanes and count == lanes):
        return None
    picked = tuple(place - first for place in places)
    return Window(base - base.constant + first, count, picked + (count,) * (lanes - valid))
