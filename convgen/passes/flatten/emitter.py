"""Statements under construction: nested blocks, fresh registers, value numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from convgen.affine import Affine
from convgen.ir.nodes import (
    Block,
    Broadcast,
    Const,
    Expr,
    For,
    If,
    Index,
    Let,
    Register,
    Set,
    Stmt,
)


class Emitter:
    """Collects the statements of a phase.

    `share` gives equal expressions one register as long as the block that computed it is open.
    What is shared must not depend on registers that are set again; `forgetting` opens a stretch
    of statements whose values are forgotten afterwards.
    """

    def __init__(self) -> None:
        self._blocks: list[list[Stmt]] = [[]]
        self._numbers: list[dict[Expr, Expr]] = [{}]
        self._count = 0

    def register(self, stem: str) -> str:
        """A fresh register name."""
        self._count += 1
        return f"{stem}_{self._count}"

    def add(self, statement: Stmt) -> None:
        self._blocks[-1].append(statement)

    def set(self, register: Register, value: Expr) -> None:
        self.add(Set(register.name, value))

    def assign(self, registers: Sequence[Register], values: Sequence[Expr]) -> None:
        """Set registers all at once: values may read what another register held before."""
        taken = {r.name for r in registers}
        ready: list[Expr] = []
        for register, value in zip(registers, values, strict=True):
            if isinstance(value, Register) and value.name in taken and value != register:
                copy = Register(self.register("old"), value.dtype, value.lanes)
                self.set(copy, value)
                value = copy
            ready.append(value)
        for register, value in zip(registers, ready, strict=True):
            if register != value:
                self.set(register, widen(value, register.lanes))

    def rewritten(self, buffer: str) -> None:
        """What was loaded from the buffer before is not offered any more."""
        for numbers in self._numbers:
            for value in [v for v in numbers if getattr(v, "buffer", None) == buffer]:
                del numbers[value]

    def share(self, value: Expr, stem: str = "t") -> Expr:
        """An atom that has the value: constants and indices stay, the rest is put in a register."""
        if isinstance(value, (Const, Index, Register)):
            return value
        for numbers in reversed(self._numbers):
            found = numbers.get(value)
            if found is not None:
                return found
        register = Register(self.register(stem), value.dtype, value.lanes)
        self.set(register, value)
        self._numbers[-1][value] = register
        return register

    def shared(self, register: Expr) -> Expr | None:
        """What `share` put in that register, as long as it is offered."""
        pairs = (pair for numbers in self._numbers for pair in numbers.items())
        return next((value for value, found in pairs if found == register), None)

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Values shared inside are not offered afterwards (they read registers that change)."""
        self._numbers.append({})
        try:
            yield
        finally:
            self._numbers.pop()

    @contextmanager
    def block(self) -> Iterator[list[Stmt]]:
        """Statements added inside go to the list that is handed out, not to the open block."""
        statements: list[Stmt] = []
        self._blocks.append(statements)
        self._numbers.append({})
        try:
            yield statements
        finally:
            self._blocks.pop()
            self._numbers.pop()

    @contextmanager
    def loop(self, var: str, begin: Affine, end: Affine, step: int = 1) -> Iterator[None]:
        with self.block() as body:
            yield
        if body:
            self.add(For(var, begin, end, step, joined(body)))

    @contextmanager
    def let(self, var: str, value: Affine) -> Iterator[None]:
        with self.block() as body:
            yield
        if body:
            self.add(Let(var, value, joined(body)))

    @contextmanager
    def when(self, condition: Expr | None) -> Iterator[None]:
        """The statements added inside run where the condition holds (None: always)."""
        if condition is None:
            yield
            return
        with self.block() as body:
            yield
        self.branch(condition, body, [])

    def branch(self, condition: Expr, then: list[Stmt], orelse: list[Stmt]) -> None:
        if then or orelse:
            self.add(If(condition, joined(then), joined(orelse) if orelse else None))

    def finish(self) -> Stmt:
        """Everything added so far, as one statement."""
        return joined(self._blocks[0])


def joined(statements: list[Stmt]) -> Stmt:
    """The statements as one."""
    return statements[0] if len(statements) == 1 else Block(tuple(statements))


def widen(value: Expr, lanes: int) -> Expr:
    """A scalar in all lanes; vectors stay."""
    if value.lanes == lanes:
        return value
    if isinstance(value, Const):
        return Const(value.value, value.dtype, lanes)
    if isinstance(value, Index):
        return Index(value.value, 0, lanes)
    return Broadcast(value, lanes)
