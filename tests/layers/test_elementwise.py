"""Activations against torch, forward and backward, in native code."""

import numpy as np
import pytest
import torch
from layer_check import check, errors_of

from convgen.errors import ShapeError
from convgen.layers import activation, elementwise

# Around every seam of the functions below, and far out on both sides.
SPECIAL = [
    -50.0,
    -3.5,
    -3.0,
    -1.0,
    -0.5,
    -0.25,
    0.0,
    0.25,
    0.5,
    1.0,
    3.0,
    4.5,
    6.0,
    6.5,
    25.0,
    50.0,
]
PAIRS = {
    "Identity": {},
    "GELU": {},
    "SiLU": {},
    "Mish": {},
    "LeakyReLU": {"negative_slope": 0.2},
    "ELU": {"alpha": 0.7},
    "CELU": {"alpha": 2.0},
    "SELU": {},
    "Softplus": {"beta": 1.5},
    "LogSigmoid": {},
    "Softsign": {},
    "Tanhshrink": {},
    "Hardtanh": {"min_val": -0.5, "max_val": 2.0},
    "ReLU6": {},
    "Hardsigmoid": {},
    "Hardswish": {},
    "Softshrink": {},
    "Hardshrink": {"lambd": 0.25},
    "Threshold": {"threshold": 0.1, "value": 20.0},
}


def values(dtype=np.float64):
    drawn = np.random.default_rng(1).standard_normal(15) * 3
    return np.concatenate([SPECIAL, drawn]).astype(dtype).reshape(1, 31)


@pytest.mark.parametrize("name", PAIRS)
def test_activation_is_torchs(name):
    layer, theirs = (
        getattr(elementwise, name)(**PAIRS[name]),
        getattr(torch.nn, name)(**PAIRS[name]),
    )
    # torch takes 1/6 in float32 in the gradient of Hardsigmoid
    dtypes = ["f32"] if name == "Hardsigmoid" else ["f64", "f32"]
    check(layer, (1, 31), lambda t: theirs(t["X"]), given={"X": values()}, dtypes=dtypes)


def test_gelu_with_tanh_abs_and_learned_numbers():
    theirs = torch.nn.GELU(approximate="tanh")
    check(elementwise.GELU("tanh"), (1, 31), lambda t: theirs(t["X"]), given={"X": values()})
    check(elementwise.Abs(), (1, 31), lambda t: t["X"].abs(), given={"X": values()})
    for count, shape in ((1, (3, 5, 2)), (5, (3, 5, 2)), (3, (2, 3))):
        layer = elementwise.PReLU(count)
        check(layer, shape, lambda t: torch.nn.functional.prelu(t["X"], t["g"]))
        layer = elementwise.ScaledTanh(count)
        check(layer, shape, lambda t: t["X"].tanh() * t["g"].view(-1, *(1,) * (t["X"].ndim - 2)))


@pytest.mark.parametrize("shape,dim", [((3, 7), -1), ((3, 7), 0), ((2, 5, 3, 1), 1), ((1, 1), 1)])
def test_log_softmax(shape, dim):
    check(activation.LogSoftmax(dim), shape, lambda t: torch.log_softmax(t["X"], dim))


@pytest.mark.parametrize("shape", [(0, 3), (1,), (1, 1), (2, 3, 5, 7)])
def test_any_shape(shape):
    check(elementwise.SiLU(), shape, lambda t: torch.nn.functional.silu(t["X"]), dtypes=["f32"])


def test_another_slope_is_noticed():
    errors = errors_of(
        elementwise.LeakyReLU(0.01), [(1, 31)],
        lambda t: torch.nn.functional.leaky_relu(t["X"], 0.011), {"X": values()},
        None, True, "f64", 0,
    )  # fmt: skip
    assert errors["dX"] > 1e-5


def test_refusals():
    with pytest.raises(ShapeError, match="'none' or 'tanh'"):
        elementwise.GELU("fast")
    with pytest.raises(ShapeError, match=r"Hardtanh\(1, 1\).*min < max"):
        elementwise.Hardtanh(1, 1)
    with pytest.raises(ShapeError, match=r"PReLU\(.*4\): input channels.*\(N, 4, ...\)"):
        elementwise.PReLU(4).output_shape((2, 3, 5))
    with pytest.raises(ShapeError, match="LogSoftmax.*dimension"):
        activation.LogSoftmax(2).output_shape((2, 3))
