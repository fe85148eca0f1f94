"""Lanes that run through the filters of several groups: when they are taken, and that they are right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convgen import knobs
from convgen.bench.cases import Case
from convgen.ir.interpret import interpret
from convgen.ir.nodes import Kernel, Nest
from convgen.passes.lower import lower
from convgen.runtime.kernel import compile
from convgen.schedule.predict import predict
from convgen.schedule.recipes import groups
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.recipes.groups import grouped_pair
from convgen.symbolic.parse import parse
from convgen.target import Target, target

V3, V4 = target("x86-64-v3"), target("x86-64-v4")


def lowered(case: Case, which: str) -> tuple[Kernel, Nest]:
    kernel = lower(case.program(which, "nhwc"))
    return kernel, next(kernel.nests())


def convolution(channels: int, filters: int, count: int, size: int = 28) -> Case:
    """So many groups, each with so many channels and filters."""
    return Case("grouped", 1, channels * count, size, filters * count, 3, 1, 1, count)


@pytest.mark.parametrize("machine", [V3, V4], ids=str)
def test_a_gradient_to_filters_of_groups_fills_its_vectors(machine: Target) -> None:
    """32 groups of four filters: eight or sixteen lanes instead of four, without a note."""
    kernel, _ = lowered(convolution(4, 4, 32, 56), "weights")
    schedule = default_schedule(kernel, machine)
    assert str(schedule).startswith("fuse(g, k);") and not schedule.notes
    scheduled = schedule.apply(kernel, machine)
    assert not any("gathered" in note for note in scheduled.notes), scheduled.notes
    (nest,) = [n for n in scheduled.nests() if n.name == "dW"]
    assert nest.loops[-1].extent == machine.lanes(kernel.buffer("dW").dtype)
    (found,) = [p for p in predict(scheduled, machine) if p.nest == "dW"]
    assert found.share_of_peak > 0.4


@pytest.mark.parametrize(
    ("channels", "filters", "machine", "pair"),
    [
        (4, 4, V3, ("g", "k")),
        (1, 2, V3, ("g", "k")),
        (2, 3, V3, ("g", "k")),  # the same pattern again after three vectors
        (4, 3, V3, None),
        (4, 12, V3, ("g", "k")),  # as well, and no group ends in half a vector
        (4, 16, V3, None),
        (4, 8, V3, None),  # a group fills a vector
        (4, 8, V4, ("g", "k")),
        (9, 4, V3, None),  # the channels of two groups lie further apart than a vector is long
    ],
)
def test_which_loops_run_through_groups(
    channels: int, filters: int, machine: Target, pair: tuple[str, str] | None
) -> None:
    kernel, nest = lowered(convolution(channels, filters, 16), "forward")
    assert grouped_pair(nest, kernel, machine) == pair


@pytest.mark.parametrize(("times", "width"), [(2, 8), (3, 24), (5, 40)])
def test_vectors_of_repeated_elements_are_shuffled(times: int, width: int) -> None:
    """Every element so many times: chunks hold whole patterns, and nothing is gathered."""
    program = parse(f"Y[y, x] = X[y, x // {times}] for x < {240 * times}", X=(9, 240))
    kernel = lower(program)
    scheduled = default_schedule(kernel, V3).apply(kernel, V3)
    (nest,) = scheduled.nests()
    assert nest.loops[-1].extent % width == 0 and not scheduled.notes
    numbers = np.arange(9 * 240, dtype="f4").reshape(9, 240)
    found = compile(program, threads=1)(numbers)
    np.testing.assert_array_equal(found, numbers.repeat(times, axis=1))


@settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from([2, 3, 4, 5, 8, 12]),
    st.integers(2, 19),
    st.integers(3, 9),
    st.sampled_from(["forward", "weights"]),
    st.sampled_from([1 << 11, 1 << 15]),
)
def test_lanes_of_groups_are_right(
    channels: int, filters: int, count: int, size: int, which: str, cache: int
) -> None:
    """Wherever they can be taken they are, on machines with small and large caches."""
    program = convolution(channels, filters, count, size).program(which, "nhwc")
    machine = replace(target("native"), l1=cache, l2=16 * cache)
    random = np.random.default_rng(0)
    arrays = {t.name: random.integers(-4, 5, t.shape).astype("f4") for t in program.inputs}
    naive = lower(program)
    with pytest.MonkeyPatch.context() as patch, knobs.override(CACHE=False):
        patch.setattr(groups, "GAIN", 99.0)
        schedule = default_schedule(naive, machine)
        kernel = compile(program, target=machine, threads=1, schedule=str(schedule))
    want = interpret(naive, arrays)[program.output.name]
    np.testing.assert_array_equal(kernel(*arrays.values()), want, err_msg=str(schedule))
