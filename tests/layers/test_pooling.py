"""Pooling, unpooling and resizing against torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from layer_check import check, errors_of

from convgen.errors import ShapeError
from convgen.layers import pooling, resizing, unpooling
from convgen.symbolic.derive import split

SIZES = {1: (2, 3, 7), 2: (2, 2, 7, 5), 3: (1, 2, 5, 4, 3)}


def both(name, *args, **kwargs):
    return getattr(pooling, name)(*args, **kwargs), getattr(torch.nn, name)(*args, **kwargs)


@pytest.mark.parametrize("kind", ["MaxPool", "AvgPool"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("ceil", [False, True])
def test_pools_with_and_without_ceil(kind, rank, ceil):
    for args in ((3, 2, 1), (2,), (3, 1)):
        ours, theirs = both(f"{kind}{rank}d", *args, ceil_mode=ceil)
        check(ours, SIZES[rank], lambda t, f=theirs: f(t["X"]), dtypes=["f64"])


@pytest.mark.parametrize("args", [(3, 2, 1), (2, 3, 1), (3, 3, 0), ((5, 2), (2, 5), (2, 1))])
@pytest.mark.parametrize("counted", [False, True])
def test_average_in_ceil_mode_counts_as_torch(args, counted):
    ours, theirs = both("AvgPool2d", *args, ceil_mode=True, count_include_pad=counted)
    check(ours, (2, 2, 7, 6), lambda t: theirs(t["X"]), dtypes=["f32"])


@pytest.mark.parametrize("kind", ["AdaptiveAvgPool", "AdaptiveMaxPool"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_adaptive_pools_to_any_size(kind, rank):
    for size in (1, (3, 2, 1)[:rank], (11, 5, 4)[:rank]):
        ours, theirs = both(f"{kind}{rank}d", size)
        check(ours, SIZES[rank], lambda t, f=theirs: f(t["X"]), dtypes=["f64"])


@pytest.mark.parametrize(
    "rank,args", [(1, (3, 2, 1)), (2, (2,)), (2, ((3, 2), 2, 1, (1, 2))), (3, (2, 1))]
)
def test_max_pool_with_positions(rank, args):
    ours, theirs = both(f"MaxPool{rank}d", *args, return_indices=True)
    check(ours, SIZES[rank], lambda t: theirs(t["X"]))


def test_adaptive_max_pool_with_positions():
    ours, theirs = both("AdaptiveMaxPool2d", (3, 4), return_indices=True)
    check(ours, (2, 3, 7, 5), lambda t: theirs(t["X"]))


@pytest.mark.parametrize(
    "rank,args,size",
    [(1, (2,), None), (2, (2,), None), (2, (2,), (7, 5)), (2, (3, 2), (7, 5)), (2, (3, 2, 1), (7, 6)),
     (2, (2, 3), (7, 5)), (3, (2,), None)],
)  # fmt: skip
def test_unpooling_is_torchs(rank, args, size):
    shape = {1: (2, 3, 6), 2: (2, 2, 6, 4), 3: (1, 2, 4, 4, 2)}[rank]
    if size is not None:
        shape = (*shape[:2], *size)
    pool = getattr(torch.nn, f"MaxPool{rank}d")(*args, return_indices=True)
    drawn = torch.tensor(np.random.default_rng(5).standard_normal(shape))
    pooled, places = pool(drawn)
    ours = getattr(unpooling, f"MaxUnpool{rank}d")(*args, output_size=size)
    theirs = getattr(torch.nn, f"MaxUnpool{rank}d")(*args)

    def oracle(t):
        # torch adds the gradient of an element to every window that recorded it, also to those
        # whose value was overwritten: the reference takes the last one only
        flat = t["X"].new_zeros(*shape[:2], int(np.prod(out)))
        where = t["I"].flatten(2)
        kept = torch.zeros_like(where, dtype=torch.bool)
        for n, c in np.ndindex(*shape[:2]):
            last = {int(i): k for k, i in enumerate(where[n, c])}
            kept[n, c, list(last.values())] = True
        return flat.scatter_add(2, where, t["X"].flatten(2) * kept).reshape(*shape[:2], *out)

    out = ours.output_shape(tuple(pooled.shape), tuple(pooled.shape))[2:]
    given = {"I": places.numpy()}
    dtypes = ["f64"] if size else ["f32"]
    check(ours, [tuple(pooled.shape)] * 2, oracle, given=given, dtypes=dtypes)
    full = theirs(pooled, places, output_size=list(out))
    np.testing.assert_array_equal(oracle({"X": pooled, "I": places}).numpy(), full.numpy())


def test_overlapping_windows_take_the_last():
    ours = unpooling.MaxUnpool1d(3, 2)
    given = {"X": np.array([[[1.0, 2.0]]]), "I": np.array([[[2, 2]]])}
    check(ours, [(1, 1, 2)] * 2, lambda t: torch.stack(
        [*[torch.zeros(())] * 2, t["X"][0, 0, 1], *[torch.zeros(())] * 2])[None, None], given=given)  # fmt: skip


UPS = [
    ((2, 3, 5), {"scale_factor": 2}), ((2, 3, 5), {"size": 7}), ((1, 2, 7), {"size": 3}),
    ((2, 2, 3, 4), {"scale_factor": 2}), ((1, 2, 5, 3), {"size": (3, 7)}),
    ((1, 2, 3, 4), {"scale_factor": (3, 1.5)}), ((1, 1, 1, 1), {"scale_factor": 3}),
    ((1, 2, 2, 3, 2), {"scale_factor": 2}),
]  # fmt: skip


@pytest.mark.parametrize("shape,how", UPS)
@pytest.mark.parametrize("mode", ["nearest", "corners", "linear"])
def test_upsample(shape, how, mode):
    if mode != "nearest":
        name = {3: "linear", 4: "bilinear", 5: "trilinear"}[len(shape)]
        how = {**how, "mode": name, "align_corners": mode == "corners"}
    theirs = torch.nn.Upsample(**how)
    dtypes = ["f64", "f32"] if shape == UPS[0][0] else ["f64"]
    check(resizing.Upsample(**how), shape, lambda t: theirs(t["X"]), dtypes=dtypes)


def test_empty_batch():
    check(pooling.MaxPool2d(2), (0, 2, 4, 4), lambda t: t["X"].sum() + torch.zeros(0, 2, 2, 2),
          dtypes=["f32"])  # fmt: skip
    check(resizing.Upsample(scale_factor=2), (0, 2, 4, 4),
          lambda t: t["X"].sum() + torch.zeros(0, 2, 8, 8), dtypes=["f32"])  # fmt: skip


def test_another_boundary_is_noticed():
    errors = errors_of(
        pooling.AvgPool2d(3, 2, 1), [(1, 1, 5, 5)],
        lambda t: F.avg_pool2d(t["X"], 3, 2, 1, count_include_pad=False), {}, None, True, "f64", 0,
    )  # fmt: skip
    assert min(errors.values()) > 1e-3


def test_refusals():
    with pytest.raises(ShapeError, match="two inputs of shape"):
        unpooling.MaxUnpool2d(2).output_shape((1, 1, 2, 2), (1, 1, 2, 3))
    with pytest.raises(ShapeError, match="output size 9.*between 3 and 5"):
        unpooling.MaxUnpool1d(2, output_size=9).output_shape((1, 1, 2), (1, 1, 2))
    with pytest.raises(ShapeError, match="either size or scale_factor"):
        resizing.Upsample()
    with pytest.raises(ShapeError, match="align_corners with mode='nearest'"):
        resizing.Upsample(scale_factor=2, align_corners=True)
    with pytest.raises(ShapeError, match="input of rank 3"):
        resizing.Upsample(scale_factor=2, mode="bilinear").output_shape((1, 2, 3))
    with pytest.raises(ShapeError, match="empty map"):
        pooling.AdaptiveMaxPool1d(2).output_shape((1, 2, 0))


def test_windows_of_sizes_whose_quotients_floats_round():
    """floor(7*y/6) and the like are integers, not float32 numbers rounded down."""
    for size, out in (((7, 1), (6, 7)), ((49, 10), (48, 7)), ((23, 3), (22, 49))):
        ours, theirs = both("AdaptiveAvgPool2d", out)
        check(ours, (1, 1, *size), lambda t, f=theirs: f(t["X"]))


def test_the_gradient_of_interpolation_visits_neighbours_only():
    """No sum of the adjoint runs over the whole enlarged map."""
    layer = resizing.Upsample(size=(91, 90), mode="bilinear", align_corners=True)
    behind = split(layer.program((1, 1, 46, 45)), ["X"])[1]
    sums = [r.domain for s in behind.stages for p in s.pieces for r in p.reduces]
    assert sums and all(axis.hi - axis.lo <= 6 for d in sums for axis in d.ranges)
