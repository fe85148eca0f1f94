"""Reductions: how the elements of a reduced domain become one result.

A reduction is described by bodies over the placeholder symbols below, so every stage of the
compiler can read it: `lift` turns an element into a state, `combine` joins two neighbouring states
(left one first), `identity` is the state of the empty domain, `project` turns the final state
into results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from sympy import Expr, Integer, S, Symbol

from convgen.errors import FormulaError
from convgen.symbolic.functions import (
    abs_,
    equal,
    is_nan,
    less,
    logical_and,
    logical_not,
    logical_or,
    maximum,
    minimum,
    select,
)
from convgen.types import DType, i64

ELEMENT = Symbol("v", real=True)  # the element being added
POSITION = Symbol("p", integer=True)  # its row-major position in the reduced ranges
COTANGENT = Symbol("g", real=True)  # the cotangent of result 0, in `adjoint`
OTHERS = Symbol("others", real=True)  # the reduction of all other elements, in `adjoint`


def left(i: int) -> Symbol:
    """State component i of the left (earlier) operand of combine; also the state in project."""
    return Symbol(f"a{i}", real=True)


def right(i: int) -> Symbol:
    """State component i of the right (later) operand of combine."""
    return Symbol(f"b{i}", real=True)


def result(i: int) -> Symbol:
    """Result i, in `adjoint`."""
    return Symbol(f"y{i}", real=True)


@dataclass(frozen=True)
class Reduction:
    """One way of reducing. All fields are tuples over state components or results.

    `dtypes[i]` is the dtype of state component i, None for the dtype of the element.
    `adjoint` is the cotangent of one element (a body over ELEMENT, POSITION, COTANGENT, result(i)
    and OTHERS), with the results being those of the reduction named `companion` (max needs the
    winner's position, which argmax's state carries); None: not differentiable.
    `commutative` False: elements must be combined in row-major order of the reduced ranges.
    `join`: joins states whose elements stand in any order, where `combine` cannot; empty: no way.
    """

    name: str
    lift: tuple[Expr, ...]
    combine: tuple[Expr, ...]
    identity: tuple[Expr, ...]
    project: tuple[Expr, ...]
    adjoint: Expr | None
    dtypes: tuple[DType | None, ...]
    associative: bool = True
    commutative: bool = True
    companion: str = ""
    join: tuple[Expr, ...] = ()

    def __post_init__(self) -> None:
        sizes = {len(self.lift), len(self.combine), len(self.identity), len(self.dtypes)}
        if sizes != {len(self.lift)} or not self.lift:
            raise FormulaError(
                f"reduction {self.name}: the state has different sizes",
                expected="lift, combine, identity and dtypes of one length",
                got=f"{len(self.lift)}, {len(self.combine)}, "
                f"{len(self.identity)}, {len(self.dtypes)}",
            )

    @property
    def width(self) -> int:
        """Number of state components."""
        return len(self.lift)


a0, a1, b0, b1 = left(0), left(1), right(0), right(1)
_later_wins = logical_or(less(a0, b0), is_nan(b0))
_smaller_wins = logical_or(less(b0, a0), is_nan(b0))
_winner = select(equal(result(0), POSITION), COTANGENT, S.Zero)


def _one(
    name: str, combine: Expr, identity: Expr, adjoint: Expr | None, companion: str = ""
) -> Reduction:
    return Reduction(
        name, (ELEMENT,), (combine,), (identity,), (a0,), adjoint, (None,), companion=companion
    )


def _indexed(name: str, takes_right: Expr, better: Expr, identity: Expr) -> Reduction:
    """The extremum with its position. Results: 0 the position, 1 the value. The first extremum in
    row-major order wins; a NaN wins over everything, the last NaN over earlier ones (as torch)."""
    last_nan = logical_and(is_nan(b0), logical_or(logical_not(is_nan(a0)), less(a1, b1)))
    first_of_equals = logical_and(equal(a0, b0), less(b1, a1))
    any_order = logical_or(logical_or(better, first_of_equals), last_nan)
    return Reduction(
        name,
        (ELEMENT, POSITION),
        (select(takes_right, b0, a0), select(takes_right, b1, a1)),
        (identity, S.Zero),
        (a1, a0),
        None,
        (None, i64),
        commutative=False,
        join=(select(any_order, b0, a0), select(any_order, b1, a1)),
    )


SUM = _one("sum", a0 + b0, S.Zero, COTANGENT)
PROD = _one("prod", a0 * b0, S.One, COTANGENT * OTHERS)
MAX = _one("max", maximum(a0, b0), S.NegativeInfinity, _winner, "argmax")
MIN = _one("min", minimum(a0, b0), S.Infinity, _winner, "argmin")
ARGMAX = _indexed("argmax", _later_wins, less(a0, b0), S.NegativeInfinity)
ARGMIN = _indexed("argmin", _smaller_wins, less(b0, a0), S.Infinity)

_top = maximum(a0, b0)


def _share(m: Expr) -> Expr:
    """exp(m - top), with inf - inf kept out of exp. At a tie of finite maxima this is the exp
    itself, not the constant 1: its derivative is needed there."""
    return select(less(abs_(m), S.Infinity), sympy.exp(m - _top), equal(m, _top))


# Stable: the state is (maximum m, sum of exp(v - m)).
LOGSUMEXP = Reduction(
    "logsumexp",
    (ELEMENT, S.One),
    (_top, a1 * _share(a0) + b1 * _share(b0)),
    (S.NegativeInfinity, S.Zero),
    (a0 + sympy.log(a1),),
    COTANGENT * sympy.exp(ELEMENT - result(0)),
    (None, None),
)

REDUCTIONS: dict[str, Reduction] = {
    r.name: r for r in (SUM, PROD, MAX, MIN, ARGMAX, ARGMIN, LOGSUMEXP)
}


def reduction(
    name: str,
    lift: Callable[..., Any] | Sequence[Any] | None = None,
    combine: Callable[..., Any] | Sequence[Any] | None = None,
    identity: Any = 0,
    project: Callable[..., Any] | Sequence[Any] | None = None,
    adjoint: Callable[..., Any] | Expr | None = None,
    *,
    dtypes: Sequence[DType | None] | None = None,
    commutative: bool = True,
) -> Reduction:
    """An own reduction, from Python functions over sympy expressions.

    lift(v) or lift(v, p) gives the state of one element v at position p (default: v itself);
    combine(a, b) joins two states (tuples where the state has several components); identity is the
    state of nothing; project(a) is the result; adjoint(v, y, g) is the cotangent of the element v
    when the result is y and its cotangent g. The combination must be associative.

    Raises FormulaError when the parts disagree on the size of the state.

    >>> norm = reduction("norm", lift=lambda v: v * v, combine=lambda a, b: a + b, identity=0,
    ...                  project=lambda a: sympy.sqrt(a), adjoint=lambda v, y, g: g * v / y)
    >>> norm.combine, norm.project
    ((a0 + b0,), (sqrt(a0),))
    """
    if not name.isidentifier() or name in REDUCTIONS:
        raise FormulaError(
            f"reduction name {name!r}",
            expected="an identifier that is not built in",
            got=repr(name),
        )
    identities = _tuple(identity)
    width = len(identities)
    lefts = tuple(left(i) for i in range(width))
    rights = tuple(right(i) for i in range(width))
    whole: Any = lefts[0] if width == 1 else lefts
    other: Any = rights[0] if width == 1 else rights
    lifted = (ELEMENT,) if lift is None else _apply(lift, (ELEMENT, POSITION))
    combined = (whole + other,) if combine is None else _apply(combine, (whole, other))
    projected = (lefts[0],) if project is None else _apply(project, (whole,))
    adjoined: Any = adjoint
    if callable(adjoint):
        (adjoined,) = _apply(adjoint, (ELEMENT, result(0), COTANGENT))
    kinds = tuple(dtypes) if dtypes is not None else (None,) * width
    made = Reduction(
        name, lifted, combined, identities, projected, adjoined, kinds, commutative=commutative
    )
    _check_laws(made)
    return made


# Elements on which the laws of a combination are tried.
_SAMPLES = ((2, 5, 3), (-1, 4, -3))


def _check_laws(made: Reduction) -> None:
    """FormulaError where a few elements show that the combination has not the laws that kernels
    rely on: they reduce in an order of their own."""

    def join(first: Sequence[Any], second: Sequence[Any]) -> Sequence[Any]:
        values: dict[Any, Any] = {left(i): s for i, s in enumerate(first)}
        values |= {right(i): s for i, s in enumerate(second)}
        return [c.xreplace(values) for c in made.combine]

    for sample in _SAMPLES:
        a, b, c = (
            tuple[Any, ...](
                e.xreplace({ELEMENT: Integer(v), POSITION: Integer(p)}) for e in made.lift
            )
            for p, v in enumerate(sample)
        )
        laws = [
            ("is not associative", join(join(a, b), c), join(a, join(b, c)), "a sum or a maximum"),
            ("changes an element joined with its identity", join(made.identity, a), a, "0 for +"),
        ]
        if made.commutative:
            laws.append(("is not commutative", join(a, b), join(b, a), "commutative=False"))
        for problem, found, wanted, hint in laws:
            if any(_differ(f, w) for f, w in zip(found, wanted, strict=True)):
                raise FormulaError(
                    f"the combination of {made.name} {problem}",
                    expected=", ".join(map(str, wanted)),
                    got=f"{', '.join(map(str, found))} for the elements {sample}",
                    hint=hint,
                )


def _differ(found: Any, wanted: Any) -> bool:
    """Whether two numbers certainly differ; what has no value, or an infinite one, is let be."""
    values: Any = [sympy.N(sympy.sympify(e), 20) for e in (found - wanted, wanted)]
    difference, size = values
    if not (difference.is_Float or difference.is_Integer) or not size.is_finite:
        return False
    return bool(abs(difference) > 1e-9 * (1 + abs(size)))


def _tuple(value: Any) -> tuple[Expr, ...]:
    items = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(sympy.sympify(i) if not isinstance(i, str) else _refuse(i) for i in items)


def _refuse(text: str) -> Expr:
    raise FormulaError(f"reduction: {text!r} is text", expected="an expression or a function")


def _apply(function: Any, arguments: tuple[Any, ...]) -> tuple[Expr, ...]:
    """Call a user's function with as many of the arguments as it takes."""
    if not callable(function):
        return _tuple(function)
    count = function.__code__.co_argcount if hasattr(function, "__code__") else 1
    return _tuple(function(*arguments[:count]))
