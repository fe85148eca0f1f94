"""Operands that are added up first over what they alone depend on: when, what is left, the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from convgen.errors import ScheduleError
from convgen.ir.interpret import difference
from convgen.ir.nodes import Kernel
from convgen.ir.verify import verify
from convgen.passes.lower import lower
from convgen.runtime import kernel as kernels
from convgen.schedule.access import loads_of
from convgen.schedule.recipes import default_schedule
from convgen.schedule.schedule import parse_schedule
from convgen.symbolic.parse import parse
from convgen.target import target

TARGETS = ("x86-64-v3", "x86-64-v4")


def smoothed(size: int, channels: int, power: str = "", boundary: str = "zero") -> str:
    """One window of weights for all channels."""
    return f"""program smoothed
tensor X: f32[2, {channels}, {size}, {size}]
tensor w: f32[5, 5]
Y[n, y, x] = sum(i, p, q: w[p, q] * X{{., ., {boundary}, {boundary}}}[n, i, y + p - 2, x + q - 2]{power})   for y < {size}, x < {size}
"""  # noqa: E501


def checked(subject: Kernel, text: str) -> Kernel:
    """The scheduled kernel, legal and with the same numbers."""
    after = parse_schedule(text).apply(subject, target("x86-64-v3"))
    verify(after)
    assert not difference(subject, after)
    return after


@pytest.mark.parametrize("boundary", ["zero", "reflect", "replicate", "circular", "omit"])
@pytest.mark.parametrize("power", ["", "**2"])
def test_channels_are_added_up_before_the_window(power: str, boundary: str) -> None:
    after = checked(lower(parse(smoothed(7, 3, power, boundary))), "collect(i)")
    first, second = after.nests()
    assert [o.name for o in first.loops] == ["i0", "i2", "i3", "i"]
    assert {o.buffer for o in loads_of(first)} == {"X"} and len(list(loads_of(first))) <= 2
    assert [o.name for o in second.loops] == ["n", "y", "x", "p", "q"]
    assert {o.buffer for o in loads_of(second)} == {"X_sum", "w"}


def test_two_dimensions_of_one_operand() -> None:
    text = "Y[y] = sum(i, j, p: X{., ., zero}[i, j, y + p - 1] * w[p])"
    subject = lower(parse(text, X=(3, 4, 9), w=(3,), Y=(9,)))
    after = checked(subject, "collect(i, j)")
    assert after.buffer("X_sum").shape == (9,)


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("Y[y] = sum(i, p: X[i, y + p] * w[i, p])", "i"),  # w depends on it too
        ("Y[y] = sum(i, p: X[i, y + p] * w[p])", "p"),  # a window
        ("Y[y] = sum(i, p: X[i, y + p] * w[p])", "y"),  # an output
        ("Y[y] = sum(i, p: exp(X[i, y + p]) * w[p])", "i"),  # no product
        ("Y[y] = max(i, p: X[i, y + p] * w[p])", "i"),  # no sum
        ("Y[y] = sum(i, p: X[i, y + p] * w[p])", ""),
    ],
)
def test_what_cannot_be_collected(text: str, loops: str) -> None:
    shapes = {"X": (3, 10), "w": (3, 2) if "w[i" in text else (2,)}
    with pytest.raises(ScheduleError, match="summed over first"):
        parse_schedule(f"collect({loops})").apply(lower(parse(text, **shapes)), target("x86-64-v3"))


def test_before_all_other_directives() -> None:
    with pytest.raises(ScheduleError, match="scheduled already"):
        checked(lower(parse(smoothed(8, 4))), "split(i, 2); collect(i_out)")


@pytest.mark.parametrize("where", TARGETS)
def test_long_sums_under_a_window_are_collected(where: str) -> None:
    """Sixteen channels take as many times fewer products; few elements are not worth a phase, nor
    is a sum that reads each element once, nor one whose filters differ between channels."""
    machine = target(where)
    schedule = default_schedule(lower(parse(smoothed(64, 16, "**2"))), machine)
    assert "Y: collect(i)" in str(schedule)
    assert parse_schedule(str(schedule)).directives == schedule.directives
    assert "collect" not in str(default_schedule(lower(parse(smoothed(8, 4))), machine))
    once = "Y[k] = sum(n, y, x: X[n, y, x, k] * w[y, x])"
    subject = lower(parse(once, X=(32, 64, 64, 32), w=(64, 64)))
    assert "collect" not in str(default_schedule(subject, machine))


@pytest.mark.parametrize("power", ["", "**2"])
def test_the_numbers_of_a_compiled_kernel(power: str) -> None:
    program = parse(smoothed(40, 24, power))
    kernel = kernels.compile(program)
    assert "collect(i)" in str(kernel.schedule)
    rng = np.random.default_rng(1)
    given = {t.name: rng.uniform(-1, 1, t.shape).astype("float32") for t in program.inputs}
    wide = np.pad(given["X"].astype("float64"), ((0, 0), (0, 0), (2, 2), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (5, 5), (2, 3))
    want = np.einsum("niyxpq,pq->nyx", windows**2 if power else windows, given["w"])
    got = kernel(*(given[t.name] for t in program.inputs))
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
