"""Simplified integer expressions are the same numbers, and digits of cut loops join again."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convgen.affine import Affine
from convgen.ir.simplify import simplify_affine

RANGES = {"a": (0, 5), "b": (-3, 6), "c": (0, 13)}

plain = st.builds(
    lambda steps, start: sum((Affine.of(n) * s for n, s in steps.items()), Affine((), start)),
    st.dictionaries(st.sampled_from("abc"), st.integers(-12, 12), max_size=3),
    st.integers(-20, 20),
)


def nested(inner: st.SearchStrategy[Affine]) -> st.SearchStrategy[Affine]:
    divisor = st.integers(1, 12)
    return st.one_of(
        st.builds(lambda v, d: v // d, inner, divisor),
        st.builds(lambda v, d: v % d, inner, divisor),
        st.builds(lambda v, w, k: v * k + w, inner, inner, st.integers(-4, 4)),
    )


@settings(max_examples=200, deadline=None)
@given(st.recursive(plain, nested, max_leaves=5))
def test_the_same_numbers(value: Affine) -> None:
    simple = simplify_affine(value, RANGES)
    for point in product(*(range(*pair) for pair in RANGES.values())):
        at = {n: Affine((), v) for n, v in zip(RANGES, point, strict=True)}
        assert simple.substitute(at).constant == value.substitute(at).constant


@pytest.mark.parametrize("sizes,width", [((3, 3), 12), ((3, 3), 8), ((4, 6), 9), ((2, 3, 5), 4)])
def test_digits_of_a_cut_loop_join(sizes: tuple[int, ...], width: int) -> None:
    """A loop over all indices of an array, cut into parts of any width, walks it in order."""
    at = Affine.of("part") * width + Affine.of("i")
    offset, step = Affine(), 1
    for size in reversed(sizes):
        offset = offset + (at // step % size) * step
        step *= size
    offset = offset + (at // step) * step
    assert str(simplify_affine(offset, {"part": (0, 9), "i": (0, width)})) == str(at)
