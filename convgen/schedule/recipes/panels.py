"""Products whose large operand comes from memory, panel by panel.

Its rows lie pages apart. Tile after tile along all rows would take a line of each, from a page that
has left the table of pages meanwhile, and nothing fetches it ahead. A panel is some rows, a page of
each: its lines come one after another, and the states of the tiles along it wait in the second
cache from panel to panel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from convgen.ir.nodes import Nest
from convgen.schedule.access import trips
from convgen.schedule.cost.reuse import PAGE
from convgen.schedule.directives import Directive, split
from convgen.schedule.facts import Facts
from convgen.schedule.machine import STAYS, level_of
from convgen.schedule.tiles import Candidate

ROWS = 16  # of a panel
POINTS = 64  # beside the vector loop; for more of them the panel is used often, however it comes


@dataclass(frozen=True, slots=True)
class Panels:
    """The loop that is summed over, in parts of so many rows; steps of the vector loop that a panel
    takes, whole tiles."""

    summed: str
    rows: int
    strip: int


def panels_of(facts: Facts, candidate: Candidate) -> Panels | None:
    """How a candidate would walk a large operand in panels; None where it has none."""
    body = [o for o in facts.operands if o.body]
    names = [n for n, extent in facts.reduces.items() if extent > 1]
    vector = candidate.vector
    along = [o for o in body if vector in o.strides]
    if len(body) != 2 or len(names) != 1 or len(along) != 1 or candidate.block:
        return None
    [summed], [large] = names, along
    plain = not any(o.edged or o.omits or o.load.buffer in candidate.packs for o in body)
    stored = all(strides.get(vector) == 1 for strides in facts.store_strides)
    far = (large.strides.get(summed) or 0) * large.bytes >= PAGE
    if not (plain and stored and far and large.strides[vector] == 1):
        return None
    others = {n: e for n, e in facts.outputs.items() if n != vector and e > 1}
    if others.keys() & large.strides.keys() or math.prod(others.values()) > POINTS:
        return None
    size = large.elements * large.bytes
    strip = PAGE // large.bytes // candidate.width * candidate.width
    short = facts.outputs[vector] < 4 * strip or facts.reduces[summed] < 4 * ROWS
    if short or not strip or level_of(size, facts.caches, STAYS) != "memory":
        return None
    return Panels(summed, ROWS, strip)


def cuts_of(facts: Facts, candidate: Candidate, panels: Panels) -> Iterator[Directive]:
    """The strips, the vectors in them, the rows of a panel."""
    name, summed = candidate.vector, panels.summed
    even = facts.outputs[name] % panels.strip == 0
    yield split(name, panels.strip, "exact" if even else "guard")
    if candidate.width < panels.strip:
        yield split(f"{name}_in", candidate.width)
    even = facts.reduces[summed] % panels.rows == 0
    yield split(summed, panels.rows, "exact" if even else "peel")


def order_of(nest: Nest, candidate: Candidate, panels: Panels, tile: Sequence[str]) -> list[str]:
    """All loops: the strips, panel after panel, vector after vector along it, tile after tile, the
    rows of the panel, the tile."""
    name, summed = candidate.vector, panels.summed
    last = f"{name}_in_in" if candidate.width < panels.strip else f"{name}_in"
    known = [f"{name}_out", f"{summed}_out", f"{name}_in_out", f"{summed}_in", *tile, last]
    outputs = [o for o in nest.loops if o.reduce is None and o.name not in known]
    near = [o.name for o in outputs if trips(o) > 1]
    far = [o.name for o in nest.loops if o.name not in {*known, *near}]
    names = {o.name for o in nest.loops}
    return [n for n in (*far, *known[:3], *near, *known[3:]) if n in names]
