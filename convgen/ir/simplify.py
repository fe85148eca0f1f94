"""Simplification by ranges: integer expressions, conditions, and scalar expressions.

`ranges` gives lo <= name < hi for the names that are known; nothing is assumed of the others.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, TypeAlias

from convgen.affine import Affine, Atom, Constraint, FloorDiv, Mod
from convgen.ir.nodes import Const, Expr, Index, Op
from convgen.ir.rounding import number_of, wrap
from convgen.ir.visit import map_affine, map_expr
from convgen.types import bool_

Ranges: TypeAlias = Mapping[str, tuple[int, int]]


# ---------------------------------------------------------------------------------------------
# Integer expressions


def known_bounds(value: Affine, ranges: Ranges) -> tuple[int, int] | None:
    """(smallest, largest), or None where a name has no range."""
    return value.bounds(ranges) if value.names() <= ranges.keys() else None


def simplify_affine(value: Affine, ranges: Ranges) -> Affine:
    """The same integer for all points in the ranges, with fewer // and %.

    >>> o, i = Affine.of("o"), Affine.of("i")
    >>> known = {"o": (0, 4), "i": (0, 8)}
    >>> [str(simplify_affine(v, known)) for v in ((8 * o + i) // 8, (8 * o + i) % 8)]
    ['o', 'i']
    >>> print(simplify_affine(5 * (o // 5) + o % 5, {}))
    o
    """
    if value.is_plain:
        return _fix_units(value, ranges)
    total = Affine((), value.constant)
    for atom, coefficient in value.terms:
        total = total + _simplify_atom(atom, ranges) * coefficient
    total = _fix_units(_join_digits(total, ranges), ranges)
    return value if total == value else total


def _fix_units(value: Affine, ranges: Ranges) -> Affine:
    """Names with a single value are that value."""
    units = {
        n: ranges[n][0] for n in value.names() if n in ranges and ranges[n][1] - ranges[n][0] == 1
    }
    return value.substitute(units) if units else value


def _simplify_atom(atom: Atom, ranges: Ranges) -> Affine:
    if isinstance(atom, str):
        return Affine.of(atom)
    inner = simplify_affine(atom.value, ranges)
    if isinstance(atom, FloorDiv):
        return _quotient(inner, atom.divisor, ranges)
    return _remainder(inner, atom.divisor, ranges)


def _split_common(value: Affine, divisor: int, ranges: Ranges) -> tuple[int, Affine, Affine]:
    """(g, high, low) with value == g*high + low, g a divisor of `divisor`, 0 <= low < g, g as large
    as possible; g = 1 and low = 0 when nothing can be split."""
    for g in sorted({math.gcd(c, divisor) for _, c in value.terms}, reverse=True):
        if g == 1:
            break
        low = Affine(tuple((a, c) for a, c in value.terms if c % g), value.constant % g)
        bounds = known_bounds(low, ranges)
        if bounds is not None and bounds[0] >= 0 and bounds[1] < g:
            rest = Affine(tuple((a, c // g) for a, c in value.terms if c % g == 0))
            return g, rest + value.constant // g, low
    return 1, value, Affine()


def _quotient(value: Affine, divisor: int, ranges: Ranges) -> Affine:
    whole, rest = _whole_and_rest(value, divisor)
    bounds = known_bounds(rest, ranges)
    if bounds is not None and bounds[0] // divisor == bounds[1] // divisor:
        return whole + bounds[0] // divisor
    g, high, _ = _split_common(rest, divisor, ranges)
    if g > 1:
        return whole + _quotient(high, divisor // g, ranges)
    inner = [a for a, c in rest.terms if c == 1 and isinstance(a, FloorDiv)]
    if len(inner) == 1:  # (x // a + k) // b == (x + a*k) // (a*b)
        atom = inner[0]
        other = rest - Affine.of(atom)
        return whole + _quotient(atom.value + other * atom.divisor, atom.divisor * divisor, ranges)
    return whole + rest // divisor


def _remainder(value: Affine, divisor: int, ranges: Ranges) -> Affine:
    _, rest = _whole_and_rest(value, divisor)
    bounds = known_bounds(rest, ranges)
    if bounds is not None and bounds[0] // divisor == bounds[1] // divisor:
        return rest - bounds[0] // divisor * divisor
    g, high, low = _split_common(rest, divisor, ranges)
    if g > 1:
        return _remainder(high, divisor // g, ranges) * g + low
    terms = [
        (a, c) if not (isinstance(a, Mod) and a.divisor % divisor == 0) else (a.value, c)
        for a, c in rest.terms
    ]  # (x % (a*m)) % m == x % m
    flat = Affine((), rest.constant)
    for part, coefficient in terms:
        flat = flat + Affine.of(part) * coefficient
    return flat % divisor if flat == rest else _remainder(flat, divisor, ranges)


def _whole_and_rest(value: Affine, divisor: int) -> tuple[Affine, Affine]:
    """value == divisor*whole + rest, the rest without multiples of the divisor."""
    whole = Affine(
        tuple((a, c // divisor) for a, c in value.terms if c % divisor == 0),
        value.constant // divisor,
    )
    rest = Affine(tuple((a, c) for a, c in value.terms if c % divisor), value.constant % divisor)
    return whole, rest


def _join_digits(value: Affine, ranges: Ranges) -> Affine:
    """k*d*(x // d) + k*(x % d) is k*x, also where x is itself a quotient."""
    for atom, coefficient in value.terms:
        if isinstance(atom, Mod):
            quotient = _quotient(atom.value, atom.divisor, ranges)
            joined = value - Affine.of(atom) * coefficient
            candidate = joined - quotient * (coefficient * atom.divisor) + atom.value * coefficient
            if not _more_atoms(candidate, value):
                return _join_digits(candidate, ranges)
    return value


def _more_atoms(new: Affine, old: Affine) -> bool:
    count = [sum(not isinstance(a, str) for a, _ in v.terms) for v in (new, old)]
    return count[0] >= count[1]


# ---------------------------------------------------------------------------------------------
# Conditions


def decide(constraint: Constraint, ranges: Ranges) -> bool | None:
    """True where the constraint holds at all points of the ranges, False where at none, else None.

    >>> i = Affine.of("i")
    >>> known = {"i": (0, 8)}
    >>> [decide(Constraint("<=", i - n), known) for n in (7, 6, -1)]
    [True, None, False]
    """
    value = simplify_affine(constraint.value, ranges)
    bounds = known_bounds(value, ranges)
    if constraint.kind == "%":
        rest = simplify_affine(value % constraint.modulus, ranges)
        if rest.is_constant:
            return rest.constant == 0
        if value.is_plain:
            step = math.gcd(value.content(), constraint.modulus)
            if value.constant % step:
                return False
        return None
    if constraint.kind == "<=":
        if bounds is None:
            return None
        return True if bounds[1] <= 0 else False if bounds[0] > 0 else None
    if value.is_constant:
        return value.constant == 0
    if value.content() and value.constant % value.content():
        return False
    if bounds is None:
        return None
    return True if bounds == (0, 0) else False if bounds[0] > 0 or bounds[1] < 0 else None


def simplify_guards(
    guards: tuple[Constraint, ...], ranges: Ranges
) -> tuple[Constraint, ...] | None:
    """The guards that are not proved, simplified, each once; None when one can never hold."""
    kept: dict[Constraint, None] = {}
    for guard in guards:
        verdict = decide(guard, ranges)
        if verdict is False:
            return None
        if verdict is None:
            kept[Constraint(guard.kind, simplify_affine(guard.value, ranges), guard.modulus)] = None
    new = tuple(kept)
    return guards if new == guards else new


# ---------------------------------------------------------------------------------------------
# Scalar expressions


def simplify_expr(expr: Expr, ranges: Ranges | None = None) -> Expr:
    """Fold constants, drop neutral operations, decide comparisons of indices by their ranges.

    >>> from convgen.types import i64
    >>> inside = Op("lt", (Index(Affine.of("i")), Const(8, i64)), bool_)
    >>> simplify_expr(inside, {"i": (0, 8)})
    Const(value=1, dtype=bool, lanes=1)
    """
    known = ranges or {}
    indexed = map_affine(expr, lambda a: simplify_affine(a, known))

    def rule(node: Expr) -> Expr:
        return _simplify_op(node, known) if isinstance(node, Op) else node

    return map_expr(indexed, rule)


def _simplify_op(op: Op, ranges: Ranges) -> Expr:
    folded = _fold(op)
    if folded is not None:
        return folded
    decided = _compare_indices(op, ranges)
    if decided is not None:
        return Const(int(decided), bool_, op.lanes)
    a = op.args[0]
    b = op.args[1] if len(op.args) > 1 else a
    if op.name == "cast" and a.dtype == op.dtype:
        return a
    if op.name == "neg" and isinstance(a, Op) and a.name == "neg":
        return a.args[0]
    if op.name == "not" and isinstance(a, Op) and a.name == "not" and op.dtype == bool_:
        return a.args[0]
    if op.name == "select":
        if isinstance(a, Const):
            return list(op.args)[1 if a.value else 2]
        return b if all(other == b for other in op.args[2:]) else op
    if op.name in ("add", "sub", "mul", "div", "and", "or", "max", "min"):
        return _simplify_binary(op, a, b)
    return op


def _simplify_binary(op: Op, a: Expr, b: Expr) -> Expr:
    if op.name in ("max", "min") and a == b:
        return a
    if op.name in ("add", "sub") and _is(b, 0):  # x + 0 == x
        return a
    if op.name in ("mul", "div") and _is(b, 1):  # x * 1 == x
        return a
    if op.name == "add" and _is(a, 0):
        return b
    if op.name == "mul" and _is(a, 1):
        return b
    if op.dtype.is_integer and op.name == "mul" and (_is(a, 0) or _is(b, 0)):
        return Const(0, op.dtype, op.lanes)
    if op.dtype == bool_ and op.name in ("and", "or"):
        neutral = 1 if op.name == "and" else 0
        for x, y in ((a, b), (b, a)):
            if isinstance(x, Const):
                return y if x.value == neutral else x
    return op


def _is(expr: Expr, value: int) -> bool:
    return isinstance(expr, Const) and expr.value == value


def _compare_indices(op: Op, ranges: Ranges) -> bool | None:
    """eq, lt, le of two indices, where the ranges decide."""
    if op.name not in ("eq", "lt", "le") or op.lanes != 1:
        return None
    values = [_integer(a) for a in op.args]
    if values[0] is None or values[1] is None:
        return None
    difference = values[0] - values[1]
    if op.name == "eq":
        return decide(Constraint("==", difference), ranges)
    return decide(Constraint("<=", difference + (1 if op.name == "lt" else 0)), ranges)


def _integer(expr: Expr) -> Affine | None:
    if isinstance(expr, Index) and expr.lanes == 1:
        return expr.value
    if isinstance(expr, Const) and not expr.dtype.is_float:
        return Affine((), int(expr.value))
    return None


_FOLDS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
    "abs": operator.abs,
    "max": max,
    "min": min,
    "eq": operator.eq,
    "lt": operator.lt,
    "le": operator.le,
    "cast": operator.pos,
}


def _fold(op: Op) -> Const | None:
    """The constant an operation on finite constants gives, rounded or wrapped as it would be."""
    values: list[Fraction | int] = []
    for arg in op.args:
        if not isinstance(arg, Const) or not math.isfinite(arg.value):
            return None
        values.append(Fraction(arg.value) if arg.dtype.is_float else int(arg.value))
    if op.dtype == bool_ and op.name in ("and", "or", "xor", "not"):
        bits = [int(v) for v in values]
        made = {"and": min(bits), "or": max(bits), "xor": sum(bits) % 2, "not": 1 - bits[0]}
        return Const(made[op.name], bool_, op.lanes)
    if op.name in ("floordiv", "mod") and values[1] != 0 and op.dtype.is_integer:
        made = values[0] // values[1] if op.name == "floordiv" else values[0] % values[1]
        return Const(wrap(int(made), op.dtype), op.dtype, op.lanes)
    if op.name == "div" and values[1] != 0:
        return Const(number_of(Fraction(values[0]) / values[1], op.dtype), op.dtype, op.lanes)
    if op.name not in _FOLDS:
        return None
    return Const(number_of(_FOLDS[op.name](*values), op.dtype), op.dtype, op.lanes)
