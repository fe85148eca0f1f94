"""The benchmark's cases and bookkeeping; no clocks."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

import convgen.__main__ as command_line
from convgen.backends import llvm
from convgen.bench import conv as rows
from convgen.bench import timing
from convgen.bench.cases import CASES, LAYOUTS, PASSES, Case, cases
from convgen.bench.compiling import compile_case
from convgen.bench.conv import Row, Subject, geometric_means, measure
from convgen.bench.peak import PeakLoop, chains_kernel
from convgen.errors import InternalError, UserError
from convgen.passes.math import legalize
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
        subject.out[:] = 0
        ahead()
    assert np.array_equal(subject.out, want)


def fake_interleave(calls, seconds, threads):
    for call in calls.values():
        call()
    return {name: timing.Timing(2e-3, 1e-3, 3e-3, 7) for name in calls}


def peer_of(spoil):
    def peer(case, which, layout, threads, arrays):
        subject = Subject(case, which, layout, f32, threads)
        subject.call()
        out = subject.out.astype(np.float64)
        out = out.transpose(0, 3, 1, 2) if layout == "nhwc" and which != "weights" else out
        return {"twin": lambda: out + spoil * np.abs(out).max()}

    return peer


def test_rows_are_complete(monkeypatch):
    monkeypatch.setattr(rows, "interleave", fake_interleave)
    monkeypatch.setitem(rows.PEERS, "twin", peer_of(0))
    found = list(measure([SMALL], against=["twin"], seconds=0.0))
    assert [(r.which, r.prepared) for r in found] == [
        ("forward", False), ("forward", True), ("input", False), ("input", True),
        ("weights", False),
    ]  # fmt: skip
    for row in found:
        assert row.gflops == pytest.approx(SMALL.flops / 2e-3 / 1e9)
        assert row.ratio == 1 and row.peer == "twin" and row.error == 0
        assert row.share_of_peak == pytest.approx(row.gflops / row.peak_gflops)
        assert json.loads(json.dumps(row.as_json()))["pass"] == row.which
    assert geometric_means(found)["forward prepared"] == pytest.approx(1.0)


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    monkeypatch.setattr(rows, "interleave", fake_interleave)
    monkeypatch.setitem(rows.PEERS, "twin", peer_of(1e-3))
    with pytest.raises(InternalError, match="forward of small differs from its peer by 1.0e-03"):
        list(measure([SMALL], ["forward"], against=["twin"], seconds=0.0))


def test_geometric_mean():
    row = Row("a", "input", "nhwc", "f32", 1, True, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, ratio=4.0)
    other = Row("b", "input", "nhwc", "f32", 1, True, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, ratio=1.0)
    assert geometric_means([row, other]) == {"input prepared": pytest.approx(2.0)}


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


def test_json_needs_its_folder_before_anything_is_measured(monkeypatch, capsys):
    words = ["convgen", "bench", "conv", "--case", "lenet2", "--json", "no/such/file.json"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        command_line.main()
    assert capsys.readouterr().err.startswith("error: --json: there is no folder no/such")


@pytest.mark.parametrize("words", [[], ["bench"], ["bench", "conv"], ["bench", "peak"], ["knobs"]])
def test_every_command_has_help(words):
    found = CliRunner().invoke(command_line.cli, [*words, "--help"])
    assert found.exit_code == 0 and "Usage" in found.output
    if words and words != ["bench"]:
        assert "Example" in found.output
