"""Directives that change the order of loops: reorder, fuse, reverse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from convgen.affine import Affine
from convgen.ir.nodes import Kernel, LoopKind, Nest
from convgen.schedule.directives.base import (
    Directive,
    Value,
    check_fresh,
    check_serial,
    outside,
    replace_loops,
    replace_nest,
)
from convgen.target import Target


@dataclass(frozen=True)
class Reorder(Directive):
    """reorder(r, k_in): the named loops in this order, in the places that they have together.

    before   for k_in, for x, for r       after   for r, for x, for k_in

    Output loops behind the first reduce loop form the tile. Legal: the outer loop of a cover or
    peel stays outside its inner one; the loops of one reduce keep their order unless its reduction
    is commutative; loops of different reduces keep the order of the reduces; parallel loops stay
    outermost.
    Elsewhere: reorder (Halide, TVM, Exo), interchange.
    """

    order: tuple[str, ...]
    keyword: ClassVar[str] = "reorder"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return self.order, {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        for name in self.order:
            self.loop(nest, name)
        if len(set(self.order)) != len(self.order):
            self.refuse(nest, "a loop is named twice", expected="each loop once")
        after = self._reordered(nest)
        place = {loop.name: i for i, loop in enumerate(after.loops)}
        for loop in after.loops:
            if loop.segments and place[loop.inner] < place[loop.name]:
                self.refuse(
                    nest,
                    f"{loop.inner} has another extent in each segment of {loop.name}",
                    expected=f"{loop.name} outside {loop.inner}",
                    got=f"{loop.inner} outside",
                )
        self._check_reduces(nest, after)
        for producer in nest.attached:
            if outside(nest, producer.at) != outside(after, producer.at):
                self.refuse(
                    nest,
                    f"{producer.nest.name} is computed inside {producer.at}",
                    expected="the same loops around it",
                    got=", ".join(loop.name for loop in after.loops),
                    hint=f"{self} before compute_at",
                )
        kinds = [loop.kind is LoopKind.PARALLEL for loop in after.loops]
        if any(b and not a for a, b in zip(kinds, kinds[1:], strict=False)):
            self.refuse(
                nest, "parallel loops must stay outermost", expected="the parallel loops first"
            )

    def _check_reduces(self, nest: Nest, after: Nest) -> None:
        for number, reduce in enumerate(nest.reduces):
            own = nest.leader(number)
            before = [o.name for o in nest.loops if o.reduce == own]
            now = [o.name for o in after.loops if o.reduce == own]
            if before != now and not reduce.combiner.commutative:
                self.refuse(
                    nest,
                    f"{reduce.combiner.name} depends on the order of its elements",
                    expected="its loops in the order " + ", ".join(before),
                    got=", ".join(now),
                )

    def _reordered(self, nest: Nest) -> Nest:
        named = iter([nest.loop(name) for name in self.order])
        loops = tuple(next(named) if o.name in self.order else o for o in nest.loops)
        return replace(nest, loops=loops)

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        after = self._reordered(nest)
        return replace_nest(kernel, nest.name, nest if after == nest else after)


@dataclass(frozen=True)
class Fuse(Directive):
    """fuse(y, x): one loop y_x in place of two neighbours.

    before   for y < 4                    after   for y_x < 32        y = y_x // 8, x = y_x % 8
               for x < 8

    Legal: x directly inside y, both outputs or both of one reduce, neither marked.
    Elsewhere: fuse (Halide, TVM), collapse (OpenMP), flatten, coalesce.
    """

    outer: str
    inner: str
    keyword: ClassVar[str] = "fuse"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return (self.outer, self.inner), {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        outer, inner = self.loop(nest, self.outer), self.loop(nest, self.inner)
        check_serial(self, nest, outer)
        check_serial(self, nest, inner)
        names = [loop.name for loop in nest.loops]
        if names.index(self.inner) != names.index(self.outer) + 1:
            self.refuse(
                nest,
                f"{self.inner} is not directly inside {self.outer}",
                expected="neighbouring loops, the outer named first",
                got=", ".join(names),
                hint="reorder first",
            )
        if outer.reduce != inner.reduce:
            self.refuse(
                nest,
                "an output loop and a reduce loop cannot become one",
                expected="two outputs, or two loops of one reduce",
                got=f"{self.outer}, {self.inner}",
            )
        check_fresh(self, nest, f"{self.outer}_{self.inner}")

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        return replace_nest(kernel, nest.name, fused(nest, self.outer, self.inner))


@dataclass(frozen=True)
class Reverse(Directive):
    """reverse(r): the loop runs through its axis from the end.

    before   for r < 3: f(r)              after   for r < 3: f(2 - r)

    Legal: an unmarked loop without segments; of a reduce only where its reduction is commutative.
    Elsewhere: loop reversal.
    """

    axis: str
    keyword: ClassVar[str] = "reverse"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return (self.axis,), {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        loop = self.loop(nest, self.axis)
        check_serial(self, nest, loop)
        for number, reduce in enumerate(nest.reduces):
            if nest.leader(number) == loop.reduce and not reduce.combiner.commutative:
                self.refuse(
                    nest,
                    f"{reduce.combiner.name} depends on the order of its elements",
                    expected="an output loop, or a commutative reduction",
                    got=f"{self.axis} (reduce)",
                )

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        loop = nest.loop(self.axis)
        value = Affine.of(self.axis) * -1 + (loop.extent - 1)
        return replace_nest(kernel, nest.name, replace_loops(nest, self.axis, (loop,), value))


def fused(nest: Nest, outer: str, inner: str) -> Nest:
    """The nest with one loop in place of two neighbours."""
    first, second = nest.loop(outer), nest.loop(inner)
    name = f"{outer}_{inner}"
    loop, value = replace(first, name=name, extent=first.extent * second.extent), Affine.of(name)
    after = replace_loops(nest, outer, (loop,), value // second.extent)
    return replace_loops(after, inner, (), value % second.extent)


def reorder(*order: str, nest: str = "") -> Reorder:
    """See Reorder."""
    return Reorder(tuple(order), nest=nest)


def fuse(outer: str, inner: str, *, nest: str = "") -> Fuse:
    """See Fuse."""
    return Fuse(outer, inner, nest=nest)


def reverse(axis: str, *, nest: str = "") -> Reverse:
    """See Reverse."""
    return Reverse(axis, nest=nest)
