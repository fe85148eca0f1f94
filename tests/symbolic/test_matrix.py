"""The operator view: structure of the matrices, and A^T against the derived adjoint."""

from __future__ import annotations

import random

import numpy as np
import pytest

from convgen.errors import DerivationError, ShapeError
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.matrix import matrix, prove_adjoint, small_case
from convgen.symbolic.parse import parse

LAYERS = {
    "one_dimension": ("Y[y] = sum(r: X[y + r - 1] * W[r]) for y < 5", {"X": 5, "W": 3}),
    "strided": ("Y[y] = sum(r: X[2*y + r - 1] * W[r]) for y < 4", {"X": 8, "W": 3}),
    "dilated": ("Y[y] = sum(r: X[3*y + 2*r - 2] * W[r]) for y < 3", {"X": 9, "W": 3}),
    "plane": (
        "Y[n, k, y, x] = sum(c, r, s: X[n, c, y + r - 1, x + s - 1] * W[k, c, r, s]) + b[k]"
        " for y < 3, x < 3",
        {"X": (1, 2, 3, 3), "W": (2, 2, 3, 3), "b": 2},
    ),
    "reflect": ("Y[y] = sum(r: X{reflect}[y + r - 1] * W[r]) for y < 4", {"X": 4, "W": 3}),
    "average": ("Y[y] = sum(r < 3: X{omit}[2*y + r - 1]) / 3 for y < 3", {"X": 6}),
    "tiled": ("Y[y] = sum(r: X[y + r] * W[y % 2, r])", {"X": 6, "W": (2, 3)}),
    "true_convolution": ("Y[t] = sum(i: X[i] * W[t - i]) for t < 6", {"X": 4, "W": 3}),
}


def values(program, seed=0):
    rng = random.Random(seed)

    def nested(shape):
        return [nested(shape[1:]) for _ in range(shape[0])] if shape else rng.randint(-5, 5)

    return {t.name: nested(t.shape) for t in program.inputs}


@pytest.mark.parametrize("name", LAYERS)
def test_transpose_is_the_derived_adjoint(name):
    text, shapes = LAYERS[name]
    program = parse(text, **shapes)
    for t in program.inputs:
        assert prove_adjoint(program, t.name).holds


@pytest.mark.parametrize("name", LAYERS)
def test_matrix_times_input_is_the_layer(name):
    text, shapes = LAYERS[name]
    program = parse(text, **shapes)
    given = values(program)
    bias = dict(given)
    a = np.array(matrix(program, "X").numbers(given), dtype=float)
    bias["X"] = (np.array(given["X"]) * 0).tolist()
    y = np.array(evaluate(program, given)["Y"].tolist(), dtype=float)
    rest = np.array(evaluate(program, bias)["Y"].tolist(), dtype=float)
    np.testing.assert_allclose((a @ np.array(given["X"]).ravel()), (y - rest).ravel())


def test_one_dimension_is_toeplitz():
    found = matrix(parse(*LAYERS["one_dimension"][:1], **LAYERS["one_dimension"][1]), "X")
    for i in range(4):
        for j in range(4):
            assert found.entry(i, j) == found.entry(i + 1, j + 1)


def test_plane_is_doubly_block_toeplitz():
    text = "Y[y, x] = sum(r, s: X[y + r - 1, x + s - 1] * W[r, s]) for y < 3, x < 3"
    found = matrix(parse(text, X=(3, 3), W=(3, 3)), "X")

    def block(a, b):
        return [[found.entry(3 * a + i, 3 * b + j) for j in range(3)] for i in range(3)]

    assert block(0, 0) == block(1, 1) == block(2, 2) and block(0, 1) == block(1, 2)
    inner = block(0, 0)
    assert inner[0][:2] == inner[1][1:] and inner[1][:2] == inner[2][1:]


def test_a_wrong_adjoint_is_noticed():
    text, shapes = LAYERS["strided"]
    proof = prove_adjoint(parse(text, **shapes), "X")
    other = prove_adjoint(parse(text.replace("r - 1", "r - 2"), **shapes), "X")
    assert proof.holds and other.holds
    assert not type(proof)(proof.matrix, proof.adjoint, proof.product, other.derived).holds


def test_small_case_keeps_stride_dilation_and_padding():
    text = (
        "Y[n, k, y, x] = sum(c, r, s: X[n, c, 2*y + 2*r - 3, 2*x + 2*s - 3] * W[k, c, r, s])"
        " for y < 14, x < 14"
    )
    small = small_case(parse(text, X=(4, 16, 28, 28), W=(32, 16, 4, 4)))
    assert small is not None
    assert [t.shape for t in small.inputs] == [(1, 1, 4, 4), (1, 1, 3, 3)]
    assert small.output.shape == (1, 1, 3, 3)
    assert "2*y + 2*r - 3" in str(small) and prove_adjoint(small, "X").holds


def test_small_case_keeps_groups():
    text = (
        "Y[n, g*8 + k, y] = sum(c < 16, r: X[n, g*16 + c, 2*y + r - 1] * W[g*8 + k, c, r])"
        " for g < 4, k < 8, y < 14"
    )
    small = small_case(parse(text, X=(4, 64, 28), W=(32, 16, 3)))
    assert small is not None
    assert [t.shape for t in small.inputs] == [(1, 2, 6), (2, 1, 3)]
    proof = prove_adjoint(small, "X")
    assert proof.holds
    assert all((i < 3) == (j < 6) for i, j in proof.matrix.entries)  # block-diagonal


def test_parameters_are_tensors_like_others():
    text = "program p\ntensor X: f32[6]\nparameter W: f32[3]\nY[y] = sum(r: X[y + r] * W[r])"
    proof = prove_adjoint(parse(text), "W")
    assert len(proof.matrix.entries) == 12 and proof.holds


def test_refusals():
    with pytest.raises(DerivationError, match="not linear in X"):
        matrix(parse("Y[i] = X[i] * X[i]", X=3), "X")
    with pytest.raises(DerivationError, match="not linear in X"):
        matrix(parse("Y[] = max(i: X[i])", X=3), "X")
    with pytest.raises(DerivationError, match="argmax cannot be worked out by elements"):
        matrix(parse("Y[] = argmax(i: X[i]) * X[0]", X=3), "X")
    with pytest.raises(ShapeError, match="too large"):
        matrix(parse("Y[i] = sum(j: X[i, j])", X=(300, 300)), "X")
