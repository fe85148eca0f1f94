"""pack: a copy of an operand in the order in which the hot loop reads it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from convgen.affine import Affine
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import (
    Buffer,
    Edge,
    Expr,
    Kernel,
    Layout,
    Load,
    Nest,
    Phase,
)
from convgen.ir.regions import loop_ranges
from convgen.ir.visit import loads, map_expr, map_nest_exprs
from convgen.schedule.access import in_loops, loads_of, tile_loops, unit_bases
from convgen.schedule.directives.base import (
    Directive,
    Value,
    all_nests,
    fresh_name,
    is_packing,
    replace_nest,
)
from convgen.schedule.directives.copying import packing_nest
from convgen.schedule.directives.mark import set_grain
from convgen.target import Target


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
    ``skip=True`` leaves out iterations of the reduce loops for which the whole tile lies outside,
    where zeros are: they would add nothing. Dimensions that no loop of the tile moves need no halo
    then and keep their edges; for the others the copy's halo serves tiles that lie outside in part.
    Legal: an operand that the nest reads with the same edges everywhere and does not write; hoist
    for inputs and constants.
    Elsewhere: packing (BLIS, oneDNN reorder), Halide in() with reorder_storage, TVM
    cache_read with a layout, Exo stage_mem.
    """

    buffer: str
    loops: tuple[str, ...] = field(default=())
    hoist: bool = False
    skip: bool = False
    keyword: ClassVar[str] = "pack"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        named: dict[str, Value] = {"hoist": True} if self.hoist else {}
        return (self.buffer, *self.loops), named | ({"skip": True} if self.skip else {})

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        reads = self.reads(nest, self.buffer)
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
        edges = merged_edges(reads)
        assert edges is not None
        halo = _halo_of_all(kernel, nest, source, edges)
        left = self._left(nest, reads)
        halo = [(0, 0) if dim in left else pair for dim, pair in enumerate(halo)]
        layout = self._layout(nest, source, reads, halo)
        moved = {
            dim
            for load in reads
            for dim, index in enumerate(load.index)
            if in_loops(nest, index).names()
        }
        near = size_in_elements(source) * source.dtype.bytes <= target.l2 // 2
        name = _existing(kernel, nest, source, layout, None if near else moved, edges, self.hoist)
        if name is None:
            name = fresh_name(f"{self.buffer}_packed", [b.name for b in kernel.buffers])
            packed = Buffer(name, source.dtype, source.shape, layout, "packed")
            load = replace(reads[0], edges=edges)
            kernel = self._with_phase(kernel, nest, packed, load, target)
        found = name

        def change(expr: Expr) -> Expr:
            if isinstance(expr, Load) and expr.buffer == self.buffer:
                kept = tuple(self._kept(e, dim in left) for dim, e in enumerate(expr.edges))
                return replace(expr, buffer=found, edges=kept)
            return expr

        after = map_nest_exprs(nest, lambda body: map_expr(body, change))
        reduces = tuple(
            replace(r, follows=found) if r.follows == self.buffer else r for r in after.reduces
        )
        return replace_nest(kernel, nest.name, replace(after, reduces=reduces))

    def _kept(self, edge: Edge | None, left: bool) -> Edge | None:
        """What is left of an edge in a load of the copy."""
        if edge is None or edge.kind == "omit" or left:
            return edge
        return Edge("halo") if self.skip and edge.kind == "zero" else None

    def _left(self, nest: Nest, reads: Sequence[Load]) -> set[int]:
        """Dimensions whose zero edges stay with the nest."""
        moving = {loop.name for loop in tile_loops(nest)}
        return {
            dim
            for dim in range(len(reads[0].index) if self.skip else 0)
            if all(
                (edge := load.edges[dim]) is None
                or (edge.kind == "zero" and not in_loops(nest, load.index[dim]).names() & moving)
                for load in reads
            )
        }

    def _with_phase(
        self, kernel: Kernel, nest: Nest, packed: Buffer, load: Load, target: Target
    ) -> Kernel:
        """The kernel with the packed buffer and the phase that fills it."""
        name = fresh_name(f"pack_{self.buffer}", [n.name for n in all_nests(kernel)])
        body = packing_nest(name, kernel.buffer(self.buffer), packed, load, target)
        phase = Phase(name, (body,), when="prepare" if self.hoist else "run")
        place = _place(kernel, nest, self.hoist)
        phases = (*kernel.phases[:place], phase, *kernel.phases[place:])
        after = replace(kernel, buffers=(*kernel.buffers, packed), phases=phases)
        return set_grain(after, name)

    def _layout(
        self, nest: Nest, source: Buffer, reads: Sequence[Load], halo: list[tuple[int, int]]
    ) -> Layout:
        """Named dimensions last (blocks where they can be), the others as the loops walk them."""
        load = reads[0]
        blocks: list[tuple[int, int]] = []
        last: list[int] = []
        for name in self.loops:
            dim = _dim_of(nest, load, name)
            assert dim is not None
            size = block_size(nest, load.index[dim], name)
            if size and size < source.shape[dim] and halo[dim] == (0, 0):
                blocks.append((dim, size))
                halo[dim] = (0, -source.shape[dim] % size)
            else:
                last.append(dim)
        place = {loop.name: i for i, loop in enumerate(nest.loops)}
        place |= {loop.base: place[loop.name] for loop in nest.loops if loop.segments}

        reach = {n: high - low for n, (low, high) in loop_ranges(nest).items()}

        def position(dim: int) -> int:
            """The loop that moves it furthest; of equal ones the outermost."""
            index = in_loops(nest, load.index[dim])
            moves = [
                (-abs(index.coefficient(n)) * reach.get(n, 1), place[n])
                for n in index.names()
                if n in place
            ]
            return min(moves, default=(0, -1))[1]

        order = [d for d in source.layout.order if d not in last]
        if self.loops:
            order.sort(key=position)
        kept = tuple(halo) if any(h != (0, 0) for h in halo) else ()
        return Layout((*order, *last), tuple(blocks), kept)


def pack(buffer: str, *loops: str, hoist: bool = False, skip: bool = False, nest: str = "") -> Pack:
    """See Pack."""
    return Pack(buffer, tuple(loops), hoist, skip, nest=nest)


def merged_edges(reads: Sequence[Load]) -> tuple[Edge | None, ...] | None:
    """The edges of one operand at all its accesses, where those that have any agree; else None."""
    found: list[Edge | None] = []
    for edges in zip(*(o.edges for o in reads), strict=True):
        kinds = list(dict.fromkeys(e for e in edges if e is not None))
        if len(kinds) > 1:
            return None
        found.append(kinds[0] if kinds else None)
    return tuple(found)


def _dim_of(nest: Nest, load: Load, name: str) -> int | None:
    """The last dimension whose index moves with a loop."""
    found = None
    for dim, index in enumerate(load.index):
        if name in in_loops(nest, index).names():
            found = dim
    return found


def block_size(nest: Nest, index: Affine, name: str) -> int:
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
            if edge is not None and edge.kind not in ("omit", "halo"):
                first, last = load.index[dim].bounds(ranges)
                before = max(before, -first)
                after = max(after, last - extent + 1)
        halo.append((before, after))
    return tuple(halo)


def _halo_of_all(
    kernel: Kernel, nest: Nest, source: Buffer, edges: tuple[Edge | None, ...]
) -> list[tuple[int, int]]:
    """The halo that the nest and all others that read the operand with such edges need, so that
    they can share a copy."""
    found = list(
        halo_of_reads(nest, source, [o for o in loads_of(nest) if o.buffer == source.name])
    )
    for other in kernel.nests():
        reads = [o for o in loads_of(other) if o.buffer == source.name]
        theirs = merged_edges(reads) if reads and not is_packing(other, kernel) else None
        if theirs is None or any(a and b and a != b for a, b in zip(theirs, edges, strict=True)):
            continue
        halo = halo_of_reads(other, source, reads)
        for dim, (low, high) in enumerate(halo):
            if edges[dim] is not None:
                found[dim] = (max(found[dim][0], low), max(found[dim][1], high))
    return found


def _existing(
    kernel: Kernel,
    nest: Nest,
    source: Buffer,
    layout: Layout,
    moved: Container[int] | None,
    edges: tuple[Edge | None, ...],
    hoist: bool,
) -> str | None:
    """The packed buffer that an equal pack before the nest made; where the dimensions lie that the
    nest does not move is all the same to it. Without `moved`, for a copy that stays near, where all
    lie but what is contiguous."""

    def order(one: Layout) -> list[int]:
        if moved is None:
            return [] if one.blocks else [one.order[-1]]
        return [dim for dim in one.order if dim in moved]

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
            if found.layout.blocks != layout.blocks or not _covers(found.layout, layout):
                continue
            if same and order(found.layout) == order(layout):
                return found.name
    return None


def _covers(one: Layout, other: Layout) -> bool:
    """True where a copy that has no halo, or one, serves where the other would."""
    if not one.halo or not other.halo:
        return one.halo == other.halo
    return covers(one.halo, other.halo)


def covers(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> bool:
    """True where a halo is as wide as another one."""
    return all(a >= c and b >= d for (a, b), (c, d) in zip(one, other, strict=True))


def _place(kernel: Kernel, nest: Nest, hoist: bool) -> int:
    """Where the packing phase goes: behind the other prepare phases, or right before the nest."""
    for i, phase in enumerate(kernel.phases):
        if hoist and phase.when != "prepare":
            return i
        if isinstance(phase.body, tuple) and any(n.name == nest.name for n in phase.body):
            return i
    return 0
