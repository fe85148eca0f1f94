"""Networks as bundles: same bits as in Python, also for a step of training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import convgen as cg
from convgen.errors import DataError, TargetError
from convgen.interop.aot.export import export
from convgen.runtime.data.stream import Stream

sys.path.insert(0, str(Path(__file__).parent))
from bundles import STRICT, compiler, load, run  # noqa: E402


@pytest.fixture(scope="module")
def lenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lenet5")
    model = cg.compile(cg.zoo.lenet5(), input=(8, 1, 28, 28))
    setup = (cg.nn.CrossEntropyLoss(), cg.optim.SGD(0.02, momentum=0.9))
    made = export(model, folder, name="lenet5", loss=setup[0], optimizer=setup[1])
    return folder, made, model, setup


def samples(count: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(3)
    x = draw.standard_normal((count, 1, 28, 28)).astype(np.float32)
    return x, draw.integers(0, 10, count)


def test_lenet_is_small(lenet):
    _, made, _, _ = lenet
    assert made.object_bytes < 300_000


def test_forward_has_the_bits_of_predict(lenet):
    folder, _, model, _ = lenet
    bundle = load(folder, "lenet5").Bundle(threads=2)
    x, _ = samples(19)
    assert np.array_equal(bundle.forward(x)[:16], model.predict(x)[:16])
    assert np.allclose(bundle.forward(x), model.predict(x), atol=1e-5)
    assert np.array_equal(bundle.forward(x[:8], save=True), model.predict(x[:8]))
    bundle.close()


def test_gradients_against_finite_differences_in_the_large(lenet):
    """The gradient along a random direction, by parts of a batch and in one."""
    folder, _, model, (loss, _) = lenet
    x, labels = samples(8)
    bundle = load(folder, "lenet5").Bundle()
    y = bundle.forward(x, save=True).astype(np.float64)
    share = np.exp(y) / np.exp(y).sum(1, keepdims=True)
    share[np.arange(8), labels] -= 1
    dy = (share / 8).astype(np.float32)
    inputs, grads = bundle.backward(dy)
    _, wanted = model.gradients(x, labels, loss)
    for got, (name, want) in zip(grads, wanted.items(), strict=True):
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), name
    without, same = bundle.backward(dy, dx=False)
    assert without is None and all(map(np.array_equal, grads, same))
    parts = []
    for start in range(8):
        bundle.forward(x[start : start + 1], save=True)
        parts.append(bundle.backward(dy[start : start + 1]))
    for i, got in enumerate(grads):
        assert np.abs(got - sum(p[1][i] for p in parts)).max() <= 1e-5 * np.abs(got).max()
    assert np.allclose(inputs[0], np.concatenate([p[0][0] for p in parts]), atol=1e-6)


def test_a_step_has_the_bits_of_fit(lenet):
    """Three steps of SGD from the library, and the same three by `fit`."""
    folder, _, model, (loss, optimizer) = lenet
    x, labels = samples(8)
    bundle = load(folder, "lenet5").Bundle()
    start = model.state_dict()
    model.fit(x, labels, loss=loss, optimizer=optimizer, epochs=3, seed=0, show=False)
    after = model.state_dict()
    model.load_state_dict(start)
    again = load(folder, "lenet5").Bundle({n: a.copy() for n, a in start.items()})
    # fit shuffles: a batch of all samples, so only their order differs; give the same order.
    stream = Stream(8, 8, 0)
    for step in range(3):
        chosen = stream.indices(step)
        again.step(x[chosen], labels=labels[chosen], hyper=[0.02])
    assert not np.array_equal(start["0.weight"], after["0.weight"])
    for name, array in again.weights.items():
        assert np.array_equal(array, after[name]), name
    assert not np.array_equal(again.forward(x), bundle.forward(x))


def test_random_layers_in_a_step_have_the_bits_of_fit(tmp_path):
    """The caller's seed reaches every random layer as the seeds of fit do."""
    net = cg.nn.Sequential(
        cg.nn.Linear(7, 9), cg.nn.Dropout(0.4), cg.nn.ReLU(), cg.nn.Linear(9, 5), cg.nn.Dropout(0.3)
    )
    model = cg.compile(net, input=(6, 7))
    start = model.state_dict()
    loss, optimizer = cg.nn.CrossEntropyLoss(), cg.optim.SGD(0.1, momentum=0.9)
    export(model, tmp_path, name="dropped", loss=loss, optimizer=optimizer)
    draw = np.random.default_rng(0)
    x = draw.standard_normal((6, 7)).astype(np.float32)
    labels = draw.integers(0, 5, 6)
    model.fit(x, labels, loss=loss, optimizer=optimizer, epochs=3, seed=42, show=False)
    bundle = load(tmp_path, "dropped").Bundle({n: a.copy() for n, a in start.items()})
    assert bundle.manifest["seeds"] == 2
    for step in range(3):
        chosen = Stream(6, 6, 42).indices(step)
        seed = bundle.step_seed(42, step)
        bundle.step(x[chosen], labels=labels[chosen], hyper=[0.1], seed=seed)
    for name, array in model.state_dict().items():
        assert np.array_equal(bundle.weights[name], array), name


def test_a_step_from_c(lenet, tmp_path):
    """C alone: weights from the file, one step of SGD, and the weights and loss of fit's bits."""
    folder, _, model, (loss, optimizer) = lenet
    x, labels = samples(8)
    chosen = Stream(8, 8, 0).indices(0)
    x[chosen].tofile(tmp_path / "x.bin")
    labels[chosen].astype(np.int64).tofile(tmp_path / "labels.bin")
    (tmp_path / "step.c").write_text(_STEP)
    run([compiler("gcc"), "-std=c11", *STRICT, f"-I{folder}", "step.c", str(folder / "liblenet5.a"),
         "-lpthread", "-o", "step"], tmp_path)  # fmt: skip
    run(["./step", str(folder / "lenet5.weights")], tmp_path)
    start = model.state_dict()
    model.load_state_dict({n: a.copy() for n, a in load(folder, "lenet5").Bundle().weights.items()})
    history = model.fit(x, labels, loss=loss, optimizer=optimizer, epochs=1, seed=0, show=False)
    after = model.state_dict()
    model.load_state_dict(start)
    found = np.fromfile(tmp_path / "after.bin", np.float32)
    assert found[-1] == pytest.approx(history[-1].loss, rel=1e-6)
    place = 0
    for name, array in after.items():
        assert np.array_equal(found[place : place + array.size], array.reshape(-1)), name
        place += array.size
    assert place == found.size - 1


_STEP = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lenet5.h"
static void *get(int64_t n) { void *p = aligned_alloc(64, (size_t)((n + 127) / 64 * 64)); memset(p, 0, (size_t)n); return p; }
static void *read_all(const char *path, int64_t n) {
  void *p = get(n); FILE *f = fopen(path, "rb");
  if (!f || fread(p, 1, (size_t)n, f) != (size_t)n) exit(2);
  fclose(f); return p;
}
int main(int argc, char **argv) {
  static const int64_t counts[] = {150, 6, 2400, 16, 48000, 120, 10080, 84, 840, 10};
  void *context = get(LENET5_CONTEXT_BYTES), *packed, *work, *state, *block;
  const void *given[LENET5_WEIGHTS]; void *weights[LENET5_WEIGHTS];
  float *x = read_all("x.bin", 8 * 784 * 4), lr = 0.02f, loss;
  int64_t *labels = read_all("labels.bin", 64); FILE *out; int i;
  if (argc < 2 || lenet5_open(context)) return 1;
  block = read_all(argv[1], LENET5_WEIGHT_BYTES);
  lenet5_weight_pointers(block, given);
  for (i = 0; i < LENET5_WEIGHTS; i++) weights[i] = (void *)given[i];
  packed = get(lenet5_packed_bytes(context));
  work = get(lenet5_workspace_bytes(context, 8, 1));
  state = get(LENET5_OPTIMIZER_BYTES);
  if (lenet5_pack(context, given, packed)) return 3;
  if (lenet5_step(context, 8, x, labels, weights, packed, state, NULL, &lr, 0, work, NULL, &loss)) return 4;
  out = fopen("after.bin", "wb");
  for (i = 0; i < LENET5_WEIGHTS; i++) fwrite(weights[i], 4, (size_t)counts[i], out);
  fwrite(&loss, 4, 1, out);
  return fclose(out);
}
"""


def test_normalization_keeps_its_batch(tmp_path):
    """Inference serves any batch; training needs the statistics of the nominal one."""
    net = cg.nn.Sequential(cg.nn.Conv2d(2, 4, 3), cg.nn.BatchNorm2d(4), cg.nn.ReLU())
    model = cg.compile(net, input=(3, 2, 6, 6))
    export(model, tmp_path, name="norm", weights="embedded")
    module = load(tmp_path, "norm")
    bundle = module.Bundle()
    x = np.random.default_rng(0).standard_normal((5, 2, 6, 6)).astype(np.float32)
    bundle.states[0][...] = 0
    assert np.allclose(bundle.forward(x), model.predict(x), atol=1e-6)
    with pytest.raises(module.BundleError, match="batch"):
        bundle.forward(x, save=True)
    y = bundle.forward(x[:3], save=True)
    assert abs(float(y.mean())) < 1 and float(bundle.states[0].std()) > 0
    inputs, grads = bundle.backward(np.ones_like(y))
    assert [g.shape for g in grads] == [(4, 2, 3, 3), (4,), (4,), (4,)]
    assert np.isfinite(inputs[0]).all()


def test_branches_shared_weights_and_dropout(tmp_path):
    class Twice(cg.nn.Module):
        def __init__(self):
            self.a, self.drop = cg.nn.Conv2d(3, 3, 3, padding=1), cg.nn.Dropout(0.5)

        def forward(self, x):
            y = self.a(x)
            return self.drop(self.a(y) + x)

    model = cg.compile(Twice(), input=(2, 3, 5, 5))
    export(model, tmp_path, name="twice")
    module = load(tmp_path, "twice")
    bundle = module.Bundle()
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 5)).astype(np.float32)
    assert np.array_equal(bundle.forward(x), model.predict(x))
    y = bundle.forward(x, seed=7, save=True)
    kept = y != 0
    assert 0.2 < kept.mean() < 0.8
    assert np.array_equal(y, bundle.forward(x, seed=7, save=True))
    inputs, grads = bundle.backward(np.ones_like(y))
    # The bias of the last use adds 2 wherever something was kept; the first use adds more.
    direction = np.zeros(3, np.float32)
    direction[1] = 1e-2
    values = []
    for sign in (1, -1):
        weights = dict(bundle.weights)
        weights["a.bias"] = weights["a.bias"] + sign * direction
        values.append(
            float(module.Bundle(weights).forward(x, seed=7, save=True).sum(dtype=np.float64))
        )
    assert np.isclose((values[0] - values[1]) / 2e-2, grads[1][1], rtol=1e-3)
    assert inputs[0].shape == x.shape


def test_manifest_says_what_there_is(lenet):
    folder, _, _, _ = lenet
    facts = json.loads((folder / "MANIFEST.json").read_text())
    assert (
        facts["step"]["optimizer"].startswith("SGD(")
        and "momentum=0.9" in facts["step"]["optimizer"]
    )
    assert [w["name"] for w in facts["arrays"]["weights"]][:2] == ["0.weight", "0.bias"]
    assert facts["any_batch"] == {"infer": True, "train": True}
    assert "sum(" in facts["formula"] and facts["targets"][0]["kernels"][0]["schedule"]


def test_refusals():
    program = cg.parse("Y[n,k] = sum(c: X[n,c]*W[k,c])", X=(2, 5), W=(3, 5))
    for options, problem, text in (
        ({"name": "3d"}, DataError, "C identifier"),
        ({"weights": "file"}, DataError, "argument"),
        ({"weights": "here"}, DataError, "file"),
        ({"target": "pentium"}, TargetError, "pentium"),
        ({"target": ["x86-64-v3", "aarch64"]}, TargetError, "one instruction set"),
        ({"optimizer": cg.optim.SGD(0.1)}, DataError, "network"),
    ):
        with pytest.raises(problem, match=text):
            export(program, "nowhere", **options)
    with pytest.raises(DataError, match="Program"):
        export(3, "nowhere")
