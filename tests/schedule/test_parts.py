"""Sums that are bound by bytes run row by row where columns would bring them again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convgen.bench.cases import Case
from convgen.ir.interpret import interpret
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import Kernel
from convgen.passes.lower import lower
from convgen.schedule.cost.locality import waiting_cycles
from convgen.schedule.machine import machine_of
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.text import parse_directives
from convgen.target import Target, target
from convgen.types import f32

MACHINE = replace(target("x86-64-v3"), l2=1 << 16, l3=1 << 24)


def gradient(groups: int, size: int, stride: int) -> Kernel:
    case = Case("small", 1, groups, size, groups, 3, stride, 1, groups)
    return lower(case.program("weights", "nhwc", f32))


@pytest.mark.parametrize(("case", "near"), [((32, 40, 2), 1 << 16), ((24, 40, 1), 280_000)])
def test_rows_first_where_columns_come_again(case: tuple[int, int, int], near: int) -> None:
    """Three rows of taps go over columns that the second cache does not hold; where it holds those
    of one vector, though not all, each is read once."""
    subject, machine = gradient(*case), replace(MACHINE, l2=near)
    schedule = default_schedule(subject, machine)
    assert ("partial(y)" in str(schedule)) is (near < 1 << 17)
    after = schedule.apply(subject, machine)
    chance = np.random.default_rng(0)
    arrays = {
        b.name: chance.integers(-4, 5, b.shape).astype("float32")
        for b in subject.buffers
        if b.role == "input"
    }
    want, got = interpret(subject, arrays)["dW"], interpret(after, arrays)["dW"]
    np.testing.assert_array_equal(got, want)


def test_sums_of_rows_lie_as_what_they_add_up() -> None:
    """The channels last, as in both operands: they are stored as vectors."""
    [directive] = parse_directives("partial(y)")
    after = directive.apply(gradient(32, 40, 2), MACHINE)
    (made,) = [b for b in after.buffers if b.role == "temporary"]
    assert made.shape == (20, 32, 3, 3) and made.layout.order == (0, 2, 3, 1)


def waiting(text: str, machine: Target) -> float:
    kernel = gradient(32, 40, 1)
    for directive in parse_directives(text):
        kernel = directive.apply(kernel, machine)
    return sum(waiting_cycles(n, kernel, machine)[0] for n in kernel.nests())


def test_waiting_is_counted_by_the_loops_as_they_stand() -> None:
    """Both maps about once where rows are outermost, once for each row of taps where those are."""
    size = sum(size_in_elements(b) for b in gradient(32, 40, 1).buffers) * 4
    once = waiting("partial(y)\ndW_part: reorder(y, g, r, s, n, x)", MACHINE)
    often = waiting("reorder(r, g, n, y, x, s)", MACHINE)
    rate = machine_of(MACHINE).l3
    assert size / rate <= once < 1.5 * size / rate < 2.5 * size / rate < often
