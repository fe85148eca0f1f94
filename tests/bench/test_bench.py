"""The benchmark's cases and bookkeeping; no clocks."""

import gc
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

import convgen.__main__ as command_line
from convgen.backends import llvm
from convgen.bench import conv as rows
from convgen.bench import peers, timing
from convgen.bench.bandwidth import Bandwidth
from convgen.bench.cases import CASES, DENSE, LAYOUTS, PASSES, Case, Dense, cases
from convgen.bench.compiling import compile_case
from convgen.bench.conv import Limits, Row, Subject, geometric_means, measure
from convgen.bench.models import model_of
from convgen.bench.peak import Peak, PeakLoop
from convgen.bench.peers import PEERS, Peer
from convgen.commands import bench as commands
from convgen.errors import InternalError, UserError
from convgen.passes.math import legalize
from convgen.runtime.peak import chains_kernel
from convgen.symbolic.evaluate import evaluate
from convgen.target import target
from convgen.types import f32, f64


def test_case_sizes():
    assert len(CASES) == 24
    assert {n: CASES[n].out for n in ("alex1", "res1", "res3_s2", "dil2", "lenet2")} == {
        "alex1": 55, "res1": 112, "res3_s2": 28, "dil2": 28, "lenet2": 10,
    }  # fmt: skip
    assert CASES["dw3"].flops == 2 * 144 * 56 * 56 * 9
    assert CASES["grp"].shape("W", "nhwc") == (128, 4, 3, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["res3_s2", "dw3", "grp", "dil2"])
def test_forward_is_the_convolution(name, layout):
    """A small case of the same attributes, against the definition written with numpy."""
    base = CASES[name]
    groups = min(base.groups, 2)
    channels = 2 * groups if base.channels > base.groups else groups
    filters = 2 * groups if base.filters > base.groups else groups
    attributes = (base.kernel, base.stride, base.padding, groups, base.dilation)
    case = type(base)("small", 1, channels, 5, filters, *attributes)
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (1, channels, 5, 5))
    w = rng.integers(-3, 4, case.shape("W", layout))
    given = x if layout == "nchw" else x.transpose(0, 2, 3, 1)
    found = evaluate(case.forward(layout), {"X": given.tolist(), "W": w.tolist()})["Y"]
    y = np.array(found.data, int).reshape(case.shape("Y", layout))
    y = y if layout == "nchw" else y.transpose(0, 3, 1, 2)
    p = case.padding
    padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
    depth, per = channels // groups, filters // groups
    for k, i, j in np.ndindex(filters, case.out, case.out):
        first = k // per * depth
        rows = slice(case.stride * i, case.stride * i + case.dilation * case.kernel, case.dilation)
        cols = slice(case.stride * j, case.stride * j + case.dilation * case.kernel, case.dilation)
        window = padded[0, first : first + depth, rows, cols][:, : case.kernel, : case.kernel]
        assert y[0, k, i, j] == (window * w[k]).sum()


@pytest.mark.parametrize("which", PASSES)
def test_passes_write_what_they_should(which):
    made = CASES["res3_s2"].program(which, "nhwc")
    wanted = {"forward": "Y", "input": "dX", "weights": "dW"}[which]
    assert [t.name for t in made.outputs] == [wanted]
    tensor = {"forward": "Y", "input": "X", "weights": "W"}[which]
    assert tuple(made.output.shape) == CASES["res3_s2"].shape(tensor, "nhwc")


def test_unknown_case_lists_the_known():
    assert cases(("all",)) == cases(()) == tuple(CASES.values())
    with pytest.raises(UserError, match="'vgg9'; expected all or one of alex1"):
        cases(("vgg3_2", "vgg9"))


@pytest.mark.parametrize(("name", "chains"), [("x86-64-v4", 24), ("x86-64-v3", 12)])
def test_peak_loop_is_multiply_adds_and_nothing_else(name, chains):
    machine = target(name)
    kernel = legalize(chains_kernel(chains, machine.lanes(f32), f32), machine)
    asm = llvm.compile_kernel(kernel, machine).asm
    loop = max(re.findall(r"(?s)\n(\.LBB\w+):(.*?)\tj\w+\s+\1\n", asm), key=lambda m: len(m[1]))[1]
    lines = [line.split()[0] for line in loop.splitlines() if re.match(r"\s+[a-z]", line)]
    adds = [line for line in lines if line.startswith("vfmadd")]
    assert len(adds) % chains == 0 and len(adds) >= chains
    assert not any("rsp" in line for line in loop.splitlines())
    assert len(lines) - len(adds) <= 4


def test_peak_loop_computes_its_chains():
    loop = PeakLoop(2, 4, f64, target(), 1)
    loop.run()
    x, y = loop._arrays[0]
    assert np.allclose(y.reshape(2, 4), x[4:8] / (1 - x[:4]))


SMALL = Case("small", 1, 64, 10, 64, 3, 1, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", PASSES)
def test_prepared_calls_give_the_same(which, layout):
    subject = Subject(SMALL, which, layout, f32, 1)
    subject.call()
    want = subject.out.copy()
    ahead = subject.prepared()
    assert (ahead is None) == (which == "weights")
    if ahead is not None:
        assert ahead != subject.call
        subject.out[:] = 0
        ahead()
    assert np.array_equal(subject.out, want)


@pytest.mark.parametrize("which", PASSES)
def test_preferred_arrays_hold_the_same_numbers(which):
    case = Case("depthwise", 2, 32, 6, 32, 3, 1, 1, 32)
    plain, subject = (Subject(case, which, layout, f32, 2) for layout in ("nchw", "preferred"))
    assert subject.kernel.layouts
    plain.call()
    subject.call()
    assert np.allclose(subject.result(), plain.out, atol=1e-5)
    ahead = subject.prepared()
    if ahead is not None:
        subject.out[:] = 0
        ahead()
        assert np.allclose(subject.result(), plain.out, atol=1e-5)


TINY = Dense("tiny", 3, 32, 48)


def test_what_packs_nothing_is_its_own_prepared_call():
    case = Case("depthwise", 1, 32, 6, 32, 3, 1, 1, 32)
    subject = Subject(case, "weights", "nhwc", f32, 1)
    assert subject.prepared() is None  # no weights among the inputs
    subject = Subject(case, "forward", "nhwc", f32, 1)
    subject.kernel = type("Bare", (), {"packs": ()})()
    assert subject.prepared() == subject.call


def fake_interleave(calls, seconds, threads):
    for call in calls.values():
        call()
    return {name: timing.Timing(2e-3, 1e-3, 3e-3, 7) for name in calls}


def peer_of(spoil, ahead=False):
    def peer(case, which, layout, threads, arrays):
        subject = Subject(case, which, layout, f32, threads)
        subject.call()
        tensor = {"forward": "Y", "input": "X", "weights": "W"}[which]
        out = case.as_peers_have(subject.out.astype(np.float64), tensor, layout)
        return {f"twin{' ahead' if ahead else ''}": lambda: out + spoil * np.abs(out).max()}

    return Peer(peer, ahead)


@pytest.fixture
def limits(monkeypatch):
    monkeypatch.setattr(rows, "interleave", fake_interleave)
    found = [
        Bandwidth(level, kind, 1, 1, rate)
        for level, rate in (("L1", 400.0), ("L2", 200.0), ("L3", 100.0), ("memory", 20.0))
        for kind, rate in (("read", rate), ("copy", 1.5 * rate))
    ]
    peak = Peak(100.0, 2, 4, 1, "f32", "t", "cpu", 20.0, tuple(found))
    return Limits(PeakLoop(2, 4, f32, target(), 1), peak)


def test_rows_are_complete(monkeypatch, limits):
    monkeypatch.setitem(PEERS, "torch", peer_of(0))
    monkeypatch.setitem(PEERS, "ort", peer_of(0, ahead=True))
    found = list(measure([SMALL], against=["torch", "ort"], seconds=0.0, limits=limits))
    assert [(r.which, r.prepared) for r in found] == [
        ("forward", False), ("forward", True), ("input", False), ("input", True),
        ("weights", False),
    ]  # fmt: skip
    for row in found:
        assert row.gflops == pytest.approx(SMALL.flops / 2e-3 / 1e9)
        assert row.ratio == 1 and row.ratio_to_torch == 1 and row.error == 0
        assert row.peer == ("twin ahead" if row.prepared else "twin")
        assert set(row.peers) == {"twin", "twin ahead"}
        assert row.share_of_peak == pytest.approx(row.gflops / row.peak_gflops)
        facts = json.loads(json.dumps(row.as_json()))
        assert facts["pass"] == row.which
        keys = "case pass layout threads prepared gflops share_of_peak peer peer_gflops ratio"
        assert set(keys.split()) <= set(facts)
    size = 4 * (2 * 10 * 10 * 64 + 64 * 64 * 9)  # in L2, copied: half of X and W is what Y has
    assert found[0].megabytes == pytest.approx(size / 1e6) and found[0].level == "L2"
    assert found[0].share_of_bandwidth == pytest.approx(size / 2e-3 / 300e9)


def test_a_prepared_row_falls_back_to_torch(monkeypatch, limits):
    monkeypatch.setitem(PEERS, "torch", peer_of(0))
    found = list(measure([SMALL], ["forward"], against=["torch"], seconds=0.0, limits=limits))
    assert [r.peer for r in found] == ["twin", "twin"]
    monkeypatch.setitem(PEERS, "ort", peer_of(0, ahead=True))
    found = list(measure([SMALL], ["forward"], against=["ort"], seconds=0.0, limits=limits))
    assert [(r.peer, r.ratio_to_torch) for r in found] == [(None, None), ("twin ahead", None)]


def test_a_wrong_kernel_is_not_timed(monkeypatch, limits):
    monkeypatch.setitem(PEERS, "torch", peer_of(1e-3))
    with pytest.raises(InternalError, match="forward of small differs from its peer by 1.0e-03"):
        list(measure([SMALL], ["forward"], against=["torch"], seconds=0.0, limits=limits))


@pytest.mark.parametrize(
    ("library", "package"), [("ort", "onnxruntime"), ("openvino", "openvino"), ("torch", "torch")]
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "case",
    [
        Case("plain", 2, 6, 9, 8, 3, 2, 1),
        Case("grouped", 1, 8, 7, 16, 3, 1, 2, 4, 2),
        TINY,
    ],
    ids=lambda c: c.name,
)  # fmt: skip
def test_peers_compute_the_case(case, layout, library, package):
    pytest.importorskip(package)
    for which in PASSES:
        subject = Subject(case, which, case.layouts((layout,))[0], f32, 1)
        subject.call()
        calls = PEERS[library].calls(case, which, subject.layout, 1, subject.arrays)
        assert bool(calls) == (which == "forward" or library == "torch")
        for call in calls.values():
            for _ in range(2):  # what the engines point to is still there
                gc.collect()
                assert rows._error(subject, call()) < 1e-5


def test_models_are_what_onnx_reads():
    onnx = pytest.importorskip("onnx")
    case = Case("grouped", 1, 8, 7, 16, 3, 1, 2, 4, 2)
    weights = np.arange(np.prod(case.shape("W", "nchw")), dtype=np.float32)
    model = onnx.load_model_from_string(model_of(case, weights.reshape(case.shape("W", "nchw"))))
    onnx.checker.check_model(model, full_check=True)
    node = model.graph.node[0]
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert found == {
        "strides": [1, 1], "pads": [2, 2, 2, 2], "dilations": [2, 2], "kernel_shape": [3, 3],
        "group": 4,
    }  # fmt: skip
    held = onnx.numpy_helper.to_array(model.graph.initializer[0])
    assert np.array_equal(held.ravel(), weights)
    gemm = onnx.load_model_from_string(model_of(TINY, np.ones((48, 32), np.float32)))
    onnx.checker.check_model(gemm, full_check=True)


def test_peers_that_are_missing_say_how_to_get_them(monkeypatch):
    for library, package in (("torch", "torch"), ("ort", "onnxruntime"), ("openvino", "openvino")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"{package} is not installed.*pip install 'convgen\["):
            PEERS[library].calls(SMALL, "forward", "nhwc", 1, rows.arrays_of(SMALL, "nhwc", f32))


def test_the_commands_know_every_peer():
    assert commands.LIBRARIES == tuple(peers.PEERS)


def row_of(ratio, **more):
    facts = {"ratio": ratio, "ratio_to_torch": ratio, "peer": "torch nchw"}
    facts |= {"peers": {"torch nchw": 90.0}, **more}
    return Row("a", "input", "nhwc", "f32", 1, True, 45.0, 1.0, 100.0, 1.0, 1.0, 1.0, **facts)


def test_geometric_mean():
    assert geometric_means([row_of(4.0), row_of(1.0)]) == {
        "input, nhwc, prepared, to torch (2 rows)": pytest.approx(2.0)
    }
    slow = row_of(4.0, peers={"torch nchw": 10.0})
    assert geometric_means([slow, row_of(1.0)]) == {
        "input, nhwc, prepared, to torch (2 rows)": pytest.approx(2.0),
        "input, nhwc, prepared, to torch where below 88 % of peak (1 rows)": pytest.approx(4.0),
    }
    ahead = row_of(3.0, peer="ort", ratio_to_torch=None, peers={"ort": 15.0})
    assert geometric_means([ahead]) == {
        "input, nhwc, prepared, to those that pack ahead (1 rows)": pytest.approx(3.0)
    }
    caller = replace(row_of(0.4), layout="nchw", prepared=False)
    assert geometric_means([caller])["input, nchw, packing included, to torch nchw (1 rows)"] == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["conv", "--against", "torch,cudnn"], "'cudnn' is not one of torch, ort, openvino."),
        (["conv", "--pass", "backward"], "'backward' is not one of forward, input, weights."),
        (["conv", "--threads", "0"], "0 is not in the range x>=1."),
        (["dense", "--layout", "nchw"], "No such option"),
    ],
)
def test_mistyped_options(words, message):
    found = CliRunner().invoke(command_line.cli, ["bench", *words])
    assert found.exit_code == 2 and message in found.output


def test_dense_rows(monkeypatch, limits, tmp_path):
    monkeypatch.setattr(rows.Limits, "measured", lambda threads, dtype: limits)
    monkeypatch.setitem(DENSE, "fc1", TINY)
    monkeypatch.setattr(
        commands, "_plot_roofline", lambda peak, spots, place: place.write_text(str(spots))
    )
    file, plot = tmp_path / "rows.json", tmp_path / "roof.svg"
    words = ["bench", "dense", "--case", "fc1", "--pass", "forward,input", "--json", str(file)]
    found = CliRunner().invoke(
        command_line.cli, [*words, "--plot", str(plot)], catch_exceptions=False
    )
    assert found.exit_code == 0, found.output
    written = json.loads(file.read_text())["rows"]
    assert [(r["case"], r["pass"], r["layout"]) for r in written[:1]] == [("tiny", "forward", "nc")]
    assert "tiny input" in plot.read_text()
    found = CliRunner().invoke(command_line.cli, [*words[:-1]])  # printed alone
    assert json.loads(found.output)["rows"][0]["case"] == "tiny"


def test_interleave_takes_turns_and_medians(monkeypatch):
    now = [0.0]
    order = []

    def subject(name, seconds):
        def call():
            order.append(name)
            now[0] += seconds

        return call

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    found = timing.interleave({"a": subject("a", 2e-3), "b": subject("b", 1e-4)}, 0.05)
    assert found["a"].median == pytest.approx(2e-3)
    assert found["b"].smallest == pytest.approx(1e-4) == pytest.approx(found["b"].largest)
    assert found["a"].rounds >= 7
    turns = [x for x, y in zip(order, [None, *order], strict=False) if x != y]
    assert turns == ["a", "b"] * (len(turns) // 2)


def test_command_line_knobs(monkeypatch):
    monkeypatch.setenv("CONVGEN_DEBUG", "2")
    found = CliRunner().invoke(command_line.cli, ["knobs", "--json"])
    rows = {row["variable"]: row for row in json.loads(found.output)}
    assert rows["CONVGEN_DEBUG"]["value"] == "2"
    assert "CONVGEN_CACHE_DIR" in CliRunner().invoke(command_line.cli, ["knobs"]).output


def test_command_line_errors_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["convgen", "bench", "conv", "--case", "vgg9"])
    with pytest.raises(SystemExit) as stop:
        command_line.main()
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith("error: there is no case 'vgg9'; expected")


def test_compiling_twice_gives_the_same_code(tmp_path):
    first = compile_case("lenet2", str(tmp_path))
    assert any(tmp_path.iterdir())
    assert compile_case("lenet2", str(tmp_path))[1] == first[1] > 0
    assert compile_case("fc1", str(tmp_path))[1] > 0


def test_json_needs_its_folder_before_anything_is_measured(monkeypatch, capsys):
    words = ["convgen", "bench", "conv", "--case", "lenet2", "--json", "no/such/file.json"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        command_line.main()
    assert capsys.readouterr().err.startswith("error: --json: there is no folder no/such")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json", "/proc/rows.json"], "--json: /proc/rows.json cannot be written: "),
        (["--json", "."], "--json: . is a folder; expected a file"),
        (["--plot", "roof.gif"], "--plot: picture roof.gif; expected .svg or .png"),
    ],
)
def test_files_that_cannot_be_written_are_refused_first(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rows.Limits, "measured", None)
    found = CliRunner().invoke(command_line.cli, ["bench", "conv", *words])
    assert isinstance(found.exception, UserError) and message in str(found.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [[], ["bench"], ["bench", "conv"], ["bench", "peak"], ["knobs"]])
def test_every_command_has_help(words):
    found = CliRunner().invoke(command_line.cli, [*words, "--help"])
    assert found.exit_code == 0 and "Usage" in found.output
    if words and words != ["bench"]:
        assert "Example" in found.output
