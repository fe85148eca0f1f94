"""Where a nest reads a copy of an operand that has a dimension for each axis (im2col).

Two reasons to make one. Where the loops that are summed over make up rows of one operand and not of
the other, lanes run along the sum, and no large operand is turned round. And where output loops
that move a window are contiguous in the result, they become one loop: its length fits a register
tile better than that of each, which counts for small maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from convgen.affine import Affine
from convgen.errors import ScheduleError
from convgen.ir.nodes import Kernel, Nest
from convgen.schedule.directives import Directive, fuse, reorder, unfold
from convgen.schedule.directives.base import find_nest
from convgen.schedule.facts import Facts, Operand, facts_of
from convgen.schedule.machine import STAYS, Machine, machine_of
from convgen.schedule.recipes.choice import cheapest
from convgen.schedule.recipes.dots import LONG, dots, score_dot
from convgen.schedule.recipes.folding import whole_cycles
from convgen.schedule.recipes.normalize import contiguous_pair
from convgen.schedule.tiles import Candidate
from convgen.target import Target

TURNED = 1.2  # cycles per element of a copy that is moved in squares
SHORT = 4.5  # the same where neither squares nor rows are whole
ROW = 10  # cycles that each row of a copy takes beside its elements
PHASE = 40_000  # cycles that one more phase takes
GAIN = 0.9  # of the cycles that a copy may leave: what it takes is known roughly


@dataclass(frozen=True, slots=True)
class _Copy:
    """An operand to unfold: the loops that are summed over, the fastest last; whether the result is
    then made of rows only."""

    operand: Operand
    order: list[str]
    rows: bool

    def elements(self, facts: Facts) -> int:
        extents = {**facts.outputs, **facts.reduces}
        moved = {*self.order, *(n for n in facts.outputs if n in self.operand.strides)}
        return math.prod(extents[n] for n in moved)

    def cycles(self, facts: Facts, machine: Machine) -> float:
        """Cycles of making it."""
        extents = {**facts.outputs, **facts.reduces}
        last = self.order[-1]
        near = [n for n, step in self.operand.strides.items() if step == 1]
        whole = any(extents[n] >= facts.lanes for n in near) and extents[last] >= facts.lanes
        each = SHORT
        if whole:
            each = machine.copy + ROW / extents[last] if last in near else TURNED
        return self.elements(facts) * each + PHASE


def unfolded(
    facts: Facts, kernel: Kernel, target: Target, instead: Candidate
) -> tuple[list[Directive], Candidate] | None:
    """The directives that unfold an operand of a nest, with what to choose then, where that takes
    fewer cycles than what is to be done else."""
    machine = machine_of(target)
    extents = {**facts.outputs, **facts.reduces}
    work = math.prod(extents.values()) * facts.operations / facts.lanes / machine.fma_rate
    least = GAIN * whole_cycles(facts, instead, machine)
    for copy in (*_for_rows(facts), *_for_maps(facts, instead)):
        copying = copy.cycles(facts, machine)
        large = copy.elements(facts) * copy.operand.bytes > STAYS[2] * facts.l3
        if large or work + copying >= least:
            continue
        try:
            directives, after = _unfolding(facts.nest, kernel, target, copy)
        except ScheduleError:
            continue
        new = facts_of(find_nest(directives[0], after), after, target)
        best: Candidate | None = None
        if copy.rows:
            best = _of_rows(new, machine)
        elif len(new.outputs) < len(facts.outputs):
            best = cheapest(new, machine)
        if best is None:
            continue
        made = {b.name for b in after.buffers} - {b.name for b in kernel.buffers}
        taken = best.cycles if copy.rows else whole_cycles(new, best, machine, made)
        if taken + copying < least:
            return directives, replace(best, cycles=best.cycles + copying)
    return None


def _of_rows(facts: Facts, machine: Machine) -> Candidate | None:
    """The best candidate that multiplies rows."""
    scored = [score_dot(facts, c, machine) for c in dots(facts)]
    return min(scored, key=lambda c: c.cycles, default=None)


def _bodies(facts: Facts) -> list[Operand]:
    return [o for o in facts.operands if o.body]


def _for_rows(facts: Facts) -> Iterator[_Copy]:
    """The operand that is no row, where the loops summed over make up rows of the other one."""
    order = _row_of_reduces(facts)
    other = next((o for o in _bodies(facts) if not _is_row(facts, o, order)), None)
    if order and other is not None and not other.hoistable and other.readers == 1:
        yield _Copy(other, order, True)


def _for_maps(facts: Facts, instead: Candidate) -> Iterator[_Copy]:
    """The operand along which windows move, where lanes run along the other one."""
    if not _is_sum(facts) or instead.vector not in facts.outputs:
        return
    moved = [o for o in _bodies(facts) if instead.vector not in o.strides]
    if len(moved) != 1 or moved[0].hoistable or moved[0].readers > 1:
        return
    steps = moved[0].strides
    windows = [n for n, e in facts.outputs.items() if e > 1 and n in steps]
    summed = [n for n, e in facts.reduces.items() if e > 1]
    order = sorted(summed, key=lambda n: -abs(steps.get(n) or 0))
    if len(windows) < 2 or not order or any(n not in steps for n in order):
        return
    if steps[order[-1]] == 1 and facts.reduces[order[-1]] >= LONG * facts.lanes:
        yield _Copy(moved[0], order, False)


def _unfolding(
    nest: Nest, kernel: Kernel, target: Target, copy: _Copy
) -> tuple[list[Directive], Kernel]:
    """Unfold, the loops that are summed over in the order of the rows, and as one."""
    found: list[Directive] = []

    def add(directive: Directive) -> None:
        nonlocal kernel
        kernel = directive.apply(kernel, target)
        found.append(directive)

    outputs = [o.name for o in nest.loops if o.reduce is None]
    alone = [o.name for o in nest.loops if o.reduce is not None and o.name not in copy.order]
    moved = [n for n in outputs if n in copy.operand.strides]
    axes = [a for n in (*moved, *alone, *copy.order) for a in axes_along(nest, n)]
    add(unfold(copy.operand.load.buffer, *axes, nest=nest.name))
    wanted = [*outputs, *alone, *copy.order]
    if wanted != [o.name for o in nest.loops]:
        add(reorder(*wanted, nest=nest.name))
    while (pair := contiguous_pair(find_nest(found[0], kernel), kernel)) is not None:
        add(fuse(*pair, nest=nest.name))
    return found, kernel


def axes_along(nest: Nest, loop: str) -> list[str]:
    """The axes that a loop moves, the one that it moves first last."""

    def since(value: Affine) -> int:
        """The first iteration that changes it."""
        start = value.substitute({loop: 0})
        steps = range(1, nest.loop(loop).extent)
        return next((i for i in steps if value.substitute({loop: i}) != start), len(steps) + 1)

    moved = [(axis, value) for axis, value in nest.axes if loop in value.names()]
    return [axis for axis, _ in sorted(moved, key=lambda one: -since(one[1]))]


def _is_sum(facts: Facts) -> bool:
    """True where the nest adds up products of two operands, in any order."""
    nest = facts.nest
    if len(_bodies(facts)) != 2 or len(nest.reduces) != 1 or facts.states != 1 or facts.lanes < 2:
        return False
    combiner = nest.reduces[0].combiner
    return combiner.associative and combiner.commutative


def _row_of_reduces(facts: Facts) -> list[str]:
    """The loops that are summed over, the fastest last, where they make up rows of one operand and
    not of the other."""
    if not _is_sum(facts):
        return []
    operands = _bodies(facts)
    for operand in sorted(operands, key=lambda o: -o.elements):
        names = [n for n, e in facts.reduces.items() if e > 1]
        order = sorted(names, key=lambda n: -(operand.strides.get(n) or 0))
        rest = next(o for o in operands if o is not operand)
        if _is_row(facts, operand, order) and not _is_row(facts, rest, order):
            return order
    return []


def _is_row(facts: Facts, operand: Operand, order: list[str]) -> bool:
    """True where loops, the fastest last, walk an operand element by element."""
    count = 1
    for name in reversed(order):
        if operand.strides.get(name) != count:
            return False
        count *= facts.reduces[name]
    return count >= LONG * facts.lanes and not operand.edged and not operand.omits
