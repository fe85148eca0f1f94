"""A vector loop that is reduced: lanes are partial results, joined at the end.

With a tile that pays where a large operand lies in memory along the sum and is used too seldom to
be turned round first: it is read in order, its elements serve the outputs of the tile, and what
they are multiplied with is packed. Reduce loops whose steps follow one another in memory are
written out: their vectors come as rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from convgen.schedule.cost.copies import REUSED, pack_cycles
from convgen.schedule.cost.score import (
    OVERLAP,
    bandwidth_of,
    gather_cost,
    idle_share,
    is_apart,
    share_run,
)
from convgen.schedule.facts import Facts, Operand, axis_of
from convgen.schedule.machine import Machine
from convgen.schedule.recipes.dots import is_dot, score_dot
from convgen.schedule.tiles import Candidate, chunks_of, heights

TURNED = 5.0  # loads that the shuffles of a transposed vector take the time of
LOWEST = 4  # outputs of a tile that make up for its joining
WIDEST = 4  # vectors of a chunk without a tile
WORKING = 4  # registers that are no states


def across(facts: Facts) -> Iterator[Candidate]:
    """Every reduce loop as vector loop, alone; and with an output loop as tile whose points share
    the elements of a large operand."""
    for vector, extent in facts.reduces.items():
        if extent < 2:
            continue
        yield Candidate(vector, min(extent, _width(facts, extent)))
        if extent % facts.lanes or extent < facts.lanes or facts.lanes < 2:
            continue
        room = (facts.registers - 2) // max(1, facts.states)
        shared = [o for o in facts.operands if _is_streamed(facts, o, vector)]
        for name, length in facts.outputs.items():
            if not any(name not in o.strides for o in shared):
                continue
            for sizes in heights(length, room, 1):
                if len(sizes) == 1 and sizes[0] >= LOWEST:
                    yield Candidate(vector, facts.lanes, ((name, sizes),))


def _width(facts: Facts, extent: int) -> int:
    """Of a chunk without a tile: as many vectors as have registers for their states, fewer where
    those fit exactly."""
    most = min(WIDEST, room_for_states(facts))
    fits = [n for n in range(most, most // 2, -1) if extent % (n * facts.lanes) == 0]
    return (fits or [most])[0] * facts.lanes


def room_for_states(facts: Facts) -> int:
    """Vectors of which the states of all reduces fit the registers, beside what they work with."""
    return max(1, (facts.registers - WORKING) // max(1, facts.states))


def _is_streamed(facts: Facts, operand: Operand, vector: str) -> bool:
    """True for an operand that does not stay in a cache, is used a few times only, and lies in
    memory along the sum."""
    points = math.prod(facts.outputs.values()) * math.prod(facts.reduces.values())
    large = operand.elements * operand.bytes > facts.l2
    few = points <= REUSED * operand.elements
    along = operand.strides.get(vector, 0) == 1 or bool(side_by_side(facts, operand, vector))
    return operand.body and large and few and along


def side_by_side(facts: Facts, operand: Operand, vector: str) -> list[str]:
    """Reduce loops, the fastest last, whose iterations lie side by side in an operand that is
    strided along the vector loop; at most a vector of them."""
    found: list[str] = []
    if operand.edged or operand.omits or operand.strides.get(vector, 0) in (None, 0, 1, 2):
        return found
    steps = {s: n for n, s in operand.strides.items() if n in facts.reduces and n != vector}
    count = 1
    while (name := steps.get(count)) is not None and name not in found:
        if count * facts.reduces[name] > facts.lanes:
            break
        count *= facts.reduces[name]
        found.insert(0, name)
    return [n for n in found if facts.reduces[n] > 1]


def rows_of(facts: Facts, candidate: Candidate) -> list[str]:
    """The reduce loops to write out for the operand that profits most, the fastest last."""
    runs = [
        side_by_side(facts, o, candidate.vector)
        for o in facts.operands
        if o.body and o.load.buffer not in candidate.packs
    ]
    return max(runs, key=lambda r: math.prod(facts.reduces[n] for n in r), default=[])


def in_memory_order(facts: Facts, vector: str, outer: list[str]) -> list[str]:
    """The outer loops as a large operand lies in memory; those that it does not move with last."""
    large = [o for o in facts.operands if _is_streamed(facts, o, vector)]

    def step(name: str) -> int:
        """The loop itself, or the one that it was cut from."""
        return max(
            (abs(o.strides.get(axis_of(name)) or o.strides.get(name) or 0) for o in large),
            default=0,
        )

    return sorted(outer, key=step, reverse=True)


def score_across(facts: Facts, candidate: Candidate, machine: Machine) -> Candidate:
    """The candidate with its packs chosen and its cycles."""
    if candidate.tile and is_dot(facts, candidate.vector):
        return score_dot(facts, candidate, machine)
    outputs = math.prod(facts.outputs.values())
    height = math.prod(max(sizes) for _, sizes in candidate.tile)
    extent = facts.reduces[candidate.vector]
    chunks = chunks_of(extent, candidate.width).items()
    vectors = sum(-(-size // facts.lanes) * count for size, count in chunks)
    steps = outputs // height * vectors * math.prod(facts.reduces.values()) // max(1, extent)
    tile = {name for name, _ in candidate.tile}
    packs: set[str] = set()
    fetched = work = streamed = packing = 0.0
    for operand in facts.operands:
        if not operand.body:
            continue
        times = height if tile & operand.strides.keys() else 1
        gather = _gather(facts, operand, candidate, machine)
        copied = pack_cycles(facts, operand, candidate, machine)
        if candidate.tile and _may_pack(operand, candidate):
            if copied < steps * times * gather / machine.load_rate:
                packs.add(operand.load.buffer)
                packing, gather = packing + copied, 0.0
        fetched += times * (1 + gather)
        work += 3.0 * bool(operand.edged or operand.omits)
        size = operand.elements * operand.bytes
        far = size > facts.l2 and _is_shared(facts, operand, candidate.vector)
        apart = far and is_apart(operand, candidate.vector)
        if candidate.tile or far:
            moved = facts.lanes * operand.bytes / bandwidth_of(facts, size, machine)
            streamed += 2 * moved if apart else moved
    if not candidate.tile:
        streamed *= 1 + OVERLAP
    each = max(
        (height * facts.operations + work) / machine.fma_rate,
        fetched / machine.load_rate,
        streamed,
    )
    waiting = machine.latency * facts.states / -(-candidate.width // facts.lanes)
    joined = (3.0 * facts.lanes * facts.states + 10) / min(height, 4)
    share = share_run(facts, candidate, candidate.width)
    cycles = steps * share * max(each, waiting) + outputs * (joined + facts.epilogue + 2) + packing
    cycles *= idle_share(outputs // height, cycles)
    return replace(candidate, packs=frozenset(packs), cycles=cycles)


def _is_shared(facts: Facts, operand: Operand, vector: str) -> bool:
    """True for an operand whose way from far away counts: not where every output has elements of
    its own, which come once whatever the tiles are."""
    alone = all(n in operand.strides for n, e in facts.outputs.items() if e > 1)
    return is_dot(facts, vector) or is_apart(operand, vector) or not alone


def _gather(facts: Facts, operand: Operand, candidate: Candidate, machine: Machine) -> float:
    """What a vector of an operand costs beyond one load."""
    plain = gather_cost(facts, operand.strides.get(candidate.vector, 0), machine)
    loops = side_by_side(facts, operand, candidate.vector) if candidate.tile else []
    count = math.prod(facts.reduces[n] for n in loops)
    return plain if count < 2 else min(plain, facts.lanes / count + TURNED)


def _may_pack(operand: Operand, candidate: Candidate) -> bool:
    """True for an operand that a copy makes contiguous along the vector loop."""
    stride = operand.strides.get(candidate.vector, 0)
    return operand.packable and stride not in (0, 1) and operand.steps[candidate.vector] == 1


def good_divisor(extent: int, width: int, facts: Facts) -> int:
    """A divisor of an extent that fills vectors well, best of all wholly; 0 where there is none."""
    lanes = facts.lanes
    most = min(2 * width, room_for_states(facts) * lanes)
    fits = [d for d in range(lanes, most + 1) if extent % d == 0]
    full = [d for d in fits if d >= 0.8 * lanes * -(-d // lanes)]
    whole = [d for d in full if d % lanes == 0 and d >= width // 2]
    return max(whole or full, default=0)
