"""How the loops of a register tile nest: their order decides what is kept in registers."""

from __future__ import annotations

import math
from itertools import permutations

from convgen.schedule.facts import Facts
from convgen.schedule.tiles import Candidate, Tile


def nested(facts: Facts, candidate: Candidate) -> Tile:
    """The tile's loops, outermost first, in the order that keeps the fewest values of operands
    beside the states: of what the outermost loop moves those of one iteration, of what it does not
    move all. Equal orders stay as they are."""
    vectors = -(-candidate.width // facts.lanes)

    def kept(order: Tile) -> int:
        total = 0
        for operand in facts.operands:
            if operand.body:
                moving = operand.strides.keys() - operand.picking(candidate.vector)
                moved = order[0][0] in moving
                inner = [s for s in order[moved:] if s[0] in moving]
                along = vectors if candidate.vector in operand.strides else 1
                total += math.prod(max(sizes) for _, sizes in inner) * along
        return total

    if len(candidate.tile) < 2:
        return candidate.tile
    return min(permutations(candidate.tile), key=kept)
