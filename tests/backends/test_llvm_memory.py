"""Loads and stores of every shape, and nothing outside what they name."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from fenced import fenced

from convgen.affine import ZERO, Affine
from convgen.backends import llvm
from convgen.backends.protocol import Artifact
from convgen.ir.nodes import (
    Block,
    Buffer,
    Const,
    Form,
    Gather,
    Index,
    Kernel,
    Layout,
    Op,
    Phase,
    Stmt,
    Store,
    VectorLoad,
)
from convgen.target import target
from convgen.types import DTYPES, DType, bool_, f32, f64, i64, u8

NATIVE = target()


def made(body: Stmt, dtype: DType, x: np.ndarray, y: np.ndarray, where: str) -> Artifact:
    buffers = (
        Buffer("X", dtype, x.shape, Layout.rowmajor(1), "input"),
        Buffer("Y", dtype, y.shape, Layout.rowmajor(1), "output"),
    )
    kernel = Kernel("k", buffers, (Phase("run", body),), Form.FLAT)
    return llvm.compile_kernel(kernel, target(where))


def call(body: Stmt, dtype: DType, x: np.ndarray, y: np.ndarray) -> None:
    artifact = made(body, dtype, x, y, "native")
    library = llvm.load(artifact.object, NATIVE)
    entry = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
    )(library.address(artifact.entries[0].symbol))
    entry((ctypes.c_void_p * 2)(x.ctypes.data, y.ctypes.data), None, 0, 1)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("lanes", [1, 4, 16])
def test_loads_and_stores(dtype: DType, lanes: int) -> None:
    rng = np.random.default_rng(1)
    for stride in (-1, 0, 1, 2, 3):
        for valid in sorted({0, 1, lanes - 1, lanes // 2 + 1, lanes} & set(range(lanes + 1))):
            reach = max(abs(stride) * (max(valid, 1) - 1) + 1, 1)
            x = fenced(
                rng.integers(0, 2 if dtype is bool_ else 100, reach).astype(dtype.numpy_name)
            )
            y = np.zeros(lanes, dtype.numpy_name)
            start = reach - 1 if stride < 0 else 0
            load = VectorLoad("X", Index(Affine((), start)), stride, dtype, lanes, valid)
            call(Store("Y", Index(ZERO), 1, load, lanes), dtype, x, y)
            want = np.zeros_like(y)
            want[:valid] = [x[start + i * stride] for i in range(valid)]
            np.testing.assert_array_equal(y, want, f"load {stride=} {valid=}")
            if stride == 0 or valid == 0:
                continue
            source = rng.integers(0, 2 if dtype is bool_ else 100, lanes).astype(dtype.numpy_name)
            out = fenced(np.zeros(reach, dtype.numpy_name))
            whole = VectorLoad("X", Index(ZERO), 1, dtype, lanes, lanes)
            call(Store("Y", Index(Affine((), start)), stride, whole, valid), dtype, source, out)
            want = np.zeros_like(out)
            for i in range(valid):
                want[start + i * stride] = source[i]
            np.testing.assert_array_equal(out, want, f"store {stride=} {valid=}")


@pytest.mark.parametrize("valid", [3, 5, 6, 7])
def test_a_partial_vector_is_stored_in_pieces_on_avx2(valid: int) -> None:
    """A store under a mask takes ten times as long on some CPUs with AVX2; loads do not."""
    x = y = np.zeros(8, np.float32)
    load = VectorLoad("X", Index(ZERO), 1, f32, 8, valid)
    body = Store("Y", Index(ZERO), 1, load, valid)
    narrow = llvm.LlvmBackend().assembly(made(body, f32, x, y, "x86-64-v3").ir, target("x86-64-v3"))
    assert sum("vmaskmov" in line for line in narrow.splitlines()) == 1
    wide = llvm.LlvmBackend().assembly(made(body, f32, x, y, "x86-64-v4").ir, target("x86-64-v4"))
    assert sum("{%k" in line for line in wide.splitlines()) == 2


@pytest.mark.parametrize("valid", [2, 4])
def test_offsets_computed_at_run_time(valid: int) -> None:
    x = np.arange(8, dtype=np.int64)[::-1].copy()
    y = np.zeros(4, np.int64)
    first = VectorLoad("X", Index(ZERO), 1, i64, 4, 4)
    offset = Op("sub", (first, Const(4, i64, 4)), i64, 4)
    body = Store("Y", Index(ZERO), 1, Gather("X", offset, i64, 4, valid), 4)
    call(body, i64, x, y)
    np.testing.assert_array_equal(y[:valid], x[x[:4] - 4][:valid])
    assert not y[valid:].any()


@pytest.mark.parametrize("dtype", [f32, f64, u8, bool_, i64], ids=str)
@pytest.mark.parametrize("stride", [0, 1, 3])
def test_masks_keep_from_reading_and_writing(dtype: DType, stride: int) -> None:
    rng = np.random.default_rng(2)
    reach = stride * 4 + 1
    x = fenced(rng.integers(1, 2 if dtype is bool_ else 100, reach).astype(dtype.numpy_name))
    y = np.zeros(8, dtype.numpy_name)
    lane = Index(ZERO, 1, 8)
    mask = Op("le", (lane, Const(4, i64, 8)), bool_, 8)
    load = VectorLoad("X", Index(ZERO), stride, dtype, 8, 7, mask)
    call(Store("Y", Index(ZERO), 1, load, 8), dtype, x, y)
    want = np.array([x[i * stride] if i <= 4 else 0 for i in range(8)], dtype.numpy_name)
    np.testing.assert_array_equal(y, want)

    gathered = Gather("X", Index(ZERO, stride, 8), dtype, 8, 8, mask)
    y[:] = 0
    call(Store("Y", Index(ZERO), 1, gathered, 8), dtype, x, y)
    np.testing.assert_array_equal(y, want)

    if stride:
        out = fenced(np.zeros(reach, dtype.numpy_name))
        whole = VectorLoad("X", Index(ZERO), 1, dtype, 8, 8)
        source = np.ones(8, dtype.numpy_name)
        call(Store("Y", Index(ZERO), stride, whole, 7, mask), dtype, source, out)
        np.testing.assert_array_equal(out.nonzero()[0], np.arange(5) * stride)


def test_constants_are_part_of_the_kernel() -> None:
    values = (1.0, -0.5, float("inf"))
    for dtype in (f32, f64):
        constant = Buffer("K", dtype, (3,), Layout.rowmajor(1), "constant", values)
        out = Buffer("Y", dtype, (3,), Layout.rowmajor(1), "output")
        body = Store("Y", Index(ZERO), 1, VectorLoad("K", Index(ZERO), 1, dtype, 3, 3), 3)
        kernel = Kernel("k", (constant, out), (Phase("run", body),), Form.FLAT)
        artifact = llvm.compile_kernel(kernel, NATIVE)
        assert [a.name for a in artifact.signature] == ["Y"]
        library = llvm.load(artifact.object, NATIVE)
        y = np.zeros(3, dtype.numpy_name)
        entry = ctypes.CFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
        )(library.address("k_run"))
        entry((ctypes.c_void_p * 1)(y.ctypes.data), None, 0, 1)
        assert tuple(y.tolist()) == values


def test_scratch_is_private_memory_of_the_call() -> None:
    scratch = Buffer("S", u8, (5,), Layout.rowmajor(1), "scratch")
    more = Buffer("T", f32, (4,), Layout.rowmajor(1), "scratch")
    out = Buffer("Y", f32, (4,), Layout.rowmajor(1), "output")
    body = Block(
        (
            Store("T", Index(ZERO), 1, Const(2.5, f32, 4), 4),
            Store("S", Index(ZERO), 1, Const(7, u8, 5), 5),
            Store("Y", Index(ZERO), 1, VectorLoad("T", Index(ZERO), 1, f32, 4, 4), 4),
        )
    )
    kernel = Kernel("k", (scratch, more, out), (Phase("run", body),), Form.FLAT)
    artifact = llvm.compile_kernel(kernel, NATIVE)
    assert artifact.scratch_bytes == 128
    y, own = np.zeros(4, np.float32), np.zeros(192, np.uint8)
    start = -own.ctypes.data % 64
    library = llvm.load(artifact.object, NATIVE)
    entry = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
    )(library.address("k_run"))
    entry((ctypes.c_void_p * 1)(y.ctypes.data), own.ctypes.data + start, 0, 1)
    np.testing.assert_array_equal(y, np.full(4, 2.5, np.float32))


def test_part_of_a_vector_with_a_step_of_two_is_loaded_in_pieces() -> None:
    """Eight elements of sixteen: two loads and a shuffle, none on its own."""
    load = VectorLoad("X", Index(ZERO), 2, f32, 16, 8)
    buffers = (
        Buffer("X", f32, (15,), Layout.rowmajor(1), "input"),
        Buffer("Y", f32, (16,), Layout.rowmajor(1), "output"),
    )
    phase = Phase("run", Store("Y", Index(ZERO), 1, load, 16))
    artifact = llvm.compile_kernel(Kernel("k", buffers, (phase,), Form.FLAT), target("x86-64-v4"))
    assert artifact.ir.count("load <8 x float>") == 2
    assert "load float" not in artifact.ir and "insertelement" not in artifact.ir
