"""What a tile finds in a cache of the operand it reads vector by vector."""

from __future__ import annotations

import math
from collections.abc import Mapping

from convgen.schedule.facts import Facts, Operand


def rows_brought(facts: Facts, operand: Operand, tile: Mapping[str, float], vectors: int) -> float:
    """Rows of vectors that each reduce iteration brings of the operand: those of the tile, without
    what earlier iterations left in the first cache where a window slides through it."""
    rows = 1.0
    along = tile.keys() & operand.strides.keys()
    row = math.prod(tile[n] for n in along) * vectors * facts.lanes * operand.bytes
    for name in along:
        slid = {n for window in operand.windows if name in window for n in window}
        between = 1  # iterations until the window comes by again
        for loop in facts.order:
            if loop in slid:
                break
            between *= facts.reduces[loop] if loop in operand.strides else 1
        if not slid & facts.reduces.keys() or between * row > facts.l1 / 2:
            rows *= tile[name]
    return rows


def bytes_of_part(facts: Facts, operand: Operand, part: Mapping[str, int]) -> float:
    """Bytes of the operand that a tile reads in all, its sizes along output loops given."""
    size = float(operand.elements * operand.bytes)
    for name in part.keys() & operand.strides.keys():
        size *= min(1.0, (part[name] + _reach(facts, operand, name)) / facts.outputs[name])
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
