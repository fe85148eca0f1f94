"""The doors of a kernel: what is measured calls what it says; no clocks."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import convgen as cg
import convgen.__main__ as command_line
from convgen.bench import embed, embed_c, timing
from convgen.errors import InternalError
from convgen.interop.aot.export import export
from convgen.runtime.build import build_program
from convgen.target import target


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
    found = embed.measure_doors(0.0)
    assert [d.name for d in found.doors] == [
        "kernel itself", "ctypes call", "Python call with out=", "Python call",
    ]  # fmt: skip
    assert np.array_equal(calls["Python call with out="], calls["Python call"])
    assert found.doors[0].microseconds == pytest.approx(1 / 16)
    assert found.doors[2].overhead == pytest.approx(3 - 1 / 16)
    assert found.doors[2].share == pytest.approx(47)
    assert not found.notes


def test_doors_of_torch(calls):
    torch = pytest.importorskip("torch")
    from convgen.interop.torch import function

    doors = {d.name: d for d in embed.measure_doors(0.0, function).doors}
    want = torch.from_numpy(calls["Python call"])
    for name in ("torch call", "torch call, gradients wanted"):
        assert torch.equal(calls[name].detach(), want)
        assert doors[name].over == "plain torch operator + kernel"
        assert doors[name].overhead == pytest.approx(1 - 1 / 16)
    assert calls["torch call, gradients wanted"].requires_grad
    assert calls["plain torch operator, gradients wanted"].requires_grad


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")
def test_a_c_program_calls_the_bundle(calls):
    """forward_in_c compares the bits itself; here it calls into a bundle that counts."""
    doors = {d.name: d for d in embed.measure_doors(0.0, None, export).doors}
    assert doors["C call"].over == "kernel itself"
    assert doors["C call"].overhead == pytest.approx(1 / 16)

    def wrong(program, folder, **options):
        export(cg.parse(str(program).replace("+ b[k]", "- b[k]")), folder, **options)

    with pytest.raises(InternalError, match="other bits"):
        embed.measure_doors(0.0, None, wrong)


def test_without_a_c_compiler_the_report_says_so(calls, monkeypatch):
    monkeypatch.setattr(embed_c.shutil, "which", lambda name: None)
    found = embed.measure_doors(0.0, None, export)
    assert "C call" not in {d.name for d in found.doors}
    assert "no C compiler" in found.notes[0]
    shown = CliRunner().invoke(command_line.cli, ["bench", "embed"])
    assert "no C compiler" in shown.output and "Python call" in shown.output


@pytest.mark.parametrize("name", ["x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"])
def test_all_doors_do_the_same_work(name):
    """A bundle packs weights ahead; the kernel of the comparison has none to pack."""
    program = embed.LAYER.program(embed.SHAPE)
    assert all(e.when == "run" for e in build_program(program, target(name), None).entries)


def test_native_repetition_calls_the_kernel(calls, monkeypatch):
    made = []
    zeros = embed.zeros_on_line
    monkeypatch.setattr(embed, "zeros_on_line", lambda size: made.append(zeros(size)) or made[-1])
    embed.measure_doors(0.0)
    assert made and calls["kernel itself"] is None


def test_command_line(calls):
    found = CliRunner().invoke(command_line.cli, ["bench", "embed", "--json"])
    rows = json.loads(found.output)
    assert rows[0]["name"] == "kernel itself" and {
        "microseconds",
        "over",
        "overhead",
        "share",
    } <= set(rows[0])
    found = CliRunner().invoke(command_line.cli, ["bench", "embed", "--help"])
    assert found.exit_code == 0 and "Example" in found.output
