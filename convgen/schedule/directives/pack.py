"""pack: a copy of an operand in the order in which the hot loop reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from convgen.affine import Affine
from convgen.ir.layout import halo_of
from convgen.ir.nodes import (
    Buffer,
    Edge,
    Expr,
    Kernel,
    Layout,
    Load,
    Loop,
    LoopKind,
    Nest,
    Phase,
    Segment,
    StoreNode,
)
from convgen.ir.visit import loads, map_affine, map_expr, map_nest_exprs
from convgen.schedule.access import in_loops, loads_of, trips, unit_bases
from convgen.schedule.directives.base import Directive, Value, all_nests, is_packing, replace_nest
from convgen.schedule.directives.mark import set_grain
from convgen.target import Target

# A copying loop keeps at most this many vectors in flight.
COPY_VECTORS = 4
# Tasks beyond which no further loop of a copy is made parallel.
COPY_TASKS = 64


@dataclass(frozen=True)
class Pack(Directive):
    """pack(W, k_in): read a copy of W whose innermost dimension in memory is the one of k_in.

    before   Y[k] += W[k, c]              after   pack_W: W_packed[k, c] = W[k, c]
             k = 32*k_out + k_in                  Y[k] += W_packed[k, c], laid out [k_out][c][32]

    The other dimensions lie in the order of the loops that walk them. A named loop that is the
    inside of a split becomes a block of its dimension (padded with zeros up to whole blocks);
    another one moves its dimension innermost. Without named loops the order stays. What
    lies outside the operand (zero, constant, reflect, replicate, circular) is written into the
    copy, so the hot loads have no edges; omit edges stay.
    The copying is a phase before the nest; with ``hoist=True`` it belongs to prepare, done once
    for as long as the operand does not change.
    Legal: an operand that the nest reads with the same edges everywhere and does not write; hoist
    for inputs and constants.
    Elsewhere: packing (BLIS, oneDNN reorder), Halide in() with reorder_storage, TVM
    cache_read with a layout, Exo stage_mem.
    """

    buffer: str
    loops: tuple[str, ...] = field(default=())
    hoist: bool = False
    keyword: ClassVar[str] = "pack"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return (self.buffer, *self.loops), ({"hoist": True} if self.hoist else {})

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        reads = [o for o in loads_of(nest) if o.buffer == self.buffer]
        if not reads:
            read = sorted({o.buffer for o in loads_of(nest)})
            self.refuse(
                nest,
                f"{nest.name} does not read {self.buffer}",
                expected="one of " + ", ".join(read) if read else "a nest that reads",
                got=self.buffer,
            )
        if is_packing(nest, kernel):
            self.refuse(
                nest,
                f"{nest.name} is a copy itself",
                expected="a nest that computes",
                got=nest.name,
            )
        source = kernel.buffer(self.buffer)
        if source.role in ("packed", "scratch"):
            self.refuse(
                nest,
                f"{self.buffer} is {source.role} already",
                expected="an operand as the caller or a stage stores it",
                got=f"a {source.role} buffer",
            )
        if not source.shape:
            self.refuse(nest, f"{self.buffer} is one number", expected="an operand with dimensions")
        if any(s.buffer == self.buffer for s in nest.stores):
            self.refuse(nest, f"{nest.name} writes {self.buffer} itself", expected="a pure operand")
        if merged_edges(reads) is None:
            self.refuse(
                nest,
                f"{self.buffer} is read with different edges",
                expected="the same edges at every access",
            )
        self._check_loops(nest, reads[0])
        self._check_hoist(nest, source, reads[0])
        self._check_edges(nest, reads)

    def _check_loops(self, nest: Nest, load: Load) -> None:
        dims: list[int] = []
        for name in self.loops:
            self.loop(nest, name)
            found = _dim_of(nest, load, name)
            if found is None:
                self.refuse(
                    nest,
                    f"{self.buffer} does not vary along {name}",
                    expected="loops that move through " + self.buffer,
                    got=name,
                )
            dims.append(found)
        if len(set(dims)) != len(dims):
            self.refuse(
                nest,
                "two of the named loops move through one dimension",
                expected="one loop for each dimension",
                got=", ".join(self.loops),
            )

    def _check_hoist(self, nest: Nest, source: Buffer, load: Load) -> None:
        if not self.hoist:
            return
        values = [e.value for e in load.edges if e and e.value is not None]
        computed = any(True for v in values for _ in loads(v))
        if source.role not in ("input", "constant") or computed:
            self.refuse(
                nest,
                f"{self.buffer} is not known before the kernel runs",
                expected="an input or a constant",
                got=f"a {source.role} buffer" + (" padded by what a stage computes" * computed),
                hint=str(replace(self, hoist=False)),
            )

    def _check_edges(self, nest: Nest, reads: Sequence[Load]) -> None:
        for load in reads:
            single = {index.single for index in load.index}
            for edge in load.edges:
                for inner in loads(edge.value) if edge and edge.value is not None else ():
                    used = frozenset[str]().union(*(i.names() for i in inner.index))
                    if not used <= single:
                        self.refuse(
                            nest,
                            f"the padding of {self.buffer} depends on more than its own indices",
                            expected="a padding value over " + ", ".join(n for n in single if n),
                            got=", ".join(sorted(used)),
                        )

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        source = kernel.buffer(self.buffer)
        reads = [o for o in loads_of(nest) if o.buffer == self.buffer]
        layout = self._layout(nest, source, reads)
        edges = merged_edges(reads)
        assert edges is not None
        name = _existing(kernel, nest, source, layout, edges, self.hoist)
        if name is None:
            name = _fresh(f"{self.buffer}_packed", [b.name for b in kernel.buffers])
            packed = Buffer(name, source.dtype, source.shape, layout, "packed")
            load = replace(reads[0], edges=edges)
            kernel = self._with_phase(kernel, nest, packed, load, target)
        found = name

        def change(expr: Expr) -> Expr:
            if isinstance(expr, Load) and expr.buffer == self.buffer:
                kept = tuple(e if e and e.kind == "omit" else None for e in expr.edges)
                return replace(expr, buffer=found, edges=kept)
            return expr

        after = map_nest_exprs(nest, lambda body: map_expr(body, change))
        return replace_nest(kernel, nest.name, after)

    def _with_phase(
        self, kernel: Kernel, nest: Nest, packed: Buffer, load: Load, target: Target
    ) -> Kernel:
        """The kernel with the packed buffer and the phase that fills it."""
        name = _fresh(f"pack_{self.buffer}", [n.name for n in all_nests(kernel)])
        body = packing_nest(name, kernel.buffer(self.buffer), packed, load, target)
        phase = Phase(name, (body,), when="prepare" if self.hoist else "run")
        place = _place(kernel, nest, self.hoist)
        phases = (*kernel.phases[:place], phase, *kernel.phases[place:])
        after = replace(kernel, buffers=(*kernel.buffers, packed), phases=phases)
        return set_grain(after, name)

    def _layout(self, nest: Nest, source: Buffer, reads: Sequence[Load]) -> Layout:
        """Named dimensions last (blocks where they can be), the others as the loops walk them."""
        halo = list(halo_of_reads(nest, source, reads))
        load = reads[0]
        blocks: list[tuple[int, int]] = []
        last: list[int] = []
        for name in self.loops:
            dim = _dim_of(nest, load, name)
            assert dim is not None
            size = _block_size(nest, load.index[dim], name)
            if size and size < source.shape[dim] and halo[dim] == (0, 0):
                blocks.append((dim, size))
                halo[dim] = (0, -source.shape[dim] % size)
            else:
                last.append(dim)
        place = {loop.name: i for i, loop in enumerate(nest.loops)}
        place |= {loop.base: place[loop.name] for loop in nest.loops if loop.segments}

        def position(dim: int) -> int:
            names = in_loops(nest, load.index[dim]).names()
            return min((place[n] for n in names if n in place), default=-1)

        order = [d for d in source.layout.order if d not in last]
        if self.loops:
            order.sort(key=position)
        kept = tuple(halo) if any(h != (0, 0) for h in halo) else ()
        return Layout((*order, *last), tuple(blocks), kept)


def pack(buffer: str, *loops: str, hoist: bool = False, nest: str = "") -> Pack:
    """See Pack."""
    return Pack(buffer, tuple(loops), hoist, nest=nest)


def merged_edges(reads: Sequence[Load]) -> tuple[Edge | None, ...] | None:
    """The edges of one operand at all its accesses, where those that have any agree; else None."""
    found: list[Edge | None] = []
    for edges in zip(*(o.edges for o in reads), strict=True):
        kinds = list(dict.fromkeys(e for e in edges if e is not None))
        if len(kinds) > 1:
            return None
        found.append(kinds[0] if kinds else None)
    return tuple(found)


def packing_nest(name: str, source: Buffer, packed: Buffer, load: Load, target: Target) -> Nest:
    """The scheduled nest that fills a packed buffer, its padding and halo included.

    Loops run in the order of the source, so that its lines are used while they are near. Where
    source and copy end in different dimensions, squares are moved: vectors along the source's last
    dimension, as many of them as the copy's last one takes, stored transposed. Else the vector
    loop is the one that is contiguous in the copy. What the ranges of a segment decide (inside,
    halo, padding) needs no test.
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
    for dim in (d for d in source.layout.order if dims[d][0]):
        loops, _, _ = dims[dim]
        if dim in blocked or dim in steps:
            inner.insert(len(inner) if dim == vector else 0, loops[-1])
            loops = loops[:-1]
        outer += loops
    inner[-1] = replace(inner[-1], kind=LoopKind.VECTOR)
    if near is not None:
        inner[:-1] = [replace(loop, kind=LoopKind.UNROLL) for loop in inner[:-1]]
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


def _dim_of(nest: Nest, load: Load, name: str) -> int | None:
    """The last dimension whose index moves with a loop."""
    found = None
    for dim, index in enumerate(load.index):
        if name in in_loops(nest, index).names():
            found = dim
    return found


def _block_size(nest: Nest, index: Affine, name: str) -> int:
    """The extent of a loop that walks whole, aligned blocks of an index; 0 for any other."""
    bases, _ = unit_bases(nest)
    written = in_loops(nest, index).substitute(bases)
    if written.coefficient(name) != 1 or name in written.hidden_names():
        return 0
    size = nest.loop(name).extent
    rest = written.without(name)
    aligned = rest.constant % size == 0 and all(c % size == 0 for _, c in rest.terms)
    return size if rest.terms and aligned else 0


def halo_of_reads(nest: Nest, source: Buffer, reads: Sequence[Load]) -> tuple[tuple[int, int], ...]:
    """How far the accesses reach out of each dimension that has an edge (other than omit)."""
    ranges = {name: (low, high) for name, low, high in nest.ranges}
    halo: list[tuple[int, int]] = []
    for dim, extent in enumerate(source.shape):
        before = after = 0
        for load in reads:
            edge = load.edges[dim]
            if edge is not None and edge.kind != "omit":
                first, last = load.index[dim].bounds(ranges)
                before = max(before, -first)
                after = max(after, last - extent + 1)
        halo.append((before, after))
    return tuple(halo)


def _existing(
    kernel: Kernel,
    nest: Nest,
    source: Buffer,
    layout: Layout,
    edges: tuple[Edge | None, ...],
    hoist: bool,
) -> str | None:
    """The packed buffer that an equal pack before the nest made."""
    for phase in kernel.phases:
        if not isinstance(phase.body, tuple) or any(n.name == nest.name for n in phase.body):
            return None
        if (phase.when == "prepare") != hoist:
            continue
        for copy in phase.body:
            found = kernel.buffer(copy.stores[0].buffer)
            read = loads_of(copy)
            if not is_packing(copy, kernel) or not read or read[0].buffer != source.name:
                continue
            same = all(
                old == new or new is None or new.kind == "omit" or old is None
                for old, new in zip(read[0].edges, edges, strict=True)
            )
            if found.layout == layout and same:
                return found.name
    return None


def _place(kernel: Kernel, nest: Nest, hoist: bool) -> int:
    """Where the packing phase goes: behind the other prepare phases, or right before the nest."""
    for i, phase in enumerate(kernel.phases):
        if hoist and phase.when != "prepare":
            return i
        if isinstance(phase.body, tuple) and any(n.name == nest.name for n in phase.body):
            return i
    return 0


def _fresh(name: str, used: Sequence[str]) -> str:
    if name not in used:
        return name
    number = 2
    while f"{name}_{number}" in used:
        number += 1
    return f"{name}_{number}"
