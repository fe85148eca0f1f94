"""How long a kernel's call takes, on arrays of its own."""

from __future__ import annotations

import time

import numpy as np

from convgen.runtime.kernel import CompiledKernel


def best_seconds(kernel: CompiledKernel, seconds: float = 0.2) -> float:
    """Seconds of the quickest call within about `seconds`, after a first one that is not counted.
    Inputs are drawn from a fixed seed; integers are 0. For a kernel without open sizes.

    >>> from convgen.runtime.kernel import compile
    >>> from convgen.symbolic.parse import parse
    >>> best_seconds(compile(parse("Y[i] = X[i] + 1", X=8)), 0.01) < 1
    True
    """
    rng = np.random.default_rng(0)
    arrays = [
        rng.uniform(0.5, 1.5, tuple(int(e) for e in t.shape)).astype(t.dtype.numpy_name)
        if t.dtype.is_float
        else np.zeros(tuple(int(e) for e in t.shape), t.dtype.numpy_name)
        for t in kernel.program.inputs
    ]
    kernel(*arrays)
    best = float("inf")
    stop = time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < stop:
        start = time.perf_counter()
        kernel(*arrays)
        best = min(best, time.perf_counter() - start)
    return best
