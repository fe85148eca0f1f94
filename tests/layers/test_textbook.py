"""The worked numbers of the textbook, exactly, by definition and by the compiled kernel."""

from fractions import Fraction

import numpy as np
import torch

import convgen as cg
from convgen.runtime.kernel import compile
from convgen.runtime.network import Network
from convgen.symbolic.evaluate import evaluate

torch.set_num_threads(1)
nn = cg.nn

PLANES = [
    [[2, 1, 0, 0], [0, 0, 2, 1], [0, 2, 0, 1], [2, 1, 0, 1]],
    [[2, 2, 0, 0], [0, 0, 2, 1], [0, 0, 2, 0], [0, 1, 0, 1]],
    [[2, 1, 0, 0], [0, 0, 2, 1], [2, 0, 0, 0], [0, 1, 0, 1]],
]
KERNELS = [
    [[1, 0, 0], [0, -2, 0], [0, 0, -1]],
    [[1, 2, 0], [2, 0, -1], [0, -1, 1]],
    [[0, 0, -2], [0, 1, 2], [-2, 2, 0]],
]


def both(layer, shape, **inputs):
    """The output by definition (exact) and by native code, which must agree, as nested lists."""
    program = layer.program(shape)
    exact = evaluate(program, inputs)[program.output.name]
    arrays = [np.array(inputs[t.name], np.float32) for t in program.inputs]
    got = compile(program, threads=1)(*arrays)
    assert [float(v) for v in exact.data] == got.ravel().tolist()
    return exact


def rows(array):
    """The last two dimensions of the only map."""
    width = array.shape[-1]
    return [array.data[i : i + width] for i in range(0, len(array.data), width)]


def test_true_convolution_same_size():
    layer = nn.TrueConv2d(1, 1, 3, padding=((2, 0), (2, 0)), bias=False)
    image, kernel = [[0, 1, 3], [1, 2, 2], [0, 0, 0]], [[0, 1, 2], [2, 2, 0], [0, 1, 2]]
    got = both(layer, (1, 1, 3, 3), X=[[image]], W=[[kernel]])
    assert rows(got) == [[0, 0, 1], [0, 3, 12], [2, 6, 9]]


def test_cross_correlation_valid():
    image = [[3, 3, 2, 1, 0], [0, 0, 1, 3, 1], [3, 1, 2, 2, 3], [2, 0, 0, 2, 2], [2, 0, 0, 0, 1]]
    kernel = [[0, 1, 2], [2, 2, 0], [0, 1, 2]]
    got = both(nn.Conv2d(1, 1, 3, bias=False), (1, 1, 5, 5), X=[[image]], W=[[kernel]])
    assert rows(got) == [[12, 12, 17], [10, 17, 19], [9, 6, 14]]


def test_true_convolution_valid():
    image, kernel = [[0, 80, 40], [20, 40, 0], [0, 0, 40]], [[0, 0.25], [0.5, 1]]
    got = both(nn.TrueConv2d(1, 1, 2, bias=False), (1, 1, 3, 3), X=[[image]], W=[[kernel]])
    assert rows(got) == [[45, 110], [40, 40]]


def test_three_channels_bias_relu_and_pools():
    conv = nn.Conv2d(3, 1, 3, padding=1)
    y = both(conv, (1, 3, 4, 4), X=[PLANES], W=[KERNELS], b=[2])
    y = both(nn.ReLU(), (1, 1, 4, 4), X=[[rows(y)]])
    assert rows(y) == [[0, 5, 8, 0], [6, 10, 1, 5], [4, 0, 2, 11], [0, 1, 11, 3]]
    assert rows(both(nn.MaxPool2d(2), (1, 1, 4, 4), X=[[rows(y)]])) == [[10, 8], [4, 11]]
    average = rows(both(nn.AvgPool2d(2), (1, 1, 4, 4), X=[[rows(y)]]))
    assert average == [[Fraction(21, 4), Fraction(7, 2)], [Fraction(5, 4), Fraction(27, 4)]]


def test_filters():
    edges = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]
    ramp = [[i * j for j in range(5)] for i in range(5)]
    conv = nn.Conv2d(1, 1, 3, bias=False)
    assert rows(both(conv, (1, 1, 5, 5), X=[[ramp]], W=[[edges]])) == [[0] * 3] * 3
    line = nn.Conv1d(1, 1, 2, bias=False)
    assert both(line, (1, 1, 4), X=[[[1, 4, 9, 16]]], W=[[[1, -1]]]).data == [-3, -5, -7]


def test_a_network_as_a_sliding_window_is_its_dense_evaluation():
    """OverFeat: the fully connected layers as convolutions, applied to a larger image."""
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(4, 6, (3, 4)), nn.Tanh(),
              nn.Conv2d(6, 3, 1)]  # fmt: skip
    dense = Network(nn.Sequential(*layers), [(1, 2, 8, 9)], dtype="f64")
    window = Network(nn.Sequential(*layers[:3], nn.Flatten(), nn.Linear(4 * 3 * 4, 6), nn.Tanh(),
                                   nn.Linear(6, 3)), [(1, 2, 6, 7)], dtype="f64")  # fmt: skip
    state = dense.state_dict()
    window.load_state_dict({
        "0.weight": state["0.weight"], "0.bias": state["0.bias"],
        "4.weight": state["3.weight"].reshape(6, -1), "4.bias": state["3.bias"],
        "6.weight": state["5.weight"].reshape(3, 6), "6.bias": state["5.bias"],
    })  # fmt: skip
    x = np.random.default_rng(0).standard_normal((1, 2, 8, 9))
    whole = dense.predict(x)
    assert whole.shape == (1, 3, 3, 3)
    for i in range(3):
        for j in range(3):
            part = window.predict(np.ascontiguousarray(x[:, :, i : i + 6, j : j + 7]))
            assert np.abs(part[0] - whole[0, :, i, j]).max() < 1e-12
