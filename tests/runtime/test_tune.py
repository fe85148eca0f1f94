"""Measured schedules: recorded, found again, refused where they make no sense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import convgen as cg
from convgen import knobs
from convgen.errors import ScheduleError, ShapeError
from convgen.runtime.tune import tune

TEXT = "Y[n, k] = sum(c: X[n, c] * W[k, c])"


def test_a_search_is_recorded_and_gives_the_same_numbers(tmp_path: Path) -> None:
    program = cg.parse(TEXT, X=(8, 20), W=(33, 20))
    with knobs.override(CACHE=True, CACHE_DIR=str(tmp_path / "cache")):
        first = tune(program, 3, threads=1, seconds=0.001)
        again = tune(program, 3, threads=1, seconds=0.001)
        kernel = cg.compile(program, search=3, threads=1)
    assert not first.recorded and again.recorded
    assert again.trials == first.trials and len(first.trials) > 1
    assert kernel.report().schedule == first.schedule
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=s).astype(np.float32) for s in ((8, 20), (33, 20)))
    np.testing.assert_allclose(kernel(x, w), x @ w.T, rtol=1e-5, atol=1e-5)


def test_a_search_knows_the_updates(tmp_path: Path) -> None:
    """A state that is copied at the end has a nest of its own, which the schedule names too."""
    text = "state P: f32[300]\ntensor G: f32[300]\nQ[i] = P[299 - i] - G[i] / 8\nupdate P <- Q"
    with knobs.override(CACHE_DIR=str(tmp_path)):
        kernel = cg.compile(cg.parse(text), search=2)
    assert "P.update: " in str(kernel.schedule)
    state, step = np.arange(300, dtype=np.float32), np.ones(300, np.float32)
    wanted = state[::-1] - step / 8
    kernel(state, step)
    np.testing.assert_array_equal(state, wanted)


def test_what_cannot_be_searched() -> None:
    program = cg.parse(TEXT, X=(8, 20), W=(33, 20))
    with pytest.raises(ScheduleError, match="a schedule and a search"):
        cg.compile(program, schedule="vectorize(k)", search=2)
    with pytest.raises(ScheduleError, match="a search is for a program"):
        cg.compile(cg.nn.ReLU(), input=(1, 2), search=2)
    n = cg.size("N")
    free = cg.parse(TEXT, X=(n, 20), W=(33, 20))
    with pytest.raises(ShapeError, match="needs every size"):
        tune(free, 2)
