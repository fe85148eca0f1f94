"""Running FLAT bodies statement by statement, every access to memory checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from convgen.affine import Affine
from convgen.errors import InternalError
from convgen.ir.interpret.memory import Memory, integer
from convgen.ir.interpret.values import Value, apply, constant, numpy_dtype
from convgen.ir.nodes import (
    Block,
    Broadcast,
    Const,
    Expr,
    For,
    Gather,
    If,
    Index,
    Lanes,
    Let,
    Op,
    Register,
    Set,
    Stmt,
    Store,
    VectorLoad,
)

Run: TypeAlias = Callable[[], None]
Get: TypeAlias = Callable[[], Value]


class FlatRun:
    """A FLAT body compiled to closures over its memory, registers and integer variables.

    Scopes are checked while compiling: reading a register that is not set on every way there, or
    a variable without a value, is an InternalError.
    """

    def __init__(self, memory: Memory, body: Stmt, name: str) -> None:
        self.memory, self.name = memory, name
        self.registers: dict[str, Value] = {}
        self.integers: dict[str, int] = {}
        self._run = self._stmt(body, set(), {"begin", "end"})

    def run(self, begin: int, end: int) -> None:
        """The tasks begin..end-1, as one call of the kernel's entry."""
        self.registers.clear()
        self.integers.clear()
        self.integers.update(begin=begin, end=end)
        self._run()

    def _fail(self, message: str) -> InternalError:
        return InternalError(f"phase {self.name}: {message}", stage="interpret")

    # -- statements -----------------------------------------------------------------------------

    def _stmt(self, stmt: Stmt, known: set[str], variables: set[str]) -> Run:
        if isinstance(stmt, Block):
            inner = set(known)
            steps = [self._stmt(s, inner, variables) for s in stmt.body]
            return lambda: _each(steps)
        if isinstance(stmt, For):
            return self._for(stmt, known, variables)
        if isinstance(stmt, Let):
            value = self._integer(stmt.value, variables)
            body = self._stmt(stmt.body, set(known), variables | {stmt.var})
            return self._let(stmt.var, value, body)
        if isinstance(stmt, If):
            condition = self._expr(stmt.condition, known, variables)
            then = self._stmt(stmt.then, set(known), variables)
            orelse: Run = _nothing
            if stmt.orelse is not None:
                orelse = self._stmt(stmt.orelse, set(known), variables)
            return lambda: then() if condition() else orelse()
        if isinstance(stmt, Set):
            new = self._expr(stmt.value, known, variables)
            known.add(stmt.register)
            return self._set(stmt.register, new)
        return self._store(stmt, known, variables)

    def _set(self, name: str, value: Get) -> Run:
        def run() -> None:
            self.registers[name] = value()

        return run

    def _let(self, name: str, value: Callable[[], int], body: Run) -> Run:
        def run() -> None:
            self.integers[name] = value()
            body()

        return run

    def _for(self, stmt: For, known: set[str], variables: set[str]) -> Run:
        begin, end = self._integer(stmt.begin, variables), self._integer(stmt.end, variables)
        body = self._stmt(stmt.body, set(known), variables | {stmt.var})
        integers, var, step = self.integers, stmt.var, stmt.step
        if step < 1:
            raise self._fail(f"for {var}: wanted a step above 0, saw {step}")

        def run() -> None:
            for i in range(begin(), end(), step):
                integers[var] = i
                body()

        return run

    def _store(self, stmt: Store, known: set[str], variables: set[str]) -> Run:
        value = self._expr(stmt.value, known, variables)
        offset = self._expr(stmt.offset, known, variables)
        places = np.arange(stmt.valid, dtype=np.int64) * stmt.stride
        name, valid, memory = stmt.buffer, stmt.valid, self.memory
        kind = numpy_dtype(self._buffer_dtype(name))
        scalar = stmt.value.lanes == 1 and valid == 1
        mask = self._mask(stmt.mask, valid, known, variables)

        def run() -> None:
            array, new = memory.arrays[name], np.asarray(value())
            if new.dtype != kind:
                raise self._fail(f"store to {name}: wanted {kind}, saw {new.dtype}")
            at = int(offset()) + places
            chosen = mask()
            self._check(name, at[chosen], len(array), "store to")
            array[at[chosen]] = new if scalar else new[:valid][chosen]

        return run

    def _buffer_dtype(self, name: str) -> Any:
        if name not in self.memory.buffers:
            raise self._fail(f"no buffer is named {name!r}")
        return self.memory.buffers[name].dtype

    def _mask(self, mask: Expr | None, valid: int, known: set[str], variables: set[str]) -> Get:
        """The valid lanes that are touched, as something to index them with."""
        if mask is None:
            return lambda: slice(None)
        get = self._expr(mask, known, variables)
        return lambda: get()[:valid]

    def _check(self, name: str, offsets: Any, size: int, what: str) -> None:
        if not len(offsets):
            return
        low, high = int(offsets.min()), int(offsets.max())
        if low < 0 or high >= size:
            where = ", ".join(f"{n}={v}" for n, v in self.integers.items())
            raise self._fail(
                f"{what} {name}: wanted offsets in 0..{size - 1}, saw {low}..{high} at {where}"
            )

    # -- expressions ----------------------------------------------------------------------------

    def _integer(self, value: Affine, variables: set[str]) -> Callable[[], int]:
        missing = value.names() - variables
        if missing:
            raise self._fail(f"{value}: no value for {', '.join(sorted(missing))}")
        integers, constant_part = self.integers, value.constant
        if not value.is_plain:
            return lambda: integer(value, integers)
        terms = [(str(name), c) for name, c in value.terms]
        if len(terms) == 1 and terms[0][1] == 1 and not constant_part:
            name = terms[0][0]
            return lambda: integers[name]
        return lambda: constant_part + sum(integers[n] * c for n, c in terms)

    def _expr(self, expr: Expr, known: set[str], variables: set[str]) -> Get:
        if isinstance(expr, Op):
            return self._op(expr, [self._expr(a, known, variables) for a in expr.args])
        if isinstance(expr, Const):
            value = constant(expr.value, expr.dtype)
            fixed = value if expr.lanes == 1 else np.full(expr.lanes, value)
            return lambda: fixed
        if isinstance(expr, Register):
            name = expr.name
            if name not in known:
                raise self._fail(f"register {name} is read where it is not set")
            return lambda: self.registers[name]
        if isinstance(expr, Index):
            number = self._integer(expr.value, variables)
            if expr.lanes == 1:
                return lambda: np.int64(number())
            ramp = np.arange(expr.lanes, dtype=np.int64) * expr.stride
            return lambda: number() + ramp
        if isinstance(expr, (VectorLoad, Gather)):
            offset = self._expr(expr.offset, known, variables)
            return self._load(expr, offset, self._mask(expr.mask, expr.valid, known, variables))
        if isinstance(expr, Broadcast):
            inner, lanes = self._expr(expr.value, known, variables), expr.lanes
            return lambda: np.full(lanes, inner())
        if isinstance(expr, Lanes):
            inner = self._expr(expr.value, known, variables)
            picked = list(expr.picked) if expr.lanes > 1 else expr.picked[0]
            return lambda: inner()[picked]
        raise self._fail(f"{type(expr).__name__} in a FLAT body")

    def _op(self, op: Op, args: list[Get]) -> Get:
        name, dtype = op.name, op.dtype
        if name == "select" and op.lanes == 1:  # the side not chosen is not observed
            condition, yes, no = args
            return lambda: yes() if condition() else no()
        return lambda: apply(name, [a() for a in args], dtype)

    def _load(self, load: VectorLoad | Gather, offset: Get, mask: Get) -> Get:
        name, memory = load.buffer, self.memory
        if self._buffer_dtype(name) != load.dtype:
            raise self._fail(f"load of {name}: wanted {self._buffer_dtype(name)}, saw {load.dtype}")
        stride = load.stride if isinstance(load, VectorLoad) else 0
        places = np.arange(load.valid, dtype=np.int64) * stride
        kind, lanes, valid = numpy_dtype(load.dtype), load.lanes, load.valid

        def get() -> Value:
            array, start = memory.arrays[name], offset()
            at = (start if np.ndim(start) == 0 else start[:valid]) + places
            chosen = mask()
            self._check(name, at[chosen], len(array), "load of")
            found = np.zeros(lanes, kind)
            found[:valid][chosen] = array[at[chosen]]
            return found if lanes > 1 else found[0]

        return get


def _each(steps: list[Run]) -> None:
    for step in steps:
        step()


def _nothing() -> None:
    pass
