"""Checks that a kernel keeps the rules of its form; says what it wanted and what it saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from convgen.affine import Affine
from convgen.errors import InternalError
from convgen.ir.layout import check_layout
from convgen.ir.nodes import (
    OPS,
    Block,
    Broadcast,
    Buffer,
    Combiner,
    Expr,
    For,
    Form,
    Gather,
    If,
    Index,
    Kernel,
    Lanes,
    Let,
    Load,
    Loop,
    LoopKind,
    Nest,
    Op,
    Param,
    Phase,
    Reduced,
    ReduceNode,
    Register,
    Set,
    Stmt,
    VectorLoad,
)
from convgen.ir.printer import kernel_text, text_of
from convgen.ir.regions import axis_ranges, loop_ranges
from convgen.types import DType, bool_, f32, i64, u64

_COMPARISONS = ("eq", "lt", "le")
_FLOATS = ("div", "sqrt", "floor", "exp", "log", "tanh", "sigmoid", "erf", "pow")
_INTEGERS = ("floordiv", "mod", "shl", "shr")
_BITS = ("and", "or", "xor", "not")


def verify(kernel: Kernel, stage: str = "verify") -> None:
    """InternalError (with the stage and the kernel's text) unless every rule holds."""
    try:
        _Verifier(kernel).kernel_rules()
    except _Broken as broken:
        raise InternalError(str(broken), stage=stage, dump=kernel_text(kernel)) from None


class _Broken(Exception):
    pass


def _want(condition: object, where: str, wanted: object, saw: object) -> None:
    if not condition:
        raise _Broken(f"{where}: wanted {wanted}, saw {saw}")


@dataclass
class _Scope:
    """What may occur at a place: integer names, parameters, registers, results."""

    where: str
    integers: frozenset[str] = frozenset()
    params: Mapping[str, DType] = field(default_factory=dict)
    reduces: tuple[ReduceNode, ...] = ()
    registers: dict[str, tuple[DType, int]] = field(default_factory=dict)
    flat: bool = False
    in_reduce: bool = False

    def inner(self, names: Iterable[str] = ()) -> _Scope:
        """A scope for a nested statement: what it sets is not seen outside."""
        known = self.integers | set(names)
        return _Scope(self.where, known, registers=dict(self.registers), flat=True)


class _Verifier:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.buffers = {b.name: b for b in kernel.buffers}

    def kernel_rules(self) -> None:
        names = [b.name for b in self.kernel.buffers]
        _want(len(set(names)) == len(names), "buffers", "names that differ", names)
        for buffer in self.kernel.buffers:
            self._buffer(buffer)
        for phase in self.kernel.phases:
            self._phase(phase)

    def _buffer(self, buffer: Buffer) -> None:
        where = f"buffer {buffer.name}"
        try:
            check_layout(buffer.layout, len(buffer.shape))
        except InternalError as error:
            raise _Broken(f"{where}: {error.message}") from None
        _want(all(e >= 0 for e in buffer.shape), where, "extents >= 0", buffer.shape)
        elements = 1
        for extent in buffer.shape:
            elements *= extent
        wanted = elements if buffer.role == "constant" else 0
        _want(len(buffer.values) == wanted, where, f"{wanted} values", len(buffer.values))

    def _phase(self, phase: Phase) -> None:
        where = f"phase {phase.name}"
        _want(
            phase.extent >= 0 and phase.grain >= 1, where, "extent >= 0, grain >= 1", phase.extent
        )
        nested = isinstance(phase.body, tuple)
        wanted = "statements" if self.kernel.form is Form.FLAT else "nests"
        _want(
            nested == (self.kernel.form is not Form.FLAT), where, wanted, type(phase.body).__name__
        )
        if isinstance(phase.body, tuple):
            for nest in phase.body:
                self._nest(nest, frozenset())
        else:
            scope = _Scope(where, frozenset({"begin", "end"}), flat=True)
            self._stmt(phase.body, scope)

    # -- nests ----------------------------------------------------------------------------------

    def _nest(self, nest: Nest, outer: frozenset[str]) -> None:
        where = f"nest {nest.name}"
        names = [lp.name for lp in nest.loops]
        _want(len(set(names)) == len(names), where, "loops with names that differ", names)
        for place, loop in enumerate(nest.loops):
            self._loop(nest, loop, nest.loops[place + 1 :], where)
        variables = frozenset(loop_ranges(nest)) | outer
        spans = axis_ranges(nest)
        _want([a for a, _ in nest.axes] == list(spans), where, f"axes {list(spans)}", nest.axes)
        for axis, value in nest.axes:
            self._names(value, variables, f"{where}: axis {axis}")
        if self.kernel.form is Form.NEST:
            self._plain_nest(nest, where)
        axes = frozenset(spans) | variables
        for guard in nest.guards:
            self._names(guard.value, axes, f"{where}: guard")
        for number, reduce in enumerate(nest.reduces):
            self._reduce(nest, number, reduce, axes)
        for store in nest.stores:
            at = f"{where}: store to {store.buffer}"
            self._writable(store.buffer, at)
            rank = len(self.buffers[store.buffer].shape)
            _want(len(store.index) == rank, at, f"{rank} indices", len(store.index))
            for i in store.index:
                self._names(i, axes, at)
            self._expr(store.value, _Scope(at, axes, reduces=nest.reduces))
        for producer in nest.attached:
            _want(producer.at in names, where, f"a producer at one of {names}", producer.at)
            self._writable(producer.buffer, where)
            self._nest(producer.nest, variables)

    def _loop(self, nest: Nest, loop: Loop, later: tuple[Loop, ...], where: str) -> None:
        at = f"{where}: loop {loop.name}"
        _want(loop.extent >= 0, at, "an extent >= 0", loop.extent)
        known = loop.reduce is None or 0 <= loop.reduce < len(nest.reduces)
        _want(known, at, f"a reduce below {len(nest.reduces)}", loop.reduce)
        if loop.segments:
            inner = [lp.name for lp in later]
            _want(loop.inner in inner, at, f"its inner loop among {inner}", loop.inner)
            sizes = [(s.count, s.size) for s in loop.segments]
            _want(all(c >= 0 and s >= 1 for c, s in sizes), at, "counts >= 0, sizes >= 1", sizes)
            _want(bool(loop.base), at, "a base variable", repr(loop.base))

    def _plain_nest(self, nest: Nest, where: str) -> None:
        plain = all(lp.kind is LoopKind.SERIAL and not lp.segments for lp in nest.loops)
        _want(plain and not nest.attached, where, "serial loops only", "directives applied")
        ranges = loop_ranges(nest)
        for (axis, value), (_, low, high) in zip(nest.axes, nest.ranges, strict=True):
            if high > low:
                bounds = value.bounds(ranges)
                _want(bounds == (low, high - 1), f"{where}: axis {axis}", (low, high - 1), bounds)

    def _reduce(self, nest: Nest, number: int, reduce: ReduceNode, axes: frozenset[str]) -> None:
        where = f"nest {nest.name}: reduce {number}"
        for guard in reduce.guards:
            self._names(guard.value, axes, f"{where}: guard")
        self._names(reduce.position, axes, f"{where}: position")
        self._expr(reduce.body, _Scope(where, axes, in_reduce=True))
        leader = nest.leader(number)
        chained = leader > number or nest.leader(leader) != leader
        _want(not chained, where, "beside an earlier reduce with loops", leader)
        own = {lp.name for lp in nest.loops if lp.reduce == leader}
        _want(
            set(reduce.factored) <= own,
            where,
            f"factored loops among {sorted(own)}",
            reduce.factored,
        )
        self._combiner(reduce.combiner, reduce.body.dtype, where)

    def _combiner(self, combiner: Combiner, element: DType, where: str) -> None:
        where = f"{where}: {combiner.name}"
        states = {f"a{i}": d for i, d in enumerate(combiner.dtypes)}
        others = {f"b{i}": d for i, d in enumerate(combiner.dtypes)}
        for part, params in (
            (combiner.lift, {"v": element, "p": i64}),
            (combiner.combine, {**states, **others}),
            (combiner.join or combiner.combine, {**states, **others}),
            (combiner.identity, {}),
        ):
            kinds = tuple(e.dtype for e in part)
            _want(kinds == combiner.dtypes, where, combiner.dtypes, kinds)
            for expr in part:
                self._expr(expr, _Scope(where, params=params))
        for expr in combiner.project:
            self._expr(expr, _Scope(where, params=states))

    # -- statements -----------------------------------------------------------------------------

    def _stmt(self, stmt: Stmt, scope: _Scope) -> None:
        where = scope.where
        if isinstance(stmt, Block):
            inner = scope.inner()
            for part in stmt.body:
                self._stmt(part, inner)
        elif isinstance(stmt, For):
            _want(stmt.step >= 1, f"{where}: for {stmt.var}", "a step >= 1", stmt.step)
            self._names(stmt.begin, scope.integers, f"{where}: for {stmt.var}")
            self._names(stmt.end, scope.integers, f"{where}: for {stmt.var}")
            self._stmt(stmt.body, scope.inner([stmt.var]))
        elif isinstance(stmt, Let):
            self._names(stmt.value, scope.integers, f"{where}: let {stmt.var}")
            self._stmt(stmt.body, scope.inner([stmt.var]))
        elif isinstance(stmt, If):
            self._expr(stmt.condition, scope)
            seen = (stmt.condition.dtype, stmt.condition.lanes)
            _want(seen == (bool_, 1), f"{where}: if", "a bool of 1 lane", seen)
            for branch in (stmt.then, stmt.orelse):
                if branch is not None:
                    self._stmt(branch, scope.inner())
        elif isinstance(stmt, Set):
            self._expr(stmt.value, scope)
            now = (stmt.value.dtype, stmt.value.lanes)
            before = scope.registers.setdefault(stmt.register, now)
            _want(before == now, f"{where}: register {stmt.register}", before, now)
        else:
            at = f"{where}: store to {stmt.buffer}"
            self._writable(stmt.buffer, at)
            self._offset(stmt.offset, scope, at)
            self._expr(stmt.value, scope)
            dtype = self.buffers[stmt.buffer].dtype
            _want(stmt.value.dtype == dtype, at, dtype, stmt.value.dtype)
            lanes = stmt.value.lanes
            _want(0 <= stmt.valid <= lanes, at, f"0..{lanes} valid lanes", stmt.valid)
            self._mask(stmt.mask, lanes, scope, at)

    # -- expressions ----------------------------------------------------------------------------

    def _expr(self, expr: Expr, scope: _Scope) -> None:
        where = scope.where
        if isinstance(expr, Op):
            for arg in expr.args:
                self._expr(arg, scope)
            self._op(expr, where)
        elif isinstance(expr, Index):
            self._names(expr.value, scope.integers, where)
        elif isinstance(expr, Load):
            self._load(expr, scope)
        elif isinstance(expr, (VectorLoad, Gather)):
            self._vector_load(expr, scope)
        elif isinstance(expr, Register):
            known = scope.registers.get(expr.name)
            seen = (expr.dtype, expr.lanes)
            _want(known == seen, f"{where}: register {expr.name}", known or "it set before", seen)
        elif isinstance(expr, Param):
            known = scope.params.get(expr.name)
            _want(known == expr.dtype, f"{where}: {expr.name}", known or "no parameter", expr.dtype)
        elif isinstance(expr, Reduced):
            self._reduced(expr, scope)
        elif isinstance(expr, Broadcast):
            self._expr(expr.value, scope)
            _want(expr.value.lanes == 1, f"{where}: splat", "1 lane", expr.value.lanes)
        elif isinstance(expr, Lanes):
            self._expr(expr.value, scope)
            _want(expr.lanes > 0, f"{where}: lanes", "at least one", 0)
            for lane in expr.picked:
                inside = 0 <= lane < expr.value.lanes
                _want(inside, f"{where}: lane", f"below {expr.value.lanes}", lane)

    def _load(self, load: Load, scope: _Scope) -> None:
        at = f"{scope.where}: load of {load.buffer}"
        _want(not scope.flat, at, "a VectorLoad (this form is FLAT)", "Load")
        buffer = self._known(load.buffer, at)
        rank = len(buffer.shape)
        _want(load.dtype == buffer.dtype, at, buffer.dtype, load.dtype)
        sizes = (len(load.index), len(load.edges))
        _want(sizes == (rank, rank), at, f"{rank} indices and edges", sizes)
        for i, edge in zip(load.index, load.edges, strict=True):
            self._names(i, scope.integers, at)
            if edge is not None:
                _want(edge.kind != "omit" or scope.in_reduce, at, "omit in a reduce only", "omit")
                held = edge.kind != "halo" or buffer.role == "packed"
                _want(held, at, "a packed buffer for a halo", buffer.role)
                if edge.value is not None:
                    _want(edge.value.dtype == load.dtype, at, load.dtype, edge.value.dtype)
                    self._expr(edge.value, scope)

    def _vector_load(self, load: VectorLoad | Gather, scope: _Scope) -> None:
        at = f"{scope.where}: load of {load.buffer}"
        _want(scope.flat, at, "a Load (this form has no vectors)", type(load).__name__)
        dtype = self._known(load.buffer, at).dtype
        _want(load.dtype == dtype, at, dtype, load.dtype)
        _want(0 <= load.valid <= load.lanes, at, f"0..{load.lanes} valid", load.valid)
        lanes = load.lanes if isinstance(load, Gather) else 1
        self._offset(load.offset, scope, at, lanes)
        self._mask(load.mask, load.lanes, scope, at)

    def _mask(self, mask: Expr | None, lanes: int, scope: _Scope, where: str) -> None:
        if mask is not None:
            self._expr(mask, scope)
            kind = (mask.dtype, mask.lanes)
            _want(kind == (bool_, lanes) and lanes > 1, f"{where}: mask", (bool_, lanes), kind)

    def _reduced(self, expr: Reduced, scope: _Scope) -> None:
        at = f"{scope.where}: result {expr.reduce}.{expr.item}"
        _want(expr.reduce < len(scope.reduces), at, f"below {len(scope.reduces)}", expr.reduce)
        items = scope.reduces[expr.reduce].combiner.project
        _want(expr.item < len(items), at, f"an item below {len(items)}", expr.item)
        dtype = items[expr.item].dtype
        _want(dtype == expr.dtype, at, dtype, expr.dtype)

    def _op(self, op: Op, where: str) -> None:
        at = f"{where}: {op.name}"
        _want(op.name in OPS, at, "an operation of OPS", op.name)
        _want(len(op.args) == OPS[op.name][0], at, f"{OPS[op.name][0]} arguments", len(op.args))
        lanes = {a.lanes for a in op.args} | {op.lanes}
        at = f"{at} in {text_of(op)[:200]}" if len(lanes) > 1 else at
        _want(len(lanes) == 1, at, "one number of lanes", sorted(lanes))
        kinds = [a.dtype for a in op.args]
        _want(_dtypes_fit(op, kinds), at, _RULES_TEXT, f"{kinds} -> {op.dtype}")

    # -- small rules ----------------------------------------------------------------------------

    def _names(self, value: Affine, known: frozenset[str], where: str) -> None:
        unknown = value.names() - known
        _want(not unknown, f"{where}: {value}", f"names among {sorted(known)}", sorted(unknown))

    def _offset(self, offset: Expr, scope: _Scope, where: str, lanes: int = 1) -> None:
        self._expr(offset, scope)
        kind = (offset.dtype, offset.lanes)
        _want(kind == (i64, lanes), f"{where}: offset", f"an i64, lanes {lanes}", kind)

    def _known(self, name: str, where: str) -> Buffer:
        _want(name in self.buffers, where, f"one of {sorted(self.buffers)}", name)
        return self.buffers[name]

    def _writable(self, name: str, where: str) -> None:
        role = self._known(name, where).role
        _want(role not in ("input", "constant"), where, "a buffer to write", role)


_RULES_TEXT = "dtypes that nodes.OPS allows"


def _dtypes_fit(op: Op, kinds: list[DType]) -> bool:
    own = op.dtype
    if op.name in _COMPARISONS:
        return own == bool_ and kinds[0] == kinds[1]
    if op.name == "is_nan":
        return own == bool_ and kinds[0].is_float
    if op.name == "select":
        return kinds == [bool_, own, own]
    if op.name == "cast":
        return True
    if op.name == "bitcast":
        return kinds[0].bits == own.bits
    if op.name == "uniform":
        return kinds == [u64, i64] and own == f32
    if any(kind != own for kind in kinds):
        return False
    if op.name in _FLOATS:
        return own.is_float
    if op.name in _INTEGERS:
        return own.is_integer
    if op.name in _BITS:
        return not own.is_float
    return own != bool_ or op.name in ("max", "min")
