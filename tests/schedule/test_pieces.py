"""The pieces of one gradient: what they share, and that they stay apart where sums are long."""

from __future__ import annotations

import pytest

from convgen.bench.cases import Case
from convgen.ir.interpret import difference
from convgen.ir.nodes import Kernel
from convgen.passes.flatten import flatten
from convgen.passes.lower import lower
from convgen.schedule.access import loads_of
from convgen.schedule.recipes.default import default_schedule
from convgen.target import target
from convgen.types import f32

TARGETS = ("x86-64-v3", "x86-64-v4")


def gradient(
    channels: int, size: int, filters: int, taps: int, stride: int, pad: int, dilation: int
) -> Kernel:
    """The gradient to the input of one image, one nest for each remainder of its positions."""
    case = Case("pieces", 1, channels, size, filters, taps, stride, pad, 1, dilation)
    return lower(case.program("input", "nhwc", f32))


@pytest.mark.parametrize("where", TARGETS)
def test_pieces_with_long_sums_stay_apart(where: str) -> None:
    """Their filters are large and read for few positions, but each sums over many channels."""
    schedule = str(default_schedule(gradient(80, 45, 86, 10, 4, 1, 3), target(where)))
    assert "join" not in schedule
    assert schedule.count("skip=True") == 16  # taps that miss a tile are left out of each


@pytest.mark.parametrize("where", TARGETS)
def test_pieces_read_one_copy_of_the_filters(where: str) -> None:
    """Pieces with two taps along an axis, with one and with none: the copy's order of the axes that
    a piece does not move along does not matter to it."""
    subject = gradient(177, 45, 74, 6, 4, 0, 3)
    scheduled = default_schedule(subject, target(where)).apply(subject, target(where))
    copies = {o.buffer for nest in scheduled.nests() for o in loads_of(nest)} & {
        b.name for b in scheduled.buffers if b.role == "packed" and b.name.startswith("W")
    }
    assert copies == {"W_packed"}


@pytest.mark.parametrize("where", TARGETS)
def test_a_shared_copy_gives_the_same_numbers(where: str) -> None:
    subject, machine = gradient(9, 12, 18, 4, 3, 1, 2), target(where)
    scheduled = default_schedule(subject, machine).apply(subject, machine)
    assert not difference(subject, scheduled)
    assert not difference(subject, flatten(scheduled, machine))


@pytest.mark.parametrize("where", TARGETS)
def test_pieces_that_reach_out_less_share_the_copy_of_one_that_reaches_out_more(where: str) -> None:
    """A window larger than the image moves through the filters: each piece reads other parts of a
    halo, in an order of its own. A copy that stays near serves them all."""
    subject, machine = gradient(21, 28, 9, 9, 2, 3, 3), target(where)
    scheduled = default_schedule(subject, machine).apply(subject, machine)
    copies = [b.name for b in scheduled.buffers if b.role == "packed" and b.name.startswith("W")]
    assert len(copies) <= 3, copies
    assert not difference(subject, scheduled)
    assert not difference(subject, flatten(scheduled, machine))
