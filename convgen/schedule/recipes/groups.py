"""Lanes that run through the filters of several groups.

A group's few filters fill a part of a vector only. Where the groups' filters lie side by side, one
loop runs through both: the results and one operand are contiguous along it, and of the other, whose
channels all filters of a group share, a vector takes a few neighbours in a fixed pattern.
"""

from __future__ import annotations

from convgen.affine import Affine
from convgen.ir.nodes import Kernel, Nest
from convgen.schedule.access import LONGEST, loads_of, offset_of, pattern_of, vector_dtype
from convgen.schedule.directives import Directive, fuse
from convgen.schedule.directives.base import find_nest
from convgen.schedule.facts import facts_of
from convgen.schedule.machine import machine_of
from convgen.schedule.recipes.choice import cheapest
from convgen.schedule.tiles import Candidate
from convgen.target import Target

GAIN = 0.85  # of the cycles that the lanes of several groups may leave: what shuffles take is rough


def through_groups(
    nest: Nest, kernel: Kernel, target: Target, chosen: Candidate
) -> tuple[Directive, Candidate] | None:
    """The loops to fuse and the choice with their lanes, where that is cheaper than `chosen`."""
    pair = grouped_pair(nest, kernel, target)
    if pair is None:
        return None
    directive = fuse(*pair, nest=nest.name)
    fused = directive.apply(kernel, target)
    after = find_nest(directive, fused)
    facts = facts_of(after, fused, target)
    found = cheapest(facts, machine_of(target))
    wide = found.vector in facts.outputs and found.vector not in {o.name for o in nest.loops}
    return (directive, found) if wide and found.cycles < GAIN * chosen.cycles else None


def grouped_pair(nest: Nest, kernel: Kernel, target: Target) -> tuple[str, str] | None:
    """Neighbouring output loops, groups and what each holds that fills no whole vectors: what is
    stored and an operand are contiguous along both, what the inner one does not move every vector
    takes from a few neighbours."""
    lanes = target.lanes(vector_dtype(nest, kernel))
    for outer, inner in zip(nest.loops, nest.loops[1:], strict=False):
        if outer.reduce is not None or inner.reduce is not None or outer.extent < 2:
            continue
        if inner.extent < 2 or inner.extent % lanes == 0 or inner.extent > LONGEST:
            continue
        places = [(s.buffer, s.index) for s in nest.stores]
        places += [(o.buffer, o.index) for o in loads_of(nest)]
        kinds: set[str] = set()
        for buffer, index in places:
            offset = offset_of(kernel.buffer(buffer), index, nest)
            kinds.add(_kind(offset, outer.name, inner.name, inner.extent, lanes))
        if "shared" in kinds and "side by side" in kinds and "other" not in kinds:
            return outer.name, inner.name
    return None


def _kind(offset: Affine, outer: str, inner: str, extent: int, lanes: int) -> str:
    """How an offset moves along two loops."""
    if {outer, inner} & offset.hidden_names():
        return "other"
    step, near = offset.coefficient(outer), offset.coefficient(inner)
    if step == extent * near:
        return "side by side" if step else "still"
    if near != 0:
        return "other"
    together = step * (Affine.of("lane") // extent)
    return "shared" if pattern_of(together, "lane", lanes) else "other"
