"""Where temporaries live: lifetimes over phases, and offsets in one shared workspace.

Buffers whose lifetimes do not meet may share memory. Those with padding or a halo, which must stay
zero once they are, are never shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from convgen.ir.layout import align, is_rowmajor, size_in_bytes
from convgen.ir.nodes import Buffer, Gather, Kernel, Load, Nest, Phase, Store, VectorLoad
from convgen.ir.visit import walk


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The first and the last phase (by number) that touch a buffer."""

    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class Workspace:
    """Byte offset of each temporary, bytes in all, and what each needs for itself."""

    offsets: dict[str, int] = field(default_factory=dict)
    total_bytes: int = 0
    sizes: dict[str, int] = field(default_factory=dict)


def touched(phase: Phase) -> frozenset[str]:
    """Names of all buffers that a phase reads or writes, in any form."""
    if isinstance(phase.body, tuple):
        found: set[str] = set()
        for nest in phase.body:
            found.update(_touched_by_nest(nest))
        return frozenset(found)
    return frozenset(
        part.buffer for part in walk(phase.body) if isinstance(part, (VectorLoad, Gather, Store))
    )


def _touched_by_nest(nest: Nest) -> Iterator[str]:
    for part in walk(nest):
        if isinstance(part, Load):
            yield part.buffer
    for producer in nest.attached:
        yield producer.buffer
        yield from _touched_by_nest(producer.nest)
    for store in nest.stores:
        yield store.buffer


def lifetimes(kernel: Kernel) -> dict[str, Lifetime]:
    """The lifetime of every buffer that any phase touches."""
    found: dict[str, Lifetime] = {}
    for number, phase in enumerate(kernel.phases):
        for name in touched(phase):
            first = found[name].first if name in found else number
            found[name] = Lifetime(first, number)
    return found


def place_temporaries(kernel: Kernel) -> Workspace:
    """Offsets of the kernel's temporary and packed buffers in one workspace.

    The largest are placed first, each at the lowest place that no buffer of an overlapping
    lifetime takes. Packed buffers written by a prepare phase outlive every run: never shared.
    """
    lives = lifetimes(kernel)
    end = len(kernel.phases)
    kept = _prepared(kernel)
    wanted: list[tuple[Buffer, Lifetime, int]] = []
    for buffer in kernel.buffers:
        if buffer.role in ("temporary", "packed"):
            life = lives.get(buffer.name, Lifetime(0, 0))
            if buffer.name in kept or not is_rowmajor(buffer):
                life = Lifetime(0, end)
            wanted.append((buffer, life, align(size_in_bytes(buffer))))
    wanted.sort(key=lambda item: (-item[2], item[0].name))
    placed: list[tuple[int, int, Lifetime]] = []
    offsets: dict[str, int] = {}
    for buffer, life, size in wanted:
        offset = _lowest_gap(placed, life, size)
        placed.append((offset, size, life))
        offsets[buffer.name] = offset
    total = max((offset + size for offset, size, _ in placed), default=0)
    return Workspace(offsets, total, {b.name: size for b, _, size in wanted})


def _prepared(kernel: Kernel) -> frozenset[str]:
    found: set[str] = set()
    for phase in kernel.phases:
        if phase.when == "prepare":
            found |= touched(phase)
    return frozenset(found)


def _lowest_gap(placed: list[tuple[int, int, Lifetime]], life: Lifetime, size: int) -> int:
    offset = 0
    for start, length, other in sorted(placed, key=lambda item: item[0]):
        if life.meets(other) and start < offset + size and offset < start + length:
            offset = start + length
    return offset
