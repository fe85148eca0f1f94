"""Extents from shapes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convgen.errors import ShapeError
from convgen.symbolic.parse import parse


def spans(text, **shapes):
    (piece,) = parse(text, **shapes).stages[-1].pieces
    found = {r.axis: (r.lo, str(r.hi)) for r in piece.domain.ranges}
    for reduce in piece.reduces:
        found.update({r.axis: (r.lo, str(r.hi)) for r in reduce.domain.ranges})
    return {axis: (lo, int(hi) if hi.isdigit() else hi) for axis, (lo, hi) in found.items()}


CASES = [
    ("Y[y] = sum(r: X[y + r] * W[r])", {"X": 9, "W": 3}, {"y": (0, 7), "r": (0, 3)}),
    ("Y[y] = sum(r: X[2*y + 3*r] * W[r])", {"X": 12, "W": 3}, {"y": (0, 3), "r": (0, 3)}),
    ("Y[y] = sum(r: X[y + 2 - r] * W[r])", {"X": 9, "W": 3}, {"y": (0, 7), "r": (0, 3)}),
    ("Y[y] = X[y] + X[y + 1]", {"X": 5}, {"y": (0, 5)}),
    ("Y[y] = X[y + 1] + X[y + 2]", {"X": 5}, {"y": (0, 3)}),
    ("Y[y] = X{reflect}[y]", {"X": 5}, {"y": (0, 5)}),
    ("Y[n, y] = X[n, y + 1]", {"X": ("N", 5)}, {"n": (0, "N"), "y": (0, 4)}),
    ("Y[y] = max(r < 2: X[2*y + r])", {"X": 7}, {"y": (0, 3), "r": (0, 2)}),
    ("Y[y] = X[y - 1]", {"X": 5, "Y": 6}, {"y": (0, 6)}),
    ("Y[3 - y] = X[y]", {"X": 4}, {"y": (0, 4)}),
    ("Y[y] = sum(r: X[r] * Z[y + r + 1])", {"X": 2, "Z": 9}, {"y": (0, 7), "r": (0, 2)}),
    ("Y[i] = X[i, i]", {"X": (4, 4)}, {"i": (0, 4)}),
    ("Y[] = sum(n: X[n])", {"X": 0}, {"n": (0, 0)}),
]


@pytest.mark.parametrize("text, shapes, expected", CASES)
def test_extents(text, shapes, expected):
    assert spans(text, **shapes) == expected


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(1, 30))
def test_output_size_of_the_textbook(stride, dilation, kernel, extent):
    text = f"Y[y] = sum(r: X[{stride}*y + {dilation}*r] * W[r])"
    size = (extent - dilation * (kernel - 1) - 1) // stride + 1
    if size > 0:
        assert spans(text, X=extent, W=kernel)["y"] == (0, size)
    else:
        with pytest.raises(ShapeError, match="smaller kernel"):
            spans(text, X=extent, W=kernel)


REFUSED = [
    ("Y[y] = X[y - 1]", {"X": 5}, "extents={y: ...}, or `for y < ...`"),
    ("Y[y] = sum(r: X{omit}[y + r])", {"X": 5}, "axis y is ambiguous"),
    ("Y[] = max(r: X{omit}[r + 1])", {"X": 5}, "r < ... in its sum"),
    ("Y[y] = sum(r: X[y + r])", {"X": 5}, "does not bound it"),
    ("Y[y] = 1", {}, "no access uses it"),
    ("Y[y] = X[y // 2]", {"X": 5}, "does not bound it"),
    ("Y[i] = X[i, i]", {"X": (4, 5)}, "got 4 from dimension 0 of X[i, i] and 5 from dimension 1"),
    ("Y[n] = X[n] + Z[n]", {"X": ("N",), "Z": (4,)}, "got N from dimension 0"),
    ("Y[n] = X[2*n]", {"X": ("N",)}, "symbolic extent N"),
    ("Y[n] = X[2*n]   for n < 3", {"X": ("N",)}, "symbolic extent N"),
    ("Y[n, m] = X[n] + Z[m]   for n < 3", {"X": ("N",), "Z": (3,)}, "symbolic extent N"),
    ("Y[y] = X{reflect}[y - 3]   for y < 3", {"X": 3}, "at most 2 beyond each edge"),
]


@pytest.mark.parametrize("text, shapes, message", REFUSED)
def test_refusals(text, shapes, message):
    with pytest.raises(ShapeError) as caught:
        spans(text, **shapes)
    assert message in str(caught.value), str(caught.value)
