"""Long sums of far operands as sums of their rows.

A sum whose tasks walk through columns brings rows from beyond the second cache once for each task.
With a sum for each row, the loops stay in that row until all that is wanted of it is done; these
sums are small, and added up afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container

from convgen.errors import ScheduleError
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import Kernel, Nest
from convgen.schedule.access import loads_of
from convgen.schedule.cost.locality import waiting_cycles
from convgen.schedule.directives import Directive, partial
from convgen.schedule.recipes.streams import is_light
from convgen.target import Target

GAIN = 0.6  # of the cycles for which caches and memory are waited, that sums of rows may take
AXES = 2  # outermost loops of a sum of which parts are tried
SMALL = 8  # times that all of them go into what is read


def parts_instead(
    kernel: Kernel, target: Target, scheduled: Kernel, again: Callable[[Kernel], Kernel]
) -> list[Directive]:
    """The sums that are bound by bytes and wait less for caches and memory row by row. scheduled:
    the kernel as it would run; again: another one as it would."""
    found: list[Directive] = []
    for nest in kernel.nests():
        if not nest.reduces or nest.attached or not is_light(nest, kernel):
            continue
        best = None
        needed, bound = _waiting(scheduled, {nest.name}, target)
        least = GAIN * needed
        if least <= bound:
            continue
        loops = [o.name for o in nest.loops if o.reduce is not None and o.extent > 1]
        for count in range(1, min(AXES, len(loops) - 1) + 1):
            if not _are_small(nest, loops[:count], kernel):
                break
            directive = partial(*loops[:count], nest=nest.name)
            try:
                after = directive.apply(kernel, target)
            except ScheduleError:
                break
            names = {n.name for n in after.nests()} - {n.name for n in kernel.nests()}
            needed, _ = _waiting(again(after), {*names, nest.name}, target)
            if needed < least:
                best, least = directive, needed
        if best is not None:
            found.append(best)
    return found


def _are_small(nest: Nest, loops: Container[str], kernel: Kernel) -> bool:
    """True where a result for each iteration of some loops takes little beside what is read."""
    made = math.prod(o.extent for o in nest.loops if o.reduce is None or o.name in loops)
    read = max(size_in_elements(kernel.buffer(o.buffer)) for o in loads_of(nest))
    return SMALL * made <= read


def _waiting(kernel: Kernel, names: Container[str], target: Target) -> tuple[float, float]:
    nests = (n for n in kernel.nests() if n.name in names)
    found = [waiting_cycles(n, kernel, target) for n in nests]
    return sum(cycles for cycles, _ in found), sum(bound for _, bound in found)
