"""Directives that move a producer into its consumer: compute_at, inline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from convgen.affine import Affine, Constraint
from convgen.ir.nodes import (
    Attached,
    Buffer,
    Expr,
    Kernel,
    Layout,
    Load,
    Loop,
    LoopKind,
    Nest,
    StoreNode,
)
from convgen.ir.regions import Box, axis_ranges, footprint_of_loads, loop_ranges
from convgen.ir.regions import inside as is_inside
from convgen.ir.regions import join as join_boxes
from convgen.ir.visit import map_affine, map_expr, map_nest_exprs
from convgen.schedule.access import loads_of, outer_loops
from convgen.schedule.directives.base import Directive, Value, all_nests, outside, replace_nest
from convgen.target import Target


@dataclass(frozen=True)
class ComputeAt(Directive):
    """compute_at(T, y): compute the part of T that one iteration of y reads, inside that loop.

    before   for i: T[i] = ..             after   for y: for T_i < 3: T_tile[T_i] = ..
             for y: for r < 3: .. T[y+r]             for r < 3: .. T_tile[r]

    Legal: T is a temporary that only this nest reads, or producers computed inside y already;
    written by one unscheduled nest at plain indices; y an output loop outside all reduces; the
    accesses of T stay inside it (or are packed first) and move together. Points on which parts
    overlap are computed again. Temporaries stored beside T come along where the same is true of
    them and they are read in the same parts. Results of the kernel, T or what is stored beside it,
    are stored too: there the parts make up the whole and do not overlap.
    Elsewhere: compute_at (Halide, TVM), overlapped tiling, fusion with recomputation.
    """

    buffer: str
    loop_name: str
    keyword: ClassVar[str] = "compute_at"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return (self.buffer, self.loop_name), {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        producer = self._producer(nest, kernel)
        self.loop(nest, self.loop_name)
        outer = [loop.name for loop in outer_loops(nest)]
        if self.loop_name not in outer:
            self.refuse(
                nest,
                f"{self.loop_name} is not outside all reduces",
                expected="one of " + ", ".join(outer) if outer else "an output loop outside",
                got=self.loop_name,
            )
        around = outside(nest, self.loop_name)
        for loop in nest.loops:
            if loop.name in around and loop.kind is LoopKind.VECTOR:
                self.refuse(
                    nest,
                    f"the iterations of {loop.name} are lanes of a vector",
                    expected="loops that run one iteration after another",
                    got=loop.name,
                )
        if _box(self, nest) is None:
            self.refuse(
                nest,
                f"the accesses of {self.buffer} do not move together",
                expected="accesses whose indices differ by constants",
                got=f"{self.buffer} in {nest.name}",
            )
        self._check_producer(nest, producer, kernel)

    def _producer(self, nest: Nest, kernel: Kernel, buffer: str = "") -> Nest:
        inside = [a.nest.name for a in nest.attached if a.at == self.loop_name]
        roles = ("temporary", "output")
        return find_producer(self, nest, kernel, buffer or self.buffer, inside, roles)

    def _stored(self, producer: Nest, kernel: Kernel) -> list[str]:
        """What gets a tile: the buffer, and the temporaries that its nest stores beside it."""
        others = [s.buffer for s in producer.stores if s.buffer != self.buffer]
        return [self.buffer, *(b for b in others if kernel.buffer(b).role != "output")]

    def _check_producer(self, nest: Nest, producer: Nest, kernel: Kernel) -> None:
        for loop in producer.loops:
            if loop.segments or loop.kind.value != "serial" or loop.steps > 1:
                self.refuse(
                    nest,
                    f"{producer.name} is scheduled already",
                    expected="compute_at before the directives of the producer",
                    got=loop.name,
                )
        own = _store_of(producer, self.buffer)
        others = [s for s in producer.stores if s is not own]
        if producer.attached or any(s.index != own.index for s in others):
            self.refuse(
                nest,
                f"{producer.name} does more than compute {self.buffer}",
                expected="a nest that stores at one place",
                got=f"{len(producer.stores)} stores, {len(producer.attached)} attached nests",
            )
        plain = {a for a, v in producer.axes if len(v.terms) == 1 and v.is_plain}
        if any(i.single not in plain for i in own.index):
            self.refuse(
                nest,
                f"{producer.name} does not write {self.buffer} at plain indices",
                expected="one axis for each index",
                got=", ".join(str(i) for i in own.index),
            )
        results = [s.buffer for s in producer.stores if kernel.buffer(s.buffer).role == "output"]
        for buffer in self._stored(producer, kernel)[1:]:
            self._producer(nest, kernel, buffer)
            shapes = [kernel.buffer(b).shape for b in (buffer, self.buffer)]
            parts = [_box(replace(self, buffer=b), nest) for b in (buffer, self.buffer)]
            if shapes[0] != shapes[1] or parts[0] != parts[1]:
                self.refuse(
                    nest,
                    f"{producer.name} stores {buffer} too, which is read in other parts",
                    expected=f"parts like those of {self.buffer}",
                    got=f"{buffer} in {nest.name}",
                )
        if results and not self._is_partition(nest, kernel):
            self.refuse(
                nest,
                f"the parts of {self.buffer} overlap or leave elements out",
                expected=f"parts that make up {', '.join(results)}",
                got=f"what an iteration of {self.loop_name} reads",
            )

    def _is_partition(self, nest: Nest, kernel: Kernel) -> bool:
        """True where the parts make up the buffer and none overlap: together they are as large as
        it is, and some access goes over all of it."""
        around = outside(nest, self.loop_name)
        outer = [o for o in nest.loops if o.name in around]
        if nest.guards or any(o.segments for o in nest.loops):
            return False
        box = _box(self, nest)
        assert box is not None
        shape = kernel.buffer(self.buffer).shape
        parts = math.prod(o.extent for o in outer) * math.prod(span.extent for span in box)
        inner = [a.nest for a in nest.attached if a.at == self.loop_name]
        return parts == math.prod(shape) and any(
            not one.guards and _goes_over(load.index, shape, axis_ranges(one))
            for one in (nest, *inner)
            for load in loads_of(one)
            if load.buffer == self.buffer
        )

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        producer = self._producer(nest, kernel)
        box = _box(self, nest)
        assert box is not None
        stored = self._stored(producer, kernel)
        shape = tuple(span.extent for span in box)
        layout = Layout.rowmajor(len(shape))
        tiles = {
            b: Buffer(f"{b}_tile", kernel.buffer(b).dtype, shape, layout, "scratch") for b in stored
        }
        starts = {f"{self.buffer}_at{d}": span.base for d, span in enumerate(box)}
        axes = list(starts)

        def change(expr: Expr) -> Expr:
            if isinstance(expr, Load) and expr.buffer in tiles:
                index = tuple(i - Affine.of(a) for i, a in zip(expr.index, axes, strict=True))
                name = tiles[expr.buffer].name
                return replace(expr, buffer=name, index=index, edges=(None,) * len(index))
            return expr

        ranges = loop_ranges(nest)
        spans = {a: v.bounds(ranges) for a, v in starts.items()}
        results = tuple(s for s in producer.stores if kernel.buffer(s.buffer).role == "output")
        sizes = kernel.buffer(self.buffer).shape
        inner = _local(producer, self.buffer, box, tiles, ranges, sizes, results)
        places = tuple((a, low, high + 1) for a, (low, high) in spans.items())

        def reading(one: Nest) -> Nest:
            if all(o.buffer not in tiles for o in loads_of(one)):
                return one
            moved = map_nest_exprs(one, lambda body: map_expr(body, change))
            axes, spread = (*moved.axes, *starts.items()), (*moved.ranges, *places)
            return replace(moved, axes=axes, ranges=spread)

        earlier = tuple(replace(a, nest=reading(a.nest)) for a in nest.attached)
        attached = (Attached(self.loop_name, inner, tiles[self.buffer].name), *earlier)
        after = replace(reading(nest), attached=attached)
        kernel = replace_nest(replace_nest(kernel, producer.name, None), nest.name, after)
        gone = [b for b in stored if kernel.buffer(b).role != "output"]
        buffers = tuple(b for b in kernel.buffers if b.name not in gone)
        return replace(kernel, buffers=(*buffers, *tiles.values()))


@dataclass(frozen=True)
class Inline(Directive):
    """inline(T): write the formula of T in the place of each read of T in this nest.

    before   for i: T[i] = f(i)           after   for y: Y[y] = g(f(y))
             for y: Y[y] = g(T[y])

    Legal: T is a temporary written by one nest without reduces at plain indices, and the reads
    stay inside it. T itself disappears when nothing else reads it.
    Elsewhere: compute_inline (Halide, TVM), inlining, producer-consumer fusion.
    """

    buffer: str
    keyword: ClassVar[str] = "inline"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return (self.buffer,), {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        producer = find_producer(self, nest, kernel, self.buffer)
        if producer.reduces or len(producer.stores) != 1 or producer.guards or producer.attached:
            self.refuse(
                nest,
                f"{producer.name} reduces, tests or writes more than one value",
                expected="a producer that is one expression",
                got=producer.name,
                hint=f"compute_at({self.buffer}, ...)",
            )
        if any(i.single is None for i in producer.stores[0].index):
            self.refuse(
                nest,
                f"{producer.name} does not write {self.buffer} at plain indices",
                expected="one axis for each index",
                got=", ".join(str(i) for i in producer.stores[0].index),
            )

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        producer = find_producer(self, nest, kernel, self.buffer)
        store = producer.stores[0]
        names = [str(i.single) for i in store.index]

        def change(expr: Expr) -> Expr:
            if isinstance(expr, Load) and expr.buffer == self.buffer:
                values = dict(zip(names, expr.index, strict=True))
                return map_affine(store.value, lambda index: index.substitute(values))
            return expr

        after = map_nest_exprs(nest, lambda body: map_expr(body, change))
        kernel = replace_nest(kernel, nest.name, after)
        if any(o.buffer == self.buffer for n in all_nests(kernel) for o in loads_of(n)):
            return kernel
        kernel = replace_nest(kernel, producer.name, None)
        return replace(kernel, buffers=tuple(b for b in kernel.buffers if b.name != self.buffer))


def compute_at(buffer: str, loop: str, *, nest: str = "") -> ComputeAt:
    """See ComputeAt."""
    return ComputeAt(buffer, loop, nest=nest)


def inline(buffer: str, *, nest: str = "") -> Inline:
    """See Inline."""
    return Inline(buffer, nest=nest)


def find_producer(
    directive: Directive,
    nest: Nest,
    kernel: Kernel,
    buffer: str,
    inside: Sequence[str] | None = None,
    roles: Sequence[str] = ("temporary",),
) -> Nest:
    """The one nest that writes a buffer which `nest` reads inside its bounds. `inside`: the
    only other nests that may read it; None: any may. roles: what the buffer may be."""
    own = [nest, *(a.nest for a in nest.attached if a.nest.name in (inside or ()))]
    reads = [o for one in own for o in loads_of(one) if o.buffer == buffer]
    if not reads:
        read = ", ".join(sorted({o.buffer for o in loads_of(nest)}))
        directive.refuse(
            nest,
            f"{nest.name} does not read {buffer}",
            expected=f"one of {read}" if read else "a nest that reads",
            got=buffer,
        )
    role = kernel.buffer(buffer).role
    if role not in roles:
        directive.refuse(
            nest,
            f"{buffer} is an {role}" if role[0] in "io" else f"{buffer} is {role}",
            expected="a temporary",
            got=f"{buffer} ({role})",
        )
    if any(edge is not None for load in reads for edge in load.edges):
        directive.refuse(
            nest,
            f"the reads of {buffer} leave it",
            expected="reads inside",
            got="an edge",
            hint=f"pack({buffer})",
        )
    writers = [n for n in all_nests(kernel) if any(s.buffer == buffer for s in n.stores)]
    readers = [n for n in all_nests(kernel) if any(o.buffer == buffer for o in loads_of(n))]
    alone = inside is None or all(n.name == nest.name or n.name in inside for n in readers)
    if len(writers) != 1 or not alone:
        directive.refuse(
            nest,
            f"{buffer} is written by {len(writers)} nests and read by {len(readers)}",
            expected="one writer" + ("" if inside is None else " and one reader"),
            got=", ".join(n.name for n in (*writers, *readers)),
        )
    return writers[0]


def _box(directive: ComputeAt, nest: Nest) -> Box | None:
    """What one iteration of the loop reads, over the loops that stay fixed in it."""
    names = [loop.name for loop in nest.loops]
    outer = set(names[: names.index(directive.loop_name) + 1])
    outer |= {loop.base for loop in nest.loops if loop.segments and loop.name in outer}
    moving = {n: r for n, r in loop_ranges(nest).items() if n not in outer}
    found: Box | None = None
    for one in (nest, *(a.nest for a in nest.attached if a.at == directive.loop_name)):
        own = {**moving, **loop_ranges(one)} if one is not nest else moving
        if all(o.buffer != directive.buffer for o in loads_of(one)):
            continue
        box = footprint_of_loads(replace(one, attached=()), directive.buffer, own)
        found = box if found is None or box is None else join_boxes(found, box)
        if found is None:
            return None
    return found


def _store_of(producer: Nest, buffer: str) -> StoreNode:
    return next(s for s in producer.stores if s.buffer == buffer)


def _goes_over(
    index: tuple[Affine, ...], shape: tuple[int, ...], ranges: dict[str, tuple[int, int]]
) -> bool:
    """True where an index has an axis of its own for each dimension, over its whole extent."""
    names = [i.single for i in index]
    whole = all(ranges.get(str(n)) == (0, e) for n, e in zip(names, shape, strict=True))
    return whole and len({*names}) == len(names)


def _local(
    producer: Nest,
    buffer: str,
    box: Box,
    tiles: dict[str, Buffer],
    fixed: dict[str, tuple[int, int]],
    shape: tuple[int, ...],
    results: tuple[StoreNode, ...],
) -> Nest:
    """The producer over one box: its loops renamed, its output axes started at the box; it stores
    in the tiles, and results where they belong."""
    own, prefix = _store_of(producer, buffer), buffer
    renamed = {loop.name: Affine.of(f"{prefix}_{loop.name}") for loop in producer.loops}
    dims = {str(i.single): d for d, i in enumerate(own.index)}
    loops: list[Loop] = []
    axes: dict[str, Affine] = {}
    sizes: dict[str, int] = {}
    guards: list[Constraint] = list(producer.guards)
    for axis, value in producer.axes:
        if axis not in dims:
            axes[axis] = value.substitute(renamed)
            continue
        span = box[dims[axis]]
        local = f"{prefix}_{next(iter(value.names()))}"
        axes[axis] = span.base + Affine.of(local)
        axes[f"{local}_place"] = Affine.of(local)
        sizes[local] = span.extent
        extent = shape[dims[axis]]
        reach = {**fixed, local: (0, span.extent)}
        if not is_inside(axes[axis], extent, reach):
            point = Affine.of(axis)
            guards += [Constraint("<=", -point), Constraint("<=", point - (extent - 1))]
    for loop in producer.loops:
        name = f"{prefix}_{loop.name}"
        loops.append(replace(loop, name=name, extent=sizes.get(name, loop.extent)))
    place = {d: axis for axis, d in dims.items()}
    values = dict(producer.axes)
    index = tuple(
        Affine.of(f"{prefix}_{next(iter(values[place[d]].names()))}_place")
        for d in range(len(shape))
    )
    known = axis_ranges(producer)
    known |= {f"{n}_place": (0, size) for n, size in sizes.items()}
    kept = [(tile, _store_of(producer, name)) for name, tile in tiles.items()]
    return replace(
        producer,
        loops=tuple(loops),
        axes=tuple(axes.items()),
        ranges=tuple((a, *known[a]) for a in axes),
        guards=tuple(guards),
        stores=(*(StoreNode(tile.name, index, s.value) for tile, s in kept), *results),
    )
