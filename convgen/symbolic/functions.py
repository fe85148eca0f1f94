"""Scalar functions of formula bodies.

sympy's own exp, log, tanh, erf, powers and sqrt are used as they are. Everything whose evaluation
or derivative in sympy is not what a kernel needs is a class of this file; the derivative
conventions are torch's: relu'(0) = 0, |x|'(0) = 0, ties of maximum and minimum give one half to
each side, sqrt'(0) = inf.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import sympy
from sympy import Expr, Function, Integer, Rational, S
from sympy.core.relational import Relational

from convgen.symbolic.conditions import Compared, refuse_bool, refuse_truth
from convgen.types import DType, bool_, dtype_of

__all__ = [
    "FUNCTIONS",
    "abs_",
    "cast",
    "compare",
    "equal",
    "exact",
    "is_nan",
    "less",
    "less_equal",
    "logical_and",
    "logical_not",
    "logical_or",
    "maximum",
    "minimum",
    "normalize",
    "quotient",
    "relu",
    "round_down",
    "select",
    "sigmoid",
    "sign",
    "step",
    "stop_gradient",
    "uniform",
]


class _Real(Compared, Function):
    """A function with real values that sympy neither expands nor reorders."""

    is_real = True
    is_commutative = True

    def __new__(cls, *args: Any, **options: Any) -> Any:
        for a in args:
            if isinstance(a, bool):
                refuse_bool(a)
        return super().__new__(cls, *args, **options)

    if TYPE_CHECKING:  # sympy's annotations: arguments have no diff

        @property
        def args(self) -> Any: ...


class _Truth(_Real):
    """A condition: 1 where it holds, 0 elsewhere, of dtype bool. Its derivative is zero."""

    def __bool__(self) -> bool:
        refuse_truth(self)

    def __and__(self, other: Any) -> Any:
        return logical_and(self, truth(sympy.sympify(other)))

    def __or__(self, other: Any) -> Any:
        return logical_or(self, truth(sympy.sympify(other)))

    def __invert__(self) -> Any:
        return logical_not(self)

    __rand__, __ror__ = __and__, __or__

    def _eval_derivative(self, s: Any) -> Expr:
        return S.Zero


def _numbers(*args: Any) -> bool:
    return all(a.is_number and a.is_comparable for a in args)


class equal(_Truth):
    """equal(a, b): 1 where a == b, 0 elsewhere (also where either is NaN)."""

    nargs = 2

    @classmethod
    def eval(cls, a: Any, b: Any) -> Expr | None:
        if a == b and a.is_number:
            return S.One
        return Integer(int(bool(a == b))) if _numbers(a, b) else None


class less(_Truth):
    """less(a, b): 1 where a < b, 0 elsewhere (also where either is NaN)."""

    nargs = 2

    @classmethod
    def eval(cls, a: Any, b: Any) -> Expr | None:
        return Integer(int(bool(a < b))) if _numbers(a, b) else None


class less_equal(_Truth):
    """less_equal(a, b): 1 where a <= b, 0 elsewhere (also where either is NaN)."""

    nargs = 2

    @classmethod
    def eval(cls, a: Any, b: Any) -> Expr | None:
        return Integer(int(bool(a <= b))) if _numbers(a, b) else None


class logical_and(_Truth):
    """1 where both conditions hold."""

    nargs = 2

    @classmethod
    def eval(cls, a: Any, b: Any) -> Expr | None:
        if a is S.Zero or b is S.Zero:
            return S.Zero
        return b if a is S.One else a if b is S.One else None


class logical_or(_Truth):
    """1 where at least one condition holds."""

    nargs = 2

    @classmethod
    def eval(cls, a: Any, b: Any) -> Expr | None:
        if a is S.One or b is S.One:
            return S.One
        return b if a is S.Zero else a if b is S.Zero else None


class logical_not(_Truth):
    """1 where the condition does not hold."""

    nargs = 1

    @classmethod
    def eval(cls, a: Any) -> Expr | None:
        return S.One - a if a in (S.Zero, S.One) else None


class is_nan(_Truth):
    """1 where the value is not a number."""

    nargs = 1

    @classmethod
    def eval(cls, a: Any) -> Expr | None:
        return S.Zero if a.is_number and a is not S.NaN else None


class select(_Real):
    """select(condition, a, b): a where the condition is non-zero, else b. Only the chosen side
    counts: NaN or infinity on the other side does no harm, and its derivative is chosen likewise.
    """

    nargs = 3

    @classmethod
    def eval(cls, condition: Any, a: Any, b: Any) -> Expr | None:
        if a == b:
            return a
        if condition is S.Zero:
            return b
        return a if condition.is_number and condition.is_nonzero else None

    def _eval_derivative(self, s: Any) -> Expr:
        condition, a, b = self.args
        return select(condition, a.diff(s), b.diff(s))


def _of_the_winner(first: Expr, second: Expr, da: Expr, db: Expr) -> Expr:
    """The derivative of what wins: the first, the second, or half of each."""
    half = Rational(1, 2)
    return da if da == db else select(first, da, select(second, db, half * da + half * db))


class maximum(_Real):
    """maximum(a, b): the larger; NaN if either is NaN. Ties send half of the gradient to each."""

    nargs = 2

    @classmethod
    def eval(cls, a: Any, b: Any) -> Expr | None:
        if a == b:
            return a
        return (a if bool(a > b) else b) if _numbers(a, b) else None

    def _eval_derivative(self, s: Any) -> Expr:
        a, b = self.args
        return _of_the_winner(less(b, a), less(a, b), a.diff(s), b.diff(s))


class minimum(_Real):
    """minimum(a, b): the smaller; NaN if either is NaN. Ties send half of the gradient to each."""

    nargs = 2

    @classmethod
    def eval(cls, a: Any, b: Any) -> Expr | None:
        if a == b:
            return a
        return (a if bool(a < b) else b) if _numbers(a, b) else None

    def _eval_derivative(self, s: Any) -> Expr:
        a, b = self.args
        return _of_the_winner(less(a, b), less(b, a), a.diff(s), b.diff(s))


class step(_Real):
    """step(x): 1 for x > 0, else 0 (0 at 0)."""

    nargs = 1

    @classmethod
    def eval(cls, x: Any) -> Expr | None:
        return Integer(int(bool(x > 0))) if _numbers(x) else None

    def _eval_derivative(self, s: Any) -> Expr:
        return S.Zero


class relu(_Real):
    """relu(x): x for x > 0, else 0; NaN stays NaN. relu'(0) = 0."""

    nargs = 1

    @classmethod
    def eval(cls, x: Any) -> Expr | None:
        return (x if bool(x > 0) else S.Zero) if _numbers(x) else None

    def _eval_derivative(self, s: Any) -> Expr:
        (x,) = self.args
        return step(x) * x.diff(s)


class stop_gradient(_Real):
    """stop_gradient(x): x itself, taken as a constant by every derivative."""

    nargs = 1

    @classmethod
    def eval(cls, x: Any) -> Expr | None:
        return x if x.is_number or isinstance(x, stop_gradient) else None

    def _eval_derivative(self, s: Any) -> Expr:
        return S.Zero


class sign(_Real):
    """sign(x): -1, 0 or 1."""

    nargs = 1

    @classmethod
    def eval(cls, x: Any) -> Expr | None:
        return Integer(int(bool(x > 0)) - int(bool(x < 0))) if _numbers(x) else None

    def _eval_derivative(self, s: Any) -> Expr:
        return S.Zero


class abs_(_Real):
    """abs_(x): the magnitude (written ``abs(x)`` in text). Derivative sign(x), 0 at 0."""

    nargs = 1

    @classmethod
    def eval(cls, x: Any) -> Expr | None:
        return (x if bool(x >= 0) else -x) if _numbers(x) else None

    def _eval_derivative(self, s: Any) -> Expr:
        (x,) = self.args
        return sign(x) * x.diff(s)


class sigmoid(_Real):
    """sigmoid(x) = 1 / (1 + exp(-x)), without overflow."""

    nargs = 1

    @classmethod
    def eval(cls, x: Any) -> Expr | None:
        return Rational(1, 2) if x is S.Zero else None

    def _eval_derivative(self, s: Any) -> Expr:
        (x,) = self.args
        return self * (1 - self) * x.diff(s)


class round_down(_Real):
    """round_down(x): the largest integer not above x (written ``floor(x)``). Derivative zero."""

    nargs = 1

    @classmethod
    def eval(cls, x: Any) -> Expr | None:
        return sympy.floor(x) if _numbers(x) else None

    def _eval_derivative(self, s: Any) -> Expr:
        return S.Zero


class uniform(_Real):
    """uniform(seed, index): a pseudo-random number in [0, 1) with 24 bits, a pure function of both.

    Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): key = the
    64-bit seed (low word first), counter = (low word of index, high word of index, 0, 0); the
    first output word x0 gives floor(x0 / 2^8) * 2^-24. Its derivative is zero.
    """

    nargs = 2

    def _eval_derivative(self, s: Any) -> Expr:
        return S.Zero


class cast(_Real):
    """cast(x, "u8"): x converted to another dtype; floats to integers round toward zero."""

    nargs = 2

    def __new__(cls, x: Any, dtype: DType | str | sympy.Symbol, **options: Any) -> Any:
        name = dtype.name if isinstance(dtype, (DType, sympy.Symbol)) else dtype_of(dtype).name
        return super().__new__(cls, x, sympy.Symbol(name), **options)

    @property
    def dtype(self) -> DType:
        return dtype_of(self.args[1].name)  # type: ignore[attr-defined]

    def _eval_derivative(self, s: Any) -> Expr:
        return self.args[0].diff(s) if self.dtype.is_float else S.Zero


# The names of the text form. sympy's own functions stand under their usual names.
FUNCTIONS: dict[str, Any] = {
    "equal": equal,
    "less": less,
    "less_equal": less_equal,
    "logical_and": logical_and,
    "logical_or": logical_or,
    "logical_not": logical_not,
    "is_nan": is_nan,
    "select": select,
    "maximum": maximum,
    "minimum": minimum,
    "step": step,
    "relu": relu,
    "sign": sign,
    "abs": abs_,
    "sigmoid": sigmoid,
    "floor": round_down,
    "uniform": uniform,
    "stop_gradient": stop_gradient,
    "cast": cast,
    "exp": sympy.exp,
    "log": sympy.log,
    "tanh": sympy.tanh,
    "erf": sympy.erf,
    "sqrt": sympy.sqrt,
}

# What each own function returns; the others take the dtype of their arguments.
TRUTH = (equal, less, less_equal, logical_and, logical_or, logical_not, is_nan)
RESULT_DTYPE: dict[Any, DType] = dict.fromkeys(TRUTH, bool_)


def quotient(body: Any) -> tuple[Any, int] | None:
    """(a, q) of floor(a / q), for an integer q above 1; None for other bodies."""
    if not isinstance(body, (round_down, sympy.floor)):
        return None
    above, below = sympy.fraction(sympy.together(body.args[0]))
    if isinstance(below, Integer) and below > 1:
        return sympy.expand(above), int(below)
    return None


def compare(operator: str, a: Any, b: Any) -> Any:
    """A comparison written with one of Python's operators, as a function of this file."""
    match operator:
        case "<":
            return less(a, b)
        case "<=":
            return less_equal(a, b)
        case ">":
            return less(b, a)
        case ">=":
            return less_equal(b, a)
        case "==":
            return equal(a, b)
        case _:
            return logical_not(equal(a, b))


# What Python's operators make of comparisons and & | ~.
TRUTHS: tuple[Any, ...] = (Relational, sympy.And, sympy.Or, sympy.Not)


def truth(value: Any) -> Any:
    """Own functions for what Python's operators made: comparisons joined by & | ~."""
    if isinstance(value, Relational):
        return compare(value.rel_op, *value.args)  # type: ignore[attr-defined]
    if isinstance(value, sympy.Not):
        return logical_not(*(truth(a) for a in value.args))
    if isinstance(value, (sympy.And, sympy.Or)):
        join = logical_and if isinstance(value, sympy.And) else logical_or
        return functools.reduce(join, sorted((truth(a) for a in value.args), key=str))
    return value


def exact(value: float) -> Any:
    """The rational that the shortest decimal of a number says; infinities and NaN are sympy's.

    >>> exact(1e-5), exact(3), exact(float("-inf"))
    (1/100000, 3, -oo)
    """
    if value != value:
        return sympy.nan
    if value in (float("inf"), float("-inf")):
        return S.Infinity if value > 0 else S.NegativeInfinity
    return Rational(str(value))


def exact_floats(body: Expr) -> Expr:
    """The body with the exact rational in the place of each float."""
    floats = {f: exact(float(f)) for f in body.atoms(sympy.Float)}
    return body.xreplace(floats) if floats else body  # type: ignore[return-value]


def normalize(body: Expr) -> Expr:
    """Replace what sympy's simplifications may have introduced (Abs, Max, Min, sign, floor,
    Heaviside) by the classes of this file."""
    if not body.has(sympy.Abs, sympy.Max, sympy.Min, sympy.sign, sympy.floor, sympy.Heaviside):
        return body

    def fold(function: Any) -> Any:
        def build(*args: Any) -> Any:
            out = args[0]
            for a in args[1:]:
                out = function(out, a)
            return out

        return build

    found: Any = body
    for theirs, ours in (
        (sympy.Abs, abs_),
        (sympy.Max, fold(maximum)),
        (sympy.Min, fold(minimum)),
        (sympy.sign, sign),
        (sympy.floor, round_down),
        (sympy.Heaviside, lambda x, *_: step(x)),
    ):
        found = found.replace(theirs, ours)
    return found
