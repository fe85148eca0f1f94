"""One reduce of a nest: its elements combined into states, the states joined into results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from convgen.affine import Affine, Constraint
from convgen.ir.nodes import (
    Combiner,
    Const,
    Expr,
    Index,
    Lanes,
    Loop,
    Op,
    Param,
    ReduceNode,
    Register,
)
from convgen.ir.sums import adds_up
from convgen.passes.flatten.emitter import widen
from convgen.passes.flatten.following import in_order
from convgen.passes.flatten.loops import Loops
from convgen.passes.flatten.positions import Tile, positions
from convgen.passes.flatten.scope import LANE, Scope
from convgen.passes.flatten.states import States
from convgen.passes.flatten.values import Place

Conditions = tuple[Constraint, ...]


def sorted_out(
    loops: Loops, guards: Sequence[Constraint], tile: Tile, scope: Scope
) -> list[tuple[Conditions, list[tuple[Scope, Conditions]]]]:
    """The positions of the tile that exist, in order, grouped by the scalar conditions under which
    they do; each with the conditions on its lanes."""
    found: list[tuple[Conditions, Scope, Conditions]] = []
    for position in positions(tile, scope):
        held = loops.values.open_conditions(guards, position)
        if held is None:
            continue
        scalars = tuple(c for c in held if LANE not in c.value.names())
        vectors = tuple(c for c in held if LANE in c.value.names())
        found.append((scalars, position, vectors))
    return [
        (scalars, [(p, v) for _, p, v in group])
        for scalars, group in groupby(found, key=lambda item: item[0])
    ]


class Reducing:
    """The elements and the results of one reduce.

    `tile` holds all expanded loops, `factored` (expanded) and `chunked` (run one iteration after
    another) are the reduce loops whose iterations keep states of their own.
    """

    def __init__(
        self,
        loops: Loops,
        node: ReduceNode,
        combiner: Combiner,
        states: States,
        tile: Tile,
        factored: Sequence[Loop],
        chunked: Sequence[Loop],
    ) -> None:
        self.loops = loops
        self.values = loops.values
        self.emitter = loops.emitter
        self.node = node
        self.combiner = combiner
        self.states = states
        self.tile = tile
        self.factored = tuple(factored)
        self.chunked = tuple(chunked)

    # -- elements ------------------------------------------------------------------------------

    def combine_elements(self, guards: Sequence[Constraint], scope: Scope) -> None:
        """Combine the elements at the positions of the tile that exist into the states."""
        for scalars, group in sorted_out(self.loops, guards, self.tile, scope):
            test = self.values.all_of(self.values.condition(c, scope) for c in scalars)
            with self.emitter.when(test):
                for position, vectors in group:
                    self._element(position.knowing(scalars), vectors)

    def combine_in_order(
        self, guards: Sequence[Constraint], straight: Sequence[Loop], scope: Scope
    ) -> bool:
        """The same for unrolled reduce loops and the tile together, in the order of the operand
        that the reduce follows; False, and nothing done, where points exist under conditions."""
        found: list[tuple[Scope, Conditions]] = []
        for position in in_order(self.node, straight, self.tile, scope, self.values):
            held = self.values.open_conditions(guards, position)
            if held is None:
                continue
            if any(LANE not in c.value.names() for c in held):
                return False
            found.append((position, tuple(held)))
        for position, vectors in found:
            self._element(position, vectors)
        return True

    def combine_among_themselves(
        self, guards: Sequence[Constraint], straight: Sequence[Loop], scope: Scope
    ) -> bool:
        """The same for the points of unrolled reduce loops that are combined with one another
        before the state: the state waits for one combination, not for each of them. False, and
        nothing done, where points exist under conditions."""
        found: dict[tuple[Affine, ...], list[Scope]] = {}
        names = [name for loop in self.tile.loops for name in (loop.name, loop.base) if name]
        whole = Tile((*straight, *self.tile.loops), self.tile.vector, self.tile.lanes)
        for position in positions(whole, scope):
            held = self.values.open_conditions(guards, position)
            if held or (held is not None and self._foreign_lanes(position)):
                return False
            if held is not None:
                key = tuple(position.values[name] for name in names if name in position.values)
                found.setdefault(key, []).append(position)
        parts = [self._shared(self._lifted(Place(run[0]))) for run in found.values()]
        for step in range(1, max(map(len, found.values()), default=0)):
            for place, run in enumerate(found.values()):
                if step < len(run):
                    new = self._lifted(Place(run[step]))
                    parts[place] = self._shared(self._combined(parts[place], new))
        for part, run in zip(parts, found.values(), strict=True):
            old = self.states.read(run[0])
            with self.emitter.forgetting():
                self.states.write(run[0], self._combined(old, part))
        return True

    def _shared(self, state: Sequence[Expr]) -> list[Expr]:
        return [self.emitter.share(one) for one in state]

    def _element(self, scope: Scope, vectors: Conditions) -> None:
        vectors = (*vectors, *self._foreign_lanes(scope))
        mask = self.values.all_of(self.values.condition(c, scope) for c in vectors)
        place = Place(scope, mask)
        product = self._product()
        if product is not None:
            self._add_product(product, place)
            return
        if self.combiner.step:
            self._step(place)
            return
        lifted = self._lifted(place)
        old = self.states.read(scope)
        with self.emitter.forgetting():
            self.states.write(scope, self._masked(mask, self._combined(old, lifted), old))

    def _step(self, place: Place) -> None:
        """The element combined into the state as the combiner says."""
        element = self.values.of(self.node.body, place)
        old = self.states.read(place.scope)
        params = {"v": self.values.wide(element, old[0].lanes)}
        inside = Place(Scope(), params=params | {f"a{i}": s for i, s in enumerate(old)})
        with self.emitter.forgetting():
            new = [self.values.of(one, inside) for one in self.combiner.step]
            self.states.write(place.scope, self._masked(place.mask, new, old))

    def _foreign_lanes(self, scope: Scope) -> Conditions:
        """Keeps off the lanes that hold states of a longer segment of a factored loop."""
        for loop in self.factored:
            if loop.name == self.tile.vector and scope.lanes > 1:
                start = scope.values[loop.name].constant
                if scope.valid < min(scope.lanes, loop.extent - start):
                    return (Constraint("<=", Affine.of(LANE) - (scope.valid - 1)),)
        return ()

    def _product(self) -> Op | None:
        """The product that the only state component adds up, if it does that."""
        combiner, element = self.combiner, self.node.body
        if not adds_up(combiner) or not combiner.dtypes[0].is_float:
            return None
        if not isinstance(element, Op) or element.name != "mul":
            return None
        return element if element.dtype == combiner.dtypes[0] else None

    def _add_product(self, product: Op, place: Place) -> None:
        """state = x * y + state, rounded once."""
        if self.values.is_zero(product, place):
            return
        x, y = (self.values.of(a, place) for a in product.args)
        old = self.states.read(place.scope)
        lanes, dtype = old[0].lanes, product.dtype
        args = tuple(self.values.wide(a, lanes) for a in (x, y))
        new: Expr = Op("fma", (*args, old[0]), dtype, lanes)
        for one, other in (args, args[::-1]):
            if isinstance(one, Const) and abs(one.value) == 1:
                name = "add" if one.value == 1 else "sub"
                new = Op(name, (old[0], other), dtype, lanes)
        with self.emitter.forgetting():
            self.states.write(place.scope, self._masked(place.mask, [new], old))

    def _lifted(self, place: Place) -> list[Expr]:
        """The state of one element."""
        combiner = self.combiner
        element = self.values.of(self.node.body, place)
        params = {"v": element}
        if any(_mentions(one, "p") for one in combiner.lift):
            params["p"] = self.values.of(Index(self.node.position), place)
        inside = replace(place, params=params)
        return [self.values.of(one, inside) for one in combiner.lift]

    def _combined(
        self, left: Sequence[Expr], right: Sequence[Expr], by: Sequence[Expr] = ()
    ) -> list[Expr]:
        """Two states as one, the elements of the right one after those of the left."""
        params = {f"a{i}": s for i, s in enumerate(left)}
        params |= {f"b{i}": s for i, s in enumerate(right)}
        place = Place(Scope(), params=params)
        return [self.values.of(c, place) for c in by or self.combiner.combine]

    def _together(self, left: Sequence[Expr], right: Sequence[Expr]) -> list[Expr]:
        """Two states as one, their elements in any order."""
        return self._combined(left, right, self.combiner.join)

    def _masked(self, mask: Expr | None, new: Sequence[Expr], old: Sequence[Expr]) -> list[Expr]:
        if mask is None:
            return list(new)
        lanes = old[0].lanes
        wide = widen(mask, lanes)
        return [
            Op("select", (wide, self.emitter.share(widen(n, lanes)), o), o.dtype, lanes)
            for n, o in zip(new, old, strict=True)
        ]

    # -- results -------------------------------------------------------------------------------

    def results(self, scope: Scope) -> list[Expr]:
        """The projected results at a position of the output tile."""
        state = self._joined(scope) if self.factored or self.chunked else self.states.read(scope)
        place = Place(scope, params={f"a{i}": s for i, s in enumerate(state)})
        return [self.values.of(p, place) for p in self.combiner.project]

    def _joined(self, scope: Scope) -> list[Expr]:
        """The states of all factored iterations, combined in loop order."""
        vector = (
            self.tile.vector if any(one.name == self.tile.vector for one in self.factored) else ""
        )
        lanes = 1 if vector else scope.lanes
        combiner = self.combiner
        total = [Register(self.emitter.register("total"), d, lanes) for d in combiner.dtypes]
        for register, identity in zip(total, combiner.identity, strict=True):
            self.emitter.set(register, Const(identity.value, register.dtype, lanes))

        def join(part: Sequence[Expr]) -> None:
            with self.emitter.forgetting():
                self.emitter.assign(total, self._together(total, part))

        def leaf(inside: Scope) -> None:
            inner = Tile(self.factored, vector, self.tile.lanes)
            for part in self._parts(inner, inside, lanes if vector else 0):
                join(part)

        self.loops.each(self.chunked, scope, leaf)
        return list(total)

    def _parts(self, tile: Tile, scope: Scope, scalars: int) -> list[list[Expr]]:
        """The states at the factored positions, lane by lane where the lanes are iterations.

        Whole vectors are joined with one another first where the order of elements is free.
        """
        found: list[list[Expr]] = []
        whole: list[Expr] | None = None
        free = self.combiner.in_any_order
        for position in positions(tile, scope):
            state = self.states.read(position)
            if not scalars:
                found.append(state)
            elif free and position.valid == position.lanes:
                whole = state if whole is None else self._together(whole, state)
            else:
                found += self._lanes(state, position.valid)
        if whole is not None:
            found = [self._halved(whole), *found]
        return found

    def _lanes(self, state: Sequence[Expr], valid: int) -> list[list[Expr]]:
        if state[0].lanes == 1:
            return [list(state)]
        return [[self.emitter.share(Lanes(s, (i,))) for s in state] for i in range(valid)]

    def _halved(self, state: list[Expr]) -> list[Expr]:
        """The halves of a vector joined until one lane is left."""
        while state[0].lanes > 1:
            half = state[0].lanes // 2
            low, high = (
                [self.emitter.share(Lanes(s, tuple(range(start, start + half)))) for s in state]
                for start in (0, half)
            )
            state = self._together(low, high)
        return state


def _mentions(expr: Expr, name: str) -> bool:
    if isinstance(expr, Param):
        return expr.name == name
    return isinstance(expr, Op) and any(_mentions(a, name) for a in expr.args)
