"""What a candidate takes at least: the parts of its score that are quickly told, without what
depends on the caches, on edges and on the copies that it makes."""

from __future__ import annotations

import math

from convgen.schedule.access import vector_count
from convgen.schedule.cost.score import (
    STARTED,
    NestCycles,
    TileCycles,
    all_packed,
    is_long,
    lanes_of,
    share_run,
    tiling_of,
)
from convgen.schedule.facts import Facts
from convgen.schedule.machine import Machine, rates_for
from convgen.schedule.tiles import Candidate, mean_height


def least_cycles(facts: Facts, candidate: Candidate, machine: Machine) -> float:
    """At most what `score` finds; 0 for maps, and where the vector loop is reduced."""
    if candidate.vector in facts.reduces or not facts.reduces:
        return 0.0
    tiling, lanes = tiling_of(facts, candidate), lanes_of(facts, candidate)
    fixed, moved = _loads(facts, candidate)
    whole = math.prod(facts.reduces.values())
    latency, packed = machine.latency * facts.states, candidate
    if is_long(facts):
        packed = all_packed(facts, candidate)
    total = 0.0
    for width, count in tiling.chunks.items():
        vectors, rates = vector_count(width, lanes), rates_for(machine, width, lanes)
        inner = TileCycles(
            work=tiling.height * vectors * facts.operations / rates.fma_rate,
            loads=(fixed + vectors * moved) / rates.load_rate,
            latency=latency,
        )
        iterations = whole * share_run(facts, packed, width)
        total += NestCycles(tiling.tiles * count, iterations, inner, STARTED).total
    return total


def _loads(facts: Facts, candidate: Candidate) -> tuple[float, float]:
    """The loads of an iteration: those that are the same for all vectors along the vector loop, and
    those of each. Vectors that windows share, or that come round again, may take none."""
    fixed = moved = 0.0
    tile = [(name, mean_height(facts, name, cover)) for name, cover in candidate.tile]
    for operand in facts.operands:
        if not operand.body:
            continue
        times = math.prod(size for name, size in tile if name in operand.strides)
        if candidate.vector not in operand.strides:
            fixed += times
        elif not (operand.windows or operand.periods):
            moved += times
    return fixed, moved
