"""The numbers of a network: parameters in one vector, states one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.ir.layout import ALIGNMENT, align
from convgen.layers.base import ParameterSpec, Shape
from convgen.runtime.call import zeros_on_line
from convgen.types import DType


@dataclass(frozen=True)
class Weights:
    """All trained parameters in one vector, and the states (running statistics) one by one.

    `places` maps a parameter's full name to (offset, shape) in `vector`; gaps between aligned
    parameters are zero and stay zero.
    """

    dtype: DType
    vector: NDArray[Any]
    places: dict[str, tuple[int, Shape]]
    states: dict[str, NDArray[Any]]

    @staticmethod
    def allocate(specs: Sequence[tuple[str, str, ParameterSpec]], dtype: DType) -> Weights:
        places: dict[str, tuple[int, Shape]] = {}
        states: dict[str, NDArray[Any]] = {}
        offset = 0
        step = ALIGNMENT // dtype.bytes
        for name, _, spec in specs:
            count = int(np.prod(spec.shape, dtype=np.int64))
            if spec.trained:
                places[name] = (offset, spec.shape)
                offset += -(-count // step) * step
            else:
                kind = (spec.dtype or dtype).numpy_name
                raw = zeros_on_line(align(count * np.dtype(kind).itemsize))
                states[name] = raw.view(kind)[:count].reshape(spec.shape)
        vector = zeros_on_line(offset * dtype.bytes).view(dtype.numpy_name)
        return Weights(dtype, vector, places, states)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A parameter or state as an array that shares memory with the network."""
        if name in self.states:
            return self.states[name]
        return part(self.vector, self.places[name])

    def names(self) -> list[str]:
        return [*self.places, *self.states]


def part(vector: NDArray[Any], place: tuple[int, Shape]) -> NDArray[Any]:
    """The stretch of a flat vector at (offset, shape)."""
    offset, shape = place
    return vector[offset : offset + int(np.prod(shape, dtype=np.int64))].reshape(shape)
