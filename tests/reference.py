"""Slow, plain NumPy references that share no code with convgen, and the measure of error.

Images are [n, c, *spatial]; weights [k, c / groups, *kernel]. Everything is computed in float64
(or exactly, on integer arrays). Padding modes: zeros, reflect, replicate, circular, as in torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convgen.symbolic.evaluate import evaluate

_NUMPY_MODE = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def error(a: Any, b: Any, magnitude: Any | None = None) -> float:
    """max|a - b| / max(max|b|, max magnitude): a is judged, b the float64 reference, magnitude the
    same program with every summand's absolute value. 0 for empty arrays; inf where exactly one of
    the two is nan, or an infinity differs."""
    got, want = _floats(a), _floats(b)
    if got.shape != want.shape:
        raise AssertionError(f"shapes differ: {got.shape} and {want.shape}")
    if want.size == 0:
        return 0.0
    odd = ~np.isfinite(want) | ~np.isfinite(got)
    if odd.any() and not np.array_equal(got[odd], want[odd], equal_nan=True):
        return float("inf")
    got, want = got[~odd], want[~odd]
    if want.size == 0:
        return 0.0
    scale = float(np.abs(want).max())
    if magnitude is not None:
        sizes = np.abs(_floats(magnitude))
        finite = sizes[np.isfinite(sizes)]
        scale = max(scale, float(finite.max()) if finite.size else 0.0)
    difference = float(np.abs(got - want).max())
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))


def program_error(program: Any, inputs: Mapping[str, Any], results: Mapping[str, Any]) -> float:
    """The largest error of a kernel's results (name -> array) against the oracle in float64."""
    want = evaluate(program, inputs, exact=False)
    scale = evaluate(program, inputs, exact=False, magnitude=True)
    return max(error(value, want[name], scale[name]) for name, value in results.items())


def _floats(value: Any) -> np.ndarray:
    """Arrays, nested lists and convgen's plain arrays (Fractions too) as float64."""
    if hasattr(value, "data") and isinstance(value.data, list):
        return np.array([float(v) for v in value.data], dtype=np.float64).reshape(value.shape)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.astype(np.float64)
    array = np.asarray(value, dtype=object)
    return np.array([float(v) for v in array.ravel()], dtype=np.float64).reshape(array.shape)


def _each(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def pad(
    x: np.ndarray, padding: int | Sequence[int], mode: str = "zeros", value: Any = 0
) -> np.ndarray:
    """x with `padding` elements on both sides of every spatial dimension."""
    sides = [(0, 0), (0, 0)] + [(p, p) for p in _each(padding, x.ndim - 2)]
    if mode == "zeros":
        return np.pad(x, sides, constant_values=value)
    return np.pad(x, sides, mode=_NUMPY_MODE[mode])


def output_size(i: int, k: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    return (i + 2 * padding - dilation * (k - 1) - 1) // stride + 1


def conv(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    mode: str = "zeros",
) -> np.ndarray:
    """The layer of any rank (cross-correlation), one output element at a time."""
    rank = x.ndim - 2
    stride, dilation, padding = _each(stride, rank), _each(dilation, rank), _each(padding, rank)
    padded = pad(x, padding, mode)
    kernel = w.shape[2:]
    sizes = [
        output_size(i, k, s, p, d)
        for i, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    n, maps, inner = x.shape[0], w.shape[0], w.shape[1]
    y = np.zeros((n, maps, *sizes), dtype=np.result_type(x, w))
    for k in range(maps):
        first = (k // (maps // groups)) * inner
        for place in np.ndindex(*sizes):
            window = tuple(
                slice(p * s, p * s + d * (e - 1) + 1, d)
                for p, s, d, e in zip(place, stride, dilation, kernel, strict=True)
            )
            part = padded[(slice(None), slice(first, first + inner), *window)]
            y[(slice(None), k, *place)] = (part * w[k]).sum(axis=tuple(range(1, rank + 2)))
    if bias is not None:
        y = y + bias.reshape(1, -1, *(1,) * rank)
    return y


def conv_transpose(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> np.ndarray:
    """The transpose of conv: w is [c, k / groups, *kernel]; every input element is scattered."""
    rank = x.ndim - 2
    stride, dilation, padding = _each(stride, rank), _each(dilation, rank), _each(padding, rank)
    extra = _each(output_padding, rank)
    kernel = w.shape[2:]
    full = [
        s * (i - 1) + d * (k - 1) + 1 + e
        for i, k, s, d, e in zip(x.shape[2:], kernel, stride, dilation, extra, strict=True)
    ]
    # without the cut: output_padding may reach beyond what the last tap writes
    inner = w.shape[1]
    y = np.zeros((x.shape[0], inner * groups, *full), dtype=np.result_type(x, w))
    for c, place in itertools.product(range(x.shape[1]), np.ndindex(*x.shape[2:])):
        first = (c // (x.shape[1] // groups)) * inner
        value = x[(slice(None), c, *place)]
        for tap in np.ndindex(*kernel):
            h = tuple(
                s * p + d * t for s, p, d, t in zip(stride, place, dilation, tap, strict=True)
            )
            y[(slice(None), slice(first, first + inner), *h)] += np.multiply.outer(
                value, w[(c, slice(None), *tap)]
            )
    cut = tuple(slice(p, e - p) for p, e in zip(padding, full, strict=True))
    y = y[(slice(None), slice(None), *cut)]
    return y if bias is None else y + bias.reshape(1, -1, *(1,) * rank)


def conv_gradients(
    x: np.ndarray,
    w: np.ndarray,
    dy: np.ndarray,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    mode: str = "zeros",
) -> tuple[np.ndarray, np.ndarray]:
    """(dx, dw) of conv by scattering every product, through the index map of the padding."""
    rank = x.ndim - 2
    stride, dilation, padding = _each(stride, rank), _each(dilation, rank), _each(padding, rank)
    numbers = np.arange(1, int(np.prod(x.shape[2:])) + 1).reshape(1, 1, *x.shape[2:])
    source = pad(numbers, padding, mode)[0, 0]  # 0: outside, else 1 + flat spatial position
    dx = np.zeros((*x.shape[:2], numbers.size), dtype=np.result_type(x, w, dy))
    dw = np.zeros(w.shape, dtype=dx.dtype)
    flat = x.reshape(*x.shape[:2], -1)
    inner, maps = w.shape[1], w.shape[0]
    for k, place in itertools.product(range(maps), np.ndindex(*dy.shape[2:])):
        chans = slice((k // (maps // groups)) * inner, (k // (maps // groups) + 1) * inner)
        g = dy[(slice(None), k, *place)]
        for tap in np.ndindex(*w.shape[2:]):
            at = source[
                tuple(
                    s * p + d * t for s, p, d, t in zip(stride, place, dilation, tap, strict=True)
                )
            ]
            if at:
                dx[:, chans, at - 1] += np.multiply.outer(g, w[(k, slice(None), *tap)])
                dw[(k, slice(None), *tap)] += g @ flat[:, chans, at - 1]
    return dx.reshape(x.shape), dw


def _windows(x: np.ndarray, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    """(place, window as [n, c, taps], flat input positions of the taps, -1 outside)."""
    rank = x.ndim - 2
    kernel, padding, dilation = _each(kernel, rank), _each(padding, rank), _each(dilation, rank)
    stride = _each(stride, rank) if stride is not None else kernel
    spatial = x.shape[2:]
    numbers = pad(np.arange(1, int(np.prod(spatial)) + 1).reshape(1, 1, *spatial), padding)[0, 0]
    sizes = [
        output_size(i, k, s, p, d)
        for i, k, s, p, d in zip(spatial, kernel, stride, padding, dilation, strict=True)
    ]
    flat = x.reshape(*x.shape[:2], -1)
    for place in np.ndindex(*sizes):
        taps = [
            int(
                numbers[
                    tuple(
                        s * p + d * t
                        for s, p, d, t in zip(stride, place, dilation, tap, strict=True)
                    )
                ]
            )
            - 1
            for tap in np.ndindex(*kernel)
        ]
        inside = [t for t in taps if t >= 0]
        yield sizes, place, flat[:, :, inside], inside, len(taps)


def max_pool(
    x: np.ndarray, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1
) -> tuple[np.ndarray, np.ndarray]:
    """(maximum, flat spatial index of the first maximum; the last NaN wins), as in torch."""
    y = index = None
    for sizes, place, window, taps, _ in _windows(x, kernel, stride, padding, dilation):
        if y is None:
            y = np.zeros((*x.shape[:2], *sizes), dtype=x.dtype)
            index = np.zeros((*x.shape[:2], *sizes), dtype=np.int64)
        for n, c in np.ndindex(*x.shape[:2]):
            values = window[n, c]
            best = 0
            for t, v in enumerate(values):
                if v > values[best] or v != v:
                    best = t
            y[(n, c, *place)], index[(n, c, *place)] = values[best], taps[best]
    assert y is not None and index is not None
    return y, index


def avg_pool(
    x: np.ndarray, kernel: Any, stride: Any = None, padding: Any = 0, count_include_pad: bool = True
) -> np.ndarray:
    y = None
    for sizes, place, window, taps, count in _windows(x, kernel, stride, padding, 1):
        if y is None:
            y = np.zeros((*x.shape[:2], *sizes))
        y[(slice(None), slice(None), *place)] = window.sum(axis=-1) / (
            count if count_include_pad else len(taps)
        )
    assert y is not None
    return y


def batch_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """Training mode: statistics over the batch and all positions, biased variance."""
    axes = (0, *range(2, x.ndim))
    shape = (1, -1, *(1,) * (x.ndim - 2))
    mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return gamma.reshape(shape) * (x - mean) / np.sqrt(variance + eps) + beta.reshape(shape)


def softmax(x: np.ndarray, axis: int = 1) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def cross_entropy(x: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the batch of -log softmax(x)[n, labels[n]]."""
    top = x.max(axis=1)
    logs = np.log(np.exp(x - top[:, None]).sum(axis=1)) + top
    return float((logs - x[np.arange(len(x)), labels]).mean())


def finite_difference(function: Any, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of a scalar function of a float64 array."""
    out = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[place] += step
        behind[place] -= step
        out[place] = (function(ahead) - function(behind)) / (2 * step)
    return out
