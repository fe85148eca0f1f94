"""The memory's limit: copies of arrays that no cache holds."""

from __future__ import annotations

import threading
import time

import numpy as np

_BYTES = 48 << 20  # of each array and thread, well beyond a core's share of the last cache


def measure_bandwidth(threads: int = 1, seconds: float = 0.3, size: int = _BYTES) -> float:
    """Gigabytes per second read and written together by `threads` copies at once, best round.

    >>> measure_bandwidth(seconds=0.01, size=1 << 16) > 0
    True
    """
    pairs = [(np.ones(size, np.uint8), np.zeros(size, np.uint8)) for _ in range(threads)]
    best = float("inf")
    stop = time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < stop:
        best = min(best, _round(pairs))
    return 2 * size * threads / best / 1e9


def _round(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Seconds in which all copies are made."""
    if len(pairs) == 1:
        start = time.perf_counter()
        np.copyto(pairs[0][1], pairs[0][0])
        return time.perf_counter() - start
    ready = threading.Barrier(len(pairs) + 1)
    workers = [threading.Thread(target=_copy, args=(ready, *pair)) for pair in pairs]
    for worker in workers:
        worker.start()
    ready.wait()
    start = time.perf_counter()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def _copy(ready: threading.Barrier, source: np.ndarray, target: np.ndarray) -> None:
    ready.wait()
    np.copyto(target, source)
