"""Rewrites that change nothing give the same object; broken kernels are refused with both sides."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from convgen.affine import Affine, Constraint
from convgen.errors import InternalError
from convgen.ir.nodes import (
    Block,
    Broadcast,
    Buffer,
    Combiner,
    Const,
    Edge,
    Expr,
    For,
    Form,
    If,
    Index,
    Kernel,
    Lanes,
    Layout,
    Let,
    Load,
    Loop,
    LoopKind,
    Nest,
    Op,
    Param,
    Phase,
    Reduced,
    ReduceNode,
    Register,
    Segment,
    Set,
    Store,
    StoreNode,
    VectorLoad,
)
from convgen.ir.printer import guard_text, kernel_text, text_of
from convgen.ir.rounding import number_of, round_float
from convgen.ir.simplify import simplify_expr
from convgen.ir.verify import verify
from convgen.ir.visit import loads, map_affine, map_expr, map_stmt, walk
from convgen.types import bool_, f32, i32, i64, u8

A = Affine.of
V, P = Param("v", f32), Param("p", i64)
ADD = Op("add", (Param("a0", f32), Param("b0", f32)), f32)
SUM = Combiner("sum", (f32,), (V,), (ADD,), (Const(0.0, f32),), (Param("a0", f32),))


def scheduled() -> Kernel:
    """Y[i] = sum(j: X{zero}[i - j] * 2) + 1, i tiled, j covered."""
    read = Load("X", (A("i") - A("j"),), (Edge("zero"),), f32)
    body = Op("mul", (read, Const(2.0, f32)), f32)
    node = ReduceNode(SUM, body, (Constraint("<=", A("j") - A("i")),), A("j"), carried=True)
    loops = (
        Loop("i_out", 2, LoopKind.PARALLEL),
        Loop(
            "j_out",
            0,
            reduce=0,
            segments=(Segment(0, 1, 2), Segment(2, 1, 1)),
            inner="j_in",
            base="j_base",
        ),
        Loop("i_in", 4, LoopKind.VECTOR),
        Loop("j_in", 2, LoopKind.UNROLL, reduce=0),
    )
    axes = (("i", 4 * A("i_out") + A("i_in")), ("j", A("j_base") + A("j_in")))
    value = Op("add", (Reduced(0, 0, f32), Const(1.0, f32)), f32)
    nest = Nest(
        "Y",
        loops,
        axes,
        (("i", 0, 8), ("j", 0, 3)),
        (),
        (node,),
        (StoreNode("Y", (A("i"),), value),),
    )
    buffers = (
        Buffer("X", f32, (8,), Layout((0,)), "input"),
        Buffer("Y", f32, (8,), Layout((0,), ((0, 4),), ((0, 4),)), "output"),
    )
    return Kernel(
        "tiny", buffers, (Phase("Y", (nest,)),), Form.SCHEDULED, ("split(i, 4)",), ("a note",)
    )


def flat() -> Kernel:
    acc = Register("acc", f32, 4)
    body = For(
        "t",
        A("begin"),
        A("end"),
        1,
        Let(
            "o",
            4 * A("t"),
            Block(
                (
                    Set("acc", Const(0.0, f32, 4)),
                    For(
                        "j",
                        Affine(),
                        A(3),
                        1,
                        Set(
                            "acc",
                            Op(
                                "fma",
                                (
                                    VectorLoad("X", Index(A("o") + A("j")), 1, f32, 4, 4),
                                    Broadcast(Const(2.0, f32), 4),
                                    acc,
                                ),
                                f32,
                                4,
                            ),
                        ),
                    ),
                    If(
                        Op("lt", (Index(A("o")), Const(4, i64)), bool_),
                        Store("Y", Index(A("o")), 1, acc, 3),
                        Store("Y", Index(A("o")), 1, Lanes(acc, (2,)), 1),
                    ),
                )
            ),
        ),
    )
    buffers = (
        Buffer("X", f32, (12,), Layout((0,)), "input"),
        Buffer("Y", f32, (8,), Layout((0,)), "output"),
    )
    return Kernel("tiny", buffers, (Phase("Y", body, 2, scratch_bytes=64),), Form.FLAT)


@pytest.mark.parametrize("make", [scheduled, flat])
def test_golden_and_verified(
    make: Callable[[], Kernel], golden: Callable[[str, str], None]
) -> None:
    verify(make())
    golden(f"ir/tiny_{make.__name__}.txt", kernel_text(make()))


def test_rewrites_that_change_nothing_give_the_same_object() -> None:
    (nest,) = scheduled().nests()
    body = nest.reduces[0].body
    assert map_expr(body, lambda e: e) is body
    assert map_affine(body, lambda a: a) is body
    assert simplify_expr(body) is body
    stmt: Any = flat().phases[0].body
    assert map_stmt(stmt, lambda s: s, lambda e: map_expr(e, lambda x: x)) is stmt


def test_rewrites_reach_every_part() -> None:
    stmt: Any = flat().phases[0].body

    def double(e: Expr) -> Expr:
        return replace(e, value=2 * e.value) if isinstance(e, Const) else e

    new = map_stmt(stmt, None, lambda e: map_expr(e, double))
    values = [n.value for n in walk(new) if isinstance(n, Const)]
    assert values == [0.0, 4.0, 8]
    (nest,) = scheduled().nests()
    assert [x.buffer for x in loads(nest)] == ["X"]
    padded = Load("X", (A("i"),), (Edge("constant", Load("M", (), (), f32)),), f32)
    assert [x.buffer for x in loads(padded)] == ["X", "M"]
    moved = map_affine(padded, lambda a: a + 1)
    assert text_of(moved) == "X{M[]}[i + 1]"


def broken(kernel: Kernel, **changes: Any) -> Kernel:
    (phase,) = kernel.phases
    assert isinstance(phase.body, tuple)
    return replace(kernel, phases=(replace(phase, body=(replace(phase.body[0], **changes),)),))


def storing(value: Expr) -> Kernel:
    return broken(scheduled(), stores=(StoreNode("Y", (A("i"),), value),))


one = Const(1.0, f32)
REFUSED: list[tuple[Kernel, str]] = [
    (
        storing(Op("add", (one, Const(1, i32)), f32)),
        r"add: wanted dtypes that nodes.OPS allows, saw \[f32, i32\] -> f32",
    ),
    (storing(Op("lt", (one, one), f32)), "lt: wanted dtypes"),
    (storing(Op("plus", (one, one), f32)), "wanted an operation of OPS, saw plus"),
    (storing(Op("neg", (one, one), f32)), "neg: wanted 1 arguments, saw 2"),
    (storing(Op("div", (Const(1, i32), Const(1, i32)), i32)), "div: wanted dtypes"),
    (
        storing(Op("add", (one, Const(1.0, f32, 4)), f32)),
        r"wanted one number of lanes, saw \[1, 4\]",
    ),
    (storing(Reduced(1, 0, f32)), "result 1.0: wanted below 1, saw 1"),
    (storing(Reduced(0, 0, i32)), "result 0.0: wanted f32, saw i32"),
    (storing(Load("Q", (), (), f32)), r"wanted one of \['X', 'Y'\], saw Q"),
    (storing(Load("X", (A("i"),), (None,), i32)), "load of X: wanted f32, saw i32"),
    (storing(Load("X", (A("z"),), (None,), f32)), r"z: wanted names among .* saw \['z'\]"),
    (storing(Load("X", (), (), f32)), r"wanted 1 indices and edges, saw \(0, 0\)"),
    (storing(Load("X", (A("i"),), (Edge("omit"),), f32)), "wanted omit in a reduce only"),
    (storing(Param("v", f32)), "v: wanted no parameter"),
    (storing(VectorLoad("X", Index(A("i")), 1, f32, 4, 4)), "wanted a Load"),
    (
        broken(scheduled(), stores=(StoreNode("X", (A("i"),), one),)),
        "wanted a buffer to write, saw input",
    ),
    (broken(scheduled(), axes=(("i", A("q")), ("j", A("j_in")))), r"axis i: q: wanted names"),
    (
        broken(scheduled(), loops=(Loop("i_out", 2), Loop("i_out", 2))),
        "loops with names that differ",
    ),
    (replace(scheduled(), form=Form.NEST), "wanted serial loops only, saw directives applied"),
    (replace(scheduled(), form=Form.FLAT), "wanted statements, saw tuple"),
    (replace(flat(), form=Form.NEST), "wanted nests, saw For"),
]


@pytest.mark.parametrize(("kernel", "message"), REFUSED)
def test_broken_kernels_are_refused(kernel: Kernel, message: str) -> None:
    with pytest.raises(InternalError, match=message) as caught:
        verify(kernel, "mypass")
    assert str(caught.value).startswith("[mypass] ") and "kernel tiny" in caught.value.dump


def flat_of(body: Any) -> Kernel:
    return replace(flat(), phases=(Phase("Y", body),))


FLAT_REFUSED: list[tuple[Any, str]] = [
    (Store("Y", Index(Affine()), 1, Register("r", f32), 1), "register r: wanted it set before"),
    (Store("Y", Const(1.0, f32), 1, one, 1), "offset: wanted an i64, lanes 1"),
    (Store("Y", Index(Affine()), 1, Const(1, i32), 1), "wanted f32, saw i32"),
    (Store("Y", Index(Affine()), 1, one, 2), r"wanted 0\.\.1 valid lanes, saw 2"),
    (
        Block((Set("r", one), Set("r", Const(1.0, f32, 4)))),
        "register r: wanted .f32, 1., saw .f32, 4.",
    ),
    (If(one, Block(())), "wanted a bool of 1 lane"),
    (For("i", A("k"), A(3), 1, Block(())), r"saw \['k'\]"),
    (For("i", A(0), A(3), 0, Block(())), "wanted a step >= 1, saw 0"),
    (Set("r", Lanes(Const(1.0, f32, 4), (4,))), "lane: wanted below 4, saw 4"),
    (Set("r", Load("X", (A("begin"),), (None,), f32)), "wanted a VectorLoad"),
]


@pytest.mark.parametrize(("body", "message"), FLAT_REFUSED)
def test_broken_statements_are_refused(body: Any, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        verify(flat_of(body))


def test_folding_rounds_and_wraps_as_the_kernel_would() -> None:
    third = Op("div", (Const(1.0, f32), Const(3.0, f32)), f32)
    assert simplify_expr(third) == Const(round_float(1 / 3, 32), f32)
    assert simplify_expr(Op("add", (Const(200, u8), Const(100, u8)), u8)) == Const(44, u8)
    x = Load("X", (A("i"),), (None,), f32)
    assert simplify_expr(Op("add", (Const(0.0, f32), Op("mul", (x, one), f32)), f32)) is x
    chosen = Op("select", (Op("le", (Index(A("i")), Const(7, i64)), bool_), x, one), f32)
    assert simplify_expr(chosen, {"i": (0, 8)}) is x
    assert isinstance(simplify_expr(chosen, {"i": (0, 9)}), Op)
    assert simplify_expr(Op("mul", (x, Const(0.0, f32)), f32)) != Const(0.0, f32)


def test_numbers_as_dtypes_hold_them() -> None:
    for value in (0.1, 1e-45, 7e-46, 3.4028235e38, 3.5e38, -1 / 3, 2.0**-149 * 1.5, 16777217.0):
        try:
            (want,) = struct.unpack("f", struct.pack("f", value))
        except OverflowError:
            want = float("inf")
        assert round_float(Fraction(value), 32) == want
    assert number_of(Fraction(-7, 2), i32) == -3
    assert number_of(float("-inf"), u8) == 0 and number_of(float("inf"), i32) == 2**31 - 1


def test_expressions_print_with_few_brackets() -> None:
    a, b = (Load(n, (A("i"),), (None,), f32) for n in "ab")
    sub = Op("sub", (a, Op("sub", (b, a), f32)), f32)
    assert text_of(sub) == "a[i] - (b[i] - a[i])"
    assert (
        text_of(Op("mul", (Op("neg", (a,), f32), sub), f32)) == "(-a[i]) * (a[i] - (b[i] - a[i]))"
    )
    assert text_of(Op("cast", (Const(3, i32),), f32)) == "f32(3)"
    assert guard_text(Constraint("<=", A("i") - A("j") + 1)) == "i + 1 <= j"
    assert guard_text(Constraint("%", A("h") + 1, 2)) == "(h + 1) % 2 == 0"
