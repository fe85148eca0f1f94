"""Saved networks: the same bits in another process; damaged and newer files are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import convgen as cg
from convgen.errors import DataError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "net.convgen"
    net = cg.nn.Sequential(cg.nn.Conv2d(1, 3, 3), cg.nn.BatchNorm2d(3), cg.nn.ReLU(), cg.nn.Flatten(),
                           cg.nn.Linear(108, 4))  # fmt: skip
    model = cg.compile(net, input=(2, 1, 8, 8), seed=3)
    draw = np.random.default_rng(0)
    x = draw.standard_normal((6, 1, 8, 8)).astype(np.float32)
    model.fit(x, np.arange(6) % 4, loss=cg.nn.CrossEntropyLoss(), optimizer=cg.optim.SGD(0.1),
              epochs=1, show=False)  # fmt: skip
    model.save(path)
    np.save(path.with_suffix(".npy"), x)
    return path, model.predict(x)


def test_same_bits_in_another_process(saved):
    path, wanted = saved
    code = (
        "import sys, numpy as np, convgen as cg\n"
        "x = np.load(sys.argv[1] + '.npy')\n"
        "np.save(sys.argv[1] + '.out.npy', cg.load(sys.argv[1] + '.convgen').predict(x))\n"
    )
    stem = str(path.with_suffix(""))
    root = Path(cg.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, stem], check=True, cwd=root)
    assert np.array_equal(np.load(stem + ".out.npy"), wanted)


def test_another_batch_gives_the_same_samples(saved):
    path, wanted = saved
    x = np.load(path.with_suffix(".npy"))
    assert np.allclose(cg.load(path, batch=3).predict(x), wanted, atol=1e-6)


def rewrite(path: Path, to: Path, **changes) -> Path:
    with safe_open(str(path), framework="numpy") as file:
        facts = json.loads(file.metadata()["convgen"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, value in changes.items():
        if value is None:
            facts.pop(name, None)
        else:
            facts[name] = value
    save_file(arrays, str(to), metadata={"convgen": json.dumps(facts)})
    return to


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"version": 99, "convgen": "7.0"}, "newer convgen.*format 99, by convgen 7.0"),
        ({"version": "1"}, "format number is damaged"),
        ({"version": True}, "format number is damaged"),
        ({"version": 0}, "format number is damaged"),
        ({"version": None}, "convgen did not write"),
        ({"kind": "checkpoint"}, "another kind"),
        ({"shapes": "2,1,8,8"}, "description of the network"),
        ({"shapes": [[2, "1"]]}, "description of the network"),
        ({"dtype": "f16"}, "description of the network"),
        ({"graph": None}, "description of the network"),
        ({"graph": {"nodes": [{"path": "0"}]}}, "graph of the file is damaged"),
    ],
)
def test_what_does_not_fit_is_refused(saved, tmp_path, changes, text):
    path, _ = saved
    with pytest.raises(DataError, match=text):
        cg.load(rewrite(path, tmp_path / "changed.convgen", **changes))


def test_a_layer_cannot_run_code(saved, tmp_path):
    path, _ = saved
    with safe_open(str(path), framework="numpy") as file:
        graph = json.loads(file.metadata()["convgen"])["graph"]
    graph["nodes"][0]["layer"] = "__import__('os').system('true')"
    with pytest.raises(DataError):
        cg.load(rewrite(path, tmp_path / "evil.convgen", graph=graph))


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5])
def test_truncated_files_are_refused(saved, tmp_path, keep):
    path, _ = saved
    data = path.read_bytes()
    count = int(len(data) * keep) if isinstance(keep, float) else keep
    (tmp_path / "cut.convgen").write_bytes(data[:count])
    with pytest.raises(DataError, match="not a readable"):
        cg.load(tmp_path / "cut.convgen")
