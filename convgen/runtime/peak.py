"""Independent chains of multiply-adds in registers, as fast as they go: the machine's limit."""

from __future__ import annotations

import ctypes
import math
import threading
import time

import numpy as np

from convgen.affine import Affine
from convgen.backends import llvm
from convgen.ir.nodes import (
    Block,
    Buffer,
    For,
    Form,
    Index,
    Kernel,
    Layout,
    Op,
    Phase,
    Register,
    Set,
    Store,
    VectorLoad,
)
from convgen.passes.math import legalize
from convgen.target import Target, target
from convgen.types import DType, f32

_STEPS = 1 << 16
_ENTRY = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2)


def chains_kernel(chains: int, lanes: int, dtype: DType, steps: int = _STEPS) -> Kernel:
    """`chains` vectors a with a = a * m + c, `steps` times. X holds m, c and the first a's."""

    def load(number: int) -> VectorLoad:
        return VectorLoad("X", Index(Affine((), number * lanes)), 1, dtype, lanes, lanes)

    def register(name: str) -> Register:
        return Register(name, dtype, lanes)

    names = [f"a{i}" for i in range(chains)]
    first = [Set("m", load(0)), Set("c", load(1))]
    first += [Set(name, load(i + 2)) for i, name in enumerate(names)]
    step = Block(
        tuple(
            Set(a, Op("fma", (register(a), register("m"), register("c")), dtype, lanes))
            for a in names
        )
    )
    loop = For("i", Affine(), Affine((), steps), 1, step)
    last = [
        Store("Y", Index(Affine((), i * lanes)), 1, register(a), lanes) for i, a in enumerate(names)
    ]
    layout = Layout.rowmajor(1)
    buffers = (
        Buffer("X", dtype, ((chains + 2) * lanes,), layout, "input"),
        Buffer("Y", dtype, (chains * lanes,), layout, "output"),
    )
    phase = Phase("chains", Block((*first, loop, *last)))
    return Kernel(f"chains_{chains}x{lanes}", buffers, (phase,), Form.FLAT)


class PeakLoop:
    """One loop, loaded and ready to run on some threads at once."""

    def __init__(self, chains: int, lanes: int, dtype: DType, machine: Target, threads: int):
        self.chains, self.lanes, self.threads = chains, lanes, threads
        kernel = legalize(chains_kernel(chains, lanes, dtype), machine)
        artifact = llvm.compile_kernel(kernel, machine)
        self._library = llvm.load(artifact.object, machine)
        self._entry = _ENTRY(self._library.address(artifact.entries[0].symbol))
        # m below 1 keeps the chains at ordinary numbers: they tend to c / (1 - m).
        rng = np.random.default_rng(0)
        self._arrays = [
            (
                rng.uniform(0.25, 0.75, (chains + 2) * lanes).astype(dtype.numpy_name),
                np.empty(chains * lanes, dtype.numpy_name),
            )
            for _ in range(threads)
        ]
        self._pointers = [
            (ctypes.c_void_p * 2)(x.ctypes.data, y.ctypes.data) for x, y in self._arrays
        ]

    @property
    def flops(self) -> int:
        """Floating-point operations of one run, over all threads."""
        return 2 * _STEPS * self.chains * self.lanes * self.threads

    def run(self) -> float:
        """Seconds from the first thread's start to the last one's end."""
        if self.threads == 1:
            start = time.perf_counter()
            self._entry(self._pointers[0], None, 0, 1)
            return time.perf_counter() - start
        ready = threading.Barrier(self.threads)
        spans: list[tuple[float, float]] = []

        def work(number: int) -> None:
            ready.wait()
            start = time.perf_counter()
            for _ in range(8):  # long beside the barrier's wake-up
                self._entry(self._pointers[number], None, 0, 1)
            spans.append((start, time.perf_counter()))

        workers = [threading.Thread(target=work, args=(i,)) for i in range(self.threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return (max(end for _, end in spans) - min(start for start, _ in spans)) / 8


def peak_loops(threads: int, dtype: DType = f32, machine: Target | None = None) -> list[PeakLoop]:
    """The loops that are tried: enough chains to hide the latency, in full and in half vectors."""
    machine = machine or target("native")
    widest = machine.lanes(dtype)
    most = machine.vector_registers - 4
    return [
        PeakLoop(chains, lanes, dtype, machine, threads)
        for lanes in (widest, widest // 2)
        for chains in (8, 12, 24)
        if chains <= most and lanes > 1
    ]


def quick_peak(threads: int, dtype: DType, seconds: float = 0.1) -> float:
    """GFLOP/s of the best loop, each run in turn for about `seconds` together."""
    loops = peak_loops(threads, dtype)
    best = dict.fromkeys(range(len(loops)), math.inf)
    stop = time.perf_counter() + seconds
    while math.inf in best.values() or time.perf_counter() < stop:
        for number, loop in enumerate(loops):
            best[number] = min(best[number], loop.run())
    return max(loops[i].flops / taken / 1e9 for i, taken in best.items())
