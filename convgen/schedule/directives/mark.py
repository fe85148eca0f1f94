"""Directives that say how a loop runs: unroll, vectorize, parallel, carry, rfactor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from convgen.ir.nodes import Kernel, Load, Loop, LoopKind, Nest, ReduceNode
from convgen.ir.visit import loads
from convgen.schedule.access import (
    in_loops,
    loads_of,
    offset_of,
    pattern_of,
    tile_loops,
    tile_sizes,
    trips,
    vector_dtype,
    vectors_along,
)
from convgen.schedule.directives.base import (
    Directive,
    Value,
    change_loop,
    outside,
    replace_nest,
    segment_owner,
)
from convgen.target import Target

# A tile that is written out in full must stay readable for the register allocator.
UNROLL_LIMIT = 4096
# Iterations that make a call of a worker worth its start: a fork and join takes 0.1 us.
POINTS_PER_CALL = 8192


@dataclass(frozen=True)
class Unroll(Directive):
    """unroll(x): every iteration written out; unroll(x, 4): four per jump.

    before   for r < 3: f(r)              after   f(0) f(1) f(2)

    Legal: a serial loop; a loop of segments only runs over its segments and cannot be unrolled.
    Elsewhere: unroll (Halide, TVM, Exo), #pragma unroll.
    """

    axis: str
    steps: int = 0
    keyword: ClassVar[str] = "unroll"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return ((self.axis, self.steps) if self.steps else (self.axis,)), {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        loop = self.loop(nest, self.axis)
        _check_unmarked(self, nest, loop)
        _check_plain(self, nest, loop)
        if self.steps < 0 or self.steps > loop.extent:
            self.refuse(
                nest,
                "the steps must fit the extent",
                expected=f"steps in 1..{loop.extent}",
                got=str(self.steps),
            )
        if not self.steps and loop.extent > UNROLL_LIMIT:
            self.refuse(
                nest,
                f"{self.axis} is too long to be written out",
                expected=f"an extent of at most {UNROLL_LIMIT}",
                got=str(loop.extent),
                hint=f"unroll({self.axis}, 4)",
            )

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        def mark(loop: Loop) -> Loop:
            if self.steps:
                return replace(loop, steps=self.steps)
            return replace(loop, kind=LoopKind.UNROLL)

        return replace_nest(kernel, nest.name, change_loop(nest, self.axis, mark))


@dataclass(frozen=True)
class Vectorize(Directive):
    """vectorize(k_in): all iterations at once, in as many vector registers as they need.

    before   for k_in < 32: f(k_in)       after   vector k_in < 32: f(k_in)

    An extent that is no multiple of the lanes ends in a partly used vector. Legal: one loop of the
    nest, innermost of those that stay loops; each operand contiguous along it, broadcast, or in
    one pattern that a shuffle makes of a vector, as the channels of groups (with `strided`, any:
    gathered element by element, and noted); a reduce loop only after rfactor.
    Elsewhere: vectorize (Halide, TVM), simd (OpenMP).
    """

    axis: str
    strided: bool = False
    keyword: ClassVar[str] = "vectorize"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return (self.axis,), ({"strided": True} if self.strided else {})

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        loop = self.loop(nest, self.axis)
        _check_unmarked(self, nest, loop)
        _check_plain(self, nest, loop)
        others = [o.name for o in nest.loops if o.kind is LoopKind.VECTOR and _meets(o, loop)]
        if others:
            self.refuse(
                nest,
                f"{others[0]} is vectorized already",
                expected="one vector loop",
                got=f"{others[0]}, {self.axis}",
            )
        for producer in nest.attached:
            if self.axis in outside(nest, producer.at):
                self.refuse(
                    nest,
                    f"{producer.nest.name} is computed inside {self.axis}",
                    expected="a loop further in than " + producer.at,
                    got=self.axis,
                )
        if loop.reduce is not None:
            factored = nest.reduces[loop.reduce].factored
            if self.axis not in factored:
                self.refuse(
                    nest,
                    f"the iterations of {self.axis} share one state",
                    expected="an output loop or a factored reduce loop",
                    got=f"{self.axis} (reduce)",
                    hint=f"rfactor({self.axis})",
                )
        if not self.strided:
            self._check_operands(nest, kernel, loop, target)

    def _step(self, load: Load, nest: Nest, kernel: Kernel, target: Target) -> int | str:
        """The step along the vector: a number, "pattern" (one load and a shuffle) or "varying"."""
        offset = offset_of(kernel.buffer(load.buffer), load.index, nest)
        if self.axis not in offset.hidden_names():
            return offset.coefficient(self.axis)
        lanes = target.lanes(vector_dtype(nest, kernel))
        return "varying" if pattern_of(offset, self.axis, lanes) is None else "pattern"

    def _check_operands(self, nest: Nest, kernel: Kernel, loop: Loop, target: Target) -> None:
        for load in loads_of(nest):
            step = self._step(load, nest, kernel, target)
            if step not in (0, 1, -1, "pattern"):
                self.refuse(
                    nest,
                    f"{load.buffer} is strided along {self.axis}",
                    expected="contiguous or broadcast operands",
                    got="a step that varies" if step == "varying" else f"a step of {step}",
                    hint=f"pack({load.buffer}, {self.axis})",
                )
            for index, edge in zip(load.index, load.edges, strict=True):
                if edge is None or edge.kind not in ("reflect", "replicate", "circular"):
                    continue
                if step and self.axis in in_loops(nest, index).names():
                    self.refuse(
                        nest,
                        f"{load.buffer} folds back along {self.axis}",
                        expected="contiguous or broadcast operands",
                        got=f"a {edge.kind} edge",
                        hint=f"pack({load.buffer}, {self.axis})",
                    )

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        after = change_loop(nest, self.axis, lambda o: replace(o, kind=LoopKind.VECTOR))
        out = replace_nest(kernel, nest.name, after)
        for load in loads_of(nest) if self.strided else ():
            step = self._step(load, nest, kernel, target)
            if step not in (0, 1, "pattern"):
                text = "a varying step" if step == "varying" else f"a step of {step}"
                note = f"{nest.name}: {load.buffer} is gathered along {self.axis} ({text})"
                if note not in out.notes:
                    out = replace(out, notes=(*out.notes, note))
        return out


@dataclass(frozen=True)
class Parallel(Directive):
    """parallel(n, k_out): the iterations of these loops together are the tasks of the phase.

    before   for n < 2                    after   parallel n < 2
               for k_out < 4                        parallel k_out < 4      8 tasks

    Legal: output loops, outermost, named in their order; of a cover or peel the outer loop.
    Elsewhere: parallel (Halide, TVM), parallel for collapse(n) (OpenMP).
    """

    axes: tuple[str, ...]
    keyword: ClassVar[str] = "parallel"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return self.axes, {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        for name in self.axes:
            loop = self.loop(nest, name)
            if loop.reduce is not None:
                self.refuse(
                    nest,
                    f"{name} is a reduce loop, its iterations share a result",
                    expected="output loops",
                    got=name,
                )
            _check_unmarked(self, nest, loop)
            if segment_owner(nest, name):
                self.refuse(
                    nest,
                    f"{name} has another extent in each segment",
                    expected="the outer loop of a cover or peel",
                    got=name,
                )
        first = [loop.name for loop in nest.loops][: len(self.axes)]
        if not self.axes or first != list(self.axes):
            self.refuse(
                nest,
                "the parallel loops must be the outermost, in their order",
                expected="the outermost loops" + (f": {', '.join(first)}" if first else ""),
                got=", ".join(self.axes) or "none",
                hint=f"reorder({', '.join(self.axes)}, ...) before" if self.axes else None,
            )

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        after = nest
        for name in self.axes:
            after = change_loop(after, name, lambda o: replace(o, kind=LoopKind.PARALLEL))
        return set_grain(replace_nest(kernel, nest.name, after), nest.name)


@dataclass(frozen=True)
class Carry(Directive):
    """carry(): the states of the tile live in registers through the reduce loops.

    before   for c: for x_in: acc[x_in] += ...   (states in memory)
    after    s0 s1 .. = 0; for c: s0 += ..; s1 += ..; ..; store s0, s1, ..

    Output loops may run inside reduce loops where other reduce loops run inside them. The states
    lie in memory then; those of one tile are in registers during the loops inside.

    before   for n: for k_out: for x: acc[k_out][k_in] += ...
    after    acc = 0; for n: for k_out: s0 .. = acc[k_out]; for x: s0 += ..; ..; acc[k_out] = s0 ..

    carry(follow=X): the points of the tile and of the innermost unrolled reduce loops run in the
    order of the elements of X that they read; each state meets its elements in the same order as
    before. Where a window slides along X, one vector of X is live at a time then.

    Legal: a nest that reduces, its tile loops unrolled or vectorized, and the states with their
    operands within the vector registers of the target, two left free. To follow: one reduce, whose
    body reads X once and whose innermost loop is unrolled; no unrolled reduce loop in two
    dimensions of X, no two in one.
    Elsewhere: register tiling, accumulators in registers; scalar replacement.
    """

    follow: str = ""
    keyword: ClassVar[str] = "carry"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return (), ({"follow": self.follow} if self.follow else {})

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        if not nest.reduces:
            self.refuse(nest, "nothing is reduced", expected="a nest with a reduce", got=nest.name)
        for loop in tile_loops(nest):
            if loop.kind is LoopKind.SERIAL and loop.extent > 1:
                self.refuse(
                    nest,
                    f"the tile loop {loop.name} stays a loop, registers have no addresses",
                    expected="tile loops that are unrolled or vectorized",
                    got=f"{loop.name} (serial)",
                    hint=f"unroll({loop.name})",
                )
        need, have = registers_needed(nest, target), target.vector_registers - 2
        if need > have:
            self.refuse(
                nest,
                "the tile does not fit the vector registers",
                expected=f"at most {have} live vectors of {target.vector_registers}",
                got=str(need),
                hint="a smaller tile",
            )
        if self.follow:
            self._check_follow(nest)

    def _check_follow(self, nest: Nest) -> None:
        read = [o for r in nest.reduces for o in loads(r.body) if o.buffer == self.follow]
        if len(nest.reduces) != 1 or len(set(read)) != 1:
            self.refuse(
                nest,
                f"an order of {self.follow} is wanted",
                expected=f"one reduce that reads one element of {self.follow}",
                got=f"{len(nest.reduces)} reduces with {len(set(read))} such loads",
            )
        places = [in_loops(nest, index) for index in read[0].index]
        loops = innermost_unrolled(nest)
        if not loops:
            self.refuse(
                nest,
                "no reduce loop is written out",
                expected="an innermost reduce loop that is unrolled",
                got="none",
                hint="unroll first",
            )
        moved = [[o.name for o in loops if o.name in place.names()] for place in places]
        once = [name for names in moved for name in names]
        hidden = {n for place in places for n in place.hidden_names()}
        if any(len(names) > 1 for names in moved) or len(once) > len(set(once)) or hidden & {*once}:
            self.refuse(
                nest,
                f"the order of {self.follow} would not keep the order of the loops",
                expected=f"each unrolled reduce loop in a dimension of {self.follow} of its own",
                got=", ".join(str(place) for place in places),
            )

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        reduces = tuple(replace(r, carried=True, follows=self.follow) for r in nest.reduces)
        return replace_nest(kernel, nest.name, replace(nest, reduces=reduces))


@dataclass(frozen=True)
class Rfactor(Directive):
    """rfactor(c_in): each iteration of a reduce loop keeps a state of its own; the states are
    joined in loop order at the end.

    before   s = 0; for c_out, c_in: s += ..
    after    s[c_in] = 0; for c_out, c_in: s[c_in] += ..; s = s[0] + s[1] + ..

    Makes a reduce loop fit for vectorize and unroll. Legal: an associative reduction; one whose
    result depends on the order only where the factored loop is the outermost of its reduce.
    Elsewhere: rfactor (Halide, TVM), partial sums, privatization.
    """

    axis: str
    keyword: ClassVar[str] = "rfactor"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return (self.axis,), {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        loop = self.loop(nest, self.axis)
        _check_unmarked(self, nest, loop)
        if loop.reduce is None:
            self.refuse(
                nest, f"{self.axis} is an output loop", expected="a reduce loop", got=self.axis
            )
        _check_plain(self, nest, loop)
        for number, reduce in enumerate(nest.reduces):
            if nest.leader(number) == loop.reduce:
                self._check_reduce(nest, reduce, loop)

    def _check_reduce(self, nest: Nest, reduce: ReduceNode, loop: Loop) -> None:
        if self.axis in reduce.factored:
            self.refuse(nest, f"{self.axis} is factored already", expected="an unmarked loop")
        if not reduce.combiner.associative:
            self.refuse(
                nest,
                f"{reduce.combiner.name} is not associative, its states cannot be joined",
                expected="an associative reduction",
                got=reduce.combiner.name,
            )
        first = next(o.name for o in nest.loops if o.reduce == loop.reduce)
        if not reduce.combiner.in_any_order and first != self.axis:
            self.refuse(
                nest,
                f"{reduce.combiner.name} depends on the order of its elements",
                expected=f"the outermost loop of its reduce, {first}",
                got=self.axis,
            )

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        number = self.loop(nest, self.axis).reduce
        reduces = tuple(
            replace(r, factored=(*r.factored, self.axis)) if nest.leader(i) == number else r
            for i, r in enumerate(nest.reduces)
        )
        return replace_nest(kernel, nest.name, replace(nest, reduces=reduces))


def unroll(axis: str, steps: int = 0, *, nest: str = "") -> Unroll:
    """See Unroll."""
    return Unroll(axis, steps, nest=nest)


def vectorize(axis: str, strided: bool = False, *, nest: str = "") -> Vectorize:
    """See Vectorize."""
    return Vectorize(axis, strided, nest=nest)


def parallel(*axes: str, nest: str = "") -> Parallel:
    """See Parallel."""
    return Parallel(tuple(axes), nest=nest)


def carry(*, follow: str = "", nest: str = "") -> Carry:
    """See Carry."""
    return Carry(follow, nest=nest)


def rfactor(axis: str, *, nest: str = "") -> Rfactor:
    """See Rfactor."""
    return Rfactor(axis, nest=nest)


def innermost_unrolled(nest: Nest) -> list[Loop]:
    """The reduce loops that are written out and stand inside all others of their reduce."""
    found: list[Loop] = []
    for loop in reversed([o for o in nest.loops if o.reduce is not None]):
        if loop.kind is not LoopKind.UNROLL or loop.reduce != (found or [loop])[0].reduce:
            break
        found.insert(0, loop)
    return found


def registers_needed(nest: Nest, target: Target) -> int:
    """Live vectors in the hot loop of a carried nest: the states of the tile and the operands along
    the vector loop. Broadcast operands come from memory or from the two registers left free."""
    states: dict[int, int] = {}
    operands: dict[int, int] = {}
    for number, reduce in enumerate(nest.reduces):
        dtypes = reduce.combiner.dtypes
        lanes = min(target.lanes(d) for d in dtypes)
        leader = nest.leader(number)
        own = [o for o in nest.loops if o.reduce in (None, leader)]
        sizes = tile_sizes(replace(nest, loops=tuple(own)), lanes)
        total = math.prod(sizes.values())
        vectors = [sizes[o.name] for o in own if o.kind is LoopKind.VECTOR and o.name in sizes]
        along = vectors[-1] if vectors else 1
        for name in reduce.factored:
            total *= vectors_along(nest, nest.loop(name), lanes)
        states[leader] = states.get(leader, 0) + total * len(dtypes)
        operands[leader] = max(operands.get(leader, 0), along)
    return max((states[i] + operands[i] for i in states), default=0)


def _meets(a: Loop, b: Loop) -> bool:
    """True where two loops can be live at once: output loops, or loops of one reduce."""
    return a.reduce is None or b.reduce is None or a.reduce == b.reduce


def _check_unmarked(directive: Directive, nest: Nest, loop: Loop) -> None:
    if loop.kind is not LoopKind.SERIAL or loop.steps > 1:
        kind = loop.kind.value if loop.kind is not LoopKind.SERIAL else f"unrolled by {loop.steps}"
        directive.refuse(
            nest,
            f"{loop.name} is marked already",
            expected="a serial loop",
            got=f"{loop.name} ({kind})",
        )


def _check_plain(directive: Directive, nest: Nest, loop: Loop) -> None:
    if loop.segments:
        directive.refuse(
            nest,
            f"{loop.name} runs over the segments of a cover or peel",
            expected="a plain loop",
            got=loop.name,
            hint=f"{directive.keyword}({loop.inner})",
        )


def set_grain(kernel: Kernel, name: str) -> Kernel:
    """The phase of a nest with a grain that keeps each call of a worker worth its start."""
    phases = list(kernel.phases)
    for i, phase in enumerate(phases):
        if not isinstance(phase.body, tuple) or all(n.name != name for n in phase.body):
            continue
        work = sum(
            math.prod(trips(o) for o in n.loops if o.kind is not LoopKind.PARALLEL)
            for n in phase.body
        )
        phases[i] = replace(phase, grain=max(1, POINTS_PER_CALL // max(1, work)))
    return replace(kernel, phases=tuple(phases))
