"""The doors of a kernel: what is measured calls what it says; no clocks."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import convgen.__main__ as command_line
from convgen.bench import embed, timing


@pytest.fixture
def calls(monkeypatch):
    """Every subject is called once and takes as many microseconds as its place."""
    seen = {}

    def interleave(subjects, seconds):
        seen.update({name: call() for name, call in subjects.items()})
        return {
            name: timing.Timing(i * 1e-6, i * 1e-6, i * 1e-6, 7)
            for i, name in enumerate(subjects, 1)
        }

    monkeypatch.setattr(embed, "interleave", interleave)
    return seen


def test_doors_without_torch(calls):
    doors = embed.measure_doors(0.0)
    assert [d.name for d in doors] == [
        "C call", "ctypes call", "Python call with out=", "Python call",
    ]  # fmt: skip
    assert np.array_equal(calls["Python call with out="], calls["Python call"])
    assert doors[0].microseconds == pytest.approx(1 / 16)
    assert doors[2].overhead == pytest.approx(3 - 1 / 16)


def test_doors_of_torch(calls):
    torch = pytest.importorskip("torch")
    from convgen.interop.torch import function

    doors = {d.name: d for d in embed.measure_doors(0.0, function)}
    want = torch.from_numpy(calls["Python call"])
    for name in ("torch call", "torch call, gradients wanted"):
        assert torch.equal(calls[name].detach(), want)
        assert doors[name].over == "plain torch operator + C call"
        assert doors[name].overhead == pytest.approx(1 - 1 / 16)
    assert calls["torch call, gradients wanted"].requires_grad
    assert calls["plain torch operator, gradients wanted"].requires_grad


def test_native_repetition_calls_the_kernel(calls, monkeypatch):
    made = []
    zeros = embed.zeros_on_line
    monkeypatch.setattr(embed, "zeros_on_line", lambda size: made.append(zeros(size)) or made[-1])
    embed.measure_doors(0.0)
    assert made and calls["C call"] is None


def test_command_line(calls):
    found = CliRunner().invoke(command_line.cli, ["bench", "embed", "--json"])
    rows = json.loads(found.output)
    assert rows[0]["name"] == "C call" and {"microseconds", "over", "overhead"} <= set(rows[0])
    found = CliRunner().invoke(command_line.cli, ["bench", "embed", "--help"])
    assert found.exit_code == 0 and "Example" in found.output
