"""A layer forward and backward, compiled natively, against an oracle that PyTorch differentiates.

The oracle is a function of float64 torch tensors by formula name (X, W, b, ...), PyTorch's own
layer where there is one, else the formula written out. Nothing of convgen is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from reference import error

from convgen.runtime.kernel import compile
from convgen.symbolic.derive import split
from convgen.types import dtype_of

torch.set_num_threads(1)
LIMIT = {"f32": 2e-5, "f64": 1e-12}


def draw(program: Any, given: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Arrays for the inputs of a program: given ones, else normal numbers."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for tensor in program.inputs:
        value = given.get(tensor.name)
        if value is None:
            value = rng.standard_normal(tensor.shape)
        arrays[tensor.name] = np.array(value, dtype=tensor.dtype.numpy_name)
    return arrays


def run(kernel: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Results of a compiled kernel by name."""
    names = [t.name for t in kernel.program.outputs] + list(kernel.program.saved)
    found = kernel(*(arrays[t.name] for t in kernel.program.inputs))
    return dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))


def native(
    program: Any,
    arrays: Mapping[str, np.ndarray],
    wrt: Sequence[str],
    cotangents: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Outputs of the split program and its gradients "dX", ..., from native code."""
    if not wrt:
        return run(compile(program, threads=1), arrays)
    ahead, behind = split(program, list(wrt))
    results = run(compile(ahead, threads=1), arrays)
    known = {**arrays, **results}
    known |= {n: np.array(c, dtype=behind.tensor(n).dtype.numpy_name) for n, c in cotangents.items()
              if n in {t.name for t in behind.inputs}}  # fmt: skip
    return results | run(compile(behind, threads=1), known)


def check(
    layer: Any,
    shapes: Sequence[tuple[int, ...]] | tuple[int, ...],
    oracle: Callable[[dict[str, torch.Tensor]], Any],
    *,
    given: Mapping[str, Any] | None = None,
    wrt: Sequence[str] | None = None,
    training: bool = True,
    dtypes: Sequence[str] = ("f64", "f32"),
    seed: int = 0,
) -> None:
    """Forward and all gradients of a layer agree with the oracle; raises AssertionError."""
    shapes = [shapes] if shapes and isinstance(shapes[0], int) else list(shapes)
    for dtype in dtypes:
        errors = errors_of(layer, shapes, oracle, given or {}, wrt, training, dtype, seed)
        for name, found in errors.items():
            assert found <= LIMIT[dtype], f"{layer!r} on {shapes} in {dtype}: {name} off by {found}"


def errors_of(
    layer: Any,
    shapes: Any,
    oracle: Any,
    given: Mapping[str, Any],
    wrt: Sequence[str] | None,
    training: bool,
    dtype: str,
    seed: int,
) -> dict[str, float]:
    program = layer.program(*shapes, training=training, dtype=dtype_of(dtype))
    program.check()
    assert layer.output_shape(*shapes) == tuple(program.outputs[0].shape)
    arrays = draw(program, given, seed)
    states = {t.name for t in program.inputs if t.role == "state"}
    if wrt is None:
        wrt = [t.name for t in program.inputs if t.dtype.is_float and t.name not in states]
    tensors = {
        n: torch.tensor(a.astype(np.float64) if a.dtype.kind == "f" else a)
        for n, a in arrays.items()
    }
    for name in wrt:
        tensors[name].requires_grad_(True)
    wanted = oracle(tensors)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    rng = np.random.default_rng(seed + 1)
    cotangents, total = {}, torch.zeros(())
    for tensor, value in zip(program.outputs, wanted, strict=False):
        if tensor.dtype.is_float:
            d = rng.standard_normal(tensor.shape).astype(tensor.dtype.numpy_name)
            cotangents["d" + tensor.name] = d
            total = total + (torch.tensor(d.astype(np.float64)) * value).sum()
    results = native(program, arrays, wrt, cotangents)
    found = {
        t.name: error(results[t.name], v.detach().numpy())
        for t, v in zip(program.outputs, wanted, strict=False)
    }
    if wrt:
        gradients = torch.autograd.grad(total, [tensors[n] for n in wrt], allow_unused=True)
        for name, gradient in zip(wrt, gradients, strict=True):
            exact = torch.zeros_like(tensors[name]) if gradient is None else gradient
            found["d" + name] = error(results["d" + name], exact.numpy())
    return found
