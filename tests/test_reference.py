"""The references themselves, against torch where it is installed."""

import numpy as np
import pytest
import reference

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
F = torch.nn.functional
DRAW = np.random.default_rng(0)


def near(a, b):
    return reference.error(np.asarray(a), b.detach().numpy()) < 1e-12


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    ("rank", "stride", "dilation", "groups"),
    [(1, 2, 3, 1), (2, 1, 2, 2), (2, 3, 1, 1), (3, 2, 1, 2)],
)
def test_layer_and_gradients(mode, rank, stride, dilation, groups):
    x = DRAW.normal(size=(2, 4, *(8, 7, 6)[:rank]))
    w = DRAW.normal(size=(6, 4 // groups, *(2, 3, 2)[:rank]))
    b = DRAW.normal(size=6)
    tx, tw = (torch.tensor(v, requires_grad=True) for v in (x, w))
    padded = tx if mode == "zeros" else F.pad(tx, (2, 2) * rank, mode=mode)
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    want = function(
        padded, tw, torch.tensor(b), stride, 2 if mode == "zeros" else 0, dilation, groups
    )
    assert near(reference.conv(x, w, b, stride, 2, dilation, groups, mode), want)
    dy = DRAW.normal(size=want.shape)
    want.backward(torch.tensor(dy))
    dx, dw = reference.conv_gradients(x, w, dy, stride, 2, dilation, groups, mode)
    assert near(dx, tx.grad) and near(dw, tw.grad)


def test_transposed():
    x, w, b = DRAW.normal(size=(2, 4, 5, 3)), DRAW.normal(size=(4, 3, 3, 2)), DRAW.normal(size=6)
    want = F.conv_transpose2d(*map(torch.tensor, (x, w, b)), (3, 2), (1, 0), (2, 1), 2, (1, 2))
    got = reference.conv_transpose(x, w, b, (3, 2), (1, 0), (2, 1), 2, (1, 2))
    assert near(got, want)


def test_pools():
    x = DRAW.integers(-3, 4, (2, 3, 7, 6)).astype(float)
    x[0, 0, 2, 3] = np.nan
    want, index = F.max_pool2d(torch.tensor(x), 3, 2, 1, return_indices=True)
    y, places = reference.max_pool(x, 3, 2, 1)
    assert np.array_equal(y, want.numpy(), equal_nan=True) and np.array_equal(places, index.numpy())
    x = np.nan_to_num(x)
    for counted in (True, False):
        want = F.avg_pool2d(torch.tensor(x), (3, 2), 2, (1, 0), count_include_pad=counted)
        assert near(reference.avg_pool(x, (3, 2), 2, (1, 0), counted), want)


def test_normalization_and_loss():
    x, g, b = DRAW.normal(size=(4, 3, 5)), DRAW.normal(size=3), DRAW.normal(size=3)
    want = F.batch_norm(
        torch.tensor(x), None, None, torch.tensor(g), torch.tensor(b), training=True
    )
    assert near(reference.batch_norm(x, g, b), want)
    labels = np.array([0, 2, 1, 1])
    logits = DRAW.normal(size=(4, 3))
    assert near(reference.softmax(logits), F.softmax(torch.tensor(logits), 1))
    assert near(
        reference.cross_entropy(logits, labels),
        F.cross_entropy(torch.tensor(logits), torch.tensor(labels)),
    )
