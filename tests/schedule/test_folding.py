"""Gradients that are multiplied first and folded afterwards: when, what is shared, the numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from convgen.bench.cases import Case
from convgen.ir.interpret import difference
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import Kernel, LoopKind
from convgen.ir.verify import verify
from convgen.passes.flatten import flatten
from convgen.passes.lower import lower
from convgen.runtime import kernel as kernels
from convgen.schedule.access import loads_of
from convgen.schedule.directives.fold import foldable
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.schedule import parse_schedule
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.parse import parse
from convgen.target import target

TARGETS = ("x86-64-v3", "x86-64-v4")
FEW = Case("few", 1, 96, 18, 200, 9, 2, 2, 1, 2)  # three by three positions
THIN = Case("thin", 1, 96, 30, 200, 13, 2, 1, 1, 2)  # taps that reach far over the edge
PIECES = Case("pieces", 1, 5, 51, 214, 15, 3, 3, 1, 2)  # five channels, nine pieces
WIDE = Case("wide", 1, 64, 56, 64, 3, 1, 1)


def gradient(case: Case, layout: str = "nhwc") -> Kernel:
    return lower(case.program("input", layout))


@pytest.mark.parametrize("where", TARGETS)
@pytest.mark.parametrize("case", [FEW, THIN, PIECES], ids=lambda case: case.name)
def test_the_filters_are_read_as_they_lie(case: Case, where: str) -> None:
    """Nothing is copied; all pieces fold one product, whose tile has positions and whose vectors
    run along channels and taps as one loop."""
    subject, machine = gradient(case), target(where)
    schedule = default_schedule(subject, machine)
    assert parse_schedule(str(schedule)).directives == schedule.directives
    after = schedule.apply(subject, machine)
    assert not [b for b in after.buffers if b.role == "packed"]
    assert [b.name for b in after.buffers if b.role == "temporary"] == ["dX_columns"]
    summed = [n for n in after.nests() if n.reduces]
    assert all("dX_columns" in {o.buffer for o in loads_of(n)} for n in summed[1:])
    loops = {o.name: o.kind for o in summed[0].loops}
    [vector] = [name for name, kind in loops.items() if kind is LoopKind.VECTOR]
    assert vector.startswith("i4_i5_i6_in")
    assert LoopKind.UNROLL in {kind for name, kind in loops.items() if "i1_i2" in name}


@pytest.mark.parametrize("where", TARGETS)
def test_long_positions_are_not_folded(where: str) -> None:
    assert "fold" not in str(default_schedule(gradient(WIDE), target(where)))


@pytest.mark.parametrize("where", TARGETS)
def test_a_product_that_is_larger_than_the_filters_is_kept_whole(where: str) -> None:
    """Short sums: adding the columns up would take longer than multiplying."""
    case = replace(FEW, filters=9)
    assert "fold" not in str(default_schedule(gradient(case), target(where)))


def small(case: Case) -> Case:
    return replace(case, channels=10, filters=7)


@pytest.mark.parametrize("where", TARGETS)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize(
    "case",
    [
        small(FEW),
        Case("thin", 2, 10, 11, 7, 5, 2, 1, 1, 2),
        Case("pieces", 1, 5, 13, 7, 4, 3, 1, 1, 2),
        Case("one", 1, 6, 9, 8, 7, 4, 0),
    ],
    ids=lambda case: case.name,
)
def test_folded_sums_are_the_same_numbers(case: Case, layout: str, where: str) -> None:
    subject, machine = gradient(case, layout), target(where)
    folds = "\n".join(f"{n.name}: fold(k)" for n in subject.nests() if n.reduces)
    folded = parse_schedule(folds).apply(subject, machine)
    assert len([b for b in folded.buffers if b.role == "temporary"]) == 1
    after = default_schedule(folded, machine).apply(folded, machine)
    assert not difference(subject, after)
    assert not difference(subject, flatten(after, machine))


@st.composite
def groups(draw: st.DrawFn) -> Case:
    """Convolutions in groups: what a group holds is a part of a dimension."""
    count, held = draw(st.integers(2, 4)), (draw(st.integers(1, 5)), draw(st.integers(2, 5)))
    taps, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    padding = draw(st.integers(0, dilation * (taps - 1)))
    size = draw(st.integers(max(1, dilation * (taps - 1) + 1 - 2 * padding), 9))
    stride, batch = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    channels, filters = (count * n for n in held)
    return Case("drawn", batch, channels, size, filters, taps, stride, padding, count, dilation)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(groups(), st.sampled_from(["nhwc", "nchw"]), st.sampled_from(TARGETS))
def test_groups_are_folded_one_by_one(case: Case, layout: str, where: str) -> None:
    """Filter number K*g + k: k is summed over first, g is a dimension of the columns."""
    subject, machine = gradient(case, layout), target(where)
    summed = [n for n in subject.nests() if n.reduces]
    assume(summed)  # else no tap meets the image
    assert all(foldable(n, subject) == ["k"] for n in summed)
    folded = parse_schedule("\n".join(f"{n.name}: fold(k)" for n in summed)).apply(subject, machine)
    [columns] = [b for b in folded.buffers if b.role == "temporary"]
    positions = case.batch * case.out**2
    assert size_in_elements(columns) == positions * case.channels * case.kernel**2
    after = default_schedule(folded, machine).apply(folded, machine)
    assert not difference(subject, after)
    assert not difference(subject, flatten(after, machine))


def test_what_groups_hold_must_fill_the_dimension() -> None:
    """Every second filter, one group short, and other groups than those of W: k is not shared."""
    shapes = {"dY": (4, 12), "W": (12, 5)}
    for index, count in (("4*g + 2*k", 3), ("4*g + k", 2)):
        text = f"dX[g, u, c] = sum(k: dY[u, {index}] * W[{index}, c]) for g < {count}, k < 2"
        kernel = lower(parse(text, **shapes))
        assert foldable(next(kernel.nests()), kernel) == []
    whole = lower(parse("dX[g, u, c] = sum(k: dY[u, 4*g + k] * W[4*g + k, c]) for k < 4", **shapes))
    assert foldable(next(whole.nests()), whole) == ["k"]


TRANSPOSED = "Y[n, h, w, k] = sum(c, y, x: X[n, y, x, c] * W[c, k, h + 3 - 2*y, w + 3 - 2*x])"


@pytest.mark.parametrize("where", TARGETS)
def test_a_transposed_window_is_folded_too(where: str) -> None:
    text = f"{TRANSPOSED}   for h < 30, w < 30"
    subject = lower(parse(text, X=(1, 12, 12, 256), W=(256, 40, 11, 11)))
    schedule = default_schedule(subject, target(where))
    assert "fold(c)" in str(schedule)


def test_native_code_gives_what_the_formula_says() -> None:
    """Compiled for this machine, on integers, against the formula by its definition."""
    text = f"{TRANSPOSED}   for h < 9, w < 9"
    shapes = {"X": (1, 3, 3, 20), "W": (20, 11, 8, 8)}
    program, chance = parse(text, **shapes), np.random.default_rng(1)
    arrays = {n: chance.integers(-4, 5, shape).astype(np.float32) for n, shape in shapes.items()}
    wanted = evaluate(program, arrays)["Y"]
    expected = np.array(wanted.tolist(), dtype=np.float32)
    for schedule in ("fold(c)", "Y: fold(c)\nY_columns: fuse(i5, i6); vectorize(i5_i6)"):
        compiled = kernels.compile(program, schedule=schedule)
        np.testing.assert_array_equal(compiled(arrays["X"], arrays["W"]), expected)


def test_columns_are_written_before_they_are_read() -> None:
    subject = gradient(small(FEW))
    after = parse_schedule("dX.0: fold(k)").apply(subject, target("x86-64-v3"))
    verify(after)
    names = [n.name for n in after.nests()]
    assert names.index("dX_columns") < names.index("dX.0")


@pytest.mark.parametrize(
    "sizes", [{"dY": (0, 9, 8)}, {"W": (8, 0, 3)}, {"dY": (2, 9, 0), "W": (0, 4, 3)}]
)
def test_sums_of_nothing_are_scheduled(sizes: dict[str, tuple[int, ...]]) -> None:
    """An empty batch, no channels, no filters: there is nothing to fold."""
    shapes = {"dY": (2, 9, 8), "W": (8, 4, 3), **sizes}
    program = parse("dX[n, u, c] = sum(k, r: dY[n, u - r + 1, k] * W[k, c, r]) for u < 9", **shapes)
    kernel = lower(program)
    assert "fold" not in str(default_schedule(kernel, target("x86-64-v3")))


@pytest.mark.parametrize("size", [3, 100, 1_000_000])
def test_a_product_that_is_one_number_is_not_folded(size: int) -> None:
    program = parse("y[] = sum(k: A[k] * x[k])", A=(size,), x=(size,))
    schedule = default_schedule(lower(program), target("x86-64-v3"))
    assert "fold" not in str(schedule)
