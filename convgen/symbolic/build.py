"""From what a user wrote (bodies with sums inside) to definitions and stages.

Both doors of the language, dsl and parse, come through here, so both give equal programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
from sympy import Expr, Symbol

from convgen.affine import Affine, Constraint, Mod
from convgen.errors import FormulaError, ShapeError
from convgen.symbolic import functions, infer
from convgen.symbolic.conditions import refuse_bool
from convgen.symbolic.expr import (
    Access,
    Axis,
    Definition,
    Domain,
    Extent,
    Range,
    Reduce,
    Reduced,
    Result,
    Size,
    Stage,
    Tensor,
    accesses_of,
    affine_of,
    axes_of,
    body_dtype,
)
from convgen.symbolic.functions import FUNCTIONS, TRUTHS, truth
from convgen.symbolic.reductions import ARGMAX, ARGMIN, PROD, SUM, left
from convgen.types import DType, bool_, f32

# The value of an extremum is result 1 of the reduction that also finds its position.
WITH_POSITION = {"max": ARGMAX, "min": ARGMIN}


@dataclass(frozen=True)
class Out:
    """One left side: the tensor's name, the indices written, and the tensor if it was declared."""

    name: str
    index: tuple[Affine, ...]
    shape: tuple[Extent, ...] | None = None
    dtype: DType | None = None


# ---------------------------------------------------------------------------------------------
# Bodies


def clean_body(value: Any) -> Expr:
    """A body in normal form: exact rationals instead of floats (by their shortest decimal, so 0.1
    is 1/10), own classes instead of sympy's (`functions.normalize`), comparisons as functions."""
    if isinstance(value, str):
        raise FormulaError(f"a body is an expression, not the text {value!r}", hint="cg.parse")
    if isinstance(value, bool):
        refuse_bool(value)
    try:
        body: Any = sympy.sympify(value, strict=True)
    except sympy.SympifyError as error:
        raise FormulaError(
            f"a body cannot hold {value!r}", expected="an expression of accesses, axes, numbers"
        ) from error
    body = body.xreplace({t: truth(t) for t in body.atoms(*TRUTHS)})
    if not isinstance(body, Expr):
        raise FormulaError(f"a body cannot hold {body}", expected="an expression")
    body = functions.normalize(functions.exact_floats(body))
    for node in sympy.preorder_traversal(body):
        if not isinstance(node, KINDS):
            raise FormulaError(
                f"{node} is not in the language of formulas",
                expected="numbers, axes, accesses, + - * / **, and " + " ".join(FUNCTIONS),
            )
    if body.has(sympy.zoo):
        raise FormulaError("division by zero in a formula", got=str(value))
    return body


# What bodies are made of.
KINDS: tuple[Any, ...] = (
    sympy.Add, sympy.Mul, sympy.Pow, sympy.Number, sympy.NumberSymbol, Symbol, sympy.Mod,
    sympy.core.numbers.ComplexInfinity, Access, Reduced,
    *(f for f in FUNCTIONS.values() if isinstance(f, type)),
)  # fmt: skip


def constraint_of(value: Any) -> tuple[Constraint, ...]:
    """Constraints from a comparison of affine expressions: ``i <= j``, ``cg.equal(h % 2, 0)``."""
    if isinstance(value, Constraint):
        return (value,)
    if isinstance(value, bool):
        raise FormulaError(
            f"{value} is not a condition on axes: == and != compare how expressions are written",
            expected="comparisons of affine expressions: i <= j, cg.equal(h % 2, 0)",
            got=str(value),
            hint="cg.equal(a, b) for a == b; for a != b the sum over a < b and that over a > b",
        )
    if isinstance(value, TRUTHS):
        value = truth(value)
    if value in (sympy.true, sympy.S.One):
        return ()
    if isinstance(value, functions.logical_and):
        return constraint_of(value.args[0]) + constraint_of(value.args[1])
    if isinstance(value, functions.less):
        return (Constraint("<=", affine_of(value.args[0]) - affine_of(value.args[1]) + 1),)
    if isinstance(value, functions.less_equal):
        return (Constraint("<=", affine_of(value.args[0]) - affine_of(value.args[1])),)
    if isinstance(value, functions.equal):
        difference = affine_of(value.args[0]) - affine_of(value.args[1])
        if len(difference.terms) == 1:
            atom, factor = difference.terms[0]
            if isinstance(atom, Mod) and factor == 1 and -atom.divisor < difference.constant <= 0:
                return (Constraint("%", atom.value + difference.constant, atom.divisor),)
        return (Constraint("==", difference),)
    raise FormulaError(
        f"{value!r} is not a condition on axes",
        expected="comparisons of affine expressions: cg.less_equal(i, j), cg.equal(h % 2, 0)",
    )


def _check_names(body: Expr, axes: Iterable[str], what: str) -> None:
    """Every axis is in scope and no other symbol occurs."""
    known = set(axes)
    for name in sorted(axes_of(body) - known):
        raise FormulaError(
            f"undefined index {name} in {what}",
            expected="an axis of the left side or of a sum",
            got=name,
            hint=f"sum({name}: ...), or {name} on the left",
        )
    dtypes = {c.args[1] for c in body.atoms(functions.cast)}
    for symbol in sorted(body.free_symbols - dtypes, key=str):
        if isinstance(symbol, Symbol) and not isinstance(symbol, (Axis, Size, Result)):
            raise FormulaError(f"undefined name {symbol} in {what}", expected="axes and tensors")


# ---------------------------------------------------------------------------------------------
# Definitions


def build_definition(
    outs: Sequence[Out],
    values: Sequence[Any],
    extents: Mapping[str, tuple[int, Extent]] | None = None,
    where: Sequence[Constraint] = (),
) -> Definition:
    """The definition of what was written. Tensors of the result have role output.

    Raises FormulaError for undefined or shadowed indices and nested sums, ShapeError for extents.
    """
    if len(outs) != len(values):
        raise FormulaError(
            "left and right side differ", expected=f"{len(outs)} bodies", got=str(len(values))
        )
    bodies = [clean_body(v) for v in values]
    names: list[str] = []
    for out in outs:
        for index in out.index:
            names += [n for n in sorted(index.names()) if n not in names]
    given = dict(extents or {})
    reduced = _collect(bodies)
    _check_scopes(outs, names, bodies, list(reduced.values()), where)
    kinds = list(dict.fromkeys(reduced.values()))
    spans = _infer_all(outs, names, bodies, kinds, given, bool(where))
    reduces = [
        Reduce(Domain(infer.ranges_of(k.axes, j, spans), k.where), k.reduction, k.body)
        for j, k in enumerate(kinds)
    ]
    order = sorted(range(len(kinds)), key=lambda j: _reduce_key(reduces[j]))
    place = {kinds[j]: p for p, j in enumerate(order)}
    results: dict[Expr, Expr] = {r: Result(place[k], _item(r, k)) for r, k in reduced.items()}
    domain = Domain(infer.ranges_of(names, -1, spans), tuple(where))
    final: tuple[Any, ...] = tuple(b.xreplace(results) for b in bodies)
    ordered = tuple(reduces[j] for j in order)
    dtypes = result_dtypes(ordered)
    accesses = tuple(
        Access(_out_tensor(o, domain, body_dtype(v, dtypes)), o.index)
        for o, v in zip(outs, final, strict=True)
    )
    return Definition(accesses, domain, ordered, final)


def _item(written: Reduced, kind: Reduced) -> int:
    return written.item if written.reduction.name == kind.reduction.name else 1


def _reduce_key(reduce: Reduce) -> tuple[str, str, str]:
    return (reduce.reduction.name, str(reduce.domain), str(reduce.body))


def canonical(definition: Definition) -> Definition:
    """The definition in the order in which the text form is read back: axes as they occur on the
    left, each reduce once, sorted, unused ones dropped. The same object where it is so already."""
    names: list[str] = []
    for out in definition.outs:
        for index in out.index:
            names += [n for n in sorted(index.names()) if n not in names]
    domain = definition.domain
    if domain.names != tuple(names) and set(names) == set(domain.names):
        domain = Domain(tuple(domain[n] for n in names), domain.constraints)
    used = {r.reduce for v in definition.values for r in v.atoms(Result)}
    reduces = definition.reduces
    first = [reduces.index(r) for r in reduces]
    kept = sorted({first[j] for j in used}, key=lambda j: _reduce_key(reduces[j]))
    if kept == list(range(len(reduces))):
        if domain is definition.domain:
            return definition
        return replace(definition, domain=domain)
    place = {j: kept.index(first[j]) for j in used}
    results = {
        r: Result(place[r.reduce], r.item) for v in definition.values for r in v.atoms(Result)
    }
    values: tuple[Any, ...] = tuple(v.xreplace(results) for v in definition.values)
    return Definition(definition.outs, domain, tuple(reduces[j] for j in kept), values)


def _collect(bodies: Sequence[Expr]) -> dict[Reduced, Reduced]:
    """Each sum in the bodies -> the sum (of item 0) that computes it; extremum and position of the
    same elements share one."""
    kinds: dict[Reduced, Reduced] = {}
    for body in bodies:
        for written in sorted(body.atoms(Reduced), key=str):
            inner = clean_body(written.body)
            if inner.atoms(Reduced):
                raise FormulaError(
                    f"a sum inside a sum: {written}",
                    hint="define the inner one first and read it: M = define(...), then M[...]",
                )
            if body_dtype(inner) == bool_ and written.reduction in (SUM, PROD):
                inner = functions.cast(inner, "i64")
            kinds[written] = Reduced(
                written.reduction, written.axes, inner, written.where, written.extents
            )
    for written, kind in kinds.items():
        partner = WITH_POSITION.get(kind.reduction.name)
        if partner is not None:
            candidate = Reduced(partner, kind.axes, kind.body, kind.where, kind.extents)
            if candidate in kinds.values():
                kinds[written] = candidate
    for body in bodies:
        for access in accesses_of(body):
            if any(b.value is not None and b.value.atoms(Reduced) for b in access.boundary):
                raise FormulaError(f"a sum inside a boundary: {access}", hint="a stage of its own")
    return kinds


def _check_scopes(
    outs: Sequence[Out],
    names: Sequence[str],
    bodies: Sequence[Expr],
    kinds: Sequence[Reduced],
    where: Sequence[Constraint],
) -> None:
    title = ", ".join(f"{o.name}[{', '.join(map(str, o.index))}]" for o in outs)
    for kind in kinds:
        if not kind.axes:
            raise FormulaError(
                f"a sum over no axis in {title}: {kind}", expected="at least one axis"
            )
        if len(set(kind.axes)) != len(kind.axes):
            raise FormulaError(f"an axis is summed twice in {title}: {kind}")
        taken = sorted(set(kind.axes) & set(names))
        if taken:
            raise FormulaError(
                f"index {taken[0]} is both on the left of {title} and summed over",
                hint=f"another name for the axis of the sum, or {title} without {taken[0]}",
            )
        scope = [*names, *kind.axes]
        _check_names(kind.body, scope, title)
        for c in kind.where:
            _check_names(sympy.Add(*map(Axis, sorted(c.value.names()))), scope, title)
    for body in bodies:
        _check_names(body, names, title)
    for c in where:
        _check_names(sympy.Add(*map(Axis, sorted(c.value.names()))), names, title)


def _infer_all(
    outs: Sequence[Out],
    names: Sequence[str],
    bodies: Sequence[Expr],
    kinds: Sequence[Reduced],
    given: Mapping[str, tuple[int, Extent]],
    cut: bool,
) -> dict[infer.Key, infer.Span]:
    spans: dict[infer.Key, infer.Span] = {(-1, n): given[n] for n in names if n in given}
    axes: list[infer.Key] = [(-1, n) for n in names]
    known = set(names)
    for j, kind in enumerate(kinds):
        own = {r.axis: (r.lo, r.hi) for r in kind.extents}
        for name in kind.axes:
            axes.append((j, name))
            known.add(name)
            if name in own or name in given:
                spans[j, name] = own[name] if name in own else given[name]
    for name in given:
        if name not in known:
            raise FormulaError(
                f"an extent is given for {name}, which is no axis of the formula",
                expected="one of " + ", ".join(sorted(known)),
            )
    ask = question(outs, bodies, [(k.axes, k.body) for k in kinds], axes, spans)
    found = infer.infer(ask)
    if not cut and not any(k.where for k in kinds):
        infer.check_reach(ask, found)
    return found


def question(
    outs: Sequence[Out],
    values: Sequence[Expr],
    reduces: Sequence[tuple[Sequence[str], Expr]],
    axes: Sequence[infer.Key],
    given: Mapping[infer.Key, infer.Span],
) -> infer.Question:
    """What a definition asks `infer`: declared outputs bound their axes like accesses do."""
    uses: list[infer.Use] = []
    for out in outs:
        if out.shape is not None:
            if len(out.index) != len(out.shape):
                raise ShapeError(
                    f"{out.name} has {len(out.shape)} dimensions",
                    expected=f"{len(out.shape)} indices",
                    got=str(len(out.index)),
                )
            left = Access(Tensor(out.name, out.shape), out.index)
            uses += infer.access_uses(left, written=True)
    for value in values:
        uses += infer.uses_of(value, -1, ())
    for j, (own, body) in enumerate(reduces):
        uses += infer.uses_of(body, j, own)
    return infer.Question(tuple(uses), tuple(axes), dict(given))


def result_dtypes(reduces: Sequence[Reduce]) -> dict[Result, DType]:
    """The dtype of each result of each reduce."""
    found: dict[Result, DType] = {}
    body: Any
    for j, reduce in enumerate(reduces):
        element = body_dtype(reduce.body) or f32
        state: dict[Any, Any] = {}
        for i, dtype in enumerate(reduce.reduction.dtypes):
            state[left(i)] = Result(j, -1 - i)
            found[Result(j, -1 - i)] = dtype or element
        for item, body in enumerate(reduce.reduction.project):
            found[Result(j, item)] = body_dtype(body.xreplace(state), found) or element
    return found


def _out_tensor(out: Out, domain: Domain, dtype: DType | None) -> Tensor:
    shape = out.shape if out.shape is not None else written_shape(out.index, domain)
    return Tensor(out.name, shape, out.dtype or dtype or f32, "output")


def written_shape(index: Sequence[Affine], domain: Domain) -> tuple[Extent, ...]:
    """The shape that a definition reaches: the largest index plus one in each dimension."""
    shape: list[Extent] = []
    for i in index:
        if i.single is not None:
            shape.append(domain[i.single].hi)
            continue
        ranges: dict[str, tuple[int, int]] = {}
        for name in i.names():
            r = domain[name]
            if isinstance(r.hi, Size):
                raise ShapeError(
                    f"index {i} of an output mixes the axis {name} of symbolic extent {r.hi}",
                    expected="a plain axis over a symbolic extent",
                )
            ranges[name] = (r.lo, r.hi)
        empty = any(hi <= lo for lo, hi in ranges.values())
        shape.append(0 if empty else max(0, i.bounds(ranges)[1] + 1))
    return tuple(shape)


def join_pieces(definitions: Sequence[Definition]) -> Stage:
    """The stage of pieces that write the same tensors: the largest of their shapes in each
    dimension, the dtype they agree on (a piece of plain numbers agrees with any)."""
    tensors: dict[str, Tensor] = {}
    for i, out in enumerate(definitions[0].outs):
        name = out.tensor.name
        parts = [d.outs[i].tensor for d in definitions]
        dtypes = {
            d.outs[i].tensor.dtype
            for d in definitions
            if body_dtype(d.values[i], result_dtypes(d.reduces)) is not None
        } or {parts[0].dtype}
        if len(dtypes) > 1 or len({t.rank for t in parts}) > 1:
            raise ShapeError(
                f"pieces of {name} differ",
                expected="one dtype and rank",
                got=", ".join(map(str, parts)),
                hint=f"a dtype for {name}",
            )
        shape: list[Extent] = []
        for extents in zip(*(t.shape for t in parts), strict=True):
            if len(set(extents)) > 1 and any(isinstance(e, Size) for e in extents):
                raise ShapeError(f"pieces of {name} differ", got=", ".join(map(str, extents)))
            largest = extents[0] if isinstance(extents[0], Size) else max(extents)  # type: ignore[type-var]
            shape.append(largest)
        tensors[name] = Tensor(name, tuple(shape), dtypes.pop(), "output")
    return retarget(Stage(tuple(tensors.values()), tuple(definitions)), tensors)


# ---------------------------------------------------------------------------------------------
# Stages


def map_definition(
    definition: Definition,
    body: Callable[[Expr], Expr],
    out: Callable[[Access], Access],
    extent: Callable[[Extent], Extent] = lambda e: e,
) -> Definition:
    """The definition with functions applied to its bodies, outs and extents."""

    def domain(d: Domain) -> Domain:
        return Domain(tuple(Range(r.axis, r.lo, extent(r.hi)) for r in d.ranges), d.constraints)

    return Definition(
        tuple(out(o) for o in definition.outs),
        domain(definition.domain),
        tuple(replace(r, domain=domain(r.domain), body=body(r.body)) for r in definition.reduces),
        tuple(body(v) for v in definition.values),
    )


def retarget(stage: Stage, tensors: Mapping[str, Tensor]) -> Stage:
    """The stage with every access of a name in `tensors` made an access of that tensor."""

    def access(a: Access) -> Access:
        wanted = tensors.get(a.tensor.name, a.tensor)
        kinds = tuple(k if k.value is None else replace(k, value=body(k.value)) for k in a.boundary)
        if wanted == a.tensor and wanted.source is a.tensor.source and kinds == a.boundary:
            return a
        return Access(wanted, a.index, kinds)

    def body(b: Expr) -> Any:
        changed = {a: access(a) for a in b.atoms(Access)}
        return b.xreplace({a: to for a, to in changed.items() if to is not a})

    pieces = tuple(map_definition(p, body, access) for p in stage.pieces)
    return Stage(tuple(tensors.get(t.name, t) for t in stage.tensors), pieces, stage.backward)
