"""What bad input gets: a clear error of the right class, or the right answer; never a crash.

Calls of kernels with wrong arrays have tests of their own rooms, files a test file of theirs;
here is what has to hold from end to end.
"""

from __future__ import annotations

import mmap
import time
from typing import Any

import numpy as np
import pytest

import convgen as cg
from convgen import knobs
from convgen.symbolic.program import Program
from convgen.types import dtype_of

n, y, x, c, r = cg.axes("n y x c r")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    with knobs.override(CACHE_DIR=tmp_path_factory.mktemp("cache")):
        yield


def typed(text: str, dtype: str, **shapes: tuple[int, ...]) -> Program:
    return cg.parse(text, **{k: cg.tensor(k, s, dtype) for k, s in shapes.items()})


# --------------------------------------------------------------------------------- formulas

FOUR = {"X": (4,)}
REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    # undefined
    ("Y[i] = X[j]", FOUR, cg.FormulaError, "undefined index j.*sum\\(j"),
    ("Y[i] = X[i] + Q[i]", FOUR, cg.FormulaError, "unknown tensor Q"),
    # ambiguous
    ("Y[i, j] = X[i + j]", FOUR, cg.ShapeError, "axis i is ambiguous.*extents"),
    ("Y[i] = X{reflect}[i - 1]", FOUR, cg.ShapeError, "ambiguous"),
    # mismatch
    ("Y[i] = X[i] * W[i]", {"X": (4,), "W": (5,)}, cg.ShapeError, "two extents.*got 5.*4"),
    ("Y[i] = X[i, i]", FOUR, cg.ShapeError, "X has 1 dimensions"),
    # kernel larger than the padded input
    ("Y[i] = sum(r: X[i + r] * W[r])", {"X": (4,), "W": (5,)}, cg.ShapeError, "never fits"),
    # stride 0
    ("Y[i] = sum(r: X[0*i + r] * W[r])", {"X": (4,), "W": (3,)}, cg.FormulaError, "stride of 0"),
    # boundaries that do not reach
    ("Y[i] = X{reflect}[i - 4] for i < 4", FOUR, cg.ShapeError, "reflect padding is as wide"),
    ("Y[i] = X{circular}[i - 5] for i < 4", FOUR, cg.ShapeError, "circular padding is wider"),
    # pieces
    ("Y[i] = X[i]\nY[i] = X[i]", FOUR, cg.FormulaError, "Y\\[0\\] is written twice"),
    ("Y[2*i] = X[i]", FOUR, cg.FormulaError, "never written"),
    ("X[i] = X[i]", FOUR, cg.FormulaError, "another name for the output"),
    # not in the language
    ("Y[i] = __import__('os').system('true')", {}, cg.FormulaError, "__import__ is not in the lan"),
    ("Y[i] = X.__class__", FOUR, cg.FormulaError, "__class__ is not in the language"),
    ("Y[i] = X[i].real", FOUR, cg.FormulaError, "cannot read"),
    ("Y[i] = (lambda: 1)()", {}, cg.FormulaError, "cannot read"),
    ("Y[i] = eval(X[i])", FOUR, cg.FormulaError, "eval, which is not in the language"),
    ("Y[i] = X[i] if 1 else 2", FOUR, cg.FormulaError, "end of the line"),
    ("Y[i] = X[i]; import os", FOUR, cg.FormulaError, "';' is not in the language"),
    ("Y[i] = X[X[i]]", FOUR, cg.FormulaError, "data-dependent address"),
    ("Y[i] = X[i*i]", FOUR, cg.FormulaError, "not affine"),
    ("Y[i] = X[i] / 0", FOUR, cg.FormulaError, "division by zero"),
    ("Y[i] = X[i // 0]", FOUR, cg.FormulaError, "// by 0"),
    ("Y[i] = X[i]\0", FOUR, cg.FormulaError, "not in the language"),
    ("Y[i] =", FOUR, cg.FormulaError, "cannot read"),
    ("", {}, cg.FormulaError, "no formula"),
    # huge numbers
    ("Y[i] = X[i] for i < " + "9" * 30, FOUR, cg.ShapeError, "beyond 64 bits"),
    ("Y[i] = sum(j < " + "9" * 20 + ": X[i])", FOUR, cg.ShapeError, "beyond 64 bits"),
    ("Y[i] = X[" + "9" * 20 + "*i] for i < 4", FOUR, cg.ShapeError, "beyond 64 bits"),
    ("Y[i] = 9**9**9**9 * X[i]", FOUR, cg.FormulaError, "power of numbers is too large"),
    ("Y[i] = " + "9" * 5000 + "* X[i]", FOUR, cg.FormulaError, "number is too long"),
    ("Y[i] = 1e999999999 * X[i]", FOUR, cg.FormulaError, "number is too long"),
]


@pytest.mark.parametrize(
    "case", REFUSED, ids=lambda case: case[0][:40].encode("unicode_escape").decode()
)
def test_refused_formulas(case: Any) -> None:
    text, shapes, kind, message = case
    with pytest.raises(kind, match=message) as caught:
        cg.parse(text, **shapes)
    assert isinstance(caught.value, cg.UserError) and type(caught.value) is kind


@pytest.mark.parametrize("depth", [1000, 100_000])
@pytest.mark.parametrize(
    "form",
    ["Y[i] = {(}X[i]{)}", "Y[i] = {relu(}X[i]{)}", "Y[i] = X[{(}i{)}]", "Y[i] = {X[}i{]}",
     "Y[i] = X[i]{**1}", "Y[i] = {-(}X[i]{)}", "Y[i] = {sum(j < 1: }X[i]{)}"],
)  # fmt: skip
def test_deep_nesting_is_refused(form: str, depth: int) -> None:
    text = form
    for part in ("relu(", "sum(j < 1: ", "-(", "(", ")", "X[", "]", "**1"):
        text = text.replace("{" + part + "}", part * depth)
    with pytest.raises(cg.FormulaError, match="nested too deeply; expected at most 100 levels"):
        cg.parse(text, X=(4,))


def test_deep_lists_are_refused() -> None:
    values = "[" * 5000 + "1" + "]" * 5000
    with pytest.raises(cg.FormulaError, match="nested too deeply"):
        cg.parse(f"constant K: f32[1] = {values}\nY[i] = K[i]")


def test_what_may_be_deep_compiles() -> None:
    text = "Y[i] = " + "sigmoid(" * 60 + "X[i]" + ")" * 60
    got = cg.compile(cg.parse(text, X=(4,)))(np.arange(4, dtype=np.float32))
    assert np.allclose(got, 0.659046)
    signs = cg.parse("Y[i] = " + "-" * 2001 + "X[i]", X=(4,))
    np.testing.assert_array_equal(cg.compile(signs)(np.arange(4, dtype=np.float32)), -np.arange(4))


def test_numbers_beyond_the_floats_round_to_infinity() -> None:
    program = cg.parse("Y[i] = 1e300 * 1e300 * X[i]\n", X=(3,))
    got = cg.compile(program)(np.array([-1, 0, 1], np.float32))
    np.testing.assert_array_equal(got, [-np.inf, np.nan, np.inf])


# ------------------------------------------------------------- programs that no parser has seen


def wide(mode: str, reach: int) -> Program:
    tensor = cg.tensor("X", (2, 6)).pad(".", mode)
    return cg.define("Y", [n, y], tensor[n, y - reach], extents={n: 2, y: 6})


@pytest.mark.parametrize("use", [cg.compile, cg.grad, cg.split])
def test_boundaries_are_refused_before_anything_is_made(use: Any) -> None:
    with pytest.raises(
        cg.ShapeError, match="reflect padding is as wide as the input; expected at most 5"
    ):
        use(wide("reflect", 6))
    with pytest.raises(cg.ShapeError, match="circular padding is wider"):
        use(wide("circular", 7))
    use(wide("reflect", 5))
    use(wide("circular", 6))


@pytest.mark.parametrize("use", [cg.compile, cg.grad])
def test_pieces_must_cover_and_not_overlap(use: Any) -> None:
    X = cg.tensor("X", (4,))
    first = cg.define("Y", [2 * x], X[x], extents={x: 4}, shape=(8,))
    second = cg.define("Y", [2 * x], X[x] + 1, extents={x: 4}, shape=(8,))
    with pytest.raises(cg.FormulaError, match="written twice"):
        use(cg.pieces(first, second))
    with pytest.raises(cg.FormulaError, match="never written"):
        use(first)


LAYERS: list[tuple[Any, str]] = [
    (lambda: cg.nn.Conv2d(3, 4, 3, stride=0), "stride .*integers >= 1"),
    (lambda: cg.nn.Conv2d(3, 4, 3, stride=1.5), "stride=1.5"),
    (lambda: cg.nn.Conv2d(3, 4, 3, stride=True), "stride=True"),
    (lambda: cg.nn.Conv2d(3, 4, 3, stride=(1, 2, 3)), "2 integers"),
    (lambda: cg.nn.Conv2d(3, 4, 3, dilation=0), "dilation"),
    (lambda: cg.nn.Conv2d(3, 4, 0), "kernel_size"),
    (lambda: cg.nn.Conv2d(3, 4, 3, padding=-1), "padding"),
    (lambda: cg.nn.Conv2d(3, 4, 3, groups=2), "groups=2 does not divide"),
    (lambda: cg.nn.Conv2d(3, 4, 3, groups=0), "groups=0"),
    (lambda: cg.nn.Conv2d(0, 4, 3), "in_channels=0"),
    (lambda: cg.nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=2), "output_padding"),
    (lambda: cg.nn.ConvTranspose1d(4, 4, 3, groups=3), "groups=3"),
    (lambda: cg.nn.Conv1d(3, 4, 9).program((2, 3, 7)), "larger than the padded input; expected at least 9"),
    (lambda: cg.nn.Conv1d(3, 4, 3).program((2, 4, 7)), "input channels; expected 3"),
    (lambda: cg.nn.Conv1d(3, 4, 3).program((2, 3, 7, 7)), "rank 4"),
    (lambda: cg.nn.Conv1d(3, 4, 3).program((-2, 3, 7)), "extent -2"),
    (lambda: cg.nn.ConvTranspose1d(3, 4, 3, padding=4).program((2, 3, 2)), "removes the whole output"),
    (
        lambda: cg.nn.Conv1d(3, 4, 3, padding=7, padding_mode="reflect").program((2, 3, 7)).check(),
        "reflect padding",
    ),
    (
        lambda: cg.nn.Conv1d(3, 4, 3, padding=8, padding_mode="circular").program((2, 3, 7)).check(),
        "circular padding",
    ),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_refused_layers(number: int) -> None:
    make, message = LAYERS[number]
    with pytest.raises(cg.ShapeError, match=message):
        make()


# --------------------------------------------------------------------------------- arrays


def test_arrays_that_are_none() -> None:
    kernel = cg.compile(cg.parse("Y[i] = 2 * X[i]", X=(3,)))
    for value in (
        None,
        [[1], [1, 2]],
        np.zeros(3, complex),
        np.array([None] * 3),
        "abc",
        np.zeros(3),
    ):
        with pytest.raises(cg.DataError, match="X"):
            kernel(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"expected float32, got NoneType; try np.asarray\(X, np.float32\)"),
        ([1.0, 2.0, 3.0], r"expected float32, got float64; try np.asarray\(X, np.float32\)"),
        (np.zeros(3), r"got float64; try X.astype\(np.float32\)"),
        (np.ma.masked_array(np.ones(3, np.float32), [0, 1, 0]), "masked elements, .* X.filled"),
    ],
)
def test_what_to_try_with_other_arrays(value: object, message: str) -> None:
    """What is no array has no astype; masks were dropped without a word."""
    kernel = cg.compile(cg.parse("Y[i] = 2 * X[i]", X=(3,)))
    with pytest.raises(cg.DataError, match=message):
        kernel(value)
    whole = np.ma.masked_array(np.ones(3, np.float32), [0, 0, 0])
    assert np.array_equal(kernel(whole), [2, 2, 2])


def test_gradients_with_bad_arrays() -> None:
    """A derived kernel checks its cotangent as any other input; strided ones are copied."""
    program = cg.nn.Conv1d(2, 3, 3, padding=1).program((2, 2, 6))
    kernel = cg.compile(cg.grad(program))
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=t.shape).astype(np.float32) for t in kernel.program.inputs]
    want = kernel(*arrays)
    wide_dy = np.repeat(arrays[-1], 2, axis=2)
    got = kernel(*arrays[:-1], wide_dy[:, :, ::2])
    assert kernel.report().copied == (("dY", "strided", 1),)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(cg.DataError, match="dY has the wrong shape"):
        kernel(*arrays[:-1], arrays[-1][:, :, :5])
    with pytest.raises(cg.DataError, match="dX overlaps X"):
        kernel(*arrays, out=(arrays[0], np.empty_like(arrays[1]), np.empty_like(arrays[2])))


def test_nan_and_infinity() -> None:
    """As IEEE says: they reach exactly the elements whose terms hold them."""
    layer = cg.nn.Conv2d(1, 1, 3, padding=1, bias=False).program((1, 1, 7, 9))
    image, w = np.ones((1, 1, 7, 9), np.float32), np.ones((1, 1, 3, 3), np.float32)
    for value in (np.nan, np.inf, -np.inf):
        image[0, 0, 3, 4] = value
        got = cg.compile(layer)(image, w)[0, 0]
        touched = np.zeros((7, 9), bool)
        touched[2:5, 3:6] = True
        np.testing.assert_array_equal(~np.isfinite(got), touched)
    image[0, 0, 3, 4] = np.inf
    w[:] = 0  # 0 * inf is nan, zero padding is left out
    np.testing.assert_array_equal(np.isnan(cg.compile(layer)(image, w)[0, 0]), touched)
    top = cg.compile(cg.nn.MaxPool2d(3, 1).program((1, 1, 7, 9)))
    image[0, 0, 3, 4] = np.nan
    assert np.isnan(top(image)[0, 0, 1:4, 2:5]).all()
    assert np.isfinite(top(image)[0, 0, 4]).all()
    image[:] = -np.inf
    assert (top(image) == -np.inf).all()
    relu = cg.compile(cg.parse("Y[i] = relu(X[i])", X=(3,)))
    got = relu(np.array([np.nan, -np.inf, np.inf], np.float32))
    np.testing.assert_array_equal(got, [np.nan, 0, np.inf])


def test_labels_out_of_range() -> None:
    net = cg.compile(cg.nn.Sequential(cg.nn.Linear(4, 3)), input=(5, 4), mode="train")
    data = np.ones((5, 4), np.float32)
    for labels in ([0, 1, 2, 3, 0], [0, -1, 2, 1, 0]):
        with pytest.raises(cg.DataError, match="label .* is out of range; expected 0..2"):
            net.fit(
                data, np.array(labels), loss=cg.nn.CrossEntropyLoss(), optimizer=cg.optim.SGD(0.1),
                epochs=1, batch=5, seed=0,
            )  # fmt: skip


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_empty_batches(dtype: str) -> None:
    program = cg.nn.Conv2d(3, 4, 3).program((0, 3, 5, 5), dtype=dtype_of(dtype))
    kind = program.output.dtype.numpy_name
    arrays = [np.ones(t.shape, kind) for t in program.inputs]
    assert cg.compile(program)(*arrays).shape == (0, 4, 3, 3)
    dx, dw, db = cg.compile(cg.grad(program))(*arrays, np.ones((0, 4, 3, 3), kind))
    assert dx.shape == (0, 3, 5, 5) and not dw.any() and not db.any()


def test_sums_and_extrema_of_nothing() -> None:
    nothing = np.zeros((2, 0), np.float32)
    results = {
        "sum": 0,
        "prod": 1,
        "max": -np.inf,
        "min": np.inf,
        "logsumexp": -np.inf,
        "argmax": 0,
    }
    for name, want in results.items():
        program = cg.parse(f"Y[i] = {name}(j: X[i, j])", X=(2, 0))
        assert (cg.compile(program)(nothing) == want).all()
        assert [float(v) for v in cg.evaluate(program, {"X": []})["Y"].data] == [want] * 2


@pytest.mark.parametrize("dtype", ["i32", "i64", "u8", "u16", "u32", "u64", "bool"])
@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin"])
def test_extrema_of_no_integers(name: str, dtype: str) -> None:
    """Integers have no infinities: the maximum of nothing is the least number of the dtype, the
    minimum the largest; the oracle and the kernel agree, where nothing is left and where not."""
    kind = np.dtype(dtype_of(dtype).numpy_name)
    program = typed(f"Y[i] = {name}(j < 2 where i + j >= 2: X[i, j])", dtype, X=(3, 2))
    values = np.array([[1, 0], [0, 1], [1, 1]]).astype(kind)
    got = cg.compile(program)(values)
    want = cg.evaluate(program, {"X": values.tolist()})["Y"].data
    assert [int(v) for v in got] == [int(v) for v in want]
    facts = (False, True) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
    assert got[0] == {"max": facts[0], "min": facts[1]}.get(name, 0)


def test_logsumexp_of_integers() -> None:
    program = typed("Y[i] = logsumexp(j: X[i, j])", "i32", X=(2, 2))
    got = cg.compile(program)(np.array([[0, 0], [3, -40]], np.int32))
    np.testing.assert_allclose(got, [np.log(2), 3], rtol=1e-6)


# --------------------------------------------------------------------------------- large arrays


def lazy(elements: int, kind: Any = np.float32) -> np.ndarray:
    """Zeros that have no memory until they are written."""
    size = elements * np.dtype(kind).itemsize
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
        return np.frombuffer(mmap.mmap(-1, size, flags=flags), kind)
    except (OSError, AttributeError, ValueError):
        pytest.skip("no lazily mapped memory of that size")


def test_indices_beyond_31_bits() -> None:
    """Windows far apart in an array of 2**31 + 67 elements."""
    size = (1 << 31) + 67
    program = cg.parse("Y[i] = sum(r: X[536870912*i + r] * W[r]) for i < 5", X=(size,), W=(3,))
    big = lazy(size)
    big[1 << 31 : (1 << 31) + 3] = [1, 2, 3]
    big[3 << 29 : (3 << 29) + 3] = [4, 5, 6]
    got = cg.compile(program)(big, np.array([1, 10, 100], np.float32))
    np.testing.assert_array_equal(got, [0, 0, 0, 654, 321])


def test_a_layer_on_a_large_image() -> None:
    """3 x 2 windows in an image of 2**31 + 2**16 positions, stride beyond the kernel."""
    rows, columns = 65538, 32770
    stride = (32767, 16383)
    program = cg.nn.Conv2d(1, 2, 3, stride=stride, bias=False).program((1, 1, rows, columns))
    big = lazy(rows * columns).reshape(1, 1, rows, columns)
    big[0, 0, 65534, 32766:32769] = [1, 2, 3]
    big[0, 0, 32768, 16384] = 7
    w = np.arange(18, dtype=np.float32).reshape(2, 1, 3, 3)
    got = cg.compile(program)(big, w)
    want = np.zeros((1, 2, 3, 3), np.float32)
    for k, i, j in np.ndindex(2, 3, 3):
        window = big[0, 0, 32767 * i : 32767 * i + 3, 16383 * j : 16383 * j + 3]
        want[0, k, i, j] = (window * w[k, 0]).sum()
    assert want.any()
    np.testing.assert_array_equal(got, want)


def test_programs_of_any_extent_compile_at_once() -> None:
    """What compiling costs does not grow with extents."""
    start = time.perf_counter()
    kernel = cg.compile(cg.parse("Y[i] = 2 * X[i] + 1", X=(1 << 45,)))
    assert kernel.schedule is not None
    assert time.perf_counter() - start < 20


# --------------------------------------------------------------------------------- wide strides


@pytest.mark.parametrize("stride", [64, 65, 100, 5000])
def test_gradients_of_wide_strides(stride: int) -> None:
    """The elements that a stride skips are a few pieces of zeros, however many they are."""
    size = 2 * stride + 5
    program = cg.parse(
        f"Y[i] = sum(r: X[{stride}*i + 2*r - 1] * W[r]) for i < 3", X=(size,), W=(3,)
    )
    gradient = cg.grad(program)
    assert sum(len(s.pieces) for s in gradient.stages) <= 70
    rng = np.random.default_rng(stride)
    arrays = [rng.integers(-3, 4, t.shape).astype(np.float32) for t in gradient.inputs]
    x, w, dy = arrays
    want_x, want_w = np.zeros_like(x), np.zeros_like(w)
    for i, r in np.ndindex(3, 3):
        place = stride * i + 2 * r - 1
        if 0 <= place < size:
            want_x[place] += dy[i] * w[r]
            want_w[r] += dy[i] * x[place]
    dx, dw = cg.compile(gradient)(*arrays)
    np.testing.assert_array_equal(dx, want_x)
    np.testing.assert_array_equal(dw, want_w)


def test_gradients_of_any_stride_are_derived_at_once() -> None:
    start = time.perf_counter()
    gradient = cg.grad(cg.parse("Y[i] = X[1073741824*i] for i < 2", X=((1 << 31) + 5,)))
    gradient.check()
    assert len(str(gradient)) < 500
    assert time.perf_counter() - start < 20
