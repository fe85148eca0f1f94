"""Sums of products that are multiplied first and folded afterwards (col2im).

A gradient to an input, or a transposed window, multiplies a large operand, used at few positions,
in an order in which it does not lie, or with taps of which many miss a tile. As a product of
matrices it has neither: the operand is walked as it lies, and each element of the product is added
once where it belongs. That pays where the sum of the product is long beside the folding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass

from convgen.errors import ScheduleError
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import Kernel, Load, Nest
from convgen.ir.regions import axis_ranges
from convgen.ir.sums import adds_up
from convgen.schedule.access import in_loops, strides_of, vector_dtype
from convgen.schedule.cost.copies import cycles_ahead
from convgen.schedule.cost.reuse import PAGE
from convgen.schedule.directives import (
    Directive,
    carry,
    fold,
    reorder,
    split,
    vectorize,
)
from convgen.schedule.directives.fold import dims_of, factors_of, foldable
from convgen.schedule.directives.order import fused
from convgen.schedule.facts import Facts, Operand, facts_of
from convgen.schedule.machine import STAYS, Machine, level_of, machine_of
from convgen.schedule.recipes.normalize import contiguous_pair
from convgen.schedule.tiles import Candidate, tile_count
from convgen.target import Target

FOLDED = 2.5  # cycles in which an element of the columns is added where it belongs
FAR_ROWS = 1.0  # cycles of an iteration that goes on to a row of another page
PHASE = 20_000  # cycles that one more phase takes
GAIN = 0.95  # of the cycles that a product and its folding may take: they are known roughly


@dataclass(frozen=True, slots=True)
class _Group:
    """Nests that fold one product: its loops that are summed over, elements and multiply-adds."""

    nests: tuple[str, ...]
    loops: tuple[str, ...]
    elements: int
    work: int


def fold_instead(
    kernel: Kernel,
    target: Target,
    cycles: Mapping[str, float],
    cheapest: Callable[[Facts, Machine], Candidate],
) -> list[Directive]:
    """The folds of the nests for which product and folding take fewer cycles than they do."""
    found: list[Directive] = []
    machine = machine_of(target)
    for group in _groups(kernel):
        least = GAIN * sum(cycles.get(name, 0.0) for name in group.nests) - PHASE
        least -= group.elements * FOLDED + _moved(kernel, group, target, machine)
        lanes = max(1, target.lanes(vector_dtype(_nest(kernel, group.nests[0]), kernel)))
        if group.work / lanes / machine.fma_rate >= least:
            continue
        folds = [fold(*group.loops, nest=name) for name in group.nests]
        try:
            after = folds[0].apply(kernel, target)
        except ScheduleError:
            continue
        names = {n.name for n in kernel.nests()}
        product = next(n for n in after.nests() if n.name not in names)
        while (pair := contiguous_pair(product, after)) is not None:
            product = fused(product, *pair)
        facts = facts_of(product, after, target)
        best = cheapest(facts, machine)
        needed = with_reads(facts, best, machine) + _walked_again(facts, best, machine)
        if needed < least and not best.packs:  # else nothing is read as it lies
            found += folds
    return found


def _nest(kernel: Kernel, name: str) -> Nest:
    return next(n for n in kernel.nests() if n.name == name)


def _groups(kernel: Kernel) -> Iterator[_Group]:
    """The nests that multiply the same operands over the same dimensions."""
    found: dict[tuple[object, ...], list[Nest]] = {}
    for nest in kernel.nests():
        pair, loops = factors_of(nest), foldable(nest, kernel)
        if pair is not None and loops:
            dims = [
                tuple(tuple(i.single in loops and i.single for i, _, _ in parts) for parts in whole)
                for whole in (dims_of(load, loops, nest, kernel) for load in pair)
            ]
            key = (tuple(o.buffer for o in pair), tuple(loops), tuple(map(tuple, dims)))
            found.setdefault(key, []).append(nest)
    for nests in found.values():
        pair, loops = factors_of(nests[0]), foldable(nests[0], kernel)
        assert pair is not None
        first, second = pair
        summed = math.prod(nests[0].loop(name).extent for name in loops)
        kept = [
            [dim for parts in dims_of(load, loops, nests[0], kernel) for dim in parts]
            for load in (first, second)
        ]
        shared = math.prod(
            size
            for index, size, edge in kept[0]
            if (index, size, edge) in kept[1] and index.single not in loops
        )
        whole = [size_in_elements(kernel.buffer(o.buffer)) for o in pair]
        if not math.prod(whole):
            continue  # a sum of nothing, or for nobody
        sizes = [size // summed for size in whole]
        elements = math.prod(sizes) // shared
        yield _Group(tuple(n.name for n in nests), tuple(loops), elements, elements * summed)


def whole_cycles(
    facts: Facts, candidate: Candidate, machine: Machine, made: Container[str] = ()
) -> float:
    """The cycles of a candidate beside another way to compute the same: with its reads, and with
    what calls add that make their own copies."""
    return with_reads(facts, candidate, machine, made) + cycles_ahead(facts, candidate, machine)


def with_reads(
    facts: Facts, candidate: Candidate, machine: Machine, made: Container[str] = ()
) -> float:
    """The cycles of a candidate and those in which the operands come once from where they are: from
    beyond a core's own caches, copies that were made ahead from memory; not what was made just
    before."""
    total = candidate.cycles
    ranges = axis_ranges(facts.nest)
    for operand in facts.operands:
        size = float(operand.elements * operand.bytes)
        level = level_of(size, facts.caches, STAYS)
        packed = operand.load.buffer in candidate.packs
        far = ("memory",) * operand.hoistable if packed else ("L3", "memory")
        if level not in far or operand.load.buffer in made:
            continue
        share = min(_share_read(operand, ranges), operand.reached[packed])
        total += size * share / machine.rate_from(level)
    return total


def _share_read(operand: Operand, ranges: Mapping[str, tuple[int, int]]) -> float:
    """The share of an operand that lies between the first and the last place it is read at."""
    share = 1.0
    for index, size in zip(operand.load.index, operand.shape, strict=True):
        low, high = index.bounds(ranges)
        share *= max(0, min(size - 1, high) - max(0, low) + 1) / size
    return share


def _walked_again(facts: Facts, candidate: Candidate, machine: Machine) -> float:
    """Cycles of a product in which its tiles go on to rows of other pages, and in which they read
    again what no core's own cache holds: one operand for each tile of the other."""
    cut = dict(candidate.tile) | {candidate.vector: (candidate.width,)}
    tiles = {n: tile_count(e, cut.get(n, (1,))) for n, e in facts.outputs.items()}
    far, again = 0.0, math.inf
    for operand in facts.operands:
        size = operand.elements * operand.bytes
        level = level_of(size, facts.caches, STAYS)
        times = math.prod(count for n, count in tiles.items() if n not in operand.strides) - 1
        beyond = level in ("L3", "memory")
        again = min(again, times * size / machine.rate_from(level) if beyond else 0.0)
        steps = [(operand.strides.get(n) or 0) * operand.bytes for n in facts.reduces]
        far = max(far, FAR_ROWS * (max(steps, default=0) >= PAGE))
    return far * math.prod(tiles.values()) * math.prod(facts.reduces.values()) + again


def _moved(kernel: Kernel, group: _Group, target: Target, machine: Machine) -> float:
    """Cycles in which the columns are written and read from where they stay between the two."""
    size = (
        group.elements * kernel.buffer(_nest(kernel, group.nests[0]).stores[0].buffer).dtype.bytes
    )
    level = level_of(size, (target.l1, target.l2, target.l3), STAYS)
    return 3 * size / machine.rate_from(level) if level in ("L3", "memory") else 0.0


def folded_sum(nest: Nest, kernel: Kernel, target: Target) -> list[Directive]:
    """The directives for a nest that folds columns; empty for another.

    Lanes lie along a loop that meets no edge, whatever its step: what is left out is tested for
    all of them at once, and no tap is taken in vain. One vector at a time, and along the windows
    before the next one, so that the lines of the columns are used while they are near.
    """
    load = _column_load(nest, kernel)
    if load is None:
        return []
    lanes = max(1, target.lanes(vector_dtype(nest, kernel)))
    outputs = [o for o in nest.loops if o.reduce is None]
    reduces = [o.name for o in nest.loops if o.reduce is not None]
    edged: set[str] = set()
    for index, edge in zip(load.index, load.edges, strict=True):
        names = in_loops(nest, index).names()
        edged |= names if edge is not None or names & {*reduces} else set()
    free = [o for o in outputs if o.name not in edged and o.extent > 1]
    if not free or lanes < 2:
        return []
    [store] = nest.stores
    steps = strides_of(kernel.buffer(store.buffer), store.index, nest, [o.name for o in free])
    vector = max(free, key=lambda o: (steps[o.name] == 1, o.extent))
    inner, outer = vector.name, vector.name
    found: list[Directive] = []
    if vector.extent > lanes:
        exact = vector.extent % lanes == 0
        found.append(split(vector.name, lanes, "exact" if exact else "peel", nest=nest.name))
        inner, outer = f"{vector.name}_in", f"{vector.name}_out"
    first = [o.name for o in free if o is not vector]
    first += [outer] if outer != inner else []
    rest = [o.name for o in outputs if o.name not in first and o is not vector]
    found.append(reorder(*first, *rest, *reduces, inner, nest=nest.name))
    found.append(vectorize(inner, strided=True, nest=nest.name))
    found.append(carry(nest=nest.name))
    return found


def _column_load(nest: Nest, kernel: Kernel) -> Load | None:
    """What a nest adds up, where that is one operand that a stage has made, and nothing else."""
    if len(nest.reduces) != 1 or len(nest.stores) != 1 or nest.guards:
        return None
    [reduce] = nest.reduces
    body = reduce.body
    plain = adds_up(reduce.combiner) and not reduce.guards
    if not plain or not isinstance(body, Load) or kernel.buffer(body.buffer).role != "temporary":
        return None
    return body if any(body.edges) else None
