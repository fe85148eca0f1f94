"""What a kernel says of itself: predictions, hot loops, layouts, bytes; kept beside the cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import convgen as cg
from convgen import knobs
from convgen.__main__ import cli
from convgen.runtime import details, measure
from convgen.runtime.kernel import compile

TEXT = "Y[n, y, x, k] = sum(r, s, c: X[n, y + r, x + s, c] * W[k, c, r, s]) for y < 20, x < 20"


def program() -> cg.Program:
    return cg.parse(TEXT, X=(1, 22, 22, 32), W=(64, 32, 3, 3))


def test_everything_is_told() -> None:
    kernel = compile(program(), target="x86-64-v4", threads=1)
    report = kernel.report()
    (nest,) = [row for row in report.nests if row.operations]
    assert nest.operations == 20 * 20 * 64 * 32 * 9 == report.operations
    assert nest.bound in nest.parts and 0 < nest.share_of_peak <= 1
    assert report.packs == ("W",) == kernel.packs
    ahead = {row.nest: row.seconds for row in report.nests if row.nest == "pack_W"}
    assert report.predicted_seconds == pytest.approx(
        sum(row.seconds for row in report.nests) - ahead["pack_W"]
    )
    (hot,) = [row for row in report.loops if row.phase == "Y"]
    assert hot.multiply_adds >= 12 and hot.spills == 0
    assert hot.loads <= 0.67 * hot.multiply_adds
    layouts = {a.name: a.layout for a in report.arguments}
    assert layouts["Y"] == "[n][y][x][k]" and layouts["X"] == "[n][r+y][s+x][c]"
    assert layouts["W"] == "[k][c][r][s]" and layouts["W_packed"].startswith("[k/")
    assert report.bytes_read == 4 * (22 * 22 * 32 + 64 * 32 * 9)
    assert report.bytes_written == 4 * 20 * 20 * 64
    assert report.bytes_packed == 4 * 64 * 32 * 9


def test_the_text_and_the_json() -> None:
    report = compile(program(), threads=1).report()
    text = str(report)
    for part in ("schedule:", "predicted on one core: ", "bound by", "hot loops:", "arrays: "):
        assert part in text
    assert "measured" not in text
    facts = json.loads(json.dumps(report.as_json()))
    assert facts["nests"][-1]["bound"] == report.nests[-1].bound
    assert facts["bytes_read"] == report.bytes_read and facts["measured_seconds"] is None
    told = report.measured(1e-3, 100.0)
    assert told.measured_share == pytest.approx(2 * report.operations / 1e-3 / 100e9)
    assert "measured: 1.00 ms, packing included, " in str(told)


def test_measuring_runs_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "quick_peak", lambda threads, dtype: 50.0 * threads)
    monkeypatch.setattr(measure, "quickest", lambda call, seconds: call() is None or 2e-3)
    report = compile(program(), threads=2).report(measure=True)
    assert report.calls == 0 and report.peak_gflops == 100.0
    assert report.measured_share == pytest.approx(
        2 * report.operations / report.measured_seconds / 1e11
    )


def test_details_are_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with knobs.override(CACHE=True, CACHE_DIR=str(tmp_path / "cache")):
        first = compile(program(), threads=1)
        assert not list((tmp_path / "cache").glob("*.details"))  # nothing before it is asked for
        want = first.report()
        monkeypatch.setattr(details, "_find", None)
        again = compile(program(), threads=1).report()
    assert again.from_cache
    assert (again.nests, again.loops, again.arguments) == (want.nests, want.loops, want.arguments)


def test_updates_in_place_and_open_sizes() -> None:
    n = cg.size("N")
    kernel = compile(cg.parse("Y[i] = 2*X[i]", X=(n,)))
    kernel(np.ones(5, np.float32))
    assert kernel.report().bytes_read == 20


def test_inputs_that_are_not_read_move_no_bytes() -> None:
    backward = cg.grad(program(), ["X"])
    report = compile(backward, threads=1).report()
    assert "X f32[1, 22, 22, 32]: input (not read)" in str(report)
    assert report.bytes_read == 4 * (64 * 32 * 9 + 20 * 20 * 64)


def test_command(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["report", "Conv2d(4, 8, 3)", "--input", "1,4,8,8", "--text"]
    found = CliRunner().invoke(cli, [*words, "--wrt", "W"], catch_exceptions=False)
    assert found.exit_code == 0
    assert found.output.count("predicted on one core") == 2 and "kernel conv_grad" in found.output
    found = CliRunner().invoke(cli, [*words, "--json"])
    assert [one["name"] for one in json.loads(found.output)] == ["conv", "conv_grad"]
