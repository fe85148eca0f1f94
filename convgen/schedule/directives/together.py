"""The directive that computes several reductions of one domain in one pass: join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from convgen.affine import Affine
from convgen.ir.nodes import (
    Expr,
    Kernel,
    Load,
    Loop,
    LoopKind,
    Nest,
    Op,
    Reduced,
    ReduceNode,
    StoreNode,
)
from convgen.ir.visit import loads, map_affine, map_expr
from convgen.schedule.access import loads_of
from convgen.schedule.directives.base import Directive, Value, all_nests, find_nest, replace_nest
from convgen.target import Target


@dataclass(frozen=True)
class Join(Directive):
    """join(B): compute what the nest B computes in this nest too, and the reduces of one domain in
    one pass over it; equal reduces once.

    before   for c: s = 0; for i: s += X[c,i]      after   for c: s = t = 0
                    A[c] = s                                      for i: s += X[c,i]; t += X[c,i]**2
             for c: t = 0; for i: t += X[c,i]**2                  A[c] = s; B[c] = t
                    B[c] = t

    Without arguments: the reduces of this nest only. Legal: nests without directives that have the
    same output loops and no tests on them; B reads nothing that is written from this nest on,
    unless it is what this nest stores at the same point (and no reduce of B reads that).
    Elsewhere: horizontal fusion, loop fusion (Halide: compute_with).
    """

    others: tuple[str, ...] = ()
    keyword: ClassVar[str] = "join"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return self.others, {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        self._check_plain(nest, nest)
        for name in self.others:
            other = find_nest(replace(self, nest=name), kernel)
            self._check_plain(nest, other)
            if other.name == nest.name or _outputs(nest) != _outputs(other):
                self.refuse(
                    nest,
                    f"{other.name} has other output loops",
                    expected=" x ".join(str(e) for e in _outputs(nest)),
                    got=" x ".join(str(e) for e in _outputs(other)),
                )
            self._check_order(nest, other, kernel)
            nest = _together(_joined(nest, other, kernel))

    def _check_plain(self, nest: Nest, one: Nest) -> None:
        marked = [
            o.name
            for o in one.loops
            if o.kind is not LoopKind.SERIAL or o.steps > 1 or o.segments or o.inner
        ]
        whole = all(len(_axes_of(one, o.name)) == 1 for o in one.loops)
        if marked or one.attached or not whole or any(r.factored for r in one.reduces):
            self.refuse(
                nest,
                f"{one.name} is scheduled already",
                expected="join before all other directives",
                got=", ".join(marked) or one.name,
            )
        if one.guards:
            self.refuse(nest, f"{one.name} tests its points", expected="no guards", got=one.name)

    def _check_order(self, nest: Nest, other: Nest, kernel: Kernel) -> None:
        nests = list(kernel.nests())
        names = [n.name for n in nests]
        if nest.name not in names or other.name not in names[names.index(nest.name) :]:
            self.refuse(
                nest,
                f"{other.name} runs before {nest.name}",
                expected="a later nest",
                got=other.name,
                hint=f"{other.name}: join({nest.name})",
            )
        between = nests[names.index(nest.name) + 1 : names.index(other.name)]
        left = (n for n in between if n.name not in self.others)
        late = {s.buffer for n in left for one in _inner(n) for s in one.stores}
        own = {s.buffer: s.index for s in nest.stores}
        read = {o.buffer for one in _inner(other) for o in loads_of(one)}
        if read & late:
            self.refuse(
                nest,
                f"{other.name} reads what is computed after {nest.name}",
                expected="operands that are there already",
                got=", ".join(sorted(read & late)),
            )
        renamed = _renamed(nest, other)
        inside = {o.buffer for r in renamed.reduces for o in loads(r.body)}
        moved = [
            o.buffer
            for s in renamed.stores
            for o in loads(s.value)
            if o.buffer in own and o.index != own[o.buffer]
        ]
        if inside & own.keys() or moved:
            self.refuse(
                nest,
                f"{other.name} reads other points of what {nest.name} stores",
                expected="reads at the same point, outside reduces",
                got=", ".join(sorted({*(inside & own.keys()), *moved})),
            )

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        name = nest.name
        nest = _together(nest)
        for other in self.others:
            second = find_nest(replace(self, nest=other), kernel)
            nest = _together(_joined(nest, second, kernel))
            kernel = replace_nest(kernel, second.name, None)
        return replace_nest(kernel, name, nest)


def join(*others: str, nest: str = "") -> Join:
    """See Join."""
    return Join(tuple(others), nest=nest)


def _inner(nest: Nest) -> list[Nest]:
    return [nest, *(one for a in nest.attached for one in _inner(a.nest))]


def _outputs(nest: Nest) -> list[int]:
    return [o.extent for o in nest.loops if o.reduce is None]


def _axes_of(nest: Nest, loop: str) -> list[tuple[str, int]]:
    """(axis, offset) of the axes that are that loop plus a number."""
    return [(a, v.constant) for a, v in nest.axes if (v - v.constant).single == loop]


def _renaming(nest: Nest, pairs: Sequence[tuple[str, str]], source: Nest) -> dict[str, Affine]:
    """Axes of `source` over those of `nest`, for pairs of loops (of source, of nest)."""
    found: dict[str, Affine] = {}
    for theirs, ours in pairs:
        (axis, start), (target, own) = _axes_of(source, theirs)[0], _axes_of(nest, ours)[0]
        found[axis] = Affine.of(target) + (start - own)
    return found


def _moved(reduce: ReduceNode, values: dict[str, Affine]) -> ReduceNode:
    return replace(
        reduce,
        body=map_affine(reduce.body, lambda i: i.substitute(values)),
        guards=tuple(replace(g, value=g.value.substitute(values)) for g in reduce.guards),
        position=reduce.position.substitute(values),
    )


def _renamed(nest: Nest, other: Nest) -> Nest:
    """The other nest over the output axes of this one; the names of its reduce loops are fresh."""
    outputs = [o.name for o in nest.loops if o.reduce is None]
    theirs = [o.name for o in other.loops if o.reduce is None]
    values = _renaming(nest, list(zip(theirs, outputs, strict=True)), other)
    taken = {o.name for o in nest.loops} | {a for a, _ in nest.axes}
    loops: list[Loop] = []
    names: dict[str, Affine] = {}
    axes: list[tuple[str, Affine]] = []
    known = {a: (low, high) for a, low, high in other.ranges}
    ranges: list[tuple[str, int, int]] = []
    for loop in other.loops:
        if loop.reduce is None:
            continue
        ((axis, start),) = _axes_of(other, loop.name)
        name = loop.name
        while name in taken:
            name += "_"
        taken.add(name)
        loops.append(replace(loop, name=name))
        names[axis] = Affine.of(name)
        axes.append((name, Affine.of(name) + start))
        ranges.append((name, *known[axis]))
    values |= names
    stores = tuple(
        StoreNode(
            s.buffer,
            tuple(i.substitute(values) for i in s.index),
            map_affine(s.value, lambda i: i.substitute(values)),
        )
        for s in other.stores
    )
    return replace(
        other,
        loops=tuple(loops),
        axes=tuple(axes),
        ranges=tuple(ranges),
        reduces=tuple(_moved(r, values) for r in other.reduces),
        stores=stores,
    )


def _joined(nest: Nest, other: Nest, kernel: Kernel) -> Nest:
    """One nest with the reduces of both, each in loops of its own, and the stores of both."""
    second = _renamed(nest, other)
    count = len(nest.reduces)
    values = {s.buffer: s.value for s in nest.stores}

    def change(expr: Expr) -> Expr:
        if isinstance(expr, Reduced):
            return replace(expr, reduce=expr.reduce + count)
        return expr

    def known(expr: Expr) -> Expr:
        if isinstance(expr, Load) and expr.buffer in values:
            value, dtype = values[expr.buffer], kernel.buffer(expr.buffer).dtype
            return value if value.dtype == dtype else Op("cast", (value,), dtype)
        return expr

    stores = tuple(
        replace(s, value=map_expr(map_expr(s.value, change), known)) for s in second.stores
    )
    loops = tuple(replace(o, reduce=(o.reduce or 0) + count) for o in second.loops)
    reduces = tuple(
        replace(r, beside=None if r.beside is None else r.beside + count) for r in second.reduces
    )
    return replace(
        nest,
        loops=(*nest.loops, *loops),
        axes=(*nest.axes, *second.axes),
        ranges=(*nest.ranges, *second.ranges),
        reduces=(*nest.reduces, *reduces),
        stores=(*nest.stores, *stores),
    )


def _together(nest: Nest) -> Nest:
    """Reduces over domains of one shape in the loops of the first; equal ones once."""
    number = 0
    while number < len(nest.reduces):
        if nest.leader(number) == number:
            leader = _match(nest, number)
            if leader is not None:
                nest = _beside(nest, number, leader)
        same = next((i for i in range(number) if _equal(nest, i, number)), None)
        if same is not None:
            nest = _without(nest, number, same)
        else:
            number += 1
    return nest


def _own_loops(nest: Nest, number: int) -> list[Loop]:
    return [o for o in nest.loops if o.reduce == number]


def _match(nest: Nest, number: int) -> int | None:
    """An earlier reduce whose loops have the same extents in the same order."""
    extents = [o.extent for o in _own_loops(nest, number)]
    for other in range(number):
        if nest.leader(other) == other and extents:
            if [o.extent for o in _own_loops(nest, other)] == extents:
                return other
    return None


def _beside(nest: Nest, number: int, leader: int) -> Nest:
    mine, theirs = _own_loops(nest, number), _own_loops(nest, leader)
    pairs = [(a.name, b.name) for a, b in zip(mine, theirs, strict=True)]
    values = _renaming(nest, pairs, nest)

    def move(place: int, reduce: ReduceNode) -> ReduceNode:
        if nest.leader(place) != number:
            return reduce
        return replace(_moved(reduce, values), beside=leader)

    return replace(
        nest,
        loops=tuple(o for o in nest.loops if o.reduce != number),
        axes=tuple((a, v) for a, v in nest.axes if a not in values),
        ranges=tuple(r for r in nest.ranges if r[0] not in values),
        reduces=tuple(move(i, r) for i, r in enumerate(nest.reduces)),
    )


def _equal(nest: Nest, first: int, second: int) -> bool:
    a, b = nest.reduces[first], nest.reduces[second]
    together = nest.leader(first) == nest.leader(second)
    return together and replace(a, beside=None) == replace(b, beside=None)


def _without(nest: Nest, number: int, same: int) -> Nest:
    """Results of reduce `number` taken from reduce `same`; the later ones move up."""

    def place(reduce: int) -> int:
        return same if reduce == number else reduce - (reduce > number)

    def change(expr: Expr) -> Expr:
        return replace(expr, reduce=place(expr.reduce)) if isinstance(expr, Reduced) else expr

    reduces = [r for i, r in enumerate(nest.reduces) if i != number]
    return replace(
        nest,
        loops=tuple(
            o if o.reduce is None else replace(o, reduce=place(o.reduce)) for o in nest.loops
        ),
        reduces=tuple(
            r if r.beside is None else replace(r, beside=place(r.beside)) for r in reduces
        ),
        stores=tuple(replace(s, value=map_expr(s.value, change)) for s in nest.stores),
    )


def later_nests(nest: Nest, kernel: Kernel) -> list[Nest]:
    """Later nests with the same output loops."""
    nests = all_nests(kernel)
    later = nests[[n.name for n in nests].index(nest.name) + 1 :]
    return [n for n in later if _outputs(n) == _outputs(nest)]


def joinable(nest: Nest, kernel: Kernel) -> list[Nest]:
    """Those of the later nests whose reduces have the shapes of this one's."""
    mine = [[o.extent for o in _own_loops(nest, i)] for i in range(len(nest.reduces))]
    return [
        n
        for n in later_nests(nest, kernel)
        if n.reduces
        and all([o.extent for o in _own_loops(n, i)] in mine for i in range(len(n.reduces)))
    ]
