"""Do two forms of one kernel give the same answer? The question of CONVGEN_VERIFY=2."""

from __future__ import annotations

from typing import Any

import numpy as np

from convgen.ir.interpret.run import interpret
from convgen.ir.interpret.values import numpy_dtype
from convgen.ir.nodes import Kernel

WORK_LIMIT = 1 << 22  # multiply-adds beyond which a comparison would take minutes


def sample_inputs(kernel: Kernel, seed: int = 0) -> dict[str, Any]:
    """Small integers for every input: sums and products of them are exact in any float."""
    chance = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for buffer in kernel.buffers:
        if buffer.role == "input":
            low, high = (-3, 4) if buffer.dtype.kind in ("float", "int") else (0, 2)
            values = chance.integers(low, high, buffer.shape)
            made[buffer.name] = values.astype(numpy_dtype(buffer.dtype))
    return made


def work(kernel: Kernel) -> int:
    """Iterations of all loops of a kernel in form NEST."""
    total = 0
    for nest in kernel.nests():
        count = 1
        for loop in nest.loops:
            count *= max(loop.extent, 1)
        total += count
    return total


def difference(before: Kernel, after: Kernel, seed: int = 0) -> str:
    """What the outputs of two kernels differ in, on sample inputs; "" when they agree (floats to
    1e-4 of the largest element, everything else exactly)."""
    given = sample_inputs(before, seed)
    packed = {b.name for b in after.buffers}
    first = interpret(before, given)
    second = interpret(after, {n: v for n, v in given.items() if n in packed}, seed=seed)
    for name, want in first.items():
        if name not in second:
            return f"output {name} is missing"
        text = _differs(want, second[name])
        if text:
            return f"output {name}: {text}"
    return ""


def _differs(want: Any, got: Any) -> str:
    if want.shape != got.shape:
        return f"wanted shape {want.shape}, saw {got.shape}"
    if want.dtype.kind == "f":
        finite = np.abs(want[np.isfinite(want)])
        scale = max(float(finite.max()) if finite.size else 0.0, 1e-30)
        same = np.isclose(got, want, rtol=0, atol=1e-4 * scale, equal_nan=True)
    else:
        same = got == want
    if np.all(same):
        return ""
    place = tuple(int(i) for i in np.argwhere(~np.atleast_1d(same))[0])
    count = int(np.size(same) - np.count_nonzero(same))
    return (
        f"{count} of {np.size(same)} elements differ, first at {list(place)}: "
        f"wanted {np.atleast_1d(want)[place]}, saw {np.atleast_1d(got)[place]}"
    )
