"""Random formulas, random loops: interpret(nest) == interpret(flat), exactly, on integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from loose_schedules import scheduled

from convgen.ir.interpret import interpret
from convgen.ir.nodes import Expr, Form, Index, Kernel, Op, VectorLoad
from convgen.ir.visit import map_expr, map_stmt
from convgen.passes.flatten import flatten
from convgen.passes.lower import lower
from convgen.symbolic import dsl as cg
from convgen.symbolic.functions import less_equal
from convgen.symbolic.program import Program
from convgen.target import target

n, k, y, x, c, r, s, i, j = cg.axes("n k y x c r s i j")
LEVELS = ("x86-64-v4", "x86-64-v2", "x86-64-v3")
SEEDS = range(5)


def window(mode: str | int, stride: int = 1, dilation: int = 1) -> Program:
    data, taps = cg.tensor("X", (2, 2, 4, 5)), cg.tensor("W", (3, 2, 3, 3))
    bias = cg.tensor("b", (3,))
    read = data if mode == "zero" else data.pad(mode)
    at = read[n, c, stride * y + dilation * r - 1, stride * x + dilation * s - 1]
    extents = {y: (4 - 2 * dilation + 1) // stride + 1, x: (5 - 2 * dilation + 1) // stride + 1}
    return cg.define(
        "Y", [n, k, y, x], cg.sum_over([c, r, s], at * taps[k, c, r, s]) + bias[k], extents=extents
    )


def extremum(over, dtype=None) -> Program:
    data = cg.tensor("X", (2, 3, 6, 7)).pad("omit")
    body = over([r, s], data[n, c, 2 * y + r - 1, 2 * x + s - 1], extents={r: 3, s: 3})
    return cg.define("Y", [n, c, y, x], body, extents={y: 3, x: 4}, dtype=dtype)


def programs() -> dict[str, Program]:
    square = cg.tensor("S", (9, 9))
    a, b = cg.tensor("A", (7, 9), dtype="i32"), cg.tensor("B", (9, 11), dtype="i32")
    tiles, image = cg.tensor("W", (2, 3, 5)), cg.tensor("Z", (3, 6, 7))
    kernel = cg.tensor("K", (3,), values=[1, 0, -1], role="constant")
    data, depth = cg.tensor("X", (2, 3, 4, 5)), cg.tensor("D", (3, 3, 3))
    found = {f"window_{m}": window(m) for m in ("zero", "reflect", "replicate", "circular", "omit")}
    return found | {
        "constant": window(3),
        "strided": window("zero", 2),
        "dilated": window("reflect", 1, 2),
        "maximum": extremum(cg.max_over),
        "position": extremum(cg.argmax_over, "i32"),
        "matrices": cg.define("C", [i, j], cg.sum_over(k, a[i, k] * b[k, j])),
        "two": cg.define(
            "Y", [i], cg.sum_over(j, square[i, j] * square[j, i]) + cg.max_over(k, square[i, k])
        ),
        "triangle": cg.define("Y", [i], cg.sum_over(j, square[i, j], where=(less_equal(i, j),))),
        "map": cg.define("Y", [i, j], square[j, i] * 2 + square[i, j]),
        "border": cg.define("Y", [i, j], square[i - 2, j - 1] * 1, extents={i: 13, j: 12}),
        "indices": cg.define("Y", [i, j], square[i, j] * i + 3 * j),
        "tiled": cg.define("Y", [k, y, x], cg.sum_over(c, image[c, y, x] * tiles[y % 2, c, k])),
        "depthwise": cg.define(
            "Y",
            [n, c, y, x],
            cg.sum_over([r, s], data[n, c, y + r - 1, x + s - 1] * depth[c, r, s]),
            extents={y: 4, x: 5},
        ),
        "squares": cg.define("Y", [n], cg.sum_over([c, y, x], data[n, c, y, x] * data[n, c, y, x])),
        "constants": cg.define(
            "Y", [i, j], cg.sum_over(k, square[i + k - 1, j] * kernel[k]), extents={i: 9}
        ),
    }


PROGRAMS = programs()


def arrays_for(kernel: Kernel, seed: int) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    return {
        b.name: chance.integers(-4, 5, b.shape).astype(b.dtype.numpy_name)
        for b in kernel.buffers
        if b.role == "input"
    }


def differs(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return any(not np.array_equal(v, second[name]) for name, v in first.items())


@pytest.mark.parametrize("name", PROGRAMS)
def test_random_loops_give_the_same_integers(name: str) -> None:
    kernel = lower(PROGRAMS[name])
    arrays = arrays_for(kernel, 0)
    expected = interpret(kernel, arrays)
    for seed in SEEDS:
        flat = flatten(scheduled(kernel, seed), target(LEVELS[seed % 3]))
        assert flat.form is Form.FLAT
        assert not differs(expected, interpret(flat, arrays)), f"seed {seed}"


def wrong_tap(expr: Expr) -> Expr:
    """Reads W one element further on (or back, where it is sure to be inside)."""
    if isinstance(expr, VectorLoad) and expr.buffer == "W" and isinstance(expr.offset, Index):
        return replace(expr, offset=replace(expr.offset, value=expr.offset.value * 0))
    return expr


def wrong_border(expr: Expr) -> Expr:
    """Tests of edges that are off by one."""
    if isinstance(expr, Op) and expr.name == "le":
        value, zero = expr.args
        if isinstance(value, Index):
            return replace(expr, args=(replace(value, value=value.value + 1), zero))
    return expr


def no_fma(expr: Expr) -> Expr:
    if isinstance(expr, Op) and expr.name == "fma":
        return replace(expr, args=(expr.args[0], expr.args[0], expr.args[2]))
    return expr


@pytest.mark.parametrize("mutant", [wrong_tap, wrong_border, no_fma])
def test_mutants_are_seen(mutant) -> None:
    kernel = lower(PROGRAMS["window_zero"])
    arrays = arrays_for(kernel, 0)
    flat = flatten(scheduled(kernel, 1), target("x86-64-v3"))
    broken = [
        replace(p, body=map_stmt(p.body, expr=lambda e: map_expr(e, mutant))) for p in flat.phases
    ]
    assert differs(
        interpret(kernel, arrays), interpret(replace(flat, phases=tuple(broken)), arrays)
    )


def test_flattening_is_the_same_every_time() -> None:
    kernel = scheduled(lower(PROGRAMS["window_reflect"]), 3)
    assert flatten(kernel, target("x86-64-v4")) == flatten(kernel, target("x86-64-v4"))


def test_states_of_several_components() -> None:
    """Exponentials round differently in other orders: close, not equal."""
    body = cg.logsumexp_over(j, cg.tensor("S", (9, 11))[i, j])
    kernel = lower(cg.define("Y", [i], body))
    arrays = arrays_for(kernel, 0)
    expected = interpret(kernel, arrays)
    for seed in range(20):
        seen = interpret(flatten(scheduled(kernel, seed), target("x86-64-v3")), arrays)
        np.testing.assert_allclose(seen["Y"], expected["Y"], rtol=1e-5, err_msg=f"seed {seed}")


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty_domains(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    a, b = cg.tensor("A", (rows, inner)), cg.tensor("B", (inner, columns))
    kernel = lower(cg.define("C", [i, j], cg.sum_over(k, a[i, k] * b[k, j])))
    arrays = arrays_for(kernel, 0)
    for seed in range(5):
        flat = flatten(scheduled(kernel, seed), target("x86-64-v3"))
        assert not differs(interpret(kernel, arrays), interpret(flat, arrays))
