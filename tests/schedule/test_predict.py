"""What the cost model says of scheduled kernels: the choice is read back off the loops, and the
bound is the part that takes longest."""

from __future__ import annotations

import pytest

import convgen as cg
from convgen.bench.cases import CASES, DENSE
from convgen.ir.nodes import Kernel
from convgen.passes.lower import lower
from convgen.schedule import predict as predictions
from convgen.schedule.directives.base import all_nests, is_packing
from convgen.schedule.facts import facts_of
from convgen.schedule.machine import machine_of
from convgen.schedule.predict import packed_from, predict
from convgen.schedule.recipes.choice import choose
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.schedule import parse_schedule
from convgen.target import target

TEXT = "Y[n, k] = sum(c: X[n, c] * W[k, c])"


def scheduled(kernel: Kernel, where: str, text: str | None = None) -> Kernel:
    machine = target(where)
    schedule = default_schedule(kernel, machine) if text is None else parse_schedule(text)
    return schedule.apply(kernel, machine)


@pytest.mark.parametrize("where", ["x86-64-v4", "x86-64-v3", "aarch64"])
@pytest.mark.parametrize(
    ("case", "which"),
    [
        ("vgg3_2", "forward"),
        ("go3", "weights"),
        ("res3_s2", "input"),
        ("grp", "forward"),
        ("dw3", "forward"),
    ],
)
def test_the_choice_is_read_off_the_loops(case: str, which: str, where: str) -> None:
    machine = target(where)
    before = lower(CASES[case].program(which, "nhwc"))
    after = scheduled(before, where)
    sources = packed_from(after)
    by_name = {nest.name: nest for nest in before.nests()}
    seen = 0
    for nest in all_nests(after):
        if is_packing(nest, after) or nest.name not in by_name:
            continue
        written = predictions._as_written(nest, sources)
        facts = facts_of(written, after, machine)
        found = predictions._candidate_of(nest, facts, sources)
        want = choose(by_name[nest.name], before, machine)
        assert (found.vector, found.width) == (want.vector, want.width)
        assert {n: max(s) for n, s in found.tile} == {n: max(s) for n, s in want.tile}
        assert found.packs == want.packs
        assert facts.outputs | facts.reduces == {o.name: o.extent for o in by_name[nest.name].loops}
        seen += 1
    assert seen


def test_predictions_add_up() -> None:
    where = "x86-64-v4"
    found = predict(
        scheduled(lower(CASES["vgg3_2"].program("forward", "nhwc")), where), target(where)
    )
    copies = {p.nest: p for p in found if not p.operations}
    (nest,) = [p for p in found if p.operations]
    assert copies.keys() == {"pack_X", "pack_W"}
    assert copies["pack_W"].bytes == 2 * 4 * 256 * 256 * 9
    assert nest.operations == CASES["vgg3_2"].flops / 2
    assert nest.bound == "operations" == max(nest.parts, key=lambda part: nest.parts[part])
    assert 0.5 < nest.share_of_peak <= 1
    least = nest.operations / (16 * machine_of(target(where)).fma_rate)
    assert nest.share_of_peak == pytest.approx(least / nest.cycles)
    assert nest.parts["operations"] == pytest.approx(least)


def test_a_worse_schedule_is_predicted_to_be_slower() -> None:
    where = "x86-64-v4"
    kernel = lower(cg.parse(TEXT, X=(64, 256), W=(64, 256)))

    def cycles(text: str | None) -> float:
        return sum(p.cycles for p in predict(scheduled(kernel, where, text), target(where)))

    narrow = "split(k, 16); reorder(n, k_out, c, k_in); pack(W, k_in); vectorize(k_in); carry()"
    plain = "reorder(n, k, c)"
    assert cycles(None) < cycles(narrow) < cycles(plain)
    (nest,) = [p for p in predict(scheduled(kernel, where, narrow), target(where)) if p.operations]
    assert nest.bound == "latency"  # one vector waits for the one before


def test_memory_bounds_what_reads_every_weight_once() -> None:
    where = "x86-64-v4"
    found = predict(scheduled(lower(DENSE["fc1"].program("forward", "nc")), where), target(where))
    (nest,) = [p for p in found if p.operations]
    assert nest.bound == "bytes from memory"
    assert nest.bytes == 4 * (4096 * 4096 + 2 * 4096)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("Y[i] = X[i] + 1", 64),
        ("Y[i] = sum(j: X[i, j])", (30, 64)),
        ("Y[i] = max(r: X[2*i + r])   for i < 20, r < 3", 50),
    ],
)
def test_maps_and_windows_have_predictions(text: str, shape: int | tuple[int, ...]) -> None:
    kernel = scheduled(lower(cg.parse(text, X=shape)), "x86-64-v3")
    found = predict(kernel, target("x86-64-v3"))
    assert found and all(p.cycles > 0 and 0 < p.share_of_peak <= 1 for p in found)


def test_the_choice_is_read_off_an_unfolded_nest() -> None:
    """One loop for channels and taps, as the schedule has it; the copy has a row of its own."""
    text = "Y[n, k, y, x] = sum(c, r, s: X[n, c, y + r, x + s] * W[k, c, r, s])"
    before = lower(cg.parse(text, X=(1, 24, 9, 9), W=(96, 24, 8, 8)))
    after = scheduled(before, "x86-64-v3")
    assert after.buffer("X_unfolded").shape == (1, 2, 2, 24, 8, 8)
    copy, nest = predict(after, target("x86-64-v3"))
    assert (copy.nest, copy.bound, nest.nest) == ("unfold_X", "copying", "Y")
    assert list(nest.parts)[0] == "lanes of a sum" and 0 < nest.share_of_peak < 1
    assert copy.bytes == 2 * 4 * 4 * 24 * 64
