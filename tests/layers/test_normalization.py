"""Normalizations against torch, or against the formula in torch's terms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from layer_check import check, draw, errors_of, run

from convgen.errors import ShapeError
from convgen.layers import contrast, normalization
from convgen.runtime.kernel import compile
from convgen.types import f64


@pytest.mark.parametrize(
    "groups,channels,spots",
    [(1, 4, (3, 5)), (2, 6, (5,)), (3, 3, (2, 3, 1)), (5, 5, (7,)), (2, 8, ())],
)
def test_group_norm(groups, channels, spots):
    layer = normalization.GroupNorm(groups, channels)
    check(
        layer, (2, channels, *spots), lambda t: F.group_norm(t["X"], groups, t["gamma"], t["beta"])
    )


def test_group_norm_without_weights():
    layer = normalization.GroupNorm(2, 4, eps=0.01, affine=False)
    check(layer, (3, 4, 5), lambda t: F.group_norm(t["X"], 2, eps=0.01))


@pytest.mark.parametrize(
    "shape,last", [((3, 7), (7,)), ((2, 3, 5), (3, 5)), ((5,), (5,)), ((1, 3, 1), (3, 1))]
)
def test_layer_norm(shape, last):
    layer = normalization.LayerNorm(last)
    check(layer, shape, lambda t: F.layer_norm(t["X"], last, t["gamma"], t["beta"]))


def test_layer_norm_parts():
    layer = normalization.LayerNorm(5, bias=False)
    check(layer, (3, 5), lambda t: F.layer_norm(t["X"], (5,), t["gamma"]))
    layer = normalization.LayerNorm(5, elementwise_affine=False)
    check(layer, (3, 5), lambda t: F.layer_norm(t["X"], (5,)), dtypes=["f32"])
    text = repr(normalization.LayerNorm((5, 5), 1e-6, bias=False))
    assert repr(eval(text, vars(normalization))) == text


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_instance_norm(rank):
    shape = (2, 3, *(4, 3, 2)[:rank])
    layer = getattr(normalization, f"InstanceNorm{rank}d")(3, affine=True)
    check(
        layer,
        shape,
        lambda t: F.instance_norm(t["X"], weight=t["gamma"], bias=t["beta"]),
        dtypes=["f64"],
    )
    plain = getattr(normalization, f"InstanceNorm{rank}d")(3)
    check(plain, shape, lambda t: F.instance_norm(t["X"]), dtypes=["f32"])


def test_instance_norm_moves_its_statistics_as_torch():
    layer = normalization.InstanceNorm2d(3, momentum=0.3, track_running_stats=True)
    theirs = torch.nn.InstanceNorm2d(3, momentum=0.3, track_running_stats=True).double()
    program = layer.program((2, 3, 4, 5), training=True, dtype=f64)
    start = {"running_mean": np.zeros(3), "running_var": np.ones(3)}
    arrays = draw(program, start, 0)
    got = run(compile(program, threads=1), arrays)
    want = theirs(torch.tensor(arrays["X"]))
    np.testing.assert_allclose(got["Y"], want.numpy(), atol=1e-12)
    for name in start:
        np.testing.assert_allclose(arrays[name], getattr(theirs, name).numpy(), atol=1e-12)
    theirs.eval()
    check(
        layer, (2, 3, 4, 5), lambda t: theirs(t["X"]), given=arrays, training=False, dtypes=["f64"]
    )


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_local_response_norm(size):
    layer = contrast.LocalResponseNorm(size, alpha=0.5, beta=0.7, k=1.5)
    check(layer, (2, 7, 3), lambda t: F.local_response_norm(t["X"], size, 0.5, 0.7, 1.5))
    check(contrast.LocalResponseNorm(5), (1, 3, 2, 5), lambda t: F.local_response_norm(t["X"], 5),
          dtypes=["f64"])  # fmt: skip


def contrast_norm(x, window, c):
    channels = x.shape[1]
    w = torch.tensor([[float(v) for v in row] for row in window], dtype=torch.float64) / channels
    kernel, half = w.expand(1, channels, *w.shape), len(w) // 2
    v = x - F.conv2d(x, kernel, padding=half)
    sigma = F.conv2d(v**2, kernel, padding=half).sqrt()
    level = (
        sigma.mean((1, 2, 3), keepdim=True) if c is None else torch.tensor(c, dtype=torch.float64)
    )
    return v / torch.maximum(level, sigma)


@pytest.mark.parametrize("c", [None, 0.8, 0.1])
@pytest.mark.parametrize("shape,size", [((2, 3, 7, 5), 3), ((1, 1, 4, 9), 7)])
def test_local_contrast_norm(c, shape, size):
    layer = contrast.LocalContrastNorm(size, c=c)
    window = contrast.gaussian(size, size / 4)
    check(layer, shape, lambda t: contrast_norm(t["X"], window, c))


def test_local_contrast_norm_of_nothing_is_nothing():
    layer = contrast.LocalContrastNorm(3, c=0.5)
    program = layer.program((1, 1, 4, 4))
    assert not run(compile(program, threads=1), {"X": np.zeros((1, 1, 4, 4), np.float32)})[
        "Y"
    ].any()


def test_another_window_is_noticed():
    errors = errors_of(
        contrast.LocalContrastNorm(3, c=0.1), [(1, 1, 5, 5)],
        lambda t: contrast_norm(t["X"], contrast.gaussian(3, 0.76), 0.1), {}, None, True, "f64", 0,
    )  # fmt: skip
    assert min(errors.values()) > 1e-4


def test_refusals():
    with pytest.raises(ShapeError, match="num_groups=2 does not divide"):
        normalization.GroupNorm(2, 3)
    with pytest.raises(ShapeError, match=r"LayerNorm.*\(\*, 3, 5\)"):
        normalization.LayerNorm((3, 5)).output_shape((2, 5, 3))
    with pytest.raises(ShapeError, match=r"InstanceNorm2d.*\(N, 3, 2 spatial extents\)"):
        normalization.InstanceNorm2d(3).output_shape((2, 3, 4))
    with pytest.raises(ShapeError, match="one value per map"):
        normalization.InstanceNorm1d(3).program((2, 3, 1), training=True)
    with pytest.raises(ShapeError, match="kernel_size=4.*odd"):
        contrast.LocalContrastNorm(4)
    with pytest.raises(ShapeError, match=r"LocalResponseNorm.*\(N, C, ...\)"):
        contrast.LocalResponseNorm(5).output_shape((2, 3))
