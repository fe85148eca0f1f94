"""Memory safety: every access that always happens lies inside its buffer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from convgen.affine import Affine, Constraint, FloorDiv, Mod
from convgen.errors import InternalError
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import (
    Block,
    Buffer,
    Const,
    Expr,
    For,
    If,
    Index,
    Kernel,
    Let,
    Op,
    Phase,
    Set,
    Stmt,
    Store,
    VectorLoad,
)
from convgen.ir.regions import tighten
from convgen.ir.visit import walk

Ranges: TypeAlias = Mapping[str, tuple[int, int]]


def check_memory(kernel: Kernel) -> None:
    """InternalError when an unconditional access can leave its buffer.

    Offsets are bounded over the ranges of the loops around them, narrowed by the conditions of the
    Ifs around them. Accesses inside an If, masked lanes and offsets that were computed (edges,
    gathers) rest on their conditions and are not judged.
    """
    buffers = {b.name: b for b in kernel.buffers}
    for phase in kernel.phases:
        assert not isinstance(phase.body, tuple)
        tasks = max(phase.extent, 1)
        start: Ranges = {"begin": (0, tasks + 1), "end": (0, tasks + 1)}
        _check(phase.body, start, False, buffers, phase)


def _check(
    stmt: Stmt, ranges: Ranges, conditional: bool, buffers: Mapping[str, Buffer], phase: Phase
) -> None:
    if isinstance(stmt, Block):
        for part in stmt.body:
            _check(part, ranges, conditional, buffers, phase)
    elif isinstance(stmt, For):
        low = stmt.begin.bounds(ranges)[0]
        high = stmt.end.bounds(ranges)[1]
        if "end" in stmt.end.names():
            high = max(phase.extent, 1)
        if high <= low:
            return
        last = low + (high - 1 - low) // stmt.step * stmt.step
        _check(stmt.body, {**ranges, stmt.var: (low, last + 1)}, conditional, buffers, phase)
    elif isinstance(stmt, Let):
        low, high = stmt.value.bounds(ranges)
        _check(stmt.body, {**ranges, stmt.var: (low, high + 1)}, conditional, buffers, phase)
    elif isinstance(stmt, If):
        held = tuple(_constraints(stmt.condition))
        _check(stmt.then, tighten(ranges, held), True, buffers, phase)
        if stmt.orelse is not None:
            _check(stmt.orelse, ranges, True, buffers, phase)
    elif not conditional:
        for offset, buffer, reach in _accesses(stmt):
            _judge(offset, buffers[buffer], reach, ranges, phase)


def _constraints(condition: Expr) -> Iterator[Constraint]:
    """What a condition says, as far as it is a conjunction of comparisons of indices with 0."""
    if not isinstance(condition, Op):
        return
    if condition.name == "and":
        for part in condition.args:
            yield from _constraints(part)
    elif condition.name == "le" and condition.lanes == 1:
        value, zero = condition.args
        if isinstance(value, Index) and isinstance(zero, Const) and zero.value == 0:
            yield Constraint("<=", value.value)


def _accesses(stmt: Set | Store) -> Iterator[tuple[Affine, str, int]]:
    """(offset, buffer, distance of the last lane) of the accesses that always happen."""
    if isinstance(stmt, Store):
        if stmt.mask is None and isinstance(stmt.offset, Index):
            yield stmt.offset.value, stmt.buffer, (stmt.valid - 1) * stmt.stride
    for node in walk(stmt.value):
        if isinstance(node, VectorLoad) and node.mask is None and isinstance(node.offset, Index):
            yield node.offset.value, node.buffer, (node.valid - 1) * node.stride


def affine_bounds(value: Affine, ranges: Ranges) -> tuple[int, int]:
    """(smallest, largest), also by way of v == d*(v // d) + v % d where v and v // d occur; of
    several such pairs each is told apart that narrows the bounds.

    >>> a, b = Affine.of("a"), Affine.of("b")
    >>> affine_bounds(72 * a - 208 * (a // 3) + 24 * b - 71 * (b // 3), {"a": (0, 3), "b": (0, 9)})
    (0, 194)
    """
    low, high = value.bounds(ranges)
    span = high - low
    for atom in [a for a, _ in value.terms if isinstance(a, FloorDiv) and a.value.terms]:
        coefficients = dict(value.terms)
        first, unit = atom.value.terms[0]
        times = coefficients.get(first, 0) // unit
        if not times or atom not in coefficients:
            continue
        quotient, rest = Affine.of(atom), Affine.of(Mod(atom.value, atom.divisor))
        other = value - atom.value * times - quotient * coefficients[atom]
        digits = quotient * (coefficients[atom] + times * atom.divisor) + rest * times
        bounds = (other + digits).bounds(ranges)
        low, high = max(low, bounds[0]), min(high, bounds[1])
        if bounds[1] - bounds[0] <= span:
            value, span = other + digits, bounds[1] - bounds[0]
    return low, high


def _judge(offset: Affine, buffer: Buffer, reach: int, ranges: Ranges, phase: Phase) -> None:
    low, high = affine_bounds(offset, ranges)
    low, high = low + min(reach, 0), high + max(reach, 0)
    if low < 0 or high >= size_in_elements(buffer):
        raise InternalError(
            f"phase {phase.name}: {buffer.name}[{offset}] reaches {low}..{high}; wanted "
            f"0..{size_in_elements(buffer) - 1}",
            stage="flatten",
        )
