"""The nests that copy operands: in which order they walk, what they write outside the operand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from convgen.affine import Affine
from convgen.ir.layout import flat_offset, halo_of
from convgen.ir.nodes import (
    Buffer,
    Edge,
    Layout,
    Load,
    Loop,
    LoopKind,
    Nest,
    Segment,
    StoreNode,
)
from convgen.ir.visit import map_affine
from convgen.schedule.access import trips
from convgen.target import Target

# A copying loop keeps at most this many vectors in flight.
COPY_VECTORS = 4
# Neighbours in the source that a copy of columns takes together: a cache line of float32.
COPY_ROWS = 16
# Tasks beyond which no further loop of a copy is made parallel.
COPY_TASKS = 64


def packing_nest(name: str, source: Buffer, packed: Buffer, load: Load, target: Target) -> Nest:
    """The scheduled nest that fills a packed buffer, its padding and halo included.

    Loops run in the order of the source, so that its lines are used while they are near; only the
    dimension that lies outermost in the copy goes first, as what reads the copy is shared out along
    it too: workers find what they have written. Where source and copy end in different dimensions,
    squares are moved: vectors along the source's last dimension, as many of them as the copy's last
    one takes, stored transposed. Else the vector loop is the one that is contiguous in the copy.
    What the ranges of a segment decide (inside, halo, padding) needs no test.
    """
    layout = packed.layout
    lanes = target.lanes(packed.dtype)
    last = layout.blocks[-1][0] if layout.blocks else layout.order[-1]
    blocked = {dim for dim, _ in layout.blocks}
    near = near_dim(source, layout, lanes)
    vector = last if near is None else near
    steps = {vector: COPY_VECTORS * lanes} if near is None else {vector: lanes, last: lanes}
    rows = _first_with_halo(packed, {*steps, *blocked})
    dims = {d: _copy_loops(packed, d, 1 if d == rows else steps.get(d, 0)) for d in layout.order}
    if near is None:
        dims |= _run_of_copies(source, packed, steps[vector])
    outer: list[Loop] = []
    inner: list[Loop] = []
    for dim in (d for d in _order_of_copy(source, layout) if dims[d][0]):
        loops, _, _ = dims[dim]
        if dim in blocked or dim in steps:
            inner.insert(len(inner) if dim == vector else 0, loops[-1])
            loops = loops[:-1]
        outer += loops
    inner[-1] = replace(inner[-1], kind=LoopKind.VECTOR)
    if near is not None:
        inner[:-1] = [replace(loop, kind=LoopKind.UNROLL) for loop in inner[:-1]]
    else:
        taken = _rows_of_copies(source, packed, vector, outer)
        inner = [*(replace(loop, kind=LoopKind.UNROLL) for loop in taken), *inner]
        outer = outer[: len(outer) - len(taken)]
    index = tuple(Affine.of(f"i{d}") for d in range(len(source.shape)))
    renamed = {i.single: index[d] for d, i in enumerate(load.index) if i.single}
    edges = tuple(
        _copy_edge(load.edges[d], dims[d][2], source.shape[d], renamed) for d in range(len(index))
    )
    return Nest(
        name=name,
        loops=(*_shared_out(outer), *inner),
        axes=tuple((f"i{d}", dims[d][1]) for d in range(len(index))),
        ranges=tuple((f"i{d}", *dims[d][2]) for d in range(len(index))),
        guards=(),
        reduces=(),
        stores=(StoreNode(packed.name, index, Load(source.name, index, edges, source.dtype)),),
    )


def unfolding_nest(name: str, source: Buffer, copy: Buffer, load: Load, target: Target) -> Nest:
    """The scheduled nest that fills a copy with a dimension for each loop; the load's indices are
    over its dimensions.

    Loops run in the order of the copy. Where another dimension than the copy's last one runs
    along the source, squares are moved: vectors along the source, stored transposed.
    """
    lanes, last = target.lanes(copy.dtype), len(copy.shape) - 1
    ranges = {f"i{d}": (0, extent) for d, extent in enumerate(copy.shape)}
    offset = flat_offset(source, load.index, ranges)
    steps = [
        0 if (n := f"i{d}") in offset.hidden_names() else offset.coefficient(n)
        for d in range(last + 1)
    ]
    along = [d for d, step in enumerate(steps) if step == 1 and copy.shape[d] >= lanes // 2]
    vector = along[-1] if along else last
    taken = {last: lanes, vector: lanes if vector != last else COPY_VECTORS * lanes}
    dims = [_copy_loops(copy, d, taken.get(d, 0)) for d in range(last + 1)]
    outer = [
        loop
        for d, (loops, _, _) in enumerate(dims)
        for loop in (loops[:-1] if d in taken else loops)
    ]
    inner = [replace(dims[vector][0][-1], kind=LoopKind.VECTOR)]
    if vector != last:
        inner.insert(0, replace(dims[last][0][-1], kind=LoopKind.UNROLL))
    index = tuple(Affine.of(f"i{d}") for d in range(last + 1))
    return Nest(
        name=name,
        loops=(*_shared_out(outer), *inner),
        axes=tuple((f"i{d}", value) for d, (_, value, _) in enumerate(dims)),
        ranges=tuple((f"i{d}", *span) for d, (_, _, span) in enumerate(dims)),
        guards=(),
        reduces=(),
        stores=(StoreNode(copy.name, index, load),),
    )


def _order_of_copy(source: Buffer, layout: Layout) -> list[int]:
    """The dimensions as they lie in the source, but the one first that is outermost in the copy."""
    order = list(source.layout.order)
    wide = [d for d in layout.order if source.shape[d] > 1]
    if wide:
        order.remove(wide[0])
        order.insert(
            next(i for i, d in enumerate([*order, wide[0]]) if source.shape[d] > 1), wide[0]
        )
    return order


def near_dim(source: Buffer, layout: Layout, lanes: int) -> int | None:
    """The dimension that ends the source, where a copy of that layout ends in another one and
    squares of both can be transposed; else None."""
    if source.layout.blocks or len(layout.blocks) > 1 or source.dtype.bytes not in (4, 8):
        return None
    near = next((d for d in reversed(source.layout.order) if source.shape[d] > 1), None)
    last = layout.blocks[-1][0] if layout.blocks else layout.order[-1]
    if near is None or near == last or source.shape[near] < lanes // 2 or source.shape[last] < 2:
        return None
    return near


def _first_with_halo(packed: Buffer, taken: set[int]) -> int | None:
    """The outermost dimension with a halo, of those whose loop is no part of a square."""
    for dim in packed.layout.order:
        if dim not in taken and halo_of(packed.layout, dim) != (0, 0):
            return dim
    return None


def _shared_out(loops: Sequence[Loop]) -> list[Loop]:
    """The outermost loops parallel, until there are tasks enough."""
    found: list[Loop] = []
    inside = {loop.inner for loop in loops if loop.segments}
    tasks = 1
    for loop in loops:
        if tasks >= COPY_TASKS or loop.name in inside:
            break
        found.append(replace(loop, kind=LoopKind.PARALLEL))
        tasks *= trips(loop)
    return [*found, *loops[len(found) :]]


def _copy_loops(packed: Buffer, dim: int, step: int) -> tuple[list[Loop], Affine, tuple[int, int]]:
    """Loops over one dimension of a copy (outermost first), the index they give, its range.
    `step`: the most that the innermost takes at once, 0 for no limit."""
    extent, axis = packed.shape[dim], f"i{dim}"
    low, high = halo_of(packed.layout, dim)
    size = dict(packed.layout.blocks).get(dim, 0)
    total = low + extent + high
    segments = [Segment(0, 1, low)]
    for part in _steps(low, extent, size or step or extent):
        segments.append(part)
    segments.append(Segment(low + extent, 1, high))
    segments = [s for s in segments if s.count and s.size]
    inside = Affine.of(f"{axis}_in")
    if len(segments) > 1:
        outer = Loop(
            f"{axis}_out",
            sum(s.count for s in segments),
            segments=tuple(segments),
            inner=f"{axis}_in",
            base=f"{axis}_base",
        )
        inner = Loop(f"{axis}_in", max(s.size for s in segments))
        value = Affine.of(f"{axis}_base") + inside - low
        return [outer, inner], value, (-low, total - low)
    only = segments[0]
    if only.count == 1:
        return [Loop(axis, only.size)], Affine.of(axis), (0, total)
    loops = [Loop(f"{axis}_out", only.count), Loop(f"{axis}_in", only.size)]
    return loops, Affine.of(f"{axis}_out") * only.size + inside, (0, total)


def _run_of_copies(
    source: Buffer, packed: Buffer, step: int
) -> dict[int, tuple[list[Loop], Affine, tuple[int, int]]]:
    """Innermost dimensions that lie alike in source and copy, walked by one loop; {} where the
    innermost one is long enough or stands alone."""
    layout = packed.layout
    run: list[int] = []
    if source.layout != Layout.rowmajor(len(source.shape)) or layout.blocks:
        return {}
    for dim in reversed(layout.order):
        if halo_of(layout, dim) != (0, 0) or dim != len(source.shape) - 1 - len(run):
            break
        run.insert(0, dim)
    if len(run) < 2 or packed.shape[run[-1]] >= step:
        return {}
    total = math.prod(packed.shape[d] for d in run)
    while len(run) > 2 and total // packed.shape[run[0]] >= step * step:
        total //= packed.shape[run.pop(0)]
    flat = Buffer("", packed.dtype, (total,), Layout.rowmajor(1), "packed")
    loops, value, _ = _copy_loops(flat, 0, step)
    name = "_".join(f"i{d}" for d in run)
    renamed = {o.name: f"{name}{o.name.removeprefix('i0')}" for o in loops}
    renamed |= {o.base: f"{name}_base" for o in loops if o.base}
    value = value.map_names(lambda n: renamed[n])
    loops = [
        replace(
            o,
            name=renamed[o.name],
            inner=renamed.get(o.inner, ""),
            base=renamed.get(o.base, ""),
        )
        for o in loops
    ]
    found: dict[int, tuple[list[Loop], Affine, tuple[int, int]]] = {}
    for place, dim in enumerate(run):
        below = math.prod(packed.shape[d] for d in run[place + 1 :])
        part = value // below if below > 1 else value
        part = part % packed.shape[dim] if place else part
        found[dim] = (loops if place == len(run) - 1 else [], part, (0, packed.shape[dim]))
    return found


def _rows_of_copies(
    source: Buffer, packed: Buffer, vector: int, outer: Sequence[Loop]
) -> list[Loop]:
    """The innermost outer loops that walk the source in order, COPY_ROWS elements at most: written
    out, the vectors they load with a step lie side by side and come as rows."""
    if source.layout.blocks or source.dtype.bytes not in (4, 8):
        return []
    taken: list[Loop] = []
    total = 1
    for dim in reversed(source.layout.order):
        loop = outer[-1 - len(taken)] if len(taken) < len(outer) else None
        whole = dim != vector and halo_of(packed.layout, dim) == (0, 0)
        if loop is None or not whole or loop.name != f"i{dim}" or total * loop.extent > COPY_ROWS:
            break
        total *= loop.extent
        taken.insert(0, loop)
    return taken if total > 1 else []


def _copy_edge(
    edge: Edge | None, span: tuple[int, int], extent: int, names: Mapping[str, Affine]
) -> Edge | None:
    """What the copying load does outside its source: as the nest's load; zeros in padding."""
    if span[0] >= 0 and span[1] <= extent:
        return None
    if edge is None or edge.kind == "omit":
        return Edge("zero")
    if edge.value is None:
        return edge
    value = map_affine(edge.value, lambda index: index.substitute(names))
    return replace(edge, value=value)


def _steps(start: int, extent: int, step: int) -> list[Segment]:
    """Whole steps, then the rest."""
    whole, rest = divmod(extent, step)
    return [Segment(start, whole, step), Segment(start + whole * step, 1, rest)]
