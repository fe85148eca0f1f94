"""Programs made small keep what they say."""

from __future__ import annotations

import pytest

from convgen.layers.convolution import Conv2d
from convgen.layers.normalization import GroupNorm
from convgen.symbolic.derive import grad
from convgen.symbolic.parse import parse
from convgen.symbolic.resize import Family


def shapes(program):
    return [t.shape for t in program.inputs]


def test_strides_paddings_and_groups_stay():
    layer = Conv2d(64, 128, 3, stride=2, padding=1, groups=4).program((8, 64, 56, 56))
    small = Family(layer).smaller()
    assert shapes(small) == [(2, 24, 8, 10), (12, 6, 3, 3), (12,)]
    assert "2*y + r - 1" in str(small) and "6*g + c" in str(small) and "3*g + k" in str(small)


def test_a_layer_built_small_is_the_small_layer():
    big = Conv2d(16, 32, 3, stride=3, padding=2, dilation=2).program((8, 16, 40, 50))
    family = Family(big)
    small = family.member([2, 5, 3, 4, 4, 3, 3])
    n, c, h, w = small.inputs[0].shape
    assert str(small) == str(Conv2d(c, 5, 3, stride=3, padding=2, dilation=2).program((n, c, h, w)))


def test_what_a_stride_skips_is_left_over_as_before():
    layer = parse("Y[y] = sum(r: X[3*y + r] * W[r]) for y < 9", X=(29,), W=(2,))
    assert shapes(Family(layer).member([4, 2])) == [(14,), (2,)]


def test_means_stay_means():
    layer = GroupNorm(4, 32).program((8, 32, 14, 14))
    small = Family(layer).smaller()
    n, c, h, w = small.inputs[0].shape
    assert f"/ {c // 4 * h * w}" in str(small)
    assert Family(small).free and small.check()


def test_no_member_where_extents_would_not_be_whole():
    layer = parse("Y[y] = sum(r: X[y + r] * W[r])", X=(9,), W=(3,))
    assert Family(layer).member([0, 3]) is None


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
def test_gradients_of_small_members_have_the_pieces_of_the_large(mode):
    layer = Conv2d(8, 8, 3, stride=2, padding=2, dilation=2, padding_mode=mode)
    big = layer.program((4, 8, 40, 44))
    small = Family(big).smaller(least=3)
    counts = [[len(s.pieces) for s in grad(p).stages] for p in (big, small)]
    assert counts[0] == counts[1]
