"""Formula bodies as Python closures over a point: what the oracle runs element by element.

A point is a list: the axes of the definition, the axes of the reduce at hand, then results. Each
body is compiled once; nothing here is shared with the passes that make kernels.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import sympy

from convgen.affine import Affine, Constraint, FloorDiv
from convgen.errors import FormulaError
from convgen.symbolic import functions as fn
from convgen.symbolic.boundary import Omit
from convgen.symbolic.evaluate_scalar import (
    Arithmetic,
    Lifted,
    Number,
    primal,
    uniform_number,
)
from convgen.symbolic.expr import Access, Axis, Domain, Result, Size, accesses_of, affine_of

Point: TypeAlias = list[Any]
Closure: TypeAlias = Callable[[Point], Any]


@dataclass
class Scope:
    """What names mean while a body is compiled: slots of the point, ranges of the axes, tensors."""

    arithmetic: Arithmetic
    sizes: Mapping[str, int]
    storage: Mapping[str, tuple[tuple[int, ...], list[Any]]]
    lifted: bool = False
    slots: dict[str, int] = field(default_factory=dict)
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)

    def extent(self, value: int | Size) -> int:
        return self.sizes[value.name] if isinstance(value, Size) else value

    def within(self, domain: Domain, first_slot: int) -> Scope:
        """The scope inside a domain whose axes take the slots from first_slot on."""
        inner = Scope(self.arithmetic, self.sizes, self.storage, self.lifted)
        inner.slots, inner.ranges = dict(self.slots), dict(self.ranges)
        for number, r in enumerate(domain.ranges):
            inner.slots[r.axis] = first_slot + number
            inner.ranges[r.axis] = (r.lo, self.extent(r.hi))
        return inner

    def spans(self, domain: Domain) -> list[range]:
        return [range(r.lo, self.extent(r.hi)) for r in domain.ranges]


# ---------------------------------------------------------------------------------------------
# Indices and constraints


def compile_affine(value: Affine, scope: Scope) -> Closure:
    """The closure that gives the integer value at a point."""
    constant = value.constant
    plain: list[tuple[int, int]] = []
    others: list[tuple[Closure, int]] = []
    for atom, coefficient in value.terms:
        if isinstance(atom, str):
            plain.append((_slot(atom, scope), coefficient))
        else:
            others.append((_quotient(atom, scope), coefficient))
    if others:
        return lambda p: (
            constant + sum(p[s] * c for s, c in plain) + sum(f(p) * c for f, c in others)
        )
    if not plain:
        return lambda p: constant
    (s0, c0), rest = plain[0], plain[1:]
    if not rest:
        if (c0, constant) == (1, 0):
            return operator.itemgetter(s0)
        return lambda p: c0 * p[s0] + constant
    (s1, c1), rest = rest[0], rest[1:]
    if not rest:
        return lambda p: c0 * p[s0] + c1 * p[s1] + constant
    if len(rest) == 1:
        s2, c2 = rest[0]
        return lambda p: c0 * p[s0] + c1 * p[s1] + c2 * p[s2] + constant
    return lambda p: sum((p[s] * c for s, c in plain), constant)


def _slot(name: str, scope: Scope) -> int:
    if name not in scope.slots:
        raise FormulaError(
            f"the axis {name} has no range", expected="one of " + (", ".join(scope.slots) or "none")
        )
    return scope.slots[name]


def _quotient(atom: Any, scope: Scope) -> Closure:
    inner, divisor = compile_affine(atom.value, scope), atom.divisor
    if isinstance(atom, FloorDiv):
        return lambda p: inner(p) // divisor
    return lambda p: inner(p) % divisor


def compile_constraint(constraint: Constraint, scope: Scope) -> Closure:
    value, modulus = compile_affine(constraint.value, scope), constraint.modulus
    if constraint.kind == "==":
        return lambda p: value(p) == 0
    if constraint.kind == "<=":
        return lambda p: value(p) <= 0
    return lambda p: value(p) % modulus == 0


def walk_points(domain: Domain, scope: Scope, first_slot: int) -> Callable[[Point], Iterator[None]]:
    """A walk over the domain's points in row-major order, each put into the slots of the point."""
    inner = scope.within(domain, first_slot)
    spans = scope.spans(domain)
    tests = [compile_constraint(c, inner) for c in domain.constraints]
    last_slot = first_slot + len(spans)

    def walk(p: Point) -> Iterator[None]:
        for values in itertools.product(*spans):
            p[first_slot:last_slot] = values
            if all(test(p) for test in tests):
                yield

    return walk


# ---------------------------------------------------------------------------------------------
# Accesses


def compile_access(access: Access, scope: Scope) -> Closure:
    """Reads the element, by the boundary of each dimension where the index is outside. Where
    several dimensions are outside, the first one that does not fold decides what is read."""
    if access.tensor.name not in scope.storage:
        raise FormulaError(f"{access}: {access.tensor.name} is read before it is written")
    shape, data = scope.storage[access.tensor.name]
    strides = row_major(shape)
    offset = Affine()
    for index, stride in zip(access.index, strides, strict=True):
        offset = offset + index * stride
    place = compile_affine(offset, scope)
    unproved = [d for d in range(len(shape)) if not _inside(access.index[d], shape[d], scope)]
    if not unproved:
        return lambda p: data[place(p)]
    if all(access.boundary[d].name == "zero" for d in unproved):
        checks = [(compile_affine(access.index[d], scope), shape[d]) for d in unproved]

        def read(p: Point) -> Any:
            for index, extent in checks:
                if not 0 <= index(p) < extent:
                    return 0
            return data[place(p)]

        return read
    return _bounded_access(access, shape, strides, data, scope)


def _inside(index: Affine, extent: int, scope: Scope) -> bool:
    for name in index.names():
        _slot(name, scope)
    low, high = index.bounds(scope.ranges)
    return 0 <= low and high < extent


def _bounded_access(
    access: Access, shape: Sequence[int], strides: Sequence[int], data: list[Any], scope: Scope
) -> Closure:
    dims: list[tuple[Closure, int, int, Any, Closure]] = []
    for d, boundary in enumerate(access.boundary):
        value: Closure = _zero
        if boundary.value is not None:
            value = compile_body(boundary.value, scope)
        elif isinstance(boundary, Omit):
            value = _refuse_omitted(access)
        dims.append((compile_affine(access.index[d], scope), shape[d], strides[d], boundary, value))

    def read(p: Point) -> Any:
        total = 0
        outside: Closure | None = None
        for index, extent, stride, boundary, value in dims:
            i = index(p)
            if not 0 <= i < extent:
                if not boundary.folds:
                    outside = outside or value
                    continue
                folded = boundary.fold(i, extent)
                if not 0 <= folded < extent:
                    raise FormulaError(f"{access}: {boundary} cannot fold {i} into extent {extent}")
                i = folded
            total += i * stride
        return data[total] if outside is None else outside(p)

    return read


def _zero(p: Point) -> Number:
    return 0


def _refuse_omitted(access: Access) -> Closure:
    def refuse(p: Point) -> Any:
        raise FormulaError(
            f"{access}: an omitted element is read outside of any reduction",
            hint="another boundary",
        )

    return refuse


def row_major(shape: Sequence[int]) -> list[int]:
    """Row-major strides in elements.

    >>> row_major((2, 3, 4))
    [12, 4, 1]
    """
    strides = [1] * len(shape)
    for d in range(len(shape) - 2, -1, -1):
        strides[d] = strides[d + 1] * shape[d + 1]
    return strides


def omission_guards(body: Any, scope: Scope) -> list[tuple[Closure, int]]:
    """(index, extent) pairs: where an index is outside, the term is left out of its reduction."""
    guards: list[tuple[Closure, int]] = []
    for access in accesses_of(body):
        shape = scope.storage[access.tensor.name][0] if access.tensor.name in scope.storage else ()
        for index, boundary, extent in zip(access.index, access.boundary, shape, strict=False):
            if isinstance(boundary, Omit) and not _inside(index, extent, scope):
                guards.append((compile_affine(index, scope), extent))
    return guards


# ---------------------------------------------------------------------------------------------
# Bodies


def compile_body(body: Any, scope: Scope) -> Closure:
    """The closure that gives the body's value at a point."""
    return _compile(fn.normalize(sympy.sympify(body)), scope)


def _compile(body: Any, scope: Scope) -> Closure:
    if isinstance(body, Access):
        return compile_access(body, scope)
    if isinstance(body, (Result, Axis)):
        slot = _slot(body.name, scope)
        return operator.itemgetter(slot)
    if isinstance(body, Size):
        size = scope.sizes[body.name]
        return lambda p: size
    if isinstance(body, sympy.Symbol):
        return operator.itemgetter(_slot(body.name, scope))
    if isinstance(body, (sympy.Number, sympy.NumberSymbol)):
        value = scope.arithmetic.constant(body)
        return lambda p: value
    if isinstance(body, sympy.Add):
        return _compile_sum([_compile(a, scope) for a in body.args])
    if isinstance(body, sympy.Mul):
        return _compile_product(body, scope)
    if isinstance(body, sympy.Pow):
        return _compile_power(body, scope)
    if isinstance(body, fn.select):
        condition, chosen, otherwise = (_compile(a, scope) for a in body.args)
        return lambda p: chosen(p) if primal(condition(p)) != 0 else otherwise(p)
    return _compile_call(body, scope)


def _compile_sum(terms: list[Closure]) -> Closure:
    first, second, *rest = terms
    if not rest:
        return lambda p: first(p) + second(p)

    def total(p: Point) -> Number:
        out = first(p) + second(p)
        for term in rest:
            out = out + term(p)
        return out

    return total


def _compile_product(body: Any, scope: Scope) -> Closure:
    """Factors with a negative exponent are divided by, which rounds less than their reciprocals."""
    above: list[Closure] = []
    below: list[Closure] = []
    for factor in body.args:
        if isinstance(factor, sympy.Pow) and factor.args[1].is_number and factor.args[1] < 0:
            below.append(_compile(1 / factor, scope))
        else:
            above.append(_compile(factor, scope))
    numerator = _factors(above)
    if not below:
        return numerator
    denominator, divide = _factors(below), scope.arithmetic.divide
    return lambda p: divide(numerator(p), denominator(p))


def _factors(factors: list[Closure]) -> Closure:
    if not factors:
        return lambda p: 1
    if len(factors) == 1:
        return factors[0]
    first, second, *rest = factors
    if not rest:
        return lambda p: first(p) * second(p)

    def product(p: Point) -> Number:
        out = first(p) * second(p)
        for factor in rest:
            out = out * factor(p)
        return out

    return product


def _compile_power(body: Any, scope: Scope) -> Closure:
    base, exponent = body.args
    inner, power = _compile(base, scope), scope.arithmetic.power
    if base is sympy.E:
        raised, exp = _compile(exponent, scope), scope.arithmetic.exp
        return lambda p: exp(raised(p))
    if not exponent.is_number:
        raised = _compile(exponent, scope)
        return lambda p: power(inner(p), raised(p))
    if exponent.is_Rational:
        # exact also in float arithmetic: halves become square roots
        number: Any = sympy.Rational(exponent)
        value = Arithmetic("exact").constant(number)
    else:
        value = scope.arithmetic.constant(exponent)
    return lambda p: power(inner(p), value)


_COMPARE: dict[Any, Callable[[Any, Any], bool]] = {
    fn.equal: operator.eq,
    fn.less: operator.lt,
    fn.less_equal: operator.le,
    fn.logical_and: lambda a, b: a != 0 and b != 0,
    fn.logical_or: lambda a, b: a != 0 or b != 0,
}
_UNARY: dict[Any, str] = {
    sympy.exp: "exp",
    sympy.log: "log",
    sympy.tanh: "tanh",
    sympy.erf: "erf",
    fn.sigmoid: "sigmoid",
    fn.relu: "relu",
    fn.step: "step",
    fn.sign: "sign",
    fn.abs_: "absolute",
    fn.round_down: "floor",
}
_BINARY: dict[Any, str] = {fn.maximum: "maximum", fn.minimum: "minimum"}


def _compile_call(body: Any, scope: Scope) -> Closure:
    kind, arithmetic = type(body), scope.arithmetic
    if kind is fn.cast:
        inner, store, dtype = _compile(body.args[0], scope), arithmetic.store, body.dtype
        return lambda p: store(inner(p), dtype)
    if kind is fn.round_down and not body.atoms(Access, Result, Size):
        try:  # floor(7*y/6) of axes is exact, also where numbers are floats
            return compile_affine(affine_of(body), scope)
        except FormulaError:
            pass
    args = [_compile(a, scope) for a in body.args]
    first, second = args[0], args[-1]
    if kind in _COMPARE:
        compare = _COMPARE[kind]
        return lambda p: int(compare(primal(first(p)), primal(second(p))))
    if kind is fn.logical_not:
        return lambda p: int(primal(first(p)) == 0)
    if kind is fn.is_nan:
        return lambda p: int(_differs(primal(first(p))))
    if kind is fn.stop_gradient:
        return lambda p: primal(first(p))
    if kind in _UNARY:
        unary = getattr(arithmetic, _UNARY[kind])
        return lambda p: unary(first(p))
    if kind in _BINARY:
        binary = getattr(arithmetic, _BINARY[kind])
        return lambda p: binary(first(p), second(p))
    if kind is fn.uniform:
        real = arithmetic.real
        return lambda p: real(uniform_number(int(primal(first(p))), int(primal(second(p)))))
    if kind is sympy.Mod:
        return lambda p: primal(first(p)) % primal(second(p))
    raise FormulaError(
        f"{body}: {kind.__name__} is not a function of the language",
        expected="one of " + ", ".join(fn.FUNCTIONS),
    )


def _differs(x: Any) -> bool:
    return x != x


def is_lifted(values: Sequence[Any]) -> bool:
    """True where any number carries more than its value."""
    return any(isinstance(v, Lifted) for v in values)
