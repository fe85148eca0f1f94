"""`convgen build`: subjects, options, and what it says when something cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import convgen as cg
from convgen.__main__ import cli
from convgen.errors import ConvgenError, DataError
from convgen.interop.aot.command import parse_call
from convgen.layers.update import SGD

sys.path.insert(0, str(Path(__file__).parent))
from bundles import load  # noqa: E402


def build(*arguments: str):
    return CliRunner().invoke(cli, ["build", *arguments])


def test_a_formula(tmp_path):
    text = "Y[n,k] = sum(c: X[n,c]*W[k,c])"
    shapes = ["--shape", "X=3,5", "--shape", "W=4,5"]
    done = build(text, *shapes, "-o", str(tmp_path), "--name", "dense", "--no-backward", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.output)
    assert facts["name"] == "dense" and "dense.h" in facts["files"] and facts["object_bytes"] > 0
    header = (tmp_path / "dense.h").read_text()
    assert "dense_backward" not in header and text.split("=")[1].strip().split(":")[0] in header


def test_a_layer_with_a_step(tmp_path):
    done = build(
        "Linear(6, 3)", "--input", "4,6", "-o", str(tmp_path), "--name", "linear",
        "--loss", "CrossEntropyLoss", "--optimizer", "SGD(momentum=0.9)", "--weights", "embedded",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "linear_step" in (tmp_path / "linear.h").read_text()
    assert not (tmp_path / "linear.weights").exists()
    module = load(tmp_path, "linear")
    x = np.ones((4, 6), np.float32)
    assert module.Bundle().forward(x).shape == (4, 3)
    with pytest.raises(module.BundleError, match="weights="):
        module.Bundle().step(x, labels=np.zeros(4, np.int64), hyper=[0.1])


def test_a_saved_network_keeps_its_weights(tmp_path):
    model = cg.compile(cg.nn.Sequential(cg.nn.Linear(6, 3), cg.nn.Tanh()), input=(4, 6), seed=11)
    model.save(tmp_path / "net.convgen")
    done = build(str(tmp_path / "net.convgen"), "-o", str(tmp_path / "out"), "--name", "net")
    assert done.exit_code == 0, done.output
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    bundle = load(tmp_path / "out", "net").Bundle()
    assert np.array_equal(bundle.forward(x), model.predict(x))
    _check_calls_at_the_same_time(bundle, x)


# The pool served two callers at once, and threads that a fork had left behind: both hung.
WITH_A_POOL = """
import os, threading
import numpy as np
from net import Bundle

bundle = Bundle(threads=2)
x = np.ones((4, 4, 32, 32), np.float32)
wanted, wrong = bundle.forward(x), []


def work():
    for _ in range(300):
        if not np.array_equal(bundle.forward(x), wanted):
            wrong.append(1)


callers = [threading.Thread(target=work) for _ in range(6)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
print("different" if wrong else "same", flush=True)
child = os.fork()
if child == 0:
    print("same" if np.array_equal(bundle.forward(x), wanted) else "different", flush=True)
    bundle.close()
    os._exit(0)
os.waitpid(child, 0)
"""


def test_a_pool_serves_one_caller_after_another_and_none_of_another_process(tmp_path):
    done = build("Conv2d(4, 16, 3)", "--input", "4,4,32,32", "-o", str(tmp_path), "--name", "net")
    assert done.exit_code == 0, done.output
    done = subprocess.run(
        [sys.executable, "-c", WITH_A_POOL], cwd=tmp_path, timeout=60, capture_output=True
    )
    assert done.stdout == b"same\nsame\n", done.stderr


def _check_calls_at_the_same_time(bundle, x):
    """One context, many threads: nothing is kept between calls."""
    wanted = [bundle.forward(x * n) for n in range(8)]
    found = [None] * 8

    def work(n):
        for _ in range(50):
            found[n] = bundle.forward(x * n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["zoo:nothing"], "zoo"),
        (["Linear(6, 3)"], "shape of its input"),
        (["Linear(6, 3)", "--input", "4,6", "--target", "vax"], "vax"),
        (["Linear(6, 3)", "--input", "4,6", "--name", "a b"], "C identifier"),
        (["Linear(6, 3)", "--input", "4,6", "--optimizer", "exec('1')"], "unknown 'exec'"),
        (["Linear(6, 3)", "--input", "4,6", "--optimizer", "SGD(0.1)"], "a loss and an optimizer"),
        (["Linear(6, 3)", "--input", "4,6", "--loss", "MSELoss"], "MSELoss() alone"),
        (["Linear(6, 3)", "--input", "4,6", "--loss", "MSE"], "one of CrossEntropyLoss, NLLLoss"),
        (["Linear(6, 3)", "--input", "4,6", "--shape", "X=4,6"], "--shape is for formulas"),
        (["Linear(6, 3)", "--input", "4,6", "--name", "json"], "no module of Python"),
        (["Y[i] = 2*X[i]", "--shape", "X=4", "--input", "4"], "--shape NAME="),
        (
            ["Y[i] = 2*X[i]", "--shape", "X=4", "--loss", "MSELoss", "--optimizer", "SGD"],
            "expected a network",
        ),
    ],
)
def test_what_cannot_be_is_said(arguments, text, tmp_path):
    done = build(*arguments, "-o", str(tmp_path / "out"))
    assert isinstance(done.exception, ConvgenError) and text in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_bundle_is_called_like_its_subject(tmp_path):
    done = build("Linear(6, 3)", "--input", "4,6", "-o", str(tmp_path), "--no-backward")
    assert done.exit_code == 0 and (tmp_path / "linear.h").exists()
    made = cg.export(cg.parse("program copy\ntensor X: f32[4]\nY[i] = X[i]"), tmp_path / "copied")
    assert made.name == "copy_kernel"


def test_calls_are_read_through_a_list():
    assert parse_call("SGD", {"SGD": SGD}).momentum == 0
    for text in ("SGD(lr=open('x'))", "SGD.__class__", "lambda: 0", "SGD(", "SGD(speed=3)"):
        with pytest.raises(DataError):
            parse_call(text, {"SGD": SGD})


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    program = cg.parse("Y[i] = 2*X[i]", X=(4,))
    with pytest.raises(DataError, match="cannot be written"):
        cg.export(program, tmp_path / "file" / "out")
