"""Iterations of long reduce loops that meet an edge run apart, and the others without tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convgen.affine import Affine
from convgen.bench.cases import Case
from convgen.ir.interpret import interpret
from convgen.ir.nodes import Load
from convgen.passes.lower import lower
from convgen.schedule.cost.edges import iterations_outside, share_at_edges
from convgen.schedule.facts import facts_of
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.skipping import reach_of
from convgen.target import target
from convgen.types import f32


@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 3), st.integers(1, 3),
       st.integers(-4, 2), st.integers(1, 30))  # fmt: skip
def test_iterations_outside_are_counted(
    taps: int, extent: int, step: int, reach: int, start: int, size: int
) -> None:
    place = Affine.of("x") * step + Affine.of("s") * reach + start
    found = reach_of(place, size, {"s": taps}, {"x": extent})
    assert found is not None
    inside = [
        all(0 <= step * x + reach * s + start < size for s in range(taps)) for x in range(extent)
    ]
    if any(inside):
        assert iterations_outside(found) == inside.count(False)
    else:
        assert iterations_outside(found) >= extent


@pytest.mark.parametrize("size", [24, 23, 12])
def test_both_windows_are_a_tile_without_tests(size: int) -> None:
    """The gradient to the filters of a depthwise layer, maps beyond the caches: nine taps wait in
    registers, rows and columns at the edges run apart; of extents that nothing divides too."""
    subject = lower(Case("small", 1, 32, size, 32, 3, 1, 1, 32).program("weights", "nhwc", f32))
    machine = replace(target("x86-64-v3"), l2=1 << 14)
    schedule = default_schedule(subject, machine)
    text = str(schedule)
    assert "unroll(s); unroll(r)" in text and "peel(y, 1, 1); peel(x_out, 1, 1)" in text
    after = schedule.apply(subject, machine)
    rng = np.random.default_rng(0)
    arrays = {
        b.name: rng.integers(-4, 5, b.shape).astype("float32")
        for b in subject.buffers
        if b.role == "input"
    }
    np.testing.assert_array_equal(interpret(subject, arrays)["dW"], interpret(after, arrays)["dW"])


def test_thin_edges_only() -> None:
    """One row of 24 at each end, of both windows; a map as small as its window has no middle."""

    def share(size: int, tile: set[str]) -> float:
        case = Case("small", 1, 16, size, 16, 3, 1, 1, 16)
        subject = lower(case.program("weights", "nhwc", f32))
        (body,) = subject.nests()
        facts = facts_of(body, subject, target("x86-64-v3"))
        (data,) = [o for o in facts.operands if isinstance(o.load, Load) and o.load.buffer == "X"]
        return share_at_edges(facts, data, tile)

    assert share(24, {"r", "g"}) == 1 - 22 / 24
    assert share(24, {"r", "s"}) == 1 - (22 / 24) * (22 / 24)
    assert share(24, {"g"}) == 1.0
    assert share(6, {"r", "s"}) == 1.0
