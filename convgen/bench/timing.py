"""Fair timing: subjects take turns, so that noise of a shared machine falls on all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_SAMPLE = 1e-3  # seconds a sample takes at least: a thousand times the clock's resolution
_ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds for one call: median, smallest and largest over the rounds."""

    median: float
    smallest: float
    largest: float
    rounds: int


def interleave(
    subjects: Mapping[str, Callable[[], object]], seconds: float = 1.0
) -> dict[str, Timing]:
    """Time the subjects in turn, A B A B ..., for about `seconds` together and at least seven
    rounds, after a warm-up. Calls much shorter than a millisecond are repeated within a sample.
    """
    repeats = {name: _calibrate(call) for name, call in subjects.items()}
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    stop = time.perf_counter() + seconds
    rounds = 0
    while rounds < _ROUNDS or time.perf_counter() < stop:
        for name, call in subjects.items():
            call()  # brings its data back into the caches and its threads back to work
            samples[name].append(_sample(call, repeats[name]))
        rounds += 1
    return {
        name: Timing(statistics.median(found), min(found), max(found), rounds)
        for name, found in samples.items()
    }


def _calibrate(call: Callable[[], object]) -> int:
    call()
    repeats = 1
    while (taken := _sample(call, repeats) * repeats) < _SAMPLE:
        repeats = max(repeats + 1, min(8 * repeats, int(1.2 * repeats * _SAMPLE / taken)))
    return repeats


def _sample(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
