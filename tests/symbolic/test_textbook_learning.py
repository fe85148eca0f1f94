"""Rows of the textbook's table of operations as formulas of symbols: looking inside, and learning."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import sympy
from sympy import Max, Rational, Symbol, sqrt
from textbook_rows import same, symbols, table, total, written

import convgen as cg
from convgen.inspect import seeing
from convgen.layers import (
    update,
)
from convgen.symbolic.derive import adjoint, grad
from convgen.symbolic.parse import parse


def test_class_activation_map_and_grad_cam():
    """The score's gradient is w_k / (Y X): Grad-CAM is the class activation map, rectified, over
    the number of positions. In symbols, and of a network with weights that are exact in floats."""
    head = parse("S[k] = sum(c, y, x: w[k, c] * A[c, y, x]) / 4", w=(2, 3), A=(3, 2, 2))
    a, w, ds = symbols("A", 3, 2, 2), symbols("w", 2, 3), symbols("dS", 2)
    slope = written(adjoint(head, "A"))
    wanted = table((3, 2, 2), lambda c, y, x: total([2], lambda k: ds[k] * w[k, c]) / 4)
    assert same(slope, wanted)
    one = {ds[0]: 1, ds[1]: 0}
    alpha = [sum(slope[c, y, x].subs(one) for y, x in np.ndindex(2, 2)) / 4 for c in range(3)]
    cam = table((2, 2), lambda y, x: total([3], lambda c: w[0, c] * a[c, y, x]))
    mapped = table((2, 2), lambda y, x: total([3], lambda c: alpha[c] * a[c, y, x]))
    assert same(mapped, cam / 4)

    net = cg.nn.Sequential(
        cg.nn.Conv2d(1, 3, 1), cg.nn.AdaptiveAvgPool2d(1), cg.nn.Flatten(), cg.nn.Linear(3, 2)
    )
    model = cg.compile(net, input=(1, 1, 2, 2))
    rng = np.random.default_rng(0)
    for name in model.weights.places:
        value = model.weights[name]
        value[...] = rng.integers(-3, 4, value.shape)
    x = rng.integers(-4, 5, (1, 1, 2, 2)).astype(np.float32)
    maps = x * model.weights["0.weight"].reshape(1, 3, 1, 1) + model.weights["0.bias"].reshape(
        1, 3, 1, 1
    )
    for label in (0, 1):
        exact = np.tensordot(model.weights["3.weight"][label], maps[0], 1)
        found = seeing.class_activation_map(model, x, label)[0]
        assert np.array_equal(found, exact)
        seen = seeing.grad_cam(model, x, "0", label)[0]
        assert np.array_equal(seen, np.maximum(exact, 0) / 4)


def test_saliency_is_the_largest_slope():
    model = cg.compile(cg.nn.Sequential(cg.nn.Flatten(), cg.nn.Linear(8, 2)), input=(1, 2, 2, 2))
    rng = np.random.default_rng(1)
    for name in model.weights.places:
        value = model.weights[name]
        value[...] = rng.integers(-5, 6, value.shape)
    found = seeing.saliency(model, np.ones((1, 2, 2, 2), np.float32), 1)
    w = model.weights["1.weight"][1].reshape(2, 2, 2)
    assert np.array_equal(found[0], np.abs(w).max(axis=0))


@pytest.mark.parametrize(
    "change, rule",
    [
        (seeing.guided, lambda dy, y: Max(0, dy) * sympy.Piecewise((1, y > 0), (0, True))),
        (seeing.deconvnet, lambda dy, y: Max(0, dy)),
    ],
    ids=["guided", "deconvnet"],
)
def test_what_goes_back_through_a_relu(change, rule):
    layer = cg.nn.ReLU()
    program = grad(change(layer, layer.program((3,))), ["X"])
    x, dy = symbols("X", 3), symbols("dY", 3)
    found = written(program, "dX")
    for i, values in itertools.product(range(3), itertools.product((-2, 0, 3), repeat=2)):
        put = dict(zip((x[i], dy[i]), values, strict=True))
        want = rule(dy[i], Max(0, x[i])).subs(put)
        assert found[i].subs(put) == want


P, G, V, LR = symbols("P", 2), symbols("G", 2), symbols("V", 2), Symbol("lr[]", real=True)
MU, DECAY = Rational(9, 10), Rational(1, 2000)


def stepped(optimizer):
    program = optimizer.program(2)
    return {state: written(program, new) for state, new in program.updates}


def test_gradient_descent_with_momentum_and_decay():
    found = stepped(update.SGD(0.01, momentum=0.9, weight_decay=5e-4))
    v = MU * V + (G + DECAY * P)
    assert same(found["V"], v) and same(found["P"], P - LR * v)
    assert same(stepped(update.SGD(0.01))["P"], P - LR * G)


def test_nesterov_looks_ahead():
    found = stepped(update.SGD(0.01, momentum=0.9, nesterov=True))
    v = MU * V + G
    assert same(found["V"], v) and same(found["P"], P - LR * (G + MU * v))


def test_adam_with_its_corrections():
    found = stepped(update.Adam(0.01))
    m, c1, c2 = symbols("M", 2), Symbol("c1[]", positive=True), Symbol("c2[]", positive=True)
    first, second, eps = Rational(9, 10), Rational(999, 1000), Rational(1, 10**8)
    mean = first * m + (1 - first) * G
    square = second * V + (1 - second) * G**2
    assert same(found["M"], mean) and same(found["V"], square)
    put = {Symbol("c1[]", real=True): c1, Symbol("c2[]", real=True): c2}
    for i in range(2):
        want = P[i] - LR * (mean[i] / c1) / (sqrt(square[i] / c2) + eps)
        assert sympy.simplify(found["P"][i].subs(put) - want) == 0
    assert update.Adam(0.01).values(3) == {"lr": 0.01, "c1": 1 - 0.9**3, "c2": 1 - 0.999**3}


def test_the_rate_is_divided_by_ten_at_a_plateau():
    schedule = cg.optim.Plateau(factor=0.1, patience=1)
    rates = []
    for score in (5, 4, 4, 4, 3, 3, 3):
        schedule.observe(score)
        rates.append(round(schedule(0, 1), 6))
    assert rates == [1, 1, 1, 0.1, 0.1, 0.1, 0.01]
