"""Integer arithmetic of indices against counting."""

from __future__ import annotations

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from convgen.affine import Affine, Constraint
from convgen.symbolic.indexmath import (
    digit_values,
    extended_euclid,
    mixed_radix,
    solve_congruence,
    tap_range,
    tidy,
    tidy_constraint,
)


@given(st.integers(-99, 99), st.integers(-99, 99))
def test_extended_euclid_gives_the_divisor_and_its_combination(a: int, b: int) -> None:
    g, x, y = extended_euclid(a, b)
    assert g == math.gcd(a, b)
    assert a * x + b * y == g


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(-6, 6).filter(bool), min_size=1, max_size=3),
    st.integers(-9, 9),
    st.integers(1, 7),
)
def test_congruences_are_solved_completely(
    coefficients: list[int], target: int, modulus: int
) -> None:
    names = [f"t{i}" for i in range(len(coefficients))]
    solved = solve_congruence(coefficients, target, modulus, names)
    box = range(-4, 5)
    wanted = {
        z
        for z in itertools.product(box, repeat=len(coefficients))
        if sum(c * v for c, v in zip(coefficients, z, strict=True)) % modulus == target % modulus
    }
    if solved is None:
        assert not wanted
        return
    reached: list[tuple[int, ...]] = []
    for t in itertools.product(range(-60, 61), repeat=1) if len(names) == 1 else _small(len(names)):
        point = dict(zip(names, t, strict=True))
        z = tuple(
            c.value.evaluate(point) + c.step * point[n] for c, n in zip(solved, names, strict=True)
        )
        assert (
            sum(c * v for c, v in zip(coefficients, z, strict=True)) % modulus == target % modulus
        )
        reached.append(z)
    assert len(set(reached)) == len(reached)
    # The basis is as dense as the solutions are: the steps multiply to the index of the lattice.
    assert math.prod(c.step for c in solved) == modulus // math.gcd(modulus, *coefficients)


def _small(count: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(-3, 4), repeat=count))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_mixed_radix_numbers_are_split_into_their_digits(extents: list[int]) -> None:
    names = [f"d{i}" for i in range(len(extents))]
    weights = [math.prod(extents[:i]) for i in range(len(extents))]
    terms = list(zip(names, weights, strict=True))
    total = mixed_radix(terms, dict(zip(names, extents, strict=True)))
    distinct = len(set(weights)) == len(weights)
    assert total == math.prod(extents) or not distinct
    if not distinct:
        return
    digits = digit_values(terms, Affine.of("e"))
    for e in range(math.prod(extents)):
        values = {n: d.evaluate({"e": e}) for n, d in digits.items()}
        assert sum(values[n] * w for n, w in terms) == e
        assert all(0 <= values[n] < x for n, x in zip(names, extents, strict=True))


@given(
    st.integers(-9, 9), st.integers(-3, 3), st.integers(1, 5), st.integers(-4, 4), st.integers(1, 9)
)
def test_tidying_changes_no_value(
    constant: int, slope: int, divisor: int, low: int, extent: int
) -> None:
    h = Affine.of("h")
    value = (slope * h + constant) // divisor + 2 * ((slope * h + constant) % divisor)
    bounds = {"h": (low, low + extent)}
    known = tidy(value, bounds)
    for i in range(low, low + extent):
        assert known.evaluate({"h": i}) == value.evaluate({"h": i})
    constraint = Constraint("<=", slope * h + constant)
    verdict = tidy_constraint(constraint, bounds)
    for i in range(low, low + extent):
        holds = verdict if isinstance(verdict, bool) else verdict.holds({"h": i})
        assert holds == constraint.holds({"h": i})


def test_tap_range_is_exact_for_constants() -> None:
    for low, extent, value, step in itertools.product((-2, 0), (1, 5), (0, 1, 7), (1, 2, 3)):
        start, stop = tap_range(low, low + extent, Affine.of(value), step, {})
        inside = [t for t in range(-20, 20) if low <= value + step * t < low + extent]
        assert inside == list(range(start, stop))
