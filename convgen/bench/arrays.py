"""The arrays that are measured: random, and where torch's tensors begin."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.runtime.arrays import new_array
from convgen.types import DType


def random_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType) -> NDArray[Any]:
    """Uniform numbers from -1 to 1, never zeros, whose products a machine may do faster. A large
    array begins with a cache line, as torch's tensors do."""
    array = new_array(shape, np.dtype(dtype.numpy_name))
    array[...] = rng.uniform(-1, 1, shape)
    return array


def own_copy(array: NDArray[Any]) -> NDArray[Any]:
    """The array in C order in such memory."""
    copy = new_array(array.shape, array.dtype)
    copy[...] = array
    return copy
