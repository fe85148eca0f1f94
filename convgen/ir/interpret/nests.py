"""Running nests by their definition: the points of a tile at once, reduce points in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from convgen.affine import Constraint
from convgen.errors import InternalError
from convgen.ir.interpret.memory import Memory, integer
from convgen.ir.interpret.values import Value, apply, constant, numpy_dtype
from convgen.ir.nodes import (
    Attached,
    Combiner,
    Const,
    Edge,
    Expr,
    Index,
    Load,
    Loop,
    Nest,
    Op,
    Param,
    Reduced,
    ReduceNode,
)

Env = dict[str, Any]  # integer variables: ints, or one int64 for each point


@dataclass
class Points:
    """Iterations in order: values of loop variables, and the sizes that segments give to others."""

    count: int
    values: Env
    sizes: Env = field(default_factory=dict)

    def at(self, chosen: Any) -> Points:
        """The iterations at those places (a mask, an array of places, or a slice)."""
        values = {n: v[chosen] if np.ndim(v) else v for n, v in self.values.items()}
        sizes = {n: v[chosen] if np.ndim(v) else v for n, v in self.sizes.items()}
        count = int(np.arange(self.count)[chosen].size)
        return Points(count, values, sizes)


def iterate(loops: Iterable[Loop], start: Points) -> Points:
    """All iterations of nested loops, outermost first, for each iteration of `start`."""
    points = start
    for loop in loops:
        if loop.segments:
            parts = [
                (i, s.start + s.size * i, s.size) for s in loop.segments for i in range(s.count)
            ]
            table = np.array(parts, np.int64).reshape(-1, 3)
            extents = np.full(points.count, len(parts))
        else:
            table = None
            extents = points.sizes.get(loop.name, loop.extent) + np.zeros(points.count, np.int64)
        old = np.repeat(np.arange(points.count), extents)
        points = points.at(old)
        firsts = np.cumsum(extents) - extents
        place = np.arange(points.count) - firsts[old]
        if table is None:
            points.values[loop.name] = place
        else:
            points.values[loop.name] = table[place, 0]
            points.values[loop.base] = table[place, 1]
            points.sizes[loop.inner] = table[place, 2]
    return points


@dataclass
class _States:
    """The states of one reduce for the points of a tile: one array for each component."""

    arrays: list[Any]


class NestRun:
    """One execution of nests on a memory."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.omitted: Any = None  # mask of points whose element is left out, while a body runs

    # -- loops ----------------------------------------------------------------------------------

    def run(self, nest: Nest, outer: Env) -> None:
        """Run a nest inside the loops whose variables `outer` gives."""
        start = Points(1, dict(outer))
        self._run_outer(nest, 0, start)

    def _run_outer(self, nest: Nest, level: int, start: Points) -> None:
        """Outer loops from `level` on: one by one down to the next attached producer."""
        first = _first_reduce(nest)
        stop = next((i for i in range(level, first) if _producers(nest, nest.loops[i])), None)
        if stop is None:
            self._run_rest(nest, level, first, start)
            return
        points = iterate(nest.loops[level : stop + 1], start)
        for number in range(points.count):
            one = points.at(slice(number, number + 1))
            self._produce(nest, nest.loops[stop], one)
            self._run_outer(nest, stop + 1, one)

    def _produce(self, nest: Nest, loop: Loop, one: Points) -> None:
        env = {n: int(v[0]) if np.ndim(v) else v for n, v in one.values.items()}
        for producer in _producers(nest, loop):
            self.run(producer.nest, env)

    def _run_rest(self, nest: Nest, level: int, first: int, start: Points) -> None:
        outer = iterate(nest.loops[level:first], start)
        tile = [lp for lp in nest.loops[first:] if lp.reduce is None]
        if any(_producers(nest, lp) for lp in nest.loops[first:]):
            for number in range(outer.count):
                self._run_tile(nest, tile, outer.at(slice(number, number + 1)), first, True)
        else:
            self._run_tile(nest, tile, outer, first, False)

    def _run_tile(
        self, nest: Nest, tile: list[Loop], outer: Points, first: int, stepwise: bool
    ) -> None:
        points = iterate(tile, outer)
        mask = self._holds(nest.guards, nest, points)
        results: list[list[Any]] = []
        for number, reduce in enumerate(nest.reduces):
            own = (None, nest.leader(number))
            loops = [lp for lp in nest.loops[first:] if lp.reduce in own]
            if stepwise:
                states = self._reduce_stepwise(nest, reduce, loops, tile, outer, points, mask)
            else:
                inner = [lp for lp in loops if lp.reduce is not None]
                states = self._reduce(nest, reduce, inner, points, mask)
            results.append(self._project(reduce.combiner, states))
        if stepwise and not nest.reduces:
            raise InternalError(f"nest {nest.name}: a producer inside a tile without reduces")
        self._store(nest, points, mask, results)

    # -- reduces --------------------------------------------------------------------------------

    def _reduce(
        self, nest: Nest, reduce: ReduceNode, loops: list[Loop], points: Points, mask: Any
    ) -> list[Any]:
        inner = iterate(loops, Points(1, {}))
        partial: dict[tuple[int, ...], _States] = {}
        for number in range(inner.count):
            here = {n: int(v[number]) for n, v in inner.values.items()}
            key = tuple(here[n] for n in reduce.factored)
            states = partial.get(key)
            if states is None:
                states = partial[key] = self._fresh(reduce.combiner, points.count)
            self._accumulate(nest, reduce, {**points.values, **here}, mask, states)
        return self._join(reduce.combiner, partial, points.count)

    def _reduce_stepwise(
        self,
        nest: Nest,
        reduce: ReduceNode,
        loops: list[Loop],
        tile: list[Loop],
        outer: Points,
        points: Points,
        mask: Any,
    ) -> list[Any]:
        """As _reduce, one iteration of the interleaved loops after another, with producers run
        where their loop advances."""
        mixed = iterate(loops, outer)
        names = [lp.name for lp in tile] + [lp.base for lp in tile if lp.segments]
        place = {tuple(int(points.values[n][i]) for n in names): i for i in range(points.count)}
        partial: dict[tuple[int, ...], _States] = {}
        before: list[int] = []
        for number in range(mixed.count):
            one = mixed.at(slice(number, number + 1))
            here = {n: int(v[0]) if np.ndim(v) else v for n, v in one.values.items()}
            now = [here[lp.name] for lp in loops]
            for depth, loop in enumerate(loops):
                if now[: depth + 1] != before[: depth + 1]:
                    self._produce(nest, loop, one)
            before = now
            key = tuple(here[n] for n in reduce.factored)
            if key not in partial:
                partial[key] = self._fresh(reduce.combiner, points.count)
            chosen = np.zeros(points.count, bool)
            chosen[place[tuple(here[n] for n in names)]] = True
            everywhere = {n: np.full(points.count, v) for n, v in here.items()}
            self._accumulate(nest, reduce, everywhere, mask & chosen, partial[key])
        return self._join(reduce.combiner, partial, points.count)

    def _fresh(self, combiner: Combiner, count: int) -> _States:
        return _States([np.full(count, constant(c.value, c.dtype)) for c in combiner.identity])

    def _join(
        self, combiner: Combiner, partial: Mapping[tuple[int, ...], _States], count: int
    ) -> list[Any]:
        """Partial states joined in loop order."""
        whole = replace(combiner, combine=combiner.join or combiner.combine)
        total: list[Any] | None = None
        for key in sorted(partial):
            arrays = partial[key].arrays
            total = arrays if total is None else self._combine(whole, total, arrays)
        return total if total is not None else self._fresh(combiner, count).arrays

    def _combine(self, combiner: Combiner, left: Sequence[Any], right: Sequence[Any]) -> list[Any]:
        params: Env = {f"a{i}": v for i, v in enumerate(left)}
        params.update({f"b{i}": v for i, v in enumerate(right)})
        count = len(left[0])
        return [np.broadcast_to(self.value(e, {}, params), count) for e in combiner.combine]

    def _accumulate(
        self, nest: Nest, reduce: ReduceNode, env: Env, mask: Any, states: _States
    ) -> None:
        axes = self._axes(nest, env)
        chosen = np.flatnonzero(mask & _guards(reduce.guards, axes, len(mask)))
        if not chosen.size:
            return
        here = {n: v[chosen] if np.ndim(v) else v for n, v in axes.items()}
        self.omitted = np.zeros(chosen.size, bool)
        element = np.broadcast_to(self.value(reduce.body, here), chosen.size)
        position = np.broadcast_to(integer(reduce.position, here), chosen.size)
        omitted, self.omitted = self.omitted, None
        kept = np.flatnonzero(~omitted)
        chosen = chosen[kept]
        params: Env = {"v": element[kept], "p": np.asarray(position, np.int64)[kept]}
        lifted = [
            np.broadcast_to(self.value(e, {}, params), chosen.size) for e in reduce.combiner.lift
        ]
        joined = self._combine(reduce.combiner, [a[chosen] for a in states.arrays], lifted)
        for array, new in zip(states.arrays, joined, strict=True):
            array[chosen] = new

    def _project(self, combiner: Combiner, states: list[Any]) -> list[Any]:
        params: Env = {f"a{i}": v for i, v in enumerate(states)}
        count = len(states[0])
        return [np.broadcast_to(self.value(e, {}, params), count) for e in combiner.project]

    # -- stores ---------------------------------------------------------------------------------

    def _store(self, nest: Nest, points: Points, mask: Any, results: list[list[Any]]) -> None:
        chosen = np.flatnonzero(mask)
        if not chosen.size:
            return
        axes = self._axes(nest, points.at(chosen).values)
        params: Env = {
            f"%{i}.{j}": v[chosen] for i, items in enumerate(results) for j, v in enumerate(items)
        }
        for store in nest.stores:
            value = self.value(store.value, axes, params)
            index = [integer(i, axes) for i in store.index]
            offset = np.broadcast_to(self.memory.offset(store.buffer, index), chosen.size)
            kind = numpy_dtype(self.memory.buffers[store.buffer].dtype)
            array = self.memory.arrays[store.buffer]
            array[offset] = np.broadcast_to(np.asarray(value).astype(kind), chosen.size)

    def _axes(self, nest: Nest, env: Env) -> Env:
        """The variables and the axes that have a value here (those of other reduces have none)."""
        known = {axis: value for axis, value in nest.axes if value.names() <= env.keys()}
        return {**env, **{axis: integer(value, env) for axis, value in known.items()}}

    def _holds(self, guards: tuple[Constraint, ...], nest: Nest, points: Points) -> Any:
        return _guards(guards, self._axes(nest, points.values), points.count)

    # -- expressions ----------------------------------------------------------------------------

    def value(self, expr: Expr, axes: Env, params: Env | None = None) -> Value:
        """The value at every point; `params` gives Params and (as %reduce.item) results."""
        if isinstance(expr, Op):
            args = [self.value(a, axes, params) for a in expr.args]
            return apply(expr.name, args, expr.dtype)
        if isinstance(expr, Load):
            return self._load(expr, axes, params)
        if isinstance(expr, Const):
            return constant(expr.value, expr.dtype)
        if isinstance(expr, Index):
            return np.asarray(integer(expr.value, axes), np.int64)
        if isinstance(expr, (Param, Reduced)):
            name = expr.name if isinstance(expr, Param) else f"%{expr.reduce}.{expr.item}"
            if params is None or name not in params:
                raise InternalError(f"{name} has no value here", stage="interpret")
            return params[name]
        raise InternalError(f"{type(expr).__name__} in a nest", stage="interpret")

    def _load(self, load: Load, axes: Env, params: Env | None) -> Value:
        buffer = self.memory.buffers[load.buffer]
        index: list[Any] = []
        settled: Any = False  # points that a dimension before this one has decided
        replaced: list[tuple[Any, Value]] = []
        for i, extent, edge in zip(load.index, buffer.shape, load.edges, strict=True):
            place = np.asarray(integer(i, axes), np.int64)
            if edge is None or edge.kind == "halo":
                index.append(place)
                continue
            folded = _fold(edge, place, extent)
            outside = (folded < 0) | (folded >= extent)
            index.append(np.where(outside, 0, folded))
            if np.any(outside):
                replaced.append(
                    (outside & ~np.asarray(settled), self._edge(edge, outside, load, axes, params))
                )
                settled = settled | outside
        if replaced and np.all(settled):
            found: Value = np.zeros(np.shape(settled), numpy_dtype(load.dtype))
        else:
            found = self.memory.arrays[load.buffer][self.memory.offset(load.buffer, index)]
        for mask, other in replaced:
            found = np.where(mask, other, found)
        return found

    def _edge(self, edge: Edge, outside: Any, load: Load, axes: Env, params: Env | None) -> Value:
        if edge.kind == "constant" and edge.value is not None:
            return self.value(edge.value, axes, params)
        if edge.kind == "omit":
            if self.omitted is None:
                raise InternalError(f"{load.buffer}: an omitted element outside a reduce")
            self.omitted = self.omitted | outside
        elif edge.kind != "zero":
            raise InternalError(f"{load.buffer}: {edge.kind} cannot fold so far", stage="interpret")
        return constant(0, load.dtype)


def _fold(edge: Edge, place: Any, extent: int) -> Any:
    if edge.kind == "reflect":
        place = np.abs(place)
        return np.where(place < extent, place, 2 * (extent - 1) - place)
    if edge.kind == "replicate":
        return np.clip(place, 0, extent - 1)
    return place % extent if edge.kind == "circular" else place


def _guards(guards: tuple[Constraint, ...], axes: Env, count: int) -> Any:
    mask = np.ones(count, bool)
    for guard in guards:
        value = integer(guard.value, axes)
        if guard.kind == "%":
            mask = mask & (value % guard.modulus == 0)
        else:
            mask = mask & (value == 0 if guard.kind == "==" else value <= 0)
    return mask


def _first_reduce(nest: Nest) -> int:
    return next((i for i, lp in enumerate(nest.loops) if lp.reduce is not None), len(nest.loops))


def _producers(nest: Nest, loop: Loop) -> list[Attached]:
    return [a for a in nest.attached if a.at == loop.name]
