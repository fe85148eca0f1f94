"""Vectors stored side by side with a step: transposed in registers, the same bytes in memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from fenced import fenced

from convgen.affine import Affine
from convgen.backends import llvm
from convgen.ir.nodes import (
    Block,
    Buffer,
    Form,
    Index,
    Kernel,
    Layout,
    Let,
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


def gathered(count: int, lanes: int, stride: int, valid: int, dtype: DType) -> Block:
    """Y[column*lanes + lane] = X[lane*stride + column], the columns in a mixed order."""
    body: list[Stmt] = []
    order = sorted(range(count), key=lambda c: (c * 7) % 5)
    for column in order:
        load = VectorLoad("X", Index(Affine((), column)), stride, dtype, lanes, valid)
        body.append(Set(f"r{column}", load))
    for column in order:
        where = Index(Affine((), column * lanes))
        body.append(Store("Y", where, 1, Register(f"r{column}", dtype, lanes), lanes))
    return Block(tuple(body))


@pytest.mark.parametrize("where", ["x86-64-v4", "x86-64-v3", "x86-64-v2"])
@pytest.mark.parametrize("dtype", [f32, f64, i64, u16], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 9, 14, 19])
def test_loads_with_a_step(where: str, dtype: DType, count: int) -> None:
    """The array ends with the last element that is wanted, at the end of a page of its own."""
    if not runs_here(target(where)):
        pytest.skip(f"not a {where}")
    lanes = max(2, target(where).lanes(dtype))
    for stride in (count, count + 3, 40):
        for valid in (lanes, lanes - 1):
            size = (valid - 1) * stride + count
            x = np.random.default_rng(count).integers(1, 999, size).astype(dtype.numpy_name)
            y = np.full(count * lanes, 5, dtype.numpy_name)
            want = np.zeros_like(y)
            for column in range(count):
                for lane in range(valid):
                    want[column * lanes + lane] = x[lane * stride + column]
            body = gathered(count, lanes, stride, valid, dtype)
            run(make(body, dtype, x, y, where), where, fenced(x), y)
            np.testing.assert_array_equal(y, want, f"{stride=} {valid=}")


def copied(body: Block) -> Block:
    """The same with every load in the store of what it loads."""
    loads = {s.register: s.value for s in body.body if isinstance(s, Set)}
    stores = [s for s in body.body if isinstance(s, Store)]
    found = [replace(s, value=loads[s.value.name]) for s in stores]  # type: ignore[union-attr]
    return Block(tuple(found))


@pytest.mark.parametrize("where", ["x86-64-v4", "x86-64-v3", "x86-64-v2"])
@pytest.mark.parametrize("count", [1, 2, 9, 19])
def test_copies_with_a_step(where: str, count: int) -> None:
    """What is stored as it was loaded waits for its neighbours too, within the array."""
    if not runs_here(target(where)):
        pytest.skip(f"not a {where}")
    lanes = target(where).lanes(f32)
    x = np.arange((lanes - 1) * 40 + count, dtype=np.float32)
    y = np.full(count * lanes, 5, np.float32)
    want = np.concatenate([x[column::40][:lanes] for column in range(count)])
    body = copied(gathered(count, lanes, 40, lanes, f32))
    run(make(body, f32, x, y, where), where, fenced(x), y)
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("form", [lambda body: body, copied], ids=["set", "copied"])
def test_rows_are_loaded_whole(form: Callable[[Block], Block]) -> None:
    """Nine columns of sixteen floats, nine apart: whole loads, none under a mask, no element goes
    alone."""
    x = y = np.zeros(9 * 16, np.float32)
    body = form(gathered(9, 16, 9, 16, f32))
    text = llvm.LlvmBackend().assembly(make(body, f32, x, y, "x86-64-v4").ir, target("x86-64-v4"))
    assert "vinsertps" not in text and "{%k" not in text
    assert sum("vmovups\t" in x and ", %zmm" in x for x in text.splitlines()) <= 16


def test_what_a_block_writes_is_read_in_order() -> None:
    """A load of a buffer that the phase writes stays where it is."""
    x, y = np.arange(12, dtype=np.float32), np.zeros(24, np.float32)

    def load(buffer: str, first: int) -> VectorLoad:
        return VectorLoad(buffer, Index(Affine((), first)), 3, f32, 4, 4)

    body = (
        Set("a", load("Y", 0)),
        Store("Y", Index(Affine((), 1)), 3, load("X", 1), 4),
        Set("b", load("Y", 1)),
        Store("Y", Index(Affine((), 12)), 1, Register("b", f32, 4), 4),
        Store("Y", Index(Affine((), 16)), 1, Register("a", f32, 4), 4),
    )
    run(make(Block(body), f32, x, y, "x86-64-v2"), "x86-64-v2", x, y)
    assert y[12:20].tolist() == [1, 4, 7, 10, 0, 0, 0, 0]


def test_blocks_inside_have_registers_of_their_own() -> None:
    """A copy in a block between two neighbours does not take the place of the second one."""
    x, y = np.arange(24, dtype=np.float32), np.zeros(20, np.float32)

    def copy(first: int, place: int) -> Store:
        load = VectorLoad("X", Index(Affine((), first)), 5, f32, 4, 4)
        return Store("Y", Index(Affine((), place)), 1, load, 4)

    inner = Let("v", Affine(), Block((copy(0, 8), copy(3, 12), copy(7, 16))))
    body = Block((copy(0, 0), inner, copy(1, 4)))
    run(make(body, f32, x, y, "x86-64-v2"), "x86-64-v2", x, y)
    want = [x[first::5][:4] for first in (0, 1, 0, 3, 7)]
    np.testing.assert_array_equal(y, np.concatenate(want))
