"""Reading memory: edges of loads become conditions and integer arithmetic; strides along the lanes
decide between scalars, vectors and gathers. No lane that is read lies outside its buffer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convgen.affine import Affine, Constraint
from convgen.ir.layout import flat_offset, size_in_elements
from convgen.ir.nodes import (
    Buffer,
    Const,
    Edge,
    Expr,
    Gather,
    Index,
    Lanes,
    Load,
    Op,
    VectorLoad,
)
from convgen.ir.simplify import decide
from convgen.ir.sums import factors
from convgen.ir.visit import loads
from convgen.passes.flatten.scope import LANE, Scope
from convgen.passes.flatten.values import Place, Values, lane_ranges
from convgen.passes.flatten.windows import window_of
from convgen.types import i64

FOLDING = ("reflect", "replicate", "circular")


def limits(index: Affine, extent: int) -> tuple[Constraint, Constraint]:
    """0 <= index and index < extent."""
    return Constraint("<=", -index), Constraint("<=", index - (extent - 1))


def edge_limits(node: Expr, buffers: dict[str, Buffer], kinds: tuple[str, ...]) -> list[Constraint]:
    """The conditions, over axes, under which no load inside meets an edge of these kinds."""
    found: list[Constraint] = []
    for load in loads(node):
        shape = buffers[load.buffer].shape
        for index, edge, extent in zip(load.index, load.edges, shape, strict=True):
            if edge is not None and edge.kind in kinds:
                found += limits(index, extent)
    return found


def zero_limits(
    node: Expr, buffers: dict[str, Buffer], kind: str, moves: Callable[[Affine], bool]
) -> list[Constraint]:
    """The conditions, over axes, outside of which a factor of the expression is 0, for dimensions
    with edges of a kind (zero, halo) and indices that `moves` denies."""
    found: list[Constraint] = []
    for load in factors(node):
        shape = buffers[load.buffer].shape
        for index, edge, extent in zip(load.index, load.edges, shape, strict=True):
            if edge is not None and edge.kind == kind and not moves(index):
                found += limits(index, extent)
    return found


@dataclass(frozen=True, slots=True)
class _Outside:
    """What a load gives where one of `conditions` does not hold."""

    conditions: tuple[Constraint, ...]
    edge: Edge


class Elements(Values):
    """Values that know how to read buffers."""

    def load(self, node: Load, place: Place) -> Expr:
        """The element in each lane: the edge's value outside, memory inside."""
        buffer = self.buffers[node.buffer]
        scope = place.scope
        index = [self.resolve(i, scope) for i in node.index]
        folds: dict[str, Expr] = {}
        outside: list[_Outside] = []
        for d, edge in enumerate(node.edges):
            if edge is None or edge.kind in ("omit", "halo") or scope.interior:
                continue
            open_limits = self._open_limits(index[d], buffer.shape[d], scope)
            if open_limits == ():
                continue
            if edge.kind in FOLDING:
                folds[f"${d}"] = self._fold(edge, self.integer(index[d], scope), buffer.shape[d])
                index[d] = Affine.of(f"${d}")
            elif open_limits is None:
                return self._edge_value(edge, node, place)
            else:
                outside.append(_Outside(open_limits, edge))
        return self._select(node, place, buffer, index, folds, outside)

    def is_zero(self, expr: Expr, place: Place) -> bool:
        """True also for an element of a halo of zeros."""
        if isinstance(expr, Load):
            shape = self.buffers[expr.buffer].shape
            for index, edge, extent in zip(expr.index, expr.edges, shape, strict=True):
                if edge is not None and edge.kind == "halo":
                    at = self.resolve(index, place.scope)
                    if self._open_limits(at, extent, place.scope) is None:
                        return True
        return super().is_zero(expr, place)

    def _open_limits(
        self, index: Affine, extent: int, scope: Scope
    ) -> tuple[Constraint, ...] | None:
        """The limits of an index that may be broken here; None when one is always broken."""
        ranges = lane_ranges(scope)
        found: list[Constraint] = []
        for constraint in limits(index, extent):
            known = constraint in scope.known or decide(constraint, ranges)
            if known is False:
                return None
            if known is None:
                found.append(constraint)
        return tuple(found)

    def _fold(self, edge: Edge, index: Expr, extent: int) -> Expr:
        """The index brought inside 0..extent-1 by integer arithmetic (reach at most one extent)."""

        def number(name: str, *args: Expr) -> Expr:
            return self.op(name, args, Op(name, args, i64))

        last = Const(extent - 1, i64)
        if edge.kind == "circular":
            return number("mod", index, Const(extent, i64))
        if edge.kind == "replicate":
            return number("max", number("min", index, last), Const(0, i64))
        turned = number("sub", last, number("abs", index))  # reflect: last - |last - |i||
        return number("sub", last, number("abs", turned))

    def _edge_value(self, edge: Edge, node: Load, place: Place) -> Expr:
        if edge.value is None:
            return Const(0, node.dtype)
        return self.of(edge.value, place)

    def _select(
        self,
        node: Load,
        place: Place,
        buffer: Buffer,
        index: list[Affine],
        folds: dict[str, Expr],
        outside: list[_Outside],
    ) -> Expr:
        """Read where all conditions hold; elsewhere the first dimension that is outside decides."""
        scope = place.scope
        held = [self.all_of(self.condition(c, scope) for c in part.conditions) for part in outside]
        conditions = [c for c in held if c is not None]
        ranges = {**lane_ranges(scope), **{f"${d}": (0, n) for d, n in enumerate(buffer.shape)}}
        offset = flat_offset(buffer, index, ranges)
        if buffer.role == "constant" and offset.is_constant and not conditions:
            rowmajor = 0
            for i, n in zip(index, buffer.shape, strict=True):
                rowmajor = rowmajor * n + i.constant
            return Const(buffer.values[rowmajor], buffer.dtype)
        mask = place.mask
        if mask is not None and self._safe(offset, buffer, ranges):
            mask = None
        scalars = self.all_of(c for c in conditions if c.lanes == 1)
        vectors = self.all_of(
            [c for c in conditions if c.lanes > 1] + ([mask] if mask is not None else [])
        )
        value = self._read(buffer, offset, folds, scope, scalars, vectors)
        for condition, part in reversed(list(zip(held, outside, strict=True))):
            if condition is None or (condition.lanes > 1 and part.edge.value is None):
                continue  # lanes that are not read are 0 already
            value = self.select(condition, value, self._edge_value(part.edge, node, place))
        return value

    def _safe(self, offset: Affine, buffer: Buffer, ranges: dict[str, tuple[int, int]]) -> bool:
        if not offset.names() <= ranges.keys():
            return False
        low, high = offset.bounds(ranges)
        return low >= 0 and high < size_in_elements(buffer)

    def _read(
        self,
        buffer: Buffer,
        offset: Affine,
        folds: dict[str, Expr],
        scope: Scope,
        scalar: Expr | None,
        vector: Expr | None,
    ) -> Expr:
        """Memory at the offset, where the scalar condition and the lanes' conditions hold."""
        lanes, valid = scope.lanes, scope.valid
        stride = offset.coefficient(LANE)
        base = offset.without(LANE)
        where = self.integer(base, scope, folds)
        if where.lanes > 1:
            if vector is None:
                shuffled = self._shuffled(buffer, offset, folds, scope, scalar)
                if shuffled is not None:
                    return shuffled
            where = self.integer(offset, scope, folds)
            mask = self.all_of(c for c in (scalar, vector) if c is not None)
            if mask is not None:
                mask = self.wide(mask, lanes)
            return self.emitter.share(Gather(buffer.name, where, buffer.dtype, lanes, valid, mask))
        if scalar is not None:  # outside, element 0 is read and thrown away
            where = self.select(scalar, where, Index(Affine()))
        if stride == 0 and vector is None:
            lanes = valid = 1
        load = VectorLoad(buffer.name, where, stride, buffer.dtype, lanes, valid, vector)
        if scalar is not None and stride:
            reach = Constraint(
                "<=", Affine((), (valid - 1) * abs(stride) + 1 - size_in_elements(buffer))
            )
            if reach.value.constant > 0 or stride < 0:
                return self._masked(load, scalar, where)
        return self.emitter.share(load)

    def _shuffled(
        self,
        buffer: Buffer,
        offset: Affine,
        folds: dict[str, Expr],
        scope: Scope,
        scalar: Expr | None,
    ) -> Expr | None:
        """One load and one shuffle, where lanes read few elements in a fixed pattern."""
        size = size_in_elements(buffer)
        window = window_of(offset, scope.valid, scope.lanes, size)
        if window is None or window.count > size:
            return None
        where = self.integer(window.start, scope, folds)
        if where.lanes > 1:
            return None
        if scalar is not None:
            where = self.select(scalar, where, Index(Affine()))
        last = max(window.count - 1, 1, *window.picked)
        lanes = 1 << last.bit_length()
        load = VectorLoad(buffer.name, where, 1, buffer.dtype, lanes, window.count)
        return self.emitter.share(Lanes(self.emitter.share(load), window.picked))

    def _masked(self, load: VectorLoad, scalar: Expr, where: Expr) -> Expr:
        """A vector that cannot be read at element 0 either: masked by the scalar condition."""
        wide = self.wide(scalar, load.lanes)
        mask = self.all_of(c for c in (wide, load.mask) if c is not None)
        return self.emitter.share(
            VectorLoad(load.buffer, where, load.stride, load.dtype, load.lanes, load.valid, mask)
        )
