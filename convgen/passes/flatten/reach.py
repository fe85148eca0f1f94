"""Memory safety, all of it: every access of the flat statements, conditional ones too.

`check_memory` judges what always happens, quickly, whenever a kernel is made. This is the thorough
one, for certificates: offsets are bounded over loops, Ifs, masks (lane by lane) and the integer
arithmetic of folded edges. A bound under conditions ``line <= 0`` is found by adding multiples of
the lines that cancel a variable (what Farkas' lemma says is enough).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from convgen.affine import Affine, Constraint, FloorDiv, Mod
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import (
    Block,
    Broadcast,
    Buffer,
    Const,
    Expr,
    For,
    Gather,
    If,
    Index,
    Kernel,
    Let,
    Op,
    Phase,
    Register,
    Set,
    Stmt,
    Store,
    VectorLoad,
)
from convgen.ir.regions import tighten
from convgen.ir.visit import walk
from convgen.passes.flatten.proof import affine_bounds

LANE = "$lane"
DEPTH = 4  # how many conditions one bound may use
FAR = 1 << 62

Interval = tuple[int, int]  # first and last


@dataclass(frozen=True)
class Reaches:
    """proved: accesses that stay inside their buffers at all points; unproved: the others, as text,
    which rest on what this analysis does not follow."""

    proved: int
    unproved: tuple[str, ...]


def survey_memory(kernel: Kernel) -> Reaches:
    """Judge every load and store of a FLAT kernel."""
    buffers = {b.name: b for b in kernel.buffers}
    proved, unproved = 0, list[str]()
    for phase in kernel.phases:
        body = phase.body
        assert not isinstance(body, tuple)
        count = Counter(s.register for s in _sets(body))
        known = {s.register: s.value for s in _sets(body) if count[s.register] == 1}
        survey = _Survey(buffers, phase, known)
        tasks = max(phase.extent, 1)
        survey.visit(body, _Facts({"begin": (0, tasks + 1), "end": (0, tasks + 1)}))
        proved += survey.proved
        unproved += survey.unproved
    return Reaches(proved, tuple(dict.fromkeys(unproved)))


@dataclass(frozen=True)
class _Facts:
    """What holds at a statement: ranges (lo, hi) of variables, and `lines` that are <= 0."""

    ranges: dict[str, tuple[int, int]]
    lines: tuple[Affine, ...] = ()

    def bind(self, name: str, low: int, high: int, *lines: Affine) -> _Facts:
        kept = tuple(line for line in self.lines if name not in line.names())
        return _Facts({**self.ranges, name: (low, high)}, (*kept, *lines))

    def given(self, lines: Iterable[Affine]) -> _Facts:
        said = dict.fromkeys(self.lines)
        for line in lines:
            said.setdefault(line)
            said.update(dict.fromkeys(_undivided(line)))
        if len(said) == len(self.lines):
            return self
        found = tuple(said)
        held = tighten(self.ranges, [Constraint("<=", line) for line in found])
        return _Facts(held, found)

    @property
    def impossible(self) -> bool:
        """No point is left."""
        return any(high <= low for low, high in self.ranges.values())

    def most(self, value: Affine, enough: int, depth: int = DEPTH) -> int:
        """An upper bound of a value; the search stops at one that is `enough`."""
        best = affine_bounds(value, self.ranges)[1]
        if best <= enough or depth == 0:
            return best
        terms = dict(value.terms)
        for line in self.lines:
            for atom, slope in line.terms:
                own = terms.get(atom, 0)
                if own * slope <= 0:
                    continue
                times = abs(slope) // math.gcd(own, slope)
                without = value * times - line * (own * times // slope)
                best = min(best, self.most(without, enough * times, depth - 1) // times)
                if best <= enough:
                    return best
        return best

    def interval(self, value: Affine, inside: Interval) -> Interval:
        """(least, most) of a value, tight enough to say whether it lies inside, where it does."""
        return -self.most(-value, -inside[0]), self.most(value, inside[1])


@dataclass
class _Survey:
    buffers: dict[str, Buffer]
    phase: Phase
    known: dict[str, Expr]  # registers that are set once
    proved: int = 0
    unproved: list[str] = field(default_factory=list[str])

    # -- statements -------------------------------------------------------------------------------

    def visit(self, stmt: Stmt, facts: _Facts) -> None:
        if facts.impossible:
            return
        match stmt:
            case Block():
                for part in stmt.body:
                    self.visit(part, facts)
            case For():
                self.visit(stmt.body, self._loop(stmt, facts))
            case Let():
                low, high = affine_bounds(stmt.value, facts.ranges)
                here = Affine.of(stmt.var) - stmt.value
                same = (here, -here) if stmt.value.is_plain else ()
                self.visit(stmt.body, facts.bind(stmt.var, low, high + 1, *same))
            case If():
                self.visit(stmt.then, facts.given(self.lines(stmt.condition)))
                if stmt.orelse is not None:
                    self.visit(stmt.orelse, facts.given(self.denied(stmt.condition)))
            case Set() | Store():
                self._accesses(stmt, facts)

    def _loop(self, loop: For, facts: _Facts) -> _Facts:
        low = affine_bounds(loop.begin, facts.ranges)[0]
        high = affine_bounds(loop.end, facts.ranges)[1]
        if "end" in loop.end.names():
            high = max(self.phase.extent, 1)
        last = low + (high - 1 - low) // loop.step * loop.step
        lines: list[Affine] = []
        if loop.begin.names() - {"begin", "end"}:
            lines.append(loop.begin - Affine.of(loop.var))
        elif loop.begin.is_constant:
            high = min(high, last + 1)
        if loop.end.names() - {"begin", "end"}:
            lines.append(Affine.of(loop.var) + 1 - loop.end)
        return facts.bind(loop.var, low, high, *lines)

    def _accesses(self, stmt: Set | Store, facts: _Facts) -> None:
        if isinstance(stmt, Store):
            self._judge(stmt.buffer, stmt.offset, stmt.stride, stmt.valid, stmt.mask, facts)
        for node in walk(stmt.value):
            if isinstance(node, VectorLoad):
                self._judge(node.buffer, node.offset, node.stride, node.valid, node.mask, facts)
            elif isinstance(node, Gather):
                self._judge(node.buffer, node.offset, 0, node.valid, node.mask, facts)

    def _judge(
        self, buffer: str, offset: Expr, stride: int, valid: int, mask: Expr | None, facts: _Facts
    ) -> None:
        inside = (0, size_in_elements(self.buffers[buffer]) - 1)
        here = facts.bind(LANE, 0, max(valid, 1))
        if mask is not None:
            here = here.given(self.lines(mask))
        if not here.impossible:
            low, high = self.interval(offset, here, inside, stride)
            if low < inside[0] or high > inside[1]:
                text = self.affine(offset)
                self.unproved.append(
                    f"phase {self.phase.name}: {buffer}[{'computed' if text is None else text}] "
                    f"within {max(low, -FAR)}..{min(high, FAR)}, wanted 0..{inside[1]}"
                )
                return
        self.proved += 1

    # -- integers ---------------------------------------------------------------------------------

    def affine(self, e: Expr) -> Affine | None:
        """An integer expression as an index of variables and the lane; None for any other."""
        match e:
            case Index():
                return e.value + e.stride * Affine.of(LANE) if e.lanes > 1 else e.value
            case Const(value=int()):
                return Affine((), int(e.value))
            case Broadcast():
                return self.affine(e.value)
            case Register() if e.name in self.known:
                return self.affine(self.known[e.name])
            case Op(name="add" | "sub"):
                a, b = (self.affine(x) for x in e.args)
                if a is None or b is None:
                    return None
                return a + b if e.name == "add" else a - b
            case Op(name="mul" | "mod" | "floordiv"):
                a, b = (self.affine(x) for x in e.args)
                if a is None or b is None or not b.is_constant:
                    return None
                if e.name == "mul":
                    return a * b.constant
                if b.constant < 1:
                    return None
                kind = Mod if e.name == "mod" else FloorDiv
                return Affine.of(kind(a, b.constant))
            case _:
                return None

    def interval(self, e: Expr, facts: _Facts, inside: Interval, stride: int = 0) -> Interval:
        """(first, last) value of an integer expression plus lane * stride."""
        value = self.affine(e)
        if value is not None:
            return facts.interval(value + stride * Affine.of(LANE), inside)
        match e:
            case Register() if e.name in self.known:
                return self.interval(self.known[e.name], facts, inside, stride)
            case Op(name="select"):
                yes = facts.given(self.lines(e.args[0]))
                no = facts.given(self.denied(e.args[0]))
                return _union(
                    self.interval(x, f, inside, stride)
                    for x, f in ((e.args[1], yes), (e.args[2], no))
                    if not f.impossible
                )
            case _:
                low, high = self._computed(e, facts)
                lane = facts.interval(stride * Affine.of(LANE), (FAR, -FAR))
                return low + lane[0], high + lane[1]

    def _computed(self, e: Expr, facts: _Facts) -> Interval:
        """The arithmetic of edges: |i|, last - i, min, max, mod, choices by a condition."""
        value = self.affine(e)
        if value is not None:
            return facts.interval(value, (FAR, -FAR))
        match e:
            case Register() if e.name in self.known:
                return self._computed(self.known[e.name], facts)
            case Broadcast():
                return self._computed(e.value, facts)
            case Op(name="select"):
                yes = facts.given(self.lines(e.args[0]))
                no = facts.given(self.denied(e.args[0]))
                return _union(
                    self._computed(x, f)
                    for x, f in ((e.args[1], yes), (e.args[2], no))
                    if not f.impossible
                )
            case Op():
                return _apply(e.name, [self._computed(a, facts) for a in e.args])
            case _:
                return -FAR, FAR

    # -- conditions -------------------------------------------------------------------------------

    def lines(self, condition: Expr) -> Iterator[Affine]:
        """What is <= 0 where a condition holds."""
        match condition:
            case Register() if condition.name in self.known:
                yield from self.lines(self.known[condition.name])
            case Broadcast():
                yield from self.lines(condition.value)
            case Op(name="and"):
                for part in condition.args:
                    yield from self.lines(part)
            case Op(name="le" | "lt" | "eq"):
                a, b = (self.affine(x) for x in condition.args)
                if a is not None and b is not None:
                    yield a - b + (condition.name == "lt")
                    if condition.name == "eq":
                        yield b - a
            case _:
                return

    def denied(self, condition: Expr) -> Iterator[Affine]:
        """What is <= 0 where a single comparison does not hold."""
        match condition:
            case Register() if condition.name in self.known:
                yield from self.denied(self.known[condition.name])
            case Broadcast():
                yield from self.denied(condition.value)
            case Op(name="le" | "lt"):
                for line in self.lines(condition):
                    yield 1 - line
            case _:
                return


def _undivided(line: Affine) -> Iterator[Affine]:
    """e // d <= k is e <= d*k + d - 1, and e // d >= k is e >= d*k."""
    if len(line.terms) != 1:
        return
    ((atom, slope),) = line.terms
    if not isinstance(atom, FloorDiv):
        return
    if slope > 0:
        yield atom.value - (atom.divisor * (-line.constant // slope + 1) - 1)
    else:
        yield atom.divisor * -(-line.constant // -slope) - atom.value


def _sets(stmt: Stmt) -> Iterator[Set]:
    match stmt:
        case Block():
            for part in stmt.body:
                yield from _sets(part)
        case For() | Let():
            yield from _sets(stmt.body)
        case If():
            yield from _sets(stmt.then)
            if stmt.orelse is not None:
                yield from _sets(stmt.orelse)
        case Set():
            yield stmt
        case Store():
            return


def _union(sides: Iterable[Interval]) -> Interval:
    found = list(sides)
    return min((s[0] for s in found), default=0), max((s[1] for s in found), default=0)


def _apply(name: str, args: list[Interval]) -> Interval:
    """Interval arithmetic; everything for what is not known."""
    match name, args:
        case "add", [(a, b), (c, d)]:
            return a + c, b + d
        case "sub", [(a, b), (c, d)]:
            return a - d, b - c
        case "mul", [(a, b), (c, d)]:
            products = (a * c, a * d, b * c, b * d)
            return min(products), max(products)
        case "min", [(a, b), (c, d)]:
            return min(a, c), min(b, d)
        case "max", [(a, b), (c, d)]:
            return max(a, c), max(b, d)
        case "neg", [(a, b)]:
            return -b, -a
        case "abs", [(a, b)]:
            return (0 if a <= 0 <= b else min(abs(a), abs(b))), max(abs(a), abs(b))
        case "mod", [(a, b), (c, d)] if c == d > 0:  # rounds down
            return (a, b) if 0 <= a and b < c else (0, c - 1)
        case "floordiv", [(a, b), (c, d)] if c == d > 0:
            return a // c, b // c
        case _:
            return -FAR, FAR
