"""Where a term vanishes by itself: reading zero outside makes conditions needless."""

from __future__ import annotations

from collections.abc import Iterator

from sympy import Add, Expr, Mul, Pow

from convgen.affine import Affine
from convgen.symbolic.boundary import ZERO
from convgen.symbolic.derive.terms import Term, span
from convgen.symbolic.expr import Access, Extent, Size, accesses_of
from convgen.symbolic.functions import (
    FUNCTIONS,
    abs_,
    cast,
    maximum,
    minimum,
    relu,
    select,
    sigmoid,
    sign,
    step,
)


def guards(body: Expr) -> list[tuple[Affine, Extent]]:
    """(index, extent) pairs such that the body is zero where an index leaves 0..extent-1.

    Only accesses that multiply everything else count, and only where everything else stays finite
    and readable out of range: indices that share an axis with one that goes round are left out.
    """
    if not _finite(body):
        return []
    turning = {name for access in accesses_of(body) for name in _turning(access)}
    return [(i, e) for i, e in _zero_factors(body) if not i.names() & turning]


def _turning(access: Access) -> frozenset[str]:
    """Axes of dimensions that may be read a limited way out of range only."""
    kinds = zip(access.index, access.boundary, strict=True)
    return frozenset[str]().union(*(i.names() for i, k in kinds if k.folds))


def _zero_factors(body: Expr) -> Iterator[tuple[Affine, Extent]]:
    if isinstance(body, Access):
        for index, extent, kind in zip(body.index, body.tensor.shape, body.boundary, strict=True):
            if kind == ZERO:
                yield index, extent
    elif isinstance(body, Mul):
        for factor in body.args:
            yield from _zero_factors(factor)
    elif isinstance(body, Pow) and body.exp.is_positive:
        yield from _zero_factors(body.base)
    elif isinstance(body, select) and body.args[2] == 0:
        yield from _zero_factors(body.args[1])
    elif isinstance(body, Add):
        found = [set(_zero_factors(term)) for term in body.args]
        yield from set.intersection(*found)


_BOUNDED = (step, relu, sign, sigmoid, abs_, select, cast, maximum, minimum)


def _finite(body: Expr) -> bool:
    """True when the body has a finite value wherever its (finite) inputs are read."""
    if isinstance(body, Access):
        return not any(b.value is not None or b.name == "omit" for b in body.boundary)
    if body.is_Atom:
        return True
    if isinstance(body, Pow) and not (body.exp.is_integer and body.exp.is_nonnegative):
        return bool(body.base.is_number)
    known = isinstance(body, (Add, Mul, Pow, *_BOUNDED)) or body.func in _CONDITIONS
    return known and all(_finite(a) for a in body.args if isinstance(a, Expr))


_CONDITIONS = {
    FUNCTIONS[name]
    for name in ("equal", "less", "less_equal", "logical_and", "logical_or", "logical_not")
    + ("is_nan", "tanh", "erf", "floor", "uniform")
}


def guarded_axes(term: Term) -> dict[str, tuple[bool, bool]]:
    """For each axis whether the body vanishes below, above its range."""
    found: dict[str, tuple[bool, bool]] = {}
    for index, extent in guards(term.body):
        if len(index.terms) != 1 or isinstance(extent, Size):
            continue
        ((name, slope),) = index.terms
        if not isinstance(name, str) or name not in term.domain:
            continue
        start, stop = span(term.domain[name])
        before, after = slope * (start - 1), slope * stop
        if slope < 0:
            below = index.constant + before >= extent
            above = index.constant + after < 0
        else:
            below = index.constant + before < 0
            above = index.constant + after >= extent
        known = found.get(name, (False, False))
        found[name] = (known[0] or below, known[1] or above)
    return found


def needless(
    term: Term, vanish: dict[str, tuple[bool, bool]], solution: dict[str, Affine]
) -> set[Affine]:
    """The values of conditions (``value <= 0``) that the zero boundary takes care of."""
    found: set[Affine] = set()
    for name, (below, above) in vanish.items():
        if name in solution:
            start, stop = span(term.domain[name])
            if below:
                found.add(start - solution[name])
            if above:
                found.add(solution[name] - (stop - 1))
    return found
