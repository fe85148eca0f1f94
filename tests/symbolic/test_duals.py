import math
from fractions import Fraction

import numpy as np
import pytest
import reference
import sympy
from formulas import image_program, piece, program, reduce, tensor

from convgen.errors import DerivationError
from convgen.symbolic import functions as fn
from convgen.symbolic.duals import hessian, jacobian, jvp, vjp
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.expr import Result, axes

F = Fraction
i, j, r = axes("i j r")


def scalar(build, value, order=1, numbers="exact"):
    """The derivative of build(v) at value."""
    v, Y = tensor("v"), tensor("Y", role="output")
    p = program([v], piece(Y[()], {}, build(v[()])))
    if order == 2:
        return hessian(p, {"v": value}, {"Y": 1}, ["v"], numbers=numbers)["v", "v"].data[0]
    return jacobian(p, {"v": value}, "v", numbers=numbers).data[0]


@pytest.mark.parametrize(
    ("build", "value", "want"),
    [
        (lambda v: v**3, 2, 12),
        (lambda v: 1 / v, 2, F(-1, 4)),
        (lambda v: (v + 1) / (v - 1), 3, F(-1, 2)),
        (lambda v: fn.relu(v), 0, 0),
        (lambda v: fn.relu(v), 2, 1),
        (lambda v: fn.abs_(v), 0, 0),
        (lambda v: fn.abs_(v), -2, -1),
        (lambda v: fn.maximum(v, 2), 2, F(1, 2)),
        (lambda v: fn.minimum(v, 2 * v), 0, F(3, 2)),
        (lambda v: fn.maximum(v, -v), 3, 1),
        (lambda v: sympy.sqrt(v), 4, F(1, 4)),
        (lambda v: sympy.sqrt(v), 0, math.inf),
        (lambda v: sympy.exp(v), 0, 1),
        (lambda v: sympy.log(v), 4, F(1, 4)),
        (lambda v: sympy.tanh(v), 0, 1),
        (lambda v: fn.sigmoid(v), 0, F(1, 4)),
        (lambda v: fn.select(fn.less(v, 1), v**2, 7 * v), F(1, 2), 1),
        (lambda v: fn.step(v) + fn.sign(v) + fn.round_down(v), F(5, 2), 0),
        (lambda v: fn.cast(v * v, "f64"), 3, 6),
        (lambda v: fn.cast(v * v, "i32"), 3, 0),
        (lambda v: sympy.erf(v), 0, 2 / math.sqrt(math.pi)),
    ],
)
def test_scalar_derivatives(build, value, want):
    assert scalar(build, value) == want


@pytest.mark.parametrize(
    ("build", "value", "want"),
    [
        (lambda v: v**3, 2, 12),
        (lambda v: 1 / v, 2, F(1, 4)),
        (lambda v: fn.sigmoid(v) ** 2, 0, F(1, 8)),
        (lambda v: fn.relu(v) ** 2, 3, 2),
        (lambda v: v**2 * sympy.exp(v), 0, 2),
        (lambda v: sympy.sqrt(v), 4, F(-1, 32)),
    ],
)
def test_second_derivatives(build, value, want):
    assert scalar(build, value, order=2) == want


def test_derivatives_with_fifty_digits():
    got = scalar(lambda v: sympy.erf(v) * sympy.tanh(v), 1, numbers="mp")
    v = sympy.Symbol("v")
    want = sympy.diff(sympy.erf(v) * sympy.tanh(v), v).subs(v, 1).evalf(50)
    assert abs(got - want) < sympy.Float("1e-45")


def reduced(kind, data, body=lambda X: X[r], count=None):
    X, Y = tensor("X", len(data)), tensor("Y", role="output")
    p = program(
        [X], piece(Y[()], {}, Result(0), [reduce(kind, {"r": count or len(data)}, body(X))])
    )
    return jacobian(p, {"X": data}, "X").data


def test_max_follows_its_first_maximum():
    assert reduced("max", [1, 3, 3, 2]) == [0, 1, 0, 0]
    assert reduced("min", [1, 0, 3, 0]) == [0, 1, 0, 0]
    assert reduced("max", [-5, -6], lambda X: X.pad("omit")[r - 1], 4) == [1, 0]
    assert reduced("max", [-5, -6], lambda X: X[r - 1], 4) == [0, 0]


def test_products_are_right_at_zeros():
    assert reduced("prod", [2, 0, 3]) == [0, 6, 0]
    assert reduced("prod", [0, 0, 3]) == [0, 0, 0]


@pytest.mark.parametrize("data", [[0, 0, 0], [1, 1, 0, 1], [0, -1, 2]])
def test_logsumexp_gives_the_softmax_also_at_ties(data):
    want = reference.softmax(np.array(data, dtype=float), axis=0)
    assert reference.error(reduced("logsumexp", data), want) < 1e-15


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_against_scattered_gradients(mode):
    draw = np.random.default_rng(0)
    X, W = draw.integers(-4, 5, (1, 2, 4, 3)), draw.integers(-4, 5, (2, 2, 3, 2))
    p = image_program((4, 3), (3, 2), (2, 2), 1, 2, 1, padding=1, mode=mode)
    inputs = {"X": X, "W": W}
    dY = draw.integers(-4, 5, evaluate(p, inputs)["Y"].shape)
    dx, dw = reference.conv_gradients(X, W, dY, 2, 1, 1, mode=mode)
    got = vjp(p, inputs, {"Y": dY}, ["X", "W"])
    assert got["X"].tolist() == dx.tolist() and got["W"].tolist() == dw.tolist()
    mutant = image_program(
        (4, 3), (3, 2), (2, 2), 1, 2, 1, padding=1, mode=mode, flip=True, out=dY.shape[2:]
    )
    if mode != "reflect":
        assert vjp(mutant, inputs, {"Y": dY}, ["X"])["X"].tolist() != dx.tolist()
    jac = np.array(jacobian(p, inputs, "W").tolist())
    assert (np.tensordot(dY, jac, 4) == dw).all()


def test_jvp_is_the_jacobian_times_the_direction():
    p = image_program((4,), (2,))
    inputs = {"X": [1, 2, 3, 4], "W": [5, 6]}
    values, moved = jvp(p, inputs, {"X": [1, 0, 0, 1], "W": [0, 1]})
    assert values["Y"].tolist() == evaluate(p, inputs)["Y"].tolist() == [[[17, 28, 39]]]
    assert moved["Y"].tolist() == [[[5 + 2, 3, 6 + 4]]]


def test_stages_carry_derivatives_through_temporaries():
    X, M, Y = tensor("X", 3), tensor("M", role="temporary"), tensor("Y", 3, role="output")
    mean = piece(M[()], {}, Result(0) / 3, [reduce("sum", {"i": 3}, X[i])])
    centred = piece(Y[i], {"i": 3}, (X[i] - M[()]) ** 2)
    p = program([X], mean, centred)
    got = jacobian(p, {"X": [1, 2, 6]}, "X").tolist()
    d = [-2, -1, 3]
    assert got == [[2 * d[a] * ((a == b) - F(1, 3)) for b in range(3)] for a in range(3)]
    second = hessian(p, {"X": [1, 2, 6]}, {"Y": [1, 1, 1]}, ["X"])["X", "X"].tolist()
    assert second == [[2 * ((a == b) - F(1, 3)) for b in range(3)] for a in range(3)]


def test_mixed_second_derivatives():
    p = image_program((3,), (2,))
    got = hessian(p, {"X": [1, 2, 3], "W": [5, 6]}, {"Y": [1, 10]}, ["X", "W"])
    assert got["X", "W"].tolist() == [[[[[[1, 0]]], [[[10, 1]]], [[[0, 10]]]]]]
    assert set(got["X", "X"].data) == {0}


def test_integers_have_no_derivative():
    X, Y = tensor("X", 2, dtype="i32"), tensor("Y", 2, role="output")
    with pytest.raises(DerivationError, match="expected a float input"):
        jacobian(program([X], piece(Y[i], {"i": 2}, X[i])), {"X": [1, 2]}, "X")
