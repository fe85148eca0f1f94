"""Lowered programs run to the same integers as the oracle; dtypes, order and text of what is made."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy
from small_programs import PROGRAMS, constants, residue_pieces, triangle, two_stages, window

from convgen.errors import FormulaError, InternalError, ShapeError
from convgen.ir.interpret import interpret
from convgen.ir.nodes import Kernel, Load, Op
from convgen.ir.printer import kernel_text, text_of
from convgen.ir.verify import verify
from convgen.ir.visit import loads, map_expr, map_nest_exprs
from convgen.passes.lower import lower
from convgen.symbolic import dsl as cg
from convgen.symbolic import functions as f
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.program import Program

n, k, y, x, c, r, s, h, w, u = cg.axes("n k y x c r s h w u")
i, j = cg.axes("i j")


def sample(program: Program, seed: int = 0) -> dict[str, Any]:
    chance = random.Random(seed)
    made: dict[str, Any] = {}
    for t in program.inputs:
        low, high = (-4, 5) if t.dtype.kind in ("float", "int") else (0, 2)
        values = [chance.randrange(low, high) for _ in range(t.elements)]
        made[t.name] = np.array(values).reshape(t.shape)
    return made


def wanted(program: Program, given: dict[str, Any]) -> dict[str, np.ndarray]:
    found = evaluate(program, {name: a.tolist() for name, a in given.items()})
    return {
        t.name: np.array([float(v) for v in found[t.name].data]).reshape(t.shape)
        for t in program.outputs
    }


def agree(program: Program, kernel: Kernel, seed: int = 0, tolerance: float = 0) -> bool:
    given = sample(program, seed)
    got = interpret(kernel, given)
    return all(
        np.allclose(got[name], want, rtol=tolerance, atol=tolerance, equal_nan=True)
        for name, want in wanted(program, given).items()
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_lowered_programs_give_the_integers_of_the_oracle(name: str) -> None:
    program = PROGRAMS[name]()
    kernel = lower(program)
    verify(kernel)
    assert agree(program, kernel) and agree(program, kernel, seed=1)


def test_a_mutated_kernel_is_noticed() -> None:
    """A wrong tap, boundary or sign anywhere must change the answer."""
    program = window("reflect")
    kernel = lower(program)

    def mutate(change: Callable[[Any], Any]) -> Kernel:
        (phase,) = kernel.phases
        nest = map_nest_exprs(phase.body[0], lambda e: map_expr(e, change))  # type: ignore[index]
        assert nest is not phase.body[0]  # type: ignore[index]
        return replace(kernel, phases=(replace(phase, body=(nest,)),))

    def shift(e: Any) -> Any:
        if isinstance(e, Load) and e.buffer == "X":
            return replace(e, index=(*e.index[:3], e.index[3] + 1))
        return e

    def fold(e: Any) -> Any:
        if isinstance(e, Load) and e.buffer == "X":
            return replace(e, edges=tuple(d and replace(d, kind="replicate") for d in e.edges))
        return e

    def sign(e: Any) -> Any:
        return replace(e, name="sub") if isinstance(e, Op) and e.name == "add" else e

    for change in (shift, fold, sign):
        assert not agree(program, mutate(change)), change.__name__


def test_functions_agree_with_the_oracle_in_floats() -> None:
    X = cg.tensor("X", (9,))
    v = X[i]
    bodies = [
        sympy.exp(-v) / 3,
        f.sigmoid(v) - sympy.tanh(v / 2),
        sympy.sqrt(v * v + 2) ** 3,
        1 / (v * v + 1) - v / 7,
        (v * v + 1) ** sympy.Rational(-3, 2),
        sympy.log(v * v + 1) * sympy.sqrt(2),
        f.sign(v) + f.step(v) * f.abs_(v) - f.round_down(v / 2),
        sympy.erf(v) - sympy.pi,
        (v * v + 1) ** sympy.Rational(1, 3),
        f.cast(v / 2, "i32") + 0 * v,
        f.uniform(7, i) - v,
        cg.logsumexp_over([j], v * j, extents={j: 4}),
    ]
    for body in bodies:
        program = cg.define("Y", [i], body)
        kernel = lower(program)
        verify(kernel)
        assert agree(program, kernel, tolerance=2e-6), kernel_text(kernel)


def expression(body: Any, *tensors: Any, dtype: Any = None) -> str:
    program = cg.define("Y", [i], body, dtype=dtype)
    (nest,) = lower(program).nests()
    return text_of(nest.stores[0].value)


def test_expressions_read_as_the_user_wrote_them() -> None:
    A, B, C = (cg.tensor(t, (4,)) for t in ("Zed", "Mid", "Ann"))
    a, b, d = A[i], B[i], C[i]
    assert expression(a - b) == "Zed[i] - Mid[i]"
    assert expression(d - a) == "Ann[i] - Zed[i]"
    assert expression(a * b * d) == "Zed[i] * Mid[i] * Ann[i]"
    assert expression(a / b) == "Zed[i] / Mid[i]"
    assert expression(-a) == "-Zed[i]"
    assert expression(1 / sympy.sqrt(a)) == "1.0 / sqrt(Zed[i])"
    assert expression(a**3 - 2 * b) == "Zed[i] * Zed[i] * Zed[i] - 2.0 * Mid[i]"
    assert expression(a * (2 * i + 1)) == "Zed[i] * f32(2*i + 1)"
    assert expression(f.maximum(b, a)) == "max(Mid[i], Zed[i])"


def test_dtypes_follow_the_operands_and_casts_are_written_out() -> None:
    A, B = cg.tensor("A", (4,), dtype="i32"), cg.tensor("B", (4,), dtype="f64")
    U = cg.tensor("U", (4,), dtype="u8")
    assert expression(A[i] + 1) == "A[i] + 1"
    assert expression(A[i] + B[i]) == "f64(A[i]) + B[i]"
    assert expression(A[i] / 2) == "0.5 * f32(A[i])"
    assert expression(A[i] + U[i]) == "A[i] + i32(U[i])"
    assert expression(B[i] / 10) == "0.1 * B[i]"
    assert expression(A[i], dtype="bool") == "not(A[i] == 0)"


@pytest.mark.parametrize(
    ("dtype", "sums", "extrema"),
    [
        ("u8", "i64", "u8"),
        ("i32", "i64", "i32"),
        ("u64", "u64", "u64"),
        ("bool", "i64", "i64"),
        ("f32", "f32", "f32"),
        ("f64", "f64", "f64"),
    ],
)
def test_accumulators(dtype: str, sums: str, extrema: str) -> None:
    X = cg.tensor("X", (4,), dtype=dtype)
    for reduced, want in ((cg.sum_over([i], X[i]), sums), (cg.max_over([i], X[i]), extrema)):
        (nest,) = lower(cg.define("Y", [], reduced)).nests()
        assert str(nest.reduces[0].combiner.dtypes[0]) == want


def test_narrow_sums_do_not_wrap() -> None:
    X = cg.tensor("X", (300,), dtype="u8")
    program = cg.define("Y", [], cg.sum_over([i], X[i]), dtype="i64")
    assert interpret(lower(program), {"X": np.full(300, 200)})["Y"] == 60000


def test_edges_stand_only_where_bounds_are_not_proved() -> None:
    (nest,) = lower(window("reflect")).nests()
    (read, weight) = loads(nest.reduces[0].body)
    assert [e and e.kind for e in read.edges] == [None, None, "reflect", "reflect"]
    assert weight.edges == (None,) * 4


def test_conditions_shrink_ranges_or_stay_as_guards() -> None:
    (nest,) = lower(triangle()).nests()
    assert len(nest.reduces[0].guards) == 1
    A = cg.tensor("A", (8,))
    whole = cg.define("Y", [], cg.sum_over([i], A[i], where=f.less_equal(i, 4)))
    (nest,) = lower(whole).nests()
    assert nest.reduces[0].guards == () and nest.loops[0].extent == 5


def test_buffers_stand_in_the_users_order() -> None:
    kernel = lower(constants())
    assert [(b.name, b.role) for b in kernel.buffers] == [
        ("X", "input"),
        ("V", "output"),
        ("B", "constant"),
    ]
    b = cg.tensor("b", (3,))
    a = cg.tensor("a", (3,))
    kernel = lower(cg.define("Y", [i], a[i] * b[i] + b[i]))
    assert [t.name for t in kernel.buffers[:2]] == [
        t.name for t in cg.define("Y", [i], a[i] * b[i] + b[i]).inputs
    ]
    kernel = lower(two_stages())
    assert [(t.name, t.role) for t in kernel.buffers] == [
        ("X", "input"),
        ("Y", "output"),
        ("M", "temporary"),
    ]
    assert [p.name for p in kernel.phases] == ["M", "Y"]
    assert [p.name for p in lower(residue_pieces()).phases] == ["Z.0", "Z.1"]


def test_refusals() -> None:
    N = cg.size("N")
    X = cg.tensor("X", (N,))
    with pytest.raises(ShapeError, match="the size N is not bound"):
        lower(cg.define("Y", [n], X[n]))
    A = cg.tensor("A", (4,))
    with pytest.raises(FormulaError, match="omitted element is read outside of any reduction"):
        lower(cg.define("Y", [i], A.pad("omit")[i - 1], extents={i: 5}))
    with pytest.raises(InternalError, match="layout for 'Q': wanted one of A, Y"):
        lower(cg.define("Y", [i], A[i]), {"Q": None})  # type: ignore[dict-item]


_SCRIPT = """
from small_programs import PROGRAMS
from convgen.ir.printer import kernel_text
from convgen.passes.lower import lower
for make in PROGRAMS.values():
    print(kernel_text(lower(make())))
"""


def test_the_same_kernels_under_every_hash_seed() -> None:
    seen: set[str] = set()
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    for seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": path,
        }
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        seen.add(done.stdout)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "name", ["window reflect", "extremum with place", "two stages", "residue pieces", "triangle"]
)
def test_golden(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"ir/lower_{name.replace(' ', '_')}.txt", kernel_text(lower(PROGRAMS[name]())))


def test_saved_tensors_and_new_states_are_outputs() -> None:
    program = two_stages()
    assert [b.role for b in lower(replace(program, saved=("M",))).buffers] == [
        "input",
        *["output"] * 2,
    ]
    momentum = cg.tensor("V", (3,), role="state")
    step = cg.define("V2", [i], momentum[i] / 2 + cg.tensor("G", (3,))[i])
    moved = replace(step, outputs=(), updates=(("V", "V2"),))
    assert [(b.name, b.role) for b in lower(moved).buffers] == [
        ("V", "input"),
        ("G", "input"),
        ("V2", "output"),
    ]
