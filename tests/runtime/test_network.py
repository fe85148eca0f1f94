"""Networks against torch: predictions, training steps, states; files and refusals."""

import numpy as np
import pytest

import convgen as cg
from convgen.errors import DataError, FormulaError, ShapeError
from convgen.runtime.network import Network

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
nn = cg.nn


class Branches(nn.Module):
    """A shortcut, a concatenation and a layer used twice."""

    def __init__(self):
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.flat = nn.Flatten()
        self.head = nn.Linear(8 * 16, 3)

    def forward(self, x):
        a = nn.ReLU()(self.first(x))
        b = self.norm(self.twice(nn.Tanh()(self.twice(a))))
        return self.head(self.flat(self.pool(nn.concat([a + b, b]))))


class TorchBranches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(2, 4, 3, padding=1)
        self.twice = torch.nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(4)
        self.pool = torch.nn.MaxPool2d(3, 2, padding=1)
        self.head = torch.nn.Linear(8 * 16, 3)

    def forward(self, x):
        a = torch.relu(self.first(x))
        b = self.norm(self.twice(torch.tanh(self.twice(a))))
        return self.head(self.pool(torch.cat([a + b, b], 1)).flatten(1))


def twins(dtype="f64", batch=5):
    """The same network in both libraries with the same weights."""
    ours = Network(Branches(), [(batch, 2, 8, 8)], dtype=dtype, seed=1)
    theirs = TorchBranches().to(torch.float64 if dtype == "f64" else torch.float32)
    state = {k: torch.tensor(v) for k, v in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"norm.num_batches_tracked"}
    return ours, theirs


def data(count=5, dtype=np.float64):
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, 2, 8, 8)).astype(dtype), rng.integers(0, 3, count)


def test_prediction_equals_torch():
    ours, theirs = twins()
    x, _ = data()
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(x)).numpy()
    assert np.abs(ours.predict(x) - expected).max() < 1e-12
    assert np.array_equal(ours.predict(x[:2]), ours.predict(x)[:2])
    assert ours.predict(x[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("mine", "other"),
    [
        (lambda: cg.optim.SGD(0.05), lambda p: torch.optim.SGD(p, 0.05)),
        (
            lambda: cg.optim.SGD(0.05, momentum=0.9, weight_decay=5e-4),
            lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=5e-4),
        ),
        (
            lambda: cg.optim.SGD(0.05, momentum=0.9, nesterov=True),
            lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
        ),
        (
            lambda: cg.optim.Adam(0.01, weight_decay=1e-3),
            lambda p: torch.optim.Adam(p, 0.01, weight_decay=1e-3),
        ),
    ],
)
def test_training_steps_equal_torch(mine, other):
    ours, theirs = twins()
    x, y = data()
    ours.fit(x, y, loss=nn.CrossEntropyLoss(), optimizer=mine(), epochs=3, show=False)
    optimizer = other(theirs.parameters())
    stream = cg.data.Stream(5, 5, 0)
    for step in range(3):
        chosen = stream.indices(step)
        optimizer.zero_grad()
        scores = theirs.train()(torch.tensor(x[chosen]))
        torch.nn.functional.cross_entropy(scores, torch.tensor(y[chosen])).backward()
        optimizer.step()
    expected = {k: v.numpy() for k, v in theirs.state_dict().items()}
    for name, array in ours.state_dict().items():
        scale = np.abs(expected[name]).max()
        assert np.abs(array - expected[name]).max() < 1e-9 * scale, name


def test_mse_gradients_equal_torch():
    net = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 2))
    ours = Network(net, [(4, 6)], dtype="f64")
    rng = np.random.default_rng(3)
    x, t = rng.standard_normal((4, 6)), rng.standard_normal((4, 2))
    value, gradient = ours.gradients(x, t, nn.MSELoss())
    w = {k: torch.tensor(v, requires_grad=True) for k, v in ours.state_dict().items()}
    hidden = torch.sigmoid(torch.tensor(x) @ w["0.weight"].T + w["0.bias"])
    loss = torch.nn.functional.mse_loss(hidden @ w["2.weight"].T + w["2.bias"], torch.tensor(t))
    loss.backward()
    assert abs(value - loss.item()) < 1e-12
    for name, tensor in w.items():
        assert np.abs(gradient[name] - tensor.grad.numpy()).max() < 1e-12


def small():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.25), nn.Flatten(), nn.Linear(4 * 36, 3)
    )


def fit(network, x, y, **options):
    settings = {"epochs": 4, "seed": 7, "show": False} | options
    optimizer = cg.optim.SGD(0.1, momentum=0.9)
    return network.fit(x, y, loss=nn.CrossEntropyLoss(), optimizer=optimizer, **settings)


def digits(count=20):
    rng = np.random.default_rng(5)
    return rng.standard_normal((count, 1, 8, 8)).astype(np.float32), rng.integers(0, 3, count)


def test_same_bits_for_any_number_of_threads():
    x, y = digits()
    results = []
    for threads in (1, 2):
        network = Network(small(), [(8, 1, 8, 8)], threads=threads)
        fit(network, x, y)
        results.append(network.state_dict())
    for name in results[0]:
        assert np.array_equal(results[0][name], results[1][name])


def test_resuming_is_exact(tmp_path):
    x, y = digits()
    path = tmp_path / "c.safetensors"
    whole = Network(small(), [(8, 1, 8, 8)])
    fit(whole, x, y, epochs=4)
    first = Network(small(), [(8, 1, 8, 8)])

    class Stop(Exception):
        pass

    def stop(step, steps):
        if first.step == 7:
            raise Stop
        return 1.0

    with pytest.raises(Stop):
        fit(first, x, y, checkpoints=path, schedule=stop)
    second = Network(small(), [(8, 1, 8, 8)], seed=99)
    fit(second, x, y, resume=path)
    for name, array in whole.state_dict().items():
        assert np.array_equal(array, second.state_dict()[name]), name
    assert second.step == whole.step
    other = Network(small(), [(8, 1, 8, 8)])
    with pytest.raises(DataError, match="another seed"):
        fit(other, x, y, resume=path, seed=8)
    path.write_bytes(path.read_bytes()[:-10])
    before = other.state_dict()
    with pytest.raises(DataError, match="not a readable convgen file"):
        fit(other, x, y, resume=path)
    assert all(np.array_equal(before[n], a) for n, a in other.state_dict().items())


def test_save_and_load(tmp_path):
    network = Network(Branches(), [(5, 2, 8, 8)])
    x, _ = data(7, np.float32)
    network.save(tmp_path / "n.convgen")
    again = cg.load(tmp_path / "n.convgen", mode="infer")
    assert np.array_equal(again.predict(x), network.predict(x))
    assert cg.load(tmp_path / "n.convgen", batch=3).predict(x).shape == (7, 3)
    (tmp_path / "x").write_bytes(b"not a network")
    with pytest.raises(DataError, match="not a readable convgen file"):
        cg.load(tmp_path / "x")


def test_dropout_keeps_the_mean_and_is_off_in_inference():
    network = Network(nn.Sequential(nn.Dropout(0.25)), [(64, 100)])
    x = np.ones((64, 100), np.float32)
    assert np.array_equal(network.predict(x), x)
    train = Network(nn.Sequential(nn.Linear(100, 100, bias=False), nn.Dropout(0.25)), [(64, 100)])
    train.load_state_dict({"0.weight": np.eye(100, dtype=np.float32)})
    plan, outputs = train.training(nn.MSELoss(), cg.optim.SGD(0.0))
    plan.view("input0")[...] = 1
    plan.view("seed0")[...] = 12345
    plan.run(1)
    values = plan.view(outputs[0])
    kept = values != 0
    assert abs(kept.mean() - 0.75) < 0.03
    assert np.allclose(values[kept], 1 / 0.75)


def test_refusals():
    x, y = digits()
    network = Network(small(), [(8, 1, 8, 8)])
    with pytest.raises(DataError, match=r"label 3 of sample 4 is out of range; expected 0..2"):
        fit(network, x, np.where(np.arange(20) == 4, 3, y))
    with pytest.raises(DataError, match="labels are not integers"):
        fit(network, x, y.astype(float))
    with pytest.raises(DataError, match="samples of another shape"):
        network.predict(x[:, :, :7])
    with pytest.raises(DataError, match="targets"):
        fit(network, x, y[:-1])
    with pytest.raises(DataError, match="no samples"):
        fit(network, x[:0], y[:0])
    with pytest.raises(ShapeError, match="layer 4.*input features"):
        Network(small(), [(8, 1, 9, 9)])
    with pytest.raises(ShapeError, match="layer 0.*kernel is larger"):
        Network(small(), [(8, 1, 2, 2)])
    with pytest.raises(DataError, match="missing in the state dict: 0.bias"):
        network.load_state_dict({k: v for k, v in network.state_dict().items() if k != "0.bias"})
    with pytest.raises(FormulaError, match="no attribute of a module"):

        class Loose(nn.Module):
            def forward(self, x):
                return nn.Linear(4, 4)(x)

        Network(Loose(), [(2, 4)])
    with pytest.raises(ShapeError, match="groups=2 does not divide"):
        nn.Conv2d(3, 4, 3, groups=2)
    with pytest.raises(ShapeError, match="stride"):
        nn.Conv2d(3, 4, 3, stride=0)
    with pytest.raises(ShapeError, match="dropout|Dropout"):
        nn.Dropout(1.5)


def test_initial_weights_follow_torch():
    network = Network(nn.Sequential(nn.Linear(400, 300), nn.BatchNorm1d(300)), [(2, 400)])
    state = network.state_dict()
    theirs = torch.nn.Linear(400, 300)
    assert abs(state["0.weight"].std() / theirs.weight.std().item() - 1) < 0.02
    assert np.abs(state["0.weight"]).max() <= 1 / 20
    assert (state["1.weight"] == 1).all() and (state["1.running_mean"] == 0).all()


def test_a_network_may_end_in_a_view():
    network = Network(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten()), [(4, 2, 3, 3)])
    x = np.random.default_rng(0).standard_normal((6, 2, 3, 3)).astype(np.float32)
    assert network.predict(x).shape == (6, 27)
    y = np.arange(6) % 27
    fit(network, x, y, epochs=1)
    assert 0 <= network.evaluate(x, y) <= 1
    alone = Network(nn.Sequential(nn.Flatten()), [(4, 2, 3, 3)])
    assert np.array_equal(alone.predict(x), x.reshape(6, 18))
