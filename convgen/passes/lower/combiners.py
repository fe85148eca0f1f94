"""Reductions of formulas become combiners.

State dtypes: a component declared with a dtype has it. The others have the element's, except that
sums and products of integers are exact in 64 bits: where `combine` adds or multiplies, i32 and
narrower integers and bool accumulate in i64 (u32 too; u64 stays u64), and results have that dtype.
Extrema keep the element's dtype (bool becomes i64). Floats accumulate in their own dtype. Where a
body gives a float from integers (exp in logsumexp), all components without a dtype are floats, f32.
An infinite identity of integers is the least or the largest number of the element's dtype.
Positions that are only chosen between are kept in 32 bits beside elements of at most as many.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import sympy
from sympy import Expr as Body
from sympy import Symbol

from convgen.ir.nodes import Combiner, Const, Expr, Param
from convgen.ir.rounding import number_of
from convgen.passes.lower.bodies import BodyLowering, convert, number
from convgen.symbolic.expr import Result
from convgen.symbolic.functions import select
from convgen.symbolic.reductions import ELEMENT, POSITION, Reduction, left, right
from convgen.types import DType, bool_, i32, i64, promote, u64

# The placeholders of a reduction, as Results so that bodies over them have dtypes.
_PLACES = -1


def accumulator(reduction: Reduction, element: DType) -> DType:
    """The dtype of the state components that follow the element."""
    if element == bool_:
        return i64
    adds = any(body.has(sympy.Add, sympy.Mul) for body in reduction.combine)
    if element.is_integer and adds and element != u64:
        return i64
    return element


def lower_reduction(reduction: Reduction, element: DType, points: int | None = None) -> Combiner:
    """The combiner for elements of that dtype; its parameter v has the accumulator's dtype.
    points: how many elements there are at most, None where that is not known."""
    own = accumulator(reduction, element)
    kinds = [d or own for d in reduction.dtypes]
    for _ in kinds:  # a state that combines to a float is a float
        kinds = _widen(reduction, own, kinds)
    wide, kinds = kinds, _narrow(reduction, kinds, points)
    place, lowering = _environment(reduction, own, kinds)

    def emit(body: Body, dtype: DType) -> Expr:
        return lowering.emit(place(body), dtype)

    project: list[Expr] = []
    for body in reduction.project:
        dtype = lowering.type_of(place(body)) or kinds[0]
        narrowed = [w for i, w in enumerate(wide) if body == left(i)]
        project.append(emit(body, *(narrowed or [dtype])))
    return Combiner(
        reduction.name,
        tuple(kinds),
        tuple(emit(b, k) for b, k in zip(reduction.lift, kinds, strict=True)),
        tuple(emit(b, k) for b, k in zip(reduction.combine, kinds, strict=True)),
        tuple(
            _identity(b, k, element if d is None else d)
            for b, k, d in zip(reduction.identity, kinds, reduction.dtypes, strict=True)
        ),
        tuple(project),
        reduction.associative,
        reduction.commutative,
        join=tuple(emit(b, k) for b, k in zip(reduction.join, kinds, strict=False)),
    )


def _narrow(reduction: Reduction, kinds: list[DType], points: int | None) -> list[DType]:
    """The dtypes with positions in 32 bits, so that their vectors have as many lanes as those of
    the elements, where that holds every position and nothing is computed from them."""
    chosen = [_is_position(reduction, i) for i in range(reduction.width)]
    others = [k.bits for k, c in zip(kinds, chosen, strict=True) if not c]
    if points is None or points > 1 << 31 or max(others, default=64) > 32:
        return kinds
    return [i32 if c and k == i64 else k for k, c in zip(kinds, chosen, strict=True)]


def _is_position(reduction: Reduction, number: int) -> bool:
    """True for a component that is the position of one of the elements and decides nothing."""
    own = {left(number), right(number)}

    def is_choice(body: Body) -> bool:
        if isinstance(body, select):
            test, *either = body.args
            return not test.free_symbols & own and all(map(is_choice, either))
        return body in own

    others = [b for i, b in enumerate(reduction.combine) if i != number]
    used = any(b.free_symbols & own for b in others)
    plain = all(b == left(number) or not b.free_symbols & own for b in reduction.project)
    starts = reduction.lift[number] == POSITION and reduction.identity[number] == 0
    return starts and plain and not used and is_choice(reduction.combine[number])


def _widen(reduction: Reduction, own: DType, kinds: list[DType]) -> list[DType]:
    place, lowering = _environment(reduction, own, kinds)
    found: list[DType] = []
    for lift, combine, declared, kind in zip(
        reduction.lift, reduction.combine, reduction.dtypes, kinds, strict=True
    ):
        for body in (lift, combine):
            seen = lowering.type_of(place(body))
            if declared is None and seen is not None and seen.is_float:
                kind = promote(kind, seen)
        found.append(kind)
    floats = [k for k, d in zip(found, reduction.dtypes, strict=True) if d is None and k.is_float]
    if not floats:
        return found
    common = functools.reduce(promote, floats)
    return [k if d else promote(k, common) for k, d in zip(found, reduction.dtypes, strict=True)]


def _environment(
    reduction: Reduction, own: DType, kinds: list[DType]
) -> tuple[Callable[[Body], Body], BodyLowering]:
    """(placeholders become Results in a body, what lowers such a body)."""
    params: list[tuple[Symbol, Param]] = [
        (ELEMENT, Param("v", own)),
        (POSITION, Param("p", i64)),
    ]
    for i, kind in enumerate(kinds):
        params.append((left(i), Param(f"a{i}", kind)))
        params.append((right(i), Param(f"b{i}", kind)))
    order = sorted(range(len(params)), key=lambda i: params[i][1].name)
    symbols = {params[i][0]: Result(_PLACES, place) for place, i in enumerate(order)}
    results: dict[Result, Expr] = {symbols[symbol]: param for symbol, param in params}

    def place(body: Body) -> Body:
        placed: Any = body.xreplace(symbols)
        return placed

    return place, BodyLowering({}, {}, {}, results, in_reduce=True)


def _identity(body: Body, dtype: DType, element: DType) -> Const:
    """Integers have no infinities: there it is the least or the largest number."""
    value = number(body)
    assert value is not None, body
    if element == bool_ and body.is_infinite and dtype.is_integer:
        value = number_of(value, bool_)
    return Const(number_of(value, dtype), dtype)


def element_value(lowering: BodyLowering, body: Body, reduction: Reduction, weak: DType) -> Expr:
    """The element of a reduce: computed in the body's dtype (`weak` where only numbers occur),
    then converted to the accumulator's."""
    element = lowering.type_of(body) or (i64 if body.is_integer else weak)
    return convert(lowering.emit(body, element), accumulator(reduction, element))


def element_dtype(lowering: BodyLowering, body: Body, weak: DType) -> DType:
    """The dtype in which a reduce's body is computed."""
    return lowering.type_of(body) or (i64 if body.is_integer else weak)
