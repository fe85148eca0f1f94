"""Which stages run together: chosen before the loops of each nest are.

Three things move bytes out of the way. Cheap maps are written where they are read (inline);
reductions over one domain, and pieces of one tensor, share one pass (join); stages that pass on a
chunk that fits a cache run chunk by chunk inside their consumer (compute_at). What multiplies and
adds many times over the same elements is left alone: there the arithmetic counts, not the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from convgen.errors import ScheduleError
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import Kernel, Loop, Nest, Op
from convgen.ir.regions import footprint, loop_ranges
from convgen.ir.visit import loads, walk
from convgen.schedule.access import in_loops, loads_of, stride_of, vector_dtype
from convgen.schedule.directives import (
    Directive,
    compute_at,
    fuse,
    inline,
    join,
    parallel,
    partial,
    reorder,
    split,
    vectorize,
)
from convgen.schedule.directives.together import Join, joinable, later_nests
from convgen.schedule.machine import FILLED
from convgen.schedule.recipes.streams import has_tasks, is_light, is_stream, iterations
from convgen.target import Target

CHEAP = 10  # operations of a map that is computed again for a second reader
COSTLY = frozenset("div sqrt exp log tanh sigmoid erf pow uniform".split())
CHUNKS = 8  # chunks that make it worth running stages chunk by chunk
SHORT = 16  # vectors of a chunk below which several are taken together
PARTS = 8  # of a sum that are tasks enough
VECTORS = 8  # vectors of a map that are written out one after another


@dataclass
class Fusion:
    """Directives that move stages together, applied as they are chosen."""

    kernel: Kernel
    target: Target
    directives: list[Directive] = field(default_factory=list)

    def run(self) -> None:
        if len(list(self.kernel.nests())) > 1:
            self.inline_maps()
        self.join_pieces()
        self.join_reduces()
        self.part_sums()
        for name in [n.name for n in reversed(list(self.kernel.nests()))]:
            self.gather_stages(name)

    def attempt(self, directive: Directive) -> bool:
        """Apply a directive where it is legal."""
        try:
            kernel = directive.apply(self.kernel, self.target)
        except ScheduleError:
            return False
        self.kernel = kernel
        self.directives.append(directive)
        return True

    def nest(self, name: str) -> Nest | None:
        return next((n for n in self.kernel.nests() if n.name == name), None)

    # -- inline --------------------------------------------------------------------------------

    def inline_maps(self) -> None:
        for producer in list(self.kernel.nests()):
            written = [s.buffer for s in producer.stores]
            if producer.reduces or len(written) != 1 or not self.is_temporary(written[0]):
                continue
            value = producer.stores[0].value
            if value.dtype != self.kernel.buffer(written[0]).dtype:
                continue
            operations = [e.name for e in walk(value) if isinstance(e, Op)]
            readers = [n for n in self.kernel.nests() if written[0] in _read(n)]
            size = size_in_elements(self.kernel.buffer(written[0]))
            cheap = len(operations) <= CHEAP and not COSTLY & set(operations)
            reads = sum(iterations(n) * _count(n, written[0]) for n in readers)
            if (cheap and reads <= 4 * size) or reads <= size:
                if all(is_light(n, self.kernel) for n in readers):
                    for reader in readers:
                        self.attempt(inline(written[0], nest=reader.name))

    def is_temporary(self, buffer: str) -> bool:
        return self.kernel.buffer(buffer).role == "temporary"

    def is_passed_on(self, buffer: str) -> bool:
        """True for what stages write for others, be it a result of the kernel too."""
        return self.kernel.buffer(buffer).role in ("temporary", "output")

    # -- join ----------------------------------------------------------------------------------

    def join_pieces(self) -> None:
        """Pieces of one tensor in one pass over what they read, where that lies as it is needed."""
        for name in [n.name for n in self.kernel.nests()]:
            nest = self.nest(name)
            if nest is None:
                continue
            written = {s.buffer for s in nest.stores}
            found = [
                n.name
                for n in later_nests(nest, self.kernel)
                if {s.buffer for s in n.stores} == written and {*_read(n)} & {*_read(nest)}
            ]
            together = join(*found, nest=name)
            others = [n for n in self.kernel.nests() if n.name in found]
            if not found or not is_light(nest, self.kernel, *others):
                continue
            try:
                kernel = together.apply(self.kernel, self.target)
            except ScheduleError:
                continue
            joined = next(n for n in kernel.nests() if n.name == name)
            if is_stream(joined, kernel, self.target):
                self.attempt(together)

    def join_reduces(self) -> None:
        done = {d.nest for d in self.directives if isinstance(d, Join)}
        for name in [n.name for n in self.kernel.nests()]:
            nest = None if name in done else self.nest(name)
            if nest is None or not nest.reduces or not is_light(nest, self.kernel):
                continue
            found: list[str] = []
            for other in joinable(nest, self.kernel):
                shared = _read_inside(nest) & _read_inside(other)
                pieces = {s.buffer for s in nest.stores} & {s.buffer for s in other.stores}
                if not shared or pieces or not is_light(other, self.kernel):
                    continue
                try:
                    join(*found, other.name, nest=name).check(self.kernel, self.target)
                except ScheduleError:
                    continue
                found.append(other.name)
            if found or len(nest.reduces) > 1:
                self.attempt(join(*found, nest=name))

    # -- partial -------------------------------------------------------------------------------

    def part_sums(self) -> None:
        """Long sums over far operands that leave few outputs, in parts: the tasks that the outputs
        do not make."""
        for nest in list(self.kernel.nests()):
            loops = [o for o in nest.loops if o.reduce is not None]
            if not loops or not is_stream(nest, self.kernel, self.target):
                continue
            read = [self.kernel.buffer(o.buffer) for r in nest.reduces for o in loads(r.body)]
            large = max((size_in_elements(b) * b.dtype.bytes for b in read), default=0)
            if large <= self.target.l2 or has_tasks(nest, self.kernel, self.target):
                continue
            chosen: list[str] = []
            parts = 1
            for loop in loops[:-1]:
                if parts < PARTS:
                    chosen.append(loop.name)
                    parts *= loop.extent
            if parts > 1:
                self.attempt(partial(*chosen, nest=nest.name))

    # -- compute_at ----------------------------------------------------------------------------

    def gather_stages(self, name: str) -> None:
        """Stages computed inside a map that reads what they store, chunk by chunk."""
        nest = self.nest(name)
        if nest is None or nest.reduces or nest.guards or not is_light(nest, self.kernel):
            return
        written = [s.buffer for n in self.kernel.nests() for s in n.stores]
        wanted = [b for b in _read(nest) if self.is_passed_on(b)]
        for buffer in sorted(wanted, key=written.index, reverse=True):  # the last stage first
            order = self.chunk_loops(nest, buffer)
            if order is not None and self.gather_at(nest, buffer, *order):
                return

    def chunk_loops(self, nest: Nest, buffer: str) -> tuple[list[str], list[str]] | None:
        """(loops of the chunks, loops in a chunk), None where no chunk is worth it."""
        moving: set[str] = set()
        for load in loads_of(nest):
            if load.buffer == buffer:
                moving |= {n for i in load.index for n in in_loops(nest, i).names()}
        last = [o.name for o in nest.loops if self.is_contiguous(nest, o.name)]
        outer = [o.name for o in nest.loops if o.name in moving and o.name not in last]
        inner = [o.name for o in nest.loops if o.name not in outer]
        chunks = math.prod(nest.loop(n).extent for n in outer)
        if not outer or not inner or chunks < CHUNKS:
            return None
        bytes_ = sum(self.chunk_bytes(nest, inner))
        return (outer, inner) if bytes_ <= FILLED * self.target.l2 else None

    def is_contiguous(self, nest: Nest, loop: str) -> bool:
        store = nest.stores[0]
        return stride_of(self.kernel.buffer(store.buffer), store.index, nest, loop) == 1

    def chunk_bytes(self, nest: Nest, inner: list[str]) -> Iterator[int]:
        moving = {n: r for n, r in loop_ranges(nest).items() if n in inner}
        places = {(o.buffer, o.index) for o in loads_of(nest)}
        places |= {(s.buffer, s.index) for s in nest.stores}
        for buffer, index in places:
            box = footprint([in_loops(nest, i) for i in index], moving)
            yield math.prod(s.extent for s in box) * self.kernel.buffer(buffer).dtype.bytes

    def gather_at(self, nest: Nest, buffer: str, outer: list[str], inner: list[str]) -> bool:
        before = (self.kernel, list(self.directives))
        name = nest.name
        if [*outer, *inner] != [o.name for o in nest.loops]:
            self.attempt(reorder(*outer, *inner, nest=name))
        outer = self.several(name, outer, math.prod(nest.loop(n).extent for n in inner))
        at = outer[0]
        for following in outer[1:]:
            self.attempt(fuse(at, following, nest=name))
            at = f"{at}_{following}"
        count = 0
        pending = [buffer]
        while pending:
            first = pending.pop(0)
            if self.is_exact(name, first, at) and self.attempt(compute_at(first, at, nest=name)):
                count += 1
                here = self.nest(name)
                assert here is not None
                inside = [here, *(a.nest for a in here.attached)]
                read = dict.fromkeys(b for one in inside for b in _read(one))
                pending = [b for b in read if self.is_passed_on(b)]
        if not count:
            self.kernel, self.directives = before
        return bool(count)

    def several(self, name: str, outer: list[str], points: int) -> list[str]:
        """Short chunks taken a few at a time, so that their chains of operations overlap."""
        nest = self.nest(name)
        assert nest is not None
        lanes = max(1, self.target.lanes(vector_dtype(nest, self.kernel)))
        last = nest.loop(outer[-1])
        fits = [s for s in (4, 3, 2) if last.extent % s == 0 and last.extent > s]
        if points <= SHORT * lanes and fits:
            if self.attempt(split(last.name, fits[0], nest=name)):
                return [*outer[:-1], f"{last.name}_out"]
        return outer

    def is_exact(self, name: str, buffer: str, at: str) -> bool:
        """True where the chunks of a stage do not overlap and it is bound by bytes too."""
        trial = compute_at(buffer, at, nest=name)
        try:
            kernel = trial.apply(self.kernel, self.target)
        except ScheduleError:
            return False
        writers = [n for n in self.kernel.nests() if any(s.buffer == buffer for s in n.stores)]
        consumer = next(n for n in kernel.nests() if n.name == name)
        chunks = consumer.loop(at).extent
        tile = size_in_elements(kernel.buffer(f"{buffer}_tile"))
        whole = chunks * tile <= size_in_elements(self.kernel.buffer(buffer))
        return whole and all(is_light(n, self.kernel) for n in writers)


def finish_consumer(nest: Nest, kernel: Kernel, target: Target) -> Iterator[Directive]:
    """What is left for a map with stages inside: a vector loop in the chunk, parallel chunks."""
    at = nest.attached[0].at
    names = [o.name for o in nest.loops]
    inner = nest.loops[names.index(at) + 1 :]
    lanes = max(1, target.lanes(vector_dtype(nest, kernel)))
    store = nest.stores[0]

    def rank(loop: Loop) -> tuple[bool, int]:
        step = stride_of(kernel.buffer(store.buffer), store.index, nest, loop.name)
        return (step == 1, loop.extent)

    best = max((o for o in inner if o.extent > 1), key=rank, default=None)
    if best is not None:
        vector = best.name
        if best.extent > VECTORS * lanes:
            tail = "exact" if best.extent % (4 * lanes) == 0 else "peel"
            yield split(vector, 4 * lanes, tail, nest=nest.name)
            vector = f"{vector}_in"
        rest = [o.name for o in inner if o.name != best.name]
        if rest and best is not inner[-1]:
            cut = [f"{best.name}_out"] if vector != best.name else []
            yield reorder(*rest, *cut, vector, nest=nest.name)
        plain = vectorize(vector, nest=nest.name)
        strided = vectorize(vector, strided=True, nest=nest.name)
        yield plain if all(_steps_evenly(nest, kernel, best.name)) else strided
    if nest.loop(at).extent > 1:
        yield parallel(*names[: names.index(at) + 1], nest=nest.name)


def _steps_evenly(nest: Nest, kernel: Kernel, loop: str) -> Iterator[bool]:
    places = [(o.buffer, o.index) for o in loads_of(nest)]
    places += [(s.buffer, s.index) for s in nest.stores]
    for buffer, index in places:
        yield stride_of(kernel.buffer(buffer), index, nest, loop) in (0, 1)


def _read(nest: Nest) -> list[str]:
    return list(dict.fromkeys(o.buffer for o in loads_of(nest)))


def _read_inside(nest: Nest) -> set[str]:
    return {o.buffer for r in nest.reduces for o in loads(r.body)}


def _count(nest: Nest, buffer: str) -> int:
    return sum(o.buffer == buffer for o in loads_of(nest))
