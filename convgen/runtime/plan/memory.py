"""Calls of kernels over one block of memory.

Regions of memory are shared by values whose lifetimes do not meet. A plan is run in one native
call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.ir.layout import align as aligned
from convgen.layers.base import Shape
from convgen.runtime.build import Built
from convgen.runtime.call import zeros_on_line
from convgen.runtime.threads import Range, Table
from convgen.symbolic.program import Program
from convgen.types import DType


@dataclass
class Region:
    """A stretch of the arena: in use from call `first` to call `last`. `array` set: memory that
    belongs to the caller (weights), not to the arena. `parent` set: a part of that region, `start`
    bytes behind its beginning. `kind` says what it is for: a "value", "prepared" (weights packed
    for a kernel, kept) or "work" (a kernel's own temporaries)."""

    name: str
    shape: Shape
    dtype: DType
    first: int = 1 << 30
    last: int = -1
    kept: bool = False
    offset: int = -1
    array: NDArray[Any] | None = None
    parent: Region | None = None
    start: int = 0
    kind: str = "value"

    def touch(self, call: int) -> None:
        """Record that a call uses the region."""
        self.first, self.last = min(self.first, call), max(self.last, call)
        if self.parent is not None:
            self.parent.touch(call)

    def keep(self) -> None:
        """Never share the region's memory."""
        self.kept = True
        if self.parent is not None:
            self.parent.keep()

    @property
    def bytes(self) -> int:
        total = self.dtype.bytes
        for extent in self.shape:
            total *= extent
        return total


@dataclass(frozen=True)
class Call:
    """One kernel on regions: `regions[i]` is argument buffer i of the kernel. `ahead`: its prepare
    phases read nothing but weights and need to run only when those have changed."""

    title: str
    built: Built
    regions: tuple[Region, ...]
    ahead: bool = False


@dataclass
class PlanBuilder:
    """Collects calls and regions; `finish` lays out memory and makes the table."""

    build: Callable[[Program], Built]
    dtype: DType
    prepares: bool = False  # weights are packed ahead of the run, and the copies stay
    calls: list[Call] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)

    def region(
        self, name: str, shape: Shape, dtype: DType | None = None, *, kept: bool = False
    ) -> Region:
        region = Region(name, tuple(shape), dtype or self.dtype, kept=kept)
        self.regions.append(region)
        return region

    def outside(self, name: str, array: NDArray[Any], dtype: DType) -> Region:
        """A region that lives in an array of the caller."""
        region = Region(name, array.shape, dtype, kept=True, array=array)
        self.regions.append(region)
        return region

    def call(self, title: str, program: Program, bound: Mapping[str, Region]) -> None:
        """Append the kernel of a program; every tensor of the caller is named in `bound`.

        Updates of states happen in place (the kernel writes the state's own region)."""
        built = self.build(program)
        ahead = self.prepares and all(
            bound[name].array is not None for name in built.prepared if name in bound
        )
        places: list[Region] = []
        for buffer in built.arguments:
            place = bound.get(buffer.name)
            if place is None:
                name = f"{len(self.calls)}.{title}.{buffer.name}"
                stays = ahead and buffer.name in built.packed
                place = self.region(name, (built.bytes_of(buffer),), _BYTE, kept=stays)
                place.kind = "prepared" if stays else "work"
            place.touch(len(self.calls))
            places.append(place)
        self.calls.append(Call(title, built, tuple(places), ahead))

    def finish(self, cut: int | None = None) -> Plan:
        """The plan; `cut`: the number of the call where its second part begins."""
        size = _lay_out(self.regions, len(self.calls))
        arena = zeros_on_line(size)
        return Plan(tuple(self.calls), tuple(self.regions), arena, cut)


_BYTE = DType("u8", "uint", 8)


def _lay_out(regions: Sequence[Region], calls: int) -> int:
    """Give every arena region an offset, the largest first, where no region alive at the same time
    lies; returns the arena's size."""
    placed: list[Region] = []
    for region in regions:
        if region.kept:
            region.first, region.last = 0, calls
    own = [r for r in regions if r.array is None and r.parent is None]
    for region in sorted(own, key=lambda r: (-r.bytes, r.name)):
        taken = sorted(
            (p.offset, p.offset + aligned(p.bytes))
            for p in placed
            if p.first <= region.last and region.first <= p.last
        )
        offset = 0
        for start, end in taken:
            if start - offset >= aligned(region.bytes):
                break
            offset = max(offset, end)
        region.offset = offset
        placed.append(region)
    return max((r.offset + aligned(r.bytes) for r in placed), default=0)


@dataclass(frozen=True)
class _Phases:
    """Some phases of a kernel."""

    ranges: tuple[Range, ...]

    @staticmethod
    def at(phases: Sequence[Range], when: str) -> _Phases:
        return _Phases(tuple(p for p in phases if p.when == when))


class Plan:
    """Calls bound to memory; `run` is one native call, or one for each part of a plan that is cut.

    `prepare` packs the weights of the calls that have this done ahead; to be run again whenever
    weights have changed."""

    def __init__(
        self,
        calls: tuple[Call, ...],
        regions: tuple[Region, ...],
        arena: NDArray[np.uint8],
        cut: int | None = None,
    ) -> None:
        self.calls, self.regions, self.arena = calls, regions, arena
        self._by_name = {r.name: r for r in regions}
        ahead: list[tuple[_Phases, list[int]]] = []
        rows: list[tuple[_Phases, list[int]]] = []
        for call in calls:
            addresses = [self._address(r) for r in call.regions]
            phases = call.built.ranges
            if call.ahead:
                ahead.append((_Phases.at(phases, "prepare"), addresses))
                phases = _Phases.at(phases, "run").ranges
            rows.append((_Phases(phases), addresses))
        self._prepare = Table(ahead)
        parts = [rows] if cut is None else [rows[:cut], rows[cut:]]
        self._parts = tuple(map(Table, parts))

    def _address(self, region: Region) -> int:
        if region.array is not None:
            return region.array.ctypes.data
        if region.parent is not None:
            return self._address(region.parent) + region.start
        return self.arena.ctypes.data + region.offset

    def view(self, name: str) -> NDArray[Any]:
        """The region of that name as an array; valid as long as the plan lives."""
        region = self._by_name[name]
        if region.array is not None:
            return region.array
        flat = self._memory(region)[: region.bytes]
        return flat.view(region.dtype.numpy_name).reshape(region.shape)

    def _memory(self, region: Region) -> NDArray[np.uint8]:
        """The bytes from the beginning of a region on."""
        if region.array is not None:
            return region.array.reshape(-1).view(np.uint8)
        if region.parent is not None:
            return self._memory(region.parent)[region.start :]
        return self.arena[region.offset :]

    def prepare(self, threads: int) -> None:
        """Pack weights ahead of runs."""
        self._prepare.run(threads)

    def run(self, threads: int) -> None:
        """Run all calls in order."""
        for table in self._parts:
            table.run(threads)

    def run_part(self, part: int, threads: int) -> None:
        """Run the calls before (0) or behind (1) the cut."""
        self._parts[part].run(threads)

    @property
    def bytes(self) -> int:
        """Size of the arena."""
        return self.arena.nbytes

    def usage(self, threads: int = 1) -> dict[str, int]:
        """Bytes of the arena by what they are for, and the scratch of the threads beside it.

        prepared      weights packed for kernels, kept
        activations   the values that exist at the same time, where they are most
        workspace     the rest: kernels' temporaries, gaps, scratch of each thread
        """
        own = [r for r in self.regions if r.array is None and r.parent is None]
        prepared = sum(aligned(r.bytes) for r in own if r.kind == "prepared")
        values = [r for r in own if r.kind == "value"]
        activations = max(
            (
                sum(r.bytes for r in values if r.first <= call <= r.last)
                for call in range(len(self.calls))
            ),
            default=0,
        )
        scratch = max(t.scratch_bytes for t in (self._prepare, *self._parts)) * threads
        workspace = self.bytes - prepared - activations + scratch
        return {"prepared": prepared, "activations": activations, "workspace": workspace}
