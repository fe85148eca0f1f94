"""What the cost model says of a scheduled kernel, nest by nest: cycles of one core, and what bounds
them. The schedule may be anybody's: loops, tile and packs are read off the scheduled nests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from convgen.affine import Affine
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import Expr, Kernel, Load, Loop, LoopKind, Nest
from convgen.ir.regions import loop_extent
from convgen.ir.visit import map_expr, map_nest_exprs
from convgen.schedule.access import around_tiles, loads_of, tile_loops, trips
from convgen.schedule.cost.copies import copy_cycles
from convgen.schedule.cost.score import TileCycles, nest_cycles, tiling_of
from convgen.schedule.directives.base import all_nests, is_packing
from convgen.schedule.directives.order import fused
from convgen.schedule.facts import Facts, facts_of
from convgen.schedule.machine import Machine, level_of, machine_of
from convgen.schedule.recipes.across import score_across
from convgen.schedule.recipes.groups import grouped_pair
from convgen.schedule.recipes.normalize import contiguous_pair
from convgen.schedule.recipes.unfolding import TURNED
from convgen.schedule.tiles import Candidate
from convgen.target import Target


@dataclass(frozen=True, slots=True)
class Prediction:
    """A nest's cycles on one core. parts: cycles of each part of the core by itself; bound: the
    largest of them; operations: of all elements, a multiply-add being one; share_of_peak: their
    cycles at the full rate to all cycles; bytes: what is read and written, each element once."""

    nest: str
    cycles: float
    share_of_peak: float
    bound: str
    parts: Mapping[str, float]
    operations: float
    bytes: int


def predict(kernel: Kernel, target: Target) -> tuple[Prediction, ...]:
    """Predictions for the nests of a kernel in form SCHEDULED; copies first where they run."""
    machine = machine_of(target)
    sources = packed_from(kernel)
    makers = {s.buffer: n.name for n in all_nests(kernel) for s in n.stores}
    copies: dict[str, Prediction] = {}
    found: list[Prediction] = []
    for nest in all_nests(kernel):
        if is_packing(nest, kernel):
            if not sources.keys() & {s.buffer for s in nest.stores}:
                found.append(_unfolded(nest, kernel, machine))
            continue
        facts = facts_of(_joined(nest, _as_written(nest, sources), kernel, target), kernel, target)
        candidate = _candidate_of(nest, facts, sources)
        found.append(_predict_nest(nest.name, facts, candidate, kernel, machine))
        packed = {o.buffer for o in loads_of(nest)} & sources.keys() - copies.keys()
        for name in sorted(packed):
            operand = next(o for o in facts.operands if o.load.buffer == sources[name])
            cycles = copy_cycles(facts, operand, candidate, machine)
            size = 2 * operand.elements * operand.bytes
            copies[name] = Prediction(makers[name], cycles, 0.0, "copying", {}, 0.0, size)
    return (*copies.values(), *found)


def packed_from(kernel: Kernel) -> dict[str, str]:
    """Packed buffer to the buffer that it is a copy of, dimension by dimension."""
    return {
        store.buffer: load.buffer
        for nest in all_nests(kernel)
        if is_packing(nest, kernel)
        for store in nest.stores
        for load in loads_of(nest)
        if load.index == store.index
    }


def _unfolded(nest: Nest, kernel: Kernel, machine: Machine) -> Prediction:
    """Of a nest that copies an operand with a dimension for each loop, in squares or row by row."""
    copy = kernel.buffer(nest.stores[0].buffer)
    size = size_in_elements(copy)
    squares = any(loop.kind is LoopKind.UNROLL for loop in nest.loops)
    cycles = (TURNED if squares else machine.copy) * size
    return Prediction(nest.name, cycles, 0.0, "copying", {}, 0.0, 2 * size * copy.dtype.bytes)


def _joined(nest: Nest, plain: Nest, kernel: Kernel, target: Target) -> Nest:
    """The plain nest with one loop for neighbours that the vector loop of the nest runs through."""
    vectors = {o.name for o in nest.loops if o.kind is LoopKind.VECTOR}
    if sum(bool(vectors & value.names()) for _, value in nest.axes) < 2:
        return plain
    while (pair := contiguous_pair(plain, kernel)) is not None:
        plain = fused(plain, *pair)
    groups = grouped_pair(plain, kernel, target)
    if groups is not None and sum(bool(vectors & dict(nest.axes)[a].names()) for a in groups) == 2:
        plain = fused(plain, *groups)
    return plain


def _as_written(nest: Nest, sources: Mapping[str, str]) -> Nest:
    """The nest before its schedule: a loop for each axis, operands where they were."""

    def unpacked(expr: Expr) -> Expr:
        if isinstance(expr, Load) and expr.buffer in sources:
            return replace(expr, buffer=sources[expr.buffer])
        return expr

    owners = {loop.name: loop.reduce for loop in nest.loops}
    owners |= {loop.base: loop.reduce for loop in nest.loops if loop.base}
    lows = {axis: low for axis, low, _ in nest.ranges}
    loops: list[Loop] = []
    axes, values = dict(nest.axes), dict[str, Affine]()
    moved: set[str] = set()
    for axis, low, high in nest.ranges:
        if axis not in axes:
            continue
        names = axes[axis].names()
        if names and names <= moved and axes[axis].is_plain:  # where the part of a stage begins
            same = next((a for a in values if axes[a] == axes[axis]), None)
            values |= {axis: values[same]} if same else {}
            continue
        moved |= names
        reduce = next((owners[n] for n in names if n in owners), None)
        loops.append(Loop(axis, high - low, reduce=reduce))
        values[axis] = Affine.of(axis) + lows[axis]
    loops.sort(key=lambda loop: -1 if loop.reduce is None else loop.reduce)
    plain = replace(nest, loops=tuple(loops), axes=tuple(values.items()), attached=())
    return map_nest_exprs(plain, lambda expr: map_expr(expr, unpacked))


def _candidate_of(nest: Nest, facts: Facts, sources: Mapping[str, str]) -> Candidate:
    """The choice that a scheduled nest stands for."""
    vector, width, tile = "", 1, dict[str, tuple[int, ...]]()
    extents = {**facts.outputs, **facts.reduces}
    inside = {loop.name for loop in tile_loops(nest)}
    for loop in nest.loops:
        axis = _axis_of(nest, loop.name)
        axis = next((n for n in extents if axis and axis in n.split("_")), axis)
        if not axis or loop.kind is LoopKind.SERIAL or loop.kind is LoopKind.PARALLEL:
            continue
        if loop.kind is LoopKind.VECTOR:
            vector, width = axis, min(extents[axis], loop_extent(nest, loop))
        elif loop.reduce is None and loop.name in inside and loop.extent > 1:
            owner = next((o for o in nest.loops if o.inner == loop.name), None)
            sizes = tuple(s.size for s in owner.segments) if owner else (loop.extent,)
            tile[axis] = tuple(dict.fromkeys(sizes))
    tile.pop(vector, None)
    packs = frozenset(sources[o.buffer] for o in loads_of(nest) if o.buffer in sources)
    chosen = Candidate(vector, width, tuple(tile.items()), packs)
    moving = around_tiles(nest)
    if not moving:
        return chosen
    inner = nest.loops[nest.loops.index(moving[-1]) + 1 :]
    summed = [o for o in inner if o.reduce is not None]
    block = _axis_of(nest, summed[-1].name)
    whole = any(o.segments for o in summed)  # its edges run apart
    part = facts.reduces[block] if whole else math.prod(o.extent for o in summed)
    shared = [o for o in nest.loops if o.reduce is None and trips(o) > 1]
    tasks = trips(shared[0]) if shared else 0
    return replace(chosen, block=block, part=min(part, facts.reduces[block]), tasks=tasks)


def _axis_of(nest: Nest, name: str) -> str:
    """The axis that a loop moves in the smallest steps."""
    found = [axis for axis, value in nest.axes if name in value.names()]
    return found[-1] if found else ""


def _predict_nest(
    name: str, facts: Facts, candidate: Candidate, kernel: Kernel, machine: Machine
) -> Prediction:
    points = math.prod(facts.outputs.values())
    work = points * (math.prod(facts.reduces.values()) * facts.operations + facts.epilogue)
    if not facts.reduces:
        work = points * max(1.0, facts.epilogue)
    least = work / (facts.lanes * machine.fma_rate)  # cycles
    if candidate.vector in facts.reduces:
        parts = {"lanes of a sum": score_across(facts, candidate, machine).cycles}
        total = parts["lanes of a sum"]
    else:
        parts, total = _along(facts, candidate, machine)
    size, level = _bytes_of(facts, kernel)
    waiting = size / machine.rate_from(level)
    parts[f"bytes from {level}"] = waiting
    bound = max(parts, key=lambda part: parts[part])
    cycles = max(total, waiting)
    return Prediction(name, cycles, least / cycles, bound, parts, work, size)


def _along(facts: Facts, candidate: Candidate, machine: Machine) -> tuple[dict[str, float], float]:
    """(cycles of each part, of all together) where the vector loop is an output."""
    names = ("operations", "loads", "latency", "caches", "turns", "stores")
    parts: dict[str, float] = dict.fromkeys(names, 0.0)
    total = 0.0
    for part in nest_cycles(facts, candidate, tiling_of(facts, candidate), machine):
        for name, cycles in _named(part.inner).items():
            parts[name] += part.tiles * part.iterations * cycles
        parts["stores"] += part.tiles * part.once
        total += part.total
    return parts, total


def _named(inner: TileCycles) -> dict[str, float]:
    return {
        "operations": inner.work,
        "loads": inner.loads,
        "latency": inner.latency,
        "caches": inner.streamed,
        "turns": inner.turn,
    }


def _bytes_of(facts: Facts, kernel: Kernel) -> tuple[int, str]:
    """(bytes of all operands and results, each once; the level that holds them)."""
    names = {o.load.buffer: o.elements * o.bytes for o in facts.operands}
    for store in facts.nest.stores:
        buffer = kernel.buffer(store.buffer)
        share = size_in_elements(buffer) * buffer.dtype.bytes
        points = math.prod(facts.outputs.values()) * buffer.dtype.bytes
        names[store.buffer] = min(share, points)
    size = sum(names.values())
    return size, level_of(size, facts.caches)
