"""What a CPU gives: rates of one core, tabled per model, and which cache holds so many bytes.

A model without a row gets the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from convgen.target import Target

LEVELS = ("L1", "L2", "L3", "memory")
# Shares of the three caches that what is read again and again may take beside all else.
STAYS = (0.5, 0.6, 0.3)
# Share of a cache that one nest may fill: its sets fill unevenly, and others use it too.
FILLED = 0.75


@dataclass(frozen=True, slots=True)
class Machine:
    """Constants of a CPU, for one core.

    fma_bits    bits of multiply-adds per cycle     load_bits  bits loaded per cycle
    fma_rate, load_rate   the same in vectors of the target, two at most per cycle
    latency     cycles of a dependent multiply-add  gather     cycles per gathered element
    l2, l3, memory   bytes per cycle from each level
    swept       the same from the third cache, of what a loop reads in order; 0 for no more
    passed      bytes per cycle of what other cores have written a moment ago, a share of it theirs
    scatter     cycles per element stored or copied with a step
    copy        cycles per element copied in order
    clock       billions of cycles a second, for times that are predicted
    """

    fma_bits: int = 1024
    load_bits: int = 1024
    fma_rate: float = 2.0
    load_rate: float = 2.0
    latency: float = 4.0
    gather: float = 1.5
    l2: float = 32.0
    l3: float = 14.0
    memory: float = 6.0
    swept: float = 0.0
    passed: float = 1.0
    scatter: float = 1.5
    copy: float = 0.3
    clock: float = 4.0

    def rate_from(self, level: str) -> float:
        """Bytes per cycle from a level; the first cache gives its vectors as fast as they are
        asked for, so what it holds hardly counts."""
        rates = (2 * self.l2, self.l2, self.l3, self.memory)
        return rates[LEVELS.index(level)]


# The first row whose text occurs in the model's own name for itself.
MACHINES: dict[str, Machine] = {
    "EPYC (family 26": Machine(l3=24.0, memory=10.0),
    "EPYC (family 25": Machine(
        fma_bits=512, load_bits=512, l3=10.0, memory=4.0, swept=18.0, clock=3.6
    ),
    "Ryzen (family 25": Machine(fma_bits=512, load_bits=512, l3=12.0, memory=5.0),
    "EPYC": Machine(fma_bits=512, load_bits=512, l3=20.0),
    "Xeon": Machine(l2=48.0, l3=10.0, memory=5.0),
    "0xd": Machine(fma_bits=512, load_bits=384),
}
DEFAULT_MACHINE = Machine()


def machine_of(target: Target) -> Machine:
    """The row of the table for a target, or the default row; rates for its vectors."""
    rows = (machine for word, machine in MACHINES.items() if word in target.cpu_model)
    machine = next(rows, DEFAULT_MACHINE)
    return replace(
        machine,
        fma_rate=min(2.0, machine.fma_bits / target.vector_bits),
        load_rate=min(2.0, machine.load_bits / target.vector_bits),
    )


@lru_cache(maxsize=256)
def rates_for(machine: Machine, width: int, lanes: int) -> Machine:
    """The rates for vectors of so many lanes: whole ones may take two turns, short ones do not."""
    short = 1
    while short < min(width, lanes):
        short *= 2
    if short == lanes:
        return machine
    return replace(
        machine,
        fma_rate=min(2.0, machine.fma_rate * lanes / short),
        load_rate=min(2.0, machine.load_rate * lanes / short),
    )


def level_of(
    size: float, caches: Sequence[float], shares: Sequence[float] = (1.0, 1.0, 1.0)
) -> str:
    """The first level that holds so many bytes in its share of a cache."""
    for level, cache, share in zip(LEVELS, caches, shares, strict=False):
        if size <= share * cache:
            return level
    return LEVELS[-1]
