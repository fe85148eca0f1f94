"""Padding layers against torch, forward and backward."""

import pytest
import torch
from layer_check import check, errors_of

from convgen.errors import ShapeError
from convgen.layers import padding

KINDS = ["ZeroPad", "ReflectionPad", "ReplicationPad", "CircularPad"]
SIZES = {1: (2, 3, 5), 2: (2, 3, 5, 4), 3: (1, 2, 3, 4, 3)}
SIDES = {1: (2, 1), 2: (1, 3, 0, 2), 3: (0, 2, 1, 1, 2, 0)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_pad_is_torchs(kind, rank):
    name = f"{kind}{rank}d"
    layer, theirs = getattr(padding, name)(SIDES[rank]), getattr(torch.nn, name)(SIDES[rank])
    check(layer, SIZES[rank], lambda t: theirs(t["X"]), dtypes=["f64"])


@pytest.mark.parametrize("kind", KINDS)
def test_widest_padding_on_both_sides_of_small_maps(kind):
    name = f"{kind}2d"
    sides = (2, 2, 2, 2) if kind == "ReflectionPad" else (3, 3, 3, 3)
    layer, theirs = getattr(padding, name)(sides), getattr(torch.nn, name)(sides)
    check(layer, (1, 1, 3, 3), lambda t: theirs(t["X"]), dtypes=["f32"])


def test_constant_and_cutting_off():
    theirs = torch.nn.ConstantPad2d((1, -2, -1, 2), 2.5)
    layer = padding.ConstantPad2d((1, -2, -1, 2), 2.5)
    check(layer, (2, 2, 5, 4), lambda t: theirs(t["X"]))
    check(padding.ZeroPad1d((-1, 2)), (1, 1, 4), lambda t: torch.nn.functional.pad(t["X"], (-1, 2)))


def mean_pad(t, left, right, top, bottom):
    mean = t.mean((2, 3), keepdim=True)
    ones = torch.nn.functional.pad(torch.ones_like(t), (left, right, top, bottom))
    return torch.nn.functional.pad(t, (left, right, top, bottom)) + (1 - ones) * mean


def test_mean_of_the_map():
    layer = padding.MeanPad2d((1, 2, 0, 3))
    check(layer, (2, 3, 5, 4), lambda t: mean_pad(t["X"], 1, 2, 0, 3))
    check(padding.MeanPad2d(1), (1, 1, 1, 1), lambda t: mean_pad(t["X"], 1, 1, 1, 1))


def test_empty_batch_and_single_elements():
    def theirs(t):
        x = t["X"]
        return torch.nn.ReplicationPad2d(2)(x) if len(x) else x.sum() + x.new_zeros(0, 2, 7, 7)

    for shape in ((0, 2, 3, 3), (1, 2, 1, 1)):
        check(padding.ReplicationPad2d(2), shape, theirs, dtypes=["f32"])


def test_another_mode_is_noticed():
    errors = errors_of(
        padding.ReflectionPad2d(1), [(1, 1, 4, 4)],
        lambda t: torch.nn.ReplicationPad2d(1)(t["X"]), {}, None, True, "f64", 0,
    )  # fmt: skip
    assert min(errors.values()) > 1e-3


def test_refusals():
    with pytest.raises(ShapeError, match=r"ZeroPad2d padding=\(1, 2\).*4 integers"):
        padding.ZeroPad2d((1, 2))
    with pytest.raises(ShapeError, match="reflect padding of an extent of 3.*at most 2"):
        padding.ReflectionPad1d(3).output_shape((1, 1, 3))
    with pytest.raises(ShapeError, match="circular padding of an extent of 3.*at most 3"):
        padding.CircularPad1d(4).output_shape((1, 1, 3))
    with pytest.raises(ShapeError, match="nothing is left"):
        padding.ZeroPad1d(-2).output_shape((1, 1, 4))
    with pytest.raises(ShapeError, match="input of rank 3"):
        padding.ZeroPad2d(1).output_shape((1, 1, 4))
