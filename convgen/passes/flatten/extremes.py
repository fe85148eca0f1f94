"""Extremes of floats without a test for NaN at every element.

On x86 the maximum of two numbers is one instruction that loses a NaN in one of its operands; to
put it back costs a compare and a select. A second state watches instead: it adds up the squares
of all elements, from 1, which gives NaN just where an element is NaN (squares have no sign, so
infinities cannot cancel). That is one multiply-add, on ports that the maximum leaves free.

Where the position of an extreme is kept too, "less or NaN" would be two compares and an `or`. The
state is kept where the element is at most the state, a NaN in the state taken for infinity: the
minimum of a number and infinity is one instruction that does just that, and one compare follows.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from convgen.ir.nodes import Combiner, Const, Expr, Op, Param
from convgen.ir.visit import map_expr
from convgen.target import Target
from convgen.types import bool_


def watched(combiner: Combiner, target: Target) -> Combiner:
    """The combiner with a state that watches for NaN, if it is a plain maximum or minimum of floats
    and the target gains by it; with one compare for "less or NaN", if it asks that."""
    name = _extreme(combiner)
    if target.isa != "x86-64":
        return combiner
    if not name or not target.has_fma:
        return _one_compare(combiner)
    dtype = combiner.dtypes[0]
    element, best, sums = Param("v", dtype), Param("a0", dtype), Param("a1", dtype)
    other = Param("b0", dtype)

    def better(new: Expr) -> Expr:
        pair = (best, new) if name == "max" else (new, best)
        return Op("select", (Op("lt", pair, bool_), new, best), dtype)

    return replace(
        combiner,
        dtypes=(dtype, dtype),
        lift=(element, Op("fma", (element, element, Const(1.0, dtype)), dtype)),
        combine=(better(other), Op("add", (sums, Param("b1", dtype)), dtype)),
        identity=(*combiner.identity, Const(1.0, dtype)),
        project=(Op("select", (Op("is_nan", (sums,), bool_), sums, best), dtype),),
        step=(better(element), Op("fma", (element, element, sums), dtype)),
    )


def _one_compare(combiner: Combiner) -> Combiner:
    """The combiner with other operations for the same choices: see above."""
    combine = tuple(map_expr(body, _kept) for body in combiner.combine)
    same = all(a is b for a, b in zip(combine, combiner.combine, strict=True))
    return combiner if same else replace(combiner, combine=combine)


def _kept(expr: Expr) -> Expr:
    """`yes if less or is_nan(new) else no` as `no if new <= state else yes`, or with >= for the
    least; other expressions as they are."""
    match expr:
        case Op(
            "select",
            (Op("or", (Op("lt", (low, high)), Op("is_nan", (new,)))), yes, no),
        ) if new in (low, high) and low.dtype.is_float:
            state, end = (low, inf) if new == high else (high, -inf)
            limit = Const(end, new.dtype)
            inside = (state, limit) if new == high else (limit, state)
            bound = Op("select", (Op("lt", inside, bool_), state, limit), new.dtype)
            kept = Op("le", (new, bound) if new == high else (bound, new), bool_)
            return replace(expr, args=(kept, no, yes))
        case _:
            return expr


def is_choice(combiner: Combiner) -> bool:
    """True where the combination of two states of several components is one of the two: nothing is
    rounded, so elements may be combined with their neighbours first."""
    numbered = enumerate(combiner.combine)
    return (
        len(combiner.dtypes) > 1
        and combiner.associative
        and all(_chooses(body, {f"a{i}", f"b{i}"}) for i, body in numbered)
    )


def _chooses(body: Expr, names: set[str]) -> bool:
    if isinstance(body, Op):
        return body.name == "select" and all(_chooses(one, names) for one in body.args[1:])
    return isinstance(body, Param) and body.name in names


def _extreme(combiner: Combiner) -> str:
    """max or min where that is all the combiner does, on floats; else nothing."""
    combine = combiner.combine[0]
    plain = (
        len(combiner.dtypes) == 1
        and combiner.dtypes[0].is_float
        and isinstance(combine, Op)
        and combine.name in ("max", "min")
        and {a.name for a in combine.args if isinstance(a, Param)} == {"a0", "b0"}
        and combiner.lift == (Param("v", combiner.dtypes[0]),)
        and combiner.project == (Param("a0", combiner.dtypes[0]),)
    )
    return combine.name if plain and isinstance(combine, Op) else ""
