"""The main job: accuracy, files, resuming, the seed, MNIST's files."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from convgen import demo
from convgen.__main__ import cli
from convgen.errors import DataError


def test_enlarge_is_bilinear():
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).standard_normal((3, 8, 8))
    expected = torch.nn.functional.interpolate(
        torch.tensor(images)[:, None], size=(28, 28), mode="bilinear", align_corners=False
    )
    assert np.abs(demo.enlarge(images, 28) - expected.numpy()[:, 0]).max() < 1e-12


def test_demo_reaches_its_accuracy_and_writes_its_files(tmp_path):
    done = CliRunner().invoke(cli, ["demo", "--json", "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["accuracy"] >= 0.98
    assert found["parameters"] == 61706
    assert found["gradient_error"] < 1e-7
    names = {Path(f).name for f in found["files"]}
    assert names >= {"learning_curve.png", "filters.png", "confusion.png"}
    for file in found["files"]:
        assert Path(file).stat().st_size > 1000
    for picture in (tmp_path / "out").glob("*.png"):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_seed_reproduces_a_run_with_any_number_of_threads(tmp_path):
    digits = demo.load_digits()
    weights = []
    for threads in (1, 2):
        network = demo.train(digits, epochs=1, seed=3, threads=threads, folder=None, show=False)
        weights.append(network.state_dict())
    for name, array in weights[0].items():
        assert np.array_equal(array, weights[1][name])


@pytest.mark.full
def test_mean_accuracy_over_seeds():
    digits = demo.load_digits()
    scores = [
        demo.train(digits, epochs=30, seed=seed, threads=None, folder=None, show=False).evaluate(
            *digits.test
        )
        for seed in range(5)
    ]
    assert np.mean(scores) >= 0.98, scores


def test_demo_trains_on_mnist_files(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 96), ("t10k", 32)):
        images = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = rng.integers(0, 10, count).astype(np.uint8)
        head = struct.pack(">BBBBIII", 0, 0, 8, 3, count, 28, 28)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">BBBBI", 0, 0, 8, 1, count)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    found = demo.run(mnist=tmp_path, output=tmp_path / "out", epochs=1, quiet=True)
    assert 0 <= found["accuracy"] <= 1
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01")
    with pytest.raises(DataError, match="truncated"):
        demo.run(mnist=tmp_path, output=tmp_path / "out", epochs=1, quiet=True)
