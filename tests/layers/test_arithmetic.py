"""Sizes, parameters, operations, receptive fields and memory: the numbers of the textbook."""

import itertools

import pytest
import torch

from convgen.errors import ShapeError
from convgen.layers import LAYERS, arithmetic
from convgen.layers.arithmetic import Memory, Reach

C = LAYERS["Conv2d"]


def test_output_sizes_are_torchs():
    for i, k, s, d, p in itertools.product(
        (1, 2, 7, 12), (1, 2, 3, 5), (1, 2, 3, 9), (1, 2), (0, 1, 4)
    ):
        if i + 2 * p < d * (k - 1) + 1:
            continue
        got = arithmetic.output_size(i, k, s, d, p, p)
        want = torch.nn.Conv1d(1, 1, k, s, p, d)(torch.zeros(1, 1, i)).shape[-1]
        assert got == want
        exact = (i + 2 * p - d * (k - 1) - 1) / s + 1 == got
        assert arithmetic.fits(i, k, s, d, p, p) == exact


def test_transposed_sizes_are_torchs():
    for i, k, s, d, p in itertools.product((1, 4), (2, 3), (1, 2, 3), (1, 2), (0, 1)):
        for extra in range(max(s, d)):
            if arithmetic.transposed_output_size(i, k, s, d, p, extra) < 1:
                continue
            layer = torch.nn.ConvTranspose1d(1, 1, k, s, p, extra, dilation=d)
            want = layer(torch.zeros(1, 1, i)).shape[-1]
            assert arithmetic.transposed_output_size(i, k, s, d, p, extra) == want


def test_padding_schemes():
    for i, k, d in itertools.product((5, 8), (1, 2, 3, 4, 5, 7), (1, 2)):
        assert arithmetic.output_size(i, k, 1, d, *arithmetic.same_padding(k, d)) == i
        full = arithmetic.output_size(i, k, 1, d, *arithmetic.full_padding(k, d))
        assert full == i + d * (k - 1)


def test_parameters_and_operations_of_the_textbook():
    ten = C(3, 10, 5, padding=2)
    assert arithmetic.parameter_count(ten, (1, 3, 32, 32)) == 760
    assert ten.output_shape((1, 3, 32, 32)) == (1, 10, 32, 32)
    edge = C(1, 1, (1, 2), bias=False)
    assert edge.output_shape((1, 1, 280, 320)) == (1, 1, 280, 319)
    assert edge.multiply_adds((1, 1, 280, 320)) == 319 * 280 * 2
    image = (1, 1, 200, 200)
    dense = LAYERS["Linear"](200 * 200, 40_000, bias=False)
    assert arithmetic.parameter_count(dense, (1, 40_000)) == 1_600_000_000
    local = LAYERS["LocallyConnected2d"](1, 1, 10, padding="same", bias=False)
    assert arithmetic.parameter_count(local, image) == 4_000_000
    assert arithmetic.parameter_count(C(1, 100, 10, bias=False), image) == 10_000
    three, seven = C(8, 8, 3, bias=False), C(8, 8, 7, bias=False)
    assert 3 * arithmetic.parameter_count(three, (1, 8, 9, 9)) == 27 * 64
    assert arithmetic.parameter_count(seven, (1, 8, 9, 9)) == 49 * 64


def test_receptive_fields():
    three = C(1, 1, 3)
    assert arithmetic.receptive_field([three] * 2)[0].size == 5
    assert arithmetic.receptive_field([three] * 3)[0].size == 7
    pool = LAYERS["MaxPool2d"](2)
    first, second = arithmetic.receptive_field([C(1, 1, (5, 3), (2, 1), (2, 1)), pool, three])
    assert (first, second) == (Reach(15, 4, -2), Reach(8, 2, -1))
    assert arithmetic.receptive_field([LAYERS["ReLU"]()]) == ()
    assert Reach(3, 1, -1).join(Reach(5, 1, -2)) == Reach(5, 1, -2)
    with pytest.raises(ShapeError, match="different strides"):
        Reach(3, 1).join(Reach(3, 2))
    with pytest.raises(ShapeError, match="after layers over 2 spatial dimensions"):
        arithmetic.receptive_field([three, LAYERS["Conv1d"](1, 1, 3)])


@pytest.mark.parametrize(
    "chain",
    [["Conv1d(1, 1, 3, 2, 1)", "AvgPool1d(2)", "Conv1d(1, 1, 3, dilation=2)"],
     ["Conv1d(1, 1, 2)", "ConvTranspose1d(1, 1, 3, 2)", "Conv1d(1, 1, 2)"],
     ["ConvTranspose1d(1, 1, 4, 3, 1)"]],
)  # fmt: skip
def test_the_receptive_field_holds_what_an_output_depends_on(chain):
    layers = [eval(text, dict(LAYERS)) for text in chain]
    (reach,) = arithmetic.receptive_field(layers)
    net = torch.nn.Sequential(*[eval(text, vars(torch.nn)) for text in chain])
    for p in net.parameters():
        torch.nn.init.ones_(p)
    x = torch.zeros(1, 1, 31, requires_grad=True)
    y = net(x)[0, 0]
    place = len(y) // 2
    touched = torch.autograd.grad(y[place], x)[0][0, 0].nonzero()[:, 0]
    start = reach.start + reach.stride * place
    assert start <= touched.min() + 1e-9 and touched.max() <= start + reach.size + 1e-9


def test_memory():
    layer = LAYERS["BatchNorm2d"](4)
    assert arithmetic.memory(layer, (2, 4, 3, 3)) == Memory(4 * 16, 4 * 72, 4 * 72)
    assert Memory(1, 2, 3).total == 6
