"""Sums in blocks: one reduce loop inside the tiles, the others around them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from schedule_nests import buffer, kernel, load, nest, var

from convgen.ir.interpret import interpret
from convgen.ir.nodes import Edge, Kernel, Op
from convgen.passes.flatten import flatten
from convgen.schedule.access import around_tiles
from convgen.schedule.cost.blocks import blocks_of, bytes_of_block, edges_along, streamed_cycles
from convgen.schedule.facts import facts_of
from convgen.schedule.machine import machine_of
from convgen.schedule.predict import predict
from convgen.schedule.recipes import default as whole_kernel
from convgen.schedule.recipes import nest as one_nest
from convgen.schedule.recipes.choice import candidates
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.tiles import Candidate
from convgen.target import target
from convgen.types import f32


def gradient(filters: int, channels: int, size: int, stride: int = 1, taps: int = 3) -> Kernel:
    """dW[k, c, r, s] = sum(n, y, x: dY[n, y, x, k] * X[n, stride*y + r - 1, stride*x + s - 1, c]),
    X zero outside."""
    n, k, c, y, x, r, s = (var(a) for a in "nkcyxrs")
    edge = Edge("zero")
    data = load("X", n, stride * y + r - 1, stride * x + s - 1, c, edges=(None, edge, edge, None))
    wide = stride * (size - 1) + taps - 2
    return kernel(
        (
            buffer("dY", (2, 3, size, filters)),
            buffer("X", (2, 3 * stride, wide, channels)),
            buffer("dW", (filters, channels, taps, taps), "output"),
        ),
        nest(
            "dW",
            {"k": filters, "c": channels, "r": taps, "s": taps},
            Op("mul", (load("dY", n, y, x, k), data), f32),
            {"n": 2, "y": 3, "x": size},
        ),
    )


@pytest.mark.parametrize(("where", "count"), [("x86-64-v3", 16), ("x86-64-v4", 32)])
@pytest.mark.parametrize(("size", "stride"), [(12, 1), (13, 2)])
def test_every_way_in_blocks_is_legal_and_right(
    monkeypatch: pytest.MonkeyPatch, where: str, count: int, size: int, stride: int
) -> None:
    subject, machine = gradient(count, count, size, stride), target(where)
    (body,) = subject.nests()
    facts = facts_of(body, subject, machine)
    ways = [c for c in candidates(facts) if c.block]
    assert ways
    chance = np.random.default_rng(size)
    arrays = {
        b.name: chance.integers(-4, 5, b.shape).astype("f")
        for b in subject.buffers
        if b.role == "input"
    }
    wanted = interpret(subject, arrays)["dW"]
    for one in ways[:: max(1, len(ways) // 2)]:

        def chosen(*_: object, one: Candidate = one) -> Candidate:
            return one

        for room in (whole_kernel, one_nest):
            monkeypatch.setattr(room, "cheapest", chosen)
        schedule = default_schedule(subject, machine)
        scheduled = schedule.apply(subject, machine)
        (done,) = scheduled.nests()
        assert around_tiles(done) and not [b for b in scheduled.buffers if b.role == "packed"]
        assert np.array_equal(interpret(flatten(scheduled, machine), arrays)["dW"], wanted), (
            schedule
        )
        (prediction,) = predict(scheduled, machine)
        assert 0 < prediction.share_of_peak <= 1


def test_a_block_stays_in_the_first_cache() -> None:
    machine = target("x86-64-v3")

    def read(size: int) -> float | None:
        subject = gradient(128, 128, size)
        facts = facts_of(next(subject.nests()), subject, machine)
        tile = Candidate("c", 8, (("k", (4,)), ("s", (3,))), block="x", part=size)
        found = blocks_of(facts, tile)
        return found and sum(part for _, part in bytes_of_block(facts, found))

    assert read(28) == 4 * (30 * 128 + 28 * 16)  # a row of X, an eighth of a row of dY
    assert read(28) < machine.l1 and read(112) is None  # type: ignore[operator]
    assert read(8) is None  # too few iterations beside the states


def test_a_row_of_few_channels_is_whole_lines() -> None:
    """The channels of neighbouring pixels lie side by side; what only another row of taps reads
    again stays too."""
    machine = target("x86-64-v3")
    subject = gradient(64, 3, 112)
    facts = facts_of(next(subject.nests()), subject, machine)
    found = blocks_of(facts, Candidate("k", 8, (("c", (3,)), ("s", (3,))), block="x", part=112))
    assert found and found.far == ("r",) and not found.near[1:]
    (_, first), (_, second) = bytes_of_block(facts, found)
    assert sorted((first, second)) == [4 * 114 * 3, 112 * 64]  # dY by half lines


def test_loops_that_no_tile_cuts_are_shared_out() -> None:
    n, g, k, c, y, x, s = (var(a) for a in "ngkcyxs")
    subject = kernel(
        (
            buffer("dY", (2, 3, 24, 8, 4)),
            buffer("X", (2, 3, 26, 8, 4)),
            buffer("dW", (8, 4, 4, 3), "output"),
        ),
        nest(
            "dW",
            {"g": 8, "k": 4, "c": 4, "s": 3},
            Op("mul", (load("dY", n, y, x, g, k), load("X", n, y, x + s, g, c)), f32),
            {"n": 2, "y": 3, "x": 24},
        ),
    )
    facts = facts_of(next(subject.nests()), subject, target("x86-64-v3"))
    found = blocks_of(facts, Candidate("c", 4, (("k", (2,)), ("s", (3,))), block="x", part=24))
    assert found and (found.shared, found.tasks, found.near) == ("g", 8, ("k", "g"))


def products(size: int, rows: int, columns: int) -> Kernel:
    """dW[k, c] = sum(p: dY[p, k] * X[p, c])."""
    p, k, c = (var(a) for a in "pkc")
    return kernel(
        (
            buffer("dY", (size, rows)),
            buffer("X", (size, columns)),
            buffer("dW", (rows, columns), "output"),
        ),
        nest(
            "dW",
            {"k": rows, "c": columns},
            Op("mul", (load("dY", p, k), load("X", p, c)), f32),
            {"p": size},
        ),
    )


@pytest.mark.parametrize("where", ["x86-64-v3", "x86-64-v4"])
def test_one_long_loop_is_cut_into_blocks(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Rows that lie far apart come from a near cache where all tiles sweep a part of them."""
    subject, machine = products(3136, 256, 64), replace(target(where), l2=1 << 20)
    facts = facts_of(next(subject.nests()), subject, machine)
    ways = [c for c in candidates(facts) if c.block]
    assert ways and all(3136 % c.part == 0 and 48 <= c.part <= 1568 for c in ways)
    small = products(96, 64, 64)
    facts = facts_of(next(small.nests()), small, machine)
    (one, *_) = (c for c in candidates(facts) if c.block)

    def chosen(*_: object) -> Candidate:
        return one

    for room in (whole_kernel, one_nest):
        monkeypatch.setattr(room, "cheapest", chosen)
    schedule = default_schedule(small, machine)
    assert "split(p, 48)" in str(schedule) and "reorder(" in str(schedule)
    chance = np.random.default_rng(3)
    arrays = {
        b.name: chance.integers(-4, 5, b.shape).astype("f")
        for b in small.buffers
        if b.role == "input"
    }
    done = flatten(schedule.apply(small, machine), machine)
    assert np.array_equal(interpret(done, arrays)["dW"], interpret(small, arrays)["dW"])


def test_far_rows_share_sets_of_the_first_cache() -> None:
    """A part of a row of a power of two fills few sets: its lines come from the second cache."""
    machine = target("x86-64-v3")

    def waited(filters: int) -> float:
        subject = products(3136, filters, 64)
        facts = facts_of(next(subject.nests()), subject, machine)
        tile = Candidate("c", 16, (("k", (4,)),), block="p", part=56)
        return streamed_cycles(facts, tile, machine_of(machine))

    assert waited(256) > waited(288) + 1


def test_fewer_tasks_share_more_of_a_block() -> None:
    """Rows of dY come once for each task, and each tile of a task sweeps them once."""
    machine = target("x86-64-v3")
    subject = products(3136, 256, 64)
    facts = facts_of(next(subject.nests()), subject, machine)
    usual = Candidate("c", 8, (("k", (6, 5)),), block="p", part=49)
    few = replace(usual, tasks=4)
    ways = [blocks_of(facts, one) for one in (usual, few)]
    assert [(w.tasks, w.tiles) for w in ways if w] == [(8, 43), (4, 2 * 43)]
    waited = [streamed_cycles(facts, one, machine_of(machine)) for one in (usual, few)]
    assert waited[0] > 1.15 * waited[1]
    assert any(c.tasks == 4 and c.block for c in candidates(facts))


def test_edges_along_a_loop() -> None:
    subject = gradient(32, 16, 13, 2)
    (body,) = subject.nests()
    assert edges_along(body, "x", subject) == (1, 1)
    assert edges_along(body, "n", subject) == (0, 0)
