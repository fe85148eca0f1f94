"""Torch networks as convgen networks."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402, N812
from torch import nn  # noqa: E402

import convgen as cg  # noqa: E402

torch.set_num_threads(1)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)) + x)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(inplace=True))
        self.block = Block(4)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.block(self.block(x))
        z = F.max_pool2d(torch.cat([x, y], dim=1), 2, stride=2)
        z = F.dropout(z, 0.2, self.training)
        return self.head(z.view(z.size(0), -1))


SEQUENTIALS = {
    "lenet": (
        nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3),
            nn.Sigmoid(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(8, 4), nn.Softmax(-1),
        ),
        (3, 1, 8, 8),
    ),
    "norms": (
        nn.Sequential(
            nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1), nn.GroupNorm(2, 4),
            nn.LeakyReLU(0.1), nn.Conv2d(4, 4, 3, groups=2, padding="same", padding_mode="reflect"),
            nn.BatchNorm2d(4, eps=1e-3), nn.ELU(), nn.AdaptiveAvgPool2d(3), nn.LayerNorm([4, 3, 3]),
        ),
        (2, 2, 4, 5),
    ),
    "one": (nn.Conv1d(2, 3, 3, dilation=2), (2, 2, 9)),
    "branches": (Branches(), (4, 3, 9, 9)),
}  # fmt: skip


@pytest.mark.parametrize("name", SEQUENTIALS)
def test_same_outputs(name):
    module, shape = SEQUENTIALS[name]
    module.train()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        module(x)  # running statistics
        network = cg.torch.from_module(module, shape)
        assert module.training
        want = module.eval()(x)
    assert torch.allclose(torch.from_numpy(network.predict(x.numpy())), want, atol=1e-5)
    names = {n for n in module.state_dict() if not n.endswith("num_batches_tracked")}
    assert set(network.state_dict()) == names


def test_weights_are_copies():
    module = nn.Linear(3, 2)
    network = cg.torch.from_module(module, (1, 3))
    before = network.state_dict()["weight"]
    with torch.no_grad():
        module.weight.zero_()
    assert (network.state_dict()["weight"] == before).all() and before.any()


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class OwnWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x + self.scale


class Reshaping(nn.Module):
    def forward(self, x):
        return x.view(4, -1)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Spectrum(), "fft.* has no layer; expected one of abs"),
        (Branching(), "cannot be traced; got .*; try a forward without branches"),
        (OwnWeight(), "scale is read by the network itself"),
        (Reshaping(), r"reshape of \(1, 2, 4, 4\) to \(4, -1\)"),
        (nn.Sequential(nn.Bilinear(1, 2, 3)), "0: Bilinear.*: no layer for Bilinear"),
        (nn.AvgPool2d(2, divisor_override=3), "AvgPool2d has no divisor_override"),
        (3, "no torch module; expected a torch.nn.Module, got 3"),
    ],
)
def test_refusals(module, message):
    with pytest.raises(cg.DataError, match=message):
        cg.torch.from_module(module, (1, 2, 4, 4))
