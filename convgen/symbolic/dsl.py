"""The language as Python: axes, tensors, sums, definitions, and their composition.

>>> n, k, c = axes("n k c")
>>> X, W = tensor("X", (8, 3)), tensor("W", (4, 3))
>>> print(define("Y", [n, k], sum_over(c, X[n, c] * W[k, c])))
program Y
tensor X: f32[8, 3]
tensor W: f32[4, 3]
Y[n, k] = sum(c: X[n, c] * W[k, c])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

from sympy import Expr, Symbol

from convgen.affine import Constraint
from convgen.errors import FormulaError, ShapeError
from convgen.symbolic import reductions
from convgen.symbolic.assemble import assemble, register
from convgen.symbolic.build import Out, build_definition, constraint_of, join_pieces
from convgen.symbolic.expr import (
    ROLES,
    Axis,
    Definition,
    Extent,
    Range,
    Reduced,
    Role,
    Size,
    Stage,
    Tensor,
    affine_of,
    axes,
)
from convgen.symbolic.program import Program, require_program
from convgen.symbolic.reductions import Reduction
from convgen.types import DType, dtype_of

__all__ = [
    "OwnReduction",
    "argmax_over",
    "argmin_over",
    "axes",
    "combine",
    "define",
    "logsumexp_over",
    "max_over",
    "min_over",
    "pieces",
    "prod_over",
    "reduction",
    "size",
    "sum_over",
    "tensor",
]

Span: TypeAlias = "int | Size | str | tuple[int, int | Size | str]"
Extents: TypeAlias = "Mapping[Axis, Span] | Mapping[str, Span]"


def size(name: str) -> Size:
    """A named extent that is bound later: ``tensor("X", (size("N"), 3))``; `Program.bind`."""
    return Size(name)


def tensor(
    name: str,
    shape: Sequence[int | Size | str] | int,
    dtype: DType | str = "f32",
    role: Role = "input",
    values: Any = None,
) -> Tensor:
    """A tensor that formulas read. shape: integers, `size`s, or names of sizes, row-major.

    values: nested lists (or a flat list) of exact numbers make it a constant; floats count as the
    exact rational they are. Raises FormulaError for name, role and dtype, ShapeError for extents.

    >>> print(tensor("W", (2, "N"), "f64"))
    W: f64[2, N]
    """
    if role not in ROLES:
        raise FormulaError(f"role {role!r} of {name}", expected="one of " + " ".join(ROLES))
    extents = _shape(name, shape)
    if values is None:
        return register(Tensor(name, extents, dtype_of(dtype), role))
    flat = tuple(_numbers(name, values))
    return register(Tensor(name, extents, dtype_of(dtype), "constant", flat))


def _shape(name: str, shape: Any) -> tuple[Extent, ...]:
    if not isinstance(shape, (int, Size, str, Iterable)):
        raise ShapeError(f"shape of {name}", expected="integers or sizes", got=repr(shape))
    items: Any = (shape,) if isinstance(shape, (int, Size, str)) else shape
    return tuple(_extent(name, e) for e in items)


def _extent(name: str, value: Any) -> Extent:
    if isinstance(value, str):
        return Size(value)
    if isinstance(value, Size):
        return value
    number = _whole(value)
    if number is None or number < 0:
        raise ShapeError(
            f"tensor {name}: extent {value!r}", expected="integers >= 0 or a size", got=repr(value)
        )
    return number


def _whole(value: Any) -> int | None:
    """The integer that a number of any kind is; None for what is none."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number == value and not isinstance(value, bool) else None


def _numbers(name: str, values: Any) -> Iterable[Fraction]:
    if isinstance(values, (list, tuple)):
        for item in values:  # pyright: ignore[reportUnknownVariableType]
            yield from _numbers(name, item)
        return
    if isinstance(values, Expr) and values.is_Rational:
        yield Fraction(int(values.p), int(values.q))  # type: ignore[attr-defined]
        return
    try:
        number: Any = values
        yield Fraction(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise FormulaError(
            f"constant {name} holds {values!r}", expected="finite exact numbers"
        ) from error


# ---------------------------------------------------------------------------------------------
# Reductions


def _over(
    kind: Reduction,
    over: Axis | Sequence[Axis],
    body: Any,
    where: Any,
    extents: Extents | None,
    item: int = 0,
) -> Expr:
    if isinstance(body, str):
        raise FormulaError(f"a body is an expression, not the text {body!r}", hint="cg.parse")
    if not isinstance(over, (Symbol, Iterable)):
        raise FormulaError(f"{over!r} is not an axis", expected="axes made by cg.axes")
    names = [over] if isinstance(over, Symbol) else list(over)
    for axis in names:
        if not isinstance(axis, Axis):
            raise FormulaError(f"{axis!r} is not an axis", expected="axes made by cg.axes")
    ranges = tuple(Range(a, lo, hi) for a, (lo, hi) in _spans(extents).items())
    known = [a.name for a in names]
    for r in ranges:
        if r.axis not in known:
            raise FormulaError(f"an extent is given for {r.axis}, which is not summed over")
    ranges = tuple(sorted(ranges, key=lambda r: known.index(r.axis)))
    return Reduced(kind, names, body, _conditions(where), ranges, item)


def _conditions(where: Any) -> tuple[Constraint, ...]:
    items = where if isinstance(where, (tuple, list)) else (where,)
    return tuple(c for item in items for c in constraint_of(item))


def _spans(extents: Extents | None) -> dict[str, tuple[int, Extent]]:
    found: dict[str, tuple[int, Extent]] = {}
    if extents is not None and not isinstance(extents, Mapping):
        raise ShapeError("extents=", expected="a dictionary {axis: extent}", got=repr(extents))
    for axis, span in (extents or {}).items():
        name = axis if isinstance(axis, str) else axis.name
        bounds: Any = span if isinstance(span, tuple) else (0, span)
        if len(bounds) == 2 and isinstance(bounds[1], (str, Size)):
            found[name] = (0, _extent(name, bounds[1]))
            continue
        lo, hi = map(_whole, bounds if len(bounds) == 2 else (None, None))
        if lo is None or hi is None or hi < lo:
            raise ShapeError(
                f"extent of {name}", expected="an integer >= 0 or (lo, hi)", got=repr(span)
            )
        found[name] = (lo, hi)
    return found


def sum_over(
    axes: Axis | Sequence[Axis], body: Any, where: Any = (), extents: Extents | None = None
) -> Expr:
    """The sum of body over the axes (0 over nothing).

    where: conditions that cut the domain, comparisons of affine expressions such as ``i <= j`` or
    ``cg.equal(h % 2, 0)``; extents: {axis: extent} or {axis: (lo, hi)} where shapes do not tell.
    """
    return _over(reductions.SUM, axes, body, where, extents)


def prod_over(
    axes: Axis | Sequence[Axis], body: Any, where: Any = (), extents: Extents | None = None
) -> Expr:
    """The product of body over the axes (1 over nothing). Arguments as in `sum_over`."""
    return _over(reductions.PROD, axes, body, where, extents)


def max_over(
    axes: Axis | Sequence[Axis], body: Any, where: Any = (), extents: Extents | None = None
) -> Expr:
    """The largest body over the axes (-inf over nothing; NaN if any is). As `sum_over`."""
    return _over(reductions.MAX, axes, body, where, extents)


def min_over(
    axes: Axis | Sequence[Axis], body: Any, where: Any = (), extents: Extents | None = None
) -> Expr:
    """The smallest body over the axes (inf over nothing; NaN if any is). As `sum_over`."""
    return _over(reductions.MIN, axes, body, where, extents)


def logsumexp_over(
    axes: Axis | Sequence[Axis], body: Any, where: Any = (), extents: Extents | None = None
) -> Expr:
    """log of the sum of exp(body), without overflow (-inf over nothing). As `sum_over`."""
    return _over(reductions.LOGSUMEXP, axes, body, where, extents)


def argmax_over(
    axes: Axis | Sequence[Axis], body: Any, where: Any = (), extents: Extents | None = None
) -> Expr:
    """The row-major position of the first largest body (i64; 0 over nothing). As `sum_over`.

    Together with `max_over` of the same body in one define, both come from one reduction.
    """
    return _over(reductions.ARGMAX, axes, body, where, extents)


def argmin_over(
    axes: Axis | Sequence[Axis], body: Any, where: Any = (), extents: Extents | None = None
) -> Expr:
    """The row-major position of the first smallest body (i64; 0 over nothing). As `sum_over`."""
    return _over(reductions.ARGMIN, axes, body, where, extents)


@dataclass(frozen=True)
class OwnReduction:
    """A reduction of the user's, ready for bodies: ``red.over([r, s], body)``."""

    reduction: Reduction

    def over(
        self,
        axes: Axis | Sequence[Axis],
        body: Any,
        where: Any = (),
        extents: Extents | None = None,
        item: int = 0,
    ) -> Expr:
        """Result number `item` of the reduction of body over the axes. As `sum_over`."""
        if not 0 <= item < len(self.reduction.project):
            raise FormulaError(
                f"reduction {self.reduction.name} has {len(self.reduction.project)} results",
                got=f"item {item}",
            )
        return _over(self.reduction, axes, body, where, extents, item)


def reduction(
    name: str,
    lift: Callable[..., Any] | Sequence[Any] | None = None,
    combine: Callable[..., Any] | Sequence[Any] | None = None,
    identity: Any = 0,
    project: Callable[..., Any] | Sequence[Any] | None = None,
    adjoint: Callable[..., Any] | Expr | None = None,
    *,
    dtypes: Sequence[DType | None] | None = None,
    commutative: bool = True,
) -> OwnReduction:
    """An own reduction; the arguments are those of `convgen.symbolic.reductions.reduction`.

    >>> (r,) = axes("r")
    >>> norm = reduction("norm", lift=lambda v: v * v, combine=lambda a, b: a + b,
    ...                  project=lambda a: a**2)
    >>> print(define("Y", [], norm.over(r, tensor("X", (3,))[r])))
    program Y
    reduction norm(lift = v**2, combine = a0 + b0, identity = 0, project = a0**2)
    tensor X: f32[3]
    Y[] = norm(r: X[r])
    """
    return OwnReduction(
        reductions.reduction(
            name, lift, combine, identity, project, adjoint, dtypes=dtypes, commutative=commutative
        )
    )


# ---------------------------------------------------------------------------------------------
# Definitions and their composition


def define(
    out: str | Sequence[tuple[str, Sequence[Any]]],
    index: Any = None,
    body: Any = None,
    extents: Extents | None = None,
    shape: Any = None,
    dtype: Any = None,
    name: str | None = None,
    where: Any = (),
) -> Program:
    """The Program that writes ``out[index] = body``. Reading an output of another Program in the
    body makes its stages part of this one.

    Several outputs: ``define([("Y", [n, y]), ("I", [n, y])], (body, body))``; shape and dtype are
    then one for each (a list), or None. An index may be an expression (2*u + 1): the Program is
    then one piece, see `pieces`. where: conditions on the axes of the left side.

    Raises FormulaError (undefined index, nested sums, name collisions) and ShapeError (extents).
    """
    lefts: list[tuple[str, Any]]
    shapes: list[Any]
    dtypes: list[Any]
    if isinstance(out, str):
        lefts = [(out, index if index is not None else ())]
        bodies, shapes, dtypes = [body], [shape], [dtype]
    elif not isinstance(out, Sequence):
        raise FormulaError("define()", expected="a name or a list of (name, index)", got=repr(out))
    else:
        lefts = list(out)
        if body is None:
            index, body = None, index
        bodies = list(body) if isinstance(body, (tuple, list)) else [body]
        shapes = list(shape) if shape is not None else [None] * len(lefts)
        dtypes = list(dtype) if isinstance(dtype, (tuple, list)) else [dtype] * len(lefts)
    outs = [
        Out(
            title,
            tuple(affine_of(i) for i in (at if isinstance(at, (tuple, list)) else (at,))),
            None if form is None else _shape(title, form),
            None if kind is None else dtype_of(kind),
        )
        for (title, at), form, kind in zip(lefts, shapes, dtypes, strict=True)
    ]
    if len({o.name for o in outs}) != len(outs):
        raise FormulaError("two outputs of one name", got=", ".join(o.name for o in outs))
    definition = build_definition(outs, bodies, _spans(extents), _conditions(where))
    return _single(name or outs[0].name, definition)


def _single(name: str, definition: Definition) -> Program:
    tensors = tuple(o.tensor for o in definition.outs)
    return assemble(name, [Stage(tensors, (definition,))], [t.name for t in tensors])


def pieces(*programs: Program, name: str | None = None) -> Program:
    """One Program from programs that each write a part of the same outputs (residue phases,
    boundary strips, concatenation). The parts must be disjoint and cover the outputs, which
    `Program.check` proves; the shape is the largest of theirs in each dimension.
    """
    if not programs:
        raise FormulaError("pieces() of nothing", expected="at least one Program")
    first, *_ = (require_program(p, "a piece") for p in programs)
    names = [t.name for t in first.outputs]
    for p in programs[1:]:
        if [t.name for t in p.outputs] != names:
            raise FormulaError(
                "pieces write different outputs",
                expected=", ".join(names),
                got=", ".join(t.name for t in p.outputs),
            )
    definitions: list[Definition] = []
    earlier: list[Stage] = []
    for p in programs:
        for stage in p.stages:
            if {t.name for t in stage.tensors} == set(names):
                definitions += stage.pieces
            elif {t.name for t in stage.tensors} & set(names):
                raise FormulaError(f"outputs of {p.name} come from different stages")
            else:
                earlier.append(stage)
    inputs = [t for p in programs for t in p.inputs]
    return assemble(name or first.name, [*earlier, join_pieces(definitions)], names, inputs)


def combine(
    name: str,
    programs: Sequence[Program],
    outputs: Sequence[str] | None = None,
    saved: Sequence[str] = (),
    updates: Mapping[str, str] | None = None,
) -> Program:
    """One Program that computes what several do, sharing the stages they have in common.

    outputs: names in the order returned (default: all outputs of the programs); saved: tensors that
    backward needs; updates: {state: tensor that becomes its value after the run}.

    >>> (i,) = axes("i")
    >>> m, g = tensor("m", 4, role="state"), tensor("g", 4)
    >>> new = define("m_new", [i], m[i] * 0.9 + g[i])
    >>> print(combine("momentum", [new], updates={"m": "m_new"}))
    program momentum
    state m: f32[4]
    tensor g: f32[4]
    m_new[i] = 0.9 * m[i] + g[i]
    update m <- m_new
    """
    stages = [s for p in programs for s in p.stages]
    inputs = [t for p in programs for t in p.inputs]
    names = [t.name for p in programs for t in p.outputs] if outputs is None else list(outputs)
    kept = [s for p in programs for s in p.saved] + list(saved)
    changes = [u for p in programs for u in p.updates] + list((updates or {}).items())
    return assemble(name, stages, list(dict.fromkeys(names)), inputs, kept, changes)
