"""Loops, conditionals, carried registers; what the hot loop's assembly looks like; other targets."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest

from convgen.affine import ONE, ZERO, Affine, FloorDiv, Mod
from convgen.backends import llvm
from convgen.backends.llvm.elf import undefined_symbols
from convgen.backends.llvm.machine import compile_text
from convgen.errors import InternalError
from convgen.ir.nodes import (
    Block,
    Buffer,
    Const,
    For,
    Form,
    If,
    Index,
    Kernel,
    Layout,
    Let,
    Op,
    Phase,
    Register,
    Set,
    Stmt,
    Store,
    VectorLoad,
)
from convgen.target import target
from convgen.types import bool_, f32, i64

NATIVE = target()


def affine(constant: int = 0, **terms: int) -> Affine:
    return Affine.build(terms.items(), constant)


def execute(kernel: Kernel, arrays: list[np.ndarray], begin: int, end: int) -> None:
    artifact = llvm.compile_kernel(kernel, NATIVE)
    library = llvm.load(artifact.object, NATIVE)
    pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
    for e in artifact.entries:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(
            library.address(e.symbol)
        )(pointers, None, begin, end)


def integers(body: Stmt, count: int, begin: int = 0, end: int = 1) -> list[int]:
    """Run a body that writes Y: i64[count]."""
    y = np.full(count, -1, np.int64)
    out = Buffer("Y", i64, (count,), Layout.rowmajor(1), "output")
    execute(Kernel("k", (out,), (Phase("run", body),), Form.FLAT), [y], begin, end)
    return y.tolist()


def add(register: str, value: Affine) -> Set:
    return Set(register, Op("add", (Register(register, i64), Index(value)), i64))


def test_registers_are_carried_through_loops_and_branches() -> None:
    odd = Op("eq", (Index(Affine.of("i") % 2), Const(1, i64)), bool_)
    body = Block(
        (
            Set("s", Const(0, i64)),
            Set("t", Const(100, i64)),
            For(
                "i",
                affine(begin=1),
                affine(end=1),
                1,
                Block(
                    (
                        If(odd, add("s", affine(i=1)), add("t", affine(1))),
                        For("j", affine(i=1), affine(4), 2, add("s", affine(10))),
                    )
                ),
            ),
            Store("Y", Index(ZERO), 1, Register("s", i64), 1),
            Store("Y", Index(ONE), 1, Register("t", i64), 1),
        )
    )

    def reference(begin: int, end: int) -> list[int]:
        s, t = 0, 100
        for i in range(begin, end):
            if i % 2 == 1:
                s += i
            else:
                t += 1
            for _ in range(i, 4, 2):
                s += 10
        return [s, t]

    for begin, end in ((0, 7), (3, 3), (5, 2), (-3, 4)):
        assert integers(body, 2, begin, end) == reference(begin, end)


def test_constant_trips_that_the_step_does_not_divide() -> None:
    for begin, end, step in ((0, 10, 3), (0, 9, 3), (4, 4, 1), (5, 3, 1), (-4, 3, 5)):
        body = Block(
            (
                Set("s", Const(0, i64)),
                For("i", affine(begin), affine(end), step, add("s", affine(1, i=1))),
                Store("Y", Index(ZERO), 1, Register("s", i64), 1),
            )
        )
        assert integers(body, 1) == [sum(i + 1 for i in range(begin, end, step))]


def test_floor_division_and_remainder_round_down() -> None:
    x = Affine.of("x")
    parts = [Affine.of(FloorDiv(x, 4)), Affine.of(Mod(x, 4)), Affine.of(FloorDiv(x, 3)), x % 3]
    for value in range(-9, 10):
        stores = tuple(Store("Y", Index(affine(n)), 1, Index(p), 1) for n, p in enumerate(parts))
        got = integers(Let("x", affine(begin=1), Block(stores)), 4, value, value + 1)
        assert got == [value // 4, value % 4, value // 3, value % 3]


def test_a_variable_may_be_bound_again() -> None:
    inner = Let("x", affine(3, x=1), Store("Y", affine_index("x"), 1, Index(Affine.of("x")), 1))
    body = Let(
        "x", affine(begin=1), Block((inner, Store("Y", affine_index("x"), 1, Const(7, i64), 1)))
    )
    assert integers(body, 5, 1, 2) == [-1, 7, -1, -1, 4]


def affine_index(name: str) -> Index:
    return Index(Affine.of(name))


def test_a_register_that_changes_type_is_an_internal_error() -> None:
    body = Block(
        (
            Set("s", Const(0, i64)),
            For("i", ZERO, affine(4), 1, Set("s", Const(0.0, f32, 4))),
        )
    )
    with pytest.raises(InternalError, match="register s changes from i64"):
        integers(body, 1)


def microkernel(rows: int, vectors: int, lanes: int, deep: int = 64) -> Kernel:
    """Y[m, n] = sum(k: A[m, k] * B[k, n]) with a tile of rows x vectors in registers."""
    width = vectors * lanes
    tile = [(m, v) for m in range(rows) for v in range(vectors)]
    body: list[Stmt] = [
        Set(f"b{v}", VectorLoad("B", Index(affine(v * lanes, k=width)), 1, f32, lanes, lanes))
        for v in range(vectors)
    ]
    for m in range(rows):
        body.append(Set("a", VectorLoad("A", Index(affine(m * deep, k=1)), 0, f32, lanes, lanes)))
        body += [
            Set(f"c{m}_{v}", Op("fma", tuple(Register(r, f32, lanes) for r in names), f32, lanes))
            for v in range(vectors)
            for names in [("a", f"b{v}", f"c{m}_{v}")]
        ]
    zero: list[Stmt] = [Set(f"c{m}_{v}", Const(0.0, f32, lanes)) for m, v in tile]
    stores: list[Stmt] = [
        Store(
            "Y", Index(affine(m * width + v * lanes)), 1, Register(f"c{m}_{v}", f32, lanes), lanes
        )
        for m, v in tile
    ]
    nest = Block((*zero, For("k", ZERO, affine(deep), 1, Block(tuple(body))), *stores))
    buffers = (
        Buffer("A", f32, (rows, deep), Layout.rowmajor(2), "input"),
        Buffer("B", f32, (deep, width), Layout.rowmajor(2), "input"),
        Buffer("Y", f32, (rows, width), Layout.rowmajor(2), "output"),
    )
    return Kernel("tile", buffers, (Phase("run", nest),), Form.FLAT)


def hot_loop(assembly: str) -> list[str]:
    """The instructions of the loop with the most multiply-adds."""
    blocks = re.split(r"^\.LBB\w+:.*$", assembly, flags=re.MULTILINE)
    best = max(blocks, key=lambda text: text.count("fmadd") + text.count("fmla"))
    lines = [line.strip() for line in best.splitlines() if line.startswith("\t")]
    jump = next(i for i, line in enumerate(lines) if re.match(r"j[a-z]+\t|b\.|cb", line))
    return lines[: jump + 1]


@pytest.mark.parametrize(
    ("name", "rows", "vectors"),
    [("x86-64-v4", 14, 2), ("x86-64-v4", 6, 4), ("x86-64-v3", 6, 2), ("aarch64", 8, 3)],
)
def test_the_hot_loop_has_no_stack_traffic(name: str, rows: int, vectors: int) -> None:
    made = target(name)
    artifact = llvm.compile_kernel(microkernel(rows, vectors, made.lanes(f32)), made)
    lines = hot_loop(artifact.asm)
    work = [line for line in lines if "fmadd" in line or "fmla" in line]
    assert len(work) == rows * vectors
    assert not [line for line in lines if re.search(r"%[re]?[sb]p\b|\bsp\b", line)]
    assert len(lines) <= len(work) + rows + vectors + 6


def test_a_tile_too_large_for_the_registers_is_seen() -> None:
    lines = hot_loop(llvm.compile_kernel(microkernel(16, 2, 16), target("x86-64-v4")).asm)
    assert [line for line in lines if "%rsp" in line]


def test_the_tile_computes_a_product() -> None:
    rng = np.random.default_rng(1)
    lanes = NATIVE.lanes(f32)
    a = rng.normal(size=(6, 64)).astype(np.float32)
    b = rng.normal(size=(64, 2 * lanes)).astype(np.float32)
    y = np.zeros((6, 2 * lanes), np.float32)
    execute(microkernel(6, 2, lanes), [a, b, y], 0, 1)
    np.testing.assert_allclose(y, a @ b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"])
def test_objects_for_every_target_need_nothing_from_outside(name: str) -> None:
    artifact = llvm.compile_kernel(microkernel(4, 1, 4), target(name))
    assert artifact.object[:4] == b"\x7fELF"
    assert undefined_symbols(artifact.object) == frozenset()
    assert artifact == llvm.compile_kernel(microkernel(4, 1, 4), target(name))


def test_a_call_to_libm_is_refused() -> None:
    text = (
        "declare float @expf(float)\n"
        "define float @f(float %x) { %y = call float @expf(float %x) ret float %y }"
    )
    with pytest.raises(InternalError, match="the object needs expf"):
        compile_text(text, NATIVE)
