"""Integer arithmetic of indices: extended Euclid, congruences, residue classes, digits, tidying.

Everything here is exact and speaks only of `Affine` expressions and integer ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from convgen.affine import Affine, Constraint, FloorDiv, Mod

Bounds = Mapping[str, tuple[int, int]]  # name -> (lo, hi), hi exclusive


def ceil_div(a: int, b: int) -> int:
    """The smallest integer not below a / b, for b > 0."""
    return -(-a // b)


def extended_euclid(a: int, b: int) -> tuple[int, int, int]:
    """(g, x, y) with a*x + b*y == g, the greatest common divisor, g >= 0.

    >>> extended_euclid(12, 18)
    (6, -1, 1)
    """
    x, next_x, y, next_y = 1, 0, 0, 1
    while b:
        quotient = a // b
        a, b = b, a - quotient * b
        x, next_x = next_x, x - quotient * next_x
        y, next_y = next_y, y - quotient * next_y
    return (a, x, y) if a >= 0 else (-a, -x, -y)


@dataclass(frozen=True, slots=True)
class Coset:
    """One unknown of a solved congruence: ``value + step * (its own parameter)``; `value` may
    depend on the parameters of the unknowns before it."""

    value: Affine
    step: int


def solve_congruence(
    coefficients: Sequence[int], target: int, modulus: int, parameters: Sequence[str]
) -> list[Coset] | None:
    """All integer z with ``sum(coefficients[i] * z[i]) % modulus == target % modulus``.

    The solutions are a lattice coset with a triangular basis: z[i] is an affine expression of
    parameters[0..i], each parameter running over all integers. None when there is no solution.

    >>> (r,) = solve_congruence([3], 1, 4, ["t"])        # 3 r = 1 (mod 4)
    >>> str(r.value), r.step
    ('3', 4)
    >>> solve_congruence([2], 1, 4, ["t"]) is None
    True
    """
    moduli = [modulus]
    for coefficient in reversed(coefficients):
        moduli.insert(0, extended_euclid(coefficient, moduli[0])[0])
    if target % moduli[0]:
        return None
    found: list[Coset] = []
    rest = Affine((), target)
    for i, (coefficient, name) in enumerate(zip(coefficients, parameters, strict=True)):
        common, step = moduli[i], moduli[i + 1] // moduli[i]
        inverse = extended_euclid(coefficient // common, step)[1]
        value = Affine.build(
            ((a, inverse * (c // common) % step) for a, c in rest.terms),
            inverse * (rest.constant // common) % step,
        )
        found.append(Coset(value, step))
        rest = rest - coefficient * (value + step * Affine.of(name))
    return found


def mixed_radix(terms: Iterable[tuple[str, int]], extents: Mapping[str, int]) -> int | None:
    """The number of values of ``sum(weight * digit)`` with 0 <= digit < extents[name] when they are
    exactly 0, 1, 2, ... and each is reached once; None otherwise.

    >>> mixed_radix([("g", 4), ("c", 1)], {"g": 3, "c": 4})
    12
    >>> mixed_radix([("y", 2), ("r", 1)], {"y": 9, "r": 3}) is None    # 2 is reached twice
    True
    """
    total = 1
    for name, weight in sorted(terms, key=lambda item: item[1]):
        if weight != total:
            return None
        total *= extents[name]
    return total


def digit_values(terms: Iterable[tuple[str, int]], number: Affine) -> dict[str, Affine]:
    """The digits of a number in the mixed radix of the terms; the highest digit is not reduced.

    >>> {n: str(v) for n, v in digit_values([("g", 4), ("c", 1)], Affine.of("h")).items()}
    {'c': 'h % 4', 'g': 'h // 4'}
    """
    ordered = sorted(terms, key=lambda item: item[1])
    found: dict[str, Affine] = {}
    for i, (name, weight) in enumerate(ordered):
        digit = number // weight
        if i + 1 < len(ordered):
            digit = digit % (ordered[i + 1][1] // weight)
        found[name] = digit
    return found


def tidy(value: Affine, bounds: Bounds) -> Affine:
    """The same value over the bounds with floor divisions and remainders removed that the bounds
    decide.

    >>> print(tidy(Affine.of("h") + Affine.of("t") % 4, {"t": (0, 4), "h": (0, 9)}))
    h + t
    """
    if value.is_plain:
        return value
    total = Affine((), value.constant)
    for atom, coefficient in value.terms:
        if isinstance(atom, str):
            total = total + coefficient * Affine.of(atom)
            continue
        inner = tidy(atom.value, bounds)
        whole, rest = split_multiple(inner, atom.divisor)
        if all(n in bounds for n in rest.names()):
            low, high = rest.bounds(bounds)
            if low // atom.divisor == high // atom.divisor:
                quotient = low // atom.divisor
                remainder = rest - atom.divisor * quotient
                known = whole + quotient if isinstance(atom, FloorDiv) else remainder
                total = total + coefficient * known
                continue
        again = inner // atom.divisor if isinstance(atom, FloorDiv) else inner % atom.divisor
        total = total + coefficient * again
    return total


def split_multiple(value: Affine, divisor: int) -> tuple[Affine, Affine]:
    """(whole, rest) with value == divisor * whole + rest; the constant stays in 0..divisor-1."""
    whole = Affine.build(
        ((a, c // divisor) for a, c in value.terms if c % divisor == 0), value.constant // divisor
    )
    return whole, value - divisor * whole


def tidy_constraint(constraint: Constraint, bounds: Bounds) -> Constraint | bool:
    """True where the bounds imply it, False where they refute it, else the constraint, reduced by
    the common divisor of its coefficients.

    >>> h = Affine.of("h")
    >>> tidy_constraint(Constraint("<=", h - 7), {"h": (0, 8)})
    True
    >>> print(tidy_constraint(Constraint("<=", 2 * h - 7), {"h": (0, 8)}).value)
    h - 3
    """
    value = tidy(constraint.value, bounds)
    content = value.content()
    if constraint.kind == "%":
        value = value % constraint.modulus
        value = tidy(value, bounds)
        if value.is_constant:
            return value.constant == 0
        inner = value.terms[0][0] if len(value.terms) == 1 and not value.constant else None
        kept = inner.value if isinstance(inner, Mod) else value
        return Constraint("%", kept, constraint.modulus)
    if constraint.kind == "==":
        if value.is_constant:
            return value.constant == 0
        if value.constant % content:
            return False
        value = _divide(value, content)
        if value.terms[0][1] < 0:
            value = -value
    else:
        if value.is_constant:
            return value.constant <= 0
        value = Affine(_divide(value, content).terms, ceil_div(value.constant, content))
    if all(n in bounds for n in value.names()):
        low, high = value.bounds(bounds)
        if constraint.kind == "<=":
            if high <= 0 or low > 0:
                return high <= 0
        elif low > 0 or high < 0:
            return False
        elif low == high == 0:
            return True
    return Constraint(constraint.kind, value)


def _divide(value: Affine, divisor: int) -> Affine:
    return Affine(tuple((a, c // divisor) for a, c in value.terms), value.constant // divisor)


def tap_range(low: int, high: int, value: Affine, step: int, bounds: Bounds) -> tuple[int, int]:
    """The range (lo, hi) of t that contains every t with low <= value + step*t < high; exact when
    value is a constant."""
    smallest, largest = value.bounds(bounds)
    return ceil_div(low - largest, step), (high - 1 - smallest) // step + 1
