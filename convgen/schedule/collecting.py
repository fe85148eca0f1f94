"""Sums in which an operand is added up first over what it alone depends on.

A window over all channels with one filter for all of them multiplies every channel by the same
number: the channels are added once, and the window runs over their sum. That pays where elements
are read for many outputs; what is read once is added up as it comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from convgen.errors import ScheduleError
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import Kernel, Nest
from convgen.schedule.directives import Directive, collect
from convgen.schedule.directives.collect import collected_from
from convgen.schedule.directives.order import fused
from convgen.schedule.facts import Facts, facts_of
from convgen.schedule.folding import GAIN, PHASE, fold_instead, whole_cycles
from convgen.schedule.machine import Machine, machine_of
from convgen.schedule.normalize import contiguous_pair
from convgen.schedule.tiles import Candidate
from convgen.target import Target

READ = 2  # times that each element is read at least


def summed_first(
    kernel: Kernel,
    target: Target,
    cycles: Mapping[str, float],
    cheapest: Callable[[Facts, Machine], Candidate],
) -> list[Directive]:
    """The folds and the collected operands for which the sums take fewer cycles than they do."""
    found = fold_instead(kernel, target, cycles, cheapest)
    folded = {directive.nest for directive in found}
    machine = machine_of(target)
    for nest in kernel.nests():
        loops = _alone(nest, kernel)
        if not loops or nest.name in folded:
            continue
        try:
            after = collect(*loops, nest=nest.name).apply(kernel, target)
        except ScheduleError:  # its loops were changed to run beside others
            continue
        others = {n.name: n for n in kernel.nests()}
        needed = float(PHASE)
        for one in after.nests():
            if others.get(one.name) != one:
                needed += _cycles(one, after, target, machine, cheapest)
        if needed < GAIN * cycles.get(nest.name, 0.0):
            found.append(collect(*loops, nest=nest.name))
    return found


def _alone(nest: Nest, kernel: Kernel) -> list[str]:
    """The loops that one operand alone depends on, the same one, if its elements are read often."""
    if nest.attached or math.prod(loop.extent for loop in nest.loops) == 0:
        return []
    moved: dict[str, list[str]] = {}
    for name in _reduced(nest):
        load = collected_from(nest, kernel, name)
        if load is not None:
            moved.setdefault(load.buffer, []).append(name)
    points = math.prod(loop.extent for loop in nest.loops)
    for buffer, loops in moved.items():
        often = points >= READ * size_in_elements(kernel.buffer(buffer))
        if often and len(loops) < len(list(_reduced(nest))):
            return loops
    return []


def _reduced(nest: Nest) -> Iterator[str]:
    return (loop.name for loop in nest.loops if loop.reduce is not None and loop.extent > 1)


def _cycles(
    nest: Nest,
    kernel: Kernel,
    target: Target,
    machine: Machine,
    cheapest: Callable[[Facts, Machine], Candidate],
) -> float:
    """What a nest takes at its best, its operands coming from where they are."""
    while (pair := contiguous_pair(nest, kernel)) is not None:
        nest = fused(nest, *pair)
    facts = facts_of(nest, kernel, target)
    return whole_cycles(facts, cheapest(facts, machine), machine)
