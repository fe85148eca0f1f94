"""Bad input through the doors of a bundle is a code or an exception with a text, never a crash."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import convgen as cg
from convgen.interop.aot.archive import archive
from convgen.interop.aot.export import export
from convgen.target import target

sys.path.insert(0, str(Path(__file__).parent))
from bundles import load  # noqa: E402

CODES = (
    "ok",
    "context",
    "processor",
    "batch",
    "null",
    "small",
    "aligned",
    "parallel",
    "made without",
)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    export(
        cg.parse("Y[n,k] = sum(c: X[n,c]*W[k,c]) + b[k]", X=(4, 6), W=(5, 6), b=(5,)),
        folder,
        name="dense",
    )
    return folder


@pytest.fixture(scope="module")
def bundle(dense):
    draw = np.random.default_rng(1)
    weights = [draw.standard_normal(s).astype(np.float32) for s in ((5, 6), (5,))]
    return load(dense, "dense").Bundle(weights)


def test_error_texts(bundle):
    for code, word in enumerate(CODES):
        assert word in bundle._call("error_text", code).decode()
    for code in (-1, 9, 1 << 30):
        assert "unknown" in bundle._call("error_text", code).decode()


def forward(bundle, **changes) -> int:
    """The code of a checked forward with one thing changed; x, y ... are (address, bytes)."""
    x, y = np.zeros((4, 6), np.float32), np.zeros((4, 5), np.float32)
    work, saved = bundle._work(4), np.zeros(4096, np.uint8)
    given = {
        "context": (bundle._context.ctypes.data, bundle._context.nbytes),
        "x": (x.ctypes.data, x.nbytes),
        "packed": (bundle._packed.ctypes.data, bundle._packed.nbytes),
        "y": (y.ctypes.data, y.nbytes),
        "work": (work.ctypes.data, work.nbytes),
    }
    batch, parallel = changes.pop("batch", 4), changes.pop("parallel", None)
    for name, change in changes.items():
        given[name] = (
            change(*given.get(name, (saved.ctypes.data, saved.nbytes))) if change else None
        )
    module = sys.modules[type(bundle).__module__]

    def span(name):
        if given.get(name) is None:
            return None
        return ctypes.byref(module._Span(*given[name]))

    return bundle._call(
        "forward_checked", span("context"), batch, span("x"), span("packed"), None, 0, span("y"),
        span("saved"), span("work"), parallel,
    )  # fmt: skip


def test_checked_doors_refuse_what_would_crash(bundle):
    assert forward(bundle) == 0
    for name in ("context", "x", "packed", "y", "work"):
        assert forward(bundle, **{name: None}) == 4, name
        assert forward(bundle, **{name: lambda a, b: (None, b)}) == 4, name
        assert forward(bundle, **{name: lambda a, b: (a, 3)}) == 5, name
        assert forward(bundle, **{name: lambda a, b: (a, -1)}) == 5, name
        assert forward(bundle, **{name: lambda a, b: (a + 1, b + 64)}) == 6, name
    assert forward(bundle, saved=lambda a, b: (a - a % 64 + 4, b)) == 6
    assert forward(bundle, saved=lambda a, b: (a, 1)) in (5, 6)
    assert forward(bundle, batch=-1) == 3
    assert forward(bundle, batch=1 << 40) == 3
    assert forward(bundle, batch=5) == 5
    blank = np.zeros(64, np.uint8)
    assert (
        forward(bundle, context=lambda a, b: (blank.ctypes.data - blank.ctypes.data % 8, 64)) == 1
    )
    module = sys.modules[type(bundle).__module__]
    for workers, run in ((0, 1), (2, None)):
        assert forward(bundle, parallel=ctypes.byref(module._Parallel(None, workers, run))) == 7


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A bundle with several weights, states, random numbers and a training step."""
    folder = tmp_path_factory.mktemp("trained")
    net = cg.nn.Sequential(
        cg.nn.Linear(6, 5), cg.nn.BatchNorm1d(5), cg.nn.Dropout(0.5), cg.nn.Linear(5, 3)
    )
    step = {"loss": cg.nn.CrossEntropyLoss(), "optimizer": cg.optim.SGD(0.1, momentum=0.9)}
    export(cg.compile(net, input=(4, 6)), folder, name="trained", **step)
    return load(folder, "trained").Bundle()


def door_arguments(bundle, door):
    """(names and arguments of a checked door, in order): lists of arrays are spans."""
    facts = bundle.manifest["arrays"]
    arrays = {group: bundle._own(group, 4) for group in facts if group != "optimizer"}
    saved = sys.modules[type(bundle).__module__]._memory(
        bundle._call("saved_bytes", bundle._context.ctypes.data, 4)
    )
    common = {"context": [bundle._context], "batch": 4}
    packed, work = {"packed": [bundle._packed]}, {"work": [bundle._work(4)], "parallel": None}
    x, y = {"x": arrays["x"]}, {"y": arrays["y"]}
    state, seed = {"state": bundle.states}, {"seed": 1}
    match door:
        case "pack":
            return {"context": [bundle._context], "weights": bundle._weights, **packed}
        case "forward":
            return {**common, **x, **packed, **state, **seed, **y, "saved": [saved], **work}
        case "backward":
            wanted = {"dx": arrays["dx"], "grads": arrays["grads"]}
            given = {"dy": arrays["dy"], **packed, "saved": [saved]}
            return {**common, **x, **given, **wanted, **work}
    given = {"labels": arrays["labels"], "weights": bundle._weights, **packed}
    given |= {"optimizer": bundle._optimizer, **state, "hyper": [np.ones(1, np.float32)], **seed}
    return {**common, **x, **given, **work, "loss": [np.zeros((), np.float32)]}


@pytest.mark.parametrize("door", ["pack", "forward", "backward", "step"])
def test_every_checked_door_looks_at_every_span(trained, door):
    """A group's any span, wrong in any way, gives the code of that way; nothing is run."""
    module = sys.modules[type(trained).__module__]
    arguments = door_arguments(trained, door)

    def call(name=None, number=0, change=None):
        ready = []
        for key, value in arguments.items():
            if isinstance(value, list):
                spans = [(a.ctypes.data, a.nbytes) for a in value]
                if key == name:
                    if change is None:
                        ready.append(None)
                        continue
                    spans[number] = change(*spans[number])
                ready.append((module._Span * len(spans))(*spans))
            else:
                ready.append(change if key == name else value)
        return trained._call(f"{door}_checked", *ready)

    assert call() == 0
    groups = {k: v for k, v in arguments.items() if isinstance(v, list)}
    for name, arrays in groups.items():
        if (door, name) not in {("forward", "saved"), ("backward", "dx")}:
            assert call(name) == 4, name
        for number in range(len(arrays)):
            assert call(name, number, lambda a, b: (None, b)) == 4, (name, number)
            assert call(name, number, lambda a, b: (a, b // 2 - 1)) == 5, (name, number)
            assert call(name, number, lambda a, b: (a, -1)) == 5, (name, number)
            assert call(name, number, lambda a, b: (a + 1, b + 64)) == 6, (name, number)
    if door != "pack":
        for batch in (-1, 1 << 40, 5):
            assert call("batch", 0, batch) == 3
        for workers, run in ((0, 1), (-1, 1), (2, None)):
            bad = ctypes.byref(module._Parallel(None, workers, run))
            assert call("parallel", 0, bad) == 7
    assert call() == 0


def test_pool_doors(trained):
    module = sys.modules[type(trained).__module__]
    memory, place = module._memory(trained._call("pool_bytes")), module._Parallel()
    start = memory.ctypes.data
    assert trained._call("pool_start", None, 2, ctypes.byref(place)) == 4
    assert trained._call("pool_start", start, 2, None) == 4
    assert trained._call("pool_start", start + 1, 2, ctypes.byref(place)) == 6
    for workers in (0, -1, 1025):
        assert trained._call("pool_start", start, workers, ctypes.byref(place)) == 7
    assert trained._call("pool_start", start, 3, ctypes.byref(place)) == 0
    assert place.workers == 3
    trained._call("pool_stop", start)
    trained._call("pool_stop", start)
    trained._call("pool_stop", None)


def test_closed_contexts_and_sizes(bundle):
    closed = np.zeros(64, np.uint8).ctypes.data
    assert bundle._call("packed_bytes", None) == -1
    assert bundle._call("packed_bytes", closed) == -1
    assert bundle._call("target", closed) is None
    assert bundle._call("saved_bytes", bundle._context.ctypes.data, -3) == -1
    assert bundle._call("workspace_bytes", bundle._context.ctypes.data, 1, 0) == -1
    assert bundle._call("open", None) == 4
    assert bundle._call("open_level", closed, 7) == 2


def test_loader_refuses_arrays_that_do_not_fit(bundle):
    x = np.zeros((4, 6), np.float32)
    error = type(bundle).forward.__globals__["BundleError"]
    for bad, word in (
        (x.astype(np.float64), "dtype"),
        (x[:, :5], "shape"),
        (x[None], "shape"),
        ("x", "dtype"),
    ):
        with pytest.raises(error, match=word):
            bundle.forward(bad)
    with pytest.raises(error, match="expected 1 arrays"):
        bundle.forward(x, x)
    with pytest.raises(error, match="weights"):
        type(bundle)()
    with pytest.raises(error, match="missing b"):
        type(bundle)({"W": x})
    assert np.array_equal(bundle.forward(np.asfortranarray(x)), bundle.forward(x))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda m, b, x, n: m.Bundle(threads=0), "threads: expected 1 to 1024, got 0"),
        (lambda m, b, x, n: m.Bundle(threads="2"), "threads: expected a whole number"),
        (lambda m, b, x, n: m.Bundle(level=7), "level .*expected 0 to 0, got 7"),
        (lambda m, b, x, n: m.Bundle(3), "arrays in order, or by name, got int"),
        (lambda m, b, x, n: b.forward(), "expected 1 arrays, got 0"),
        (lambda m, b, x, n: b.forward(x[0]), r"expected shape \(N, 6\), got \(6,\)"),
        (lambda m, b, x, n: b.forward([[1.0], [1, 2]]), "x: expected an array, got list"),
        (lambda m, b, x, n: b.forward(x, seed=-1), "seed: expected 0 to"),
        (lambda m, b, x, n: b.step(x, labels=n, hyper=[]), "expected numbers for lr"),
        (lambda m, b, x, n: b.step(x, labels=n, hyper=["a"]), "expected numbers for lr"),
        (lambda m, b, x, n: b.step(x, labels=n, hyper=[1, 2]), "expected numbers for lr"),
        (lambda m, b, x, n: b.step(x, labels=n + 3, hyper=[1]), "labels: expected 0 to 2, got 3"),
        (lambda m, b, x, n: b.step(x, labels=n - 1, hyper=[1]), "got -1"),
        (lambda m, b, x, n: b.step(x[:2], labels=n[:2], hyper=[1]), "a batch of 4, got 2"),
        (lambda m, b, x, n: b.step(x, labels=n, hyper=[1], seed=0.5), "seed: expected a whole"),
    ],
)  # fmt: skip
def test_loader_says_what_it_expected(trained, spoil, text):
    module = sys.modules[type(trained).__module__]
    x, labels = np.zeros((4, 6), np.float32), np.zeros(4, np.int64)
    with pytest.raises(module.BundleError, match=text):
        spoil(module, trained, x, labels)


def test_steps_do_not_write_weights_that_are_read_only(trained):
    """They may be a file mapped into memory, where a write would end the process."""
    module = sys.modules[type(trained).__module__]
    weights = {name: array.copy() for name, array in trained.weights.items()}
    first = next(iter(weights))
    weights[first].setflags(write=False)
    bundle = module.Bundle(weights)
    x, labels = np.zeros((4, 6), np.float32), np.zeros(4, np.int64)
    bundle.forward(x)
    with pytest.raises(module.BundleError, match=f"{first} read-only"):
        bundle.step(x, labels=labels, hyper=[1])


def test_damaged_bundles_are_refused(dense, tmp_path):
    def copy(name, change):
        folder = tmp_path / name
        shutil.copytree(dense, folder)
        change(folder)
        module = load(folder, "dense")
        weights = [np.zeros((5, 6), np.float32), np.zeros(5, np.float32)]
        with pytest.raises(module.BundleError) as found:
            module.Bundle(weights)
        return str(found.value)

    def cut(folder):
        path = folder / "libdense.so"
        path.write_bytes(path.read_bytes()[:1000])

    def flip(folder):
        path = folder / "libdense.so"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def other_machine(folder):
        text = (folder / "MANIFEST.json").read_text()
        here = target("native").isa
        there = "aarch64" if here == "x86-64" else "x86-64-v3"
        names = {f"{here}-v{i}" for i in (2, 3, 4)} | {here}
        for name in names:
            text = text.replace(f'"name": "{name}"', f'"name": "{there}"')
        (folder / "MANIFEST.json").write_text(text)

    assert "truncated" in copy("cut", cut)
    assert "damaged" in copy("flip", flip)
    assert "this machine" in copy("machine", other_machine)
    assert "missing" in copy("gone", lambda f: (f / "libdense.so").unlink())
    assert "cannot be read" in copy("manifest", lambda f: (f / "MANIFEST.json").write_text("{"))
    assert "expected name 'dense', got None" in copy(
        "other", lambda f: (f / "MANIFEST.json").write_text("{}")
    )
    assert "got None" in copy("list", lambda f: (f / "MANIFEST.json").write_text("[1]"))

    def newer(key):
        def change(folder):
            facts = json.loads((folder / "MANIFEST.json").read_text())
            (folder / "MANIFEST.json").write_text(json.dumps(facts | {key: facts[key] + 1}))

        return change

    def without(folder):
        facts = json.loads((folder / "MANIFEST.json").read_text())
        del facts["targets"]
        (folder / "MANIFEST.json").write_text(json.dumps(facts))

    assert "targets missing" in copy("part", without)
    assert "no digest" in copy("digest", lambda f: (f / "libdense.so.json").write_text("[]"))
    assert "expected format 1, got 2" in copy("format", newer("format"))
    assert "expected abi 1, got 2" in copy("abi", newer("abi"))


def test_same_input_same_bytes(dense, tmp_path):
    """In another process, with another hash seed; and once more in this one."""
    code = (
        "import sys, convgen as cg\n"
        "p = cg.parse('Y[n,k] = sum(c: X[n,c]*W[k,c]) + b[k]', X=(4, 6), W=(5, 6), b=(5,))\n"
        "from convgen.interop.aot.export import export\n"
        "export(p, sys.argv[1], name='dense')\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "CONVGEN_CACHE": "0"}
    root = Path(cg.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, env=environment, cwd=root
    )
    first = {p.relative_to(dense): p.read_bytes() for p in dense.rglob("*") if p.is_file()}
    found = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert first.keys() - {Path("__pycache__")} >= found.keys()
    for name, data in found.items():
        if ".so" not in name.name:
            assert data == first[name], name
    program = cg.parse("Y[n,k] = sum(c: X[n,c]*W[k,c]) + b[k]", X=(4, 6), W=(5, 6), b=(5,))
    export(program, tmp_path / "again", name="dense")
    for name in ("dense.ll", "dense.o", "MANIFEST.json"):
        assert (tmp_path / "again" / name).read_bytes() == first[Path(name)], name


def test_manifest_digests(dense):
    facts = json.loads((dense / "MANIFEST.json").read_text())
    for name, entry in facts["files"].items():
        data = (dense / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])


def test_archive_of_nothing_and_long_names():
    assert archive({}).startswith(b"!<arch>\n")


def test_without_a_linker_the_rest_is_written(dense, tmp_path, monkeypatch):
    from convgen.interop.aot import link

    monkeypatch.setattr(link, "linkers", lambda machine: [])
    program = cg.parse("Y[i] = 2*X[i]", X=(4,))
    made = export(program, tmp_path, name="twice")
    assert "convgen[link]" in str(made) and (tmp_path / "libtwice.a").exists()
    assert not (tmp_path / "libtwice.so").exists()


@pytest.mark.skipif(target("native").isa != "x86-64", reason="needs an x86-64 machine")
def test_fat_bundle_picks_a_level(tmp_path):
    program = cg.parse("Y[n,k] = tanh(sum(c: X[n,c]*W[k,c]))", X=(3, 40), W=(24, 40))
    export(program, tmp_path, name="fat", target=["x86-64-v2", "x86-64-v3", "x86-64-v4"])
    draw = np.random.default_rng(0)
    x, w = (draw.standard_normal(s).astype(np.float32) for s in ((3, 40), (24, 40)))
    names = ["x86-64-v2", "x86-64-v3", "x86-64-v4"]
    here = names.index(target("native").name)
    module = load(tmp_path, "fat")
    assert module.Bundle([w]).target == names[here]
    for level, name in enumerate(names):
        if level > here:
            with pytest.raises(module.BundleError, match="processor"):
                module.Bundle([w], level=level)
            continue
        one = module.Bundle([w], level=level)
        assert one.target == name
        assert np.array_equal(one.forward(x), cg.compile(program, target=name)(x, w))
