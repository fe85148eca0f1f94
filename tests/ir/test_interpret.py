"""Every form runs by its definition: segments, producers, partial states, vectors, tasks; and what
leaves a buffer or reads what is not there is refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from convgen.affine import Affine, Constraint
from convgen.errors import DataError, InternalError
from convgen.ir.interpret import difference, interpret
from convgen.ir.interpret.values import apply, fma
from convgen.ir.nodes import (
    Attached,
    Block,
    Broadcast,
    Buffer,
    Combiner,
    Const,
    Edge,
    For,
    Form,
    Gather,
    If,
    Index,
    Kernel,
    Lanes,
    Layout,
    Let,
    Load,
    Loop,
    Nest,
    Op,
    Param,
    Phase,
    Reduced,
    ReduceNode,
    Register,
    Segment,
    Set,
    Stmt,
    Store,
    StoreNode,
    VectorLoad,
)
from convgen.ir.verify import verify
from convgen.types import bool_, f32, f64, i32, i64

A = Affine.of
SUM = Combiner(
    "sum",
    (f32,),
    (Param("v", f32),),
    (Op("add", (Param("a0", f32), Param("b0", f32)), f32),),
    (Const(0.0, f32),),
    (Param("a0", f32),),
)
LAST = replace(SUM, name="last", combine=(Param("b0", f32),), commutative=False)


def buffer(name: str, shape: tuple[int, ...], role: Any, layout: Layout | None = None) -> Buffer:
    return Buffer(name, f32, shape, layout or Layout.rowmajor(len(shape)), role)


def load(name: str, *index: Affine, edges: Any = None) -> Load:
    return Load(name, index, edges or (None,) * len(index), f32)


def row_sums(loops: tuple[Loop, ...], combiner: Combiner = SUM, **changes: Any) -> Kernel:
    """Y[i] = sum(j < 12: X[i, j]) for i < 4, with j = 4*j_out + j_in."""
    node = ReduceNode(combiner, load("X", A("i"), A("j")), (), A("j"))
    nest = Nest(
        "Y",
        loops,
        (("i", A("i")), ("j", 4 * A("j_out") + A("j_in"))),
        (("i", 0, 4), ("j", 0, 12)),
        (),
        (replace(node, **changes),),
        (StoreNode("Y", (A("i"),), Reduced(0, 0, f32)),),
    )
    buffers = (buffer("X", (4, 12), "input"), buffer("Y", (4,), "output"))
    return Kernel("rows", buffers, (Phase("Y", (nest,)),), Form.SCHEDULED)


X = np.arange(48, dtype=np.float32).reshape(4, 12)
OUT, IN, ROW = Loop("j_out", 3, reduce=0), Loop("j_in", 4, reduce=0), Loop("i", 4)


@pytest.mark.parametrize("loops", [(ROW, OUT, IN), (OUT, ROW, IN), (IN, OUT, ROW)])
def test_tiles_and_split_reduces(loops: tuple[Loop, ...]) -> None:
    kernel = row_sums(loops)
    verify(kernel)
    assert np.array_equal(interpret(kernel, {"X": X})["Y"], X.sum(1))


def test_reduces_run_in_the_order_of_the_loops() -> None:
    assert np.array_equal(interpret(row_sums((ROW, OUT, IN), LAST), {"X": X})["Y"], X[:, 11])
    guarded = row_sums((ROW, IN, OUT), LAST, guards=(Constraint("<=", A("j_in") - 2),))
    assert np.array_equal(interpret(guarded, {"X": X})["Y"], X[:, 10])


def test_factored_states_are_joined_in_loop_order() -> None:
    huge = X.copy()
    huge[:, 0], huge[:, 4] = 2.0**60, -(2.0**60)
    plain, factored = row_sums((ROW, OUT, IN)), row_sums((ROW, OUT, IN), factored=("j_in",))
    verify(factored)
    columns = [
        huge[:, 0] + huge[:, 4] + huge[:, 8],
        *(huge[:, k] + huge[:, k + 4] + huge[:, k + 8] for k in (1, 2, 3)),
    ]
    want = columns[0] + columns[1] + columns[2] + columns[3]
    assert np.array_equal(interpret(factored, {"X": huge})["Y"], want)
    assert not np.array_equal(interpret(plain, {"X": huge})["Y"], want)


def covered(parts: tuple[Segment, ...]) -> Kernel:
    """Y[i] = X[i] for i < 11, the axis covered by segments."""
    outer = Loop("i_out", 0, segments=parts, inner="i_in", base="i_base")
    nest = Nest(
        "Y",
        (outer, Loop("i_in", 4)),
        (("i", A("i_base") + A("i_in")),),
        (("i", 0, 11),),
        (),
        (),
        (StoreNode("Y", (A("i"),), load("X", A("i"))),),
    )
    buffers = (buffer("X", (11,), "input"), buffer("Y", (11,), "output"))
    return Kernel("cover", buffers, (Phase("Y", (nest,)),), Form.SCHEDULED)


def test_segments_give_their_sizes_to_the_inner_loop() -> None:
    x = np.arange(11, dtype=np.float32)
    kernel = covered((Segment(0, 2, 4), Segment(8, 1, 3)))
    verify(kernel)
    assert np.array_equal(interpret(kernel, {"X": x})["Y"], x)
    hole = interpret(covered((Segment(0, 2, 4), Segment(9, 1, 2))), {"X": x})["Y"]
    assert np.isnan(hole[8]) and np.array_equal(np.delete(hole, 8), np.delete(x, 8))
    with pytest.raises(
        InternalError, match=r"dimension 0: wanted an index in 0\.\.10, saw 0\.\.11"
    ):
        interpret(covered((Segment(0, 2, 4), Segment(8, 1, 4))), {"X": x})


@pytest.mark.parametrize("at", ["i", "j"])
def test_producers_run_once_for_each_iteration_of_their_loop(at: str) -> None:
    """Y[i] = sum(j < 3: 2 * X[i + j]) with the doubled values made inside a loop of the consumer."""
    width = 3 if at == "i" else 1
    doubled = Nest(
        "D",
        (Loop("t", width),),
        (("t", A("t")),),
        (("t", 0, width),),
        (),
        (),
        (
            StoreNode(
                "S",
                (A("t"),),
                Op(
                    "mul",
                    (load("X", A("t") + A("i") + (A("j") if at == "j" else 0)), Const(2.0, f32)),
                    f32,
                ),
            ),
        ),
    )
    node = ReduceNode(SUM, load("S", A("j") if at == "i" else Affine()), (), A("j"))
    nest = Nest(
        "Y",
        (Loop("i", 5), Loop("j", 3, reduce=0)),
        (("i", A("i")), ("j", A("j"))),
        (("i", 0, 5), ("j", 0, 3)),
        (),
        (node,),
        (StoreNode("Y", (A("i"),), Reduced(0, 0, f32)),),
        (Attached(at, doubled, "S"),),
    )
    buffers = (
        buffer("X", (7,), "input"),
        buffer("Y", (5,), "output"),
        buffer("S", (width,), "scratch"),
    )
    kernel = Kernel("attached", buffers, (Phase("Y", (nest,)),), Form.SCHEDULED)
    verify(kernel)
    x = np.arange(7, dtype=np.float32)
    assert np.array_equal(
        interpret(kernel, {"X": x})["Y"], [2 * (x[i] + x[i + 1] + x[i + 2]) for i in range(5)]
    )


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("zero", [0, 0, 1, 2, 3, 0]),
        ("reflect", [3, 2, 1, 2, 3, 2]),
        ("replicate", [1, 1, 1, 2, 3, 3]),
        ("circular", [2, 3, 1, 2, 3, 1]),
    ],
)
def test_edges(kind: Any, want: list[int]) -> None:
    nest = Nest(
        "Y",
        (Loop("i", 6),),
        (("i", A("i")),),
        (("i", 0, 6),),
        (),
        (),
        (StoreNode("Y", (A("i"),), load("X", A("i") - 2, edges=(Edge(kind),))),),
    )
    kernel = Kernel(
        "edge",
        (buffer("X", (3,), "input"), buffer("Y", (6,), "output")),
        (Phase("Y", (nest,)),),
        Form.NEST,
    )
    assert interpret(kernel, {"X": [1, 2, 3]})["Y"].tolist() == want


def test_a_load_without_an_edge_must_stay_inside() -> None:
    kernel = row_sums((ROW, OUT, Loop("j_in", 5, reduce=0)))
    with pytest.raises(InternalError, match="X: dimension 1: wanted an index in 0..11, saw 12..12"):
        interpret(kernel, {"X": X})


def test_blocked_layouts_hold_the_same_values() -> None:
    kernel = row_sums((ROW, OUT, IN))
    blocked = buffer("X", (4, 12), "input", Layout((1, 0), ((0, 3),), ((1, 0), (0, 2))))
    kernel = replace(kernel, buffers=(blocked, kernel.buffers[1]))
    assert np.array_equal(interpret(kernel, {"X": X})["Y"], X.sum(1))


def test_missing_and_misshapen_inputs() -> None:
    with pytest.raises(DataError, match="input X is missing"):
        interpret(row_sums((ROW, OUT, IN)), {})
    with pytest.raises(DataError, match=r"expected shape \(4, 12\), got shape \(4, 11\)"):
        interpret(row_sums((ROW, OUT, IN)), {"X": X[:, :11]})


# ---------------------------------------------------------------------------------------------
# FLAT


def at(value: Affine | int) -> Index:
    return Index(Affine.of(value))


def flat(body: Stmt, size: int = 10, **phase: Any) -> Kernel:
    buffers = (
        buffer("X", (size,), "input"),
        buffer("Y", (size,), "output"),
        buffer("S", (4,), "scratch"),
    )
    return Kernel("flat", buffers, (Phase("Y", body, **phase),), Form.FLAT)


def tasks(step: Stmt) -> Stmt:
    return For("t", A("begin"), A("end"), 1, step)


def test_tasks_run_in_any_order_and_any_chunks() -> None:
    body = tasks(
        Let(
            "o", 2 * A("t"), Store("Y", at(A("o")), 1, VectorLoad("X", at(A("o")), 1, f32, 2, 2), 2)
        )
    )
    kernel = flat(body, extent=5)
    verify(kernel)
    x = np.arange(10, dtype=np.float32)
    for seed in (None, 0, 1, 2):
        assert np.array_equal(interpret(kernel, {"X": x}, seed=seed)["Y"], x)


def test_vector_loads_strides_valid_lanes_masks_and_gathers() -> None:
    x = np.arange(10, dtype=np.float32)
    ramp = Index(Affine(), 3, 4)  # 0 3 6 9
    odd = Op("lt", (Index(Affine(), 1, 4), Index(A(2), 0, 4)), bool_, 4)  # lanes 0 and 1
    cases = [
        (VectorLoad("X", at(1), 2, f32, 4, 4), [1, 3, 5, 7]),
        (VectorLoad("X", at(1), 0, f32, 4, 4), [1, 1, 1, 1]),
        (VectorLoad("X", at(8), 1, f32, 4, 2), [8, 9, 0, 0]),
        (VectorLoad("X", at(8), 1, f32, 4, 4, odd), [8, 9, 0, 0]),
        (Gather("X", ramp, f32, 4, 4), [0, 3, 6, 9]),
        (Gather("X", ramp, f32, 4, 4, odd), [0, 3, 0, 0]),
        (Broadcast(Lanes(VectorLoad("X", at(4), 1, f32, 4, 4), (2,)), 4), [6, 6, 6, 6]),
    ]
    for expr, want in cases:
        kernel = flat(Store("Y", at(0), 1, expr, 4))
        verify(kernel)
        assert interpret(kernel, {"X": x})["Y"][:4].tolist() == want
    found = interpret(
        flat(Store("Y", at(0), 2, VectorLoad("X", at(0), 1, f32, 4, 4), 3, odd)), {"X": x}
    )["Y"]
    assert found[[0, 2]].tolist() == [0, 1] and np.isnan(np.delete(found, [0, 2])).all()


def test_registers_are_carried_through_loops_and_merged_by_conditionals() -> None:
    total = Register("sum", f32)
    read = VectorLoad("X", at(A("i")), 0, f32, 1, 1)
    small = Op("lt", (read, Const(5.0, f32)), bool_)
    body = Block(
        (
            Set("sum", Const(0.0, f32)),
            For("i", A(0), A(10), 3, If(small, Set("sum", Op("add", (total, read), f32)))),
            Store("Y", at(0), 1, total, 1),
        )
    )
    kernel = flat(body)
    verify(kernel)
    assert interpret(kernel, {"X": np.arange(10)})["Y"][0] == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            Store("Y", at(7), 1, VectorLoad("X", at(0), 1, f32, 4, 4), 4),
            r"store to Y: wanted offsets in 0\.\.9, saw 7\.\.10",
        ),
        (
            Store("Y", at(0), 1, VectorLoad("X", at(-1), 1, f32, 4, 4), 4),
            r"load of X: wanted offsets in 0\.\.9, saw -1\.\.2",
        ),
        (Store("Y", at(0), 1, Register("r", f32), 1), "register r is read where it is not set"),
        (
            Block(
                (
                    If(Const(1, bool_), Set("r", Const(1.0, f32))),
                    Store("Y", at(0), 1, Register("r", f32), 1),
                )
            ),
            "register r is read where it is not set",
        ),
        (Store("Y", at(A("q")), 1, Const(1.0, f32), 1), "q: no value for q"),
    ],
)
def test_flat_bodies_are_held_to_the_rules(body: Stmt, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        interpret(flat(body), {"X": np.zeros(10)})


def test_scratch_and_outputs_start_poisoned() -> None:
    body = Store("Y", at(0), 1, VectorLoad("S", at(0), 1, f32, 4, 4), 4)
    assert np.isnan(interpret(flat(body), {"X": np.zeros(10)})["Y"]).all()


# ---------------------------------------------------------------------------------------------
# Operations


def test_fma_rounds_once() -> None:
    chance = np.random.default_rng(0)
    for kind, spread in ((np.float32, 40), (np.float64, 60)):
        a, b, c = (chance.standard_normal(500).astype(kind) for _ in range(3))
        c *= kind(2.0) ** chance.integers(-spread, spread, 500).astype(kind)
        got = fma(a, b, c)
        for i in range(500):
            exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
            near = [got[i], np.nextafter(got[i], kind(-np.inf)), np.nextafter(got[i], kind(np.inf))]
            errors = [abs(Fraction(float(v)) - exact) for v in near]
            assert errors[0] == min(errors)


def test_operations_on_integers() -> None:
    a, b = np.array([7, -7], np.int32), np.array([2, 2], np.int32)
    assert apply("floordiv", [a, b], i32).tolist() == [3, -4]
    assert apply("mod", [a, b], i32).tolist() == [1, 1]
    assert apply("shr", [a, b], i32).tolist() == [1, -2]
    big = np.array([2**31 - 1], np.int32)
    assert apply("add", [big, np.array([1], np.int32)], i32).tolist() == [-(2**31)]
    assert apply("cast", [np.array([2.9, -2.9], np.float32)], i64).tolist() == [2, -2]
    assert apply("max", [np.array([np.nan]), np.array([1.0])], f64).tolist() != [1.0]


def test_differences_between_forms_are_named() -> None:
    kernel = row_sums((ROW, OUT, IN))
    short = row_sums((ROW, OUT, Loop("j_in", 3, reduce=0)))
    assert difference(kernel, row_sums((OUT, ROW, IN))) == ""
    assert "output Y: " in difference(kernel, short) and "elements differ" in difference(
        kernel, short
    )
