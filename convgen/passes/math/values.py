"""Writing formulas over IR expressions as formulas: `Value` has Python's operators, and `Lines`
keeps each intermediate result in a register, so that it is computed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from convgen.ir.nodes import Const, Expr, Op, Register, Set
from convgen.ir.rounding import number_of
from convgen.ir.visit import map_expr, walk
from convgen.types import DType, bool_, f32, i32, i64


@dataclass(frozen=True, slots=True)
class Format:
    """An IEEE format: its integers of the same width, and the constants the functions need.

    mantissa    stored bits of the fraction
    bias        of the exponent
    magic       1.5 * 2**mantissa: adding it rounds to an integer, held in the low bits
    log2_high   log 2 with enough trailing zeros that n * log2_high is exact for every exponent n
    log2_low    log 2 - log2_high
    overflow    e**x is infinite above it
    underflow   e**x is zero below it
    """

    integer: DType
    mantissa: int
    bias: int
    magic: float
    log2_high: float
    log2_low: float
    overflow: float
    underflow: float

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (1 - self.bias)


SHORT = Format(i32, 23, 127, 1.5 * 2**23, 0.693145751953125, 1.4286068203094173e-06, 88.8, -104.0)
LONG = Format(i64, 52, 1023, 1.5 * 2**52, 0.6931471803691238, 1.9082149292705877e-10, 709.8, -745.2)


class Lines:
    """The registers that lead to a result, in order. `fresh` makes names that are not taken."""

    def __init__(self, fresh: Callable[[], str]) -> None:
        self._fresh = fresh
        self.sets: list[Set] = []

    def keep(self, expr: Expr) -> Value:
        """The expression in a register of its own; constants and registers stay as they are."""
        if isinstance(expr, Const | Register):
            return Value(self, expr)
        name = self._fresh()
        self.sets.append(Set(name, expr))
        return Value(self, Register(name, expr.dtype, expr.lanes))

    def finish(self, result: Value) -> tuple[tuple[Set, ...], Expr]:
        """(sets, value): registers that are read once are written where they are read."""
        uses = Counter(
            part.name
            for expr in (*(s.value for s in self.sets), result.expr)
            for part in walk(expr)
            if isinstance(part, Register)
        )
        inlined: dict[str, Expr] = {}

        def inline(expr: Expr) -> Expr:
            return inlined.get(expr.name, expr) if isinstance(expr, Register) else expr

        kept: list[Set] = []
        for line in self.sets:
            value = map_expr(line.value, inline)
            if uses[line.register] == 1:
                inlined[line.register] = value
            elif uses[line.register]:
                kept.append(replace(line, value=value))
        return tuple(kept), map_expr(result.expr, inline)


class Value:
    """An expression with operators. Plain numbers become constants of the same dtype and lanes."""

    __slots__ = ("expr", "lines")

    def __init__(self, lines: Lines, expr: Expr) -> None:
        self.lines = lines
        self.expr = expr

    @property
    def dtype(self) -> DType:
        return self.expr.dtype

    @property
    def format(self) -> Format:
        return SHORT if self.dtype == f32 else LONG

    def constant(self, number: float | int) -> Value:
        """The number as a value of this dtype."""
        value = number_of(float(number) if self.dtype.is_float else number, self.dtype)
        return Value(self.lines, Const(value, self.dtype, self.expr.lanes))

    def _take(self, other: Operand) -> Expr:
        return other.expr if isinstance(other, Value) else self.constant(other).expr

    def _op(self, name: str, *others: Operand, dtype: DType | None = None) -> Value:
        args = (self.expr, *(self._take(o) for o in others))
        return self.lines.keep(Op(name, args, dtype or self.dtype, self.expr.lanes))

    def __add__(self, other: Operand) -> Value:
        return self._op("add", other)

    def __sub__(self, other: Operand) -> Value:
        return self._op("sub", other)

    def __rsub__(self, other: float | int) -> Value:
        return self.constant(other) - self

    def __mul__(self, other: Operand) -> Value:
        return self._op("mul", other)

    def __truediv__(self, other: Operand) -> Value:
        return self._op("div", other)

    def __rtruediv__(self, other: float | int) -> Value:
        return self.constant(other) / self

    def __neg__(self) -> Value:
        return self._op("neg")

    def __abs__(self) -> Value:
        return self._op("abs")

    def __and__(self, other: Operand) -> Value:
        return self._op("and", other)

    def __or__(self, other: Operand) -> Value:
        return self._op("or", other)

    def __xor__(self, other: Operand) -> Value:
        return self._op("xor", other)

    def __lshift__(self, count: Operand) -> Value:
        return self._op("shl", count)

    def __rshift__(self, count: Operand) -> Value:
        return self._op("shr", count)

    def __lt__(self, other: Operand) -> Value:
        return self._op("lt", other, dtype=bool_)

    def equals(self, other: Operand) -> Value:
        return self._op("eq", other, dtype=bool_)

    def is_nan(self) -> Value:
        return self._op("is_nan", dtype=bool_)

    def invert(self) -> Value:
        """not: logical on bool, bitwise on integers."""
        return self._op("not")

    def floor(self) -> Value:
        return self._op("floor")

    def times_plus(self, factor: Operand, summand: Operand) -> Value:
        """self * factor + summand as one fma."""
        return self._op("fma", factor, summand)

    def where(self, yes: Value, no: Operand) -> Value:
        """yes where this condition holds, else no."""
        other = yes._take(no)
        return self.lines.keep(
            Op("select", (self.expr, yes.expr, other), yes.dtype, yes.expr.lanes)
        )

    def cast(self, dtype: DType) -> Value:
        return self if dtype == self.dtype else self._op("cast", dtype=dtype)

    def bits(self) -> Value:
        """The same bits as a signed integer."""
        return self._op("bitcast", dtype=self.format.integer)

    def as_float(self, dtype: DType) -> Value:
        """The same bits as a float."""
        return self._op("bitcast", dtype=dtype)

    def at_most(self, bound: float) -> Value:
        """The smaller of both; NaN stays NaN."""
        return (self.constant(bound) < self).where(self.constant(bound), self)

    def at_least(self, bound: float) -> Value:
        """The larger of both; NaN stays NaN."""
        return (self < bound).where(self.constant(bound), self)

    def polynomial(self, coefficients: Sequence[float]) -> Value:
        """sum of coefficients[i] * self**i, by Horner's rule."""
        total = self.constant(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            total = total.times_plus(self, coefficient)
        return total

    def polynomial_by_pairs(self, coefficients: Sequence[float], square: Value) -> Value:
        """The same with self**2 given, of pairs of terms that do not wait for one another: as many
        operations, of which about half follow one another."""
        pairs = [
            self.times_plus(high, low)
            for low, high in zip(coefficients[::2], coefficients[1::2], strict=False)
        ]
        if len(coefficients) % 2:
            pairs.append(self.constant(coefficients[-1]))
        total = pairs[-1]
        for pair in reversed(pairs[:-1]):
            total = total.times_plus(square, pair)
        return total


Operand = Value | float | int
