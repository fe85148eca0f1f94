"""Shapes from a seed: what is drawn, what counts as slow; no clocks."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

import convgen.__main__ as command_line
from convgen.bench import odd
from convgen.bench.conv import Limits, Row
from convgen.bench.odd import Odd, shapes, summary

ROW = Row("odd0", "input", "nhwc", "f32", 1, False, 45.0, 0.5, 90.0, 1.0, 1.0, 1.0)


def test_shapes_are_those_of_the_issue():
    found = shapes()
    assert len(found) == 200 == len({replace(c, name="") for c in found})
    assert shapes(250)[:200] == found and shapes(seed=1) != found
    for case in found:
        assert 1 <= case.channels <= 300 and 1 <= case.filters <= 300 and 5 <= case.size <= 60
        assert 1 <= case.kernel <= 15 and 1 <= case.stride <= 4 and 1 <= case.dilation <= 3
        assert case.channels % case.groups == case.filters % case.groups == 0
        assert case.out >= 1 and case.flops >= 1e6
    ranges = [
        {getattr(c, k) for c in found}
        for k in ("stride", "dilation", "kernel", "groups", "padding")
    ]
    assert [len(r) for r in ranges[:3]] == [4, 3, 15] and len(ranges[3]) > 10 < len(ranges[4])


@pytest.mark.parametrize(
    ("ratios", "counts", "calls"),
    [([0.9], 0.9, 1), ([0.5, 0.9, 0.7, 0.95], 0.9, 4), ([0.7, 0.6, 0.5, 0.9], 0.6, 4)],
)
def test_slow_rows_are_measured_three_times_again(monkeypatch, ratios, counts, calls):
    given = iter(ratios)
    taken = []

    def measure_pass(subject, limits, against, seconds, ahead):
        taken.append(against)
        yield replace(ROW, ratio=next(given))

    class Subject:
        def __init__(self, *facts):
            self.kernel = type("K", (), {"schedule": "carry()"})

    monkeypatch.setattr(odd, "Subject", Subject)
    monkeypatch.setattr(odd, "measure_pass", measure_pass)
    (found,) = odd.measure(shapes(1), ["input"], limits=None)
    assert found.row.ratio == counts and found.slow == (counts < 0.8)
    assert taken == [("torch",)] * calls


def test_summary_counts():
    case = shapes(1)[0]
    rows = [
        replace(ROW, ratio=r, which=w) for r, w in ((0.5, "input"), (1.5, "input"), (3, "forward"))
    ]
    found = summary([Odd(case, row, "carry()") for row in rows])
    assert found["input"] == {"rows": 2, "below": 1, "median": 1.0, "smallest": 0.5}
    assert found["all"] == {"rows": 3, "below": 1, "median": 1.5, "smallest": 0.5}


def test_command(monkeypatch, tmp_path):
    cases = []

    def measure(chosen, passes, layout, *, threads, limits):
        cases.extend(chosen)
        for case in chosen:
            peer = {"peer": "torch nchw", "peer_gflops": 90.0}
            yield Odd(case, replace(ROW, case=case.name, ratio=0.5, **peer), "unroll(x)\ncarry()")

    monkeypatch.setattr(odd, "measure", measure)
    monkeypatch.setattr(Limits, "measured", lambda threads, dtype: None)
    file = tmp_path / "odd.json"
    words = ["bench", "odd", "--first", "3", "--count", "2", "--json", str(file)]
    found = CliRunner().invoke(command_line.cli, words, catch_exceptions=False)
    assert found.exit_code == 0 and cases == shapes(5)[3:]
    assert "odd3 input: ratio 0.50, 45.0 GFLOP/s (50% of peak), torch nchw 90.0" in found.output
    assert "\n    unroll(x)\n    carry()\n" in found.output
    written = json.loads(file.read_text())
    assert written["rows"][1]["shape"]["name"] == "odd4" and written["summary"]["all"]["below"] == 2
