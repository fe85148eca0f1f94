"""What becomes of each loop of a nest: outer loop, position of the tile, loop inside a reduce."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from convgen.ir.nodes import Buffer, Loop, LoopKind, Nest, ReduceNode
from convgen.ir.visit import loads, walk
from convgen.passes.flatten.positions import Tile, width_of
from convgen.target import Target
from convgen.types import DType, f32

MOST_STATEMENTS = 2000  # in straight-line code of one tile
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Stage:
    """One reduce: `serial` loops in order, `tile` the expanded ones (the output's and factored
    reduce loops), `factored` those of the tile that are reduce loops, `chunked` the serial reduce
    loops with states of their own. `in_memory`: loops move from one state to another. `inside`:
    the last of the serial loops, during which the states of one tile are held in registers."""

    serial: tuple[Loop, ...]
    tile: Tile
    factored: tuple[Loop, ...]
    chunked: tuple[Loop, ...]
    in_memory: bool
    inside: tuple[Loop, ...]

    @property
    def around(self) -> tuple[Loop, ...]:
        """The serial loops before those inside."""
        return self.serial[: len(self.serial) - len(self.inside)]


@dataclass(frozen=True, slots=True)
class Plan:
    """`outer` loops run around everything; `serial` and `tile` are the output loops inside that
    run and that are expanded; `may_double`: there is room for an interior version of the tile."""

    nest: Nest
    outer: tuple[Loop, ...]
    serial: tuple[Loop, ...]
    tile: Tile
    stages: tuple[Stage, ...]
    may_double: bool


def expands(loop: Loop) -> bool:
    return loop.kind in (LoopKind.UNROLL, LoopKind.VECTOR)


def plan_of(nest: Nest, target: Target, buffers: Mapping[str, Buffer], note: Note) -> Plan:
    """Sort the loops of a nest; loops that would make too much code run instead (noted)."""
    nest = _serial_covers(_serial_where_attached(nest, note))
    lanes = target.lanes(vector_dtype(nest, buffers))
    nest = _within_budget(nest, lanes, note)
    first = first_reduce_loop(nest)
    outer = tuple(one for one in nest.loops[:first] if not expands(one))
    inner = [one for one in nest.loops if one not in outer and one.reduce is None]
    vectors = [one.name for one in nest.loops if one.kind is LoopKind.VECTOR and not one.segments]
    chosen = [v for v in vectors if nest.loop(v).reduce is None][-1:]
    vector = chosen[0] if chosen else ""
    expanded = tuple(one for one in inner if is_in_tile(nest, one))
    serial = tuple(one for one in inner if one not in expanded)
    tile = Tile(expanded, vector, lanes)
    stages = tuple(
        _stage(nest, i, node, first, tile, serial, target) for i, node in enumerate(nest.reduces)
    )
    room = 2 * statements(nest, lanes) <= MOST_STATEMENTS
    return Plan(nest, outer, serial, tile, stages, room)


def _stage(
    nest: Nest,
    number: int,
    node: ReduceNode,
    first: int,
    tile: Tile,
    output: tuple[Loop, ...],
    target: Target,
) -> Stage:
    number = nest.leader(number)
    own = [one for one in nest.loops if one.reduce == number]
    factored = tuple(one for one in own if one.name in node.factored and expands(one))
    chunked = tuple(one for one in own if one.name in node.factored and not expands(one))
    serial = tuple(
        one
        for one in nest.loops[first:]
        if one in output or (one.reduce == number and one not in factored)
    )
    vector = tile.vector
    if not vector:
        vector = next((one.name for one in reversed(factored) if one.kind is LoopKind.VECTOR), "")
    whole = Tile((*tile.loops, *factored), vector, tile.lanes)
    crowded = not node.carried and positions_of(whole) > 2 * target.vector_registers
    nested = any(not expands(one) for one in own)
    in_memory = bool(output or chunked) or (crowded and nested)
    moving = [i for i, one in enumerate(serial) if one in output or one in chunked]
    inside = serial[max(moving, default=-1) + 1 :] if node.carried else ()
    return Stage(serial, whole, factored, chunked, in_memory, inside)


def is_in_tile(nest: Nest, loop: Loop) -> bool:
    """True for an output loop behind the first reduce loop that becomes straight-line code: one
    of a single iteration too where states are held in registers."""
    return expands(loop) or (iterations(loop) == 1 and any(r.carried for r in nest.reduces))


def first_reduce_loop(nest: Nest) -> int:
    """The place of the first reduce loop; the number of loops when there is none."""
    return next((i for i, one in enumerate(nest.loops) if one.reduce is not None), len(nest.loops))


def vector_dtype(nest: Nest, buffers: Mapping[str, Buffer]) -> DType:
    """The type whose vectors fill registers: the widest float the nest touches, else the widest."""
    found = [buffers[one.buffer].dtype for one in loads(nest)]
    found += [buffers[s.buffer].dtype for s in nest.stores]
    found += [d for r in nest.reduces for d in r.combiner.dtypes if d.is_float]
    floats = [d for d in found if d.is_float]
    return max(floats or found, key=lambda d: d.bits, default=f32)


# ---------------------------------------------------------------------------------------------
# Code size


def positions_of(tile: Tile) -> int:
    """Vectors and scalars in a tile."""
    total = 1
    for loop in tile.loops:
        if loop.name == tile.vector:
            total *= -(-loop.extent // width_of(loop.extent, tile.lanes))
        else:
            total *= iterations(loop)
    return total


def iterations(loop: Loop) -> int:
    """Iterations of a loop in all its segments."""
    return sum(s.count for s in loop.segments) if loop.segments else loop.extent


def statements(nest: Nest, lanes: int) -> int:
    """About how many statements the straight-line code of a tile has."""
    first = first_reduce_loop(nest)
    expanded = tuple(
        one
        for i, one in enumerate(nest.loops)
        if one.reduce is None and (expands(one) or (i > first and is_in_tile(nest, one)))
    )
    vector = next((one.name for one in reversed(nest.loops) if one.kind is LoopKind.VECTOR), "")
    tile = positions_of(Tile(expanded, vector, lanes))
    total = tile * sum(sum(1 for _ in walk(s.value)) for s in nest.stores)
    for number, node in enumerate(nest.reduces):
        copies = tile
        for loop in nest.loops:
            if loop.reduce == nest.leader(number):
                part = Tile((loop,), vector, lanes)
                copies *= positions_of(part) if expands(loop) else loop.steps
        size = sum(1 for _ in walk(node.body)) + 2 * len(node.combiner.dtypes)
        total += copies * size
    return total


def _serial_where_attached(nest: Nest, note: Note) -> Nest:
    """Loops that producers are attached to run, whatever they are marked."""
    for producer in nest.attached:
        loop = nest.loop(producer.at)
        if expands(loop) and loop.reduce is None:
            note(f"{nest.name}: {loop.name} is not unrolled, {producer.buffer} is computed in it")
            nest = _changed(nest, replace(loop, kind=LoopKind.SERIAL))
    return nest


def true_extents(nest: Nest) -> Nest:
    """The inner loop of a cover has the size of the largest segment."""
    for cover in nest.loops:
        if cover.segments:
            size = max((s.size for s in cover.segments if s.count), default=0)
            nest = _changed(nest, replace(nest.loop(cover.inner), extent=size))
    return nest


def _serial_covers(nest: Nest) -> Nest:
    """The outer loop of a cover whose inner loop runs runs too, segment after segment."""
    for cover in nest.loops:
        if cover.segments and expands(cover) and not expands(nest.loop(cover.inner)):
            nest = replace(
                nest,
                loops=tuple(
                    replace(one, kind=LoopKind.SERIAL) if one is cover else one
                    for one in nest.loops
                ),
            )
    return nest


def _within_budget(nest: Nest, lanes: int, note: Note) -> Nest:
    """Expanded loops become loops, outermost reduce loops first, until the code is small enough."""
    while statements(nest, lanes) > MOST_STATEMENTS:
        loop = _least_missed(nest)
        if loop is None:
            return nest
        note(
            f"{nest.name}: {loop.name} runs as a loop; unrolled the tile would have about "
            f"{statements(nest, lanes)} statements, more than {MOST_STATEMENTS}"
        )
        nest = _serial_covers(_changed(nest, replace(loop, kind=LoopKind.SERIAL, steps=1)))
    return nest


def _least_missed(nest: Nest) -> Loop | None:
    """The loop to run instead of expanding it."""
    stepped = [one for one in nest.loops if one.steps > 1]
    reduces = [
        one for one in nest.loops if one.reduce is not None and expands(one) and iterations(one) > 1
    ]
    outputs = [
        one
        for one in nest.loops
        if one.reduce is None and one.kind is LoopKind.UNROLL and iterations(one) > 1
    ]
    outputs.sort(key=lambda one: -iterations(one))
    vectors = [one for one in nest.loops if one.kind is LoopKind.VECTOR and iterations(one) > 1]
    return next(iter((*stepped, *reduces, *outputs, *vectors)), None)


def _changed(nest: Nest, loop: Loop) -> Nest:
    """The nest with another loop of the same name; carried reduces that hold it no longer are."""
    loops = tuple(loop if one.name == loop.name else one for one in nest.loops)
    first = first_reduce_loop(nest)
    place = next(i for i, one in enumerate(loops) if one.name == loop.name)
    reduces = nest.reduces
    if loop.reduce is None and place > first and not expands(loop):
        reduces = tuple(replace(r, carried=False) for r in reduces)
    return replace(nest, loops=loops, reduces=reduces)
