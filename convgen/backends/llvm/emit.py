"""FLAT kernels as LLVM IR text.

Each phase becomes two functions: the entry ``void name(ptr args, ptr scratch, i64 begin, i64 end)``
reads the argument pointers and calls a private function whose parameters carry what is known of
each buffer (noalias, readonly, align). Registers are SSA values; loops and conditionals get phis.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from typing_extensions import assert_never

from convgen.affine import Affine
from convgen.backends.llvm import memory
from convgen.backends.llvm.builder import (
    Builder,
    Value,
    literal,
    memory_type,
)
from convgen.backends.llvm.ops import convert, emit_op
from convgen.backends.llvm.rows import Run, loads_apart, runs_of
from convgen.backends.llvm.scope import Scope, forget, statements
from convgen.backends.llvm.transpose import Waiting, may_wait, store_run
from convgen.errors import InternalError
from convgen.ir.layout import scratch_offsets
from convgen.ir.nodes import (
    Block,
    Broadcast,
    Buffer,
    Const,
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
    Op,
    Param,
    Phase,
    Reduced,
    Register,
    Set,
    Stmt,
    Store,
    VectorLoad,
)
from convgen.target import Target
from convgen.types import i64

_OWN = ("temporary", "packed")


def module_text(kernel: Kernel, target: Target) -> str:
    """The LLVM module of a FLAT kernel; its entries are `symbols(kernel)`."""
    if kernel.form is not Form.FLAT:
        raise InternalError(f"expected a FLAT kernel, got {kernel.form.value}", stage="llvm")
    declarations: dict[str, str] = {}
    functions = [
        _Phase(kernel, phase, symbol, target, declarations).text()
        for phase, symbol in zip(kernel.phases, symbols(kernel), strict=True)
    ]
    parts = [
        f'target triple = "{target.llvm_triple}"\n',
        *(_constant(b) for b in kernel.buffers if b.role == "constant"),
        *functions,
        *(d for _, d in sorted(declarations.items())),
        f"attributes #0 = {{ nounwind {_width(target)}}}",
        f"attributes #1 = {{ nounwind noinline {_width(target)}}}",
    ]
    return "\n".join(parts) + "\n"


def arguments(kernel: Kernel) -> tuple[Buffer, ...]:
    """The buffers whose pointers an entry takes, in order."""
    return tuple(b for b in kernel.buffers if b.role not in ("constant", "scratch"))


def symbols(kernel: Kernel) -> tuple[str, ...]:
    """The entry of each phase, ``kernel_phase``, as a C identifier; repeated names get a number."""
    found: list[str] = []
    for phase in kernel.phases:
        plain = re.sub(r"\W", "_", f"{kernel.name}_{phase.name}", flags=re.ASCII)
        stem = plain if not plain[0].isdigit() else "k" + plain
        name, number = stem, 2
        while name in found:
            name, number = f"{stem}_{number}", number + 1
        found.append(name)
    return tuple(found)


def _width(target: Target) -> str:
    """Keeps LLVM from splitting the widest vectors on models that prefer narrower ones."""
    bits = target.vector_bits
    return f'"min-legal-vector-width"="{bits}" "prefer-vector-width"="{bits}" '


def _constant(buffer: Buffer) -> str:
    kind = memory_type(buffer.dtype)
    element = buffer.dtype
    values = ", ".join(
        f"{kind} {int(v) if element.kind == 'bool' else literal(v, element)}" for v in buffer.values
    )
    count = len(buffer.values)
    return (
        f"@{_quoted('const.' + buffer.name)} = internal unnamed_addr constant "
        f"[{count} x {kind}] [{values}], align 64\n"
    )


def _quoted(name: str) -> str:
    return name if name.replace("_", "a").replace(".", "a").isalnum() else f'"{name}"'


class _Phase:
    """Writes the functions of one phase."""

    def __init__(
        self,
        kernel: Kernel,
        phase: Phase,
        symbol: str,
        target: Target,
        declarations: dict[str, str],
    ) -> None:
        self.kernel = kernel
        self.symbol = symbol
        self.target = target
        if isinstance(phase.body, tuple):
            raise InternalError(f"phase {phase.name} is not FLAT", stage="llvm")
        self.body: Stmt = phase.body
        self.b = Builder(declarations)
        self.buffers: Mapping[str, Buffer] = {b.name: b for b in kernel.buffers}
        self.offsets, _ = scratch_offsets(kernel.buffers)
        self.written = {s.buffer for s in statements(self.body) if isinstance(s, Store)}
        self.sets: dict[int, frozenset[str]] = {}
        self.values: dict[int, Value] = {}
        self.scope = Scope({"begin": "%begin", "end": "%end"}, {})

    # ------------------------------------------------------------------------------ functions

    def text(self) -> str:
        passed = arguments(self.kernel)
        params = [self._parameter(i, b) for i, b in enumerate(passed)]
        body_name = self.symbol + ".body"
        tail = ["ptr %scratch", "i64 %begin", "i64 %end"]
        loads: list[str] = []
        for i in range(len(passed)):
            loads.append(f"  %q{i} = getelementptr inbounds ptr, ptr %args, i64 {i}")
            loads.append(f"  %p{i} = load ptr, ptr %q{i}, align 8")
        actual = ", ".join([*(f"ptr %p{i}" for i in range(len(passed))), *tail])
        self._prologue()
        self._stmt(self.body)
        self.b.emit("ret void")
        entry = [
            f"define void @{self.symbol}(ptr noalias readonly %args, ptr %scratch, "
            "i64 %begin, i64 %end) #0 {",
            *loads,
            f"  call void @{body_name}({actual})",
            "  ret void",
            "}",
        ]
        formal = ", ".join([*params, "ptr noalias align 64 %scratch", "i64 %begin", "i64 %end"])
        body = [
            f"define internal void @{body_name}({formal}) #1 {{",
            "entry:",
            *self.b.lines,
            "}",
        ]
        return "\n".join([*entry, "", *body, ""])

    def _parameter(self, number: int, buffer: Buffer) -> str:
        align = 64 if buffer.role in _OWN else buffer.dtype.bytes
        access = "" if buffer.name in self.written else " readonly"
        return f"ptr noalias{access} align {align} %a{number}"

    def _prologue(self) -> None:
        """A pointer for every buffer."""
        self.pointers: dict[str, str] = {}
        for i, buffer in enumerate(arguments(self.kernel)):
            self.pointers[buffer.name] = f"%a{i}"
        for buffer in self.kernel.buffers:
            if buffer.role == "constant":
                self.pointers[buffer.name] = f"@{_quoted('const.' + buffer.name)}"
            elif buffer.role == "scratch":
                offset = self.offsets[buffer.name]
                self.pointers[buffer.name] = self.b.assign(
                    f"getelementptr inbounds i8, ptr %scratch, i64 {offset}"
                )

    # ------------------------------------------------------------------------------ statements

    def _stmt(self, stmt: Stmt) -> None:
        match stmt:
            case Block(body):
                self._block(body)
            case Set(register, value):
                self.scope.registers[register] = self._evaluate(value)
            case Store():
                self._store(stmt)
            case Let(var, value, body):
                outer = self.scope.variables.get(var)
                known = self.scope.partial
                self.scope.variables[var] = self.scope.affine(self.b, value)
                self.scope.partial = forget(known, var)
                self._stmt(body)
                self.scope.partial = known
                if outer is None:
                    del self.scope.variables[var]
                else:
                    self.scope.variables[var] = outer
            case For():
                self._for(stmt)
            case If():
                self._if(stmt)
            case _:
                assert_never(stmt)

    def _block(self, body: tuple[Stmt, ...]) -> None:
        """Statements in order; vectors stored with a step wait for their neighbours as long as
        nothing can see that, vectors loaded with a step come with theirs."""
        waiting = Waiting()
        body = loads_apart(body, self.scope.registers)
        runs, ready = runs_of(body, self.written, self.scope.registers), set[int]()
        for number, one in enumerate(body):
            if number in runs:
                self._load_run(runs[number])
                ready.update(runs[number].places)
            if number in ready:
                continue
            if isinstance(one, Store) and may_wait(one, self._buffer(one.buffer).dtype):
                if waiting.meets(one.value) or not waiting.fits(one):
                    self._store_waiting(waiting)
                waiting.add(one, self._to_store(one))
                if waiting.complete(one):
                    self._store_waiting(waiting)
                continue
            if waiting.columns and (not isinstance(one, Set) or waiting.meets(one.value)):
                self._store_waiting(waiting)
            self._stmt(one)
        self._store_waiting(waiting)

    def _load_run(self, run: Run) -> None:
        place = self._place(self._buffer(run.load.buffer), run.load.offset)
        columns = run.columns(self.b, place, self.target)
        self.scope.registers.update(zip(run.registers, columns, strict=True))

    def _store_waiting(self, waiting: Waiting) -> None:
        for name, offset, run in waiting.take():
            place = self._place(self._buffer(name), Index(offset))
            store_run(self.b, place, run, self.target)

    def _set_in(self, stmt: Stmt) -> frozenset[str]:
        """Registers set anywhere inside a statement."""
        found = self.sets.get(id(stmt))
        if found is None:
            match stmt:
                case Set(register, _):
                    found = frozenset((register,))
                case Block(body):
                    found = frozenset[str]().union(*(self._set_in(s) for s in body))
                case For(body=body) | Let(body=body):
                    found = self._set_in(body)
                case If(_, then, orelse):
                    found = self._set_in(then) | (
                        self._set_in(orelse) if orelse else frozenset[str]()
                    )
                case Store():
                    found = frozenset[str]()
                case _:
                    assert_never(stmt)
            self.sets[id(stmt)] = found
        return found

    def _for(self, stmt: For) -> None:
        b = self.b
        if stmt.step <= 0:
            raise InternalError(f"loop {stmt.var} has step {stmt.step}", stage="llvm")
        trips = None
        if stmt.begin.is_constant and stmt.end.is_constant:
            trips = range(stmt.begin.constant, stmt.end.constant, stmt.step)
            if not trips:
                return
        begin, end = self.scope.affine(self.b, stmt.begin), self.scope.affine(self.b, stmt.end)
        outer = self.scope
        changed = self._set_in(stmt.body)
        carried = [r for r in outer.registers if r in changed]
        head, done = b.fresh("head"), b.fresh("done")
        before = b.block
        if trips is None:
            test = b.assign(f"icmp slt i64 {begin}, {end}")
            b.branch(test, head, done)
        else:
            b.jump(head)
        b.label(head)
        var = b.fresh(_plain(stmt.var))
        phis = {r: b.fresh(_plain(r)) for r in carried}
        mark = len(b.lines)
        self.scope = outer.inner()
        self.scope.partial = forget(outer.partial, stmt.var)
        self.scope.variables[stmt.var] = var
        for r in carried:
            first = outer.registers[r]
            self.scope.registers[r] = Value(phis[r], first.dtype, first.lanes)
        self._stmt(stmt.body)
        ends, latch = self.scope.registers, b.block
        following = b.assign(f"add nsw i64 {var}, {stmt.step}")
        if trips is None:
            again = b.assign(f"icmp slt i64 {following}, {end}")
        else:
            again = b.assign(f"icmp ne i64 {following}, {trips[-1] + stmt.step}")
        b.branch(again, head, done)
        b.label(done)
        self.scope = outer
        lines = [f"  {var} = phi i64 [ {begin}, {before} ], [ {following}, {latch} ]"]
        for r in carried:
            first, last = outer.registers[r], self._same(r, outer.registers[r], ends[r])
            lines.append(
                f"  {phis[r]} = phi {first.type} [ {first.text}, {before} ], "
                f"[ {last.text}, {latch} ]"
            )
            out = last.text
            if trips is None:
                out = b.assign(
                    f"phi {first.type} [ {first.text}, {before} ], [ {last.text}, {latch} ]"
                )
            outer.registers[r] = Value(out, first.dtype, first.lanes)
        b.lines[mark:mark] = lines

    def _if(self, stmt: If) -> None:
        b = self.b
        condition = self._evaluate(stmt.condition)
        if condition.text in ("true", "false"):
            chosen = stmt.then if condition.text == "true" else stmt.orelse
            if chosen is not None:
                self._stmt(chosen)
            return
        outer = self.scope
        yes, no, done = b.fresh("then"), b.fresh("else"), b.fresh("join")
        changed = self._set_in(stmt)
        merged = [r for r in outer.registers if r in changed]
        b.branch(condition.text, yes, no)
        ends: list[tuple[dict[str, Value], str]] = []
        for name, part in ((yes, stmt.then), (no, stmt.orelse)):
            b.label(name)
            self.scope = outer.inner()
            if part is not None:
                self._stmt(part)
            ends.append((self.scope.registers, b.block))
            b.jump(done)
        b.label(done)
        self.scope = outer
        for r in merged:
            first = outer.registers[r]
            sides = ", ".join(
                f"[ {self._same(r, first, registers[r]).text}, {block} ]"
                for registers, block in ends
            )
            name = b.assign(f"phi {first.type} {sides}", _plain(r))
            outer.registers[r] = Value(name, first.dtype, first.lanes)

    def _same(self, register: str, first: Value, last: Value) -> Value:
        if (first.dtype, first.lanes) != (last.dtype, last.lanes):
            raise InternalError(
                f"register {register} changes from {first.type} to {last.type}", stage="llvm"
            )
        return last

    def _to_store(self, stmt: Store) -> Value:
        value, buffer = self._evaluate(stmt.value), self._buffer(stmt.buffer)
        return value if value.dtype == buffer.dtype else convert(self.b, value, buffer.dtype)

    def _store(self, stmt: Store) -> None:
        buffer = self._buffer(stmt.buffer)
        value = self._to_store(stmt)
        mask = self._expr(stmt.mask) if stmt.mask is not None else None
        place = self._place(buffer, stmt.offset)
        if mask is not None:
            memory.store_masked(self.b, place, stmt.stride, value, stmt.valid, mask)
            return
        memory.store(self.b, place, stmt.stride, value, stmt.valid, self.target)

    # ------------------------------------------------------------------------------ expressions

    def _evaluate(self, expr: Expr) -> Value:
        """The value of a whole expression; parts shared inside it are computed once."""
        self.values = {}
        return self._expr(expr)

    def _expr(self, expr: Expr) -> Value:
        found = self.values.get(id(expr))
        if found is None:
            found = self._compute(expr)
            self.values[id(expr)] = found
        return found

    def _compute(self, expr: Expr) -> Value:
        b = self.b
        match expr:
            case Const(value, dtype, lanes):
                return b.constant(value, dtype, lanes)
            case Register(name, dtype, lanes):
                value = self.scope.registers.get(name)
                if value is None:
                    raise InternalError(f"register {name} is read before it is set", stage="llvm")
                return self._same(name, Value("", dtype, lanes), value)
            case Op(args=args):
                return emit_op(b, expr, [self._expr(a) for a in args], self.target)
            case Index(value, stride, lanes):
                return self._index(value, stride, lanes)
            case Broadcast(value, lanes):
                return b.splat(self._expr(value), lanes)
            case Lanes(value, picked):
                whole = self._expr(value)
                if len(picked) == 1:
                    return b.extract(whole, picked[0])
                return memory.shuffle(b, whole, list(picked))
            case VectorLoad():
                return self._load(expr)
            case Gather():
                return self._gather(expr)
            case Load() | Param() | Reduced():
                raise InternalError(f"{type(expr).__name__} in a FLAT kernel", stage="llvm")
            case _:
                assert_never(expr)

    def _index(self, value: Affine, stride: int, lanes: int) -> Value:
        base = self.b.splat(Value(self.scope.affine(self.b, value), i64), lanes)
        if lanes == 1 or stride == 0:
            return base
        steps = ", ".join(f"i64 {stride * lane}" for lane in range(lanes))
        return Value(self.b.assign(f"add nsw {base.typed}, <{steps}>"), i64, lanes)

    def _load(self, expr: VectorLoad) -> Value:
        buffer = self._buffer(expr.buffer)
        if expr.mask is not None:
            mask, place = self._expr(expr.mask), self._place(buffer, expr.offset)
            return memory.load_masked(self.b, place, expr.stride, expr.lanes, expr.valid, mask)
        place = self._place(buffer, expr.offset)
        return memory.load(self.b, place, expr.stride, expr.lanes, expr.valid, self.target)

    def _gather(self, expr: Gather) -> Value:
        buffer = self._buffer(expr.buffer)
        base = memory.Place(self.pointers[buffer.name], buffer.dtype, buffer.dtype.bytes)
        offsets = convert(self.b, self._expr(expr.offset), i64)
        mask = self._expr(expr.mask) if expr.mask is not None else None
        return memory.gather(self.b, base, offsets, expr.valid, mask)

    # ------------------------------------------------------------------------------ addresses

    def _buffer(self, name: str) -> Buffer:
        found = self.buffers.get(name)
        if found is None:
            raise InternalError(f"there is no buffer {name}", stage="llvm")
        return found

    def _place(self, buffer: Buffer, offset: Expr) -> memory.Place:
        """The address of an element. The constant part of an affine offset is added last, so that
        neighbours share a base and differ in the displacement of the instruction."""
        b, base = self.b, self.pointers[buffer.name]
        kind = memory_type(buffer.dtype)
        size = buffer.dtype.bytes
        if isinstance(offset, Index):
            pointer = self._pointer(buffer, offset.value)
        else:
            value = convert(b, self._expr(offset), i64)
            pointer = b.assign(f"getelementptr inbounds {kind}, ptr {base}, i64 {value.text}", "p")
        return memory.Place(pointer, buffer.dtype, size)

    def _pointer(self, buffer: Buffer, offset: Affine) -> str:
        kind, pointer = memory_type(buffer.dtype), self.pointers[buffer.name]
        if offset.terms:
            key = (buffer.name, offset.terms)
            known = self.scope.partial.get(key)
            if known is None:
                varying = self.scope.affine(self.b, Affine(offset.terms, 0))
                known = self.b.assign(
                    f"getelementptr inbounds {kind}, ptr {pointer}, i64 {varying}", "p"
                )
                self.scope.partial[key] = known
            pointer = known
        if offset.constant:
            pointer = self.b.assign(
                f"getelementptr inbounds {kind}, ptr {pointer}, i64 {offset.constant}", "p"
            )
        return pointer


def _plain(name: str) -> str:
    """A name as LLVM takes it without quotes."""
    return "".join(c if c.isalnum() and c.isascii() or c in "_." else "_" for c in name) + "."
