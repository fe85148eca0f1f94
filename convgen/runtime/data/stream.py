"""Batches for training, as a pure function of the seed and the step number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convgen.errors import DataError

_MASK = (1 << 64) - 1


class Stream:
    """Shuffled epochs one after another, cut into batches without gaps: step i (from 0) takes the
    samples at places i*batch .. (i+1)*batch - 1, epoch e permuted by the seed (seed, 0, e). No
    sample is dropped and every batch is full; resuming needs only the step number.

    >>> Stream(5, 2, seed=0).epoch_of(2), Stream(5, 2, seed=0).steps(4)
    (0, 10)
    """

    def __init__(self, count: int, batch: int, seed: int, shuffle: bool = True) -> None:
        if count < 1:
            raise DataError("no samples to train on", expected="at least one", got=str(count))
        if batch < 1:
            raise DataError(f"batch {batch}", expected="at least 1")
        self.count, self.batch, self.seed, self.shuffle = count, batch, seed, shuffle
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    def steps(self, epochs: int) -> int:
        """Number of full batches in that many epochs (at least one)."""
        return max(1, epochs * self.count // self.batch)

    def epoch_of(self, step: int) -> int:
        """The epoch in which a step begins."""
        return step * self.batch // self.count

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            order = np.arange(self.count)
            if self.shuffle:
                np.random.Generator(np.random.PCG64([self.seed, 0, epoch])).shuffle(order)
            self._epoch, self._order = epoch, order
        return self._order

    def indices(self, step: int) -> NDArray[np.int64]:
        """Sample numbers of one batch."""
        place, wanted = step * self.batch, self.batch
        parts: list[NDArray[np.int64]] = []
        while wanted:
            epoch, start = divmod(place, self.count)
            taken = self._permutation(epoch)[start : start + wanted]
            parts.append(taken)
            wanted -= len(taken)
            place += len(taken)
        return np.concatenate(parts)

    def generator(self, step: int) -> np.random.Generator:
        """The random numbers for augmenting that step's batch."""
        return np.random.Generator(np.random.PCG64([self.seed, 1, step]))


def run_seed(seed: int, step: int, number: int) -> int:
    """The 64-bit seed of random layer `number` in a step: splitmix64 over the three (Steele, Lea
    and Flood, "Fast splittable pseudorandom number generators", 2014)."""
    state = 0
    for value in (seed, step, number):
        state = (state ^ value) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state
