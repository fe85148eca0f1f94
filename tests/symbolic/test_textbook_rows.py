"""Every row of the textbook's table of operations, as formulas of symbols.

The program's elements (each an expression of the inputs' elements) against the row's formula,
written here once more as plain loops over arrays of symbols: nothing is shared but sympy. What
chooses (maximum, unpooling) is compared at every order its inputs can have.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import sympy
from sympy import Max, Rational, Symbol, exp, log, sqrt, tanh

import convgen as cg
from convgen.inspect import seeing
from convgen.layers import (
    activation,
    contrast,
    convolution,
    dense,
    elementwise,
    local,
    loss,
    normalization,
    padding,
    pooling,
    unpooling,
    update,
    video,
)
from convgen.symbolic import functions
from convgen.symbolic.derive import adjoint, grad
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.expr import Access
from convgen.symbolic.matrix import elements, matrix
from convgen.symbolic.parse import parse


def symbols(name, *shape):
    """An array of symbols name[0, 0], ..."""
    found = np.empty(shape, dtype=object)
    for at in np.ndindex(*shape):
        found[at] = Symbol(f"{name}[{', '.join(map(str, at))}]", real=True)
    return found


def plain(body):
    """Accesses as symbols, own functions as sympy's."""
    rules = {
        functions.relu: lambda x: Max(0, x),
        functions.abs_: sympy.Abs,
        functions.maximum: Max,
        functions.minimum: sympy.Min,
        functions.sigmoid: lambda x: 1 / (1 + exp(-x)),
        functions.step: lambda x: sympy.Piecewise((1, x > 0), (0, True)),
    }
    body = body.xreplace(
        {
            a: Symbol(f"{a.tensor.name}[{', '.join(str(i.constant) for i in a.index)}]", real=True)
            for a in body.atoms(Access)
        }
    )
    for old, new in rules.items():
        body = body.replace(old, new)
    return body


def written(program, name=None):
    """The elements of an output, as an array of expressions."""
    tensor = next(t for s in program.stages for t in s.tensors if name in (None, t.name))
    tensor = program.output if name is None else tensor
    found = np.empty(tensor.shape, dtype=object)
    found.flat = [plain(e) for e in elements(program)[tensor.name]]
    return found


def inputs(program):
    """Symbols for every input, by name."""
    return {t.name: symbols(t.name, *t.shape) for t in program.inputs}


def same(mine, theirs):
    """True when all elements are the same expression."""
    assert mine.shape == theirs.shape
    for a, b in zip(mine.flat, theirs.flat, strict=True):
        difference = sympy.expand(a - b)
        if difference != 0 and sympy.simplify(difference) != 0:
            return False
    return True


def read(x, *at):
    """Zeros outside."""
    inside = all(0 <= i < e for i, e in zip(at, x.shape, strict=True))
    return x[at] if inside else sympy.Integer(0)


def table(shape, formula):
    """The array of formula(*index)."""
    found = np.empty(shape, dtype=object)
    for at in np.ndindex(*shape):
        found[at] = sympy.sympify(formula(*at))
    return found


def total(spans, term):
    """The sum of term(*point) over a box."""
    return sympy.Add(*(term(*point) for point in itertools.product(*map(range, spans))))


# ---------------------------------------------------------------------------------------------
# Convolution and correlation


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


def convolved(x, w, b, out, stride, dil, pad):
    """The row of the convolution layer, in any number of dimensions."""
    maps, taps = w.shape[1], w.shape[2:]

    def element(n, k, *place):
        def term(c, *tap):
            at = [stride * y + dil * r - pad for y, r in zip(place, tap, strict=True)]
            return read(x[n, c], *at) * w[(k, c, *tap)]

        return b[k] + total([maps, *taps], term)

    return table(out, element)


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


# ---------------------------------------------------------------------------------------------
# Looking inside, and learning


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
