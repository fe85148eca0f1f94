"""Which operands a candidate copies before it runs, and what the copies take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convgen.ir.nodes import Nest
from convgen.schedule.access import in_loops
from convgen.schedule.cost.reuse import LINE, share_of_sets
from convgen.schedule.facts import Facts, Operand
from convgen.schedule.machine import FILLED, Machine
from convgen.schedule.tiles import Candidate

AHEAD = 0.35  # of a copy that is taken to serve many calls: as many are taken to make their own
REUSED = 16  # uses of an element in a call from which its copy is taken to serve many calls


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy that a nest reads instead of an operand, and the loop that lies innermost in it."""

    operand: Operand
    loops: tuple[str, ...]

    def is_turned(self, nest: Nest) -> bool:
        """True where another dimension lies innermost than in the operand."""
        last = in_loops(nest, self.operand.load.index[-1]).names()
        return any(name not in last for name in self.loops)


def pack_choices(facts: Facts, candidate: Candidate) -> list[frozenset[str]]:
    """Nothing; the buffers that are strided along the vector loop; those that meet edges too; those
    whose lines a tile uses in part too, or whose rows meet in a few sets of a cache."""
    partial: set[str] = set()
    strided: set[str] = set()
    edged: set[str] = set()
    for operand in facts.operands:
        stride = operand.strides.get(candidate.vector, 0)
        shuffled = operand.is_shuffled(candidate.vector, candidate.width)
        helps = stride not in (0, 1) and not shuffled and operand.steps[candidate.vector] != stride
        tested = operand.edged & {candidate.vector, *(name for name, _ in candidate.tile)}
        if not operand.body:
            continue
        if operand.packable and (helps or tested):
            strided |= {operand.load.buffer} if helps else set()
            edged |= {operand.load.buffer} if tested else set()
        elif operand.packable and (
            _is_partial(facts, operand, candidate) or _is_crowded(facts, operand, candidate)
        ):
            partial.add(operand.load.buffer)
    choices = [set[str](), strided, strided | edged, strided | edged | partial]
    return list(dict.fromkeys(map(frozenset, choices)))


def _is_partial(facts: Facts, operand: Operand, candidate: Candidate) -> bool:
    """True for an operand of which tiles need equal parts of a line each."""
    if candidate.vector in operand.strides:
        return False
    return any(
        operand.strides.get(name) == 1
        and 1 < max(sizes) < facts.outputs[name]
        and max(sizes) * operand.bytes < LINE
        and facts.outputs[name] % max(sizes) == 0
        for name, sizes in candidate.tile
    )


def _is_crowded(facts: Facts, operand: Operand, candidate: Candidate) -> bool:
    """True for an operand whose runs along the vector loop meet in a few sets of a cache."""
    along = operand.strides.get(candidate.vector) == 1
    return along and share_of_sets(facts, operand, candidate.width) < 1.0


def first_of(facts: Facts, packs: frozenset[str]) -> list[Operand]:
    """One operand for each packed buffer."""
    found: dict[str, Operand] = {}
    for operand in facts.operands:
        if operand.load.buffer in packs:
            found.setdefault(operand.load.buffer, operand)
    return list(found.values())


def copies_of(
    nest: Nest, facts: Facts, candidate: Candidate, tile: Sequence[str], vector: str
) -> list[Copy]:
    """The copies of a candidate, whose axes are cut into loops; the one that vectors run along, or
    one of the tile, lies innermost."""
    found: list[Copy] = []
    for operand in first_of(facts, candidate.packs):
        loops: tuple[str, ...] = ()
        last = in_loops(nest, operand.load.index[-1]).names()
        if candidate.vector in operand.strides:
            loops = (vector,)
        elif any(t in last for t in tile):
            loops = (next(t for t in tile if t in last),)
        found.append(Copy(operand, loops))
    return found


def pack_cycles(facts: Facts, operand: Operand, candidate: Candidate, machine: Machine) -> float:
    """A nest's part of the packing: the pieces of a gradient share one copy of the weights, where
    their vectors are as long as those of the piece that made it."""
    nests = operand.readers if operand.hoistable else 1
    used = math.prod(facts.outputs.values()) * math.prod(facts.reduces.values()) * nests
    share = 0.1 if operand.hoistable and used >= REUSED * operand.elements else 1.0
    if operand.copies:
        there = (candidate.vector, candidate.width) in operand.copies
        return 0.0 if there else copy_cycles(facts, operand, candidate, machine) * share + 200
    return copy_cycles(facts, operand, candidate, machine) * share / nests + 200


def copy_cycles(facts: Facts, operand: Operand, candidate: Candidate, machine: Machine) -> float:
    """Cycles of packing an operand: read; the lines of the copy are fetched, then written."""
    rate = machine.copy
    if operand.strides.get(candidate.vector, 0) not in (0, 1):
        rate = 2 * machine.copy if operand.near >= facts.lanes // 2 else machine.scatter
    size = operand.elements * operand.bytes
    moved = 3 * size / (machine.l3 if 2 * size <= FILLED * facts.l3 else machine.memory)
    return max(operand.elements * rate, moved)


def cycles_ahead(facts: Facts, candidate: Candidate, machine: Machine) -> float:
    """What calls that make their own copies add to a candidate, whose cycles count those that serve
    many calls in small part."""
    packed = (o for o in first_of(facts, candidate.packs) if o.hoistable)
    return AHEAD * sum(copy_cycles(facts, o, candidate, machine) / o.readers for o in packed)
