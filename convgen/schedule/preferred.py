"""Which order in memory suits a kernel's arrays best, where the caller leaves that open.

The cost model decides, axis by axis: for each loop the arrays are tried with the dimension that it
moves innermost, all that it moves together, so that a map whose vectors run along the channels has
them last on both sides, and a contraction its reduced dimension here and its vectors there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from convgen.ir.nodes import Kernel, Layout
from convgen.schedule.access import in_loops, loads_of
from convgen.schedule.facts import facts_of
from convgen.schedule.recipes.choice import choose
from convgen.target import Target

GAIN = 0.99  # of the cycles that a change may leave: the caller's order is kept where little is won


def preferred_layouts(kernel: Kernel, target: Target, names: Collection[str]) -> dict[str, Layout]:
    """The layouts of the arrays of those names that are better than row-major, for a kernel (form
    NEST) whose arrays are row-major. The choice depends on the kernel, the target and tabled
    constants only."""
    least = _cycles(kernel, target)
    known = frozenset(names) - _prepared(kernel, target)
    alone: dict[str, float] = {}
    for loop in dict.fromkeys(o.name for n in kernel.nests() for o in n.loops if o.extent > 1):
        layouts = _moved_last(kernel, loop, known)
        if any(layout != Layout.rowmajor(len(layout.order)) for layout in layouts.values()):
            alone[loop] = _cycles(_arranged(kernel, layouts), target)
    best: dict[str, Layout] = {}
    for loop in sorted(alone, key=lambda name: alone[name]):
        layouts = _moved_last(kernel, loop, known - best.keys())
        if layouts:
            cycles = (
                _cycles(_arranged(kernel, {**best, **layouts}), target) if best else alone[loop]
            )
            if cycles < GAIN * least:
                least = cycles
                best |= layouts
    return {n: v for n, v in best.items() if v != Layout.rowmajor(len(v.order))}


def _cycles(kernel: Kernel, target: Target) -> float:
    return sum(choose(nest, kernel, target).cycles for nest in kernel.nests())


def _prepared(kernel: Kernel, target: Target) -> frozenset[str]:
    """Buffers that are packed once for many calls: their own order does not matter."""
    return frozenset(
        operand.load.buffer
        for nest in kernel.nests()
        for operand in facts_of(nest, kernel, target).operands
        if operand.hoistable
    )


def _moved_last(kernel: Kernel, loop: str, names: Collection[str]) -> dict[str, Layout]:
    """Layouts with the one dimension innermost that a loop moves, in the first nest where it
    does."""
    found: dict[str, Layout] = {}
    for nest in kernel.nests():
        places = [(o.buffer, o.index) for o in loads_of(nest)]
        places += [(s.buffer, s.index) for s in nest.stores]
        for buffer, index in places:
            moved = [d for d, i in enumerate(index) if loop in in_loops(nest, i).names()]
            if len(moved) == 1 and buffer in names:
                order = (*(d for d in range(len(index)) if d not in moved), *moved)
                found.setdefault(buffer, Layout(order))
    return found


def _arranged(kernel: Kernel, layouts: Mapping[str, Layout]) -> Kernel:
    buffers = (replace(b, layout=layouts.get(b.name, b.layout)) for b in kernel.buffers)
    return replace(kernel, buffers=tuple(buffers))
