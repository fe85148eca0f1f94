"""The usual letters of axes: where both occur in an index they tell positions from taps."""

from __future__ import annotations

from collections.abc import Iterable

POSITIONS, TAPS = frozenset("zyxdhwu"), frozenset("qrst")


def usual_taps(names: Iterable[str]) -> frozenset[str]:
    """The names that are taps, r s t, beside positions, h w y x: in an index they come second."""
    letters = {n: n.rstrip("'").split("_")[0] for n in names}
    if not any(letter in POSITIONS for letter in letters.values()):
        return frozenset()
    return frozenset(n for n, letter in letters.items() if letter in TAPS)
