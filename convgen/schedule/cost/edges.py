"""What a tile saves whose reduce loops run apart where they meet an edge of an operand: the other
iterations need no tests."""

from __future__ import annotations

from collections.abc import Container

from convgen.schedule.facts import Facts, Operand
from convgen.schedule.skipping import Reach

THIN = 4  # an edge is thin where the loop is at least so many times as long


def share_at_edges(facts: Facts, operand: Operand, tile: Container[str]) -> float:
    """The share of the reduce iterations that run apart, because a tile that moves the loops of
    `tile` meets an edge of an operand in them; 1 where no others are left without tests, and for
    an operand that other outputs read again: a copy serves all."""
    if any(e > 1 and n not in operand.strides for n, e in facts.outputs.items()):
        return 1.0
    inside, found = 1.0, False
    for loops, _ in operand.overhangs:
        if not any(n in tile for n in loops):
            continue
        reach = next((r for r in operand.zeros if _loops_of(r) == loops), None)
        if reach is None or len(reach.inner) != 1:
            return 1.0
        [(_, step, extent)] = reach.inner
        outside = iterations_outside(reach)
        if step <= 0 or outside * THIN > extent:
            return 1.0
        inside, found = inside * (1 - outside / extent), True
    return 1 - inside if found else 1.0


def _loops_of(reach: Reach) -> frozenset[str]:
    return frozenset(n for n, _, _ in (*reach.outputs, *reach.inner))


def iterations_outside(reach: Reach) -> int:
    """How many iterations of the only reduce loop, which moves forwards, some output may take over
    an edge."""
    [(_, step, extent)] = reach.inner
    least = reach.start + sum(min(0, s * (e - 1)) for _, s, e in reach.outputs)
    most = reach.start + sum(max(0, s * (e - 1)) for _, s, e in reach.outputs)
    low = max(0, -(least // step))
    return low + max(0, extent - 1 - (reach.size - 1 - most) // step)
