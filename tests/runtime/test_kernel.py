"""compile: kernels on arrays, against the definition; what is refused and how."""

from __future__ import annotations

import copy
import mmap
import pickle
import threading

import numpy as np
import pytest

from convgen.errors import DataError, ScheduleError, ShapeError, TargetError
from convgen.runtime.kernel import compile
from convgen.symbolic import dsl
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.parse import parse
from convgen.symbolic.program import Program

N, K, C, Y, X, R, S = dsl.axes("n k c y x r s")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:  # overrides of knobs do not reach other threads
        patch.setenv("CONVGEN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def window(batch: object = 2, dtype: str = "f32") -> Program:
    """Y[n,k,y,x] = sum of X windows times W, plus b."""
    x = dsl.tensor("X", (batch, 3, 9, 10), dtype)
    w, b = dsl.tensor("W", (5, 3, 3, 3), dtype), dsl.tensor("b", (5,), dtype)
    body = dsl.sum_over([C, R, S], x[N, C, Y + R - 1, X + S - 1] * w[K, C, R, S]) + b[K]
    return dsl.define("Y", [N, K, Y, X], body, extents={Y: 9, X: 10})


def inputs(program: Program, batch: int = 2, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=[batch if not isinstance(e, int) else e for e in t.shape]).astype(
            t.dtype.numpy_name
        )
        for t in program.inputs
    ]


def oracle(program: Program, arrays: list[np.ndarray]) -> np.ndarray:
    """By definition, in float64."""
    x, w, b = (a.astype(np.float64) for a in arrays)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("ncyxrs,kcrs->nkyx", windows, w) + b[:, None, None]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_a_window_sum_is_right(dtype: str, threads: int) -> None:
    program = window(dtype=dtype)
    arrays = inputs(program)
    got = compile(program, threads=threads)(*arrays)
    assert got.dtype == arrays[0].dtype
    want = oracle(program, arrays)
    assert np.abs(got - want).max() < (1e-5 if dtype == "f32" else 1e-12) * np.abs(want).max()


def test_native_agrees_with_evaluate_over_integers() -> None:
    x, w = dsl.tensor("X", (2, 3, 5), "i64"), dsl.tensor("W", (4, 3, 2), "i64")
    (t,) = dsl.axes("t")
    program = dsl.define("Y", [N, K, Y], dsl.sum_over([C, t], x[N, C, Y + t] * w[K, C, t]))
    rng = np.random.default_rng(1)
    arrays = [rng.integers(-9, 9, t.shape) for t in program.inputs]
    want = evaluate(
        program, {t.name: a.tolist() for t, a in zip(program.inputs, arrays, strict=True)}
    )["Y"]
    np.testing.assert_array_equal(compile(program)(*arrays).ravel(), want.data)


def test_the_bits_do_not_depend_on_the_threads() -> None:
    program = window()
    arrays = inputs(program)
    first = compile(program, threads=1)(*arrays)
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(compile(program, threads=threads)(*arrays), first)


def test_a_schedule_by_hand_gives_the_same() -> None:
    program = window()
    arrays = inputs(program)
    kernel = compile(program, schedule="reorder(n, k, c, r, s, y, x); vectorize(x); parallel(n)")
    assert "vectorize(x)" in kernel.schedule
    want = oracle(program, arrays)
    assert np.abs(kernel(*arrays) - want).max() < 1e-5 * np.abs(want).max()
    again = compile(program, schedule=kernel.schedule)
    np.testing.assert_array_equal(again(*arrays), kernel(*arrays))
    with pytest.raises(ScheduleError):
        compile(program, schedule="split(z, 3)")


def test_by_name_and_out() -> None:
    program = window()
    x, w, b = inputs(program)
    kernel = compile(program)
    want = kernel(x, w, b)
    np.testing.assert_array_equal(kernel(x, b=b, W=w), want)
    out = np.empty_like(want)
    assert kernel(x, w, b, out=out) is out
    np.testing.assert_array_equal(out, want)


PACKING = (
    "split(k, 4, tail='guard'); reorder(n, y, x, k_out, c, r, s, k_in); "
    "pack(W, k_in, hoist=True); vectorize(k_in)"
)


def test_large_results_begin_with_a_cache_line() -> None:
    i, j = dsl.axes("i j")
    kernel = compile(dsl.define("Y", [i, j], dsl.tensor("A", (600, 50))[i, j] + 1))
    given = np.ones((600, 50), np.float32)
    made = [kernel(given) for _ in range(8)]  # numpy's own would begin 16 bytes behind a line
    assert [a.ctypes.data % 64 for a in made] == [0] * 8
    assert all(np.array_equal(a, given + 1) for a in made)


def test_prepared_weights_are_packed_once() -> None:
    program = window()
    x, w, b = inputs(program)
    kernel = compile(program, schedule=PACKING)
    assert kernel.report().packs == ("W",)
    assert "packing: W in each call, or ahead with prepare()" in str(kernel.report())
    want = kernel(x, w, b)
    packed = kernel.prepare(W=w)
    w[:] = 0  # the handle keeps what it was given
    for _ in range(2):
        np.testing.assert_array_equal(kernel(x, packed, b), want)
    np.testing.assert_array_equal(kernel(x, W=packed, b=b), want)
    out = np.zeros_like(want)
    np.testing.assert_array_equal(kernel(x, packed, b, out=out), want)
    assert not np.array_equal(kernel(x, w, b), want)
    report = kernel.report()
    assert (report.packed_in_call, report.prepared_calls) == (2, 4)
    assert "W packed inside 2 calls of 6, prepared ahead for 4" in str(report)
    with pytest.raises(DataError, match=r"the kernel packs W too; expected prepare\(W=...\)"):
        kernel.prepare(b=b)


def test_of_two_handles_the_one_that_stands_for_the_weights_counts() -> None:
    program = parse("Y[n, k] = sum(c: X[n, c] * W[k, c]) + B[k]", X=(64, 96), W=(128, 96), B=128)
    kernel = compile(program)
    assert kernel.packs == ("W",)
    rng = np.random.default_rng(4)
    x, w, other, b = (
        rng.normal(size=s).astype(np.float32) for s in ((64, 96), (128, 96), (128, 96), 128)
    )
    alone, both = kernel.prepare(W=w), kernel.prepare(W=other, B=b)
    for _ in range(3):
        np.testing.assert_array_equal(kernel(x, alone, both), kernel(x, w, b))
        np.testing.assert_array_equal(kernel(x, w, both), kernel(x, w, b))
        np.testing.assert_array_equal(kernel(x, both), kernel(x, other, b))
        np.testing.assert_array_equal(kernel(x, both, both), kernel(x, other, b))


def test_inputs_that_nothing_packs_may_be_prepared_too() -> None:
    program = window()
    x, w, b = inputs(program)
    kernel = compile(program, schedule="vectorize(x)")
    np.testing.assert_array_equal(kernel(x, kernel.prepare(W=w), b), kernel(x, w, b))


def test_a_handle_of_another_kernel_is_refused() -> None:
    program = window()
    x, w, b = inputs(program)
    kernel, other = compile(program), compile(program)
    with pytest.raises(DataError, match="does not stand for W of this kernel"):
        kernel(x, other.prepare(W=w), b)
    with pytest.raises(DataError, match="does not stand for X"):
        kernel(kernel.prepare(W=w), w, b)
    with pytest.raises(DataError, match="there is no input 'Q'"):
        kernel.prepare(Q=w)


def test_what_is_refused_says_what_was_expected() -> None:
    program = window()
    x, w, b = inputs(program)
    kernel = compile(program)
    cases = [
        ((x, w), {}, "b missing; expected 3 inputs: X, W, b, got 2"),
        ((x, w, b, b), {}, "too many inputs; expected 3"),
        ((x, w, b), {"b": b}, "b is given twice"),
        ((x, w), {"bias": b}, "bias is no input; expected X, W, b"),
        ((x.astype(float), w, b), {}, "X has the wrong dtype; expected float32, got float64"),
        ((x.astype(">f4"), w, b), {}, "foreign byte order"),
        ((x[0], w, b), {}, r"X has the wrong rank; expected 4 dimensions \(2, 3, 9, 10\), got 3"),
        (
            (x[:1], w, b),
            {},
            r"X has the wrong shape; expected \(2, 3, 9, 10\), got \(1, 3, 9, 10\)",
        ),
        ((x, w, [1.0] * 5), {}, "b has the wrong dtype"),
    ]
    for args, named, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            kernel(*args, **named)
        assert caught.value.where == "kernel Y"


def test_out_is_checked() -> None:
    program = window()
    x, w, b = inputs(program)
    kernel = compile(program)
    shape = (2, 5, 9, 10)
    frozen = np.empty(shape, np.float32)
    frozen.flags.writeable = False
    square = dsl.tensor("A", (4, 4))
    twice = compile(dsl.define("B", [Y, X], 2 * square[Y, X]))
    a = np.ones((4, 4), np.float32)
    for out, message in [
        (frozen, "out Y is read-only"),
        (np.empty((2, 5, 9, 20), np.float32)[..., ::2], "out Y is strided"),
        (np.empty(shape, np.float64), "out Y has the wrong dtype"),
        (np.empty((2, 5, 9, 9), np.float32), "out Y has the wrong shape"),
        ([1.0], "out Y is written by the kernel; expected a numpy array"),
        ((frozen, frozen), "wrong number of arrays; expected 1: Y, got 2"),
    ]:
        with pytest.raises(DataError, match=message):
            kernel(x, w, b, out=out)
    with pytest.raises(DataError, match="B overlaps A"):
        twice(a, out=a)
    whole = np.ones((7, 4), np.float32)
    with pytest.raises(DataError, match="B overlaps A"):
        twice(whole[:4], out=whole[3:])
    np.testing.assert_array_equal(a, np.ones((4, 4)))


def test_awkward_inputs_are_copied_and_reported() -> None:
    program = window()
    x, w, b = inputs(program)
    kernel = compile(program)
    want = kernel(x, w, b)
    strided = np.repeat(x, 2, axis=3)[..., ::2]
    raw = np.zeros(b.nbytes + 1, np.uint8)
    odd = raw[1:].view(np.float32)
    odd[:] = b
    frozen = w.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(kernel(strided, frozen, odd), want)
    np.testing.assert_array_equal(kernel(strided, w, b), want)
    report = kernel.report()
    assert report.copied == (("X", "strided", 2), ("b", "misaligned", 1))
    assert "copied: X, strided, 2 times" in str(report)


def test_sizes_are_bound_by_the_arrays() -> None:
    program = window(batch=dsl.size("N"))
    kernel = compile(program)
    with pytest.raises(ShapeError, match="open sizes N"):
        _ = kernel.asm
    for batch in (1, 3, 0, 1):
        arrays = inputs(program, batch)
        got = kernel(*arrays)
        assert got.shape == (batch, 5, 9, 10)
        np.testing.assert_allclose(got, oracle(program, arrays), rtol=1e-4, atol=1e-4)
    a, c = dsl.tensor("A", (dsl.size("N"),)), dsl.tensor("B", (dsl.size("N"),))
    both = compile(dsl.define("T", [Y], a[Y] + c[Y]))
    with pytest.raises(DataError, match="B has the wrong shape; expected N = 3 as in A"):
        both(np.ones(3, np.float32), np.ones(4, np.float32))


def test_an_empty_batch_gives_an_empty_result() -> None:
    program = window(batch=0)
    assert compile(program)(*inputs(program, 0)).shape == (0, 5, 9, 10)


def test_several_outputs_come_as_a_tuple() -> None:
    a = dsl.tensor("A", (3, 4))
    top, where = dsl.max_over(X, a[Y, X]), dsl.argmax_over(X, a[Y, X])
    kernel = compile(dsl.define([("M", [Y]), ("I", [Y])], (top, where)))
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    got = kernel(values)
    assert isinstance(got, tuple)
    np.testing.assert_array_equal(got[0], values.max(1))
    np.testing.assert_array_equal(got[1], values.argmax(1))
    out = (np.empty_like(got[0]), np.empty_like(got[1]))
    again = kernel(values, out=out)
    assert again[0] is out[0]


def momentum() -> Program:
    p, v = (dsl.tensor(n, (6,), role="state") for n in ("P", "V"))
    g, lr = dsl.tensor("G", (6,)), dsl.tensor("lr", ())
    velocity = dsl.define("V_new", [Y], v[Y] / 2 + g[Y])
    moved = dsl.define("P_new", [Y], p[Y] - lr[()] * velocity[Y])
    return dsl.combine("step", [velocity, moved], outputs=[], updates={"V": "V_new", "P": "P_new"})


def test_states_are_updated_in_place() -> None:
    program = momentum()
    kernel = compile(program)
    rng = np.random.default_rng(2)
    arrays = {
        t.name: rng.normal(size=t.shape).astype(np.float32) for t in program.inputs if t.shape
    }
    p, v = arrays["P"].copy(), arrays["V"].copy()
    for _ in range(3):
        assert kernel(**arrays, lr=0.5) is None
        v = v / 2 + arrays["G"]
        p = p - np.float32(0.5) * v
    np.testing.assert_allclose(arrays["V"], v, rtol=1e-6)
    np.testing.assert_allclose(arrays["P"], p, rtol=1e-6)
    frozen = arrays["P"].copy()
    frozen.flags.writeable = False
    with pytest.raises(DataError, match="P is read-only"):
        kernel(**{**arrays, "P": frozen}, lr=0.5)
    with pytest.raises(DataError, match="overlaps"):
        kernel(**{**arrays, "V": arrays["P"]}, lr=0.5)
    with pytest.raises(DataError, match="P is updated by the kernel and cannot be prepared"):
        kernel.prepare(P=p)


def test_a_state_that_is_read_elsewhere_is_copied_at_the_end() -> None:
    s = dsl.tensor("S", (5,), role="state")
    turned = dsl.define("T", [Y], s[4 - Y], extents={Y: 5})
    program = dsl.combine("mirror", [turned], outputs=[], updates={"S": "T"})
    state = np.arange(5, dtype=np.float32)
    compile(program)(state)
    np.testing.assert_array_equal(state, [4, 3, 2, 1, 0])


def test_calls_from_several_threads() -> None:
    program = window()
    kernel = compile(program, threads=2)
    wrong: list[int] = []

    def work(seed: int) -> None:
        arrays = inputs(program, seed=seed)
        want = oracle(program, arrays)
        for _ in range(20):
            if np.abs(kernel(*arrays) - want).max() > 1e-4:
                wrong.append(seed)

    callers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_compiling_in_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVGEN_CACHE", "0")
    wrong: list[int] = []

    def work(factor: int) -> None:
        a = dsl.tensor("A", (5, 7))
        for shift in range(3):
            kernel = compile(dsl.define("B", [Y, X], factor * a[Y, X] + shift), threads=2)
            if not np.array_equal(
                kernel(np.ones((5, 7), np.float32)), np.full((5, 7), factor + shift)
            ):
                wrong.append(factor)

    callers = [threading.Thread(target=work, args=(i,)) for i in range(1, 5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_more_than_two_to_the_31_elements() -> None:
    """The last elements of an array of 9 GiB whose pages are never touched but for two."""
    size = (1 << 31) + 4096
    a = dsl.tensor("A", (size,))
    program = dsl.define("B", [Y], a[Y + (size - 8)] + a[Y], extents={Y: 8})
    try:
        area = mmap.mmap(-1, size * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    except (OSError, AttributeError, ValueError):
        pytest.skip("no lazily mapped memory of that size")
    lazy = np.frombuffer(area, np.float32)
    lazy[-8:] = np.arange(8)
    lazy[:8] = 10
    np.testing.assert_array_equal(compile(program)(lazy), np.arange(8) + 10)


def test_another_target_can_be_read_but_not_run() -> None:
    program = window()
    kernel = compile(program, target="aarch64")
    assert "fmla" in kernel.asm
    with pytest.raises(TargetError, match="made for another machine"):
        kernel(*inputs(program))


def test_nothing_to_look_at_is_missing() -> None:
    kernel = compile(window(), threads=1)
    assert "kernel Y (scheduled)" in kernel.loops
    assert "define" in kernel.llvm
    assert "fmadd" in kernel.asm or "fmla" in kernel.asm or "mul" in kernel.asm
    report = kernel.report()
    assert report.as_json()["threads"] == 1
    assert str(report).startswith("kernel Y for ")
    assert repr(kernel).startswith("<kernel Y(X: f32(2, 3, 9, 10), W:")
    with pytest.raises(DataError, match="accuracy=0"):
        compile(window(), accuracy=0)
    with pytest.raises(DataError, match="threads=0"):
        compile(window(), threads=0)


def test_nan_and_infinity_pass_through() -> None:
    a = dsl.tensor("A", (4,))
    values = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    got = compile(dsl.define("B", [Y], 2 * a[Y] + 1))(values)
    np.testing.assert_array_equal(got, 2 * values + 1)


def test_kernels_are_copied_and_go_to_other_processes():
    """It was "cannot pickle '_thread.lock'"."""
    program = parse("Y[n, k] = sum(c: X[n, c] * W[k, c])", X=("N", 6), W=(8, 6))
    kernel = compile(program, schedule="split(k, 4)", threads=1)
    x, w = np.ones((3, 6), np.float32), np.arange(48, dtype=np.float32).reshape(8, 6)
    for other in (copy.deepcopy(kernel), copy.copy(kernel), pickle.loads(pickle.dumps(kernel))):
        assert other is not kernel and np.array_equal(other(x, w), kernel(x, w))
        assert str(other.schedule) == str(kernel.schedule) and other.threads == 1
        assert other.target == kernel.target
    laid = compile(program.bind(N=3), layouts={"X": "ba"})
    assert pickle.loads(pickle.dumps(laid)).layouts == laid.layouts
