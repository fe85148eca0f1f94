"""Sums in which some factors are added up first over what they alone depend on.

A window over all channels with one filter for all of them multiplies every channel by the same
number: the channels are added once, and the window runs over their sum. That pays where elements
are read for many outputs; what is read once is added up as it comes. A product of three matrices
is two products of two. Longer products are taken apart one sum after another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from convgen.errors import ScheduleError
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import Kernel, Nest
from convgen.schedule.access import loads_of
from convgen.schedule.directives import Directive, collect
from convgen.schedule.directives.collect import collected_from, kept_with, parted
from convgen.schedule.directives.order import fused
from convgen.schedule.facts import Facts, facts_of
from convgen.schedule.machine import Machine, machine_of
from convgen.schedule.recipes.folding import GAIN, PHASE, fold_instead, whole_cycles
from convgen.schedule.recipes.normalize import contiguous_pair
from convgen.schedule.tiles import Candidate
from convgen.target import Target

READ = 2  # times that each element is read at least
FEWER = 0.8  # of the multiply-adds that two products may take at most


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
        if nest.attached or nest.name in folded:
            continue
        least, best = GAIN * cycles.get(nest.name, 0.0), None
        for loops in dict.fromkeys((*_alone(nest, kernel), *_products(nest, kernel))):
            directive = collect(*loops, nest=nest.name)
            try:
                after = directive.apply(kernel, target)
            except ScheduleError:  # its loops were changed to run beside others
                continue
            others = {n.name: n for n in kernel.nests()}
            changed = [one for one in after.nests() if others.get(one.name) != one]
            needed = PHASE + sum(_cycles(o, after, target, machine, cheapest) for o in changed)
            if needed < least:
                least, best = needed, directive
        if best is not None:
            found.append(best)
    return found


def _alone(nest: Nest, kernel: Kernel) -> Iterator[tuple[str, ...]]:
    """The loops that one operand alone depends on, the same one, if its elements are read often."""
    moved: dict[str, list[str]] = {}
    for name in _reduced(nest):
        load = collected_from(nest, kernel, name)
        if load is not None:
            moved.setdefault(load.buffer, []).append(name)
    points = math.prod(loop.extent for loop in nest.loops)
    for buffer, loops in moved.items():
        often = points >= READ * size_in_elements(kernel.buffer(buffer))
        if often and len(loops) < len(list(_reduced(nest))):
            yield tuple(loops)
            return


def _products(nest: Nest, kernel: Kernel) -> Iterator[tuple[str, ...]]:
    """Loops over which some factors of a product may be summed first: that takes fewer operations,
    and leaves no more elements than the largest operand has, or the result."""
    extents = {loop.name: loop.extent for loop in nest.loops}
    points, reduced = math.prod(extents.values()), list(_reduced(nest))
    touched = {o.buffer for o in loads_of(nest)} | {s.buffer for s in nest.stores}
    largest = max((size_in_elements(kernel.buffer(b)) for b in touched), default=0)
    for name in reduced:
        found = parted(nest, [name])
        if found is None:
            continue
        inside, outside = found
        alone = [n for n in reduced if (part := parted(nest, [n])) and {*part[0]} <= {*inside}]
        if parted(nest, alone) is None:
            continue
        elements = math.prod(extents[n] for n in kept_with(nest, inside, alone))
        summed = math.prod(extents[n] for n in alone)
        before = points * max(1, len(inside) + len(outside) - 1)
        after = elements * summed * max(1, len(inside) - 1) + points // summed * len(outside)
        if after < FEWER * before and elements <= largest:
            yield tuple(alone)


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
