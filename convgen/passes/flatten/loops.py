"""Walking the loops of a nest: segments, partial unrolling, guards hoisted, interior versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from convgen.affine import Affine, Constraint
from convgen.ir.nodes import Loop, LoopKind, Nest, Segment
from convgen.ir.simplify import decide, simplify_affine
from convgen.passes.flatten.edges import Elements
from convgen.passes.flatten.scope import LANE, Scope, upper

Leaf = Callable[[Scope], None]


@dataclass(frozen=True, slots=True)
class Walk:
    """What happens in a walk: `leaf` inside all loops; `guards` (over axes) are tested as far out
    as they can be; `limits` (over axes, all ``<=``) hold in the interior, where edges and guards
    need no test; `later` are the loops that the leaf enters; `skips` (over axes, ``<=``) are tested
    in the interior too, as soon as the loops of the walk tell that they fail for all iterations of
    `later`."""

    leaf: Leaf
    guards: tuple[Constraint, ...] = ()
    limits: tuple[Constraint, ...] = ()
    later: tuple[Loop, ...] = ()
    skips: tuple[Constraint, ...] = ()
    attached: Callable[[str, Scope], None] | None = None


def extent_of(loop: Loop, scope: Scope) -> int:
    """Iterations of a loop without segments, where the walk is."""
    return scope.extents.get(loop.name, loop.extent)


def parts_of(loop: Loop, scope: Scope) -> tuple[Segment, ...]:
    """The segments of a loop that have iterations; a loop without segments is none."""
    return tuple(s for s in loop.segments if s.count > 0 and s.size > 0)


def entered(loop: Loop, segment: Segment, scope: Scope, count: Affine) -> Scope:
    """Inside iteration `count` of a segment."""
    inside = scope.bind(loop.base, count * segment.size + segment.start)
    return inside.sized(loop.inner, segment.size)


class Loops:
    """Emits loops. `decoded` gives the loops that the task number stands for."""

    def __init__(self, values: Elements, nest: Nest, decoded: Mapping[str, Affine]) -> None:
        self.values = values
        self.emitter = values.emitter
        self.nest = nest
        self.decoded = decoded
        self._segmented = {one.inner: one for one in nest.loops if one.segments}

    # -- one loop ------------------------------------------------------------------------------

    def iterate(self, loop: Loop, scope: Scope, body: Leaf) -> None:
        """All iterations of a loop, in order."""
        if loop.name in self.decoded:
            self._decode(loop, scope, body)
        elif loop.segments:
            for segment in parts_of(loop, scope):
                self._count(
                    loop,
                    segment.count,
                    scope,
                    lambda s, g=segment: body(
                        entered(loop, g, s, s.values.get(loop.name, Affine.of(loop.name)))
                    ),
                )
        else:
            self._count(loop, extent_of(loop, scope), scope, body)

    def _count(self, loop: Loop, count: int, scope: Scope, body: Leaf) -> None:
        """Iterations 0..count-1."""
        if count <= 0:
            return
        if count == 1 or loop.kind in (LoopKind.UNROLL, LoopKind.VECTOR):
            for i in range(count):
                body(scope.bind(loop.name, i))
            return
        steps = max(1, min(loop.steps, count))
        whole = count - count % steps
        var = loop.name
        with self.emitter.loop(var, Affine(), Affine((), whole), steps):
            inside = scope.live(var, 0, whole - steps + 1)
            for step in range(steps):
                body(inside if steps == 1 else _stepped(inside, var, step))
        if whole < count:
            rest = replace(loop, steps=1)
            self._rest(rest, whole, count, scope, body)

    def _rest(self, loop: Loop, begin: int, end: int, scope: Scope, body: Leaf) -> None:
        """Iterations begin..end-1, fewer than the steps of the loop before."""
        if end - begin == 1:
            body(scope.bind(loop.name, begin))
            return
        with self.emitter.loop(loop.name, Affine((), begin), Affine((), end)):
            body(scope.live(loop.name, begin, end))

    def _decode(self, loop: Loop, scope: Scope, body: Leaf) -> None:
        """A loop whose iteration is part of the task number."""
        name, value = loop.name, self.decoded[loop.name]
        parts = parts_of(loop, scope)
        total = sum(s.count for s in parts) if loop.segments else loop.extent
        if total == 1:
            inside = scope.bind(name, 0)
            body(entered(loop, parts[0], inside, Affine()) if parts else inside)
            return
        with self.emitter.let(name, simplify_affine(value, scope.ranges)):
            if not parts:
                extent = extent_of(loop, scope)  # below `total` in a shorter segment
                inside = Constraint("<=", Affine.of(name) - (extent - 1))
                test = self.values.condition(inside, scope) if extent < total else None
                with self.emitter.when(test):
                    body(scope.live(name, 0, extent))
            else:
                self._choose(loop, parts, 0, scope, body)

    def _choose(
        self, loop: Loop, parts: Sequence[Segment], before: int, scope: Scope, body: Leaf
    ) -> None:
        """The segment that the iteration of a decoded loop is in."""
        segment = parts[0]
        after = before + segment.count
        number = Affine.of(loop.name)

        def inside() -> None:
            within = scope.live(loop.name, before, after)
            body(entered(loop, segment, within, number - before))

        if len(parts) == 1:
            inside()
            return
        with self.emitter.block() as then:
            inside()
        with self.emitter.block() as orelse:
            self._choose(loop, parts[1:], after, scope, body)
        condition = self.values.condition(Constraint("<=", number - (after - 1)), scope)
        self.emitter.branch(condition, then, orelse)

    # -- several loops -------------------------------------------------------------------------

    def each(self, loops: Sequence[Loop], scope: Scope, leaf: Leaf) -> None:
        """Loops inside one another, nothing else."""
        if not loops:
            leaf(scope)
        else:
            self.iterate(loops[0], scope, lambda s: self.each(loops[1:], s, leaf))

    def walk(self, loops: Sequence[Loop], scope: Scope, job: Walk) -> None:
        """Loops inside one another, with the guards and interior tests of the job."""
        closed: list[Constraint] = []
        waiting = self._names((*loops, *job.later))
        guards = [g for g in job.guards if not (scope.interior and g.kind == "<=")]
        tests = [replace(g, value=self.values.resolve(g.value, scope)) for g in guards]
        tests += [self._somewhere(s, scope, job.later) for s in job.skips]
        for resolved in tests:
            if resolved.value.names() & waiting or resolved in scope.known:
                continue
            known = decide(resolved, scope.ranges)
            if known is False:
                return
            if known is None:
                closed.append(resolved)
        closed = list(dict.fromkeys(closed))
        test = self.values.all_of(self.values.condition(c, scope) for c in closed)
        with self.emitter.when(test):
            self._version(loops, scope.knowing(closed), job)

    def _somewhere(self, limit: Constraint, scope: Scope, later: Sequence[Loop]) -> Constraint:
        """What holds wherever a limit holds for some iteration of the later loops."""
        value = self._covered(self.values.resolve(limit.value, scope))
        names = self._names(later)
        inner = {n: pair for n, pair in self._ranges(later).items() if n in names}
        inner |= {n: (0, extent) for n, extent in scope.extents.items() if n in inner}
        return replace(limit, value=-upper(-value, inner))

    def _version(self, loops: Sequence[Loop], scope: Scope, job: Walk) -> None:
        """Split into interior and the rest, where entering more loops would tell nothing new."""
        if scope.interior or scope.versioned or not (loops or job.later):
            self._enter(loops, scope, job)
            return
        pending = self.pending(scope, job.limits, (*loops, *job.later))
        if not pending:
            self._enter(loops, replace(scope, interior=True), job)
            return
        serial = self._names(one for one in (*loops, *job.later) if not expands(one))
        if any(p.names() & serial for p in pending):
            self._enter(loops, scope, job)
            return
        self.versions(
            pending,
            scope,
            (*loops, *job.later),
            lambda s: self._enter(loops, s if s.interior else replace(s, versioned=True), job),
        )

    def versions(
        self, pending: Sequence[Affine], scope: Scope, inner: Sequence[Loop], emit: Leaf
    ) -> None:
        """emit under a test that all of `pending` are <= 0 whatever the inner loops do, and again
        for when the test fails; once where the test cannot succeed."""
        tests = self._tests(pending, inner)
        if any(decide(t, scope.ranges) is False for t in tests):
            emit(scope)
            return
        condition = self.values.all_of(
            self.values.condition(t, scope) for t in tests if not decide(t, scope.ranges)
        )
        if condition is None:
            emit(replace(scope, interior=True))
            return
        with self.emitter.block() as then:
            emit(replace(scope, interior=True))
        with self.emitter.block() as orelse:
            emit(scope)
        self.emitter.branch(condition, then, orelse)

    def pending(
        self, scope: Scope, limits: Sequence[Constraint], inner: Sequence[Loop]
    ) -> list[Affine]:
        """The limits that may be broken in the inner loops, as expressions that should be <= 0."""
        ranges = {**scope.ranges, **self._ranges(inner)}
        found: dict[Affine, None] = {}
        for limit in limits:
            value = self._covered(self.values.resolve(limit.value, scope))
            resolved = Constraint("<=", value)
            if resolved not in scope.known and decide(resolved, ranges) is not True:
                found[value] = None
        return list(found)

    def _tests(self, pending: Sequence[Affine], inner: Sequence[Loop]) -> list[Constraint]:
        """The strictest of the tests over outer variables that differ by a constant only."""
        ranges = self._ranges(inner)
        strictest: dict[tuple[object, ...], Affine] = {}
        for value in pending:
            test = upper(value, ranges)
            other = strictest.get(test.terms)
            if other is None or other.constant < test.constant:
                strictest[test.terms] = test
        return [Constraint("<=", t) for t in strictest.values()]

    # -- names of loops not entered yet --------------------------------------------------------

    def _names(self, loops: Iterator[Loop] | Sequence[Loop]) -> set[str]:
        names: set[str] = set()
        for loop in loops:
            names.add(loop.name)
            if loop.segments:
                names |= {loop.base, _cover(loop)}
        return names

    def _ranges(self, loops: Sequence[Loop]) -> dict[str, tuple[int, int]]:
        """Ranges of the variables of loops not entered yet."""
        found: dict[str, tuple[int, int]] = {LANE: (0, 1)}
        for loop in loops:
            if not loop.segments:
                owner = self._segmented.get(loop.name)
                sizes = [s.size for s in parts_of(owner, Scope())] if owner else []
                found[loop.name] = (0, max([loop.extent, *sizes]) if not owner else max(sizes))
                continue
            parts = parts_of(loop, Scope())
            found[loop.name] = (0, max(s.count for s in parts))
            found[loop.base] = (
                min(s.start for s in parts),
                max(s.start + s.size * (s.count - 1) for s in parts) + 1,
            )
            found[_cover(loop)] = (
                min(s.start for s in parts),
                max(s.start + s.size * s.count for s in parts),
            )
        return found

    def _covered(self, value: Affine) -> Affine:
        """base + inner of a cover not entered yet, as the covered axis (its range is exact)."""
        for loop in self._segmented.values():
            coefficient = value.coefficient(loop.base)
            if coefficient and coefficient == value.coefficient(loop.inner):
                rest = value.without(loop.base).without(loop.inner)
                value = rest + Affine.of(_cover(loop)) * coefficient
        return value

    def _enter(self, loops: Sequence[Loop], scope: Scope, job: Walk) -> None:
        if not loops:
            job.leaf(scope)
            return
        name = loops[0].name

        def body(inside: Scope) -> None:
            if job.attached is not None:
                job.attached(name, inside)
            self.walk(loops[1:], inside, job)

        self.iterate(loops[0], scope, body)


def expands(loop: Loop) -> bool:
    """True for loops that become straight-line code."""
    return loop.kind in (LoopKind.UNROLL, LoopKind.VECTOR)


def _stepped(scope: Scope, var: str, step: int) -> Scope:
    return scope.bind(var, Affine.of(var) + step)


def _cover(loop: Loop) -> str:
    return f"${loop.base}"
