"""How fast bytes come: reading and copying from each level of memory, on some cores at once."""

from __future__ import annotations

import ctypes
import math
import threading
import time
from dataclasses import dataclass

import numpy as np

from convgen.affine import Affine
from convgen.backends import llvm
from convgen.bench.arrays import random_array
from convgen.ir.nodes import (
    Block,
    Broadcast,
    Buffer,
    Const,
    For,
    Form,
    Index,
    Kernel,
    Layout,
    Op,
    Phase,
    Register,
    Set,
    Stmt,
    Store,
    VectorLoad,
)
from convgen.target import Target, target
from convgen.types import f32

KINDS = ("read", "copy")
_UNROLLED = 8
_BYTES = 1 << 27  # that a run moves at least, over all repetitions
_ENTRY = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2)


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Gigabytes a second that `threads` cores together read, or read and write, in a level."""

    level: str
    kind: str
    threads: int
    kilobytes: int
    gigabytes_per_second: float


def moving_kernel(kind: str, elements: int, repeats: int, lanes: int) -> Kernel:
    """X is added up, or copied to Y with the number of the repetition added, `repeats` times."""
    step = _UNROLLED * lanes
    sums = [f"s{j}" for j in range(_UNROLLED)]

    def load(j: int) -> VectorLoad:
        return VectorLoad("X", Index(Affine.of("i") + j * lanes), 1, f32, lanes, lanes)

    def register(name: str) -> Register:
        return Register(name, f32, lanes)

    body: list[Stmt] = []
    for j, name in enumerate(sums):
        if kind == "read":
            body.append(Set(name, Op("add", (register(name), load(j)), f32, lanes)))
        else:
            value = Op("add", (load(j), register("turn")), f32, lanes)
            body.append(Store("Y", Index(Affine.of("i") + j * lanes), 1, value, lanes))
    inner = For("i", Affine(), Affine((), elements), step, Block(tuple(body)))
    turn = Broadcast(Op("cast", (Index(Affine.of("turn")),), f32), lanes)
    outer = For("turn", Affine(), Affine((), repeats), 1, Block((Set("turn", turn), inner)))
    first = [Set(name, Const(0.0, f32, lanes)) for name in sums]
    last = [
        Store("Y", Index(Affine((), j * lanes)), 1, register(name), lanes)
        for j, name in enumerate(sums)
    ]
    whole = (*first, outer, *last) if kind == "read" else (outer,)
    layout = Layout.rowmajor(1)
    buffers = (
        Buffer("X", f32, (elements,), layout, "input"),
        Buffer("Y", f32, (step if kind == "read" else elements,), layout, "output"),
    )
    return Kernel(f"{kind}_{elements}", buffers, (Phase("move", Block(whole)),), Form.FLAT)


def levels(machine: Target, threads: int) -> dict[str, int]:
    """Bytes that each thread touches to stay in a level and out of the one before."""
    found = {"L1": machine.l1 // 2, "L2": machine.l2 // 2}
    if machine.l3:
        found["L3"] = max(2 * machine.l2, machine.l3 // (2 * threads))
    return {**found, "memory": max(4 * machine.l3, 1 << 26) // threads}


def measure_bandwidth(
    threads: int = 1, seconds: float = 0.5, machine: Target | None = None
) -> tuple[Bandwidth, ...]:
    """The best of several runs for each level and kind, about `seconds` long together."""
    machine = machine or target("native")
    sizes = levels(machine, threads)
    each = seconds / (len(sizes) * len(KINDS))
    return tuple(
        _measure(level, kind, size, threads, each, machine)
        for level, size in sizes.items()
        for kind in KINDS
    )


def _measure(
    level: str, kind: str, size: int, threads: int, seconds: float, machine: Target
) -> Bandwidth:
    lanes = machine.lanes(f32)
    step = _UNROLLED * lanes
    elements = max(step, size // (1 if kind == "read" else 2) // f32.bytes // step * step)
    moved = elements * f32.bytes * (1 if kind == "read" else 2)
    repeats = max(1, _BYTES // moved)
    artifact = llvm.compile_kernel(moving_kernel(kind, elements, repeats, lanes), machine)
    library = llvm.load(artifact.object, machine)
    entry = _ENTRY(library.address(artifact.entries[0].symbol))
    rng = np.random.default_rng(0)
    arrays = [
        (random_array(rng, (elements,), f32), random_array(rng, (elements,), f32))
        for _ in range(threads)
    ]
    pointers = [(ctypes.c_void_p * 2)(x.ctypes.data, y.ctypes.data) for x, y in arrays]
    best, stop = math.inf, time.perf_counter() + seconds
    while best == math.inf or time.perf_counter() < stop:
        best = min(best, _together(entry, pointers))
    rate = moved * repeats * threads / best / 1e9
    return Bandwidth(level, kind, threads, moved // 1024, rate)


def _together(entry: ctypes._CFunctionType, pointers: list[ctypes.Array[ctypes.c_void_p]]) -> float:  # pyright: ignore[reportPrivateUsage]
    """Seconds from the first start to the last end of one run on every thread."""
    ready = threading.Barrier(len(pointers))
    spans: list[tuple[float, float]] = []

    def work(own: ctypes.Array[ctypes.c_void_p]) -> None:
        ready.wait()
        start = time.perf_counter()
        entry(own, None, 0, 1)
        spans.append((start, time.perf_counter()))

    workers = [threading.Thread(target=work, args=(own,)) for own in pointers]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(end for _, end in spans) - min(start for start, _ in spans)
