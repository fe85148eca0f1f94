"""Layers without a counterpart in torch, against their formulas in torch's terms."""

import pytest
import torch
import torch.nn.functional as F
from layer_check import check, errors_of

from convgen.errors import ShapeError
from convgen.layers import matching


def windows(x, size, stride=1, dilation=1, outside=0.0, padding=0):
    """[n, c, r*s, y, x] of every window."""
    x = F.pad(x, (padding,) * 4, value=outside)
    columns = F.unfold(x, size, dilation=dilation, stride=stride)
    rows = (x.shape[2] - dilation * (size[0] - 1) - 1) // stride + 1
    return columns.reshape(*x.shape[:2], size[0] * size[1], rows, -1)


@pytest.mark.parametrize("groups,stride,padding", [(1, 1, 1), (2, 1, 0), (4, 2, 2)])
def test_involution(groups, stride, padding):
    layer = matching.Involution2d((3, 2), stride, padding, groups=groups)
    places = layer._sizes((2, 4, 5, 4))

    def oracle(t):
        found = windows(t["X"], (3, 2), stride, padding=padding)
        kernels = t["K"].reshape(2, groups, 1, 6, *places)
        return (found.reshape(2, groups, -1, 6, *places) * kernels).sum(3).reshape(2, 4, *places)

    check(layer, [(2, 4, 5, 4), (2, 6 * groups, *places)], oracle)


@pytest.mark.parametrize(
    "reach,step,shape", [(1, 1, (2, 3, 4, 5)), (2, 2, (1, 2, 5, 3)), (0, 1, (1, 1, 1, 1))]
)
def test_correlation(reach, step, shape):
    def oracle(t):
        a, b = t["A"], F.pad(t["B"], (reach * step,) * 4)
        h, w = a.shape[2:]
        span = range(0, 2 * reach * step + 1, step)
        return torch.stack(
            [(a * b[:, :, i : i + h, j : j + w]).mean(1) for i in span for j in span], 1
        )

    check(matching.Correlation(reach, step), [shape, shape], oracle)


@pytest.mark.parametrize("stride,padding,out", [(1, 0, None), (2, 1, 2)])
def test_capsules(stride, padding, out):
    layer = matching.CapsuleConv2d(2, 3, 3, (3, 2), stride, padding, out)

    def oracle(t):
        n, c, p, q, h, w = t["X"].shape
        found = windows(t["X"].reshape(n, -1, h, w), (3, 2), stride, padding=padding)
        found = found.reshape(n, c, p, q, 6, *found.shape[3:])
        weight = t["W"].reshape(*t["W"].shape[:2], 6, *t["W"].shape[4:])
        return torch.einsum("ncadtyx,kctdb->nkabyx", found, weight)

    check(layer, (2, 2, 2, 3, 5, 4), oracle)


CASES = [
    ((2, 3, 5, 4), 3, 2, 1, 1, 0),
    ((1, 4, 7, 5), 2, 6, 2, 2, 1),
    ((2, 3, 4, 4), 3, 3, 3, 1, 1),
]


@pytest.mark.parametrize("shape,size,maps,groups,stride,padding", CASES)
@pytest.mark.parametrize("kind", ["MaxPlusConv2d", "MinPlusConv2d", "AdderConv2d"])
def test_other_semirings(kind, shape, size, maps, groups, stride, padding):
    layer = getattr(matching, kind)(shape[1], maps, size, stride, padding, groups=groups, bias=True)
    outside = {"MaxPlusConv2d": -torch.inf, "MinPlusConv2d": torch.inf, "AdderConv2d": 0.0}[kind]

    def oracle(t):
        parts = []
        for x, w in zip(t["X"].chunk(groups, 1), t["W"].chunk(groups, 0), strict=True):
            found = windows(x, (size, size), stride, 1, outside, padding).unsqueeze(1)
            weight = w.reshape(1, *w.shape[:2], -1, 1, 1)
            if kind == "AdderConv2d":
                parts.append(-(found - weight).abs().sum((2, 3)))
            else:
                both = found + weight if kind == "MaxPlusConv2d" else found - weight
                flat = both.flatten(2, 3)
                parts.append(flat.amax(2) if kind == "MaxPlusConv2d" else flat.amin(2))
        return torch.cat(parts, 1) + t["b"].view(1, -1, 1, 1)

    check(layer, shape, oracle)


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (1, 2, 3, 3)])
def test_empty_batch_and_one_position(shape):
    layer = matching.AdderConv2d(2, 3, 3)
    check(layer, shape, lambda t: -(t["X"][:, None] - t["W"]).abs().sum((2, 3, 4))[..., None, None],
          dtypes=["f32"])  # fmt: skip


def test_another_sign_is_noticed():
    errors = errors_of(
        matching.MaxPlusConv2d(1, 1, 3), [(1, 1, 5, 5)],
        lambda t: (windows(t["X"], (3, 3)) - t["W"].reshape(1, 1, 9, 1, 1)).amax(2),
        {}, None, True, "f64", 0,
    )  # fmt: skip
    assert min(errors.values()) > 1e-3


def test_refusals():
    with pytest.raises(ShapeError, match=r"values and kernels.*\[1, 4, 5, 5\] and \[1, 9, 3, 3\]"):
        matching.Involution2d(3).output_shape((1, 4, 5, 5), (1, 9, 5, 5))
    with pytest.raises(ShapeError, match="groups.*divisor of 4 channels"):
        matching.Involution2d(3, groups=3).output_shape((1, 4, 5, 5), (1, 9, 3, 3))
    with pytest.raises(ShapeError, match="two inputs of shape"):
        matching.Correlation(1).output_shape((1, 4, 5, 5), (1, 4, 5, 4))
    with pytest.raises(ShapeError, match="capsules and columns.*2 and 4"):
        matching.CapsuleConv2d(2, 2, 4, 3).output_shape((1, 2, 4, 3, 5, 5))
    with pytest.raises(ShapeError, match="groups=2 does not divide"):
        matching.AdderConv2d(3, 4, 3, groups=2)
