"""How long a kernel's call takes, on arrays of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convgen.runtime.layouts import as_laid_out
from convgen.runtime.peak import quick_peak
from convgen.runtime.report import Report
from convgen.symbolic.expr import Tensor
from convgen.types import f32

if TYPE_CHECKING:
    from convgen.runtime.kernel import CompiledKernel

_REPEATS = 5  # calls at least; the quickest counts


def random_inputs(tensors: Sequence[Tensor]) -> list[Any]:
    """Arrays for tensors without open sizes, from a fixed seed; never zeros, whose
    products a machine may do faster. Integers are 0, which indexes everything."""
    rng = np.random.default_rng(0)
    found: list[Any] = []
    for tensor in tensors:
        shape = tuple(int(n) for n in tensor.shape)
        values = rng.uniform(0.5, 1.5, shape) if tensor.dtype.is_float else np.zeros(shape)
        found.append(values.astype(tensor.dtype.numpy_name))
    return found


def quickest(call: Callable[[], object], seconds: float) -> float:
    """Seconds of the quickest of several calls, after a first one that is not counted."""
    call()
    best, runs = float("inf"), 0
    stop = time.perf_counter() + seconds
    while runs < _REPEATS or time.perf_counter() < stop:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best


def best_seconds(kernel: CompiledKernel, seconds: float = 0.2) -> float:
    """Seconds of the quickest call within about `seconds`. For a kernel without open sizes.

    >>> from convgen.runtime.kernel import compile
    >>> from convgen.symbolic.parse import parse
    >>> best_seconds(compile(parse("Y[i] = X[i] + 1", X=8)), 0.01) < 1
    True
    """
    arrays = random_inputs([as_laid_out(t, kernel.layouts) for t in kernel.program.inputs])
    return quickest(lambda: kernel(*arrays), seconds)


def measured_report(kernel: CompiledKernel, report: Report, seconds: float = 0.3) -> Report:
    """The report with the quickest call, and the peak measured right after it."""
    floats = [t.dtype for t in kernel.program.inputs if t.dtype.is_float]
    taken = best_seconds(kernel, seconds)
    widest = max(floats, key=lambda d: d.bits, default=f32)
    return report.measured(taken, quick_peak(report.threads, widest))
