"""The textbook's worked numbers from compiled kernels: exact where they are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reference import error

import convgen as cg
from convgen import knobs
from convgen.layers.convolution import output_size
from convgen.runtime.module import trace
from convgen.symbolic.program import Program
from convgen.types import dtype_of

DTYPES = ("f32", "f64")
NUMPY = {"f32": np.float32, "f64": np.float64}


@pytest.fixture(autouse=True, scope="module")
def no_cache():
    with knobs.override(CACHE=False):
        yield


def run(program: Program, *arrays: Any) -> Any:
    kinds = [t.dtype.numpy_name for t in program.inputs]
    given = [np.asarray(a, k) for a, k in zip(arrays, kinds, strict=True)]
    return cg.compile(program)(*given)


def formula(text: str, dtype: str, **shapes: tuple[int, ...]) -> Program:
    tensors = {name: cg.tensor(name, shape, dtype) for name, shape in shapes.items()}
    return cg.parse(text, **tensors)


CROSS = "S[i, j] = sum(m, n: I[i + m, j + n] * K[m, n])"

ITEM_1 = ([[0, 1, 3], [1, 2, 2], [0, 0, 0]], [[0, 1, 2], [2, 2, 0], [0, 1, 2]])
ITEM_2 = (
    [[3, 3, 2, 1, 0], [0, 0, 1, 3, 1], [3, 1, 2, 2, 3], [2, 0, 0, 2, 2], [2, 0, 0, 0, 1]],
    [[0, 1, 2], [2, 2, 0], [0, 1, 2]],
)
ITEM_3 = ([[0, 80, 40], [20, 40, 0], [0, 0, 40]], [[0, 0.25], [0.5, 1]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_true_convolution_of_the_same_size(dtype: str) -> None:
    text = "S[i, j] = sum(m, n: I[m, n] * K[i - m, j - n]) for i < 3, j < 3"
    program = formula(text, dtype, I=(3, 3), K=(3, 3))
    got = run(program, *ITEM_1)
    np.testing.assert_array_equal(got, [[0, 0, 1], [0, 3, 12], [2, 6, 9]])
    # commutative: with the roles exchanged the result is the same
    np.testing.assert_array_equal(run(program, *reversed(ITEM_1)), got)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_correlation_of_valid_size(dtype: str) -> None:
    program = formula(CROSS, dtype, I=(5, 5), K=(3, 3))
    assert program.output.shape == (3, 3)
    want = [[12, 12, 17], [10, 17, 19], [9, 6, 14]]
    np.testing.assert_array_equal(run(program, *ITEM_2), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_true_convolution_of_valid_size(dtype: str) -> None:
    text = "S[i, j] = sum(m, n: I[i + 1 - m, j + 1 - n] * K[m, n]) for i < 2, j < 2"
    got = run(formula(text, dtype, I=(3, 3), K=(2, 2)), *ITEM_3)
    np.testing.assert_array_equal(got, [[45, 110], [40, 40]])


X = [
    [[2, 1, 0, 0], [0, 0, 2, 1], [0, 2, 0, 1], [2, 1, 0, 1]],
    [[2, 2, 0, 0], [0, 0, 2, 1], [0, 0, 2, 0], [0, 1, 0, 1]],
    [[2, 1, 0, 0], [0, 0, 2, 1], [2, 0, 0, 0], [0, 1, 0, 1]],
]
W = [
    [[1, 0, 0], [0, -2, 0], [0, 0, -1]],
    [[1, 2, 0], [2, 0, -1], [0, -1, 1]],
    [[0, 0, -2], [0, 1, 2], [-2, 2, 0]],
]
Y = [[0, 5, 8, 0], [6, 10, 1, 5], [4, 0, 2, 11], [0, 1, 11, 3]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_exercise_of_three_channels(dtype: str) -> None:
    kind = dtype_of(dtype)
    conv = cg.nn.Conv2d(3, 1, 3, padding=1).program((1, 3, 4, 4), dtype=kind)
    linear = run(conv, [X], [W], [2])
    relu = run(cg.nn.ReLU().program((1, 1, 4, 4), dtype=kind), linear)
    np.testing.assert_array_equal(relu[0, 0], Y)
    top = run(cg.nn.MaxPool2d(2).program((1, 1, 4, 4), dtype=kind), relu)
    np.testing.assert_array_equal(top[0, 0], [[10, 8], [4, 11]])
    mean = run(cg.nn.AvgPool2d(2).program((1, 1, 4, 4), dtype=kind), relu)
    np.testing.assert_array_equal(mean[0, 0], [[21 / 4, 7 / 2], [5 / 4, 27 / 4]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_exercise_as_one_network(dtype: str) -> None:
    """All three layers in one formula, stage by stage."""
    text = (
        "Z[y, x] = relu(sum(c, r, s: X[c, y + r - 1, x + s - 1] * W[c, r, s]) + 2) for y < 4, x < 4\n"
        "M[i, j] = max(p < 2, q < 2: Z[2*i + p, 2*j + q]) for i < 2, j < 2"
    )
    got = run(formula(text, dtype, X=(3, 4, 4), W=(3, 3, 3)), X, W)
    np.testing.assert_array_equal(got, [[10, 8], [4, 11]])


# The published 5x5 kernel of weight 273.
GAUSS_273 = np.array(
    [[1, 4, 7, 4, 1], [4, 16, 26, 16, 4], [7, 26, 41, 26, 7], [4, 16, 26, 16, 4], [1, 4, 7, 4, 1]]
)
FILTERS = {
    "gaussian": GAUSS_273 / 273,
    "blur": np.full((3, 3), 1 / 9),
    "sharpen": [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
    "edge detect": [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
    "difference": [[1, -1]],
}
TOLERANCE = {"f32": 1e-5, "f64": 1e-12}


def correlate(image: Any, kernel: Any) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(image, np.shape(kernel))
    return np.einsum("ijmn,mn->ij", windows, np.asarray(kernel, float))


def picture(shape: tuple[int, int] = (19, 23)) -> np.ndarray:
    return np.random.default_rng(5).random(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FILTERS)
def test_filters(name: str, dtype: str) -> None:
    kernel = np.asarray(FILTERS[name], NUMPY[dtype])
    image = picture().astype(NUMPY[dtype])
    got = run(formula(CROSS, dtype, I=image.shape, K=kernel.shape), image, kernel)
    want = correlate(image.astype(float), kernel.astype(float))
    scale = correlate(image.astype(float), np.abs(kernel.astype(float)))
    assert error(got, want, scale) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_sobel_magnitude(dtype: str) -> None:
    text = (
        "constant S: {0}[3, 3] = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]\n"
        "A[i, j] = sum(m, n: I[i + m, j + n] * S[m, n])\n"
        "B[i, j] = sum(m, n: I[i + m, j + n] * S[n, m])\n"
        "Y[i, j] = sqrt(A[i, j]**2 + B[i, j]**2)"
    )
    image = picture().astype(NUMPY[dtype])
    got = run(formula(text.format(dtype), dtype, I=image.shape), image)
    sobel = np.outer([1, 2, 1], [1, 0, -1])
    a, b = (correlate(image.astype(float), k) for k in (sobel, sobel.T))
    sizes = [correlate(image.astype(float), abs(k)) for k in (sobel, sobel.T)]
    assert error(got, np.hypot(a, b), np.hypot(*sizes)) < TOLERANCE[dtype]


def test_a_wrong_tap_is_seen() -> None:
    """The same numbers with the kernel not flipped, or shifted by one, are others."""
    text = "S[i, j] = sum(m, n: I[i - m + 1, j - n] * K[m, n]) for i < 3, j < 3"
    wrong = run(formula(text, "f32", I=(3, 3), K=(3, 3)), *ITEM_1)
    assert not np.array_equal(wrong, [[0, 0, 1], [0, 3, 12], [2, 6, 9]])
    plain = run(formula(CROSS, "f32", I=(3, 3), K=(2, 2)), *ITEM_3)
    assert not np.array_equal(plain, [[45, 110], [40, 40]])


# --------------------------------------------------------------------------------- arithmetic (§2)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "pad"),
    [
        (7, 3, 1, 1, 0),
        (7, 3, 3, 1, 0),
        (7, 3, 2, 1, 1),
        (227, 11, 4, 1, 0),
        (9, 3, 1, 2, 2),
        (5, 5, 1, 1, 4),
    ],
)
def test_output_sizes(size: int, kernel: int, stride: int, dilation: int, pad: int) -> None:
    want = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    assert output_size(size, kernel, stride, dilation, pad, pad) == want
    layer = cg.nn.Conv1d(1, 1, kernel, stride, pad, dilation)
    assert layer.output_shape((1, 1, size)) == (1, 1, want)
    assert layer.program((1, 1, size)).output.shape == (1, 1, want)


def test_half_and_full_padding() -> None:
    for kernel in (1, 3, 5, 7):
        assert cg.nn.Conv1d(1, 1, kernel, padding=kernel // 2).output_shape((1, 1, 20))[2] == 20
        full = cg.nn.Conv1d(1, 1, kernel, padding=kernel - 1).output_shape((1, 1, 20))[2]
        assert full == 20 + kernel - 1


def test_transposed_sizes() -> None:
    for stride, dilation, pad, extra in [(1, 1, 0, 0), (2, 1, 1, 1), (3, 2, 2, 2), (4, 3, 0, 3)]:
        layer = cg.nn.ConvTranspose1d(2, 3, 4, stride, pad, extra, dilation=dilation)
        want = stride * (6 - 1) + dilation * (4 - 1) + 1 - 2 * pad + extra
        assert layer.output_shape((1, 2, 6)) == (1, 3, want)
        assert layer.program((1, 2, 6)).output.shape == (1, 3, want)


def test_parameters_of_a_layer() -> None:
    net = cg.nn.Sequential(cg.nn.Conv2d(3, 10, 5, padding=2))
    graph = trace(net, [(1, 3, 32, 32)])
    assert graph.parameter_count() == 760
    assert cg.nn.Conv2d(3, 10, 5, padding=2).output_shape((1, 3, 32, 32)) == (1, 10, 32, 32)


def test_receptive_fields() -> None:
    """How far one input element reaches: two 3x3 layers see 5x5, three see 7x7."""
    for layers, field in [(2, 5), (3, 7)]:
        ones = np.ones((1, 1, 3, 3), np.float32)
        spot = np.zeros((1, 1, 15, 15), np.float32)
        spot[0, 0, 7, 7] = 1
        program = cg.nn.Conv2d(1, 1, 3, padding=1, bias=False).program(spot.shape)
        kernel = cg.compile(program)
        for _ in range(layers):
            spot = kernel(spot, ones)
        rows, columns = np.nonzero(spot[0, 0])
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (field, field)


def test_operations_of_an_edge_kernel() -> None:
    layer = cg.nn.Conv2d(1, 1, (1, 2), bias=False)
    assert layer.output_shape((1, 1, 280, 320)) == (1, 1, 280, 319)
    assert layer.multiply_adds((1, 1, 280, 320)) == 319 * 280 * 2


def test_weights_of_sharing() -> None:
    """200x200 images: 100 shared 10x10 filters have 10 000 weights."""
    layer = cg.nn.Conv2d(1, 100, 10, bias=False)
    assert np.prod(layer.weight_shape) == 10_000


def test_three_small_layers_weigh_less_than_a_large_one() -> None:
    channels = 8
    small = 3 * np.prod(cg.nn.Conv2d(channels, channels, 3).weight_shape)
    assert (small, np.prod(cg.nn.Conv2d(channels, channels, 7).weight_shape)) == (
        27 * channels**2,
        49 * channels**2,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_transposed_is_the_transposed_matrix(dtype: str) -> None:
    """X' = mat(A^T vec(S)) for the matrix A of the forward layer, in integers."""
    forward = cg.nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False)
    program = forward.program((1, 2, 5, 6), dtype=dtype_of(dtype))
    kind = NUMPY[dtype]
    rng = np.random.default_rng(3)
    w = rng.integers(-3, 4, (3, 2, 3, 3)).astype(kind)
    kernel = cg.compile(program)
    columns = [kernel(e.reshape(1, 2, 5, 6), w).ravel() for e in np.eye(60, dtype=kind)]
    matrix = np.stack(columns, axis=1)
    s = rng.integers(-3, 4, program.output.shape).astype(kind)
    layer = cg.nn.ConvTranspose2d(3, 2, 3, 2, 1, output_padding=(0, 1), bias=False)
    got = run(layer.program(s.shape, dtype=dtype_of(dtype)), s, w)
    np.testing.assert_array_equal(got.ravel(), matrix.T @ s.ravel())


def test_fully_connected_as_a_layer_of_full_size() -> None:
    rng = np.random.default_rng(4)
    x = rng.integers(-3, 4, (2, 3, 4, 5)).astype(np.float32)
    w, b = rng.integers(-3, 4, (7, 60)).astype(np.float32), np.arange(7, dtype=np.float32)
    dense = run(cg.nn.Linear(60, 7).program((2, 60)), x.reshape(2, 60), w, b)
    full = run(cg.nn.Conv2d(3, 7, (4, 5)).program(x.shape), x, w.reshape(7, 3, 4, 5), b)
    np.testing.assert_array_equal(dense, full.reshape(2, 7))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_formulas_of_the_notes(dtype: str) -> None:
    """The 1-d gradients as printed in the notes, against the derived ones, in integers."""
    kind = NUMPY[dtype]
    program = formula(
        "H[n, m, j] = sum(i, p: V[n, i, j + p] * W[m, i, p])", dtype, V=(2, 3, 7), W=(4, 3, 3)
    )
    gradient = cg.grad(program)
    rng = np.random.default_rng(6)
    v, w, dh = (rng.integers(-4, 5, s).astype(kind) for s in ((2, 3, 7), (4, 3, 3), (2, 4, 5)))
    dv, dw = run(gradient, v, w, dh)
    want_v, want_w = np.zeros_like(v), np.zeros_like(w)
    for n, m, j, i, p in np.ndindex(2, 4, 5, 3, 3):
        want_v[n, i, j + p] += dh[n, m, j] * w[m, i, p]
        want_w[m, i, p] += dh[n, m, j] * v[n, i, j + p]
    np.testing.assert_array_equal(dv, want_v)
    np.testing.assert_array_equal(dw, want_w)
