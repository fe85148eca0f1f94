"""Sums of one term that is there or not, written as choices: select(i == j, dY[i], 0)."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import sympy
from sympy import Expr, Integer

from convgen.affine import Affine, Constraint
from convgen.errors import FormulaError
from convgen.symbolic.build import constraint_of
from convgen.symbolic.derive.scalar import exchange
from convgen.symbolic.expr import (
    Access,
    Definition,
    Domain,
    Range,
    Reduce,
    Result,
    Stage,
    accesses_of,
    affine_body,
    axes_of,
)
from convgen.symbolic.functions import equal, less_equal, logical_and, select
from convgen.symbolic.reductions import SUM


def choose_terms(stage: Stage) -> Stage:
    """The stage with a choice in the place of each definition's one sum of one term, whose axis
    serves for nothing but to have conditions (see pieces._value)."""
    return replace(stage, pieces=tuple(map(_chosen, stage.pieces)))


def sum_choices(stage: Stage) -> Stage:
    """The other way round, for the derivation: conditions on axes are equations to be solved."""
    return replace(stage, pieces=tuple(map(_summed, stage.pieces)))


def _summed(piece: Definition) -> Definition:
    if piece.reduces or len(piece.values) != 1:
        return piece
    (value,) = piece.values
    if not isinstance(value, select) or value.args[2] != 0 or value.args[0].atoms(Access):
        return piece
    try:
        constraints = constraint_of(value.args[0])
    except FormulaError:
        return piece
    name = next(n for n in itertools.accumulate("tttt", initial="t") if n not in piece.domain)
    domain = Domain((Range(name, 0, 1),), constraints)
    return Definition(piece.outs, piece.domain, (Reduce(domain, SUM, value.args[1]),), (Result(0),))


def _chosen(piece: Definition) -> Definition:
    if len(piece.reduces) != 1 or not _is_dummy(piece.reduces[0]):
        return piece
    (reduce,) = piece.reduces
    conditions = [_condition(c) for c in reduce.domain.constraints]
    choice = select(functools.reduce(logical_and, conditions), reduce.body, Integer(0))
    values = tuple(_inside(exchange(v, {Result(0): choice}), choice) for v in piece.values)
    return Definition(piece.outs, piece.domain, (), values)


def _inside(value: Expr, choice: Expr) -> Expr:
    """A number times a choice: a choice of the number times the term."""
    factor, rest = value.as_coeff_Mul()
    if rest != choice or factor == 1:
        return value
    condition, term, _ = choice.args
    return select(condition, factor * term, Integer(0))


def _is_dummy(reduce: Reduce) -> bool:
    if reduce.reduction.name != "sum" or len(reduce.domain.ranges) != 1:
        return False
    (axis,) = reduce.domain.ranges
    used = set(axes_of(reduce.body)).union(*(c.value.names() for c in reduce.domain.constraints))
    omits = any(b.name == "omit" for a in accesses_of(reduce.body) for b in a.boundary)
    return (
        axis.extent == 1 and axis.axis not in used and not omits and bool(reduce.domain.constraints)
    )


def _condition(constraint: Constraint) -> Expr:
    value = constraint.value
    if constraint.kind == "%":
        return equal(sympy.Mod(affine_body(value), constraint.modulus), Integer(0))
    left = Affine(tuple((a, f) for a, f in value.terms if f > 0), max(0, value.constant))
    right = left - value
    compare = equal if constraint.kind == "==" else less_equal
    return compare(affine_body(left), affine_body(right))
