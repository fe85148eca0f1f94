"""Copies with a dimension for each axis (im2col): where the recipes make them, and that the kernels
compute the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from schedule_nests import window

from convgen.bench.cases import Case
from convgen.ir.interpret import difference
from convgen.ir.nodes import LoopKind
from convgen.passes.lower import lower
from convgen.schedule.recipes import folding, unfolding
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.schedule import parse_schedule
from convgen.target import target

ZEN4 = replace(target("x86-64-v3"), cpu_model="AMD EPYC (family 25, model 17)")


@pytest.mark.parametrize("where", ["x86-64-v4", "x86-64-v3"])
def test_filters_of_few_positions_are_read_as_they_lie(where: str) -> None:
    """Lanes along the sum over channels and taps, as one loop; the data unfolded, the filters not
    copied; a tile of filters and positions."""
    subject, machine = window(1, 24, 96, 9, 8, 0, 1), target(where)
    schedule = default_schedule(subject, machine)
    scheduled = schedule.apply(subject, machine)
    (nest_,) = [n for n in scheduled.nests() if n.name == "Y"]
    assert [b.name for b in scheduled.buffers if b.role == "packed"] == ["X_unfolded"]
    assert nest_.reduces[0].factored == ("c_r_s_in",) and nest_.reduces[0].carried
    assert any(o.kind is LoopKind.UNROLL and o.name.startswith("k") for o in nest_.loops)
    assert parse_schedule(str(schedule)).directives == schedule.directives
    assert not difference(subject, scheduled)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [
        (9, 8, 2),  # one position: lanes along channels would be lines apart in the filters
        (6, 3, 1),  # sixteen: a copy of the filters, made ahead, is not free for all calls
    ],
)
def test_filters_that_lie_as_taps_are_read_in_order(size: int, kernel: int, stride: int) -> None:
    case = Case("few", 1, 300, size, 300, kernel, stride, 0)
    subject = lower(case.program("forward", "nhwc"))
    schedule = default_schedule(subject, ZEN4)
    assert str(schedule).startswith("unfold(X, n, y, x, c, r, s); ")
    packed = [b.name for b in schedule.apply(subject, ZEN4).buffers if b.role == "packed"]
    assert packed == ["X_unfolded"]


def test_filters_of_many_positions_are_not() -> None:
    subject = window(1, 24, 96, 40, 7, 0, 1)
    assert "unfold" not in str(default_schedule(subject, target("x86-64-v4")))


def test_the_rows_of_small_maps_become_one_loop() -> None:
    """49 positions in tiles of 6 and 5, which fill the registers; rows of 7 in 4 and 3 do not."""
    subject = lower(Case("small", 1, 80, 29, 289, 6, 4, 2).program("forward", "nhwc"))
    text = str(default_schedule(subject, ZEN4))
    assert text.startswith("unfold(X, n, y, x, r, s, c); ")
    assert "fuse(y, x)" in text and "cover(y_x, 6, 5)" in text
    assert "unfold" not in str(default_schedule(subject, target("x86-64-v4")))


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("which", ["forward", "input"])
def test_unfolded_maps_compute_the_same(
    monkeypatch: pytest.MonkeyPatch, which: str, padding: int
) -> None:
    monkeypatch.setattr(unfolding, "PHASE", 0)
    monkeypatch.setattr(unfolding, "GAIN", 4.0)
    monkeypatch.setattr(folding, "GAIN", 0.0)
    case = Case("small", 1, 32, 9, 48, 3, 1, padding)
    subject = lower(case.program(which, "nhwc"))
    schedule = default_schedule(subject, ZEN4)
    assert "unfold(" in str(schedule) and "fuse(" in str(schedule)
    assert not difference(subject, schedule.apply(subject, ZEN4))


def test_short_rows_of_channels_are_not_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of nine elements cost more to copy than the tiles gain."""
    monkeypatch.setattr(unfolding, "PHASE", 0)
    subject = lower(Case("grouped", 1, 81, 27, 162, 6, 4, 2, 9).program("forward", "nhwc"))
    assert "unfold" not in str(default_schedule(subject, ZEN4))
