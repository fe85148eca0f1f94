"""Checks of what callers hand in, before native code sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from convgen.errors import DataError
from convgen.ir.layout import ALIGNMENT
from convgen.symbolic.expr import Size, Tensor

Array = NDArray[Any]
_LARGE = 1 << 14  # bytes from which it pays to look where an array begins


def new_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array whose elements are not set. A large one begins with a cache line, so that no vector
    of a kernel lies in two of them (numpy's own begin 16 bytes behind a page).

    >>> new_array((64, 64), np.dtype("float32")).ctypes.data % 64
    0
    """
    size = dtype.itemsize * math.prod(shape)
    if size < _LARGE:
        return np.empty(shape, dtype)
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def view_of(value: Any, name: str, where: str) -> Array:
    """The value as an ndarray on the same memory, where it can be one: an ndarray, an object with
    DLPack, `__array_interface__`, the buffer protocol or `__array__` (torch, JAX, PyArrow), else a
    new array of its elements.

    DataError for what is on another device, has no strides, or needs a decision of its owner
    (a tensor that requires a gradient).
    """
    if isinstance(value, np.ndarray):
        if np.ma.is_masked(value):
            raise DataError(
                f"{name} has masked elements, which kernels would read",
                where=where,
                hint=f"{name}.filled(...)",
            )
        return cast(Array, value)
    if not hasattr(value, "__array_interface__") and hasattr(value, "__dlpack__"):
        try:
            return cast(Array, np.from_dlpack(value))
        except Exception as error:
            raise _not_an_array(value, name, where, error) from error
    try:
        return np.asarray(value)
    except Exception as error:
        raise _not_an_array(value, name, where, error) from error


def _not_an_array(value: Any, name: str, where: str, error: Exception) -> DataError:
    return DataError(
        f"{name} cannot be read as an array",
        expected="a dense array of numbers in the memory of the CPU",
        got=f"{type(value).__name__}: {error}",
        where=where,
    )


def as_array(value: Any, tensor: Tensor, where: str) -> Array:
    """The value as an array of the tensor's dtype and rank; numbers stand for rank 0.

    DataError for another dtype (never converted silently) or rank.
    """
    wanted = np.dtype(tensor.dtype.numpy_name)
    if isinstance(value, (int, float)) and not tensor.shape:
        return _number(value, wanted, tensor.name, where)
    array = view_of(value, tensor.name, where)
    if array.dtype != wanted:
        raise DataError(
            f"{tensor.name} has the wrong dtype",
            expected=str(wanted),
            got=_dtype_text(array) if array.dtype != object else type(value).__name__,
            where=where,
            hint=f"{tensor.name}.astype(np.{wanted})"
            if hasattr(value, "astype")
            else f"np.asarray({tensor.name}, np.{wanted})",
        )
    if array.ndim != len(tensor.shape):
        raise DataError(
            f"{tensor.name} has the wrong rank",
            expected=f"{len(tensor.shape)} dimensions {shape_text(tensor)}",
            got=f"{array.ndim} {array.shape}",
            where=where,
            hint=f"{tensor.name}.reshape(...)",
        )
    return array


def _number(value: float, wanted: np.dtype[Any], name: str, where: str) -> Array:
    try:
        return np.asarray(value, wanted)
    except (OverflowError, ValueError) as error:
        raise DataError(
            f"{name} does not fit", expected=str(wanted), got=repr(value), where=where
        ) from error


def _dtype_text(array: Array) -> str:
    order = "" if array.dtype.isnative else " (foreign byte order)"
    return f"{array.dtype!s}{order}"


def shape_text(tensor: Tensor) -> str:
    return (
        "("
        + ", ".join(str(e) for e in tensor.shape)
        + ("," if len(tensor.shape) == 1 else "")
        + ")"
    )


def bind_sizes(
    tensors: Sequence[Tensor], shapes: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, int]:
    """The value of every symbolic size, read off the shapes of the inputs; fixed extents checked.

    DataError names the first tensor whose shape does not fit, and where a size got its value.
    """
    sizes: dict[str, int] = {}
    origin: dict[str, str] = {}
    for tensor in tensors:
        shape = shapes.get(tensor.name)
        if shape is None:
            continue
        for wanted, got in zip(tensor.shape, shape, strict=True):
            if isinstance(wanted, Size):
                value = sizes.setdefault(str(wanted), got)
                origin.setdefault(str(wanted), tensor.name)
                if value != got:
                    raise DataError(
                        f"{tensor.name} has the wrong shape",
                        expected=f"{wanted} = {value} as in {origin[str(wanted)]}",
                        got=str(shape),
                        where=where,
                        hint=f"a {tensor.name} of shape {shape_text(tensor)} with that {wanted}",
                    )
            elif wanted != got:
                raise DataError(
                    f"{tensor.name} has the wrong shape",
                    expected=shape_text(tensor),
                    got=str(shape),
                    where=where,
                    hint="np.transpose or reshape, if the data are ordered otherwise",
                )
    return sizes


def plain(array: Array) -> tuple[Array, str]:
    """(array as native code reads it: C-contiguous and aligned, why it was copied or "")."""
    if array.flags.c_contiguous and array.flags.aligned:
        return array, ""
    why = "strided" if not array.flags.c_contiguous else "misaligned"
    return np.array(array, order="C", copy=True), why


def check_written(value: Any, name: str, shape: tuple[int, ...], dtype: str, where: str) -> Array:
    """An array that the kernel writes: DataError unless it is a writable, contiguous, aligned
    array of that shape and dtype, or an object that shares the memory of one."""

    def refuse(problem: str, expected: str, got: str, hint: str) -> DataError:
        return DataError(f"{name} {problem}", expected=expected, got=got, where=where, hint=hint)

    shares = ("__dlpack__", "__array_interface__")
    if not isinstance(value, np.ndarray) and not any(hasattr(value, s) for s in shares):
        raise refuse(
            "is written by the kernel",
            "a numpy array, or an object with DLPack or __array_interface__",
            type(value).__name__,
            "np.empty",
        )
    array = view_of(value, name, where)
    if array.dtype != np.dtype(dtype):
        raise refuse(
            "has the wrong dtype", dtype, _dtype_text(array), f"np.empty({shape}, np.{dtype})"
        )
    if array.shape != shape:
        raise refuse(
            "has the wrong shape", str(shape), str(array.shape), f"np.empty({shape}, np.{dtype})"
        )
    if not array.flags.writeable:
        raise refuse("is read-only", "a writable array", "read-only", "a copy")
    if not array.flags.c_contiguous:
        raise refuse("is strided", "a C-contiguous array", f"strides {array.strides}", "np.empty")
    if not array.flags.aligned:
        raise refuse("is misaligned", "an aligned array", "misaligned", "np.empty")
    return array


def check_apart(
    written: Sequence[tuple[str, Array]], read: Sequence[tuple[str, Array]], where: str
) -> None:
    """DataError when an array that is written shares memory with another one."""
    for i, (name, array) in enumerate(written):
        for other, second in [*written[:i], *read]:
            # Both are contiguous, so overlapping bounds are overlapping memory.
            if array.size and second.size and np.may_share_memory(array, second):
                raise DataError(
                    f"{name} overlaps {other}",
                    expected="memory of its own",
                    got=f"memory shared with {other}",
                    where=where,
                    hint=f"{name}=np.empty_like(...)",
                )
