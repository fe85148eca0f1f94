"""What it costs to hand a phase to the pool and to wait for it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from convgen.affine import Affine
from convgen.backends import llvm
from convgen.ir.nodes import (
    Block,
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
    Store,
)
from convgen.runtime.threads import Range, Table
from convgen.target import target
from convgen.types import f64

_STEPS = 8000  # of four cycles each: long enough that every worker gets its task
_PHASES = 200


@dataclass(frozen=True, slots=True)
class _Phases:
    """Something with phases, for a table."""

    ranges: tuple[Range, ...]


def waiting_kernel(tasks: int) -> Kernel:
    """Each task is one chain of additions, of the same length."""
    value = Register("a", f64)
    step = Set("a", Op("add", (value, Const(1.0, f64)), f64))
    chain = For("i", Affine(), Affine((), _STEPS), 1, step)
    store = Store("Y", Index(Affine.of("task") * 8), 0, value, 1)
    body = Block((Set("a", Const(0.0, f64)), chain, store))
    loop = For("task", Affine.of("begin"), Affine.of("end"), 1, body)
    buffer = Buffer("Y", f64, (8 * tasks,), Layout.rowmajor(1), "output")
    return Kernel("waiting", (buffer,), (Phase("waiting", loop, tasks),), Form.FLAT)


def measure_fork_join(threads: int, seconds: float = 0.2) -> float:
    """Microseconds that a phase of one task a thread takes longer than the task alone, when the
    workers are hot: tables of phases in one native call, the best of many."""
    machine = target("native")
    artifact = llvm.compile_kernel(waiting_kernel(threads), machine)
    library = llvm.load(artifact.object, machine)
    address = library.address(artifact.entries[0].symbol)
    y = np.zeros(8 * threads)
    tables = {
        count: Table([(_Phases((Range(address, count, 1, 0, "run"),) * _PHASES), [y.ctypes.data])])
        for count in {1, threads}
    }
    best = dict.fromkeys(tables, math.inf)
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or math.inf in best.values():
        for count, table in tables.items():
            start = time.perf_counter()
            table.run(count)
            best[count] = min(best[count], time.perf_counter() - start)
    return max(0.0, best[threads] - best[1]) / _PHASES * 1e6
