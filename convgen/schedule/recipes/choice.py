"""Which candidate a nest takes: the cheapest by the cost model.

Candidates are scored in the order of what they take at least, until that is more than the best
takes; nests that differ in names alone are scored once.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from convgen.ir.nodes import Kernel, Nest
from convgen.schedule.cost.alike import Names, names_of, renamed, without_names
from convgen.schedule.cost.blocks import in_blocks
from convgen.schedule.cost.bounds import least_cycles
from convgen.schedule.cost.score import score
from convgen.schedule.facts import Facts, facts_of
from convgen.schedule.machine import Machine, machine_of
from convgen.schedule.recipes.across import across, score_across
from convgen.schedule.recipes.dots import dots
from convgen.schedule.tiles import Candidate, tiles
from convgen.target import Target

# Vectors along the vector loop that a tile may take.
VECTORS = (1, 2, 3, 4, 6, 8)
# Nests whose choice is kept for others like them.
KEPT = 512


def choose(nest: Nest, kernel: Kernel, target: Target, rank: int = 0) -> Candidate:
    """The cheapest candidate for a nest; with a rank, the one that has so many cheaper ones."""
    return cheapest(facts_of(nest, kernel, target), machine_of(target), rank)


def cheapest(facts: Facts, machine: Machine, rank: int = 0) -> Candidate:
    """The cheapest candidate, or the one that has so many cheaper ones."""
    found, names = _cheapest_of(_Subject(without_names(facts), machine, facts), rank)
    return renamed(found, names, names_of(facts))


@dataclass(frozen=True, slots=True)
class _Subject:
    """Facts that are equal to others where the key is."""

    key: Hashable
    machine: Machine
    facts: Facts = field(compare=False)


@lru_cache(maxsize=KEPT)
def _cheapest_of(subject: _Subject, rank: int) -> tuple[Candidate, Names]:
    """The candidate, and the names that it speaks of."""
    facts, machine = subject.facts, subject.machine
    if rank:
        scored = sorted(
            (score_any(facts, c, machine) for c in candidates(facts)), key=lambda c: c.cycles
        )
        return scored[min(rank, len(scored) - 1)], names_of(facts)
    least = [(least_cycles(facts, c, machine), c) for c in candidates(facts)]
    best, place = Candidate(), -1
    for number in sorted(range(len(least)), key=lambda n: least[n][0]):
        bound, candidate = least[number]
        if bound > best.cycles:
            break
        found = score_any(facts, candidate, machine)
        if (found.cycles, number) < (best.cycles, place):
            best, place = found, number
    return best, names_of(facts)


def score_any(facts: Facts, candidate: Candidate, machine: Machine) -> Candidate:
    """The candidate with its packs chosen and its cycles."""
    if candidate.vector not in facts.reduces:
        return score(facts, candidate, machine)
    return score_across(facts, candidate, machine)


def _periods(facts: Facts, vector: str) -> Iterator[int]:
    """Vectors after which an operand is read in the same pattern again."""
    for operand in facts.operands:
        if vector in operand.patterned:
            every = operand.patterned[vector][1]
            if every // math.gcd(every, facts.lanes) <= max(VECTORS):
                yield every // math.gcd(every, facts.lanes)


def candidates(facts: Facts) -> Iterator[Candidate]:
    """What is worth scoring: every output loop as vector loop with some widths, each with the tiles
    that fit beside it; reduce loops as vector loops, alone or with a tile; no vector at all."""
    yield Candidate()
    for vector, extent in facts.outputs.items():
        if extent == 1:
            continue
        for vectors in sorted({*VECTORS, *_periods(facts, vector)}):
            width = min(extent, vectors * facts.lanes)
            if facts.reduces and vectors > 1 and vectors * (facts.states + 1) > facts.registers:
                break
            for tile in tiles(facts, vector, -(-width // facts.lanes)):
                candidate = Candidate(vector, width, tile)
                yield candidate
                yield from in_blocks(facts, candidate)
            if width == extent:
                break
    combiners = [r.combiner for r in facts.nest.reduces]
    together = len({facts.nest.leader(i) for i in range(len(combiners))}) == 1
    if not together or not all(c.in_any_order for c in combiners):
        return
    if all(c.commutative for c in combiners):
        yield from across(facts)
        yield from dots(facts)
    else:  # the elements of a state keep their order where the vector loop is the last of the sum
        last = [o.name for o in facts.nest.loops if o.reduce is not None][-1:]
        yield from (c for c in across(facts) if [c.vector] == last and not c.tile)
