"""Rows of the textbook's table of operations as formulas of symbols: padding, pooling, pointwise layers,
normalizations, classifiers, joins, video."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import sympy
from sympy import Max, Rational, Symbol, exp, log, sqrt, tanh
from textbook_rows import convolved, inputs, read, same, symbols, table, total, written

import convgen as cg
from convgen.layers import (
    activation,
    contrast,
    convolution,
    dense,
    elementwise,
    loss,
    normalization,
    padding,
    pooling,
    unpooling,
    video,
)
from convgen.symbolic import functions
from convgen.symbolic.derive import adjoint, grad
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.parse import parse

# ---------------------------------------------------------------------------------------------
# Padding

MEAN = object()


@pytest.mark.parametrize(
    "layer, place",
    [
        (padding.ZeroPad1d((2, 3)), lambda i, e: i if 0 <= i < e else None),
        (
            padding.ReflectionPad1d((2, 3)),
            lambda i, e: -i if i < 0 else 2 * e - 2 - i if i >= e else i,
        ),
        (padding.ReplicationPad1d((2, 3)), lambda i, e: min(max(i, 0), e - 1)),
        (padding.CircularPad1d((2, 3)), lambda i, e: i % e),
        (padding.ConstantPad1d((2, 3), 7), lambda i, e: i if 0 <= i < e else 7),
        (padding.MeanPad1d((2, 3)), lambda i, e: i if 0 <= i < e else MEAN),
    ],
    ids=["zero", "reflect", "replicate", "circular", "constant", "mean"],
)
def test_padding_values(layer, place):
    program = layer.program((2, 1, 4))
    x = inputs(program)["X"]

    def element(n, c, y):
        at = place(y - 2, 4)
        if at is MEAN:
            return sympy.Add(*x[n, c]) / 4
        return 0 if at is None else 7 if at == 7 else x[n, c, at]

    assert same(written(program), table((2, 1, 9), element))


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_padding_sizes(kernel):
    for scheme, size in (("valid", 6 - kernel + 1), ("same", 6), ("full", 6 + kernel - 1)):
        layer = convolution.Conv1d(1, 1, kernel, padding=scheme, bias=False)
        program = layer.program((1, 1, 6))
        x, w = inputs(program).values()
        pad = {"valid": 0, "same": kernel // 2, "full": kernel - 1}[scheme]
        assert same(written(program), convolved(x, w, [0], (1, 1, size), 1, 1, pad))


# ---------------------------------------------------------------------------------------------
# Pooling


def test_max_pooling_with_overlapping_windows():
    program = pooling.MaxPool2d(3, stride=2).program((1, 1, 5, 5))
    x = inputs(program)["X"]
    wanted = table(
        (1, 1, 2, 2),
        lambda n, c, y, z: Max(
            *(x[n, c, 2 * y + p, 2 * z + q] for p in range(3) for q in range(3))
        ),
    )
    assert same(written(program), wanted)


def test_max_pooling_sends_the_gradient_to_the_winner_at_every_order():
    """All orders that five elements can have, ties too, under two overlapping windows."""
    program = grad(pooling.MaxPool1d(3, stride=2).program((1, 1, 5)))
    for values in itertools.product(range(3), repeat=5):
        wanted = [0] * 5
        for y, weight in enumerate((1, 10)):
            window = values[2 * y : 2 * y + 3]
            wanted[2 * y + window.index(max(window))] += weight
        found = evaluate(program, {"X": [[list(values)]], "dY": [[[1, 10]]]})
        assert found["dX"].tolist() == [[wanted]], values


def test_average_pooling_and_its_gradient():
    program = pooling.AvgPool2d(2).program((1, 2, 4, 4))
    x, dy = inputs(program)["X"], symbols("dY", 1, 2, 2, 2)
    wanted = table(
        (1, 2, 2, 2),
        lambda n, c, y, z: total([2, 2], lambda p, q: x[n, c, 2 * y + p, 2 * z + q]) / 4,
    )
    assert same(written(program), wanted)
    up = table((1, 2, 4, 4), lambda n, c, h, w: dy[n, c, h // 2, w // 2] / 4)
    assert same(written(grad(program)), up)


def test_global_average_pooling():
    program = pooling.AdaptiveAvgPool2d(1).program((1, 2, 3, 2))
    x = inputs(program)["X"]
    wanted = table((1, 2, 1, 1), lambda n, c, y, z: total([3, 2], lambda h, w: x[n, c, h, w]) / 6)
    assert same(written(program), wanted)


def test_max_unpooling_at_every_place():
    """Every way in which two windows can have recorded their winners: each value at its own."""
    program = unpooling.MaxUnpool2d(2).program((1, 1, 1, 2), (1, 1, 1, 2))
    back = grad(program, ["X"])
    for first, second in itertools.product([0, 1, 4, 5], [2, 3, 6, 7]):
        wanted = [0] * 8
        wanted[first], wanted[second] = 3, 5
        given = {"X": [[[[3, 5]]]], "I": [[[[first, second]]]]}
        found = evaluate(program, given)["Y"].tolist()[0][0]
        assert found[0] + found[1] == wanted
        slope = [1 << i for i in range(8)]
        gone = evaluate(back, {**given, "dY": [[[slope[:4], slope[4:]]]]})["dX"].tolist()
        assert gone == [[[[slope[first], slope[second]]]]]


# ---------------------------------------------------------------------------------------------
# Pointwise and normalizations


@pytest.mark.parametrize(
    "layer, formula, slope",
    [
        (elementwise.Abs(), sympy.Abs, sympy.sign),
        (activation.ReLU(), lambda x: Max(0, x), lambda x: sympy.Piecewise((1, x > 0), (0, True))),
        (activation.Tanh(), tanh, lambda x: 1 - tanh(x) ** 2),
        (
            activation.Sigmoid(),
            lambda x: 1 / (1 + exp(-x)),
            lambda x: exp(-x) / (1 + exp(-x)) ** 2,
        ),
    ],
    ids=["abs", "relu", "tanh", "sigmoid"],
)
def test_rectifications(layer, formula, slope):
    program = layer.program((2, 2))
    x, dy = symbols("X", 2, 2), symbols("dY", 2, 2)
    assert same(written(program), table((2, 2), lambda *at: formula(x[at])))
    back = written(grad(program))
    for at in np.ndindex(2, 2):
        found = back[at].replace(functions.sign, sympy.sign)
        for value in (Rational(-3, 2), 2):
            put = {x[at]: value, dy[at]: 5}
            assert sympy.simplify((found - dy[at] * slope(x[at])).subs(put)) == 0


def test_filter_bank_with_a_gain():
    program = elementwise.ScaledTanh(2).program((1, 2, 2))
    x, g = inputs(program).values()
    assert same(written(program), table((1, 2, 2), lambda n, k, y: g[k] * tanh(x[n, k, y])))


def test_local_contrast_normalization():
    layer = contrast.LocalContrastNorm(3, c=Fraction(1, 2))
    program = layer.program((1, 2, 2, 2))
    x = inputs(program)["X"]
    weights = contrast.gaussian(3, Fraction(3, 4))
    assert sum(map(sum, weights)) == 1
    w = [[Rational(v.numerator, v.denominator) / 2 for v in row] for row in weights]

    def local_sum(z, j, k):
        return total([2, 3, 3], lambda i, p, q: w[p][q] * read(z[0, i], j + p - 1, k + q - 1))

    v = table(x.shape, lambda n, i, j, k: x[n, i, j, k] - local_sum(x, j, k))
    power = table((2, 2), lambda j, k: local_sum(v**2, j, k))
    assert same(written(program, "V"), v)
    found, square = written(program), written(program, "power")
    values = {s: Rational(i * i % 7 - 2, 3) for i, s in enumerate(x.flat)}
    for n, i, j, k in np.ndindex(*x.shape):
        assert sympy.expand(square[j - j, j, k] - power[j, k]) == 0
        want = v[n, i, j, k] / Max(Rational(1, 2), sqrt(power[j, k]))
        got = found[n, i, j, k].replace(
            functions.select, lambda c, a, b: a
        )  # the root's branch at 0
        assert sympy.simplify((got - want).subs(values)) == 0


def test_local_response_normalization():
    program = contrast.LocalResponseNorm(3, alpha=0.5, beta=0.75, k=2.0).program((1, 4, 1))
    x = inputs(program)["X"]

    def element(n, i, y):
        around = total([3], lambda j: read(x[n, :, y], i + j - 1) ** 2)
        return x[n, i, y] / (2 + Rational(1, 2) / 3 * around) ** Rational(3, 4)

    assert same(written(program), table((1, 4, 1), element))


def test_batch_normalization_and_its_statistics():
    layer = normalization.BatchNorm1d(1, eps=0.25, momentum=0.1)
    x, gamma, beta = symbols("X", 3, 1), symbols("gamma", 1), symbols("beta", 1)
    mean = sympy.Add(*x.flat) / 3
    var = sympy.Add(*((v - mean) ** 2 for v in x.flat)) / 3
    train = layer.program((3, 1), training=True)
    y = table(
        (3, 1), lambda n, c: gamma[0] * (x[n, 0] - mean) / sqrt(var + Rational(1, 4)) + beta[0]
    )
    assert same(written(train, "mean"), table((1,), lambda c: mean))
    assert same(written(train), y)
    m, v = symbols("running_mean", 1)[0], symbols("running_var", 1)[0]
    moved = {name: written(train, new)[0] for name, new in train.updates}
    assert sympy.expand(moved["running_mean"] - (Rational(9, 10) * m + mean / 10)) == 0
    assert sympy.expand(moved["running_var"] - (Rational(9, 10) * v + var * 3 / 2 / 10)) == 0
    use = layer.program((3, 1))
    running = table(
        (3, 1), lambda n, c: gamma[0] * (x[n, 0] - m) / sqrt(v + Rational(1, 4)) + beta[0]
    )
    assert same(written(use), running)


def test_batch_normalization_gradient_goes_through_the_statistics():
    """Against sympy's own derivative of the whole formula, at rational points where the root is
    rational or not, exactly."""
    layer = normalization.BatchNorm1d(1, eps=0.25, track_running_stats=False)
    x, dy = symbols("X", 3, 1), symbols("dY", 3, 1)
    gamma, beta = symbols("gamma", 1), symbols("beta", 1)
    mean = sympy.Add(*x.flat) / 3
    var = sympy.Add(*((v - mean) ** 2 for v in x.flat)) / 3
    whole = sympy.Add(
        *(
            dy[n, 0] * (gamma[0] * (x[n, 0] - mean) / sqrt(var + Rational(1, 4)) + beta[0])
            for n in range(3)
        )
    )
    program = grad(layer.program((3, 1)))
    put = dict(
        zip(
            [*x.flat, *dy.flat, *gamma, *beta],
            map(Rational, (1, 3, -2, 5, -1, 2, 7, 4)),
            strict=True,
        )
    )
    for found in (program, cg.closed_form(program)):
        for name, tensor in (("X", x), ("gamma", gamma), ("beta", beta)):
            mine = written(found, f"d{name}")
            for at in np.ndindex(*tensor.shape):
                want = sympy.diff(whole, tensor[at]).subs(put)
                assert sympy.simplify(mine[at].subs(put) - want) == 0, name


# ---------------------------------------------------------------------------------------------
# Classifiers, joins, video


def test_fully_connected_and_as_convolution():
    linear = dense.Linear(12, 2).program((1, 12))
    x, w, b = inputs(linear).values()
    wanted = table((1, 2), lambda n, k: total([12], lambda c: x[n, c] * w[k, c]) + b[k])
    assert same(written(linear), wanted)
    whole = convolution.Conv2d(3, 2, 2).program((1, 3, 2, 2))
    picture, kernel, _ = inputs(whole).values()
    put = dict(zip([*picture.flat, *kernel.flat], [*x.flat, *w.flat], strict=True))
    found = table((1, 2), lambda n, k: written(whole)[n, k, 0, 0].subs(put, simultaneous=True))
    assert same(found, wanted)


def test_dropout_keeps_or_clears():
    program = activation.Dropout(0.25).program((2, 3), training=True)
    found = evaluate(program, {"X": [[3, 6, 9], [12, 15, 18]], "seed": 5})["Y"].tolist()
    for value, kept in zip(np.ravel(found), (3, 6, 9, 12, 15, 18), strict=True):
        assert value in (0, Fraction(4, 3) * kept)
    x = symbols("X", 2, 3)
    assert same(written(activation.Dropout(0.25).program((2, 3))), x)


def test_softmax_and_cross_entropy():
    x = symbols("X", 2, 3)
    whole = [sympy.Add(*map(exp, row)) for row in x]
    soft = written(activation.Softmax().program((2, 3)))
    put = dict(zip(x.flat, map(log, (1, 2, 3, 5, 7, 4)), strict=True))
    for n, k in np.ndindex(2, 3):
        want = exp(x[n, k]) / whole[n]
        assert sympy.simplify(soft[n, k].subs(put) - want.subs(put)) == 0
    program = loss.CrossEntropyLoss().program((2, 3), (2,))
    for labels in itertools.product(range(3), repeat=2):
        want = -sum(log(exp(x[n, k]) / whole[n]) for n, k in enumerate(labels)) / 2
        known = {
            Symbol(f"{program.inputs[1].name}[{n}]", real=True): k for n, k in enumerate(labels)
        }
        got = written(program)[()].subs(known).replace(functions.select, choose).subs(put)
        assert sympy.simplify(sympy.expand_log(got - want.subs(put), force=True)) == 0


def choose(condition, a, b):
    left, right = condition.args
    return a if left == right else b


def test_residual_addition_and_its_projection():
    plain_sum = dense.Add().program((1, 2, 3), (1, 2, 3))
    a, b = inputs(plain_sum).values()
    assert same(written(plain_sum), a + b)
    for name in inputs(plain_sum):
        assert same(written(grad(plain_sum, [name])), symbols("dY", 1, 2, 3))
    shortcut = parse(
        "Y[n, k, y] = sum(c, r: X[n, c, 2*y + r - 1] * W[k, c, r])"
        " + sum(c: X[n, c, 2*y] * P[k, c]) for y < 2",
        X=(1, 2, 4), W=(3, 2, 3), P=(3, 2),
    )  # fmt: skip
    branch = convolution.Conv1d(2, 3, 3, stride=2, padding=1, bias=False).program((1, 2, 4))
    project = convolution.Conv1d(2, 3, 1, stride=2, bias=False).program((1, 2, 4))
    w, p = symbols("W", 3, 2, 1), symbols("P", 3, 2)
    put = dict(zip(w.flat, p.flat, strict=True))
    side = table((1, 3, 2), lambda *at: written(project)[at].subs(put, simultaneous=True))
    assert same(written(shortcut), written(branch) + side)
    back = written(adjoint(shortcut, "X"))
    one = written(adjoint(branch, "X"))
    two = table(
        one.shape, lambda *at: written(adjoint(project, "X"))[at].subs(put, simultaneous=True)
    )
    assert same(back, one + two)


def test_concatenation_over_channels():
    program = dense.Concat().program((1, 2, 2), (1, 3, 2))
    a, b = inputs(program).values()
    assert same(written(program), np.concatenate([a, b], axis=1))
    dy = symbols("dY", 1, 5, 2)
    back = grad(program)
    first, second = (t.name for t in back.outputs)
    assert same(written(back, first), dy[:, :2]) and same(written(back, second), dy[:, 2:])


def test_space_time_factorised_convolution():
    layer = video.SpaceTimeConv3d(1, 1, 2, 2, stride=(2, 1, 1), padding=(1, 0, 0), bias=False)
    program = layer.program((1, 1, 4, 2, 3))
    x, w, v = inputs(program).values()
    space = table(
        (4, 1, 2),
        lambda t, y, z: total([2, 2], lambda r, s: x[0, 0, t, y + r, z + s] * w[0, 0, 0, r, s]),
    )
    wanted = table(
        program.output.shape,
        lambda n, k, t, y, z: total(
            [2], lambda q: read(space, 2 * t + q - 1, y, z) * v[0, 0, q, 0, 0]
        ),
    )
    assert same(written(program), wanted)
