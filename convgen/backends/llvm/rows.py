"""Vectors loaded with a step, taken together: where neighbours lie side by side in memory, rows of
them are loaded and transposed in registers."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace

from convgen.affine import Affine
from convgen.backends.llvm import memory
from convgen.backends.llvm.builder import Builder, Value
from convgen.backends.llvm.transpose import transposed
from convgen.ir.nodes import Index, Register, Set, Stmt, Store, VectorLoad
from convgen.target import Target


class Run:
    """Loads of one block, one element apart: the statements' places in it, in memory's order."""

    def __init__(self, places: Sequence[int], sets: Sequence[Set]) -> None:
        self.places = tuple(places)
        self.registers = tuple(s.register for s in sets)
        first = sets[0].value
        assert isinstance(first, VectorLoad)
        self.load = first

    def columns(self, b: Builder, place: memory.Place, target: Target) -> list[Value]:
        """The value of each register. `place`: where the first load begins."""
        load, count = self.load, len(self.registers)
        rows = [
            self._row(b, place, lane, target)
            if lane < load.valid
            else b.constant(0, load.dtype, load.lanes)
            for lane in range(load.lanes)
        ]
        return transposed(b, rows)[:count]

    def _row(self, b: Builder, place: memory.Place, lane: int, target: Target) -> Value:
        """One lane of every load, in whole vectors: what lies between the first and the last
        element is part of the buffer, and masked loads take many times as long."""
        load, count, lanes = self.load, len(self.registers), self.load.lanes
        first, stop = lane * load.stride, (load.valid - 1) * load.stride + count
        back = max(0, first + lanes - stop)
        if back > first:
            return memory.load(b, place.shifted(b, first), 1, lanes, count, target)
        whole = memory.load(b, place.shifted(b, first - back), 1, lanes, lanes, target)
        order = [i + back if i + back < lanes else lanes for i in range(lanes)]
        return memory.shuffle(b, whole, order) if back else whole


def runs_of(body: Sequence[Stmt], written: Container[str], known: Container[str]) -> dict[int, Run]:
    """The runs of a block's loads, by the place of their first statement. Buffers that are written
    and registers that are set elsewhere are left alone."""
    groups: dict[tuple[str, int, int, int, Affine], dict[int, tuple[int, Set]]] = {}
    counts: dict[str, int] = {}
    for one in body:
        if isinstance(one, Set):
            counts[one.register] = counts.get(one.register, 0) + 1
    for place, one in enumerate(body):
        if not isinstance(one, Set) or counts[one.register] > 1 or one.register in known:
            continue
        load = one.value
        if isinstance(load, VectorLoad) and _may_turn(load) and load.buffer not in written:
            assert isinstance(load.offset, Index)
            value = load.offset.value
            key = (load.buffer, load.stride, load.lanes, load.valid, value - value.constant)
            groups.setdefault(key, {}).setdefault(value.constant, (place, one))
    found: dict[int, Run] = {}
    for (_, _, lanes, _, _), group in groups.items():
        for run in _neighbours(group, lanes):
            found[min(place for place, _ in run)] = Run(*zip(*run, strict=True))
    return found


def loads_apart(body: Sequence[Stmt], known: Container[str]) -> tuple[Stmt, ...]:
    """The block with loads that may have neighbours in statements of their own, before the stores
    of what they load; their registers are none of those that are known."""
    found: list[Stmt] = []
    for place, one in enumerate(body):
        if isinstance(one, Store) and isinstance(one.value, VectorLoad) and _may_turn(one.value):
            load = one.value
            register = f"row.{place}"
            while register in known:
                register += "'"
            found.append(Set(register, load))
            one = replace(one, value=Register(register, load.dtype, load.lanes))
        found.append(one)
    return tuple(found)


def _may_turn(load: VectorLoad) -> bool:
    """True for whole elements with a step that takes a load for each lane."""
    return (
        load.stride > 2
        and load.mask is None
        and load.lanes > 1
        and load.valid > 1
        and load.dtype.bytes in (4, 8)
        and isinstance(load.offset, Index)
    )


def _neighbours(group: dict[int, tuple[int, Set]], lanes: int) -> Iterator[list[tuple[int, Set]]]:
    """Two loads at least, one element apart each; at most as many as a vector has lanes."""
    run: list[tuple[int, Set]] = []
    before: int | None = None
    for constant in sorted(group):
        if before is None or constant != before + 1 or len(run) == lanes:
            if len(run) > 1:
                yield run
            run = []
        run.append(group[constant])
        before = constant
    if len(run) > 1:
        yield run
