"""Cotangents of the elements of reductions that are not sums, from their `adjoint` bodies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import sympy
from sympy import Expr, Integer

from convgen.affine import Affine, Constraint
from convgen.errors import DerivationError
from convgen.symbolic.derive.outline import box
from convgen.symbolic.derive.scalar import exchange, position
from convgen.symbolic.expr import (
    Access,
    Definition,
    Domain,
    Range,
    Reduce,
    Result,
    Stage,
    Tensor,
    affine_body,
    axes_of,
    body_dtype,
    substitute,
)
from convgen.symbolic.functions import cast
from convgen.symbolic.reductions import (
    COTANGENT,
    ELEMENT,
    OTHERS,
    POSITION,
    REDUCTIONS,
    Reduction,
    result,
)
from convgen.types import i64, smallest_unsigned


def mirror(reduction: Reduction) -> Reduction | None:
    """The reduction whose companion this one is: max for argmax."""
    return next((r for r in REDUCTIONS.values() if r.companion == reduction.name), None)


class Reduces:
    """Keeps what the adjoints of reductions need: positions, and products of the others."""

    def __init__(self, name: Callable[[str], str], behind: list[Stage]) -> None:
        self.name, self.behind = name, behind
        self.positions: dict[str, Tensor] = {}  # of the tensor that holds an extremum

    # -----------------------------------------------------------------------------------------
    # max and min: where the extremum was

    def keep_positions(self, stage: Stage) -> Stage:
        """The stage with the positions of its extrema stored, in the smallest type that holds them;
        the same stage when nothing in it needs positions."""
        if not any(_needs_position(p) for p in stage.pieces):
            return stage
        known = _stored_position(stage)
        if known is not None:
            for tensor in stage.tensors:
                self.positions[tensor.name] = known
            return stage
        first = stage.tensors[0]
        count = max(_positions(p.reduces[0]) for p in stage.pieces if _needs_position(p))
        dtype = smallest_unsigned(count) if count else i64
        kept = Tensor(self.name(f"{first.name}_index"), first.shape, dtype, "temporary")
        for tensor in stage.tensors:
            self.positions[tensor.name] = kept
        pieces = tuple(_with_position(p, kept) for p in stage.pieces)
        return Stage((*stage.tensors, kept), pieces)

    # -----------------------------------------------------------------------------------------

    def element_cotangent(self, piece: Definition, value: Expr, cotangent: Expr) -> Expr:
        """The cotangent of one element of the piece's reduction, over both domains."""
        reduce = piece.reduces[0]
        assert isinstance(value, Result)
        reduction = reduce.reduction
        if reduction.adjoint is None and value.item == 1:
            reduction = mirror(reduction) or reduction
        elif value.item:
            reduction = replace(reduction, adjoint=None)
        if reduction.adjoint is None:
            raise DerivationError(
                f"the reduction {reduction.name} has no adjoint for result {value.item}",
                where=str(piece.outs[0]),
                hint="reduction(..., adjoint=lambda v, y, g: ...), or stop_gradient",
            )
        adjoint = reduction.adjoint
        values: dict[Expr, Expr] = {ELEMENT: reduce.body, COTANGENT: cotangent}
        used = adjoint.free_symbols
        if POSITION in used:
            values[POSITION] = affine_body(_position(reduce))
        if OTHERS in used:
            values[OTHERS] = self._others(piece, reduce)
        for i in range(len(reduce.reduction.project) + 1):
            if result(i) in used:
                values[result(i)] = self._result(piece, reduction, i)
        return exchange(adjoint, values)

    def _result(self, piece: Definition, reduction: Reduction, item: int) -> Expr:
        """A stored result of the reduction or of its companion (whose result 0 is the position)."""
        out = piece.outs[0]
        if reduction.companion:
            return Access(self.positions[out.tensor.name], out.index)
        for access, value in zip(piece.outs, piece.values, strict=True):
            if value == Result(0, item):
                return access
        raise DerivationError(
            f"the adjoint of {reduction.name} needs its result {item}, which is not stored",
            where=str(out),
        )

    # -----------------------------------------------------------------------------------------
    # prod: the elements before times the elements after, right at zeros and to every order

    def _others(self, piece: Definition, reduce: Reduce) -> Expr:
        """An access to a new stage that holds, for each element, the reduction of all others."""
        if not reduce.reduction.commutative:
            raise DerivationError(
                f"the adjoint of {reduce.reduction.name} needs the reduction of the other elements",
                expected="a commutative reduction",
            )
        ranges = tuple(r for r in piece.domain.ranges if _depends(reduce, r.axis))
        inner = reduce.domain.ranges
        shape = tuple(r.extent for r in (*ranges, *inner))
        index = tuple(Affine.of(r.axis) - r.lo for r in (*ranges, *inner))
        dtype = body_dtype(reduce.body) or piece.outs[0].tensor.dtype
        tensor = Tensor(self.name(f"{piece.outs[0].tensor.name}_others"), shape, dtype, "temporary")
        taken = {r.axis for r in (*piece.domain.ranges, *inner)}
        prime: dict[str, str] = {}
        for r in inner:
            wanted = r.axis + "'"
            while wanted in taken:
                wanted += "'"
            taken.add(wanted)
            prime[r.axis] = wanted
        values = {a: Affine.of(p) for a, p in prime.items()}
        here, there = _position(reduce), _position(reduce).substitute(values)
        box_ = tuple(Range(prime[r.axis], r.lo, r.hi) for r in inner)
        kept = tuple(c.substitute(values) for c in reduce.domain.constraints)
        kept += tuple(
            c for c in piece.domain.constraints if c.value.names() <= {r.axis for r in ranges}
        )
        body = substitute(reduce.body, values)
        sides = tuple(
            Reduce(Domain(box_, (*kept, Constraint("<=", side))), reduce.reduction, body)
            for side in (there - here + 1, here - there + 1)
        )
        both = dict(zip(_state(0), (Result(0), Result(1)), strict=True))
        whole = exchange(reduce.reduction.combine[0], both)
        definition = Definition(
            (Access(tensor, index),), Domain((*ranges, *inner)), sides, (whole,)
        )
        self.behind.append(Stage((tensor,), (definition,)))
        return Access(tensor, index)


def _state(i: int) -> tuple[Expr, Expr]:
    return sympy.Symbol(f"a{i}", real=True), sympy.Symbol(f"b{i}", real=True)


def _depends(reduce: Reduce, axis: str) -> bool:
    used = set(axes_of(reduce.body))
    for c in reduce.domain.constraints:
        used |= c.value.names()
    return axis in used


def _needs_position(piece: Definition) -> bool:
    if not piece.reduces:
        return False
    reduction = piece.reduces[0].reduction
    return bool(reduction.companion) or mirror(reduction) is not None


def _stored_position(stage: Stage) -> Tensor | None:
    """The tensor of a stage that holds the positions in every piece."""
    for i, tensor in enumerate(stage.tensors):
        if all(
            _needs_position(p)
            and mirror(p.reduces[0].reduction)
            and (p.values[i].args[0] if isinstance(p.values[i], cast) else p.values[i])
            == Result(0, 0)
            for p in stage.pieces
        ):
            return tensor
    return None


def _position(reduce: Reduce) -> Affine:
    ranges = box(reduce.domain)
    if ranges is None:
        axes = ", ".join(reduce.domain.names)
        raise DerivationError(
            f"the position in {reduce.reduction.name}({axes}) is not known",
            expected="sizes that are bound",
            hint="program.bind(...)",
        )
    return position(ranges)


def _positions(reduce: Reduce) -> int:
    """How many positions there are; 0 when that is not known."""
    total = 1
    for r in reduce.domain.ranges:
        if not isinstance(r.extent, int):
            return 0
        total *= r.extent
    return max(1, total)


def _with_position(piece: Definition, kept: Tensor) -> Definition:
    """The piece that also writes the position of its extremum (0 where it has none)."""
    out = Access(kept, piece.outs[0].index)
    if not _needs_position(piece):
        return Definition(
            (*piece.outs, out), piece.domain, piece.reduces, (*piece.values, Integer(0))
        )
    reduce = piece.reduces[0]
    name = reduce.reduction.companion or reduce.reduction.name
    found = Reduce(reduce.domain, REDUCTIONS[name], reduce.body, reduce.name)
    values = piece.values
    if reduce.reduction.companion:  # argmax: result 1 is the value
        values = tuple(Result(0, 1) for _ in values)
    where = Result(0, 0) if kept.dtype == i64 else cast(Result(0, 0), kept.dtype)
    return Definition((*piece.outs, out), piece.domain, (found,), (*values, where))
