"""What the points of a tile share when the reduce loops inside it are written out, and what the
loops that stay loops add."""

from __future__ import annotations

import math
from collections.abc import Mapping

from convgen.schedule.facts import Facts, Operand
from convgen.schedule.machine import Machine
from convgen.schedule.tiles import Candidate

UNROLLED = 160  # statements that the unrolled reduce loops of one tile may have
SHORT = 16  # statements of an iteration beside which the turn of its loop shows
TURN = 0.1  # cycles of a turn of a loop, which hides behind the tile
MISSED = 4.0  # cycles of the end of a short loop, the jump now and then guessed wrong
CROWDED = 0.75  # loads, as a share of the operations' time, from which sharing them pays
SLIDING = 7  # iterations of a reduce loop that are unrolled to share what they slide along


def is_crowded(facts: Facts, tile: Mapping[str, float], machine: Machine) -> bool:
    """True where a tile of so many points (vectors, along the vector loop) has so many loads that
    they hardly hide behind its operations."""
    loads = sum(
        math.prod(size for name, size in tile.items() if name in operand.strides)
        for operand in facts.operands
        if operand.body
    )
    work = math.prod(tile.values()) * facts.operations
    return loads / machine.load_rate > CROWDED * work / machine.fma_rate


def turn_cycles(facts: Facts, statements: float) -> float:
    """What an iteration adds as a turn of a loop: short loops that stay loops are left by a jump
    that is guessed wrong."""
    done = 1.0
    for name in facts.order:
        extent = facts.reduces[name]
        if extent > 1 and (extent > 16 or statements * done * extent > UNROLLED):
            return (TURN + MISSED / extent) / done
        done *= extent
    return 0.0


def share_of_loads(
    facts: Facts, operand: Operand, candidate: Candidate, tile: dict[str, float], vectors: int
) -> tuple[float, float]:
    """The share of a vector operand's loads that is left when the reduce loops that slide it
    through the tile are unrolled: 1 where they are too long or the registers too few. Then also
    what the turns of those that stay loops cost, else 0."""
    height = math.prod(tile.values())
    copies = height * vectors * facts.operations
    rows, share, windows, taps = 0.0, 1.0, 0, 1.0
    slid: set[str] = set()
    for window in operand.windows:
        outs = [n for n in window if n in tile]
        inner = [n for n in window if n in facts.reduces]
        if len(outs) != 1 or len(inner) != 1:
            continue
        extent = facts.reduces[inner[0]]
        if extent < 1 or (extent > SLIDING and inner[0] != facts.order[0]):
            continue
        steps = min(extent, SLIDING)
        one, two = window[outs[0]], window[inner[0]]
        size = tile[outs[0]]
        distinct = ((size - 1) * one + (steps - 1) * two) / math.gcd(one, two) + 1
        distinct = min(distinct, size * steps)
        copies *= steps
        share *= distinct / (size * steps)
        rows, windows = (rows or vectors) * distinct, max(windows, steps)
        taps *= steps if slid else min(steps, size)  # all of a row wait for the next row
        slid.add(inner[0])
    if not slid:
        return 1.0, 0.0
    if any(facts.reduces[n] <= SLIDING for n in slid):
        copies *= math.prod(e for n, e in facts.reduces.items() if n not in slid)
    live = rows + windows
    if all(o.strides.get(candidate.vector) for o in facts.operands if o.body):
        beside = taps - (len(slid) > 1)  # as `live_when_unrolled` counts
        live = min(live, (beside + 1) * vectors + 2)  # points in the order of the operand
    live += height * vectors * facts.states
    if copies <= UNROLLED and live <= facts.registers + 2:
        return share, 0.0
    short = facts.order[0]
    return 1.0, TURN + MISSED / facts.reduces[short] if short in slid else 0.0


def share_outside(
    facts: Facts,
    operand: Operand,
    candidate: Candidate,
    tile: dict[str, float],
    unrolled: bool,
) -> float:
    """The share of the tiles that meet an edge of an operand, so that they test it."""
    inside = 1.0
    for loops, places in operand.overhangs:
        positions = 1.0
        for name in loops:
            if name in tile:
                positions *= facts.outputs[name] / tile[name]
            elif name == candidate.vector:
                positions *= max(1.0, facts.outputs[name] / candidate.width)
            elif name in facts.outputs:
                positions *= facts.outputs[name]
            elif not unrolled or facts.reduces[name] > SLIDING:
                positions *= facts.reduces[name]
        inside *= max(0.0, 1 - places / positions)
    return 1 - inside
