"""Reductions as Python closures, by their lift, combine, identity and project bodies."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sympy

from convgen.symbolic import functions as fn
from convgen.symbolic.evaluate_body import (
    Closure,
    Point,
    Scope,
    compile_body,
    omission_guards,
    row_major,
    walk_points,
)
from convgen.symbolic.expr import Reduce, body_dtype
from convgen.symbolic.reductions import ELEMENT, POSITION, REDUCTIONS, Reduction, left, right
from convgen.types import DType, f32, i64, u64

_FLOATING = (sympy.exp, sympy.log, sympy.tanh, sympy.erf, sympy.Pow, fn.sigmoid)
_SLOTS = {ELEMENT.name: 0, POSITION.name: 1}


def compile_reduce(reduce: Reduce, scope: Scope, first_slot: int) -> Callable[[Point], list[Any]]:
    """The closure that gives the results of a reduction at a point of the enclosing domain."""
    inner = scope.within(reduce.domain, first_slot)
    spans = scope.spans(reduce.domain)
    walk = walk_points(reduce.domain, scope, first_slot)
    body = compile_body(reduce.body, inner)
    guards = omission_guards(reduce.body, inner)
    join = _joiner(reduce.reduction, scope)
    if join is not None:
        (start,) = _identities(reduce.reduction, reduce.body, scope)

        def fold(p: Point) -> list[Any]:
            total = start
            for _ in walk(p):
                if guards and any(not 0 <= index(p) < extent for index, extent in guards):
                    continue
                total = join(total, body(p))
            return [total]

        return fold
    position = _position(spans, first_slot)
    return _general_reduce(reduce, scope, walk, body, guards, position)


def _identities(reduction: Reduction, body: sympy.Expr, scope: Scope) -> list[Any]:
    """The state of nothing. Integers have no infinities: there an infinite identity is the least
    or the largest number of the state's dtype."""
    element = body_dtype(body) or (i64 if body.is_integer else f32)
    every = (*reduction.lift, *reduction.combine)
    floating = element.is_float or any(part.has(*_FLOATING) for part in every)
    found: list[Any] = []
    for value, declared, combine in zip(
        reduction.identity, reduction.dtypes, reduction.combine, strict=True
    ):
        number = scope.arithmetic.constant(value)
        dtype = declared or element
        whole = not floating if declared is None else not declared.is_float
        if value.is_infinite and whole:
            adds = combine.has(sympy.Add, sympy.Mul)
            if declared is None and adds and dtype.kind != "bool" and dtype != u64:
                dtype = i64  # sums of integers have 64 bits
            number = _limit(dtype, value == sympy.oo)
        found.append(number)
    return found


def _limit(dtype: DType, largest: bool) -> int:
    if dtype.kind == "bool":
        return int(largest)
    if dtype.kind == "uint":
        return (1 << dtype.bits) - 1 if largest else 0
    return (1 << (dtype.bits - 1)) - 1 if largest else -(1 << (dtype.bits - 1))


def _joiner(reduction: Reduction, scope: Scope) -> Callable[[Any, Any], Any] | None:
    """The function of a reduction whose state is one element: the sum, the product, or an extremum
    (whose lifted numbers must follow the winner instead)."""
    a0, b0 = left(0), right(0)
    if reduction.lift != (ELEMENT,) or reduction.project != (a0,):
        return None
    if scope.lifted and reduction.companion:
        return None
    known: dict[Any, Callable[[Any, Any], Any]] = {
        a0 + b0: operator.add,
        a0 * b0: operator.mul,
        fn.maximum(a0, b0): scope.arithmetic.maximum,
        fn.minimum(a0, b0): scope.arithmetic.minimum,
    }
    return known.get(reduction.combine[0])


def _position(spans: Sequence[range], first_slot: int) -> Closure:
    strides = row_major([len(span) for span in spans])
    parts = [(first_slot + d, span.start, strides[d]) for d, span in enumerate(spans)]
    return lambda p: sum((p[slot] - lo) * stride for slot, lo, stride in parts)


def _general_reduce(
    reduce: Reduce,
    scope: Scope,
    walk: Callable[[Point], Iterator[None]],
    body: Closure,
    guards: Sequence[tuple[Closure, int]],
    position: Closure,
) -> Callable[[Point], list[Any]]:
    reduction = reduce.reduction
    companion = REDUCTIONS.get(reduction.companion)
    follow_winner = scope.lifted and companion is not None
    rule = companion if follow_winner and companion is not None else reduction
    width = rule.width
    names = Scope(scope.arithmetic, scope.sizes, {}, scope.lifted)
    names.slots = dict(_SLOTS)
    for i in range(width):
        names.slots[left(i).name] = 2 + i
        names.slots[right(i).name] = 2 + width + i
    lift, combine, project = (
        [compile_body(part, names) for part in parts]
        for parts in (rule.lift, rule.combine, rule.project)
    )
    identity = _identities(rule, reduce.body, scope)

    counts = any(part.has(POSITION) for part in rule.lift)

    def fold(p: Point) -> list[Any]:
        e: Point = [0, 0, *identity, *([0] * width)]
        for _ in walk(p):
            if guards and any(not 0 <= index(p) < extent for index, extent in guards):
                continue
            e[0] = body(p)
            e[1] = position(p) if counts else 0
            e[2 + width :] = [part(e) for part in lift]
            e[2 : 2 + width] = [part(e) for part in combine]
        results = [part(e) for part in project]
        return results[-1:] if follow_winner else results

    return fold
