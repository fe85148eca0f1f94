"""One piece of a stage becomes one nest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from convgen.affine import Affine, Constraint
from convgen.ir.nodes import Loop, Nest, Reduced, ReduceNode, StoreNode
from convgen.ir.regions import tighten
from convgen.ir.simplify import simplify_affine, simplify_guards
from convgen.passes.lower.bodies import BodyLowering
from convgen.passes.lower.combiners import element_dtype, element_value, lower_reduction
from convgen.symbolic.expr import (
    Access,
    Definition,
    Domain,
    Range,
    Reduce,
    Result,
    fixed,
    substitute,
)
from convgen.types import DType, f32

_RESERVED = frozenset({"begin", "end"})  # integer variables of every FLAT phase

Spans = dict[str, tuple[int, int]]


def lower_piece(name: str, piece: Definition, places: Mapping[str, int]) -> Nest | None:
    """The nest of a definition, or None when its domain has no points. `places` is the user's
    order of the program's tensors."""
    piece = _unique_axes(piece)
    box = tighten(piece.domain.bounds(), piece.domain.constraints)
    guards = simplify_guards(piece.domain.constraints, box)
    if guards is None or any(high <= low for low, high in box.values()):
        return None
    axis_places = {axis: i for i, axis in enumerate(_all_axes(piece))}
    weak = _weak_float(piece)
    ranges: Spans = dict(box)
    loops = [Loop(axis, high - low) for axis, (low, high) in box.items()]
    reduces: list[ReduceNode] = []
    results: dict[Result, Reduced] = {}
    for number, reduce in enumerate(piece.reduces):
        inner, left = _reduce_box(piece.domain, reduce, box)
        ranges.update(inner)
        loops += [Loop(axis, high - low, reduce=number) for axis, (low, high) in inner.items()]
        lowering = BodyLowering(places, axis_places, {**box, **inner}, in_reduce=True)
        element = element_dtype(lowering, reduce.body, weak)
        points = math.prod(fixed(r.extent, r.axis) for r in reduce.domain.ranges)
        combiner = lower_reduction(reduce.reduction, element, points)
        body = element_value(lowering, reduce.body, reduce.reduction, weak)
        reduces.append(ReduceNode(combiner, body, left, _position(reduce.domain)))
        for item, projected in enumerate(combiner.project):
            results[Result(number, item)] = Reduced(number, item, projected.dtype)
    lowering = BodyLowering(places, axis_places, box, results)
    stores = tuple(
        _store(lowering, out, value) for out, value in zip(piece.outs, piece.values, strict=True)
    )
    axes = tuple((axis, Affine.of(axis) + low) for axis, (low, _) in ranges.items())
    spans = tuple((axis, low, high) for axis, (low, high) in ranges.items())
    return Nest(name, tuple(loops), axes, spans, guards, tuple(reduces), stores)


def _store(lowering: BodyLowering, out: Access, value: object) -> StoreNode:
    index = tuple(i if i.is_plain else simplify_affine(i, lowering.ranges) for i in out.index)
    return StoreNode(out.tensor.name, index, lowering.emit(value, out.tensor.dtype))  # type: ignore[arg-type]


def _reduce_box(domain: Domain, reduce: Reduce, box: Spans) -> tuple[Spans, tuple[Constraint, ...]]:
    """(ranges of the reduce's axes, guards left). Facts of the outer domain help to shrink the
    ranges; guards that never hold leave an empty range."""
    own = reduce.domain.bounds()
    known = tighten({**box, **own}, reduce.domain.constraints + domain.constraints)
    inner = {axis: known[axis] for axis in own}
    if any(high <= low for low, high in known.values()):  # no point of the domain reduces anything
        inner = {axis: (low, low) for axis, (low, _) in own.items()} or inner
    guards = simplify_guards(reduce.domain.constraints, {**box, **inner})
    if guards is not None:
        return inner, guards
    if inner:
        return {axis: (low, low) for axis, (low, _) in inner.items()}, ()
    return inner, reduce.domain.constraints


def _position(domain: Domain) -> Affine:
    """The row-major position in the ranges as written (before any were shrunk)."""
    total = Affine()
    for r in domain.ranges:
        extent = fixed(r.extent, r.axis)
        total = total * extent + (Affine.of(r.axis) - r.lo)
    return total


def _weak_float(piece: Definition) -> DType:
    """The dtype of bodies that are fractions only."""
    kinds = [out.tensor.dtype for out in piece.outs]
    return next((k for k in kinds if k.is_float), f32)


def _all_axes(piece: Definition) -> tuple[str, ...]:
    return piece.domain.names + tuple(a for r in piece.reduces for a in r.domain.names)


def _unique_axes(piece: Definition) -> Definition:
    """The same with every axis named once: loops of one nest share a name space, in which the
    names of an axis's children (x_out, x_in, x_base) are kept free for splits."""
    taken = set(_RESERVED)
    taken |= {axis + child for axis in _all_axes(piece) for child in ("_out", "_in", "_base")}
    renamed: list[dict[str, str]] = []
    for domain in (piece.domain, *(r.domain for r in piece.reduces)):
        names: dict[str, str] = {}
        for axis in domain.names:
            names[axis] = _fresh(axis, taken)
            taken.add(names[axis])
        renamed.append(names)
    if all(old == new for names in renamed for old, new in names.items()):
        return piece
    outer = {old: Affine.of(new) for old, new in renamed[0].items()}
    reduces: list[Reduce] = []
    for reduce, names in zip(piece.reduces, renamed[1:], strict=True):
        values = {**outer, **{old: Affine.of(new) for old, new in names.items()}}
        reduces.append(
            replace(
                reduce,
                domain=_rename_domain(reduce.domain, values),
                body=substitute(reduce.body, values),
            )
        )
    return Definition(
        tuple(out.substitute(outer) for out in piece.outs),
        _rename_domain(piece.domain, outer),
        tuple(reduces),
        tuple(substitute(v, outer) for v in piece.values),
    )


def _rename_domain(domain: Domain, values: Mapping[str, Affine]) -> Domain:
    ranges = tuple(Range(values[r.axis].single or r.axis, r.lo, r.hi) for r in domain.ranges)
    return Domain(ranges, tuple(c.substitute(values) for c in domain.constraints))


def _fresh(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    stem, number = name.rstrip("'"), 2  # primes stand last in a name or not at all
    while f"{stem}_{number}" in taken:
        number += 1
    return f"{stem}_{number}"
