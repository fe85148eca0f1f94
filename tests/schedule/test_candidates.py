"""Every schedule that the recipe can choose, not only the first: candidates of any rank, on machines
with small and large caches, compute what the naive loops compute, exactly."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convgen import knobs
from convgen.bench.cases import LAYOUTS, PASSES, Case
from convgen.ir.interpret import interpret
from convgen.ir.nodes import Kernel
from convgen.layers import LAYERS
from convgen.passes.lower import lower
from convgen.runtime.kernel import compile
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.schedule import parse_schedule
from convgen.symbolic.derive import grad
from convgen.symbolic.program import Program
from convgen.target import Target, runs_here, target

RUNS = [t for t in map(target, ("x86-64-v2", "x86-64-v3", "x86-64-v4")) if runs_here(t)]
OTHERS = [target(name) for name in ("x86-64-v3", "x86-64-v4", "aarch64")]
LAST = 400  # more than any nest has candidates
LARGEST = {  # axes of the image, and the largest extent of one
    "Linear": (0, 1),
    "Conv1d": (1, 40),
    "Conv3d": (3, 6),
    "ConvTranspose1d": (1, 30),
    "ConvTranspose2d": (2, 8),
    "LocallyConnected2d": (2, 9),
    "TiledConv2d": (2, 9),
}


@pytest.fixture(autouse=True, scope="module")
def no_cache():
    with knobs.override(CACHE=False):
        yield


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    """Shapes that leave rests on every axis: strides with holes, windows wider than the image."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 5]))
    channels, filters = (groups * draw(st.integers(1, 24 // groups)) for _ in range(2))
    taps, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, dilation * (taps - 1)))
    reach = dilation * (taps - 1) + 1
    size = draw(st.integers(max(1, reach - 2 * padding), 13))
    batch, stride = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    return Case("drawn", batch, channels, size, filters, taps, stride, padding, groups, dilation)


def machines(among: list[Target]) -> st.SearchStrategy[Target]:
    """Targets whose caches hold as little of the small shapes as real ones do of large shapes."""
    caches = st.sampled_from([(1 << 10, 1 << 13), (1 << 12, 1 << 15), (1 << 15, 1 << 20)])
    return st.builds(lambda t, c: replace(t, l1=c[0], l2=c[1]), st.sampled_from(among), caches)


def drawn(program: Program, seed: int) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    return {t.name: chance.integers(-4, 5, t.shape).astype("f4") for t in program.inputs}


def schedule_of(kernel: Kernel, machine: Target, seed: int) -> str:
    """Each nest takes any of its candidates; the seeds of the best ones are drawn often."""
    chance = random.Random(seed)
    ranks = {
        n.name: chance.choice([chance.randrange(12), chance.randrange(LAST)])
        for n in kernel.nests()
    }
    return str(default_schedule(kernel, machine, ranks))


@st.composite
def layers(draw: st.DrawFn) -> Program:
    """A layer of another kind, forward or with its gradients."""
    channels, filters = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    taps, stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    name = draw(st.sampled_from(sorted(LARGEST)))
    rank, largest = LARGEST[name]
    sizes = [draw(st.integers(taps, largest)) for _ in range(rank)]
    layer = LAYERS[name](channels, filters, *((taps, stride) if rank else ()))
    program = layer.program((draw(st.integers(1, 9)), channels, *sizes))
    wanted = [t.name for t in program.inputs]
    some = draw(st.sampled_from([[], wanted, *([name] for name in wanted)]))
    return grad(program, some) if some else program


programs = st.one_of(
    st.builds(Case.program, convolutions(), st.sampled_from(PASSES), st.sampled_from(LAYOUTS)),
    layers(),
)


@settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(programs, machines(RUNS), st.integers(0, 1 << 30))
def test_any_candidate_is_right_on_the_machine(
    program: Program, machine: Target, seed: int
) -> None:
    kernel, arrays = lower(program), drawn(program, seed)
    text = schedule_of(kernel, machine, seed)
    run = compile(program, target=machine, threads=1, schedule=text)
    want, found = interpret(kernel, arrays), run(*arrays.values())
    for tensor, got in zip(
        program.outputs, found if isinstance(found, tuple) else (found,), strict=True
    ):
        np.testing.assert_array_equal(got, want[tensor.name], err_msg=text)


@settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(programs, machines(OTHERS), st.integers(0, 1 << 30))
def test_any_candidate_is_right_for_other_machines(
    program: Program, machine: Target, seed: int
) -> None:
    kernel, arrays = lower(program), drawn(program, seed)
    text = schedule_of(kernel, machine, seed)
    got = interpret(parse_schedule(text).apply(kernel, machine), arrays)
    want = interpret(kernel, arrays)
    assert all(np.array_equal(got[name], want[name]) for name in want), text
