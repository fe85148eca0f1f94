"""Networks made of these layers, trained beside torch: every parameter after two steps."""

import numpy as np
import pytest
import torch

import convgen as cg
from convgen.errors import DataError, FormulaError
from convgen.runtime.network import Network

torch.set_num_threads(1)


def segments(nn, unpool_args):
    """An encoder and its mirror with recorded winners; the same text for both libraries."""

    class Segments(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")
            self.norm = nn.GroupNorm(2, 4)
            self.pool = nn.MaxPool2d(2, return_indices=True)
            self.middle = nn.Conv2d(4, 4, 3, padding="same", groups=2)
            self.gelu = nn.GELU()
            self.local = nn.LocalResponseNorm(3, alpha=0.3)
            self.unpool = nn.MaxUnpool2d(2, **unpool_args)
            self.slope = nn.PReLU(4)
            self.up = nn.Upsample(size=(7, 5), mode="bilinear", align_corners=True)
            self.instance = nn.InstanceNorm2d(4, affine=True)
            self.head = nn.Conv2d(4, 3, 1)

        def forward(self, x):
            pooled, places = self.pool(self.norm(self.down(x)))
            small = self.local(self.gelu(self.middle(pooled)))
            return self.head(self.instance(self.up(self.slope(self.unpool(small, places)))))

    return Segments()


def test_segmentation_with_recorded_winners_trains_as_torch():
    ours = Network(segments(cg.nn, {}), [(3, 2, 6, 8)], dtype="f64", seed=1)
    theirs = segments(torch.nn, {}).double()
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((3, 2, 6, 8)), rng.integers(0, 3, (3, 7, 5))
    loss, options = {"label_smoothing": 0.1}, {"lr": 0.05, "weight_decay": 0.01}
    ours.fit(x, t, loss=cg.nn.CrossEntropyLoss(**loss), optimizer=cg.optim.AdamW(**options),
             epochs=2, batch=3, show=False)  # fmt: skip
    optimizer = torch.optim.AdamW(theirs.parameters(), **options)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.CrossEntropyLoss(**loss)(theirs(torch.tensor(x)), torch.tensor(t)).backward()
        optimizer.step()
    for name, array in ours.state_dict().items():
        want = theirs.state_dict()[name].numpy()
        if name != "down.bias":  # its gradient is rounding: group norm takes the mean away
            assert np.abs(array - want).max() < 1e-9 * np.abs(want).max(), name
    assert 0 <= ours.history[-1].accuracy <= 1
    share = float((theirs(torch.tensor(x)).argmax(1) == torch.tensor(t)).double().mean())
    assert ours.evaluate(x, t) == pytest.approx(share)
    with pytest.raises(DataError, match="label 3 of sample 1 is out of range; expected 0..2"):
        t[1, 6, 4] = 3
        ours.fit(x, t, loss=cg.nn.NLLLoss(), optimizer=cg.optim.SGD(0.1), show=False)


def test_positions_are_no_values():
    class Wrong(cg.nn.Module):
        def __init__(self):
            self.pool = cg.nn.MaxPool2d(2, return_indices=True)
            self.relu, self.unpool = cg.nn.ReLU(), cg.nn.MaxUnpool2d(2)

        def forward(self, x):
            pooled, places = self.pool(x)
            return self.relu(places) if self.swap else self.unpool(pooled, pooled)

    for swap, text in (
        (True, "ReLU.*network's floats, got i64"),
        (False, "MaxUnpool2d.*expected i64"),
    ):
        module = Wrong()
        module.swap = swap
        with pytest.raises(FormulaError, match=text):
            Network(module, [(1, 1, 4, 4)])


def test_a_saved_network_keeps_its_winners(tmp_path):
    network = Network(segments(cg.nn, {}), [(2, 2, 6, 8)])
    network.save(tmp_path / "s.convgen")
    x = np.random.default_rng(0).standard_normal((2, 2, 6, 8)).astype(np.float32)
    assert np.array_equal(cg.load(tmp_path / "s.convgen").predict(x), network.predict(x))
