"""What holds a layer that is bound by bytes: the bytes its stages must move, and the cycles its
instructions take, each counted as often as it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from convgen.bench.executed import count_instructions
from convgen.bench.ports import core_of, cycles_of
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import Kernel, Nest
from convgen.passes import pipeline
from convgen.runtime.build import Built, lowered
from convgen.schedule.access import loads_of
from convgen.symbolic.program import Program

_OWN = ("scratch", "packed", "constant")


@dataclass(frozen=True, slots=True)
class Work:
    """bytes: operands and results of every stage, each once a stage; cycles: of one core, for all
    instructions of the kernel at least; unit: what needs most of them."""

    bytes: int
    cycles: float
    unit: str


def work_of(program: Program, built: Built, arrays: Mapping[str, NDArray[Any]]) -> Work:
    """The work of the kernel that was built of a program, counted while it runs once on the
    arrays. Phases follow one another, so their cycles add up. Counting is for x86-64."""
    core = core_of(built.target.cpu_model)
    counted = count_instructions(built, arrays) if built.target.isa == "x86-64" else ()
    phases = [cycles_of(counts, core) for counts in counted]
    kernel = pipeline.scheduled(
        lowered(program, built.made_from["in_place"]), built.schedule or None, built.target
    )
    return Work(moved(kernel), sum(c for c, _ in phases), max(phases, default=(0.0, ""))[1])


def moved(kernel: Kernel) -> int:
    """Bytes that the stages of a scheduled kernel read and write. Pieces of one tensor are one
    stage; copies and what stays in a worker's scratch count nothing; results
    of stages computed inside others count."""
    read: dict[str, set[str]] = {}
    total = 0
    for nest in kernel.nests():
        if any(kernel.buffer(s.buffer).role in _OWN for s in nest.stores):
            continue
        read.setdefault(nest.name.split(".")[0], set()).update(_read(nest))
        inside = {s.buffer for a in nest.attached for s in a.nest.stores}
        total += _stored(kernel, nest) + sum(_sizes(kernel, inside))
    return total + sum(sum(_sizes(kernel, names)) for names in read.values())


def _read(nest: Nest) -> Iterator[str]:
    yield from (o.buffer.removesuffix("_packed") for o in loads_of(nest))
    for one in nest.attached:
        yield from _read(one.nest)


def _sizes(kernel: Kernel, names: set[str]) -> Iterator[int]:
    for buffer in kernel.buffers:
        if buffer.name in names and buffer.role not in _OWN:
            yield size_in_elements(buffer) * buffer.dtype.bytes


def _stored(kernel: Kernel, nest: Nest) -> int:
    extents = {name: high - low for name, low, high in nest.ranges}
    total = 0
    for store in nest.stores:
        names = {n for index in store.index for n in index.names()}
        points = math.prod(extents.get(n, 1) for n in names)
        total += points * kernel.buffer(store.buffer).dtype.bytes
    return total
