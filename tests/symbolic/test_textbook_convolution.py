"""Rows of the textbook's table of operations as formulas of symbols: convolution and correlation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import sympy
from textbook_rows import convolved, inputs, plain, read, same, symbols, table, total, written

import convgen as cg
from convgen.layers import (
    convolution,
    local,
)
from convgen.symbolic.derive import adjoint
from convgen.symbolic.matrix import matrix
from convgen.symbolic.parse import parse


def test_true_convolution_in_one_dimension():
    program = convolution.TrueConv1d(1, 1, 3, padding="full", bias=False).program((1, 1, 5))
    x, w = inputs(program).values()
    wanted = table(
        (1, 1, 7), lambda n, k, t: total([5], lambda i: x[0, 0, i] * read(w[0, 0], t - i))
    )
    assert same(written(program), wanted)
    turned = table(
        (1, 1, 7), lambda n, k, t: total([3], lambda i: w[0, 0, i] * read(x[0, 0], t - i))
    )
    assert same(wanted, turned)  # it commutes
    wrong = table(
        (1, 1, 7), lambda n, k, t: total([5], lambda i: x[0, 0, i] * read(w[0, 0], i - t))
    )
    assert not same(written(program), wrong)


def test_true_convolution_in_two_dimensions():
    program = convolution.TrueConv2d(1, 1, 2, padding="full", bias=False).program((1, 1, 3, 3))
    x, w = inputs(program).values()
    wanted = table(
        (1, 1, 4, 4),
        lambda n, k, i, j: total([3, 3], lambda m, q: x[0, 0, m, q] * read(w[0, 0], i - m, j - q)),
    )
    assert same(written(program), wanted)


def test_cross_correlation():
    program = convolution.Conv2d(1, 1, 2, bias=False).program((1, 1, 3, 4))
    x, w = inputs(program).values()
    wanted = table(
        (1, 1, 2, 3),
        lambda n, k, i, j: total([2, 2], lambda m, q: x[0, 0, i + m, j + q] * w[0, 0, m, q]),
    )
    assert same(written(program), wanted)


@pytest.mark.parametrize(
    "layer, shape, stride, dil, pad",
    [
        (convolution.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2), (2, 2, 9), 2, 2, 2),
        (convolution.Conv2d(2, 2, 2, stride=3, padding=1), (1, 2, 5, 4), 3, 1, 1),
        (convolution.Conv3d(1, 2, 2, padding=1, dilation=2), (1, 1, 3, 3, 3), 1, 2, 1),
        (convolution.Conv2d(3, 2, 1), (1, 3, 2, 2), 1, 1, 0),
    ],
    ids=["1-D", "2-D", "3-D", "1x1"],
)
def test_convolution_layer(layer, shape, stride, dil, pad):
    program = layer.program(shape)
    x, w, b = inputs(program).values()
    out = program.output.shape
    assert same(written(program), convolved(x, w, b, out, stride, dil, pad))
    assert not same(written(program), convolved(x, w, b, out, stride, dil, pad + 1))


def test_bias_for_every_position():
    program = local.PositionBias(2, 2, 3).program((1, 2, 2, 3))
    x, b = inputs(program).values()
    assert same(written(program), table((1, 2, 2, 3), lambda n, *at: x[(n, *at)] + b[at]))


def test_gradient_to_the_input():
    """The row's letters: c, k positions, i input map, j example, m output map."""
    layer = parse("H[k, m, j] = sum(c, i: V[k + c, i, j] * W[c, i, m])", V=(6, 2, 3), W=(3, 2, 4))
    w, dh = symbols("W", 3, 2, 4), symbols("dH", 4, 4, 3)
    wanted = table(
        (6, 2, 3),
        lambda c, i, j: total([4, 4], lambda k, m: dh[k, m, j] * read(w[:, i, m], c - k)),
    )
    assert same(written(adjoint(layer, "V")), wanted)


def test_gradient_to_the_weights():
    """The row's letters: c tap, k position, i input map, j output map, n example."""
    layer = parse("H[k, j, n] = sum(c, i: V[k + c, i, n] * W[c, i, j])", V=(6, 2, 3), W=(3, 2, 4))
    v, dh = symbols("V", 6, 2, 3), symbols("dH", 4, 4, 3)
    wanted = table(
        (3, 2, 4), lambda c, i, j: total([4, 3], lambda k, n: dh[k, j, n] * v[k + c, i, n])
    )
    assert same(written(adjoint(layer, "W")), wanted)


def test_gradients_of_a_strided_dilated_padded_layer():
    """By the sum over everything that is multiplied with an element: no residue classes."""
    layer = convolution.Conv2d(2, 2, 2, stride=2, padding=1, dilation=2)
    program = layer.program((1, 2, 5, 4))
    x, w, b = inputs(program).values()
    dy = symbols("dY", *program.output.shape)
    whole = sympy.expand(
        sympy.Add(*(convolved(x, w, b, dy.shape, 2, 2, 1) * dy).flat)
    )  # <dY, Y>: its derivatives are the gradients
    for name, tensor in (("X", x), ("W", w), ("b", b)):
        wanted = table(tensor.shape, lambda *at, t=tensor: sympy.diff(whole, t[at]))
        assert same(written(adjoint(program, name)), wanted), name


def test_grouped_is_block_diagonal():
    program = convolution.Conv1d(4, 6, 1, groups=2, bias=False).program((1, 4, 1))
    found = matrix(program, "X")
    w = symbols("W", 6, 2, 1)
    for k, c in itertools.product(range(6), range(4)):
        wanted = w[k, c % 2, 0] if k // 3 == c // 2 else 0
        assert plain(found.entry(k, c)) == wanted


def test_depthwise_with_a_multiplier():
    program = convolution.Conv1d(3, 6, 3, groups=3).program((1, 3, 5))
    x, w, b = inputs(program).values()
    wanted = table(
        (1, 6, 3),
        lambda n, k, y: b[k] + total([3], lambda r: x[n, k // 2, y + r] * w[k, 0, r]),
    )
    assert same(written(program), wanted)


def test_one_by_n_then_n_by_one_is_the_product_kernel():
    rows = convolution.Conv2d(1, 1, (1, 3), bias=False).program((1, 1, 3, 3))
    columns = convolution.Conv2d(1, 1, (3, 1), bias=False).program((1, 1, 3, 1))
    x, across = inputs(rows).values()
    middle, down = inputs(columns).values()
    put = dict(zip(middle.flat, written(rows).flat, strict=True))
    both = table((1, 1, 1, 1), lambda *at: written(columns)[at].xreplace(put))
    wanted = table(
        (1, 1, 1, 1),
        lambda *_: total(
            [3, 3], lambda r, s: x[0, 0, r, s] * down[0, 0, r, 0] * across[0, 0, 0, s]
        ),
    )
    assert same(both, wanted)
    three, one = (convolution.Conv2d(5, 5, k, bias=False).weight_shape for k in (3, 7))
    assert 3 * np.prod(three) == 27 * 5**2 and np.prod(one) == 49 * 5**2


def test_bottleneck_is_its_three_layers():
    shape, layers = (1, 4, 2, 2), [(4, 1, 1, 0), (1, 1, 3, 1), (1, 4, 1, 0)]
    programs, at = [], shape
    for c, k, size, pad in layers:
        programs.append(convolution.Conv2d(c, k, size, padding=pad, bias=False).program(at))
        at = programs[-1].output.shape
    net = cg.nn.Sequential(
        *(cg.nn.Conv2d(c, k, size, padding=pad, bias=False) for c, k, size, pad in layers)
    )
    model = cg.compile(net, input=shape)
    assert list(model.formulas()) == ["0", "1", "2"]
    value = symbols("X", *shape)
    for program in programs:
        x = inputs(program)["X"]
        put = dict(zip(x.flat, value.flat, strict=True))
        found = written(program)
        value = table(found.shape, lambda *i, f=found, p=put: f[i].xreplace(p))
    weights = symbols("W", 1, 1, 3, 3)
    assert weights[0, 0, 1, 1] in value[0, 0, 0, 0].free_symbols
    assert sympy.Poly(value[0, 0, 0, 0], *symbols("X", *shape).flat).total_degree() == 1


def test_dilated_has_zeros_between_the_taps():
    for d in (1, 2, 3):
        thin = convolution.Conv1d(1, 1, 3, dilation=d, padding=1, bias=False).program((1, 1, 8))
        wide = convolution.Conv1d(1, 1, 2 * d + 1, padding=1, bias=False).program((1, 1, 8))
        w, stuffed = symbols("W", 1, 1, 3), symbols("W", 1, 1, 2 * d + 1)
        put = {s: w[0, 0, i // d] if i % d == 0 else 0 for i, s in enumerate(stuffed.flat)}
        wanted = table(
            wide.output.shape, lambda *at, x=wide, p=put: written(x)[at].subs(p, simultaneous=True)
        )
        assert same(written(thin), wanted)


@pytest.mark.parametrize(
    "stride, pad, extra, dil", [(2, 1, 0, 1), (3, 1, 2, 1), (2, 0, 1, 2), (1, 2, 0, 2)]
)
def test_transposed_is_the_transposed_matrix(stride, pad, extra, dil):
    """X' = mat(A^T vec(S)) for the A of the forward convolution, and zeros between the inputs."""
    options = {"stride": stride, "padding": pad, "dilation": dil, "bias": False}
    back = convolution.ConvTranspose1d(1, 1, 3, output_padding=extra, **options).program((1, 1, 4))
    size = back.output.shape[2]
    assert size == stride * (4 - 1) + dil * (3 - 1) + 1 - 2 * pad + extra
    ahead = convolution.Conv1d(1, 1, 3, **options).program((1, 1, size))
    assert ahead.output.shape == (1, 1, 4)
    a, s = matrix(ahead, "X"), symbols("X", 1, 1, 4)
    entry = [[plain(a.entry(i, j)) for j in range(size)] for i in range(4)]
    wanted = table((1, 1, size), lambda n, k, j: total([4], lambda i: entry[i][j] * s[0, 0, i]))
    assert same(written(back), wanted)
    w = symbols("W", 1, 1, 3)
    stuffed = [s[0, 0, i // stride] if i % stride == 0 else 0 for i in range(stride * 3 + 1)]
    ordinary = table(
        (1, 1, size),
        lambda n, k, h: total(
            [3], lambda r: w[0, 0, r] * read(np.array(stuffed, object), h + pad - dil * r)
        ),
    )
    assert same(written(back), ordinary)


@pytest.mark.parametrize("period", [1, 2, 3])
def test_tiled(period):
    layer = local.TiledConv2d(1, 2, 2, period, bias=False)
    program = layer.program((1, 1, 4, 4))
    x, w = inputs(program).values()
    wanted = table(
        program.output.shape,
        lambda n, k, y, z: total(
            [1, 2, 2],
            lambda c, r, s: x[n, c, y + r, z + s] * w[y % period, z % period, k, c, r, s],
        ),
    )
    assert same(written(program), wanted)


def test_locally_connected():
    program = local.LocallyConnected2d(2, 1, 2, bias=False).program((1, 2, 3, 3))
    x, w = inputs(program).values()
    wanted = table(
        program.output.shape,
        lambda n, k, y, z: total(
            [2, 2, 2], lambda c, r, s: x[n, c, y + r, z + s] * w[y, z, k, c, r, s]
        ),
    )
    assert same(written(program), wanted)
