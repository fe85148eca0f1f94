"""The buffers of a running kernel: flat arrays in their layouts, poisoned until written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convgen.affine import Affine, FloorDiv
from convgen.errors import DataError, InternalError
from convgen.ir.interpret.values import numpy_dtype
from convgen.ir.layout import digits, halo_of, is_rowmajor, size_in_elements
from convgen.ir.nodes import Buffer, Kernel


def integer(value: Affine, env: Mapping[str, Any]) -> Any:
    """The value of an integer expression; names may stand for arrays of int64."""
    total: Any = value.constant
    for atom, coefficient in value.terms:
        if isinstance(atom, str):
            if atom not in env:
                raise InternalError(
                    f"index {value}: {atom} has no value; known are {', '.join(env)}",
                    stage="interpret",
                )
            part = env[atom]
        else:
            inner = integer(atom.value, env)
            part = inner // atom.divisor if isinstance(atom, FloorDiv) else inner % atom.divisor
        total = total + part * coefficient
    return total


class Memory:
    """One flat array for each buffer."""

    def __init__(self, kernel: Kernel, arrays: Mapping[str, Any]) -> None:
        self.kernel = kernel
        self.buffers = {b.name: b for b in kernel.buffers}
        self.arrays: dict[str, Any] = {}
        for buffer in kernel.buffers:
            if buffer.role == "input" or (buffer.role == "output" and buffer.name in arrays):
                self.arrays[buffer.name] = pack(buffer, _given(buffer, arrays))
            elif buffer.role == "constant":
                values = np.array(buffer.values, numpy_dtype(buffer.dtype))
                self.arrays[buffer.name] = pack(buffer, values.reshape(buffer.shape))
            else:
                self.arrays[buffer.name] = poison(buffer)

    def renew_scratch(self) -> None:
        """What a worker finds in its scratch buffers when it starts: anything."""
        for name, buffer in self.buffers.items():
            if buffer.role == "scratch":
                self.arrays[name] = poison(buffer)

    def outputs(self) -> dict[str, Any]:
        """The outputs as arrays of their logical shapes."""
        return {
            name: unpack(buffer, self.arrays[name])
            for name, buffer in self.buffers.items()
            if buffer.role == "output"
        }

    def workspace(self) -> dict[str, Any]:
        """Temporaries, packed and scratch buffers, in their logical shapes."""
        roles = ("temporary", "packed", "scratch")
        return {
            name: unpack(buffer, self.arrays[name])
            for name, buffer in self.buffers.items()
            if buffer.role in roles
        }

    def offset(self, name: str, index: list[Any]) -> Any:
        """Flat offsets of a logical index (integers or arrays); InternalError outside the buffer's
        extents and halo."""
        buffer = self.buffers.get(name)
        if buffer is None:
            raise InternalError(f"no buffer is named {name!r}", stage="interpret")
        places: list[Any] = []
        for d, (i, extent) in enumerate(zip(index, buffer.shape, strict=True)):
            low, high = halo_of(buffer.layout, d)
            if np.any(i < -low) or np.any(i >= extent + high):
                raise InternalError(
                    f"{name}: dimension {d}: wanted an index in {-low}..{extent + high - 1}, "
                    f"saw {np.min(i)}..{np.max(i)}",
                    stage="interpret",
                )
            places.append(i + low)
        total: Any = 0
        for digit in digits(buffer.shape, buffer.layout):
            place = places[digit.dimension] // digit.divisor
            if not digit.outermost:
                place = place % digit.extent
            total = total + place * digit.stride
        return total


def _given(buffer: Buffer, arrays: Mapping[str, Any]) -> Any:
    if buffer.name not in arrays:
        raise DataError(f"input {buffer.name} is missing", expected=f"{buffer.dtype}{buffer.shape}")
    array = np.asarray(arrays[buffer.name])
    if array.shape != buffer.shape:
        raise DataError(
            f"input {buffer.name}", expected=f"shape {buffer.shape}", got=f"shape {array.shape}"
        )
    return array.astype(numpy_dtype(buffer.dtype))


def poison(buffer: Buffer) -> Any:
    """An array of values that no kernel means: NaN, or a large odd integer."""
    kind = numpy_dtype(buffer.dtype)
    value = np.nan if kind.kind == "f" else True if kind == np.bool_ else np.iinfo(kind).max - 88
    return np.full(size_in_elements(buffer), value, kind)


def _offsets(buffer: Buffer) -> Any:
    total = np.zeros(buffer.shape, np.int64)
    places = np.indices(buffer.shape, dtype=np.int64, sparse=True) if buffer.shape else ()
    for digit in digits(buffer.shape, buffer.layout):
        low, _ = halo_of(buffer.layout, digit.dimension)
        place = (places[digit.dimension] + low) // digit.divisor
        if not digit.outermost:
            place = place % digit.extent
        total = total + place * digit.stride
    return total


def pack(buffer: Buffer, array: Any) -> Any:
    """The flat memory of a logical array; padding and halo are zero."""
    if is_rowmajor(buffer):
        return np.array(array).reshape(-1)
    flat = np.zeros(size_in_elements(buffer), numpy_dtype(buffer.dtype))
    flat[_offsets(buffer)] = array
    return flat


def unpack(buffer: Buffer, flat: Any) -> Any:
    """The logical array in flat memory."""
    if is_rowmajor(buffer):
        return flat.reshape(buffer.shape).copy()
    return flat[_offsets(buffer)]
