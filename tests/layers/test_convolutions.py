"""Kinds of convolution against torch, or against the formula in torch's terms."""

import pytest
import torch
import torch.nn.functional as F
from layer_check import check, errors_of

from convgen.errors import ShapeError
from convgen.layers import convolution, local, video
from convgen.layers.dense import Linear
from convgen.symbolic.evaluate import evaluate

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_true_convolution_is_correlation_with_the_flipped_kernel(rank):
    layer = getattr(convolution, f"TrueConv{rank}d")(2, 3, 3, padding="full")
    shape = {1: (2, 2, 5), 2: (2, 2, 5, 4), 3: (1, 2, 3, 4, 3)}[rank]
    dims = tuple(range(2, rank + 2))
    check(layer, shape, lambda t: CONV[rank](t["X"], t["W"].flip(dims), t["b"], padding=2))


def test_true_convolution_with_everything():
    layer = convolution.TrueConv2d(4, 6, (3, 2), (2, 1), ((1, 0), (2, 1)), (1, 2), groups=2)
    check(layer, (2, 4, 7, 5), lambda t: F.conv2d(
        F.pad(t["X"], (2, 1, 1, 0)), t["W"].flip((2, 3)), t["b"], (2, 1), 0, (1, 2), 2))  # fmt: skip


def values(program, **inputs):
    return [int(v) for v in evaluate(program, inputs)["Y"].data]


def test_worked_numbers():
    image, kernel = [[0, 1, 3], [1, 2, 2], [0, 0, 0]], [[0, 1, 2], [2, 2, 0], [0, 1, 2]]
    layer = convolution.TrueConv2d(1, 1, 3, padding=((2, 0), (2, 0)), bias=False)
    program = layer.program((1, 1, 3, 3))
    assert values(program, X=[[image]], W=[[kernel]]) == [0, 0, 1, 0, 3, 12, 2, 6, 9]
    image = [[0, 80, 40], [20, 40, 0], [0, 0, 40]]
    program = convolution.TrueConv2d(1, 1, 2, bias=False).program((1, 1, 3, 3))
    assert values(program, X=[[image]], W=[[[[0, 0.25], [0.5, 1]]]]) == [45, 110, 40, 40]


def test_true_convolution_commutes():
    layer = convolution.TrueConv1d(1, 1, 4, padding="full", bias=False)
    swapped = convolution.TrueConv1d(1, 1, 3, padding="full", bias=False)
    a, b = [[[1, 2, 5]]], [[[3, -1, 0, 7]]]
    one = values(layer.program((1, 1, 3)), X=a, W=b)
    assert one == values(swapped.program((1, 1, 4)), X=b, W=a) == [3, 5, 13, 2, 14, 35]


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_asymmetric_padding_of_every_kind(mode):
    layer = convolution.Conv2d(2, 3, 3, 2, padding=((1, 2), (0, 1)), padding_mode=mode)
    how = "constant" if mode == "zeros" else mode
    check(layer, (2, 2, 4, 5), lambda t: F.conv2d(
        F.pad(t["X"], (0, 1, 1, 2), mode=how), t["W"], t["b"], 2), dtypes=["f64"])  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2])
def test_padding_with_the_mean_and_with_a_constant(groups):
    def mean(t):
        ones = F.pad(torch.ones_like(t["X"]), (1, 1, 1, 1))
        filled = F.pad(t["X"], (1, 1, 1, 1)) + (1 - ones) * t["X"].mean((2, 3), keepdim=True)
        return F.conv2d(filled, t["W"], t["b"], groups=groups)

    layer = convolution.Conv2d(2, 4, 3, padding=1, groups=groups, padding_mode="mean")
    check(layer, (2, 2, 4, 5), mean)
    layer = convolution.Conv2d(2, 4, 3, padding=1, groups=groups, padding_mode=-0.5)
    check(layer, (2, 2, 4, 5), lambda t: F.conv2d(
        F.pad(t["X"], (1, 1, 1, 1), value=-0.5), t["W"], t["b"], groups=groups))  # fmt: skip


@pytest.mark.parametrize("groups,multiplier", [(3, 1), (3, 2), (1, 4)])
def test_channel_multipliers(groups, multiplier):
    layer = convolution.Conv2d(groups, groups * multiplier, 3, padding="same", groups=groups)
    check(layer, (2, groups, 5, 3), lambda t: F.conv2d(
        t["X"], t["W"], t["b"], padding=1, groups=groups))  # fmt: skip


def local_oracle(t, stride, padding, period=None):
    """Every position by itself."""
    x = F.pad(t["X"], (padding, padding, padding, padding))
    ty, tx, k, c, r, s = t["W"].shape
    rows, cols = (x.shape[2] - r) // stride + 1, (x.shape[3] - s) // stride + 1
    lines = []
    for i in range(rows):
        line = []
        for j in range(cols):
            window = x[:, :, stride * i : stride * i + r, stride * j : stride * j + s]
            weight = t["W"][i % ty, j % tx].reshape(k, -1)
            bias = t["b"][:, i % ty, j % tx]
            line.append(window.reshape(len(x), -1) @ weight.T + bias)
        lines.append(torch.stack(line, -1))
    return torch.stack(lines, -2)


@pytest.mark.parametrize("stride,padding", [(1, 0), (2, 1)])
def test_locally_connected(stride, padding):
    layer = local.LocallyConnected2d(2, 3, (3, 2), stride, padding)
    check(layer, (2, 2, 5, 4), lambda t: local_oracle(t, stride, padding))


@pytest.mark.parametrize("period,stride", [((2, 3), 1), ((1, 2), 2), ((7, 1), 1)])
def test_tiled(period, stride):
    layer = local.TiledConv2d(2, 3, 2, period, stride, 1)
    check(layer, (2, 2, 5, 4), lambda t: local_oracle(t, stride, 1))


def test_tiled_with_period_one_is_convolution_and_with_the_whole_map_locally_connected():
    one = local.TiledConv1d(2, 3, 3, 1)
    check(one, (2, 2, 7), lambda t: F.conv1d(t["X"], t["W"][0], t["b"][:, 0]))
    whole, free = local.TiledConv2d(1, 2, 3, (3, 2)), local.LocallyConnected2d(1, 2, 3)
    assert str(whole.program((1, 1, 5, 4))) == str(free.program((1, 1, 5, 4)))


def test_position_bias():
    check(local.PositionBias(1, 3, 5), (2, 1, 3, 5), lambda t: t["X"] + t["b"])
    check(local.PositionBias(4), (1, 4), lambda t: t["X"] + t["b"], dtypes=["f32"])


def test_space_time():
    layer = video.SpaceTimeConv3d(2, 3, 3, 3, 4, stride=(2, 1, 2), padding=(1, 1, 0))
    check(layer, (1, 2, 5, 4, 5), lambda t: F.conv3d(
        F.conv3d(t["X"], t["W"], None, (1, 1, 2), (0, 1, 0)), t["V"], t["b"], (2, 1, 1), (1, 0, 0)))  # fmt: skip


def test_full_size_kernel_is_a_linear_layer():
    conv, linear = convolution.Conv2d(2, 3, (4, 5)), Linear(40, 3)
    check(conv, (2, 2, 4, 5), lambda t: F.linear(
        t["X"].flatten(1), t["W"].flatten(1), t["b"])[:, :, None, None])  # fmt: skip
    assert conv.multiply_adds((2, 2, 4, 5)) == linear.multiply_adds((2, 40))


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (1, 2, 3, 3)])
def test_empty_batch_and_one_position(shape):
    def theirs(t):
        return F.conv2d(t["X"], t["W"].flip((2, 3)), t["b"])

    check(convolution.TrueConv2d(2, 3, 3), shape, theirs, dtypes=["f32"])
    check(local.LocallyConnected2d(2, 3, 3), (1, 2, 3, 3), lambda t: local_oracle(t, 1, 0))


def test_another_tap_is_noticed():
    errors = errors_of(
        convolution.TrueConv1d(1, 1, 3), [(1, 1, 5)],
        lambda t: F.conv1d(t["X"], t["W"], t["b"]), {}, None, True, "f64", 0,
    )  # fmt: skip
    assert min(errors["Y"], errors["dX"], errors["dW"]) > 1e-3


def test_refusals():
    with pytest.raises(ShapeError, match="padding='half'.*'valid', 'same', 'full'"):
        convolution.Conv2d(1, 1, 3, padding="half")
    with pytest.raises(ShapeError, match="2 pairs"):
        convolution.Conv2d(1, 1, 3, padding=((1, 0), (1, -1)))
    with pytest.raises(ShapeError, match="padding_mode='wrap'.*'mean' or a number"):
        convolution.Conv2d(1, 1, 3, padding_mode="wrap")
    with pytest.raises(ShapeError, match="reflect padding of an extent of 2.*at most 1"):
        convolution.Conv1d(1, 1, 3, padding=2, padding_mode="reflect").program((1, 1, 2))
    with pytest.raises(ShapeError, match="kernel is larger"):
        local.LocallyConnected1d(1, 1, 5).output_shape((1, 1, 4))
    with pytest.raises(ShapeError, match="period"):
        local.TiledConv2d(1, 1, 3, 0)
    with pytest.raises(ShapeError, match=r"PositionBias\(1, 19, 19\).*\(N, 1, 19, 19\)"):
        local.PositionBias(1, 19, 19).output_shape((1, 2, 19, 19))
    with pytest.raises(ShapeError, match=r"\(N, C, T, H, W\)"):
        video.SpaceTimeConv3d(1, 1, 3, 3).output_shape((1, 1, 5, 5))
