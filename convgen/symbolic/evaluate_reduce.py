"""Reductions as Python closures, by their lift, combine, identity and project bodies."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
from convgen.symbolic.expr import Reduce
from convgen.symbolic.reductions import ELEMENT, POSITION, REDUCTIONS, Reduction, left, right

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
        start = scope.arithmetic.constant(reduce.reduction.identity[0])

        def fold(p: Point) -> list[Any]:
            total = start
            for _ in walk(p):
                if guards and any(not 0 <= index(p) < extent for index, extent in guards):
                    continue
                total = join(total, body(p))
            return [total]

        return fold
    position = _position(spans, first_slot)
    return _general_reduce(reduce.reduction, scope, walk, body, guards, position)


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
    reduction: Reduction,
    scope: Scope,
    walk: Callable[[Point], Iterator[None]],
    body: Closure,
    guards: Sequence[tuple[Closure, int]],
    position: Closure,
) -> Callable[[Point], list[Any]]:
    companion = REDUCTIONS.get(reduction.companion)
    follow_winner = scope.lifted and companion is not None
    rule = companion if follow_winner and companion is not None else reduction
    width = rule.width
    names = Scope(scope.arithmetic, scope.sizes, {}, scope.lifted)
    names.slots = dict(_SLOTS)
    for i in range(width):
        names.slots[left(i).name] = 2 + i
        names.slots[right(i).name] = 2 + width + i
    lift, combine, identity, project = (
        [compile_body(part, names) for part in parts]
        for parts in (rule.lift, rule.combine, rule.identity, rule.project)
    )

    counts = any(part.has(POSITION) for part in rule.lift)

    def fold(p: Point) -> list[Any]:
        e: Point = [0, 0, *(part(p) for part in identity), *([0] * width)]
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
