"""Vectors stored with a step, put together: where neighbouring vectors hold what lies side by side
in memory, they are transposed in registers and stored as rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from convgen.affine import Affine
from convgen.backends.llvm import memory
from convgen.backends.llvm.builder import Builder, Value
from convgen.ir.nodes import Expr, Gather, Index, Store, VectorLoad
from convgen.ir.visit import walk
from convgen.target import Target
from convgen.types import DType

_LANE_BYTES = 16  # what unpacking instructions treat as one unit


@dataclass(frozen=True, slots=True)
class _Column:
    """A store that waits: its vector goes to terms + constant + lane*stride."""

    constant: int
    value: Value
    stride: int
    valid: int


@dataclass(slots=True)
class Waiting:
    """Stores of one block that wait for their neighbours, by buffer; all those of a buffer have the
    same varying part of their offset and touch different elements, so their order is free."""

    terms: dict[str, Affine] = field(default_factory=dict)
    columns: dict[str, list[_Column]] = field(default_factory=dict)
    elements: dict[str, set[int]] = field(default_factory=dict)

    def fits(self, store: Store) -> bool:
        """True when the store can join those that wait."""
        assert isinstance(store.offset, Index)
        if store.buffer not in self.columns:
            return True
        value = store.offset.value
        touched = range(value.constant, value.constant + store.valid * store.stride, store.stride)
        same = self.terms[store.buffer] == value - value.constant
        return same and self.elements[store.buffer].isdisjoint(touched)

    def add(self, store: Store, value: Value) -> None:
        assert isinstance(store.offset, Index)
        where, name = store.offset.value, store.buffer
        self.terms[name] = where - where.constant
        column = _Column(where.constant, value, store.stride, min(store.valid, value.lanes))
        self.columns.setdefault(name, []).append(column)
        reach = range(where.constant, where.constant + store.valid * store.stride, store.stride)
        self.elements.setdefault(name, set()).update(reach)

    def complete(self, store: Store) -> bool:
        """True when what waits for the buffer of the store is one square, with nothing to come."""
        columns = self.columns[store.buffer]
        return len(columns) == store.value.lanes and len(list(_runs(columns))) == 1

    def take(self) -> Iterator[tuple[str, Affine, list[_Column]]]:
        """(buffer, offset of the first, neighbours) for each run; nothing waits afterwards."""
        for name, columns in self.columns.items():
            for run in _runs(columns):
                yield name, self.terms[name] + run[0].constant, run
        self.terms, self.columns, self.elements = {}, {}, {}

    def meets(self, value: Expr) -> bool:
        """True when the value reads a buffer that stores wait for."""
        parts = walk(value) if self.columns else ()
        return any(isinstance(p, (VectorLoad, Gather)) and p.buffer in self.columns for p in parts)


def may_wait(store: Store, kind: DType) -> bool:
    """True for a vector stored with a step, as elements of that kind, at a plain offset."""
    return (
        store.stride not in (0, 1)
        and store.mask is None
        and store.value.lanes > 1
        and store.valid > 1
        and kind.bytes in (4, 8)
        and isinstance(store.offset, Index)
    )


def _runs(columns: Sequence[_Column]) -> Iterator[list[_Column]]:
    """Neighbours: same step and lanes, one element apart; at most as many as a vector has lanes."""
    run: list[_Column] = []
    ordered = sorted(columns, key=lambda c: (c.stride, c.valid, c.value.lanes, c.constant))
    for column in ordered:
        before = run[-1] if run else None
        if before is not None and not (
            (before.stride, before.valid) == (column.stride, column.valid)
            and before.value.lanes == column.value.lanes
            and before.constant + 1 == column.constant
            and len(run) < column.value.lanes
        ):
            yield run
            run = []
        run.append(column)
    if run:
        yield run


def store_run(b: Builder, place: memory.Place, run: Sequence[_Column], target: Target) -> None:
    """The vectors of a run, transposed where there are two at least."""
    first = run[0]
    if len(run) == 1:
        memory.store(b, place, first.stride, first.value, first.valid, target)
        return
    if first.stride == len(run) and first.valid == first.value.lanes and len(run) <= 4:
        for number, vector in enumerate(interleaved(b, [c.value for c in run])):
            memory.store(
                b, place.shifted(b, number * vector.lanes), 1, vector, vector.lanes, target
            )
        return
    rows = transposed(b, [c.value for c in run])
    for lane in range(first.valid):
        shifted = place.shifted(b, lane * first.stride)
        memory.store(b, shifted, 1, rows[lane], len(run), target)


def interleaved(b: Builder, columns: Sequence[Value]) -> list[Value]:
    """Vectors whose elements taken in turn, lane by lane: a0 b0 a1 b1 ..., as many vectors."""
    lanes, count = columns[0].lanes, len(columns)
    found: list[Value] = []
    for number in range(count):
        wanted = [divmod(number * lanes + i, count) for i in range(lanes)]
        total = memory.shuffle(b, columns[0], [lane if c == 0 else 2 * lanes for lane, c in wanted])
        for place, column in enumerate(columns[1:], 1):
            order = [
                lanes + lane if c == place else i if c < place else 2 * lanes
                for i, (lane, c) in enumerate(wanted)
            ]
            total = memory.shuffle(b, total, order, column)
        found.append(total)
    return found


def transposed(b: Builder, columns: Sequence[Value]) -> list[Value]:
    """For each lane a vector of that lane of every column, in order; further lanes are poison.

    Squares of elements inside 16 bytes first (unpacking), then squares of 16-byte pieces.
    """
    lanes = columns[0].lanes
    unit = min(lanes, _LANE_BYTES // columns[0].dtype.bytes)
    rows: list[Value | None] = [*columns, *[None] * (lanes - len(columns))]
    groups = [_unpacked(b, rows[g : g + unit], lanes, unit) for g in range(0, lanes, unit)]
    found: list[Value | None] = [None] * lanes
    for k in range(unit):
        for piece, vector in enumerate(_pieces(b, [g[k] for g in groups], lanes, unit)):
            found[unit * piece + k] = vector
    return [v for v in found if v is not None]


def _unpacked(
    b: Builder, rows: Sequence[Value | None], lanes: int, unit: int
) -> list[Value | None]:
    """Rows of one group so that vector k holds in each 16 bytes element k of every row."""
    if unit == 1 or all(r is None for r in rows):
        return list(rows)
    half = unit // 2
    halves: list[list[Value | None]] = []
    for pair in range(0, unit, 2):
        made: list[Value | None] = []
        for high in (0, 1):
            order = [
                part * lanes + base + high * half + i
                for base in range(0, lanes, unit)
                for i in range(half)
                for part in (0, 1)
            ]
            made.append(_joined(b, rows[pair], rows[pair + 1], order))
        halves.append(made)
    if unit == 2:
        return halves[0]
    found: list[Value | None] = []
    for high in (0, 1):
        for part in (0, 1):
            order = [
                which * lanes + base + 2 * part + i
                for base in range(0, lanes, unit)
                for which in (0, 1)
                for i in (0, 1)
            ]
            found.append(_joined(b, halves[0][high], halves[1][high], order))
    return found


def _pieces(
    b: Builder, vectors: Sequence[Value | None], lanes: int, unit: int
) -> list[Value | None]:
    """Vector j holds piece j of every vector, in order."""
    if len(vectors) == 1:
        return list(vectors)
    sides: list[list[Value | None]] = []
    for odd in (0, 1):
        order = [
            which * lanes + base + i
            for which in (0, 1)
            for base in range(odd * unit, lanes, 2 * unit)
            for i in range(unit)
        ]
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        sides.append(_pieces(b, [_joined(b, one, two, order) for one, two in pairs], lanes, unit))
    return [v for both in zip(*sides, strict=True) for v in both]


def _joined(
    b: Builder, first: Value | None, second: Value | None, order: list[int]
) -> Value | None:
    """A shuffle of two vectors of which either may be missing."""
    if first is None and second is None:
        return None
    if first is None:
        assert second is not None
        lanes = second.lanes
        return memory.shuffle(b, second, [i - lanes if i >= lanes else lanes for i in order])
    return memory.shuffle(b, first, order, second)
