"""Lanes that read a few neighbours in a fixed pattern: one load and one shuffle, of the right ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convgen import knobs
from convgen.affine import Affine, FloorDiv, Mod
from convgen.ir.interpret import interpret
from convgen.ir.nodes import Gather, Kernel, Lanes, Phase, VectorLoad
from convgen.ir.visit import walk
from convgen.passes.flatten import flatten
from convgen.passes.flatten.proof import check_memory
from convgen.passes.flatten.scope import LANE
from convgen.passes.flatten.windows import window_of
from convgen.passes.lower import lower
from convgen.runtime.kernel import compile
from convgen.schedule.schedule import parse_schedule
from convgen.symbolic.parse import parse
from convgen.symbolic.program import Program
from convgen.target import target

lane, row = Affine.of(LANE), Affine.of("row")


@st.composite
def patterns(draw: st.DrawFn) -> Affine:
    """Offsets that move with the lane in any way, and with a row that is not known."""
    divisor, step = draw(st.integers(2, 9)), draw(st.integers(-3, 6))
    shifted = lane + draw(st.integers(0, 8))
    kind = draw(st.sampled_from([FloorDiv, Mod]))
    moving = step * Affine.of(kind(shifted, divisor)) + draw(st.sampled_from([0, 0, 1])) * lane
    return moving + draw(st.sampled_from([4, 8, 24, 32])) * row + draw(st.integers(0, 40))


@given(patterns(), st.sampled_from([4, 8, 16]), st.integers(1, 16), st.sampled_from([1, 8, 16]))
def test_windows_hold_what_the_lanes_read(
    offset: Affine, lanes: int, valid: int, multiple: int
) -> None:
    """Every lane picks its element; where all lanes read inside the buffer, so does the load."""
    valid = min(valid, lanes)
    read = [[offset.evaluate({LANE: n, "row": r}) for n in range(valid)] for r in range(5)]
    low = min(map(min, read))
    offset, read = offset - min(low, 0), [[v - min(low, 0) for v in one] for one in read]
    size = -(-(1 + max(map(max, read))) // multiple) * multiple
    found = window_of(offset, valid, lanes, size)
    if found is None:
        return
    assert found.count <= lanes and len(found.picked) == lanes
    assert all(n == found.count for n in found.picked[valid:]) and max(found.picked) < lanes
    for number, wanted in enumerate(read):
        start = found.start.evaluate({"row": number})
        assert 0 <= start and start + found.count <= size
        assert [start + n for n in found.picked[:valid]] == wanted


def test_what_differs_from_row_to_row_is_no_window() -> None:
    assert window_of(Affine.of(FloorDiv(lane + row, 4)), 8, 8, 64) is None
    assert window_of(row * 8 + lane, 8, 8, 64) == window_of(8 * row + lane, 8, 8, 64)
    assert window_of(Affine.of(FloorDiv(lane, 4)) * 9 + row, 8, 8, 64) is None  # too far apart


def grouped(groups: int, channels: int, filters: int) -> Program:
    """Y[x, g, k] = sum(c, s: X[x + s, g, c] * W[g, k, c, s]), groups side by side."""
    c, f = f"{channels}*g + c", f"{filters}*g + k"
    return parse(
        f"Y[x, {f}] = sum(c, s: X[x + s - 1, {c}] * W[{f}, c, s])"
        f" for x < 5, g < {groups}, k < {filters}",
        X=(5, groups * channels),
        W=(groups * filters, channels, 3),
    )


def loads_of_data(kernel: Kernel) -> Iterator[object]:
    for phase in kernel.phases:
        assert isinstance(phase, Phase)
        yield from (e for e in walk(phase.body) if getattr(e, "buffer", "") == "X")


@pytest.mark.parametrize("where", ["x86-64-v3", "x86-64-v4", "aarch64"])
@pytest.mark.parametrize(("groups", "channels", "filters"), [(8, 4, 4), (8, 2, 4), (16, 1, 2)])
def test_lanes_run_through_groups(where: str, groups: int, channels: int, filters: int) -> None:
    """No element of X is gathered; the channels of a group share one load where they can."""
    program, machine = grouped(groups, channels, filters), target(where)
    naive = lower(program)
    width = machine.lanes(program.output.dtype)
    schedule = parse_schedule(
        f"fuse(g, k); split(g_k, {width}); reorder(g_k_out, x, s, c, g_k_in);"
        " vectorize(g_k_in, strided=True); unroll(c); carry()"
    )
    flat = flatten(schedule.apply(naive, machine), machine)
    check_memory(flat)
    found = list(loads_of_data(flat))
    assert found and not any(isinstance(e, Gather) for e in found)
    shuffled = {e for p in flat.phases for e in walk(p.body) if isinstance(e, Lanes)}
    several = filters < width  # groups in a vector; of one group each element goes to all lanes
    assert bool(shuffled) == several == any(isinstance(e, VectorLoad) and e.stride for e in found)
    random = np.random.default_rng(0)
    arrays = {t.name: random.integers(-4, 5, t.shape).astype("f4") for t in program.inputs}
    want = interpret(naive, arrays)["Y"]
    np.testing.assert_array_equal(interpret(flat, arrays)["Y"], want)


@pytest.mark.parametrize(("groups", "channels", "filters"), [(8, 4, 4), (7, 4, 4), (12, 3, 2)])
def test_the_machine_shuffles_as_well(groups: int, channels: int, filters: int) -> None:
    """Also where a rest of the vector is left, and groups that do not fill whole vectors."""
    program = grouped(groups, channels, filters)
    schedule = (
        "fuse(g, k); split(g_k, 8, 'peel'); reorder(g_k_out, x, s, c, g_k_in);"
        " vectorize(g_k_in, strided=True); unroll(c); carry()"
    )
    random = np.random.default_rng(0)
    arrays = {t.name: random.integers(-4, 5, t.shape).astype("f4") for t in program.inputs}
    want = interpret(lower(program), arrays)["Y"]
    with knobs.override(CACHE=False):
        run = compile(program, schedule=schedule, threads=1)
    np.testing.assert_array_equal(run(*arrays.values()), want)
