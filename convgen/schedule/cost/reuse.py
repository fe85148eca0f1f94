"""What a tile finds in a cache of the operands it reads, and what keeps it from finding it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from convgen.schedule.facts import Facts, Operand
from convgen.schedule.machine import STAYS

LONG = 16  # iterations of a reduce loop that is no window
L1_WAYS = 8  # lines that a set of the first cache holds
LINE, PAGE = 64, 4096  # bytes of a cache line, of a page (and of one way of the first cache)


def fresh_vectors(
    facts: Facts, operand: Operand, vector: str, width: int, tile: Mapping[str, float]
) -> float:
    """How many vectors of the operand each reduce iteration brings, for each that lies along the
    vector loop: those of the tile, without what earlier iterations or the tile before have left in
    the first cache, where windows slide through it."""
    extents = {n: float(e) for n, e in facts.reduces.items()} | dict(tile)
    slid = {n for window in operand.windows for n in window}
    total = math.prod(tile[n] for n in tile if n in operand.strides and n not in slid)
    waiting = tile.keys() & operand.strides.keys() & slid  # rows that a later loop moves
    advanced = total
    for loop in facts.order:
        window = next((w for w in operand.windows if loop in w), None)
        if loop not in operand.strides:
            continue
        if window is None or sum(n in facts.reduces for n in window) > 1:
            total, advanced = total * extents[loop], advanced * extents[loop]
            continue
        steps = {n: step for n, step in window.items() if n in extents}
        unit = width * window[vector] if vector in window else math.gcd(*steps.values())
        span = 1 + sum(step * (extents[n] - 1) for n, step in steps.items()) / unit
        size = math.prod(extents[n] for n in steps)
        points = math.prod(extents[n] for n in steps if n != loop)
        waiting -= window.keys()
        rows = points * math.prod(extents[n] for n in waiting)
        between = total * rows * width * operand.bytes
        brought = min(size, span) if between <= facts.l1 / 2 else size
        ahead = math.prod(extents.get(n, 1) * window[n] for n in window if n in facts.outputs)
        total *= brought
        advanced *= min(brought, max(1.0, 1.0 if vector in window else ahead / unit))
    near = total * width * operand.bytes <= facts.l1 / 2
    return (advanced if near else total) / max(1, math.prod(facts.reduces.values()))


def bytes_of_part(facts: Facts, operand: Operand, part: Mapping[str, int]) -> float:
    """Bytes of the operand that a tile reads in all, its sizes along output loops given; loops that
    part all operands stay where they are while tiles share it."""
    size = float(operand.elements * operand.bytes)
    apart = facts.parting if operand.body else frozenset[str]()
    for name in (part.keys() | apart) & operand.strides.keys():
        taken = part.get(name, 1) + _reach(facts, operand, name)
        size *= min(1.0, taken / facts.outputs[name])
    return size


def _reach(facts: Facts, operand: Operand, output: str) -> float:
    """How much further than an output loop the reduce loops move an operand in its dimension, in
    steps of that loop."""
    total = 0.0
    for window in operand.windows:
        if window.get(output):
            inner = facts.reduces.keys() & window.keys()
            total += sum((facts.reduces[n] - 1) * window[n] for n in inner) / window[output]
    return total


def distinct_rows(operand: Operand, tile: Mapping[str, float]) -> float:
    """The share of a tile's rows that differ, of an operand whose index comes round again."""
    share = 1.0
    for name, period in operand.periods.items():
        if name in tile:
            share *= min(1.0, period / tile[name])
    return share


def share_distinct(operand: Operand, sizes: Mapping[str, float]) -> float:
    """The share of a tile's elements in a copy that differ, where output loops move an operand
    together: so many steps of each lie in a span that is shorter than their product."""
    share = 1.0
    for overlap in operand.overlaps:
        steps = {n: step for n, step in overlap.items() if sizes.get(n, 1) > 1}
        if len(steps) > 1:
            span = 1 + sum(step * (sizes[n] - 1) for n, step in steps.items())
            span /= math.gcd(*steps.values())
            share *= min(1.0, span / math.prod(sizes[n] for n in steps))
    return share


def is_read_once(facts: Facts, operand: Operand) -> bool:
    """True for an operand of which every output has elements of its own, shared by windows alone: a
    tile finds in the first cache what it shares with the tile before at most."""
    windows = {n for window in operand.windows for n in window}
    if any(n in operand.strides and n not in windows for n, e in facts.reduces.items() if e > 1):
        return False
    moving = [n for n, extent in facts.outputs.items() if extent > 1]
    points = math.prod(facts.outputs.values())
    return all(n in operand.strides for n in moving) and points <= 1.25 * operand.elements


def came_along(facts: Facts, operand: Operand, tile: Mapping[str, float]) -> float:
    """How often the iterations of a long reduce loop that slides a tile along find an element
    again: all but the step that the loop takes was there before."""
    times, fastest = 1.0, facts.order[0]
    for window in operand.windows:
        outs = [n for n in window if n in tile]
        if len(outs) == 1 and fastest in window and facts.reduces[fastest] > LONG:
            step = max(1.0, window[fastest] / max(1, window[outs[0]]))
            times *= max(1.0, tile[outs[0]] / step)
    return times


def new_of_line(facts: Facts, operand: Operand, lines: float) -> float:
    """Bytes that each iteration brings of each line that it reads, so many at once: a loop that
    moves along them finds them in the first cache where those read since fit it."""
    between = lines * LINE
    for name in facts.order:
        step = operand.strides.get(name, 0)
        size = LINE if step is None else abs(step) * operand.bytes
        if name == facts.order[0]:
            between *= max(1.0, math.gcd(PAGE, size) / LINE)  # far lines share sets
        if 0 < size < LINE and between <= STAYS[0] * facts.l1:
            return size
        between *= facts.reduces[name] if size else 1
    return LINE


def share_of_sets(facts: Facts, operand: Operand, width: int) -> float:
    """The share of a cache's sets that the runs of a vector operand lie in which the reduce loops
    walk: runs some power of two apart meet in a few. Half of them counts as all: caches are taken
    to be filled in part."""
    run = -(-width * operand.bytes // LINE) * LINE
    moving = [n for n, e in facts.reduces.items() if e > 1 and operand.strides.get(n)]
    steps = [abs(operand.strides[n] or 0) * operand.bytes for n in moving]
    share = run / math.gcd(PAGE, *steps) if steps else 1.0
    rows = math.prod(facts.reduces[n] for n in moving)
    few = rows * run <= L1_WAYS * share * PAGE  # lines, to the sets they meet in
    return 1.0 if few or share >= 0.5 else share


def aliased(facts: Facts, operand: Operand, width: int) -> float:
    """How much more of a cache an operand takes than its size, where a part of a line waits for the
    rest to be wanted."""
    if width * operand.bytes >= LINE:
        return 1.0
    return 1 / share_of_sets(facts, operand, width)


def torn(facts: Facts, operand: Operand, part: Mapping[str, int], vector: str) -> float:
    """How much the lines are that a tile touches for each byte that it wants of them, where the
    rest of a line is not wanted before all of a long reduce is done."""
    run = part[vector] * operand.bytes
    lines = -(-run // LINE) * LINE / run
    step = operand.strides.get(facts.order[0], 0)
    apart = operand.strides.get(vector) == 1 and (step is None or abs(step) * operand.bytes >= LINE)
    if lines == 1.0 or not apart or facts.outputs.get(vector, 1) <= part[vector]:
        return 1.0
    whole = {n: part.get(n, 1) for n in facts.outputs}
    size = bytes_of_part(facts, operand, whole) * aliased(facts, operand, part[vector])
    return lines if lines * size > facts.l1 else 1.0


def distance(stride: int | None, size: int) -> float:
    """What elements some way apart add to the cost of reading them: lines, pages of their own."""
    reach = PAGE if stride is None else abs(stride) * size
    return 0.0 if reach <= size else 0.02 if reach < LINE else 0.05 if reach < PAGE else 0.12


def crowd(stride: int | None, count: float, size: int) -> float:
    """Lines that share a set of the first cache, of `count` elements so far apart."""
    reach = abs(stride or 0) * size
    if reach < LINE:
        return 1.0
    return count / min(count, PAGE // math.gcd(PAGE, reach))


def brought_with(step: int | None, run: float, size: int) -> float:
    """How much comes from far away for what is needed: behind each run a line that is not."""
    bytes_of_run = max(LINE, run * size)
    apart = step is None or abs(step) * size > bytes_of_run
    return 1 + LINE / bytes_of_run if apart else 1.0
