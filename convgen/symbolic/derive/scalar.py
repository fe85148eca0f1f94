"""Derivatives of scalar bodies. sympy sees plain symbols only; indices and domains stay outside."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import sympy
from sympy import Dummy, Expr, Integer

from convgen.affine import Affine
from convgen.symbolic.expr import Access, Result, Size, affine_body
from convgen.symbolic.functions import (
    equal,
    less,
    less_equal,
    logical_and,
    logical_or,
    normalize,
    relu,
    round_down,
    select,
    step,
)


def exchange(body: Expr, mapping: Mapping[Any, Any]) -> Expr:
    """The body with atoms or subexpressions replaced, all at once."""
    return body.xreplace(mapping) if mapping else body  # type: ignore[return-value]


class _power(sympy.Function):
    """x**y of a variable y. sympy's own derivative divides by x; here, as in torch, x**y is
    constant along x where y is 0, and along y where x is 0."""

    nargs = 2

    def fdiff(self, argindex: int = 1) -> Expr:
        x, y = cast("tuple[Expr, Expr]", self.args)
        if argindex == 1:
            return select(equal(y, 0), 0, y * x ** (y - 1))  # type: ignore[return-value]
        along = x**y * sympy.log(x)
        if x.is_positive:
            return along
        return select(logical_and(equal(x, 0), less_equal(0, y)), 0, along)  # type: ignore[return-value]


def _is_variable_power(body: Any) -> bool:
    return isinstance(body, sympy.Pow) and not (body.exp.is_number or body.base.is_number)


@lru_cache(maxsize=16384)
def derivative(body: Expr, atom: Expr) -> Expr:
    """The derivative of a body by one of its accesses or results; boundary values count as
    constants (see `boundary_factor`).

    >>> from convgen.symbolic.expr import Tensor, Axis
    >>> i = Axis("i")
    >>> X, W = Tensor("X", (4,)), Tensor("W", (4,))
    >>> derivative(relu(X[i] * W[i]), X[i])
    W[i]*step(W[i]*X[i])
    """
    if body == atom:
        return Integer(1)
    if isinstance(body, sympy.Mul) and body.args.count(atom) == 1:
        rest = [a for a in body.args if a != atom]
        if not any(a.has(atom) for a in rest):
            return sympy.Mul(*rest)
    plain = Dummy("x", real=True)
    found: Any = exchange(body, {atom: plain})
    if found.has(sympy.Mod):
        found = found.replace(sympy.Mod, lambda a, b: a - b * round_down(a / b))
    found = found.replace(_is_variable_power, lambda p: _power(*p.args)).diff(plain)
    found = found.replace(_power, sympy.Pow)
    return normalize(exchange(found, {plain: atom}))


def inner_accesses(body: Expr) -> list[tuple[Access, Access, int]]:
    """(outer, inner, dim) for each access `inner` in the boundary value of dimension dim of an
    access `outer` of the body."""
    found: list[tuple[Access, Access, int]] = []
    for outer in sorted(body.atoms(Access), key=str):
        assert isinstance(outer, Access)
        for dim, kind in enumerate(outer.boundary):
            if kind.value is not None:
                found += [
                    (outer, inner, dim)
                    for inner in sorted(kind.value.atoms(Access), key=str)
                    if isinstance(inner, Access)
                ]
    return found


def outside(access: Access, dim: int, bounds: Mapping[str, tuple[int, int]]) -> Expr:
    """The condition that the access reads the boundary value of dimension dim: it is outside there
    and inside in every dimension before it. bounds: ranges (lo, hi) of the axes."""

    def out(j: int) -> Expr:
        index, extent = affine_body(access.index[j]), access.tensor.shape[j]
        return logical_or(less(index, 0), less(sympy.Add(extent, -1), index))  # type: ignore[return-value]

    def inside(j: int) -> bool:
        index, extent = access.index[j], access.tensor.shape[j]
        if isinstance(extent, Size):
            return bool(index.single)
        low, high = index.bounds(bounds)
        return low >= 0 and high < extent

    condition = out(dim)
    for j in range(dim):
        if not inside(j):
            condition = select(out(j), Integer(0), condition)  # type: ignore[assignment]
    return condition


def by_output(found: Expr, value: Expr, output: Access) -> Expr:
    """A derivative in terms of the value it is the derivative of, where that is stored: relu' is
    step of the output, tanh' is 1 - output^2."""
    mapping: dict[Expr, Expr] = {value: output}
    if isinstance(value, relu):
        mapping[step(value.args[0])] = step(output)  # type: ignore[index]
    return exchange(found, mapping)


def numeric(body: Expr) -> bool:
    """True for a body without accesses, axes or results."""
    return not body.has(Access) and all(isinstance(s, Size) for s in body.free_symbols)


def affine_in_results(body: Expr) -> dict[Result, Expr] | None:
    """The number each Result is multiplied with, when the body is affine in all of them. Sizes
    count as numbers."""
    found: dict[Result, Expr] = {}
    for term in sympy.Add.make_args(body):
        results = term.atoms(Result)
        if not results:
            continue
        factors = sympy.Mul.make_args(term)
        core = [f for f in factors if isinstance(f, Result)]
        rest = [f for f in factors if not isinstance(f, Result)]
        if len(core) != 1 or core[0] in found or not all(numeric(f) for f in rest):
            return None
        found[core[0]] = sympy.Mul(*rest)
    return found


def position(ranges: tuple[tuple[str, int, int], ...]) -> Affine:
    """The row-major position in a box of (axis, lo, hi).

    >>> print(position((("r", 0, 2), ("s", 0, 3))))
    3*r + s
    """
    total = Affine()
    for axis, low, high in ranges:
        total = total * (high - low) + Affine.of(axis) - low
    return total
