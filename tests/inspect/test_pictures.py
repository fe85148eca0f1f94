"""Pictures show what the formula says; SVG and PNG."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest
from click.testing import CliRunner

from convgen import zoo
from convgen.__main__ import cli
from convgen.backends.assembly import hot_loop
from convgen.errors import DataError
from convgen.inspect import machine
from convgen.inspect.drawing import Dot, Drawing, Rectangle, Words
from convgen.inspect.fields import fields, receptive_fields
from convgen.inspect.operator import operator_view
from convgen.inspect.roofline import Spot, roofline
from convgen.inspect.windows import connections, reads_and_reaches, residue_classes
from convgen.runtime.module import trace
from convgen.symbolic.derive import adjoint
from convgen.symbolic.parse import parse

STRIDED = "Y[n, k, y, x] = sum(c, r, s: X[n, c, 2*y + r - 1, 2*x + 2*s - 2] * W[k, c, r, s])"


def layer():
    return parse(STRIDED + " for y < 8, x < 8", X=(1, 4, 16, 16), W=(6, 4, 3, 3))


def cells(drawing, fill):
    return [s for s in drawing.shapes if isinstance(s, Rectangle) and s.fill == fill]


def words(drawing):
    return [s.text for s in drawing.shapes if isinstance(s, Words)]


def test_an_output_reads_its_taps():
    found = reads_and_reaches(layer())
    assert found is not None
    said = words(found)
    assert {f"{r},{s}" for r in range(3) for s in range(3)} <= set(said)
    upper = [c for c in cells(found, "c0") if c.y < found.height / 2]
    lower = [c for c in cells(found, "c0") if c.y > found.height / 2]
    assert len(upper) == 9  # 3 x 3 taps
    assert sorted({c.x for c in upper})[1] - sorted({c.x for c in upper})[0] == 48  # dilation 2
    assert len(lower) in (2, 3, 4, 6)  # the taps of one residue class
    assert any(c.dashed for c in found.shapes if isinstance(c, Rectangle))  # padding


def test_groups_are_blocks():
    text = (
        "Y[n, g*3 + k, y] = sum(c < 2, r: X[n, g*2 + c, y + r] * W[g*3 + k, c, r]) for g < 3, k < 3"
    )
    grouped = connections(parse(text, X=(1, 6, 10), W=(9, 2, 3)))
    full = connections(layer())
    assert grouped is not None and full is not None
    assert len(cells(grouped, "c0")) == 3 and len(cells(full, "c0")) == 1


def test_residue_classes_have_colours():
    found = residue_classes(adjoint(layer(), "X"))
    assert found is not None
    said = " ".join(words(found))
    assert "2*u" in said and "tap" in said and "no tap: zero" in said
    assert residue_classes(adjoint(layer(), "W")) is None


def test_taps_are_counted_without_channels():
    text = (
        "Y[n, g*3 + k, y] = sum(c < 2, r: X[n, g*2 + c, 2*y + r - 1] * W[g*3 + k, c, r])"
        " for g < 2, k < 3, y < 4"
    )
    found = residue_classes(adjoint(parse(text, X=(1, 4, 8), W=(6, 2, 3)), "X"))
    assert found is not None
    said = [w for w in words(found) if "tap" in w]
    assert said == ["[n, 2*g + c, 2*u]  1 tap", "[n, 2*g + c, 2*u + 1]  2 taps"]


def test_what_does_not_move_has_no_picture():
    assert reads_and_reaches(parse("Y[i] = X[i] + 1", X=3)) is None


def test_receptive_fields_of_lenet():
    rows = fields(trace(zoo.lenet5(), [(1, 1, 28, 28)]))
    seen = [(r.extent, r.step) for r in rows if r.layer.startswith(("Conv", "MaxPool"))]
    assert seen == [(5, 1), (6, 2), (14, 2), (16, 4)]  # the textbook's arithmetic
    assert "14, step 2" in words(receptive_fields(rows, 28))


def test_files(tmp_path):
    drawing = reads_and_reaches(layer())
    assert drawing is not None
    tree = ElementTree.parse(drawing.save(tmp_path / "a.svg"))
    assert tree.getroot().tag.endswith("svg")
    with pytest.raises(DataError, match=r"\.svg or \.png"):
        drawing.save(tmp_path / "a.gif")


def test_png(tmp_path):
    pytest.importorskip("matplotlib")
    drawing = Drawing(100, 60, "all shapes")
    drawing.rectangle(5, 5, 20, 20, "c0", "ink", radius=4)
    drawing.rectangle(30, 5, 20, 20, None, "faint", dashed=True)
    drawing.line([(0, 0), (50, 50)], dashed=True)
    drawing.dot(70, 30, 4)
    drawing.words(10, 50, "a $ b", anchor="middle", bold=True)
    assert drawing.save(tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_loops_of_the_deepest_phase():
    loops = "phase pack:\n  for i in 3:\n    a = b\nphase Y:\n  for n in 2:  # parallel\n    for k in 4:  # vector\n      s = s + a\n"
    drawing = machine.loop_nest(loops)
    assert words(drawing)[0] == "phase Y"
    assert len(cells(drawing, "c1")) == 2 and len(cells(drawing, "c2")) == 2  # and the legend


def test_hot_loop_is_the_block_that_jumps_back():
    asm = "f:\n\tvfmadd231ps %ymm1, %ymm2, %ymm3\n\tvfmadd231ps %ymm1, %ymm2, %ymm3\n\tvfmadd231ps %ymm1, %ymm2, %ymm3\n.L1:\n\tvmovups x\n\tvfmadd231ps %ymm1, %ymm2, %ymm3\n\tdecq %rax\n\tjne .L1\n.L2:\n\tretq\n"
    found = hot_loop(asm)
    assert found is not None and found.label == ".L1" and found.fused == {1}
    assert found.instructions == 4 and found.share == 0.25
    arm = hot_loop("f:\n.L3:\n\tfmla v0.4s, v1.4s, v2.s[0]\n\tb.ne .L3\n")
    assert arm is not None and len(arm.fused) == 1
    assert hot_loop("f:\n\tretq\n") is None


def test_roofline_says_where_kernels_stand():
    spots = [Spot("fast", 30, 80.0), Spot("not run", 2, None)]
    drawing = roofline({"gflops": 100.0, "gigabytes_per_second": 10}, spots)
    assert {"peak 100", "10 GB/s", "fast", "not run"} <= set(words(drawing))


def test_roofline_of_many_kernels_has_every_level_and_hides_no_kernel():
    levels = [
        {"level": name, "kind": kind, "gigabytes_per_second": rate}
        for name, rate in (("L1", 400.0), ("L2", 120.0), ("memory", 30.0))
        for kind in ("read", "copy")
    ]
    spots = [Spot(f"kernel {i}", 10.0, 50.0 + i, "forward") for i in range(20)]
    drawing = roofline({"gflops": 100.0, "bandwidth": levels}, spots)
    found = words(drawing)
    assert {"L1 400 GB/s", "L2 120 GB/s", "memory 30 GB/s", "forward", "kernel 0"} <= set(found)
    assert sum(text.startswith("kernel") for text in found) < 20  # names that would overlap
    labels = [s.label.split(":")[0] for s in drawing.shapes if isinstance(s, Dot) and s.label]
    assert labels == [s.name for s in spots]
    assert "kernel 19: 69.0 GFLOP/s at 10.0 operations per byte</title>" in drawing.svg()


def test_operator_view_with_the_kernel():
    view = operator_view(layer(), "X")
    assert view is not None and view.holds
    assert "agree (" in str(view)
    assert operator_view(parse("Y[i] = X[i] * X[i]", X=3), "X", small=False) is None


def test_command(tmp_path):
    path = tmp_path / "r.html"
    done = CliRunner().invoke(
        cli,
        ["report", "Y[y] = sum(r: X[2*y + r] * W[r])", "--shape", "X=9", "--shape", "W=3",
         "-o", str(path), "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.output) == {"path": str(path), "bytes": path.stat().st_size}


@pytest.mark.parametrize(
    "text", ["{broken", "{}", "[1, 2]", '{"gflops": "many"}', '{"gflops": null}']
)
def test_a_peak_that_is_none(text, tmp_path):
    peak = tmp_path / "peak.json"
    peak.write_text(text)
    made = ["report", "Y[i] = 2 * X[i]", "--shape", "X=4", "-o", str(tmp_path / "r.html")]
    done = CliRunner().invoke(cli, [*made, "--peak", str(peak)])
    assert isinstance(done.exception, DataError), done.output
    assert "expected what `convgen bench peak --json` prints" in str(done.exception)
