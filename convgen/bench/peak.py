"""The machine's limits: multiply-adds, bytes from each level, handing work to threads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from convgen.bench.bandwidth import Bandwidth, measure_bandwidth
from convgen.bench.forkjoin import measure_fork_join
from convgen.bench.timing import interleave
from convgen.runtime.peak import PeakLoop, peak_loops, quick_peak
from convgen.schedule.machine import machine_of
from convgen.target import Target, target
from convgen.types import DType, f32

__all__ = ["Peak", "PeakLoop", "measure_peak"]


@dataclass(frozen=True, slots=True)
class Peak:
    """Best rate of all loops, GFLOP/s on `threads` cores together, of reads from memory, and of
    reads and copies in each level; microseconds to hand a phase to the pool and get it back."""

    gflops: float
    chains: int
    lanes: int
    threads: int
    dtype: str
    target: str
    cpu: str
    gigabytes_per_second: float = 0.0
    bandwidth: tuple[Bandwidth, ...] = ()
    fork_join_microseconds: float | None = None


@cache
def clock() -> float:
    """Cycles a second, measured once: multiply-adds that ran, by those that a cycle takes."""
    machine = target("native")
    each = 2 * machine.lanes(f32) * machine_of(machine).fma_rate
    return quick_peak(1, f32, 0.5) * 1e9 / each


def measure_peak(
    threads: int = 1, dtype: DType = f32, seconds: float = 0.5, machine: Target | None = None
) -> Peak:
    """The best of the loops, each at its best round.

    Threads beyond the cores share them: the figure is what the machine gives.
    """
    machine = machine or target("native")
    loops = peak_loops(threads, dtype, machine)
    best: dict[int, float] = dict.fromkeys(range(len(loops)), float("inf"))

    def turn(number: int) -> None:
        best[number] = min(best[number], loops[number].run())

    interleave({str(i): lambda i=i: turn(i) for i in range(len(loops))}, seconds)
    number = max(best, key=lambda i: loops[i].flops / best[i])
    loop = loops[number]
    moved = measure_bandwidth(threads, seconds, machine)
    return Peak(
        loop.flops / best[number] / 1e9,
        loop.chains,
        loop.lanes,
        threads,
        dtype.name,
        machine.name,
        machine.cpu_model,
        max(b.gigabytes_per_second for b in moved if (b.level, b.kind) == ("memory", "read")),
        moved,
        measure_fork_join(threads, seconds / 2) if threads > 1 else None,
    )
