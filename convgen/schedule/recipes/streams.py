"""The recipe for reductions that are bound by bytes: windows and statistics over arrays whose
vectors lie in memory as they are needed. Everything is read in the order in which it lies there;
the window or the first reduce loops are unrolled, the states stay in registers.

Where a long sum reads far operands whose rows do not fit the registers, a few rows at a time are
walked through from end to end, and the states wait in the first cache from block to block: rows
read in columns come at a third of the rate.

Where the windows of neighbouring rows of the output share rows that are too long to stay in the
first cache, a few rows of the output are made side by side: what they share is read while it is
near, and more rows come from far away at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product

from convgen.affine import Affine
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import Kernel, Nest
from convgen.ir.regions import footprint_of_loads, loop_ranges
from convgen.ir.visit import loads
from convgen.schedule.access import in_loops, loads_of, strides_of, vector_dtype
from convgen.schedule.cost.reuse import PAGE
from convgen.schedule.directives import (
    Directive,
    carry,
    pack,
    parallel,
    reorder,
    split,
    unroll,
    vectorize,
)
from convgen.schedule.facts import facts_of
from convgen.schedule.machine import STAYS
from convgen.target import Target

REUSE = 16  # times an element may be read in a nest that is still bound by its bytes
VECTORS = 4  # of one tile
WINDOW = 16  # points of a window that are written out
ROWS = 4  # points of a long reduce that are
BLOCK = (4, 3, 5, 6, 2, 7)  # rows walked through together, the best first
PARTS = (8, *BLOCK)  # the same for parts of rows that are nothing but added up
PART = 128  # vectors of a row from which a part of it comes as fast as all
BESIDE = (4, 2, 3)  # rows of the output made side by side, the best first
SMALL = 16  # times that a copied operand goes into what is stored
LINE = 64  # bytes of memory that come together
FEW = 8  # tasks that a few workers share evenly enough
TASKS = 128  # beyond which no further loop is made parallel


def is_light(nest: Nest, kernel: Kernel, *others: Nest) -> bool:
    """True for a nest that reads its operands few times: bytes count, not operations. With others,
    for all of them in one pass."""
    nests = (nest, *others)
    touched = {o.buffer for n in nests for o in loads_of(n)}
    touched |= {s.buffer for n in nests for s in n.stores}
    largest = max((size_in_elements(kernel.buffer(b)) for b in touched), default=1)
    return max(map(iterations, nests)) <= REUSE * largest


def iterations(nest: Nest) -> int:
    """Points of the output times the longest of the reduces."""
    outputs = math.prod(o.extent for o in nest.loops if o.reduce is None)
    reduces = [
        math.prod(o.extent for o in nest.loops if o.reduce == number)
        for number in range(len(nest.reduces))
    ]
    return outputs * max(reduces, default=1)


def stream(nest: Nest, kernel: Kernel, target: Target) -> list[Directive]:
    """The directives for such a nest; empty where it is none."""
    lanes = max(1, target.lanes(vector_dtype(nest, kernel)))
    vector, copied = _vector_loop(nest, kernel, lanes)
    if not nest.reduces or not vector or not is_light(nest, kernel):
        return []
    if len(_leaders(nest)) < 2 and (copied or _comes_again(nest, kernel, vector, target)):
        return []  # a tile that reads its vectors again is worth more
    alone = all(o.extent == 1 or o.name == vector for o in nest.loops if o.reduce is None)
    whole = alone and _shares(nest.loop(vector).extent, lanes, VECTORS)[0]
    if len(_leaders(nest)) < 2 and _comes_far(nest, kernel, target) and not whole:
        return []  # panels are
    if nest.guards or any(r.guards for r in nest.reduces):
        return []
    if len(_leaders(nest)) > 1 and _is_long(nest):
        return []
    packs = _packs(nest, kernel, target, copied)
    return (
        list(_directives(nest, kernel, vector, lanes, target, packs)) if packs is not None else []
    )


def is_stream(nest: Nest, kernel: Kernel, target: Target) -> bool:
    """True where that recipe has directives for a nest."""
    return bool(stream(nest, kernel, target))


def _comes_again(nest: Nest, kernel: Kernel, vector: str, target: Target) -> bool:
    """True where an output loop goes over an operand again that no cache of a core holds."""
    outer = [o for o in nest.loops if o.reduce is None and o.name != vector and o.extent > 1]
    for load in loads_of(nest):
        buffer = kernel.buffer(load.buffer)
        moving = {n for index in load.index for n in in_loops(nest, index).names()}
        if size_in_elements(buffer) * buffer.dtype.bytes > target.l2:
            if any(o.name not in moving for o in outer):
                return True
    return False


def has_tasks(nest: Nest, kernel: Kernel, target: Target) -> bool:
    """True where the output loops beside the vector loop make tasks for several workers."""
    vector, _ = _vector_loop(nest, kernel, max(1, target.lanes(vector_dtype(nest, kernel))))
    others = [o.extent for o in nest.loops if o.reduce is None and o.name != vector]
    return math.prod(others) >= FEW


def _comes_far(nest: Nest, kernel: Kernel, target: Target) -> bool:
    """True where a sum goes through an operand in memory in steps of pages."""
    reduces = [o.name for o in nest.loops if o.reduce is not None and o.extent > WINDOW]
    for load in loads_of(nest):
        buffer = kernel.buffer(load.buffer)
        if size_in_elements(buffer) * buffer.dtype.bytes > STAYS[2] * target.l3:
            steps = [s for s in strides_of(buffer, load.index, nest, reduces).values() if s]
            if steps and min(steps) * buffer.dtype.bytes >= PAGE:
                return True
    return False


def _leaders(nest: Nest) -> list[int]:
    """The reduces that have loops of their own."""
    return sorted({nest.leader(i) for i in range(len(nest.reduces))})


def _window(nest: Nest, leader: int) -> int:
    """Points of a reduce."""
    return math.prod(o.extent for o in nest.loops if o.reduce == leader)


def _is_long(nest: Nest) -> bool:
    """True where the reduces are too long to be written out."""
    return sum(_window(nest, i) for i in _leaders(nest)) > WINDOW


def _shared(nest: Nest) -> int:
    """Places that several reduces in loops of their own read for one point of the output: each is
    loaded once, and stays in a register."""
    found = {
        (o.buffer, tuple(in_loops(nest, i) for i in o.index))
        for s in nest.stores
        for o in loads(s.value)
    }
    for number, reduce in enumerate(nest.reduces):
        own = [o for o in nest.loops if o.reduce == nest.leader(number)]
        for point in product(*(range(o.extent) for o in own)):
            values = {o.name: Affine.of(v) for o, v in zip(own, point, strict=True)}
            for load in loads(reduce.body):
                places = (in_loops(nest, i).substitute(values) for i in load.index)
                found.add((load.buffer, tuple(places)))
    return len(found)


def _directives(
    nest: Nest, kernel: Kernel, vector: str, lanes: int, target: Target, packs: dict[str, bool]
) -> Iterator[Directive]:
    name = nest.name
    outer = [o.name for o in nest.loops if o.reduce is None and o.name != vector]
    extent = nest.loop(vector).extent
    states = sum(len(r.combiner.dtypes) for r in nest.reduces)
    live = states + _shared(nest) if len(_leaders(nest)) > 1 else 2 * states
    room = (target.vector_registers - 6) // max(1, live)
    width = min(max(1, room), VECTORS) * lanes
    line = LINE * 8 // target.vector_bits  # vectors
    if _is_long(nest) and states * line <= target.vector_registers - 6:
        width = max(width, line * lanes)  # else a line comes twice, long after one another
    if math.prod(nest.loop(o).extent for o in outer) < 2:
        width = min(width, max(lanes, extent // (2 * lanes) * lanes))  # for two workers
    inner, cut = vector, []
    if not any(nest.loop(o).extent > 1 for o in outer):
        share, wide = _shares(extent, lanes, room)
        rows = _rows(nest, kernel, target, share, PARTS) if share else 0
        if rows:
            yield split(vector, share, nest=name)
            yield split(f"{vector}_in", wide, nest=name)
            cut = [f"{vector}_in_out"]
            yield from _row_by_row(nest, [*outer, f"{vector}_out"], cut, f"{vector}_in_in", rows)
            tasks = {o: nest.loop(o).extent for o in outer} | {f"{vector}_out": extent // share}
            yield from _spread(tasks, name)
            return
    if extent > width:
        yield split(vector, width, "exact" if extent % width == 0 else "peel", nest=name)
        inner, cut = f"{vector}_in", [f"{vector}_out"]
    reduces = [o for o in nest.loops if o.reduce is not None]
    rows = _rows(nest, kernel, target, extent) if cut and outer else 0
    if rows:
        yield from _row_by_row(nest, outer, cut, inner, rows)
        yield from _spread({o: nest.loop(o).extent for o in outer}, name)
        return
    trips = {o: nest.loop(o).extent for o in outer}
    beside, count = _beside(nest, kernel, target, outer)
    if beside:
        yield split(beside, count, nest=name)
        outer = [f"{o}_out" if o == beside else o for o in outer]
        trips = {o: trips.get(o, trips[beside] // count) for o in outer}
        cut = [*cut, f"{beside}_in"]
    wanted = [*outer, *cut, *(o.name for o in reduces), inner]
    if wanted != [o.name for o in nest.loops]:
        yield reorder(*wanted, nest=name)
    for buffer, hoisted in packs.items():
        yield pack(buffer, inner, hoist=hoisted, nest=name)
    yield vectorize(inner, nest=name)
    if not _is_long(nest):
        for loop in reversed(reduces):
            if loop.extent > 1:
                yield unroll(loop.name, nest=name)
    elif reduces[-1].extent % ROWS == 0:
        yield unroll(reduces[-1].name, ROWS, nest=name)
    yield carry(nest=name)
    trips |= {} if beside else dict.fromkeys(cut, -(-extent // width))
    yield from _spread(trips, name, TASKS // 2 if beside else TASKS)


def _row_by_row(
    nest: Nest, outer: list[str], cut: list[str], inner: str, rows: int
) -> Iterator[Directive]:
    """So many rows at a time from end to end, the states in memory in between."""
    reduces, name = [o.name for o in nest.loops if o.reduce is not None], nest.name
    last = reduces[-1]
    yield split(last, rows, nest=name)
    yield reorder(*outer, *reduces[:-1], f"{last}_out", *cut, f"{last}_in", inner, nest=name)
    yield vectorize(inner, nest=name)
    yield unroll(f"{last}_in", nest=name)
    yield carry(nest=name)


def _shares(extent: int, lanes: int, room: int) -> tuple[int, int]:
    """(length of the parts of a row that are tasks, of the tiles of a part), where both fit evenly;
    (0, 0) where not. Parts are pages where at least two are."""
    for vectors in sorted(range(2, max(room, VECTORS) + 1), reverse=True):
        strips, left = divmod(extent, vectors * lanes)
        fits = [n for n in range(2, FEW + 1) if not left and strips % n == 0]
        long = [n for n in fits if extent // n >= PART * lanes]
        if fits:
            return extent // max(long, default=fits[0]), vectors * lanes
    return 0, 0


def _beside(nest: Nest, kernel: Kernel, target: Target, outer: list[str]) -> tuple[str, int]:
    """(an output loop, how many of its rows are made side by side): neighbours share some of what
    they read, and the first cache does not hold it from one to the next. ("", 1) without one, and
    for several reduces, which write more than they share."""
    if len(_leaders(nest)) > 1:
        return "", 1
    ranges = loop_ranges(nest)
    buffers = {o.buffer: kernel.buffer(o.buffer).dtype.bytes for o in loads_of(nest)}
    for place in reversed(range(len(outer) - 1)):
        inner = {n: r for n, r in ranges.items() if n not in outer[: place + 1]}
        boxes = {b: footprint_of_loads(nest, b, inner) or () for b in buffers}
        held = sum(math.prod(s.extent for s in box) * buffers[b] for b, box in boxes.items())
        loop = nest.loop(outer[place])
        shared = any(
            0 < abs(span.base.coefficient(loop.name)) < span.extent
            for box in boxes.values()
            for span in box
        )
        if shared and held > STAYS[0] * target.l1 and not loop.segments:
            fits = (n for n in BESIDE if loop.extent % n == 0 and loop.extent > n)
            if count := next(fits, 0):
                return loop.name, count
    return "", 1


def _spread(trips: Mapping[str, int], name: str, enough: int = TASKS) -> Iterator[Directive]:
    """The outermost loops as tasks, no more of them than are worth it."""
    tasks, spread = 1, []
    for loop, count in trips.items():
        if tasks >= enough:
            break
        spread.append(loop)
        tasks *= count
    if tasks > 1:
        yield parallel(*spread, nest=name)


def _rows(
    nest: Nest, kernel: Kernel, target: Target, length: int, sizes: tuple[int, ...] = BLOCK
) -> int:
    """How many rows, or parts of them so long, a long sum walks through from end to end; 0 where it
    gains nothing by that, or where they do not fit evenly. It gains where they come from beyond the
    second cache, and the states of a row leave half of the first one free."""
    if not _is_long(nest) or len(_leaders(nest)) > 1:
        return 0
    last = [o for o in nest.loops if o.reduce is not None][-1]
    states = sum(d.bytes for r in nest.reduces for d in r.combiner.dtypes)
    read = {o.buffer: kernel.buffer(o.buffer) for r in nest.reduces for o in loads(r.body)}
    far = any(size_in_elements(b) * b.dtype.bytes > target.l2 for b in read.values())
    if not far or states * length > target.l1 // 2:
        return 0
    return next((n for n in sizes if last.extent % n == 0 and last.extent > n), 0)


def _vector_loop(nest: Nest, kernel: Kernel, lanes: int) -> tuple[str, list[str]]:
    """The output loop along which all that is read and stored is contiguous or fixed, the buffers
    that are so in a copy only: those that are small beside what is stored."""
    places = [(o.buffer, o.index) for o in loads_of(nest)]
    places += [(s.buffer, s.index) for s in nest.stores]
    least = min(size_in_elements(kernel.buffer(s.buffer)) for s in nest.stores)
    long = [o for o in nest.loops if o.reduce is None and o.extent >= lanes]
    names = [o.name for o in long]
    along = [strides_of(kernel.buffer(b), index, nest, names) for b, index in places if long]
    for loop in long:
        steps = [each[loop.name] for each in along]
        stored = steps[len(steps) - len(nest.stores) :]
        far = [b for (b, _), s in zip(places, steps, strict=True) if s not in (0, 1)]
        edged = any(
            edge is not None and loop.name in in_loops(nest, i).names()
            for o in loads_of(nest)
            for i, edge in zip(o.index, o.edges, strict=True)
        )
        small = all(SMALL * size_in_elements(kernel.buffer(b)) <= least for b in far)
        if small and all(s == 1 for s in stored) and not edged:
            return loop.name, list(dict.fromkeys(far))
    return "", []


def _packs(nest: Nest, kernel: Kernel, target: Target, wanted: list[str]) -> dict[str, bool] | None:
    """For each buffer to copy whether once for many calls; None where one cannot be copied."""
    if not wanted:
        return {}
    operands = [o for o in facts_of(nest, kernel, target).operands if o.load.buffer in wanted]
    if not all(o.packable for o in operands):
        return None
    return {o.load.buffer: o.hoistable for o in operands}
