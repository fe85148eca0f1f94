"""Directives that cut one loop in two: split, cover, peel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from convgen.affine import Affine, Constraint, FloorDiv
from convgen.ir.nodes import Kernel, Loop, Nest, Segment
from convgen.schedule.directives.base import (
    Directive,
    Text,
    Value,
    change_loop,
    check_fresh,
    check_serial,
    replace_loops,
    replace_nest,
)
from convgen.target import Target

TAILS = ("exact", "peel", "guard")


@dataclass(frozen=True)
class Split(Directive):
    """split(x, 4): two loops, the inner of `factor` iterations.

    before   for x < 8                    after   for x_out < 2
                                                    for x_in < 4        x = 4*x_out + x_in

    Legal: any loop not yet marked. `tail` says what happens where the factor does not divide the
    extent: "exact" refuses; "peel" runs the rest as a segment of its own (see cover); "guard" runs
    ceil(extent/factor) full tiles and tests every point.
    Elsewhere: tile, strip-mine; Halide split (peel: no name, guard: GuardWithIf), TVM split.
    """

    axis: str
    factor: int
    tail: str = "exact"
    keyword: ClassVar[str] = "split"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        named: dict[str, Value] = {} if self.tail == "exact" else {"tail": Text(self.tail)}
        return (self.axis, self.factor), named

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        loop = self.loop(nest, self.axis)
        check_serial(self, nest, loop)
        if self.tail not in TAILS:
            self.refuse(
                nest, "unknown tail", expected="one of " + " ".join(TAILS), got=repr(self.tail)
            )
        if not 1 <= self.factor <= loop.extent:
            self.refuse(
                nest,
                f"the factor must fit the extent of {self.axis}",
                expected=f"a factor in 1..{loop.extent}",
                got=str(self.factor),
            )
        check_fresh(self, nest, *_children(self.axis))
        if loop.extent % self.factor == 0:
            return
        if self.tail == "exact":
            self.refuse(
                nest,
                f"{self.factor} does not divide {loop.extent}",
                expected=f"a factor of {loop.extent} or a tail strategy",
                got=str(self.factor),
                hint="tail='peel'",
            )
        if self.tail == "guard" and _guard(nest, loop) is None:
            self.refuse(
                nest,
                f"{self.axis} is part of an axis, a guard needs a whole one",
                expected="a loop that runs over one axis",
                got=self.axis,
                hint="tail='peel'",
            )

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        loop = self.loop(nest, self.axis)
        whole, rest = divmod(loop.extent, self.factor)
        if rest and self.tail == "peel":
            segments = (Segment(0, whole, self.factor), Segment(whole * self.factor, 1, rest))
            return replace_nest(kernel, nest.name, _segmented(nest, loop, segments))
        outer, inner, _ = _children(self.axis)
        pair = (
            replace(loop, name=outer, extent=whole + bool(rest)),
            replace(loop, name=inner, extent=self.factor),
        )
        value = Affine.of(outer) * self.factor + Affine.of(inner)
        guard = _guard(nest, loop) if rest else None
        after = replace_loops(nest, self.axis, pair, value)
        if guard is not None and loop.reduce is None:
            after = replace(after, guards=(*after.guards, guard))
        elif guard is not None:
            after = replace(
                after,
                reduces=tuple(
                    replace(r, guards=(*r.guards, guard)) if after.leader(i) == loop.reduce else r
                    for i, r in enumerate(after.reduces)
                ),
            )
        return replace_nest(kernel, nest.name, after)


@dataclass(frozen=True)
class Cover(Directive):
    """cover(x, 10, 9): two loops that cover the extent exactly by tiles of the given sizes, the
    larger first and as often as can be.

    before   for x < 29                   after   for x_out: x_base = 0, 10 then 20
                                                    for x_in < 10 then 9      x = x_base + x_in

    Legal: the extent is a sum of the sizes (each used any number of times, one size at least
    once); a loop not yet marked.
    Elsewhere: exact tiling by two heights in hand-written kernels; no directive in Halide or TVM.
    """

    axis: str
    sizes: tuple[int, ...]
    keyword: ClassVar[str] = "cover"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return (self.axis, *self.sizes), {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        loop = self.loop(nest, self.axis)
        check_serial(self, nest, loop)
        if not self.sizes or min(self.sizes) < 1:
            self.refuse(
                nest, "tiles must have sizes", expected="sizes of at least 1", got=str(self.sizes)
            )
        if loop.extent == 0:
            self.refuse(nest, f"{self.axis} never runs", expected="an extent above 0", got="0")
        if exact_cover(loop.extent, self.sizes) is None:
            pair = best_cover(loop.extent, max(self.sizes))
            sizes = ", ".join(str(s) for s in sorted(set(pair), reverse=True))
            self.refuse(
                nest,
                f"no sum of {' and '.join(str(s) for s in self.sizes)} is {loop.extent}",
                expected=f"sizes that cover {loop.extent} exactly",
                got=", ".join(str(s) for s in self.sizes),
                hint=f"cover({self.axis}, {sizes})",
            )
        check_fresh(self, nest, *_children(self.axis))

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        loop = self.loop(nest, self.axis)
        counts = exact_cover(loop.extent, self.sizes) or {}
        segments: list[Segment] = []
        start = 0
        for size, count in counts.items():
            segments.append(Segment(start, count, size))
            start += size * count
        return replace_nest(kernel, nest.name, _segmented(nest, loop, tuple(segments)))


@dataclass(frozen=True)
class Peel(Directive):
    """peel(x, 1, 1): the first and the last iterations apart from the middle.

    before   for x < 8                    after   for x_out: x_base = 0 then 1 then 7
                                                    for x_in < 1 then 6 then 1    x = x_base + x_in

    Of the outer loop of a cover, its first and last tiles.
    Legal: low + high < extent; a loop not yet marked. What the ranges decide (edges, guards) is
    decided in each part for itself, so the middle loses its tests.
    Elsewhere: loop peeling, index-set splitting; Halide partition, Exo cut_loop.
    """

    axis: str
    low: int
    high: int = 0
    keyword: ClassVar[str] = "peel"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return (self.axis, self.low, self.high), {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        loop = self.loop(nest, self.axis)
        if not loop.segments:
            check_serial(self, nest, loop)
        if min(self.low, self.high) < 0 or not 0 < self.low + self.high < loop.extent:
            self.refuse(
                nest,
                f"nothing would be left of {self.axis}, or nothing be peeled",
                expected=f"low + high in 1..{loop.extent - 1}",
                got=f"{self.low} + {self.high}",
            )
        if not loop.segments:
            check_fresh(self, nest, *_children(self.axis))

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        loop = self.loop(nest, self.axis)
        if loop.segments:
            ends = (self.low, loop.extent - self.high)
            parts = tuple(p for s, first in _numbered(loop) for p in _cut(s, first, ends))
            after = change_loop(nest, loop.name, lambda o: replace(o, segments=parts))
            return replace_nest(kernel, nest.name, after)
        middle = loop.extent - self.low - self.high
        parts = ((0, self.low), (self.low, middle), (self.low + middle, self.high))
        segments = tuple(Segment(start, 1, size) for start, size in parts if size)
        return replace_nest(kernel, nest.name, _segmented(nest, loop, segments))


def split(axis: str, factor: int, tail: str = "exact", *, nest: str = "") -> Split:
    """See Split."""
    return Split(axis, factor, tail, nest=nest)


def cover(axis: str, *sizes: int, nest: str = "") -> Cover:
    """See Cover."""
    return Cover(axis, tuple(sizes), nest=nest)


def peel(axis: str, low: int, high: int = 0, *, nest: str = "") -> Peel:
    """See Peel."""
    return Peel(axis, low, high, nest=nest)


def exact_cover(extent: int, sizes: Sequence[int]) -> dict[int, int] | None:
    """How often each size is used, larger first, to sum up to the extent; None if it cannot be.

    >>> exact_cover(19, (10, 9)), exact_cover(55, (14, 13)), exact_cover(7, (4, 2))
    ({10: 1, 9: 1}, {14: 3, 13: 1}, None)
    """
    ordered = sorted(set(sizes), reverse=True)
    if not ordered:
        return {} if extent == 0 else None
    first, rest = ordered[0], ordered[1:]
    if not rest:
        return (
            {first: extent // first} if extent % first == 0 and extent else (None if extent else {})
        )
    for count in range(extent // first, -1, -1):
        tail = exact_cover(extent - count * first, rest)
        if tail is not None:
            return {first: count, **tail} if count else tail
    return None


def best_cover(extent: int, largest: int) -> tuple[int, ...]:
    """One or two neighbouring sizes, at most `largest`, that cover the extent exactly with the
    fewest tiles.

    >>> best_cover(56, 14), best_cover(55, 14), best_cover(19, 14), best_cover(5, 14)
    ((14,), (14, 13), (10, 9), (5,))
    """
    tiles = -(-extent // largest)
    low, more = divmod(extent, tiles)
    return (low + 1, low) if more else (low,)


def _children(axis: str) -> tuple[str, str, str]:
    return f"{axis}_out", f"{axis}_in", f"{axis}_base"


def _numbered(loop: Loop) -> Iterator[tuple[Segment, int]]:
    """The segments of a loop, each with the number of its first tile."""
    first = 0
    for segment in loop.segments:
        yield segment, first
        first += segment.count


def _cut(segment: Segment, first: int, places: Sequence[int]) -> Iterator[Segment]:
    """The parts of a segment whose tiles are numbered from `first`, cut before some tiles."""
    last = first + segment.count
    ends = [first, *(p for p in places if first < p < last), last]
    for low, high in pairwise(ends):
        yield replace(segment, start=segment.start + segment.size * (low - first), count=high - low)


def _segmented(nest: Nest, loop: Loop, segments: tuple[Segment, ...]) -> Nest:
    outer, inner, base = _children(loop.name)
    pair = (
        replace(
            loop,
            name=outer,
            extent=sum(s.count for s in segments),
            segments=segments,
            inner=inner,
            base=base,
        ),
        replace(loop, name=inner, extent=max(s.size for s in segments)),
    )
    return replace_loops(nest, loop.name, pair, Affine.of(base) + Affine.of(inner))


def _guard(nest: Nest, loop: Loop) -> Constraint | None:
    """The condition "loop variable < extent" over axes, where one axis says it."""
    ranges = {name: (low, high) for name, low, high in nest.ranges}
    for axis, value in nest.axes:
        if axis not in ranges or loop.name not in value.names() or len(value.terms) != 1:
            continue
        atom, coefficient = value.terms[0]
        low, high = ranges[axis]
        span = atom.divisor if isinstance(atom, FloorDiv) and atom.value.single else 1
        plain = isinstance(atom, str) or (isinstance(atom, FloorDiv) and atom.value.single)
        if plain and coefficient == 1 and (high - low) * span == loop.extent:
            return Constraint("<=", Affine.of(axis) - (high - 1))
    return None
