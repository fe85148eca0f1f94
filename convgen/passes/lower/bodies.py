"""Bodies of formulas (sympy) become typed expressions (ir.nodes).

Dtypes follow `symbolic.expr.body_dtype`: every operation is computed in the dtype that its operands
promote to, numbers adapt. Casts are written out; numbers are rounded once, to the dtype they meet.
sympy's normal form (sums of products with coefficients and powers) is read back as subtraction,
negation, division and square root. Operands stand in the user's order: results of reduces, then
accesses by the order of the program's tensors, then axes, then numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import sympy
from sympy import Expr as Body

from convgen.affine import Affine
from convgen.errors import FormulaError
from convgen.ir.nodes import Const, Edge, Expr, Index, Load, Op
from convgen.ir.regions import inside
from convgen.ir.rounding import number_of
from convgen.ir.simplify import Ranges, simplify_affine
from convgen.symbolic import functions as f
from convgen.symbolic.boundary import Boundary
from convgen.symbolic.expr import Access, Axis, Result, Size, affine_of, body_dtype, fixed
from convgen.types import DType, bool_, f32, i64, promote, u64

_LONGEST_POWER = 64  # beyond it a float power is Op("pow")


def convert(value: Expr, dtype: DType) -> Expr:
    """The value in another dtype: constants at once, to bool by ``!= 0``, else an explicit cast."""
    if value.dtype == dtype:
        return value
    if isinstance(value, Const):
        exact = value.value if value.dtype.is_float else int(value.value)
        return Const(number_of(exact, dtype), dtype)
    if dtype == bool_:
        return Op("not", (Op("eq", (value, Const(0, value.dtype)), bool_),), bool_)
    return Op("cast", (value,), dtype)


def number(body: Body) -> Fraction | float | None:
    """The exact value of a numeric body (40 digits of an irrational one), or None."""
    if not body.is_number:
        return None
    if isinstance(body, sympy.Rational):
        return Fraction(int(body.p), int(body.q))
    if body is sympy.oo or body is -sympy.oo:
        return float(body)  # type: ignore[arg-type]
    if body is sympy.nan:
        return float("nan")
    value: Any = body.evalf(40)
    if not isinstance(value, (sympy.Rational, sympy.Float)):
        return None
    exact: Any = sympy.Rational(value)  # of a Float too
    return Fraction(int(exact.p), int(exact.q))


@dataclass
class BodyLowering:
    """Translates the bodies of one definition.

    `tensors` name -> place in the user's order; `axes` axis -> place; `ranges` of all axes in
    scope; `results` what each Result stands for; `in_reduce`: an omitted element is allowed.
    """

    tensors: Mapping[str, int]
    axes: Mapping[str, int]
    ranges: Ranges
    results: Mapping[Result, Expr] = field(default_factory=dict)
    in_reduce: bool = False
    _types: dict[Body, DType | None] = field(default_factory=dict)
    _keys: dict[Body, Any] = field(default_factory=dict)

    # -- dtypes and order -----------------------------------------------------------------------

    def type_of(self, body: Body) -> DType | None:
        """The dtype a body is computed in; None for numbers."""
        if body not in self._types:
            kinds = {name: expr.dtype for name, expr in self.results.items()}
            self._types[body] = body_dtype(body, kinds)
        return self._types[body]

    def common(self, args: Sequence[Body]) -> DType:
        """The dtype in which arguments meet: in a comparison, for example."""
        found: DType | None = None
        fractional = False
        for arg in args:
            kind = None if arg.is_number else self.type_of(arg)
            if kind is None:
                fractional = fractional or not (arg.is_integer or arg.is_infinite)
            else:
                found = kind if found is None else promote(found, kind)
        if found is None or (fractional and not found.is_float):
            return f32
        return found

    def key(self, body: Body) -> Any:
        """Sorts operands into the user's order."""
        if body not in self._keys:
            self._keys[body] = (sorted(self._atom_keys(body)) or [(9,)], str(body))
        return self._keys[body]

    def _atom_keys(self, body: Body) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        for atom in body.atoms(Result, Access, Axis):
            if isinstance(atom, Result):
                found.append((0, atom.reduce, atom.item))
            elif isinstance(atom, Access):
                place = self.tensors.get(atom.tensor.name, len(self.tensors))
                index = tuple((str(i - i.constant), i.constant) for i in atom.index)
                found.append((1, place, atom.tensor.name, index, atom.boundary_text))
            else:
                found.append((2, self.axes.get(atom.name, len(self.axes)), atom.name))
        return found

    # -- expressions ----------------------------------------------------------------------------

    def emit(self, body: Body, dtype: DType) -> Expr:
        """The body as an expression of that dtype."""
        if not isinstance(body, f.cast):
            value = number(body)
            if value is not None:
                return Const(number_of(value, dtype), dtype)
        index = self._as_index(body)
        if index is not None:
            if index.is_constant:
                return Const(number_of(index.constant, dtype), dtype)
            return convert(Index(index), dtype)
        own = self.type_of(body) or dtype
        return convert(self._emit_own(body, own), dtype)

    def _as_index(self, body: Body) -> Affine | None:
        """A body over axes only, where it is quasi-affine."""
        kinds = (Axis, sympy.Add, sympy.Mul, sympy.Mod, sympy.floor, f.round_down)
        if not isinstance(body, kinds):
            return None
        if body.atoms(Access, Result, Size) or not body.atoms(Axis):
            return None
        try:
            value = affine_of(body)
        except FormulaError:
            return None
        return value if value.is_plain else simplify_affine(value, self.ranges)

    def _emit_own(self, body: Body, own: DType) -> Expr:
        if isinstance(body, Result):
            return self.results[body]
        if isinstance(body, Access):
            return self.load(body)
        if isinstance(body, sympy.Add):
            return self._emit_sum(body, own)
        if isinstance(body, sympy.Mul):
            return self._emit_product(body, own)
        if isinstance(body, sympy.Pow):
            return self._emit_power(body.args[0], body.args[1], own)
        for kind, rule in _RULES.items():
            if isinstance(body, kind):
                return rule(self, body, own)
        if isinstance(body, Size):
            fixed(body, str(body))
        raise FormulaError(
            f"{type(body).__name__} is not a function of formulas",
            expected="one of " + ", ".join(f.FUNCTIONS),
            got=str(body),
        )

    def load(self, access: Access) -> Load:
        """A read, with an Edge for each dimension that is not proved in bounds."""
        dtype = access.tensor.dtype
        index = tuple(i if i.is_plain else simplify_affine(i, self.ranges) for i in access.index)
        edges: list[Edge | None] = []
        for place, extent, boundary in zip(
            index, access.tensor.shape, access.boundary, strict=True
        ):
            if inside(place, fixed(extent, access.tensor.name), self.ranges):
                edges.append(None)
            else:
                edges.append(self._edge(boundary, access, dtype))
        return Load(access.tensor.name, index, tuple(edges), dtype)

    def _edge(self, boundary: Boundary, access: Access, dtype: DType) -> Edge:
        if boundary.name == "omit" and not self.in_reduce:
            raise FormulaError(
                f"{access} leaves out elements, but stands in no reduction",
                hint="a zero boundary, or the access inside a sum or max",
            )
        value = None if boundary.value is None else self.emit(boundary.value, dtype)
        return Edge(boundary.name, value)  # type: ignore[arg-type]

    def _emit_sum(self, body: Body, own: DType) -> Expr:
        """Terms with a negative coefficient are subtracted; a positive one comes first."""
        terms: list[tuple[bool, Body]] = []
        for term in sorted(sympy.Add.make_args(body), key=self.key):
            coefficient, rest = term.as_coeff_Mul()
            negative = bool(coefficient.is_negative)
            terms.append((negative, -coefficient * rest if negative else term))
        first = next((i for i, (negative, _) in enumerate(terms) if not negative), 0)
        terms.insert(0, terms.pop(first))
        negative, term = terms[0]
        total = self.emit(term, own)
        if negative:
            total = Op("neg", (total,), own)
        for negative, term in terms[1:]:
            total = Op("sub" if negative else "add", (total, self.emit(term, own)), own)
        return total

    def _emit_product(self, body: Body, own: DType) -> Expr:
        """coefficient * numerators / denominators; powers with negative exponents divide. What
        moves with fewer axes is a quotient of its own, so that loops over the others divide once:
        (x - mean) * (gamma / sigma)."""
        coefficient, rest = body.as_coeff_Mul()
        above: list[Body] = []
        below: list[Body] = []
        for factor in sorted(sympy.Mul.make_args(rest), key=self.key):
            exponent = factor.args[1] if isinstance(factor, sympy.Pow) else sympy.S.One
            divides = bool(exponent.is_number and exponent.is_negative)
            (below if divides else above).append(1 / factor if divides else factor)
        negative = bool(coefficient.is_negative)
        scale = number(-coefficient if negative else coefficient)
        fixed = self._with_fewer_axes(above, below) if own.is_float else []
        quotient = self._multiply([a for a in above if a in fixed], own)
        product = self._multiply([a for a in above if a not in fixed], own)
        if quotient is not None and product is not None:
            divisor = self._multiply([b for b in below if b in fixed], own)
            assert divisor is not None
            product = Op("mul", (product, Op("div", (quotient, divisor), own)), own)
            below = [b for b in below if b not in fixed]
        if product is None or scale != 1:
            weight = Const(number_of(1 if scale is None else scale, own), own)
            product = weight if product is None else Op("mul", (weight, product), own)
        divisor = self._multiply(below, own)
        if divisor is not None:
            product = Op("div", (product, divisor), own)
        return Op("neg", (product,), own) if negative else product

    def _with_fewer_axes(self, above: list[Body], below: list[Body]) -> list[Body]:
        """Factors that depend on the axes of all denominators at most, where some numerators do
        and others do not; else none."""
        inner = frozenset[str]().union(*(self._axes_of(b) for b in below))
        held = [a for a in above if self._axes_of(a) <= inner]
        free = [a for a in above if not self._axes_of(a) <= inner]
        moving = any(inner < self._axes_of(a) for a in free)
        return [*held, *below] if below and held and moving else []

    def _axes_of(self, body: Body) -> frozenset[str]:
        """The axes that a body depends on; results of reduces stand for all of the outputs."""
        found: set[str] = set()
        for atom in body.atoms(Result, Access, Axis):
            if isinstance(atom, Result):
                found |= self.axes.keys()
            elif isinstance(atom, Access):
                found |= {name for i in atom.index for name in i.names()}
            else:
                found.add(atom.name)
        return frozenset(found)

    def _multiply(self, factors: list[Body], own: DType) -> Expr | None:
        product: Expr | None = None
        for factor in factors:
            value = self.emit(factor, own)
            product = value if product is None else Op("mul", (product, value), own)
        return product

    def _emit_power(self, base: Body, exponent: Body, own: DType) -> Expr:
        if isinstance(exponent, sympy.Rational) and exponent.q in (1, 2):
            whole, half = divmod(abs(int(exponent.p)), int(exponent.q))
            if not own.is_float or whole <= _LONGEST_POWER:
                return self._small_power(self.emit(base, own), whole, bool(half), exponent, own)
        return Op("pow", (self.emit(base, own), self.emit(exponent, own)), own)

    def _small_power(
        self, base: Expr, whole: int, half: bool, exponent: sympy.Rational, own: DType
    ) -> Expr:
        made = repeated(base, whole, own) if whole else None
        if half:
            root = Op("sqrt", (base,), own)
            made = root if made is None else Op("mul", (made, root), own)
        assert made is not None
        return made if exponent > 0 else Op("div", (Const(1.0, own), made), own)

    def truth(self, body: Body) -> Expr:
        """The body as a condition."""
        return self.emit(body, bool_)


def repeated(base: Expr, power: int, own: DType) -> Expr:
    """base ** power by squaring, power >= 1: x**5 is (x*x)*(x*x)*x."""
    if power == 1:
        return base
    half = repeated(base, power // 2, own)
    square = Op("mul", (half, half), own)
    return square if power % 2 == 0 else Op("mul", (square, base), own)


# ---------------------------------------------------------------------------------------------
# One rule for each function

_Rule = Callable[[BodyLowering, Any, DType], Expr]


def _direct(name: str) -> _Rule:
    def rule(self: BodyLowering, body: Any, own: DType) -> Expr:
        return Op(name, tuple(self.emit(a, own) for a in body.args), own)

    return rule


def _folded(name: str) -> _Rule:
    """max and min, of two arguments or of sympy's many."""

    def rule(self: BodyLowering, body: Any, own: DType) -> Expr:
        operands: list[Any] = list(body.args)
        if isinstance(body, (sympy.Max, sympy.Min)):
            operands.sort(key=self.key)
        args = [self.emit(a, own) for a in operands]
        total = args[0]
        for arg in args[1:]:
            total = Op(name, (total, arg), own)
        return total

    return rule


def _compared(name: str) -> _Rule:
    def rule(self: BodyLowering, body: Any, own: DType) -> Expr:
        kind = self.common(body.args)
        if kind == bool_ and name != "eq":
            kind = i64
        return Op(name, tuple(self.emit(a, kind) for a in body.args), bool_)

    return rule


def _logical(name: str) -> _Rule:
    def rule(self: BodyLowering, body: Any, own: DType) -> Expr:
        return Op(name, tuple(self.truth(a) for a in body.args), bool_)

    return rule


def _is_nan(self: BodyLowering, body: Any, own: DType) -> Expr:
    kind = self.common(body.args)
    value = self.emit(body.args[0], kind)
    return Op("is_nan", (value,), bool_) if kind.is_float else Const(0, bool_)


def _select(self: BodyLowering, body: Any, own: DType) -> Expr:
    condition, yes, no = body.args
    return Op("select", (self.truth(condition), self.emit(yes, own), self.emit(no, own)), own)


def _above_zero(self: BodyLowering, body: Any, negated: bool) -> Expr:
    kind = self.common(body.args)
    kind = i64 if kind == bool_ else kind
    value, zero = self.emit(body.args[0], kind), Const(0, kind)
    return Op("lt", (value, zero) if negated else (zero, value), bool_)


def _step(self: BodyLowering, body: Any, own: DType) -> Expr:
    above = _above_zero(self, body, negated=False)
    return Op("select", (above, Const(1, own), Const(0, own)), own)


def _sign(self: BodyLowering, body: Any, own: DType) -> Expr:
    below = _above_zero(self, body, negated=True)
    negative = Op("select", (below, Const(number_of(-1, own), own), Const(0, own)), own)
    return Op("select", (_above_zero(self, body, negated=False), Const(1, own), negative), own)


def _relu(self: BodyLowering, body: Any, own: DType) -> Expr:
    return Op("max", (self.emit(body.args[0], own), Const(0, own)), own)


def _floor(self: BodyLowering, body: Any, own: DType) -> Expr:
    whole = f.quotient(body)
    if whole is not None and own.is_integer:
        return Op("floordiv", (self.emit(whole[0], own), Const(whole[1], own)), own)
    value = self.emit(body.args[0], own)
    return Op("floor", (value,), own) if own.is_float else value


def _mod(self: BodyLowering, body: Any, own: DType) -> Expr:
    """a mod b; of floats a - b * floor(a / b)."""
    a, b = (self.emit(x, own) for x in body.args)
    if not own.is_float:
        return Op("mod", (a, b), own)
    whole = Op("floor", (Op("div", (a, b), own),), own)
    return Op("sub", (a, Op("mul", (b, whole), own)), own)


def _cast(self: BodyLowering, body: Any, own: DType) -> Expr:
    inner = body.args[0]
    value = number(inner)
    if value is not None:
        return Const(number_of(value, body.dtype), body.dtype)
    return convert(self.emit(inner, self.type_of(inner) or body.dtype), body.dtype)


def _uniform(self: BodyLowering, body: Any, own: DType) -> Expr:
    seed, index = body.args
    return Op("uniform", (self.emit(seed, u64), self.emit(index, i64)), f32)


_RULES: dict[Any, _Rule] = {
    f.equal: _compared("eq"),
    f.less: _compared("lt"),
    f.less_equal: _compared("le"),
    f.logical_and: _logical("and"),
    f.logical_or: _logical("or"),
    f.logical_not: _logical("not"),
    f.is_nan: _is_nan,
    f.select: _select,
    f.maximum: _folded("max"),
    f.minimum: _folded("min"),
    sympy.Max: _folded("max"),
    sympy.Min: _folded("min"),
    f.step: _step,
    f.sign: _sign,
    sympy.sign: _sign,
    f.relu: _relu,
    f.abs_: _direct("abs"),
    sympy.Abs: _direct("abs"),
    f.sigmoid: _direct("sigmoid"),
    f.stop_gradient: lambda self, body, own: self.emit(body.args[0], own),
    f.round_down: _floor,
    sympy.floor: _floor,
    sympy.Mod: _mod,
    f.cast: _cast,
    f.uniform: _uniform,
    sympy.exp: _direct("exp"),
    sympy.log: _direct("log"),
    sympy.tanh: _direct("tanh"),
    sympy.erf: _direct("erf"),
}
