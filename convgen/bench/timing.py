"""Fair timing: subjects take turns, so that noise of a shared machine falls on all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_SAMPLE = 4e-3  # seconds a sample takes at least: some calls after one another, as in use
_SETTLE = 0.02  # seconds between turns: OpenMP's idle threads spin for 5 to 10 ms
_WARM = 0.01  # seconds of calls before a sample: the subject's data and threads come back
_ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds for one call: median, smallest and largest over the rounds."""

    median: float
    smallest: float
    largest: float
    rounds: int


def interleave(
    subjects: Mapping[str, Callable[[], object]], seconds: float = 1.0, *, threads: int = 1
) -> dict[str, Timing]:
    """Time the subjects in turn, A B A B ..., for about `seconds` together and at least seven
    rounds, after a warm-up. Calls much shorter than a millisecond are repeated within a sample.

    With threads, nothing runs between turns for a while: the idle threads of one subject's pool
    have gone to sleep when the next one is timed, and do not share its cores.
    """
    repeats = {name: _calibrate(call) for name, call in subjects.items()}
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    stop = time.perf_counter() + seconds
    rounds = 0
    while rounds < _ROUNDS or time.perf_counter() < stop:
        for name, call in subjects.items():
            if threads > 1:
                time.sleep(_SETTLE)
            _warm(call)
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


def _warm(call: Callable[[], object]) -> None:
    stop = time.perf_counter() + _WARM
    call()
    while time.perf_counter() < stop:
        call()


def _sample(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
