"""Vectors stored side by side with a step: transposed in registers, the same bytes in memory."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from convgen.affine import Affine
from convgen.backends import llvm
from convgen.ir.nodes import (
    Block,
    Buffer,
    Form,
    Index,
    Kernel,
    Layout,
    Phase,
    Register,
    Set,
    Stmt,
    Store,
    VectorLoad,
)
from convgen.target import runs_here, target
from convgen.types import DType, f32, f64, i64, u16


def columns(count: int, lanes: int, stride: int, valid: int, dtype: DType) -> Block:
    """Y[lane*stride + column] = X[column*lanes + lane], the columns in a mixed order."""
    body: list[Stmt] = []
    for column in sorted(range(count), key=lambda c: (c * 7) % 5):
        where = Index(Affine((), column * lanes))
        body.append(Set(f"r{column}", VectorLoad("X", where, 1, dtype, lanes, lanes)))
        value = Register(f"r{column}", dtype, lanes)
        body.append(Store("Y", Index(Affine((), column)), stride, value, valid))
    return Block(tuple(body))


def make(body: Stmt, dtype: DType, x: np.ndarray, y: np.ndarray, where: str) -> llvm.Artifact:
    buffers = (
        Buffer("X", dtype, x.shape, Layout.rowmajor(1), "input"),
        Buffer("Y", dtype, y.shape, Layout.rowmajor(1), "output"),
    )
    kernel = Kernel("k", buffers, (Phase("run", body),), Form.FLAT)
    return llvm.compile_kernel(kernel, target(where))


def run(artifact: llvm.Artifact, where: str, x: np.ndarray, y: np.ndarray) -> None:
    library = llvm.load(artifact.object, target(where))
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    entry = kind(library.address(artifact.entries[0].symbol))
    entry((ctypes.c_void_p * 2)(x.ctypes.data, y.ctypes.data), None, 0, 1)


@pytest.mark.parametrize("where", ["x86-64-v4", "x86-64-v3", "x86-64-v2"])
@pytest.mark.parametrize("dtype", [f32, f64, i64, u16], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 14, 19])
def test_the_same_bytes(where: str, dtype: DType, count: int) -> None:
    if not runs_here(target(where)):
        pytest.skip(f"not a {where}")
    lanes = max(2, target(where).lanes(dtype))
    rng = np.random.default_rng(count)
    x = rng.integers(0, 999, count * lanes).astype(dtype.numpy_name)
    for stride in (count, count + 3):
        for valid in (lanes, lanes - 1):
            y = np.full(lanes * stride, 5, dtype.numpy_name)
            want = y.copy()
            for column in range(count):
                for lane in range(valid):
                    want[lane * stride + column] = x[column * lanes + lane]
            body = columns(count, lanes, stride, valid, dtype)
            run(make(body, dtype, x, y, where), where, x, y)
            np.testing.assert_array_equal(y, want, f"{stride=} {valid=}")


def test_what_overlaps_keeps_its_order() -> None:
    """The second store writes over elements of the first: nothing may change places."""
    x = np.arange(8, dtype=np.float32)
    y = np.zeros(16, np.float32)
    want = y.copy()
    body: list[Stmt] = []
    for number, start in enumerate((2, 0, 2)):
        load = VectorLoad("X", Index(Affine((), number)), 1, f32, 4, 4)
        body.append(Store("Y", Index(Affine((), start)), 2, load, 4))
        want[start : start + 8 : 2] = x[number : number + 4]
    run(make(Block(tuple(body)), f32, x, y, "x86-64-v2"), "x86-64-v2", x, y)
    np.testing.assert_array_equal(y, want)


def test_what_is_read_back_is_written_first() -> None:
    x, y = np.arange(4, dtype=np.float32), np.zeros(12, np.float32)
    body = (
        Store("Y", Index(Affine()), 2, VectorLoad("X", Index(Affine()), 1, f32, 4, 4), 4),
        Store("Y", Index(Affine((), 1)), 2, VectorLoad("Y", Index(Affine()), 2, f32, 4, 4), 4),
    )
    run(make(Block(body), f32, x, y, "x86-64-v2"), "x86-64-v2", x, y)
    assert y.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 0, 0]


def test_no_element_goes_alone() -> None:
    """Sixteen columns of sixteen floats: shuffles and whole stores in the assembly."""
    x = y = np.zeros(16 * 20, np.float32)
    body = columns(16, 16, 20, 16, f32)
    text = llvm.LlvmBackend().assembly(make(body, f32, x, y, "x86-64-v4").ir, target("x86-64-v4"))
    moves = [line for line in text.splitlines() if "(%" in line and "zmm" in line]
    assert sum("mov" in line for line in moves) == 32
    assert "vextractps" not in text and "vmovss" not in text
