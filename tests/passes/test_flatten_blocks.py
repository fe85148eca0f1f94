"""Sums whose states wait in memory between blocks of reduce loops and are in registers during one:
the same results whatever the loops, and no memory of states in the hot loop."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from convgen.errors import ScheduleError
from convgen.ir.interpret import interpret
from convgen.ir.nodes import Const, Expr, For, Form, Kernel, LoopKind, Stmt, Store, VectorLoad
from convgen.ir.visit import map_expr, map_stmt, walk
from convgen.passes.flatten import flatten
from convgen.passes.lower import lower
from convgen.runtime import kernel as kernels
from convgen.schedule.schedule import parse_schedule
from convgen.symbolic import dsl as cg
from convgen.symbolic.program import Program
from convgen.target import target

n, k, c, y, x, s, t = cg.axes("n k c y x s t")
LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2", "aarch64")
SEEDS = range(6)
ROWS = (
    "split(c, 4); split(k, 2); peel(x, 1, 1); "
    "reorder(k_out, n, y, t, c_out, x_out, x_in, k_in, s, c_in); "
    "unroll(k_in); unroll(s); vectorize(c_in); carry(); parallel(k_out)"
)


def gradient(mode: str = "zero", channels: int = 4, filters: int = 4, size: int = 5) -> Program:
    """dW[k, c, t, s] = sum(n, y, x: dY[n, y, x, k] * X[n, y + t - 1, x + s - 1, c])."""
    given, data = cg.tensor("dY", (2, 3, size, filters)), cg.tensor("X", (2, 3, size, channels))
    read = data if mode == "zero" else data.pad(mode)
    body = given[n, y, x, k] * read[n, y + t - 1, x + s - 1, c]
    return cg.define("dW", [k, c, t, s], cg.sum_over([n, y, x], body), extents={t: 3, s: 3})


def largest(channels: int = 8) -> Program:
    """The place of the first maximum: two state components, in the order of the loops."""
    data = cg.tensor("X", (3, 5, channels)).pad("omit")
    body = cg.argmax_over([y, x], data[c % 3, x + y - 1, k], extents={y: 3, x: 4})
    return cg.define("M", [c, k], body, extents={c: 3}, dtype="i32")


PROGRAMS = {
    **{mode: gradient(mode) for mode in ("zero", "omit", "reflect", "circular", "replicate")},
    "odd": gradient("zero", 5, 3, 6),
    "largest": largest(),
}


def arrays_for(kernel: Kernel) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(0)
    return {
        b.name: chance.integers(-4, 5, b.shape).astype(b.dtype.numpy_name)
        for b in kernel.buffers
        if b.role == "input"
    }


def cut(name: str, extent: int, chance: random.Random) -> tuple[str, list[str]]:
    """A directive that cuts a loop in two, "" for none, and the loops it leaves."""
    low = chance.randint(1, max(1, extent // 2))
    parts = [f"{name}_out", f"{name}_in"]
    drawn = chance.choice(["", "split", "peel"]) if extent > 2 else ""
    if drawn == "split":
        return f"split({name}, {low}, 'peel')", parts
    if drawn == "peel":
        return f"peel({name}, {low}, {(extent - low) // 2})", parts
    return "", [name]


def in_blocks(kernel: Kernel, seed: int, where: str) -> Kernel:
    """Random cuts; some output loops outermost, the others between the reduce loops, the last of
    which, with the tile inside, run in registers."""
    chance = random.Random(seed)
    (nest,) = kernel.nests()
    texts: list[str] = []
    outputs: list[list[str]] = []
    reduces: list[list[str]] = []
    for loop in nest.loops:
        text, names = cut(loop.name, loop.extent, chance)
        texts += [text] if text else []
        (outputs if loop.reduce is None else reduces).append(names)
    if nest.reduces[0].combiner.commutative:
        chance.shuffle(reduces)
    chance.shuffle(outputs)
    inside = [name for names in reduces[-1:] for name in names]
    before = [name for names in reduces[:-1] for name in names]
    tile, between = outputs[0], [name for names in outputs[1:] for name in names]
    expanded = tile[-1]
    serial = [*tile[:-1], *between]
    outer = serial[: chance.randint(0, 1)] if not serial[0].endswith("_out") else []
    moving = [name for name in serial if name not in outer]
    texts.append(f"reorder({', '.join([*outer, *before, *moving, *inside, expanded])})")
    texts += [f"unroll({expanded})", "carry()"]
    return parse_schedule("; ".join(texts)).apply(kernel, target(where))


@pytest.mark.parametrize("name", PROGRAMS)
def test_random_blocks_give_the_same_integers(name: str) -> None:
    kernel = lower(PROGRAMS[name])
    arrays = arrays_for(kernel)
    expected = interpret(kernel, arrays)
    held = 0
    for seed in SEEDS:
        where = LEVELS[seed % 4]
        try:
            scheduled = in_blocks(kernel, seed, where)
        except ScheduleError:  # a tile that is too large for the registers
            continue
        flat = flatten(scheduled, target(where))
        assert flat.form is Form.FLAT
        seen = interpret(flat, arrays)
        for output, wanted in expected.items():
            assert np.array_equal(seen[output], wanted), f"seed {seed}: {scheduled.trace}"
        held += bool(scratch(flat))
    assert held >= 2


def scratch(flat: Kernel) -> set[str]:
    return {b.name for b in flat.buffers if b.role == "scratch"}


def hot_states(flat: Kernel) -> int:
    """Loads and stores of states in the innermost loops that multiply or compare."""
    states = scratch(flat)
    found = 0
    for phase in flat.phases:
        for loop in walk(phase.body):  # type: ignore[arg-type]
            if not isinstance(loop, For) or any(isinstance(o, For) for o in walk(loop.body)):
                continue
            inside = list(walk(loop.body))
            reads = [o for o in inside if isinstance(o, VectorLoad)]
            if any(o.buffer not in states for o in reads):
                found += sum(o.buffer in states for o in reads)
                found += sum(isinstance(o, Store) and o.buffer in states for o in inside)
    return found


def test_states_of_a_tile_are_in_registers_during_a_block() -> None:
    machine = target("x86-64-v3")
    scheduled = parse_schedule(ROWS).apply(lower(gradient()), machine)
    (nest,) = scheduled.nests()
    assert nest.loop("c_out").kind is LoopKind.SERIAL and nest.reduces[0].carried
    flat = flatten(scheduled, machine)
    assert scratch(flat) and not flat.notes
    assert hot_states(flat) == 0
    free = replace(nest, reduces=tuple(replace(r, carried=False) for r in nest.reduces))
    phases = (replace(scheduled.phases[0], body=(free,)),)
    assert hot_states(flatten(replace(scheduled, phases=phases), machine)) > 0


def forgets(stmt: Stmt, states: set[str]) -> Stmt:
    """Blocks that begin with zeros, not with what the blocks before left."""

    def zero(expr: Expr) -> Expr:
        if isinstance(expr, VectorLoad) and expr.buffer in states:
            return Const(0, expr.dtype, expr.lanes)
        return expr

    return map_stmt(stmt, expr=lambda e: map_expr(e, zero))


def test_a_block_that_forgets_is_seen() -> None:
    kernel, machine = lower(gradient()), target("x86-64-v3")
    flat = flatten(parse_schedule(ROWS).apply(kernel, machine), machine)
    arrays = arrays_for(kernel)
    phases = tuple(replace(p, body=forgets(p.body, scratch(flat))) for p in flat.phases)  # type: ignore[arg-type]
    broken = interpret(replace(flat, phases=phases), arrays)
    assert not np.array_equal(broken["dW"], interpret(kernel, arrays)["dW"])


def test_machine_code_has_the_same_bits_for_one_and_two_workers() -> None:
    chance = np.random.default_rng(1)
    program = gradient("zero", 8, 8, 13)
    arrays = [chance.uniform(-1, 1, [int(e) for e in i.shape]).astype("f") for i in program.inputs]
    plain = kernels.compile(program, threads=1)(*arrays)
    one, two = (kernels.compile(program, ROWS, threads=count)(*arrays) for count in (1, 2))
    assert np.array_equal(one, two)
    np.testing.assert_allclose(one, plain, rtol=0, atol=1e-5 * float(np.abs(plain).max()))


def test_a_tile_loop_with_no_reduce_loop_inside_is_refused() -> None:
    late = "reorder(n, y, x, k, c, t, s); unroll(s); carry()"
    with pytest.raises(ScheduleError, match="the tile loop k stays a loop"):
        parse_schedule(late).apply(lower(gradient()), target("x86-64-v3"))
