"""Training as practised: schedules, clipping, early stopping, metrics, sources, augmentation."""

import math

import numpy as np
import pytest

import convgen as cg
from convgen.errors import DataError
from convgen.runtime.network import Network
from convgen.runtime.train import ensemble

nn = cg.nn


def points(count=64):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 2)).astype(np.float32)
    return x, (x[:, 0] * x[:, 1] > 0).astype(np.int64)


def network(seed=0, dtype="f32"):
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    return Network(net, [(16, 2)], seed=seed, dtype=dtype)


def fit(model, x, y, **options):
    given = {"optimizer": cg.optim.SGD(0.1, momentum=0.9), "epochs": 4, "show": False} | options
    return model.fit(x, y, loss=nn.CrossEntropyLoss(), **given)


def test_schedules():
    assert [cg.optim.StepDecay(2, 0.5)(i, 9) for i in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    assert cg.optim.Warmup(4)(0, 10) == 0.25 and cg.optim.Warmup(4)(7, 10) == 1
    assert cg.optim.Warmup(2, cg.optim.StepDecay(1, 0.5))(3, 10) == 0.5
    assert math.isclose(cg.optim.Cosine(floor=0.1)(100, 100), 0.1)
    plateau = cg.optim.Plateau(0.1, patience=1)
    for score in (1.0, 0.5, 0.5, 0.5):
        plateau.observe(score)
    assert plateau(0, 1) == 0.1
    copy = cg.optim.Plateau(0.1, patience=1)
    copy.state = plateau.state
    copy.observe(0.2)
    assert copy(0, 1) == 0.1 and copy.state["best"] == 0.2


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_clipping_equals_torch(kind):
    torch = pytest.importorskip("torch")
    x, y = points(16)
    ours = network(dtype="f64")
    start = ours.state_dict()
    options = {"weight_decay": 0.1}
    fit(ours, x, y, optimizer=getattr(cg.optim, kind)(0.1, clip_norm=0.01, **options), epochs=2)
    w = {n: torch.tensor(a, requires_grad=True) for n, a in start.items()}
    optimizer = getattr(torch.optim, kind)(list(w.values()), 0.1, **options)
    stream = cg.data.Stream(16, 16, 0)
    for step in range(2):
        chosen = stream.indices(step)
        optimizer.zero_grad()
        inside = torch.tanh(torch.tensor(x[chosen].astype(float)) @ w["0.weight"].T + w["0.bias"])
        scores = inside @ w["2.weight"].T + w["2.bias"]
        torch.nn.functional.cross_entropy(scores, torch.tensor(y[chosen])).backward()
        length = torch.nn.utils.clip_grad_norm_(list(w.values()), 0.01)
        assert length > 0.01
        optimizer.step()
    for name, array in ours.state_dict().items():
        assert np.abs(array - w[name].detach().numpy()).max() < 1e-9


def test_early_stopping_takes_the_best_epoch():
    x, y = points()
    model = network()
    optimizer = cg.optim.SGD(0.0)
    history = fit(model, x, y, optimizer=optimizer, epochs=50, validation=(x, y), patience=3)
    assert len(history) == 4
    assert model.evaluate(x, y) == history[0].validation
    with pytest.raises(DataError, match="patience needs validation"):
        fit(model, x, y, patience=3)


def test_resuming_with_a_plateau_is_exact(tmp_path):
    x, y = points(48)
    path = tmp_path / "c"

    def schedule():
        return cg.optim.Plateau(0.5, patience=0, threshold=0.3)

    whole = network()
    fit(whole, x, y, epochs=6, schedule=schedule(), validation=(x, y), patience=9)
    first = network()
    fit(first, x, y, epochs=3, schedule=schedule(), validation=(x, y), patience=9)
    again = network()
    fit(again, x, y, epochs=3, schedule=schedule(), validation=(x, y), checkpoints=path)
    rest = network(seed=5)
    options = {"epochs": 6, "schedule": schedule(), "validation": (x, y), "patience": 9}
    fit(rest, x, y, resume=path, **options)
    assert [e.loss for e in rest.history] == [e.loss for e in whole.history]
    for name, array in whole.state_dict().items():
        assert np.array_equal(array, rest.state_dict()[name])


def test_metrics_are_averaged():
    x, y = points()
    history = fit(network(), x, y, metrics={"worst": lambda s, t: float(np.abs(s).max())})
    assert history[-1].metrics["worst"] > 0
    right = {"hits": lambda s, t: float((s.argmax(1) == t).mean())}
    history = fit(network(), x, y, metrics=right)
    assert history[-1].metrics["hits"] == pytest.approx(history[-1].accuracy)


def test_generated_samples_are_made_ahead_and_reproducibly():
    def make(indices, generator):
        x = generator.standard_normal((len(indices), 2)).astype(np.float32)
        return x, (x[:, 0] > 0).astype(np.int64)

    results = []
    for _ in range(2):
        model = network()
        fit(model, cg.data.Generated(160, make), None)
        results.append(model.state_dict())
    assert all(np.array_equal(results[0][n], a) for n, a in results[1].items())

    def broken(indices, generator):
        raise OSError("disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        fit(network(), cg.data.Generated(64, broken), None)
    with pytest.raises(DataError, match="no targets"):
        fit(network(), points()[0], None)


def test_ensemble_is_the_mean():
    x, _ = points()
    models = [network(seed=s) for s in range(3)]
    expected = np.mean([m.predict(x) for m in models], axis=0)
    assert np.allclose(ensemble(models, x), expected)
    with pytest.raises(DataError, match="no networks"):
        ensemble([], x)


def test_augmentation():
    rng = np.random.default_rng(0)
    batch = rng.uniform(0, 1, (6, 3, 5, 7)).astype(np.float32)
    shifted = cg.data.RandomShift(2)(batch, np.random.default_rng(1))
    moves = np.random.default_rng(1).integers(-2, 3, (6, 2))
    for image, out, (dy, dx) in zip(batch, shifted, moves, strict=True):
        for i in range(5):
            for j in range(7):
                inside = 0 <= i - dy < 5 and 0 <= j - dx < 7
                assert np.array_equal(out[:, i, j], image[:, i - dy, j - dx] if inside else [0] * 3)
    flipped = cg.data.RandomFlip(1.0)(batch, rng)
    assert np.array_equal(flipped, batch[..., ::-1])
    assert np.array_equal(cg.data.RandomFlip(0.0)(batch, rng), batch)
    crops = cg.data.RandomCrop((3, 4))(batch, rng)
    assert crops.shape == (6, 3, 3, 4)
    assert any(
        np.array_equal(crops[0], batch[0, :, i : i + 3, j : j + 4])
        for i in range(3)
        for j in range(4)
    )
    with pytest.raises(DataError, match="crop"):
        cg.data.RandomCrop((9, 9))(batch, rng)
    jittered = cg.data.ColourJitter(0.3, 0.3, 0.3)(batch, rng)
    assert jittered.dtype == batch.dtype and 0 <= jittered.min() <= jittered.max() <= 1
    assert np.allclose(cg.data.ColourJitter()(batch, rng), batch, atol=1e-6)
    both = cg.data.compose(cg.data.RandomFlip(1.0), cg.data.RandomFlip(1.0))
    assert np.array_equal(both(batch, rng), batch)


def test_image_folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = np.full((9, 6, 3), 100 * label + number, np.uint8)
            image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    folder = cg.data.ImageFolder(tmp_path, (4, 4))
    assert folder.classes == ["cat", "dog"] and folder.count == 6
    x, y = folder.batch(np.array([1, 5]), np.random.default_rng(0))
    assert x.shape == (2, 3, 4, 4) and y.tolist() == [0, 1]
    assert np.allclose(x[1], 102 / 255)
    (tmp_path / "cat" / "9.png").write_bytes(b"\x89PNG broken")
    broken = cg.data.ImageFolder(tmp_path, (4, 4))
    with pytest.raises(DataError, match="not a readable image"):
        broken.batch(np.arange(7), np.random.default_rng(0))
    with pytest.raises(DataError, match="no images"):
        (tmp_path / "empty").mkdir()
        cg.data.ImageFolder(tmp_path / "empty", (4, 4))
