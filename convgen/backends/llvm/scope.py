"""What is visible at one point of a function, and integer expressions over it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from typing_extensions import assert_never

from convgen.affine import Affine, FloorDiv, Mod
from convgen.backends.llvm.builder import Builder, Value
from convgen.errors import InternalError
from convgen.ir.nodes import Block, For, If, Let, Set, Stmt, Store


@dataclass
class Scope:
    """What is visible at one point: integer variables, registers, address parts known so far."""

    variables: dict[str, str]
    registers: dict[str, Value]
    partial: dict[object, str] = field(default_factory=dict[object, str])

    def inner(self) -> Scope:
        return Scope(dict(self.variables), dict(self.registers), dict(self.partial))

    def affine(self, b: Builder, value: Affine) -> str:
        """The i64 of an index expression; equal parts are shared within a scope."""
        if not value.terms:
            return str(value.constant)
        known = self.partial.get(value)
        if known is None:
            known = self._sum(b, value)
            self.partial[value] = known
        return known

    def _sum(self, b: Builder, value: Affine) -> str:
        order = list(self.variables)
        ranked = sorted(value.terms, key=lambda t: _depth(t[0], order))
        total = ""
        for atom, coefficient in ranked:
            term = self._atom(b, atom)
            if coefficient != 1:
                term = b.assign(f"mul nsw i64 {term}, {coefficient}", "i")
            total = b.assign(f"add nsw i64 {total}, {term}", "i") if total else term
        if value.constant:
            total = b.assign(f"add nsw i64 {total}, {value.constant}", "i")
        return total

    def _atom(self, b: Builder, atom: str | FloorDiv | Mod) -> str:
        if isinstance(atom, str):
            name = self.variables.get(atom)
            if name is None:
                raise InternalError(f"there is no variable {atom} here", stage="llvm")
            return name
        value, divisor = self.affine(b, atom.value), atom.divisor
        if divisor & (divisor - 1) == 0:
            if isinstance(atom, Mod):
                return b.assign(f"and i64 {value}, {divisor - 1}", "i")
            return b.assign(f"ashr i64 {value}, {divisor.bit_length() - 1}", "i")
        rest = b.assign(f"srem i64 {value}, {divisor}", "i")
        negative = b.assign(f"icmp slt i64 {rest}, 0", "i")
        if isinstance(atom, Mod):
            wrapped = b.assign(f"add nsw i64 {rest}, {divisor}", "i")
            return b.assign(f"select i1 {negative}, i64 {wrapped}, i64 {rest}", "i")
        whole = b.assign(f"sdiv i64 {value}, {divisor}", "i")
        less = b.assign(f"sext i1 {negative} to i64", "i")
        return b.assign(f"add nsw i64 {whole}, {less}", "i")


def _depth(atom: object, order: list[str]) -> int:
    """How deep the innermost variable of an atom was defined: outer terms are added first."""
    if isinstance(atom, str):
        return order.index(atom) if atom in order else len(order)
    if isinstance(atom, FloorDiv | Mod):
        return max((_depth(n, order) for n in atom.value.names()), default=0)
    return 0


def forget(known: dict[object, str], var: str) -> dict[object, str]:
    """Shared address parts that do not mention a variable about to be bound anew."""
    kept: dict[object, str] = {}
    for key, value in known.items():
        whole = key if isinstance(key, Affine) else Affine(key[1], 0)  # type: ignore[index]
        if var not in whole.names():
            kept[key] = value
    return kept


def statements(stmt: Stmt) -> Iterator[Stmt]:
    """A statement and everything inside it."""
    yield stmt
    match stmt:
        case Block(body):
            for one in body:
                yield from statements(one)
        case For(body=body) | Let(body=body):
            yield from statements(body)
        case If(_, then, orelse):
            yield from statements(then)
            if orelse is not None:
                yield from statements(orelse)
        case Set() | Store():
            return
        case _:
            assert_never(stmt)
