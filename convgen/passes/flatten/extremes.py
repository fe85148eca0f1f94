"""Extremes of floats without a test for NaN at every element.

On x86 the maximum of two numbers is one instruction that loses a NaN in one of its operands; to
put it back costs a compare and a select. A second state watches instead: it adds up the squares
of all elements, from 1, which gives NaN just where an element is NaN (squares have no sign, so
infinities cannot cancel). That is one multiply-add, on ports that the maximum leaves free.
"""

from __future__ import annotations

from dataclasses import replace

from convgen.ir.nodes import Combiner, Const, Expr, Op, Param
from convgen.target import Target
from convgen.types import bool_


def watched(combiner: Combiner, target: Target) -> Combiner:
    """The combiner with a state that watches for NaN, if it is a plain maximum or minimum of floats
    and the target gains by it; else the combiner as it is."""
    name = _extreme(combiner)
    if not name or target.isa != "x86-64" or not target.has_fma:
        return combiner
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
