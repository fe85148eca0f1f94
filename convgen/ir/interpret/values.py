"""What every operation computes, on numpy arrays of one dtype, elementwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from convgen.errors import InternalError
from convgen.types import DType

Value: TypeAlias = Any  # numpy scalar or array


def numpy_dtype(dtype: DType) -> Any:
    """The numpy dtype of an element."""
    return np.dtype(dtype.numpy_name)


def constant(value: int | float, dtype: DType) -> Value:
    """A numpy scalar of the dtype."""
    if dtype.is_float:
        return numpy_dtype(dtype).type(value)
    return np.int64(int(value)).astype(numpy_dtype(dtype)) if value < 2**63 else np.uint64(value)


def apply(name: str, args: list[Value], dtype: DType) -> Value:
    """The operation `name` of nodes.OPS giving `dtype`."""
    found = _OPERATIONS.get(name)
    if found is None:
        raise InternalError(f"operation {name!r}: wanted one of nodes.OPS", stage="interpret")
    with np.errstate(all="ignore"):
        return found(args, numpy_dtype(dtype))


def cast(value: Value, target: Any) -> Value:
    """Converted: floats to integers round toward zero, anything to bool by != 0."""
    value = np.asarray(value)
    if target == np.bool_:
        return value != 0
    if value.dtype.kind == "f" and target.kind in "iu":
        return _float_to_integer(value, target)
    return value.astype(target)


def _float_to_integer(value: Value, target: Any) -> Value:
    whole = np.trunc(value.astype(np.float64))
    info = np.iinfo(target)
    top = np.float64(info.max)
    inside = np.where(np.isnan(whole), 0.0, np.clip(whole, np.float64(info.min), top))
    if top > info.max:  # 2**63 and 2**64 are no integers of the type
        largest = np.nextafter(top, 0)
        full = inside >= top
        return np.where(full, info.max, np.minimum(inside, largest).astype(target)).astype(target)
    return inside.astype(target)


def fma(a: Value, b: Value, c: Value) -> Value:
    """a*b + c, rounded once (by rounding an exact intermediate to odd)."""
    a, b, c = (np.asarray(x) for x in (a, b, c))
    kind = a.dtype
    if kind == np.float32:
        product = a.astype(np.float64) * b.astype(np.float64)  # exact
        total = _sum_to_odd(product, c.astype(np.float64))
        return total.astype(np.float32)
    high = a * b
    low = _product_error(a, b, high)
    mid, mid_low = _two_sum(c, low)
    top, top_low = _two_sum(high, mid)
    exact = top + _sum_to_odd(mid_low, top_low)
    return np.where(np.isfinite(high + c) & np.isfinite(low), exact, high + c)


def _two_sum(a: Value, b: Value) -> tuple[Value, Value]:
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _sum_to_odd(a: Value, b: Value) -> Value:
    """a + b, rounded so that the last bit of an inexact result is 1."""
    total, error = _two_sum(a, b)
    bits = np.atleast_1d(np.asarray(total)).view(np.int64).copy()
    error, flat = np.atleast_1d(error), np.atleast_1d(total)
    adjust = (error != 0) & np.isfinite(error) & ((bits & 1) == 0)
    bits += np.where(adjust, np.where((error > 0) == (flat > 0), 1, -1), 0)
    return bits.view(np.float64).reshape(np.shape(total))


def _product_error(a: Value, b: Value, product: Value) -> Value:
    """a*b - product, exactly (Dekker), where nothing overflows."""
    split = np.float64(2**27 + 1)
    a_high, b_high = split * a - (split * a - a), split * b - (split * b - b)
    a_low, b_low = a - a_high, b - b_high
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def philox(seed: Value, index: Value) -> Value:
    """Philox4x32-10 (Salmon et al. 2011): key = seed, counter = (index, 0); the first word's upper
    24 bits as a number in [0, 1)."""
    seed, index = np.asarray(seed).astype(np.uint64), np.asarray(index).astype(np.uint64)
    low32, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    key0, key1 = seed & low32, seed >> shift
    x0, x1 = index & low32, index >> shift
    x2 = x3 = np.zeros_like(x0)
    for _ in range(10):
        first, second = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1, x2, x3 = (
            (second >> shift) ^ x1 ^ key0,
            second & low32,
            (first >> shift) ^ x3 ^ key1,
            first & low32,
        )
        key0 = (key0 + np.uint64(0x9E3779B9)) & low32
        key1 = (key1 + np.uint64(0xBB67AE85)) & low32
    return ((x0 >> np.uint64(8)).astype(np.float64) * 2.0**-24).astype(np.float32)


def _wide(function: Callable[[Value], Value]) -> Callable[[list[Value], Any], Value]:
    """Computed in double precision, rounded to the dtype."""
    return lambda a, t: np.asarray(function(np.asarray(a[0]).astype(np.float64))).astype(t)


def _sigmoid(x: Value) -> Value:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _not(a: list[Value], _: Any) -> Value:
    return np.logical_not(a[0]) if np.asarray(a[0]).dtype == np.bool_ else np.invert(a[0])


def _bitcast(a: list[Value], target: Any) -> Value:
    return np.atleast_1d(a[0]).view(target).reshape(np.shape(a[0]))


_OPERATIONS: dict[str, Callable[[list[Value], Any], Value]] = {
    "add": lambda a, _: np.add(a[0], a[1]),
    "sub": lambda a, _: np.subtract(a[0], a[1]),
    "mul": lambda a, _: np.multiply(a[0], a[1]),
    "div": lambda a, _: np.divide(a[0], a[1]),
    "fma": lambda a, _: fma(*a) if np.asarray(a[0]).dtype.kind == "f" else a[0] * a[1] + a[2],
    "neg": lambda a, _: np.negative(a[0]),
    "abs": lambda a, _: np.abs(a[0]),
    "max": lambda a, _: np.maximum(a[0], a[1]),
    "min": lambda a, _: np.minimum(a[0], a[1]),
    "floordiv": lambda a, _: np.floor_divide(a[0], a[1]),
    "mod": lambda a, _: np.remainder(a[0], a[1]),
    "sqrt": lambda a, _: np.sqrt(a[0]),
    "floor": lambda a, _: np.floor(a[0]),
    "eq": lambda a, _: np.equal(a[0], a[1]),
    "lt": lambda a, _: np.less(a[0], a[1]),
    "le": lambda a, _: np.less_equal(a[0], a[1]),
    "and": lambda a, _: np.bitwise_and(a[0], a[1]),
    "or": lambda a, _: np.bitwise_or(a[0], a[1]),
    "xor": lambda a, _: np.bitwise_xor(a[0], a[1]),
    "not": _not,
    "shl": lambda a, _: np.left_shift(a[0], a[1]),
    "shr": lambda a, _: np.right_shift(a[0], a[1]),
    "is_nan": lambda a, _: np.isnan(a[0]),
    "select": lambda a, _: np.where(a[0], a[1], a[2]),
    "cast": lambda a, t: cast(a[0], t),
    "bitcast": _bitcast,
    "exp": _wide(np.exp),
    "log": _wide(np.log),
    "tanh": _wide(np.tanh),
    "sigmoid": _wide(_sigmoid),
    "erf": _wide(np.vectorize(math.erf, otypes=[np.float64])),
    "pow": lambda a, t: np.power(a[0].astype(np.float64), a[1].astype(np.float64)).astype(t),
    "uniform": lambda a, _: philox(a[0], a[1]),
}
