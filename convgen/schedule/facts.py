"""What the score of a candidate needs to know of a nest, read off once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from convgen.affine import Affine, Mod
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import Buffer, Kernel, Load, Nest, Op
from convgen.ir.regions import axis_ranges, loop_ranges
from convgen.ir.simplify import simplify_affine
from convgen.ir.visit import loads, walk
from convgen.schedule.access import (
    in_loops,
    loads_of,
    offset_of,
    pattern_of,
    strides_of,
    vector_dtype,
)
from convgen.schedule.directives.base import all_nests, is_packing
from convgen.schedule.directives.pack import covers, halo_of_reads, merged_edges
from convgen.schedule.skipping import LONG, Reach, leaves_out, reach_of
from convgen.target import Target


@dataclass(frozen=True, slots=True)
class Operand:
    """A load of a nest. strides: elements along each loop that it depends on (None: not constant);
    steps: what a copy with that loop's dimension innermost would leave of them (0: not constant);
    pitches: strides in a copy that keeps the order of the dimensions and adds a halo;
    copied: elements of such a copy;
    edged: loops that move it in a dimension with an edge; shifted: loops that share an index with
    a reduce loop; body: it stands in a reduce;
    windows: for each dimension that output and reduce loops move together, the step of each, where
    the reduce loops move this dimension alone (else nothing slides: other elements come);
    overlaps: for each dimension that several output loops and no reduce loop move, the same;
    overhangs: for each dimension with an edge its loops and how many places of it lie outside;
    patterned: for loops along which every vector takes a few neighbours in one pattern, the step
    and after how many iterations it is made;
    periods: for loops that move it in an index that comes round again, after how many steps;
    zeros: dimensions outside of which it is 0, and with it what a sum adds;
    near: the extent of the dimension that is contiguous in memory;
    reached: the share of its elements that some iteration reads, loops that take several steps at
    once leave the rest out; of whole lines as it lies, and of a copy;
    readers: nests of the kernel that read the buffer or a copy of it;
    copies: output loops along which there is a copy already, with how many steps of each it has
    side by side."""

    load: Load
    strides: dict[str, int | None]
    steps: dict[str, int]
    pitches: dict[str, int | None]
    edged: frozenset[str]
    shifted: frozenset[str]
    omits: bool
    shape: tuple[int, ...]
    elements: int
    copied: int
    bytes: int
    body: bool
    packable: bool
    hoistable: bool
    windows: tuple[dict[str, int], ...]
    overlaps: tuple[dict[str, int], ...]
    overhangs: tuple[tuple[frozenset[str], int], ...]
    patterned: dict[str, tuple[int, int]]
    periods: dict[str, int]
    zeros: tuple[Reach, ...]
    near: int
    reached: tuple[float, float]
    readers: int
    copies: frozenset[tuple[str, int]]

    def is_shuffled(self, vector: str, width: int) -> bool:
        """True where each vector of a chunk so wide is one load and a shuffle."""
        return vector in self.patterned and width % self.patterned[vector][1] == 0

    def picking(self, vector: str) -> frozenset[str]:
        """Loops that take other elements out of the same vectors along a loop with a pattern."""
        step, _ = self.patterned.get(vector, (0, 0))
        return frozenset(n for n, s in self.strides.items() if s and abs(s) < abs(step))


@dataclass(frozen=True, slots=True)
class Facts:
    """What the score of a candidate needs to know of a nest. order: the reduce loops, the one
    that runs fastest first, windows last; bytes: of what is stored; wide_masks: the mask of a
    load is a vector; parting: output loops that move all operands of the sums to other elements,
    as groups and the items of a batched product do."""

    nest: Nest
    operands: tuple[Operand, ...]
    lanes: int
    registers: int
    wide_masks: bool
    states: int
    operations: float
    epilogue: float
    store_strides: tuple[dict[str, int | None], ...]
    outputs: dict[str, int]
    reduces: dict[str, int]
    order: tuple[str, ...]
    parting: frozenset[str]
    bytes: int
    l1: int
    l2: int
    l3: int

    @property
    def caches(self) -> tuple[int, int, int]:
        """Bytes of each."""
        return self.l1, self.l2, self.l3


def facts_of(nest: Nest, kernel: Kernel, target: Target) -> Facts:
    """Read the facts off a nest whose loops are whole axes (or fused ones)."""
    lanes = max(1, target.lanes(vector_dtype(nest, kernel)))
    inside = {load for r in nest.reduces for load in loads(r.body)}
    written = {s.buffer for s in nest.stores}
    outputs = {o.name: o.extent for o in nest.loops if o.reduce is None}
    reduces = {o.name: o.extent for o in nest.loops if o.reduce is not None}
    readers = _readers(nest, kernel)
    windows = windows_of(nest, kernel)
    order = tuple(reversed([*windows, *(n for n in reduces if n not in windows)]))
    skips = bool(order) and reduces[order[0]] >= LONG
    operands = tuple(
        _operand(load, nest, kernel, load in inside, written, readers, lanes, skips)
        for load in loads_of(nest)
    )
    operations = sum(
        max(1, sum(isinstance(e, Op) for e in walk(r.body)))
        + 2 * (len(r.combiner.dtypes) - 1)
        + 4
        * sum(e.name in ("exp", "log", "tanh", "pow") for e in walk(r.body) if isinstance(e, Op))
        for r in nest.reduces
    )
    epilogue = sum(isinstance(e, Op) for s in nest.stores for e in walk(s.value))
    return Facts(
        nest=nest,
        operands=operands,
        lanes=lanes,
        registers=target.vector_registers - 2,
        wide_masks=target.vector_bits < 512,
        states=_states(nest),
        operations=float(operations),
        epilogue=float(epilogue),
        store_strides=tuple(
            strides_of(kernel.buffer(s.buffer), s.index, nest, outputs) for s in nest.stores
        ),
        outputs=outputs,
        reduces=reduces,
        order=order,
        parting=_parting(nest, inside),
        bytes=max((kernel.buffer(s.buffer).dtype.bytes for s in nest.stores), default=4),
        l1=target.l1,
        l2=target.l2,
        l3=target.l3,
    )


def _parting(nest: Nest, read: set[Load]) -> frozenset[str]:
    """The output loops of which each iteration reads other elements of all operands: their steps
    are longer than all that other loops do to the index."""
    reach = {n: high - low - 1 for n, (low, high) in loop_ranges(nest).items()}
    found = {o.name for o in nest.loops if o.reduce is None} if read else set[str]()
    for load in read:
        apart: set[str] = set()
        for place in (in_loops(nest, index) for index in load.index):
            spans = {n: abs(place.coefficient(n)) * reach.get(n, 0) for n in place.names()}
            for name in spans.keys() - place.hidden_names():
                others = sum(span for n, span in spans.items() if n != name)
                apart |= {name} if abs(place.coefficient(name)) > others else set()
        found &= apart
    return frozenset(found)


def windows_of(nest: Nest, kernel: Kernel) -> list[str]:
    """Reduce loops that share an index with an output loop, where that is at least as long (all its
    parts), or where it slides along it and another reduce loop takes shorter steps through the same
    operand."""
    whole: dict[str, int] = {}
    for loop in nest.loops:
        if loop.reduce is None:
            whole[axis_of(loop.name)] = whole.get(axis_of(loop.name), 1) * loop.extent
    extents = {loop.name: loop.extent for loop in nest.loops if loop.reduce is not None}
    found: dict[str, None] = {}
    for load in loads_of(nest):
        shared: dict[str, bool] = {}
        for index in load.index:
            names = in_loops(nest, index).names()
            longest = max((whole[a] for n in names if (a := axis_of(n)) in whole), default=0)
            found |= {n: None for n in names if n in extents and extents[n] <= longest}
            place = in_loops(nest, index)
            steps = [abs(place.coefficient(n)) for n in names if axis_of(n) in whole]
            shared |= {
                n: any(step < extents[n] * abs(place.coefficient(n)) for step in steps)
                for n in names
                if n in extents
            }
        buffer = kernel.buffer(load.buffer)
        steps = strides_of(buffer, load.index, nest, shared)
        strides = {n: abs(step or 0) for n, step in steps.items()}
        plain = [strides[n] for n, slides in shared.items() if not slides and extents[n] > 1]
        if plain and any(shared.values()):
            found |= {n: None for n in shared if shared[n] and strides[n] > min(plain)}
    return [n for n in extents if n in found]


def axis_of(name: str) -> str:
    """The loop that a child of a split or cover was cut from."""
    for ending in ("_out", "_in", "_base"):
        name = name.removesuffix(ending)
    return name


def _states(nest: Nest) -> int:
    """State components that are live together at one point of the tile."""
    found: dict[int, int] = {}
    for number, reduce in enumerate(nest.reduces):
        leader = nest.leader(number)
        found[leader] = found.get(leader, 0) + len(reduce.combiner.dtypes)
    return max(found.values(), default=0)


def _readers(nest: Nest, kernel: Kernel) -> dict[str, int]:
    """How many nests read each buffer that a nest reads, from a copy or from where it was."""
    computing: list[set[str]] = []
    sources: dict[str, str] = {}
    for one in all_nests(kernel):
        read = {o.buffer for o in loads_of(one)}
        if is_packing(one, kernel):
            sources |= {s.buffer: b for s in one.stores for b in read}
        elif one.name != nest.name:
            computing.append(read)
    own = {o.buffer for o in loads_of(nest)}
    read = [{sources.get(b, b) for b in buffers} for buffers in computing]
    return {b: 1 + sum(b in buffers for buffers in read) for b in own}


def _operand(
    load: Load,
    nest: Nest,
    kernel: Kernel,
    body: bool,
    written: set[str],
    readers: Mapping[str, int],
    lanes: int,
    skips: bool,
) -> Operand:
    buffer = kernel.buffer(load.buffer)
    steps: dict[str, int] = {}
    edged, shifted = set[str](), set[str]()
    together: list[dict[str, int]] = []
    overhangs: list[tuple[frozenset[str], int]] = []
    inner, ranges = {o.name for o in nest.loops if o.reduce is not None}, loop_ranges(nest)
    for index, edge, size in zip(load.index, load.edges, buffer.shape, strict=True):
        place = in_loops(nest, index)
        if place.hidden_names():
            place = simplify_affine(place, ranges)  # digits of a fused loop that stand side by side
        names = place.names() & ranges.keys()  # others belong to loops that this nest stands in
        for name in names:
            hidden = name in place.hidden_names()
            steps[name] = 0 if hidden else place.coefficient(name)
        if edge is not None and edge.kind not in ("omit", "halo"):
            edged |= names
            if outside := _places_outside(place, ranges, index, axis_ranges(nest), size):
                overhangs.append((frozenset(names), outside))
        if names & inner:
            shifted |= names - inner
        if names - inner and len(names) > 1 and not place.hidden_names():
            together.append({n: abs(place.coefficient(n)) for n in names})
    strides, wide = strides_of(buffer, load.index, nest, steps), _with_halo(nest, buffer)
    again = {n for n in inner if sum(n in in_loops(nest, i).names() for i in load.index) > 1}
    return Operand(
        load=load,
        strides=strides,
        steps=steps,
        pitches=strides if wide == buffer else strides_of(wide, load.index, nest, strides),
        edged=frozenset(edged),
        shifted=frozenset(shifted),
        omits=any(e is not None and e.kind == "omit" for e in load.edges),
        shape=buffer.shape,
        elements=size_in_elements(buffer),
        copied=size_in_elements(wide),
        bytes=buffer.dtype.bytes,
        body=body,
        packable=load.buffer not in written and _is_packable(nest, buffer),
        windows=tuple(t for t in together if t.keys() & inner and not t.keys() & again),
        overlaps=tuple(t for t in together if not t.keys() & inner),
        overhangs=tuple(overhangs),
        patterned=_patterned(load, nest, buffer, strides, lanes),
        periods=_periods(load, nest),
        zeros=_zeros(load, nest, buffer),
        near=_near(buffer),
        reached=_reached(load, nest, buffer),
        readers=readers[load.buffer],
        copies=frozenset(_copies(load, nest, kernel, skips)),
        hoistable=buffer.role == "input" and not edged and _is_shared(nest, strides),
    )


def _near(buffer: Buffer) -> int:
    """The extent of the dimension that is contiguous in memory."""
    return next((buffer.shape[d] for d in reversed(buffer.layout.order) if buffer.shape[d] > 1), 1)


def _reached(load: Load, nest: Nest, buffer: Buffer) -> tuple[float, float]:
    """The share of a buffer that some iteration reads, of whole lines as it lies and of a copy."""
    extents = {o.name: o.extent for o in nest.loops}
    shares: list[float] = []
    for index, size in zip(load.index, buffer.shape, strict=True):
        place = in_loops(nest, index)
        steps = math.prod(extents.get(n, size) for n in place.names())
        shares.append(1.0 if place.hidden_names() else min(1.0, steps / max(1, size)))
    last = buffer.layout.order[-1:]
    return math.prod(s for d, s in enumerate(shares) if d not in last), math.prod(shares)


def _zeros(load: Load, nest: Nest, buffer: Buffer) -> tuple[Reach, ...]:
    """The dimensions of a factor of a sum that have zero edges."""
    if not leaves_out(load, nest.reduces):
        return ()
    outputs = {o.name: o.extent for o in nest.loops if o.reduce is None}
    inner = {o.name: o.extent for o in nest.loops if o.reduce is not None}
    found = (
        reach_of(in_loops(nest, index), size, outputs, inner)
        for index, edge, size in zip(load.index, load.edges, buffer.shape, strict=True)
        if edge is not None and edge.kind == "zero"
    )
    return tuple(reach for reach in found if reach is not None)


def _places_outside(
    place: Affine,
    loops: Mapping[str, tuple[int, int]],
    index: Affine,
    axes: Mapping[str, tuple[int, int]],
    size: int,
) -> int:
    """How many places of a dimension an index reaches outside of it, over the loops where the nest
    has them all, else over the axes."""
    low, high = place.bounds(loops) if place.names() <= loops.keys() else index.bounds(axes)
    return max(0, -low) + max(0, high - size + 1)


def _reads(nest: Nest, buffer: Buffer) -> list[Load]:
    return [o for o in loads_of(nest) if o.buffer == buffer.name]


def _with_halo(nest: Nest, buffer: Buffer) -> Buffer:
    """A copy with a halo as wide as the nest needs."""
    halo = halo_of_reads(nest, buffer, _reads(nest, buffer))
    if not any(pair != (0, 0) for pair in halo):
        return buffer
    return replace(buffer, layout=replace(buffer.layout, halo=halo))


def _copies(load: Load, nest: Nest, kernel: Kernel, skips: bool) -> Iterator[tuple[str, int]]:
    """For the copies of a buffer whose halo is as wide as the nest needs (none, where it leaves out
    what lies outside), the output loops that move its innermost dimension and how many elements of
    that lie side by side."""
    source = kernel.buffer(load.buffer)
    halo = halo_of_reads(nest, source, _reads(nest, source))
    left = [skips and e is not None and e.kind == "zero" for e in load.edges]
    needed = [(0, 0) if out else pair for pair, out in zip(halo, left, strict=True)]
    outputs = {o.name: o.extent for o in nest.loops if o.reduce is None}
    for other in all_nests(kernel):
        if not is_packing(other, kernel) or all(o.buffer != load.buffer for o in loads_of(other)):
            continue
        layout = kernel.buffer(other.stores[0].buffer).layout
        if not covers(layout.halo or ((0, 0),) * len(needed), needed):
            continue
        dim, size = layout.blocks[-1] if layout.blocks else (layout.order[-1], 0)
        for name in in_loops(nest, load.index[dim]).names() & outputs.keys():
            yield name, size or outputs[name]


def _is_packable(nest: Nest, buffer: Buffer) -> bool:
    """True for a buffer of which one copy serves all its loads."""
    same = _reads(nest, buffer)
    return (
        buffer.role not in ("packed", "scratch", "constant")
        and merged_edges(same) is not None
        and not any(e and e.value is not None for o in same for e in o.edges)
    )


def _patterned(
    load: Load, nest: Nest, buffer: Buffer, strides: dict[str, int | None], lanes: int
) -> dict[str, tuple[int, int]]:
    uneven = [name for name, stride in strides.items() if stride is None]
    if not uneven:
        return {}
    offset = offset_of(buffer, load.index, nest)
    found = ((name, pattern_of(offset, name, lanes)) for name in uneven)
    return {name: pattern for name, pattern in found if pattern is not None}


def _periods(load: Load, nest: Nest) -> dict[str, int]:
    """Loops that occur in one index only, inside a remainder, and after how many steps of theirs
    that repeats."""
    found: dict[str, int] = {}
    places = [in_loops(nest, index) for index in load.index]
    for place in places:
        if len(place.terms) != 1 or not isinstance(atom := place.terms[0][0], Mod):
            continue
        for name in atom.value.names() - atom.value.hidden_names():
            if sum(name in p.names() for p in places) == 1:
                step = atom.value.coefficient(name)
                found[name] = atom.divisor // math.gcd(atom.divisor, step)
    return found


def _is_shared(nest: Nest, strides: dict[str, int | None]) -> bool:
    """True for an operand that all items of a batch share, as weights are: the first output axis
    is the first index of what is stored and of another operand, and not one of its own."""
    first = next((o.name for o in nest.loops if o.reduce is None), "")
    if not first or first in strides:
        return False
    stored = all(in_loops(nest, s.index[0]).single == first for s in nest.stores if s.index)
    others = (in_loops(nest, o.index[0]).single == first for o in loads_of(nest) if o.index)
    return stored and any(others)
