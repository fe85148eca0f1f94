"""Every operation, on scalars and vectors, against NumPy."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from convgen.affine import ONE, ZERO, Affine
from convgen.backends import llvm
from convgen.errors import InternalError
from convgen.ir.nodes import (
    Block,
    Buffer,
    Const,
    Expr,
    Form,
    Index,
    Kernel,
    Layout,
    Op,
    Phase,
    Register,
    Set,
    Stmt,
    Store,
    VectorLoad,
)
from convgen.target import target
from convgen.types import DTYPES, DType, bool_, f32, f64, i32, i64, u8, u32, u64

NATIVE = target()
COUNT = 16


def run(body: Stmt, buffers: list[tuple[str, DType, str]], arrays: list[np.ndarray]) -> None:
    """Compile a FLAT body and call it on the arrays."""
    made = tuple(
        Buffer(name, dtype, array.shape, Layout.rowmajor(array.ndim), role)  # type: ignore[arg-type]
        for (name, dtype, role), array in zip(buffers, arrays, strict=True)
    )
    kernel = Kernel("k", made, (Phase("run", body),), Form.FLAT)
    artifact = llvm.compile_kernel(kernel, NATIVE)
    library = llvm.load(artifact.object, NATIVE)
    entry = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
    )(library.address(artifact.entries[0].symbol))
    pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
    entry(pointers, None, 0, 1)


def apply(name: str, args: list[np.ndarray], dtypes: list[DType], out: DType, lanes: int):
    """The operation on whole arrays, `lanes` at a time."""
    buffers = [(f"A{i}", d, "input") for i, d in enumerate(dtypes)] + [("Y", out, "output")]
    result = np.zeros(len(args[0]), out.numpy_name)
    statements = []
    for start in range(0, len(args[0]), lanes):
        at = Index(Affine((), start))
        loads = tuple(VectorLoad(f"A{i}", at, 1, d, lanes, lanes) for i, d in enumerate(dtypes))
        statements.append(Store("Y", at, 1, Op(name, loads, out, lanes), lanes))
    run(Block(tuple(statements)), buffers, [*args, result])
    return result


def numbers(dtype: DType, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype.kind == "bool":
        return rng.integers(0, 2, COUNT).astype(bool)
    if dtype.is_float:
        values = rng.normal(size=COUNT) * 10
        values[:6] = [np.nan, np.inf, -np.inf, 0.0, -0.0, 3.5]
        return rng.permutation(values).astype(dtype.numpy_name)
    info = np.iinfo(dtype.numpy_name)
    values = rng.integers(max(info.min, -99), min(info.max, 99), COUNT).astype(dtype.numpy_name)
    values[:2] = [info.min, info.max]
    return rng.permutation(values)


ARITHMETIC = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum,
}  # fmt: skip
TESTS = {"eq": np.equal, "lt": np.less, "le": np.less_equal}


@pytest.mark.parametrize("lanes", [1, 4, 16])
@pytest.mark.parametrize("dtype", [f32, f64, i32, i64, u8, u32, u64], ids=str)
def test_arithmetic_and_comparisons(dtype: DType, lanes: int) -> None:
    a, b = numbers(dtype, 1), numbers(dtype, 2)
    with np.errstate(all="ignore"):
        for name, function in ARITHMETIC.items():
            np.testing.assert_array_equal(
                apply(name, [a, b], [dtype, dtype], dtype, lanes), function(a, b), name
            )
        for name, function in TESTS.items():
            np.testing.assert_array_equal(
                apply(name, [a, b], [dtype, dtype], bool_, lanes), function(a, b), name
            )
        if dtype.is_float:
            got = apply("div", [a, b], [dtype, dtype], dtype, lanes)
            np.testing.assert_array_equal(got, a / b)
            for name, function in {
                "sqrt": np.sqrt, "floor": np.floor, "abs": np.abs, "neg": np.negative,
            }.items():  # fmt: skip
                np.testing.assert_array_equal(apply(name, [a], [dtype], dtype, lanes), function(a))
            got = apply("is_nan", [a], [dtype], bool_, lanes)
            np.testing.assert_array_equal(got, np.isnan(a))
        else:
            for name, function in {"and": np.bitwise_and, "or": np.bitwise_or}.items():
                got = apply(name, [a, b], [dtype, dtype], dtype, lanes)
                np.testing.assert_array_equal(got, function(a, b))
            for name, function in {"floordiv": np.floor_divide, "mod": np.mod}.items():
                got = apply(name, [a, b], [dtype, dtype], dtype, lanes)
                np.testing.assert_array_equal(got, function(a, b), name)


@pytest.mark.parametrize("lanes", [1, 8])
def test_nan_passes_through_max_with_a_constant(lanes: int) -> None:
    a = numbers(f32, 3)
    result = np.zeros_like(a)
    body = []
    for start in range(0, COUNT, lanes):
        at = Index(Affine((), start))
        value: Expr = Op(
            "max", (VectorLoad("A", at, 1, f32, lanes, lanes), Const(0.0, f32, lanes)), f32, lanes
        )
        body.append(Store("Y", at, 1, value, lanes))
    run(Block(tuple(body)), [("A", f32, "input"), ("Y", f32, "output")], [a, result])
    np.testing.assert_array_equal(result, np.maximum(a, np.float32(0)))


@pytest.mark.parametrize("lanes", [1, 16])
def test_division_by_zero_does_not_trap(lanes: int) -> None:
    low = np.iinfo(np.int32).min
    a = np.array([low, 7, -7, low] * 4, np.int32)
    b = np.array([-1, 0, 2, 0] * 4, np.int32)
    with np.errstate(all="ignore"):
        want = np.array([low, 0, -4, 0] * 4, np.int32)
    np.testing.assert_array_equal(apply("floordiv", [a, b], [i32, i32], i32, lanes), want)
    np.testing.assert_array_equal(
        apply("mod", [a, b], [i32, i32], i32, lanes), np.array([0, 0, 1, 0] * 4)
    )


def test_fma_rounds_once() -> None:
    a = np.full(COUNT, 1 + 2.0**-12, np.float32)
    c = np.full(COUNT, -(1 + 2.0**-11), np.float32)
    got = apply("fma", [a, a, c], [f32, f32, f32], f32, 16)
    np.testing.assert_array_equal(got, np.full(COUNT, 2.0**-24, np.float32))


@pytest.mark.parametrize("lanes", [1, 16])
@pytest.mark.parametrize("old", DTYPES.values(), ids=str)
@pytest.mark.parametrize("new", DTYPES.values(), ids=str)
def test_casts(old: DType, new: DType, lanes: int) -> None:
    a = numbers(old, 4)
    if old.is_float and not new.is_float and new.kind != "bool":
        info = np.iinfo(new.numpy_name)
        exact = [0 if x != x else max(info.min, min(info.max, _truncate(x))) for x in a.tolist()]
        want = np.array(exact, new.numpy_name)
    else:
        with np.errstate(all="ignore"):
            want = a.astype(new.numpy_name)
    np.testing.assert_array_equal(apply("cast", [a], [old], new, lanes), want)


def _truncate(x: float) -> int:
    return int(x) if abs(x) != float("inf") else (1 << 80 if x > 0 else -(1 << 80))


def test_shifts_and_bits() -> None:
    a, b = numbers(u32, 5), np.arange(COUNT, dtype=np.uint32)
    np.testing.assert_array_equal(apply("shl", [a, b], [u32, u32], u32, 4), a << b)
    np.testing.assert_array_equal(apply("shr", [a, b], [u32, u32], u32, 4), a >> b)
    s = numbers(i32, 5)
    np.testing.assert_array_equal(
        apply("shr", [s, b.astype(np.int32)], [i32, i32], i32, 4), s >> b.astype(np.int32)
    )
    np.testing.assert_array_equal(apply("not", [s], [i32], i32, 4), ~s)
    f = numbers(f32, 6)
    got = apply("bitcast", [f], [f32], u32, 4)
    np.testing.assert_array_equal(got, f.view(np.uint32))


def test_select_and_logic() -> None:
    t, a, b = numbers(bool_, 7), numbers(f32, 8), numbers(f32, 9)
    got = apply("select", [t, a, b], [bool_, f32, f32], f32, 8)
    np.testing.assert_array_equal(got, np.where(t, a, b))
    u = numbers(bool_, 10)
    np.testing.assert_array_equal(apply("xor", [t, u], [bool_, bool_], bool_, 16), t ^ u)
    np.testing.assert_array_equal(apply("not", [t], [bool_], bool_, 1), ~t)


def test_an_unexpanded_operation_is_an_internal_error() -> None:
    with pytest.raises(InternalError, match="exp was not expanded"):
        apply("exp", [numbers(f32, 1)], [f32], f32, 4)


def test_a_register_read_before_it_is_set_is_an_internal_error() -> None:
    body = Store("Y", Index(ZERO), 1, Register("a", f32), 1)
    with pytest.raises(InternalError, match="read before it is set"):
        run(body, [("Y", f32, "output")], [np.zeros(1, np.float32)])


def test_index_as_a_value() -> None:
    result = np.zeros(4, np.int64)
    body = Block(
        (Set("i", Index(ONE * 5, 3, 4)), Store("Y", Index(ZERO), 1, Register("i", i64, 4), 4))
    )
    run(body, [("Y", i64, "output")], [result])
    np.testing.assert_array_equal(result, [5, 8, 11, 14])
