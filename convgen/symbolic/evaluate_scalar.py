"""The arithmetics in which the oracle runs a formula: exact rationals, Python floats, 50 digits.

Every function takes plain numbers (int, Fraction, float, mpf) and `Lifted` ones (dual numbers,
magnitudes), which carry further facts along. IEEE rules where Python would raise: 1/0 is inf,
0/0 and log(-1) are nan.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, TypeAlias

import sympy
from mpmath.ctx_mp import MPContext

from convgen.errors import DataError
from convgen.types import DType

Number: TypeAlias = Any  # int | Fraction | float | mpf | Lifted
Numbers: TypeAlias = Literal["exact", "float", "mp"]
NAN = math.nan
INF = math.inf


class Lifted(ABC):
    """A number that carries more than its value. Subclasses define + and * with plain numbers on
    either side, and `chain`."""

    __slots__ = ("value",)
    value: Number

    @abstractmethod
    def chain(
        self, function: Callable[[Number], Number], derivative: Callable[[Number], Number]
    ) -> Number:
        """function of this number, given its derivative."""

    def __neg__(self) -> Number:
        return self * -1  # type: ignore[operator]

    def __sub__(self, other: Number) -> Number:
        return self + other * -1  # type: ignore[operator]

    def __rsub__(self, other: Number) -> Number:
        return self * -1 + other  # type: ignore[operator]


def primal(x: Number) -> Number:
    """The plain number that x carries."""
    while isinstance(x, Lifted):
        x = x.value
    return x


def tidy(x: Number) -> Number:
    """A Fraction that is an integer as an int; everything else as it is."""
    return x.numerator if isinstance(x, Fraction) and x.denominator == 1 else x


def to_float(x: Number) -> float:
    """The nearest float, inf beyond the range."""
    try:
        return float(x)
    except OverflowError:
        return INF if x > 0 else -INF


def _guarded(function: Callable[[float], float], overflow: float) -> Callable[[Any], float]:
    def call(x: Any) -> float:
        try:
            return function(to_float(x))
        except OverflowError:
            return overflow
        except ValueError:
            return NAN

    return call


def _log(x: float) -> float:
    return -INF if x == 0 else math.log(x)


def _sigmoid(x: float) -> float:
    small = math.exp(-abs(x))
    return 1 / (1 + small) if x >= 0 else small / (1 + small)


_FLOAT: dict[str, Callable[[Any], float]] = {
    "exp": _guarded(math.exp, INF),
    "log": _guarded(_log, INF),
    "tanh": _guarded(math.tanh, 1.0),
    "erf": _guarded(math.erf, 1.0),
    "sqrt": _guarded(math.sqrt, INF),
    "sigmoid": _guarded(_sigmoid, 1.0),
}
# Arguments at which the result is rational: (function, argument) -> result.
_RATIONAL: dict[tuple[str, int], Number] = {
    ("exp", 0): 1,
    ("log", 1): 0,
    ("tanh", 0): 0,
    ("erf", 0): 0,
    ("sigmoid", 0): Fraction(1, 2),
}


def _repeated(x: Number, count: int) -> Number:
    try:
        return x**count
    except OverflowError:
        return INF if x > 0 or count % 2 == 0 else -INF


class Arithmetic:
    """Numbers of one kind. "exact": ints and Fractions, floats only where a transcendental
    function forces them; "float": Python floats (ints for integer tensors); "mp": 50 digits."""

    def __init__(self, numbers: Numbers) -> None:
        if numbers not in ("exact", "float", "mp"):
            raise DataError(
                f"numbers={numbers!r}", expected="exact, float or mp", got=repr(numbers)
            )
        self.numbers = numbers
        self.context: Any = None
        if numbers == "mp":
            self.context = MPContext()
            self.context.dps = 50

    # Conversions

    def real(self, x: Number) -> Number:
        """A plain number in this arithmetic's kind of reals."""
        if isinstance(x, Lifted):
            return x
        if self.numbers == "exact":
            return tidy(Fraction(x)) if isinstance(x, float) and math.isfinite(x) else tidy(x)
        if self.numbers == "float":
            return to_float(x)
        if isinstance(x, Fraction):
            return self.context.mpf(x.numerator) / x.denominator
        return self.context.mpf(x)

    def element(self, x: Number, dtype: DType) -> Number:
        """An element given from outside, as a tensor of that dtype holds it."""
        return self.real(x) if dtype.is_float else self.store(x, dtype)

    def constant(self, expr: Any) -> Number:
        """A sympy number."""
        if expr is sympy.S.Infinity:
            return INF
        if expr is sympy.S.NegativeInfinity:
            return -INF
        if expr is sympy.S.NaN:
            return NAN
        if isinstance(expr, sympy.Integer):
            return int(expr)
        if isinstance(expr, sympy.Rational):
            return self.real(Fraction(int(expr.p), int(expr.q)))
        if isinstance(expr, sympy.Float):
            return self.real(float(expr))
        if self.numbers == "mp":
            return self.context.mpf(str(expr.evalf(60)))
        return float(expr.evalf(25))

    def store(self, x: Number, dtype: DType) -> Number:
        """x as an element of dtype: integers wrap around, fractions are cut toward zero first,
        nan and infinities become 0; bool is 1 where x is not 0. Floats are not rounded."""
        if dtype.is_float:
            return x if isinstance(x, Lifted) else self.real(x)
        x = primal(x)
        if dtype.kind == "bool":
            return int(x != 0)
        if isinstance(x, float) and not math.isfinite(x):
            return 0
        if not isinstance(x, int):
            x = math.trunc(x) if isinstance(x, (float, Fraction)) else int(x)
        wrapped = x & ((1 << dtype.bits) - 1)
        negative = dtype.kind == "int" and wrapped >> (dtype.bits - 1)
        return wrapped - (1 << dtype.bits) if negative else wrapped

    # Arithmetic

    def divide(self, a: Number, b: Number) -> Number:
        """a / b with IEEE's rules at zero."""
        if isinstance(b, Lifted):
            return a * b.chain(lambda v: self.divide(1, v), lambda v: self.divide(-1, v * v))
        if isinstance(a, Lifted):
            return a * self.divide(1, b)
        if b == 0:
            if a != a or a == 0:
                return NAN
            negative = (a < 0) != (isinstance(b, float) and math.copysign(1.0, b) < 0)
            return -INF if negative else INF
        if self.numbers == "mp":
            return self.real(a) / self.real(b)
        if isinstance(a, float) or isinstance(b, float):
            return to_float(a) / to_float(b)
        if self.numbers == "float":
            return to_float(Fraction(a) / b)
        return tidy(Fraction(a) / b)

    def power(self, x: Number, exponent: Number) -> Number:
        """x ** exponent. Integer exponents and halves are exact where the result is rational."""
        if isinstance(exponent, Lifted):
            # x^y = exp(y log x): its derivative along x and along y
            return self.exp(exponent * self.log(x))
        if isinstance(exponent, Fraction) and exponent.denominator == 2:
            return self.power(self.sqrt(x), exponent.numerator)
        if exponent == 0:
            return 1
        if isinstance(x, Lifted):
            return x.chain(
                lambda v: self.power(v, exponent),
                lambda v: self.power(v, tidy(exponent - 1)) * self.real(exponent),
            )
        if isinstance(exponent, int) or exponent == int(exponent):
            count = int(exponent)
            return _repeated(x, count) if count > 0 else self.divide(1, _repeated(x, -count))
        return self._root_power(x, exponent)

    def _root_power(self, x: Number, exponent: Number) -> Number:
        if x == 0:
            return 0 if exponent > 0 else INF
        if x < 0:
            return NAN
        if self.numbers == "mp":
            return self.real(x) ** self.real(exponent)
        try:
            return math.pow(to_float(x), to_float(exponent))
        except OverflowError:
            return INF

    # Functions

    def _plain(self, name: str, x: Number) -> Number:
        if self.numbers == "exact" and isinstance(x, (int, Fraction)):
            known = _RATIONAL.get((name, x)) if x in (0, 1) else None  # type: ignore[arg-type]
            if known is not None:
                return known
        if self.numbers != "mp":
            return _FLOAT[name](x)
        ctx = self.context
        x = self.real(x)
        if name == "sigmoid":
            return 1 / (1 + ctx.exp(-x)) if x >= 0 else ctx.exp(x) / (1 + ctx.exp(x))
        value = getattr(ctx, name)(x)
        return value if isinstance(value, ctx.mpf) else ctx.nan

    def exp(self, x: Number) -> Number:
        return x.chain(self.exp, self.exp) if isinstance(x, Lifted) else self._plain("exp", x)

    def log(self, x: Number) -> Number:
        if isinstance(x, Lifted):
            return x.chain(self.log, lambda v: self.divide(1, v))
        return self._plain("log", x)

    def tanh(self, x: Number) -> Number:
        if isinstance(x, Lifted):
            return x.chain(self.tanh, lambda v: 1 - self.power(self.tanh(v), 2))
        return self._plain("tanh", x)

    def erf(self, x: Number) -> Number:
        if isinstance(x, Lifted):
            factor = self.constant(2 / sympy.sqrt(sympy.pi))
            return x.chain(self.erf, lambda v: self.exp(-(v * v)) * factor)
        return self._plain("erf", x)

    def sigmoid(self, x: Number) -> Number:
        if isinstance(x, Lifted):
            return x.chain(self.sigmoid, lambda v: self.sigmoid(v) * (1 - self.sigmoid(v)))
        return self._plain("sigmoid", x)

    def sqrt(self, x: Number) -> Number:
        """Exact where x is the square of a rational; the derivative at 0 is inf."""
        if isinstance(x, Lifted):
            return x.chain(
                self.sqrt, lambda v: self.divide(self.real(Fraction(1, 2)), self.sqrt(v))
            )
        if self.numbers == "exact" and isinstance(x, (int, Fraction)) and x >= 0:
            above, below = Fraction(x).numerator, Fraction(x).denominator
            root = Fraction(math.isqrt(above), math.isqrt(below))
            if root * root == x:
                return tidy(root)
        return self._plain("sqrt", x)

    def absolute(self, x: Number) -> Number:
        return x.chain(self.absolute, self.sign) if isinstance(x, Lifted) else abs(x)

    def relu(self, x: Number) -> Number:
        if isinstance(x, Lifted):
            return x.chain(self.relu, self.step)
        return x if x > 0 or x != x else 0

    def step(self, x: Number) -> Number:
        return int(primal(x) > 0)

    def sign(self, x: Number) -> Number:
        x = primal(x)
        return NAN if x != x else int(x > 0) - int(x < 0)

    def floor(self, x: Number) -> Number:
        x = primal(x)
        if isinstance(x, float):
            return float(math.floor(x)) if math.isfinite(x) else x
        return x if isinstance(x, int) else self.context.floor(x) if self.context else math.floor(x)

    def maximum(self, a: Number, b: Number) -> Number:
        """The larger, nan if either is; at a tie of lifted numbers their mean."""
        return self._extremum(a, b, primal(a), primal(b))

    def minimum(self, a: Number, b: Number) -> Number:
        """The smaller, nan if either is; at a tie of lifted numbers their mean."""
        return self._extremum(a, b, -primal(a), -primal(b))

    def _extremum(self, a: Number, b: Number, key: Number, other: Number) -> Number:
        if key > other or key != key:
            return a
        if other > key or other != other:
            return b
        if isinstance(a, Lifted) or isinstance(b, Lifted):
            total: Number = a + b  # type: ignore[operator]
            return self.divide(total, 2)
        return a


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10: four random words from a key and a counter of 32-bit words.

    >>> [hex(word) for word in philox((0, 0), (0, 0, 0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    word = 0xFFFFFFFF
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c2 = (second >> 32) ^ c1 ^ k0, (first >> 32) ^ c3 ^ k1
        c1, c3 = second & word, first & word
        k0, k1 = (k0 + 0x9E3779B9) & word, (k1 + 0xBB67AE85) & word
    return c0, c1, c2, c3


def uniform_number(seed: int, index: int) -> Fraction:
    """The 24-bit number in [0, 1) of functions.uniform(seed, index)."""
    word = 0xFFFFFFFF
    out = philox((seed & word, seed >> 32 & word), (index & word, index >> 32 & word, 0, 0))
    return Fraction(out[0] >> 8, 1 << 24)
