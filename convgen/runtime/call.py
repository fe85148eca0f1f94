"""Calls of a built kernel on addresses: where arguments lie, and the memory a call needs."""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from convgen.errors import InternalError
from convgen.runtime.arrays import Array
from convgen.runtime.build import Built
from convgen.runtime.native import NativeFunction
from convgen.runtime.threads import Table

_ALIGN = 64
_word = ctypes.c_size_t.from_address


def _pointer_offset() -> int | None:
    """Where an ndarray object keeps the address of its data; None where that cannot be told.

    Found by looking, not by knowing: the only word of the object that is that address in arrays of
    several kinds. Reading it takes a fifth of the time of ``array.ctypes.data``.
    """
    if sys.implementation.name != "cpython":
        return None
    probes = [np.zeros(3), np.zeros((2, 5), np.uint8), np.arange(4)[1:], np.zeros((3, 4)).T]
    size = min(np.ndarray.__basicsize__, *(sys.getsizeof(p[:0]) for p in probes))
    found = [
        offset
        for offset in range(0, size - ctypes.sizeof(ctypes.c_size_t) + 1, 8)
        if all(_word(id(p) + offset).value == p.ctypes.data for p in probes)
    ]
    return found[0] if len(found) == 1 else None


_OFFSET = _pointer_offset()


def addresses_of(arrays: Sequence[Array]) -> list[int]:
    """Where the arrays' data begin."""
    if _OFFSET is None:
        return [a.ctypes.data for a in arrays]
    return [_word(id(a) + _OFFSET).value for a in arrays]


def zeros_on_line(size: int) -> Array:
    """Zero bytes that start at a multiple of 64."""
    raw = np.zeros(size + _ALIGN, np.uint8)
    start = -raw.ctypes.data % _ALIGN
    return raw[start : start + size]


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where an argument's address comes from: array number `array`, or (-1) `offset` bytes into the
    workspace, the handle's own one if it was prepared `ahead`."""

    array: int
    offset: int = 0
    ahead: bool = False


class _Rows:
    """A table with what its runs need at hand. packed: where the packed inputs lie that its
    arguments name."""

    def __init__(self, table: Table, packed: int) -> None:
        self.table, self.packed = table, packed
        self.arguments = table.arguments(0)
        self.alone = table.alone()


class _Context:
    """One call's memory: workspace, argument tables of both kinds of call. Used by one call at a
    time, then by another."""

    def __init__(self, built: Built, slots: Sequence[_Slot]) -> None:
        self.workspace = zeros_on_line(built.workspace_bytes)
        self.base = self.workspace.ctypes.data
        table = [0 if s.array >= 0 else self.base + s.offset for s in slots]
        self.whole = _Rows(Table([(built, table)]), self.base)
        self.after = self.whole
        if built.packed:
            self.after = _Rows(Table([(built, table)], when="run"), self.base)


@dataclass(frozen=True)
class Prepared:
    """Inputs packed ahead by `CompiledKernel.prepare`; stands for them in calls of that kernel.

    It keeps its own copy: later changes of the arrays it was made from do not matter.
    """

    kernel: object
    arrays: Mapping[str, Array]
    built: Built | None
    workspace: Array | None

    @cached_property
    def shape(self) -> tuple[object, ...]:
        """Among the shapes of a call's arrays, it tells a handle from an array; handles of arrays
        of the same shapes are alike."""
        return Prepared, *(a.shape for a in self.arrays.values())

    @cached_property
    def address(self) -> int:
        return 0 if self.workspace is None else self.workspace.ctypes.data

    def serves(self, built: Built) -> bool:
        """True when it holds what that kernel's prepare phases make."""
        return self.built is built and self.workspace is not None

    def __repr__(self) -> str:
        return f"Prepared({', '.join(self.arrays)})"


class Caller:
    """A built kernel with memory for its calls, several at a time.

    names   the arrays that a call brings, in order; other arguments lie in the workspace
    """

    def __init__(self, built: Built, names: Sequence[str]) -> None:
        self.built, self.names = built, tuple(names)
        self._slots = _slots(built, names)
        self._free: list[_Context] = []
        count = len(names)
        lead = [s.array for s in self._slots[:count]]
        rest = [s.array for s in self._slots[count:]]
        in_order = lead == list(range(count)) and all(i < 0 for i in rest)
        self._pack = struct.Struct(f"={count}Q").pack_into if in_order and count else None

    @cached_property
    def function(self) -> NativeFunction:
        """The kernel as one C function."""
        return NativeFunction(self.built, self.names)

    def run(self, addresses: Sequence[int], threads: int | None, packed: int = 0) -> None:
        """Run on the addresses of the arrays. `packed`: the workspace of `prepare`, whose phases
        are then left out."""
        try:
            context = self._free.pop()
        except IndexError:
            context = _Context(self.built, self._slots)
        rows = context.after if packed else context.whole
        packed = packed or context.base
        if self._pack is None or rows.packed != packed:
            rows.table.bind(0, self._table(addresses, context.base, packed))
            rows.packed = packed
        else:
            # The arrays come first among the arguments, and all others are there already.
            self._pack(rows.arguments, 0, *addresses)
        if threads == 1 or not rows.table.parallel:
            rows.alone()
        else:
            rows.table.run(threads)
        self._free.append(context)

    def prepare(self, addresses: Sequence[int], threads: int | None) -> Array:
        """Run the prepare phases only: a workspace with what they made, for `run`. An array that
        they do not read may have any address."""
        workspace = zeros_on_line(self.built.workspace_bytes)
        base = workspace.ctypes.data
        table = self._table(addresses, base, base)
        Table([(self.built, table)], when="prepare").run(threads)
        return workspace

    def _table(self, addresses: Sequence[int], base: int, packed: int) -> list[int]:
        return [
            addresses[s.array] if s.array >= 0 else (packed if s.ahead else base) + s.offset
            for s in self._slots
        ]


def _slots(built: Built, names: Sequence[str]) -> tuple[_Slot, ...]:
    """Where each argument's address comes from, when arrays come in the order of `names`."""
    slots: list[_Slot] = []
    for argument in built.arguments:
        if argument.name in names:
            slots.append(_Slot(names.index(argument.name)))
        elif argument.name in built.offsets:
            ahead = argument.name in built.packed
            slots.append(_Slot(-1, built.offsets[argument.name], ahead))
        else:
            raise InternalError(f"nothing to bind {argument.name} to", stage="kernel")
    return tuple(slots)
