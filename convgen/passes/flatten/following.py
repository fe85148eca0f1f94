"""The points of a tile and its unrolled reduce loops in the order of what one operand reads.

The points that read one element follow one another, so that a window that slides over an operand
holds one vector of it at a time, and the other operand in registers throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from convgen.affine import Affine
from convgen.ir.nodes import Load, Loop, ReduceNode
from convgen.ir.visit import loads
from convgen.passes.flatten.positions import Tile, positions
from convgen.passes.flatten.scope import Scope
from convgen.passes.flatten.shape import expands
from convgen.passes.flatten.values import Values


def straight_part(
    serial: Sequence[Loop], node: ReduceNode, axes: Mapping[str, Affine]
) -> tuple[Loop, ...]:
    """The innermost unrolled reduce loops of a reduce that follows an operand, as long as each
    moves a dimension of that operand of its own: others would meet their elements in another
    order."""
    found: list[Loop] = []
    taken: set[int] = set()
    load = next((one for one in loads(node.body) if one.buffer == node.follows), None)
    places = [index.substitute(axes) for index in load.index] if load else []
    for loop in reversed(serial if load else ()):
        own = {dim for dim, place in enumerate(places) if loop.name in place.names()}
        hidden = any(loop.name in place.hidden_names() for place in places)
        if loop.reduce is None or not expands(loop) or len(own) > 1 or own & taken or hidden:
            break
        taken |= own
        found.insert(0, loop)
    return tuple(found)


def in_order(
    node: ReduceNode, straight: Sequence[Loop], tile: Tile, scope: Scope, values: Values
) -> list[Scope]:
    """All positions, those of one state in the order in which its loops run: the index of the
    operand in the dimension of each loop rises or falls as that loop runs."""
    load = next(one for one in loads(node.body) if one.buffer == node.follows)
    ways = [_way(loop, load, values) for loop in straight]

    def place(position: Scope) -> tuple[int, ...]:
        indices = (values.resolve(index, position) * sign for index, sign in ways)
        return tuple(i.constant for i in indices)

    whole = Tile((*straight, *tile.loops), tile.vector, tile.lanes)
    return sorted(positions(whole, scope), key=place)


def _way(loop: Loop, load: Load, values: Values) -> tuple[Affine, int]:
    """What a loop moves, the operand's index or itself, and whether up (1) or down (-1)."""
    for index in load.index:
        step = index.substitute(values.axes).coefficient(loop.name)
        if step:
            return index, 1 if step > 0 else -1
    return Affine.of(loop.name), 1
