"""Plain linear algebra and statistics: what the recipes choose for formulas that are no layers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from convgen.bench.subjects import EXOTIC, chosen
from convgen.ir.interpret import difference
from convgen.ir.nodes import Kernel
from convgen.passes.lower import lower
from convgen.schedule.cost.reuse import share_of_sets
from convgen.schedule.facts import facts_of
from convgen.schedule.recipes.default import default_schedule
from convgen.symbolic.derive import split
from convgen.symbolic.parse import parse
from convgen.target import target

ZEN4 = replace(target("x86-64-v3"), cpu_model="AMD EPYC (family 25, model 17)")


def matmul(size: int) -> Kernel:
    text = "C[i, j] = sum(k: A[i, k] * B[k, j])"
    return lower(parse(text, A=(size, size), B=(size, size)))


@pytest.mark.parametrize(("size", "packs"), [(64, False), (1024, True), (2048, True)])
def test_rows_that_meet_in_a_few_sets_are_packed(size: int, packs: bool) -> None:
    """Columns of B in rows of a whole page each fill one set of the first cache."""
    assert ("pack(B" in str(default_schedule(matmul(size), ZEN4))) is packs


@pytest.mark.parametrize(
    ("size", "width", "share"), [(1024, 16, 1 / 64), (256, 16, 1 / 16), (1000, 16, 1.0)]
)
def test_the_sets_of_a_pitch(size: int, width: int, share: float) -> None:
    subject = matmul(size)
    facts = facts_of(next(iter(subject.nests())), subject, ZEN4)
    b = next(o for o in facts.operands if o.load.buffer == "B")
    assert share_of_sets(facts, b, width) == share


@pytest.mark.parametrize("reduction", ["sum", "max"])
def test_rows_are_summed_along_and_not_side_by_side(reduction: str) -> None:
    """Lanes of one row each would take what comes from far in two dozen places."""
    subject = lower(parse(f"y[i] = {reduction}(k: A[i, k])", A=(4096, 1000)))
    text = str(default_schedule(subject, ZEN4))
    assert "rfactor(k_in)" in text and "strided" not in text
    small = lower(parse(f"y[i] = {reduction}(k: A[i, k])", A=(5, 70)))
    assert not difference(small, default_schedule(small, ZEN4).apply(small, ZEN4))


@pytest.mark.parametrize(
    ("rows", "columns", "start"),
    [(4096, 4096, "split(i, 1024); split(i_in, 32); split(k, 8)"), (4096, 1003, "split(i, 32, ")],
)
def test_columns_are_summed_row_by_row(rows: int, columns: int, start: str) -> None:
    """Parts of rows as tasks, where tiles of one size make them up; else columns, in strips."""
    subject = lower(parse("y[i] = sum(k: A[k, i] * x[k])", A=(rows, columns), x=(rows,)))
    assert str(default_schedule(subject, ZEN4)).startswith(start)


def test_parts_of_rows_are_added_up_to_the_same_numbers() -> None:
    machine = replace(ZEN4, l1=1024, l2=4096)
    subject = lower(parse("y[i] = sum(k: A[k, i] * x[k])", A=(40, 80), x=(40,)))
    schedule = default_schedule(subject, machine)
    assert "split(k, 8)" in str(schedule) and "parallel(i_out)" in str(schedule)
    assert not difference(subject, schedule.apply(subject, machine))


def test_loops_that_share_nothing_are_not_written_out_with_their_tests() -> None:
    """The gradient to the kernels of an involution tests nine taps for what lies outside: sixteen
    times in one go, their addresses and masks fill more registers than there are."""
    [layer] = chosen(EXOTIC, ["involution"])
    _, behind = split(layer.program(), ["K"])
    kernel = lower(behind)
    machine = replace(ZEN4, l2=2**20, l3=2**25)
    text = str(default_schedule(kernel, machine))
    assert "unroll(s); unroll(r)" in text and "unroll(i, 4)" in text and "pack(X" not in text
