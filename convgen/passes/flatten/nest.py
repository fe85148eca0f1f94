"""A nest as statements: outer loops, then each reduce over the tile, then the stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from convgen.affine import Affine, Constraint
from convgen.errors import InternalError
from convgen.ir.layout import flat_offset
from convgen.ir.nodes import (
    Attached,
    Buffer,
    Expr,
    Lanes,
    Loop,
    Nest,
    Reduced,
    ReduceNode,
    Store,
    StoreNode,
)
from convgen.ir.simplify import simplify_affine
from convgen.ir.sums import adds_up
from convgen.ir.visit import walk as walk_nodes
from convgen.passes.flatten.edges import FOLDING, Elements, edge_limits, zero_limits
from convgen.passes.flatten.emitter import Emitter
from convgen.passes.flatten.extremes import is_choice, watched
from convgen.passes.flatten.following import straight_part
from convgen.passes.flatten.loops import Loops, Walk, expands
from convgen.passes.flatten.reduce import Reducing, sorted_out
from convgen.passes.flatten.scope import LANE, Scope
from convgen.passes.flatten.shape import Plan, Stage, first_reduce_loop, plan_of, true_extents
from convgen.passes.flatten.states import BlockStates, MemoryStates, RegisterStates
from convgen.passes.flatten.values import Place, lane_ranges
from convgen.target import Target


@dataclass
class Room:
    """What the nests of a kernel share: the emitter of the phase, buffers, notes."""

    target: Target
    buffers: dict[str, Buffer]
    emitter: Emitter = field(default_factory=Emitter)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def add_buffer(self, buffer: Buffer) -> None:
        self.buffers[buffer.name] = buffer

    def fresh(self, stem: str) -> str:
        """A buffer name that is not taken: all names that begin with it are free."""
        number = 0
        while any(b.startswith(f"{stem}{number}_") for b in self.buffers):
            number += 1
        return f"{stem}{number}"


class NestWriter:
    """Writes one nest into the room's emitter."""

    def __init__(self, nest: Nest, room: Room, decoded: Mapping[str, Affine]) -> None:
        self.room = room
        nest = true_extents(nest)
        self.plan: Plan = plan_of(nest, room.target, room.buffers, room.note)
        self.nest = self.plan.nest
        self.emitter = room.emitter
        self.values = Elements(room.emitter, room.buffers, dict(nest.axes))
        self.loops = Loops(self.values, self.nest, decoded)
        self.reducing = [self._reducing(i, r) for i, r in enumerate(self.nest.reduces)]
        self.limits = self._limits()

    # -- conditions ----------------------------------------------------------------------------

    def _guards(self, node: ReduceNode) -> tuple[Constraint, ...]:
        """Under what an element of the reduce exists."""
        omitted = edge_limits(node.body, self.room.buffers, ("omit",))
        return tuple(dict.fromkeys((*self.nest.guards, *node.guards, *omitted)))

    def _reduce_limits(self, node: ReduceNode) -> tuple[Constraint, ...]:
        kinds = ("zero", "constant", *FOLDING)
        edges = edge_limits(node.body, self.room.buffers, kinds)
        skipped = self._skips(node)
        return _bounds((*self._guards(node), *(e for e in edges if e not in skipped)))

    def _is_sum(self, node: ReduceNode) -> bool:
        """True for a sum that no other reduce runs beside: zeros can be left out."""
        number = next(i for i, r in enumerate(self.nest.reduces) if r is node)
        together = [self.nest.leader(i) for i in range(len(self.nest.reduces))]
        return adds_up(node.combiner) and together.count(self.nest.leader(number)) == 1

    def _halos(self, node: ReduceNode) -> tuple[Constraint, ...]:
        """Where an element of a sum is a product with a halo of zeros."""
        if not self._is_sum(node):
            return ()
        found = zero_limits(node.body, self.room.buffers, "halo", lambda _: False)
        return tuple(dict.fromkeys(found))

    def _skips(self, node: ReduceNode) -> tuple[Constraint, ...]:
        """Where a whole tile would add zeros only, told by indices that it does not move."""
        if not self._is_sum(node):
            return ()
        first = first_reduce_loop(self.nest)
        inner = [o for i, o in enumerate(self.nest.loops) if i >= first or o not in self.plan.outer]
        serial = [o for o in self.plan.serial if o.steps == 1]
        moving = {
            o.name
            for o in inner
            if (o.reduce is None and o not in serial) or expands(o) or o.steps > 1
        }
        moving |= {o.base for o in inner if o.segments}

        def moves(index: Affine) -> bool:
            return bool(index.substitute(self.values.axes).names() & moving)

        return tuple(dict.fromkeys(zero_limits(node.body, self.room.buffers, "zero", moves)))

    def _store_limits(self) -> tuple[Constraint, ...]:
        kinds = ("zero", "constant", *FOLDING)
        found = list(self.nest.guards)
        for store in self.nest.stores:
            found += edge_limits(store.value, self.room.buffers, kinds)
        return _bounds(found)

    def _limits(self) -> tuple[Constraint, ...]:
        parts = [c for r in self.nest.reduces for c in self._reduce_limits(r)]
        return tuple(dict.fromkeys((*parts, *self._store_limits())))

    # -- structure -----------------------------------------------------------------------------

    def _reducing(self, number: int, node: ReduceNode) -> Reducing:
        stage, combiner = self.plan.stages[number], node.combiner
        if stage.in_memory:
            stem = self.room.fresh(f"{self.nest.name}_state")
            around = tuple(one for one in stage.serial if one.reduce is None) + stage.chunked
            states = MemoryStates(self.loops, combiner, stage.tile, around, stem)
            for buffer in states.buffers:
                self.room.add_buffer(buffer)
            if stage.inside:
                held = RegisterStates(self.loops, node.combiner, stage.tile)
                states = BlockStates(states, held)
        else:
            combiner = watched(node.combiner, self.room.target)
            states = RegisterStates(self.loops, combiner, stage.tile)
        parts = (stage.tile, stage.factored, stage.chunked)
        return Reducing(self.loops, node, combiner, states, *parts)

    def write(self, scope: Scope) -> None:
        """The whole nest, inside the scope of what contains it."""
        names = {one.name for one in self.nest.loops} | {
            one.base for one in self.nest.loops if one.base
        }
        taken = names & (scope.ranges.keys() | scope.values.keys())
        if taken:
            raise InternalError(
                f"nest {self.nest.name}: its loops {sorted(taken)} are loops around it too",
                stage="flatten",
            )
        job = Walk(
            leaf=self._tile,
            guards=self.nest.guards,
            limits=self.limits,
            later=tuple(one for one in self.nest.loops if one not in self.plan.outer),
            attached=self._attached,
        )
        self.loops.walk(self.plan.outer, scope, job)

    def _attached(self, loop: str, scope: Scope) -> None:
        for producer in self.nest.attached:
            if producer.at == loop:
                self._produce(producer, scope)

    def _produce(self, producer: Attached, scope: Scope) -> None:
        inside = replace(scope, interior=False, versioned=False, lanes=1, valid=1)
        NestWriter(producer.nest, self.room, {}).write(inside)
        for store in producer.nest.stores:
            self.emitter.rewritten(store.buffer)

    # -- the tile ------------------------------------------------------------------------------

    def _tile(self, scope: Scope) -> None:
        """Everything inside the outer loops; an interior version where that tells something."""
        later = tuple(one for one in self.nest.loops if one not in self.plan.outer)
        if scope.interior or scope.versioned or not self.nest.reduces or not self.plan.may_double:
            self._stages(scope)
            return
        pending = self.loops.pending(scope, self.limits, later)
        self.loops.versions(pending, scope, later, self._stages)

    def _stages(self, scope: Scope) -> None:
        for number, stage in enumerate(self.plan.stages):
            if self.nest.leader(number) == number:
                self._reduce(number, stage, scope)
        job = Walk(
            leaf=self._stores,
            guards=self.nest.guards,
            limits=self._store_limits(),
            later=self.plan.tile.loops,
            attached=self._attached,
        )
        self.loops.walk(self.plan.serial, scope, job)

    def _reduce(self, leader: int, stage: Stage, scope: Scope) -> None:
        """A reduce and those that run in its loops, point by point together."""
        members = [r for i, r in enumerate(self.reducing) if self.nest.leader(i) == leader]
        guards = [self._guards(r.node) for r in members]
        limits = [c for r in members for c in self._reduce_limits(r.node)]
        for reducing in members:
            reducing.states.start(scope)

        def leaf(inside: Scope) -> None:
            for reducing, own in zip(members, guards, strict=True):
                reducing.combine_elements(own, inside)

        skips = self._skips(members[0].node)
        job = Walk(
            leaf=leaf,
            guards=tuple(g for g in guards[0] if all(g in own for own in guards)),
            limits=tuple(dict.fromkeys(limits)),
            later=stage.tile.loops,
            skips=(*skips, *self._halos(members[0].node)),
            attached=self._attached,
        )
        if not stage.in_memory or not stage.inside:
            self._elements(stage.serial, members, stage, scope, job)
            return

        def block(inside: Scope) -> None:
            with ExitStack() as held:
                for reducing in members:
                    if isinstance(reducing.states, BlockStates):
                        held.enter_context(reducing.states.block(inside))
                self._elements(stage.inside, members, stage, inside, job)

        later = (*stage.inside, *stage.tile.loops)
        self.loops.walk(stage.around, scope, replace(job, leaf=block, later=later))

    def _elements(
        self,
        loops: tuple[Loop, ...],
        members: Sequence[Reducing],
        stage: Stage,
        scope: Scope,
        job: Walk,
    ) -> None:
        """The loops of a stage that are left, with their elements inside."""
        first = members[0]
        straight = straight_part(loops, first.node, first.values.axes)
        combine = first.combine_in_order
        if not straight and len(members) == 1 and is_choice(first.combiner):
            straight = tuple(o for o in loops[-1:] if o.reduce is not None and expands(o))
            combine = first.combine_among_themselves
        if not straight:
            self.loops.walk(loops, scope, job)
            return

        def ordered(inside: Scope) -> None:
            tests = (*self._guards(first.node), *self._skips(first.node))
            tests = tuple(dict.fromkeys(tests))
            if not combine(tests, straight, inside):
                self.loops.walk(straight, inside, job)

        rest = loops[: len(loops) - len(straight)]
        later = (*straight, *stage.tile.loops)
        self.loops.walk(rest, scope, replace(job, leaf=ordered, later=later))

    # -- stores --------------------------------------------------------------------------------

    def _stores(self, scope: Scope) -> None:
        groups = sorted_out(self.loops, self.nest.guards, self.plan.tile, scope)
        for scalars, group in groups:
            test = self.values.all_of(self.values.condition(c, scope) for c in scalars)
            with self.emitter.when(test):
                for position, vectors in group:
                    inside = position.knowing(scalars)
                    mask = self.values.all_of(self.values.condition(c, inside) for c in vectors)
                    place = Place(inside, mask, reduced=self._results(inside))
                    for store in self.nest.stores:
                        self._store(store, place)

    def _results(self, scope: Scope) -> dict[tuple[int, int], Expr]:
        """The results of the reduces that stores read, at a position."""
        used = {
            node.reduce
            for store in self.nest.stores
            for node in walk_nodes(store.value)
            if isinstance(node, Reduced)
        }
        return {
            (number, item): result
            for number in sorted(used)
            for item, result in enumerate(self.reducing[number].results(scope))
        }

    def _store(self, store: StoreNode, place: Place) -> None:
        scope = place.scope
        buffer = self.room.buffers[store.buffer]
        lanes = scope.lanes
        value = self.values.cast(self.values.of(store.value, place), buffer)
        index = [self.values.resolve(i, scope) for i in store.index]
        offset = flat_offset(buffer, index, lane_ranges(scope))
        value = self.values.wide(value, lanes)
        if LANE in offset.hidden_names() or (lanes > 1 and not offset.coefficient(LANE)):
            self._scatter(buffer, offset, value, place)
            return
        where = self.values.integer(offset.without(LANE), replace(scope, lanes=1))
        stride = offset.coefficient(LANE)
        mask = place.mask if lanes > 1 else None
        self.emitter.add(Store(buffer.name, where, stride, value, scope.valid, mask))

    def _scatter(self, buffer: Buffer, offset: Affine, value: Expr, place: Place) -> None:
        """One store for each lane, where neighbours have no fixed distance."""
        scalar = replace(place.scope, lanes=1, valid=1)
        for lane in range(place.scope.valid):
            place_of = simplify_affine(offset.substitute({LANE: lane}), scalar.ranges)
            where = self.values.integer(place_of, scalar)
            element = self.emitter.share(Lanes(value, (lane,)))
            test = None
            if place.mask is not None:
                test = self.emitter.share(Lanes(place.mask, (lane,)))
            with self.emitter.when(test):
                self.emitter.add(Store(buffer.name, where, 0, element, 1))


def _bounds(constraints: Sequence[Constraint]) -> tuple[Constraint, ...]:
    """The conditions that an interior test can settle."""
    return tuple(dict.fromkeys(c for c in constraints if c.kind == "<="))
