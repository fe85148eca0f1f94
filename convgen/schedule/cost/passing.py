"""What a worker reads that another one has written: copies that are made in other shares than they
are read in.

The outermost loops are shared out in order, of a nest and of the one that makes a copy for it.
Where the nest's outermost loop moves what lies outermost in the copy, each worker finds its part in
its own cache; else it fetches most of it, line by line, from the caches of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from convgen.ir.nodes import Buffer, Kernel, Nest
from convgen.ir.regions import loop_ranges
from convgen.schedule.access import in_loops, trips
from convgen.schedule.cost.copies import AHEAD, Copy
from convgen.schedule.directives.pack import block_size


def bytes_passed(nest: Nest, kernel: Kernel, copies: Sequence[Copy]) -> Callable[[str], float]:
    """The bytes of copies that pass from one worker to another, by the nest's outermost loop. Calls
    that find a copy made before count as none."""
    counts = {loop.name: loop.extent for loop in nest.loops}
    for loop in nest.loops:
        if loop.segments:
            counts |= {loop.name: trips(loop), loop.base: trips(loop)}
    sizes = [_bytes(nest, kernel.buffer(c.operand.load.buffer), c, counts) for c in copies]

    def passed(first: str) -> float:
        total = 0.0
        for copy, size in zip(copies, sizes, strict=True):
            shared = _leads(nest, kernel.buffer(copy.operand.load.buffer), copy, first)
            half = counts[first] % 2 / counts[first]  # two workers share the one in the middle
            total += size * (half if shared else 1)
        return total

    return passed


def _bytes(nest: Nest, source: Buffer, copy: Copy, counts: Mapping[str, int]) -> float:
    """What the nest reads of a copy, or its part where several read all of it."""
    read = 1
    for size, index in zip(source.shape, copy.operand.load.index, strict=True):
        read *= min(size, math.prod(counts.get(n, 1) for n in in_loops(nest, index).names()))
    share = AHEAD if copy.operand.hoistable else 1.0
    return share * min(read, copy.operand.elements / copy.operand.readers) * source.dtype.bytes


def _leads(nest: Nest, source: Buffer, copy: Copy, first: str) -> bool:
    """True where a loop moves the dimension that lies outermost in a copy, or its blocks, further
    than all others do."""
    load, ranges = copy.operand.load, loop_ranges(nest)
    lead = next((d for d in source.layout.order if source.shape[d] > 1), 0)
    for dim, index in enumerate(load.index):
        place = in_loops(nest, index)
        inner = [name for name in copy.loops if name in place.names()]
        if (copy.loops and inner and not block_size(nest, index, inner[0])) or (
            not copy.loops and dim != lead
        ):
            continue
        spans = {n: abs(place.coefficient(n)) * (ranges[n][1] - ranges[n][0] - 1) for n in ranges}
        own = sum(spans.pop(n, 0) for n in {first, nest.loop(first).base})
        if {first} & place.hidden_names() or own > sum(spans.values()):
            return True
    return False
