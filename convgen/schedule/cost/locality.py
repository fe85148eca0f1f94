"""Which order of the outer loops moves the fewest bytes between the caches: closed form.

What the loops inside some level touch together either fits a cache or it does not. Where it fits,
an operand that the next loop out does not move is still there when that loop comes back; beyond
that, everything is read again for every iteration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

from convgen.affine import Affine
from convgen.ir.nodes import Kernel, Nest
from convgen.ir.regions import loop_extent, loop_ranges
from convgen.ir.simplify import Ranges, simplify_affine
from convgen.schedule.access import in_loops, loads_of, strides_of, trips
from convgen.schedule.cost.reuse import LINE
from convgen.schedule.machine import FILLED, STAYS, Machine, machine_of
from convgen.target import Target

# Orders that cost little more than the best are as good; of them the one that moves least from
# memory is taken, which the workers share, of equal ones the first.
ENOUGH = 1.1
# Loops of which every order is tried; further ones stay outermost.
MOST = 4


@dataclass(frozen=True, slots=True)
class _Walk:
    """One operand: for each dimension its size and how far each loop moves it; element bytes; of a
    copy that is turned, whose blocks are whole lines, how many values each loop takes: what is
    stepped over is not fetched."""

    sizes: tuple[int, ...]
    moves: tuple[dict[str, int], ...]
    bytes: int
    counts: Mapping[str, int]

    def footprint(self, inner: set[str]) -> int:
        """Bytes touched while these loops run; a line at least along the last dimension."""
        total = self.bytes
        for place, (size, moves) in enumerate(zip(self.sizes, self.moves, strict=True)):
            reach = 1 + sum(step for name, step in moves.items() if name in inner)
            last = place == len(self.sizes) - 1 and not self.counts
            if self.counts:
                met = math.prod(self.counts[n] for n, step in moves.items() if step and n in inner)
                reach = min(reach, met)
            total *= max(min(size, reach), min(size, LINE // self.bytes) if last else 1)
        return total


def stored_order(nest: Nest, outer: Sequence[str], kernel: Kernel) -> list[str]:
    """The outer loops of a map in the order in which what it stores lies in memory, where all that
    it reads lies in that order too; as they stand elsewhere."""
    places = [(s.buffer, s.index) for s in nest.stores]
    places += [(o.buffer, o.index) for o in loads_of(nest)]
    steps = [
        list(strides_of(kernel.buffer(buffer), index, nest, outer).values())
        for buffer, index in places
    ]
    if any(step is None for row in steps for step in row):
        return list(outer)
    walks = [dict(zip(outer, (abs(step or 0) for step in row), strict=True)) for row in steps]
    order = sorted(outer, key=lambda name: walks[0][name], reverse=True)
    for walk in walks:
        moves = [walk[name] for name in order if walk[name]]
        if moves != sorted(moves, reverse=True):
            return list(outer)
    return order


def best_order(
    nest: Nest,
    outer: Sequence[str],
    kernel: Kernel,
    target: Target,
    machine: Machine,
    turned: Container[str],
    passed: Callable[[str], float],
) -> list[str]:
    """The outer loops in the order that waits least for caches, memory and other workers; equal
    ones as they stand. turned: operands of which a copy is read with another dimension
    innermost; passed: the bytes that workers read and others have written, by the loop that is
    shared out among them."""
    counts = {name: trips(nest.loop(name)) for name in outer}
    free = [name for name in outer if counts[name] > 1][-MOST:]
    if len(free) < 2:
        return list(outer)
    touched = _touched(nest, free, kernel, turned)
    costs = {
        o: _cycles(o, counts, touched, target, machine) + passed(o[0]) / machine.passed
        for o in permutations(free)
    }
    enough = ENOUGH * min(costs.values())
    good = [order for order, found in costs.items() if found <= enough]
    whole = _touched(nest, free, kernel)  # other pieces read the rest of a copy from there
    chosen = min(good, key=lambda o: _moved(o, counts, whole, STAYS[2] * target.l3))
    fixed = [name for name in outer if name not in free]
    return [*fixed, *chosen]


def waiting_cycles(nest: Nest, kernel: Kernel, target: Target) -> tuple[float, float]:
    """Cycles for which a nest waits for caches and memory, its loops as they stand; and how many
    in any order at least."""
    counts: dict[str, float] = {}
    for loop in nest.loops:
        counts[loop.name] = loop.extent
        if loop.segments:  # as if all were as long as the longest
            longest = max(s.size for s in loop.segments)
            counts[loop.name] = sum(s.count * s.size for s in loop.segments) / longest
    touched = _touched(nest, list(counts), kernel)
    machine, size = machine_of(target), touched(frozenset(counts))
    cycles = _cycles(list(counts), counts, touched, target, machine)
    if not target.l3:
        return cycles, size / machine.memory
    return cycles - size / machine.memory, size / machine.l3  # what comes once from memory is there


def _touched(
    nest: Nest, free: Sequence[str], kernel: Kernel, turned: Container[str] = ()
) -> Callable[[frozenset[str]], int]:
    """The bytes that are touched by what runs inside some of the free loops, with those."""
    walks = _walks(nest, kernel, turned)
    inner = {o.name for o in nest.loops if o.name not in free}
    inner |= {o.base for o in nest.loops if o.segments and o.name in inner}
    bases = {o.name: o.base for o in nest.loops if o.segments}

    @cache
    def touched(loops: frozenset[str]) -> int:
        inside = {*inner, *loops, *(bases[name] for name in loops & bases.keys())}
        return sum(walk.footprint(inside) for walk in walks)

    return touched


def _walks(nest: Nest, kernel: Kernel, turned: Container[str]) -> list[_Walk]:
    reach = {o.name: loop_extent(nest, o) - 1 for o in nest.loops}
    counts = {o.name: o.extent for o in nest.loops}
    for loop in nest.loops:
        if loop.segments:
            starts = [s.start + s.size * (s.count - 1) for s in loop.segments if s.count]
            reach[loop.base] = max(starts, default=0)
            counts[loop.base] = trips(loop)
    ranges = loop_ranges(nest)
    places = [(load.buffer, load.index) for load in loads_of(nest)]
    places += [(s.buffer, s.index) for s in nest.stores]
    found: list[_Walk] = []
    for name, index in dict.fromkeys(places):
        buffer = kernel.buffer(name)
        dims = _whole_dims(buffer.shape, [in_loops(nest, one) for one in index], ranges)
        moves: list[dict[str, int]] = []
        for size, place in dims:
            hidden = place.hidden_names()
            moves.append(
                {
                    n: size if n in hidden else abs(place.coefficient(n)) * reach.get(n, 0)
                    for n in place.names()
                }
            )
        sizes = tuple(size for size, _ in dims)
        found.append(
            _Walk(sizes, tuple(moves), buffer.dtype.bytes, counts if name in turned else {})
        )
    return found


def _whole_dims(
    sizes: Sequence[int], places: Sequence[Affine], ranges: Ranges
) -> list[tuple[int, Affine]]:
    """Dimensions with their indices; neighbours that a fused loop moves are one."""
    found: list[tuple[int, Affine]] = []
    for size, place in zip(sizes, places, strict=True):
        before = found[-1] if found else (1, Affine())
        if place.hidden_names() & before[1].hidden_names():
            joined = simplify_affine(before[1] * size + place, ranges)
            found[-1] = (before[0] * size, joined)
        else:
            found.append((size, place))
    return found


def _cycles(
    order: Sequence[str],
    counts: Mapping[str, float],
    touched: Callable[[frozenset[str]], int],
    target: Target,
    machine: Machine,
) -> float:
    """Cycles that the bytes from beyond the second cache take, and from beyond a third. touched:
    the bytes of what is inside some of the outer loops."""
    near, far = FILLED * target.l2, STAYS[2] * target.l3  # others fill the third cache too
    beyond = [(near, machine.l3), (far, machine.memory)]
    levels = beyond if target.l3 else [(near, machine.memory)]
    return sum(_moved(order, counts, touched, capacity) / rate for capacity, rate in levels)


def _moved(
    order: Sequence[str],
    counts: Mapping[str, float],
    touched: Callable[[frozenset[str]], int],
    capacity: float,
) -> float:
    """Bytes from beyond a cache."""
    left = list(order)
    while left and touched(frozenset(order[len(left) :])) <= capacity:
        left.pop()
    return touched(frozenset(order[len(left) :])) * math.prod(counts[n] for n in left)
