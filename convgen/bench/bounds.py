"""What holds a layer that is bound by bytes: the bytes its stages must move, and the instructions
of its hot loops, counted in the assembly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from convgen.backends.assembly import functions, hot_loop
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import Kernel, Nest
from convgen.passes import pipeline
from convgen.runtime.build import lowered
from convgen.schedule.access import loads_of
from convgen.schedule.machine import Machine, machine_of
from convgen.symbolic.program import Program
from convgen.target import Target

_ISSUED = 6.0  # instructions of all kinds that a core starts in a cycle
_OWN = ("scratch", "packed", "constant")


@dataclass(frozen=True, slots=True)
class Work:
    """bytes: operands and results of every stage, each once a stage; cycles: of one core, for the
    instructions of the hot loops."""

    bytes: int
    cycles: float


def work_of(program: Program, asm: str, target: Target) -> Work:
    """The work of a program's kernel with the default schedule, whose assembly that is."""
    kernel = pipeline.scheduled(lowered(program, True), None, target)
    texts = list(functions(asm).values())
    machine = machine_of(target)
    cycles = 0.0
    for phase, text in zip(kernel.phases, texts, strict=False):
        nests = phase.body if isinstance(phase.body, tuple) else ()
        stored = sum(_stored(kernel, n) for n in nests)
        read = sum(_sizes(kernel, {b for n in nests for b in _read(n)}))
        cycles += _cycles(text, stored, read, machine)
    return Work(moved(kernel), cycles)


def moved(kernel: Kernel) -> int:
    """Bytes that the stages of a scheduled kernel read and write. Pieces of one tensor are one
    stage; copies and what stays in a worker's scratch count nothing."""
    read: dict[str, set[str]] = {}
    total = 0
    for nest in kernel.nests():
        if any(kernel.buffer(s.buffer).role in _OWN for s in nest.stores):
            continue
        read.setdefault(nest.name.split(".")[0], set()).update(_read(nest))
        total += _stored(kernel, nest)
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


def _cycles(text: str, stored: int, read: int, machine: Machine) -> float:
    """Cycles of one core for a phase: its hot loop as often as its stores (where it stores no whole
    vectors, its loads) make up what the phase stores (reads)."""
    hot = hot_loop(text)
    if hot is None:
        return 0.0
    written = sum(hot.stores)
    done = stored / written if written else read / max(hot.width * hot.loads, 1)
    each = max(
        hot.instructions / _ISSUED,
        hot.computing / machine.fma_rate,
        hot.loads / machine.load_rate,
        float(len(hot.stores)),
    )
    return done * each
