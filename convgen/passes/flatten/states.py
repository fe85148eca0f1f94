"""Where the states of a reduce are kept: in registers, or in scratch memory of the worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from convgen.affine import Affine
from convgen.ir.layout import flat_offset
from convgen.ir.nodes import (
    Buffer,
    Combiner,
    Const,
    Expr,
    Layout,
    Loop,
    Register,
    Store,
    VectorLoad,
)
from convgen.ir.simplify import simplify_affine
from convgen.passes.flatten.emitter import widen
from convgen.passes.flatten.loops import Loops, parts_of
from convgen.passes.flatten.positions import Tile, positions, width_of
from convgen.passes.flatten.scope import Scope
from convgen.passes.flatten.values import lane_ranges


class States(Protocol):
    """The states of one reduce, one tuple of components for each position of the tile."""

    def start(self, scope: Scope) -> None:
        """Set every state to the identity."""
        ...

    def read(self, scope: Scope) -> list[Expr]:
        """The state at a position, as atoms."""
        ...

    def write(self, scope: Scope, state: Sequence[Expr]) -> None:
        """Replace the state at a position."""
        ...


class RegisterStates:
    """States in registers: every loop of the tile is expanded."""

    def __init__(self, loops: Loops, combiner: Combiner, tile: Tile) -> None:
        self.emitter = loops.emitter
        self.combiner = combiner
        self.tile = tile
        self.registers: dict[tuple[Affine, ...], list[Register]] = {}

    def _key(self, scope: Scope) -> tuple[Affine, ...]:
        names = [(one.base,) if one.segments else () for one in self.tile.loops]
        every = [n for one, b in zip(self.tile.loops, names, strict=True) for n in (one.name, *b)]
        return tuple(scope.values[n] for n in every)

    def start(self, scope: Scope) -> None:
        self.registers = {}
        for position in positions(self.tile, scope):
            made: list[Register] = []
            for dtype, identity in zip(self.combiner.dtypes, self.combiner.identity, strict=True):
                name = self.emitter.register("state")
                made.append(Register(name, dtype, position.lanes))
                self.emitter.set(made[-1], Const(identity.value, dtype, position.lanes))
            self.registers[self._key(position)] = made

    def read(self, scope: Scope) -> list[Expr]:
        return list(self.registers[self._key(scope)])

    def write(self, scope: Scope, state: Sequence[Expr]) -> None:
        self.emitter.assign(self.registers[self._key(scope)], state)


@dataclass(frozen=True, slots=True)
class _Side:
    """One dimension of the states in memory: a coordinate over loop variables, its extent."""

    coordinate: Affine
    extent: int


class MemoryStates:
    """States in scratch memory: loops of the tile that are not expanded run around the position."""

    def __init__(
        self, loops: Loops, combiner: Combiner, tile: Tile, serial: Sequence[Loop], stem: str
    ) -> None:
        self.loops = loops
        self.emitter = loops.emitter
        self.combiner = combiner
        self.tile = tile
        self.serial = tuple(serial)
        self.sides = self._sides()
        shape = tuple(s.extent for s in self.sides)
        self.buffers = [
            Buffer(f"{stem}_{i}", dtype, shape, Layout.rowmajor(len(shape)), "scratch")
            for i, dtype in enumerate(combiner.dtypes)
        ]

    def _sides(self) -> list[_Side]:
        found: list[_Side] = []
        last: list[_Side] = []
        every = (*self.serial, *self.tile.loops)
        covered = {one.inner for one in every if one.segments}
        for loop in every:
            if loop.segments:
                parts = parts_of(loop, Scope())
                low = min((s.start for s in parts), default=0)
                high = max((s.start + s.size * s.count for s in parts), default=0)
                point = Affine.of(loop.base) + Affine.of(loop.inner) - low
                found.append(_Side(point, high - low))
            elif loop.name == self.tile.vector:
                width = width_of(loop.extent, self.tile.lanes)
                last = [_Side(Affine.of(loop.name), -(-loop.extent // width) * width)]
            elif loop.name not in covered:
                found.append(_Side(Affine.of(loop.name), loop.extent))
        return found + last

    def _offset(self, scope: Scope) -> Expr:
        ranges = lane_ranges(scope)
        values = self.loops.values
        # Coordinates are over loops: an axis of the same name may count from elsewhere.
        index = [simplify_affine(s.coordinate.substitute(scope.values), ranges) for s in self.sides]
        where = flat_offset(self.buffers[0], index, ranges)
        return values.integer(where.substitute({"$lane": 0}), replace(scope, lanes=1))

    def start(self, scope: Scope) -> None:
        def leaf(inside: Scope) -> None:
            for position in positions(self.tile, inside):
                self.write(position, list(self.combiner.identity))

        self.loops.each(self.serial, scope, leaf)

    def read(self, scope: Scope) -> list[Expr]:
        where, lanes = self._offset(scope), scope.lanes
        found: list[Expr] = []
        for buffer in self.buffers:
            register = Register(self.emitter.register("state"), buffer.dtype, lanes)
            stride = 1 if lanes > 1 else 0
            load = VectorLoad(buffer.name, where, stride, buffer.dtype, lanes, lanes)
            self.emitter.set(register, load)
            found.append(register)
        return found

    def write(self, scope: Scope, state: Sequence[Expr]) -> None:
        where, lanes = self._offset(scope), scope.lanes
        for buffer, value in zip(self.buffers, state, strict=True):
            wide = widen(value, lanes)
            stride = 1 if lanes > 1 else 0
            self.emitter.add(Store(buffer.name, where, stride, wide, lanes))


class BlockStates:
    """States in memory of which those of one tile are held in registers during a block: the reduce
    loops inside the loops that move from tile to tile."""

    def __init__(self, memory: MemoryStates, registers: RegisterStates) -> None:
        self.memory = memory
        self.registers = registers
        self.held = False

    def start(self, scope: Scope) -> None:
        self.memory.start(scope)

    @contextmanager
    def block(self, scope: Scope) -> Iterator[None]:
        """Load the states of the tile, store them at the end."""
        tile = self.registers.tile
        self.registers.start(scope)
        for position in positions(tile, scope):
            self.registers.write(position, self.memory.read(position))
        self.held = True
        yield
        self.held = False
        for position in positions(tile, scope):
            self.memory.write(position, self.registers.read(position))

    def read(self, scope: Scope) -> list[Expr]:
        return (self.registers if self.held else self.memory).read(scope)

    def write(self, scope: Scope, state: Sequence[Expr]) -> None:
        (self.registers if self.held else self.memory).write(scope, state)
