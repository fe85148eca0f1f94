"""Random formulas under random legal schedules: one answer from the definition, the naive loops, the
scheduled loops and the machine; derived gradients against exact Jacobians and finite differences.

Formulas are written as text, so the parser is part of the road. Numbers are small integers: every
stage is exact in every dtype, and any difference is a fault.
"""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import convgen as cg
from convgen import knobs
from convgen.errors import ScheduleError
from convgen.ir.interpret import interpret
from convgen.ir.nodes import Kernel
from convgen.passes.lower import lower
from convgen.schedule import directives as d
from convgen.schedule.access import loads_of
from convgen.schedule.schedule import Schedule, parse_schedule
from convgen.symbolic.duals import vjp
from convgen.symbolic.program import Program
from convgen.target import target

NATIVE = target("native")


@pytest.fixture(autouse=True, scope="module")
def no_cache():
    with knobs.override(CACHE=False):
        yield


# --------------------------------------------------------------------------------- formulas


class Formula:
    """A drawn program: text, with the shapes that its reads need."""

    def __init__(self, seed: int, *, real: bool = False) -> None:
        self.chance = random.Random(seed)
        self.real = real
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.extents = {a: self.chance.randint(1, 5) for a in "abcpq"}
        self.dtype = self.chance.choice(["f64"] if real else ["f32", "f64", "i32", "i64"])
        self.text = self._text()

    def program(self) -> Program:
        tensors = {n: cg.tensor(n, s, self.dtype) for n, s in self.shapes.items()}
        return cg.parse(self.text, **tensors)

    def _text(self) -> str:
        pick = self.chance.choice
        kind = pick(["sum", "sum", "sum", "max", "min", "prod"] + ["argmax"] * (not self.real))
        inner = pick(["p", "q", "p, q"])
        axes = [*"abc"[: self.chance.randint(1, 3)]]
        ranges = ", ".join(f"{a} < {self.extents[a]}" for a in inner.split(", "))
        condition = pick(["", "", "", " where p <= a + 1", " where (p + a) % 2 == 0"])
        if "p" not in inner:
            condition = ""
        body = self._body(axes + inner.split(", "), omit=kind != "prod")
        value = f"{kind}({ranges}{condition}: {body})"
        if kind in ("sum", "max") and self.chance.random() < 0.5:
            value = f"{value} + {self._read('Z', axes, '.')}"
        head = f"T[{', '.join(axes)}]"
        spans = ", ".join(f"{a} < {self.extents[a]}" for a in axes)
        lines = [f"{head} = {value} for {spans}"]
        follow = pick(["none", "none", "stage", "pieces"])
        if follow == "stage":
            rest = axes[1:]
            over = f"sum({axes[0]}: T[{', '.join(axes)}])"
            extra = f" - relu(T[{', '.join(['0', *rest])}])"
            lines.append(f"Y[{', '.join(rest)}] = {over}{extra}")
        if follow == "pieces":
            index = ", ".join(axes)
            double = ", ".join([f"2*{axes[0]}", *axes[1:]])
            odd = ", ".join([f"2*{axes[0]} + 1", *axes[1:]])
            lines.append(f"Y[{double}] = 3 * T[{index}]")
            lines.append(f"Y[{odd}] = {axes[0]} - T[{index}]")
        return "\n".join(lines)

    def _body(self, axes: list[str], omit: bool) -> str:
        modes = [".", "reflect", "replicate", "circular", "2"] + ["omit"] * omit
        x, w = self._read("X", axes, self.chance.choice(modes)), self._read("W", axes, ".")
        forms = ["{x} * {w}", "{x} - 2 * {w}", "maximum({x}, {w})", "{x} * {w} + " + axes[-1]]
        forms += ["select({x} < {w}, {x}, 2 * {w})", "{x} * ({w} + 1)", "relu({x}) - {w}"]
        return self.chance.choice(forms).format(x=x, w=w)

    def _read(self, name: str, axes: list[str], mode: str) -> str:
        """An access of strided, shifted, mixed, divided indices that the boundary can serve."""
        chance = self.chance
        count = chance.randint(1, min(3, len(axes)))
        index: list[str] = []
        shape: list[int] = []
        for axis in chance.sample(axes, count):
            stride, other, slope = (
                chance.choice([1, 1, 2, 3]),
                chance.choice(axes),
                chance.choice([0, 0, 1, 2]),
            )
            top = stride * (self.extents[axis] - 1) + slope * (self.extents[other] - 1)
            value = f"{stride}*{axis}" + (f" + {slope}*{other}" if slope else "")
            draw = chance.random()
            if draw < 0.1:
                value, top = f"({value}) // 2", top // 2
            elif draw < 0.2:
                value, top = f"({value}) % 3", min(top, 2)
            shift = chance.choice([0, 0, 1, 2])
            extent = chance.randint(max(1, top - 2), top + 3)
            if mode in ("reflect", "circular"):
                extent = max(extent, top + 1, shift + 1)
            index.append(f"{value} - {shift}" if shift else value)
            shape.append(extent)
        self.shapes[name] = tuple(shape)
        boundary = "" if mode == "." else "{" + mode + "}"
        return f"{name}{boundary}[{', '.join(index)}]"


def numbers(program: Program, seed: int, bound: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        t.name: rng.integers(-bound, bound + 1, t.shape).astype(t.dtype.numpy_name)
        for t in program.inputs
    }


# --------------------------------------------------------------------------------- schedules


def directive(kernel: Kernel, chance: random.Random) -> d.Directive:
    """Any directive on any loops, legal or not."""
    nest = chance.choice([n for n in kernel.nests() if n.loops])
    names = [loop.name for loop in nest.loops]
    name = chance.choice(names)
    extent = nest.loop(name).extent
    sources = sorted({o.buffer for o in loads_of(nest)}) or ["X"]
    source = chance.choice(sources)
    made: list[d.Directive] = [
        d.split(name, chance.randint(1, max(1, extent)), chance.choice(["exact", "peel", "guard"])),
        d.cover(name, chance.randint(1, 4), chance.randint(1, 4)),
        d.peel(name, chance.randint(0, 2), chance.randint(0, 2)),
        d.reorder(*chance.sample(names, len(names))),
        d.fuse(*chance.sample(names, 2)) if len(names) > 1 else d.unroll(name),
        d.unroll(name, chance.choice([0, 0, 2])),
        d.vectorize(name),
        d.parallel(*names[: chance.randint(1, 2)]),
        d.carry(),
        d.rfactor(name),
        d.pack(source, *chance.sample(names, chance.randint(0, 1)), hoist=chance.random() < 0.5),
        d.compute_at(source, name),
        d.inline(source),
    ]
    return replace(chance.choice(made), nest=nest.name)


def legal_schedule(kernel: Kernel, chance: random.Random, tries: int = 10) -> Schedule:
    after, kept = kernel, list[d.Directive]()
    for _ in range(tries):
        if not any(n.loops for n in after.nests()):
            break
        step = directive(after, chance)
        try:
            after = step.apply(after, NATIVE)
        except ScheduleError:
            continue
        kept.append(step)
    return Schedule(tuple(kept))


# --------------------------------------------------------------------------------- four answers


def exact(program: Program, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = cg.evaluate(program, {n: a.tolist() for n, a in given.items()})
    return {n: np.array([float(v) for v in a.data]).reshape(a.shape) for n, a in found.items()}


def native(program: Program, schedule: Any, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    got = cg.compile(program, schedule=schedule)(*given.values())
    several = got if isinstance(got, tuple) else (got,)
    return {t.name: a for t, a in zip(program.outputs, several, strict=True)}


def disagreements(want: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> list[str]:
    return [
        n for n, a in want.items() if not np.array_equal(a, got[n].astype(float), equal_nan=True)
    ]


def check(seed: int) -> None:
    formula = Formula(seed)
    try:
        program = formula.program()
    except cg.ShapeError:  # a drawn fold that does not reach
        return
    given = numbers(program, seed)
    want = exact(program, given)
    if any(np.abs(a[np.isfinite(a)]).max(initial=0) >= 2**23 for a in want.values()):
        return  # products beyond what f32 and i32 hold exactly
    if formula.dtype.startswith("i") and not all(np.isfinite(a).all() for a in want.values()):
        return
    kernel = lower(program)
    schedule = legal_schedule(kernel, random.Random(seed))
    assert parse_schedule(str(schedule)) == schedule
    scheduled = schedule.apply(kernel, NATIVE)
    answers = {
        "naive": interpret(kernel, given),
        "scheduled": interpret(scheduled, given),
        "native": native(program, str(schedule), given),
        "default": native(program, None, given),
    }
    for name, got in answers.items():
        wrong = disagreements(want, got)
        assert not wrong, f"seed {seed}, {name}: {wrong} of\n{program}\nunder {schedule}"


@pytest.mark.parametrize("block", range(8))
def test_one_answer(block: int) -> None:
    for seed in range(block * 9, block * 9 + 9):
        check(seed)


def test_one_answer_once_wrong() -> None:
    """A stage computed inside a loop that became the lanes of a vector."""
    check(1986)


@pytest.mark.full
@pytest.mark.parametrize("block", range(100, 160))
def test_one_answer_for_many(block: int) -> None:
    for seed in range(block * 10, block * 10 + 10):
        check(seed)


# --------------------------------------------------------------------------------- gradients


def check_gradient(seed: int) -> None:
    """Compiled in float64, on integers: equal to the exact vector-Jacobian product."""
    formula = Formula(seed, real=True)
    try:
        program = formula.program()
    except cg.ShapeError:
        return
    given = numbers(program, seed, bound=2)
    value = exact(program, given)
    if not all(np.isfinite(a).all() for a in value.values()):
        return  # an extremum of nothing
    gradient = cg.grad(program)
    rng = np.random.default_rng(seed + 1)
    cotangents = {t.name: rng.integers(-3, 4, t.shape).astype(float) for t in program.outputs}
    wanted = vjp(
        program,
        {n: [Fraction(v) for v in a.ravel().tolist()] for n, a in given.items()},
        {n: [Fraction(v) for v in a.ravel().tolist()] for n, a in cotangents.items()},
        [t.name for t in program.inputs],
    )
    arrays = [*given.values(), *cotangents.values()]
    schedule = legal_schedule(lower(gradient), random.Random(seed), tries=6)
    for plan in (None, str(schedule)):
        got = cg.compile(gradient, schedule=plan)(*arrays)
        several = got if isinstance(got, tuple) else (got,)
        for t, array in zip(program.inputs, several, strict=True):
            exactly = [float(v) for v in wanted[t.name].data]
            assert array.ravel().tolist() == exactly, (
                f"seed {seed}: d{t.name} of\n{program}\n{gradient}\nunder {plan}"
            )


@pytest.mark.parametrize("block", range(6))
def test_gradients_are_the_exact_jacobian(block: int) -> None:
    for seed in range(1000 + block * 7, 1007 + block * 7):
        check_gradient(seed)


@pytest.mark.parametrize("seed", [2082, 2083, 2168, 2188, 2230, 2250])
def test_gradients_once_wrong(seed: int) -> None:
    """Two reduces over one axis that bodies read; loops that never run; classes that are merged
    although they end early; operands that are one number; left-out terms without a sum."""
    check_gradient(seed)


@pytest.mark.full
@pytest.mark.parametrize("block", range(200, 240))
def test_gradients_of_many(block: int) -> None:
    for seed in range(block * 10, block * 10 + 10):
        check_gradient(seed)


SMOOTH = [
    "Y[y] = sum(r: tanh(X[y + r]) * exp(W[r]))",
    "Y[y] = sigmoid(sum(r: X{reflect}[2*y + r - 1] * W[r])) for y < 4",
    "Y[y] = logsumexp(r: X{circular}[y - 2*r] * W[r]) for y < 5",
    "M[] = sum(y: X[y]) / 8\nY[y] = (X[y] - M[]) / sqrt(sum(r: W[r]**2) + (X[y] - M[])**2 + 1)",
    "T[y] = sum(r < 3: X{replicate}[y + r - 1]**2) for y < 8\nY[y] = log(T[y] + 1) * erf(W[y % 3]) for y < 8",
    "Y[y] = prod(r: 1 + X{3/2}[3*y + r - 2] * W[r]) for y < 4",
]


@pytest.mark.parametrize("text", SMOOTH)
def test_gradients_by_finite_differences(text: str) -> None:
    program = cg.parse(text, X=cg.tensor("X", (8,), "f64"), W=cg.tensor("W", (3,), "f64"))
    forward, gradient = cg.compile(program), cg.compile(cg.grad(program))
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=8), rng.normal(size=3)
    order = [t.name for t in program.inputs]
    given = [{"X": x, "W": w}[n] for n in order]
    dy = rng.normal(size=program.output.shape)
    got = gradient(*given, dy)
    for which, analytic in enumerate(got):
        for place in range(given[which].size):
            values = []
            for step in (1e-6, -1e-6):
                moved = [a.copy() for a in given]
                moved[which][place] += step
                values.append(float((forward(*moved) * dy).sum()))
            numeric = (values[0] - values[1]) / 2e-6
            assert abs(numeric - analytic[place]) < 1e-7 * max(1, abs(numeric)), (text, place)


# --------------------------------------------------------------------------------- mutants

RIGHT = "Y[y, x] = sum(r, s: X{reflect}[2*y + r - 1, x + s - 1] * W[r, s]) for y < 4, x < 7"
MUTANTS = {
    "stride": RIGHT.replace("2*y + r - 1", "y + r - 1"),
    "tap": RIGHT.replace("W[r, s]", "W[2 - r, s]"),
    "shift": RIGHT.replace("x + s - 1", "x + s"),
    "boundary": RIGHT.replace("reflect", "circular"),
    "term": RIGHT.replace("sum(r, s:", "sum(r, s where r <= 1:"),
}
SHAPES = {"X": (8, 8), "W": (3, 3)}


@pytest.mark.parametrize("wrong", MUTANTS)
def test_mutants_of_formulas_are_seen(wrong: str) -> None:
    """A kernel of the mutant against the definition of the right one, and so for gradients."""
    tensors = {n: cg.tensor(n, s, "f64") for n, s in SHAPES.items()}
    right, mutant = (cg.parse(t, **tensors) for t in (RIGHT, MUTANTS[wrong]))
    given = numbers(right, 5)
    assert not disagreements(exact(right, given), native(right, None, given))
    assert disagreements(exact(right, given), native(mutant, None, given))
    dy = np.random.default_rng(6).integers(-3, 4, (4, 7)).astype(float)
    gradient, other = cg.grad(right), cg.grad(mutant)
    whole = {**given, "dY": dy}
    assert not disagreements(exact(gradient, whole), native(gradient, None, whole))
    assert disagreements(exact(gradient, whole), native(other, None, whole))


def test_mutants_of_tiles_are_seen() -> None:
    """Loops that leave out the last tile, or step too far, give other numbers."""
    tensors = {n: cg.tensor(n, s, "f64") for n, s in SHAPES.items()}
    program = cg.parse(RIGHT, **tensors)
    kernel = lower(program)
    scheduled = parse_schedule("cover(x, 3, 2); split(y, 2)").apply(kernel, NATIVE)
    given = numbers(program, 5)
    want = exact(program, given)
    assert not disagreements(want, interpret(scheduled, given))
    (nest,) = scheduled.nests()
    seen = 0
    for number, loop in enumerate(nest.loops):
        if loop.reduce is None and loop.extent > 1 and not loop.segments:
            shorter = (
                *nest.loops[:number],
                replace(loop, extent=loop.extent - 1),
                *nest.loops[number + 1 :],
            )
            bad = replace(
                scheduled,
                phases=(replace(scheduled.phases[0], body=(replace(nest, loops=shorter),)),),
            )
            seen += bool(disagreements(want, interpret(bad, given)))
    assert seen >= 2
