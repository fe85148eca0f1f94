"""The share of reduce iterations that tiles run, against counting them one by one."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from convgen.affine import Affine
from convgen.schedule.skipping import THIN, reach_of, share_inside


@given(
    st.integers(1, 12), st.integers(1, 6), st.integers(-2, 3), st.integers(-2, 3),
    st.integers(-8, 8), st.integers(1, 9), st.integers(1, 5),
)  # fmt: skip
def test_the_share_is_counted(
    extent: int, taps: int, step: int, reach: int, start: int, size: int, length: int
) -> None:
    place = Affine.of("x") * step + Affine.of("s") * reach + start
    found = reach_of(place, size, {"x": extent}, {"s": taps})
    assert found is not None

    def share(tile: int) -> float:
        met = total = 0
        for first, tap in product(range(0, extent, tile), range(taps)):
            points = range(first, min(extent, first + tile))
            total += 1
            low = min(step * x for x in points) + reach * tap + start
            high = max(step * x for x in points) + reach * tap + start
            met += high >= 0 and low < size
        return met / total

    alone = share(1)
    thin = alone >= THIN
    moved = (("x", length),) if step else ()
    assert share_inside(found, ()) == (1.0 if thin else alone)
    assert share_inside(found, moved) == (1.0 if thin else share(length if step else 1))


def test_what_cannot_be_told_is_no_reach() -> None:
    assert reach_of(Affine.of("x") // 2, 4, {"x": 8}, {"s": 3}) is None
    assert reach_of(Affine.of("x") + Affine.of("b"), 4, {"x": 8}, {"s": 3}) is None
