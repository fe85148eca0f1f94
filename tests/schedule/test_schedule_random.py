"""Random legal schedules and the default ones compute what the naive nest computes, exactly."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schedule_nests import (
    buffer,
    dense,
    first_max,
    kernel,
    load,
    nest,
    two_stages,
    var,
    window,
)

from convgen.errors import ScheduleError
from convgen.ir.interpret import interpret
from convgen.ir.nodes import Const, Expr, Kernel, Load, Op
from convgen.ir.visit import map_expr, map_nest_exprs
from convgen.passes.flatten import flatten
from convgen.schedule import directives as d
from convgen.schedule.access import loads_of
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.schedule import Schedule, parse_schedule
from convgen.target import target
from convgen.types import f32

TARGETS = [target(name) for name in ("x86-64-v4", "x86-64-v3", "x86-64-v2", "aarch64")]
KINDS = ("zero", "reflect", "replicate", "circular", "omit")


def pool(size: int = 7, taps: int = 3, pad: int = 1) -> Kernel:
    """The position and value of the first maximum of overlapping windows, here the value."""
    base = window(2, 3, 1, size, taps, pad, 2, "omit" if pad else "zero")
    (body,) = base.nests()
    n, k, y, x, r, s = (var(a) for a in "nkyxrs")
    edges = next(o for o in d_loads(base)).edges
    element = load("X", n, k, 2 * y + r - pad, 2 * x + s - pad, edges=edges)
    out = base.buffer("Y").shape[2]
    return kernel(
        (base.buffer("X"), buffer("Y", (2, 3, out, out), "output")),
        nest(
            "Y",
            {"n": 2, "k": 3, "y": out, "x": out},
            element,
            {"r": taps, "s": taps},
            first_max(),
        ),
    )


def d_loads(subject: Kernel) -> list[Load]:
    return [o for body in subject.nests() for o in loads_of(body)]


def clamp(rows: int = 5, columns: int = 9) -> Kernel:
    """Y[i, j] = max(X[i, j], 0)."""
    element = load("X", var("i"), var("j"))
    return kernel(
        (buffer("X", (rows, columns)), buffer("Y", (rows, columns), "output")),
        nest("Y", {"i": rows, "j": columns}, Op("max", (element, Const(0.0, f32)), f32)),
    )


def total(rows: int = 3, columns: int = 40) -> Kernel:
    """M[k] = sum over n, x of X[n, k, x]."""
    element = load("X", var("n"), var("k"), var("x"))
    return kernel(
        (buffer("X", (2, rows, columns)), buffer("M", (rows,), "output")),
        nest("M", {"k": rows}, element, {"n": 2, "x": columns}),
    )


kernels = st.one_of(
    st.builds(
        window,
        st.integers(1, 2),
        st.integers(1, 4),
        st.sampled_from([1, 3, 17, 35]),
        st.integers(4, 9),
        st.integers(1, 3),
        st.integers(0, 2),
        st.integers(1, 3),
        st.sampled_from(KINDS),
    ),
    st.builds(dense, st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)),
    st.builds(two_stages, st.integers(3, 40)),
    st.builds(clamp, st.integers(1, 9), st.integers(1, 40)),
    st.builds(total, st.integers(1, 5), st.integers(1, 150)),
    st.builds(pool, st.integers(5, 9), st.just(3), st.integers(0, 1)),
)


def integers(subject: Kernel, seed: int) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    return {
        b.name: chance.integers(-4, 5, b.shape).astype(b.dtype.numpy_name)
        for b in subject.buffers
        if b.role == "input"
    }


def difference(wanted: Kernel, got: Kernel, seed: int) -> bool:
    arrays = integers(wanted, seed)
    a, b = interpret(wanted, arrays), interpret(got, arrays)
    return any(not np.array_equal(a[name], b[name]) for name in a)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kernels, st.sampled_from(TARGETS), st.integers(0, 99))
def test_default_schedules_are_legal_and_right(subject: Kernel, where, seed: int) -> None:  # type: ignore[no-untyped-def]
    schedule = default_schedule(subject, where)
    assert parse_schedule(str(schedule)).directives == schedule.directives
    assert not difference(subject, schedule.apply(subject, where), seed)


def random_directive(subject: Kernel, chance: random.Random) -> d.Directive:
    """Any directive on any loops, legal or not."""
    body = chance.choice(list(subject.nests()))
    loops = [o.name for o in body.loops]
    pick = chance.choice(loops)
    extent = body.loop(pick).extent
    read = sorted(
        {
            o.buffer
            for o in d_loads(replace(subject, phases=(replace(subject.phases[0], body=(body,)),)))
        }
    )
    source = chance.choice(read)
    moving = sorted(
        {n for o in loads_of(body) if o.buffer == source for i in o.index for n in i.names()}
    )
    made: list[d.Directive] = [
        d.split(pick, chance.randint(1, max(1, extent)), chance.choice(["exact", "peel", "guard"])),
        d.cover(pick, chance.randint(1, 5), chance.randint(1, 5)),
        d.peel(pick, chance.randint(0, 2), chance.randint(0, 2)),
        d.reorder(*chance.sample(loops, len(loops))),
        d.fuse(*chance.sample(loops, 2)) if len(loops) > 1 else d.unroll(pick),
        d.reverse(pick),
        d.unroll(pick, chance.choice([0, 0, 2, 3])),
        d.vectorize(pick, chance.random() < 0.5),
        d.parallel(*loops[: chance.randint(1, 2)]),
        d.carry(),
        d.carry(follow=source),
        d.rfactor(pick),
        d.pack(
            source,
            *chance.sample(loops, chance.randint(0, 1)),
            hoist=chance.random() < 0.5,
            skip=chance.random() < 0.5,
        ),
        d.unfold(source, *chance.sample(moving, len(moving))),
        d.fold(*chance.sample(loops, chance.randint(1, min(2, len(loops))))),
        d.collect(*chance.sample(loops, chance.randint(1, min(2, len(loops))))),
        d.compute_at(source, pick),
        d.inline(source),
    ]
    return replace(chance.choice(made), nest=body.name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kernels, st.integers(0, 1 << 30))
def test_random_legal_schedules_are_right(subject: Kernel, seed: int) -> None:
    chance = random.Random(seed)
    after = subject
    kept: list[d.Directive] = []
    for _ in range(14):
        directive = random_directive(after, chance)
        try:
            after = directive.apply(after, TARGETS[0])
        except ScheduleError:
            continue
        kept.append(directive)
    schedule = Schedule(tuple(kept))
    assert parse_schedule(str(schedule)) == schedule
    assert schedule.apply(subject, TARGETS[0]).phases == after.phases
    assert not difference(subject, after, seed % 97), str(schedule)
    assert not difference(subject, flatten(after, TARGETS[0]), seed % 97), str(schedule)


def flipped(node: Expr) -> Expr:
    """W read at tap 2 - r."""
    if isinstance(node, Load) and node.buffer == "W":
        return replace(node, index=(*node.index[:2], 2 - node.index[2], node.index[3]))
    return node


def strided(node: Expr) -> Expr:
    """The packed operand read at one row only."""
    if isinstance(node, Load) and node.buffer != "W":
        return replace(node, index=(*node.index[:2], var("r"), node.index[3]))
    return node


MUTANTS = {"tap": flipped, "stride": strided}


@pytest.mark.parametrize("wrong", ["tap", "stride", "segment", "edge"])
def test_mutants_are_seen(wrong: str) -> None:
    """A schedule that changed a tap, a stride, a tile or a boundary would be caught."""
    subject = window(1, 2, 17, 7, 3, 1, 1, "reflect")
    right = parse_schedule("cover(x, 4, 3); pack(X, x_in)").apply(subject, TARGETS[0])
    body = right.phases[-1].body
    assert isinstance(body, tuple)
    (hot,) = body
    if wrong == "segment":
        loops = tuple(
            replace(o, segments=(replace(o.segments[0], count=1, size=3), o.segments[1]))
            if o.segments
            else o
            for o in hot.loops
        )
        bad = replace(hot, loops=loops)
    else:
        bad = map_nest_exprs(hot, lambda e: map_expr(e, MUTANTS.get(wrong, lambda o: o)))
    mutant = replace(right, phases=(*right.phases[:-1], replace(right.phases[-1], body=(bad,))))
    if wrong == "edge":
        mutant = parse_schedule("cover(x, 4, 3); pack(X, x_in)").apply(
            window(1, 2, 17, 7, 3, 1, 1, "circular"), TARGETS[0]
        )
    assert not difference(subject, right, 5)
    assert difference(subject, mutant, 5)
