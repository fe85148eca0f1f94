"""The default schedules: what is chosen, that it is legal, that the tile fits the registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from schedule_nests import buffer, dense, kernel, load, nest, sum_of, var, window

from convgen.ir.interpret import difference, interpret
from convgen.ir.nodes import Edge, Kernel, Op
from convgen.passes.lower import lower
from convgen.schedule.access import loads_of
from convgen.schedule.cost.reuse import bytes_of_part, fresh_vectors, is_read_once
from convgen.schedule.directives.mark import registers_needed
from convgen.schedule.facts import facts_of
from convgen.schedule.machine import MACHINES, machine_of
from convgen.schedule.recipes.choice import candidates, choose
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.recipes.normalize import backward_windows
from convgen.schedule.schedule import parse_schedule
from convgen.schedule.tiles import Candidate, free_registers
from convgen.symbolic.parse import parse
from convgen.target import target
from convgen.types import f32

Golden = Callable[[str, str], None]


def weights_gradient(filters: int, channels: int, size: int) -> Kernel:
    """dW[k, c, r, s] = sum(n, y, x: dY[n, k, y, x] * X[n, c, y + r - 1, x + s - 1])."""
    n, k, c, r, s, y, x = (var(a) for a in "nkcrsyx")
    zero = Edge("zero")
    edges = (None, None, zero, zero)
    body = Op(
        "mul",
        (load("dY", n, k, y, x), load("X", n, c, y + r - 1, x + s - 1, edges=edges)),
        f32,
    )
    return kernel(
        (
            buffer("X", (1, channels, size, size)),
            buffer("dY", (1, filters, size, size)),
            buffer("dW", (filters, channels, 3, 3), "output"),
        ),
        nest(
            "dW",
            {"k": filters, "c": channels, "r": 3, "s": 3},
            body,
            {"n": 1, "y": size, "x": size},
        ),
    )


def total(rows: int, columns: int) -> Kernel:
    element = load("X", var("i"), var("j"))
    return kernel(
        (buffer("X", (rows, columns)), buffer("M", (rows,), "output")),
        nest("M", {"i": rows}, element, {"j": columns}),
    )


def clamp(rows: int, columns: int) -> Kernel:
    element = load("X", var("i"), var("j"))
    return kernel(
        (buffer("X", (rows, columns)), buffer("Y", (rows, columns), "output")),
        nest("Y", {"i": rows, "j": columns}, Op("abs", (element,), f32)),
    )


KERNELS: dict[str, Callable[[], Kernel]] = {
    "256 to 256 channels, 56x56": lambda: window(1, 256, 256, 56),
    "192 to 192 channels, 19x19": lambda: window(1, 192, 192, 19),
    "3 to 64 channels, 7x7 stride 2": lambda: window(1, 3, 64, 224, 7, 3, 2),
    "97 filters on 13x13": lambda: window(4, 13, 97, 13),
    "reflected": lambda: window(2, 16, 32, 14, kind="reflect"),
    "gradient of the weights": lambda: weights_gradient(256, 256, 56),
    "dense, batch 1": lambda: dense(1, 1000, 512),
    "dense, batch 32": lambda: dense(32, 120, 400),
    "row sums": lambda: total(64, 1000),
    "elementwise": lambda: clamp(61, 97),
}


@pytest.mark.parametrize("where", ["x86-64-v4", "x86-64-v3"])
def test_what_is_chosen(where: str, golden: Golden) -> None:
    lines: list[str] = []
    for name, make in KERNELS.items():
        subject = make()
        schedule = default_schedule(subject, target(where))
        scheduled = schedule.apply(subject, target(where))
        lines += [f"{name}:", str(schedule), *(f"  note: {n}" for n in scheduled.notes), ""]
    golden(f"schedule/chosen-{where}.txt", "\n".join(lines))


@pytest.mark.parametrize("where", ["x86-64-v4", "x86-64-v3", "x86-64-v2", "aarch64"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_tile_fits_and_candidates_are_few(where: str, name: str) -> None:
    machine = target(where)
    subject = KERNELS[name]()
    scheduled = default_schedule(subject, machine).apply(subject, machine)
    for body in scheduled.nests():
        if any(r.carried for r in body.reduces):
            assert registers_needed(body, machine) <= machine.vector_registers - 2
    (naive,) = subject.nests()
    assert len(list(candidates(facts_of(naive, subject, machine)))) <= 400


def test_choice_depends_on_the_table_not_on_the_clock() -> None:
    subject = window(1, 64, 64, 56)
    (body,) = subject.nests()
    first = choose(body, subject, target("x86-64-v4"))
    assert first == choose(body, subject, target("x86-64-v4"))
    known = replace(target("x86-64-v4"), cpu_model="AMD EPYC (family 25, model 17)")
    assert machine_of(known).fma_rate == 1.0
    assert machine_of(target("x86-64-v3")).fma_rate == 2.0
    assert MACHINES


def test_an_empty_sum_is_scheduled() -> None:
    subject = kernel(
        (buffer("X", (4, 3)), buffer("Y", (4,), "output")),
        nest("Y", {"i": 4}, load("X", var("i"), var("j")), {"j": 0}, sum_of()),
    )
    scheduled = default_schedule(subject, target("x86-64-v4")).apply(subject, target("x86-64-v4"))
    ones = {"X": np.ones((4, 3), np.float32)}
    assert interpret(scheduled, ones)["Y"].tolist() == [0, 0, 0, 0]


def test_parameters_are_packed_ahead_and_data_is_not() -> None:
    subject = window(1, 256, 256, 14)
    scheduled = default_schedule(subject, target("x86-64-v4")).apply(subject, target("x86-64-v4"))
    when = {p.name: p.when for p in scheduled.phases}
    assert when == {"pack_W": "prepare", "pack_X": "run", "Y": "run"}


def pieces(count: int) -> Kernel:
    """So many nests of different heights: dX[p][n, y, x, c] = sum(k: dY[n, y, x, k] * W[k, c, p])."""
    n, y, x, c, k = (var(a) for a in "nyxck")
    nests = [
        nest(
            f"dX.{p}",
            {"n": 1, "y": 4 + p, "x": 4, "c": 80},
            Op("mul", (load("dY", n, y, x, k), load("W", k, c, var("k") * 0 + p)), f32),
            {"k": 86},
            out=f"dX{p}",
        )
        for p in range(count)
    ]
    outs = (buffer(f"dX{p}", (1, 4 + p, 4, 80), "output") for p in range(count))
    return kernel((buffer("W", (86, 80, 16)), buffer("dY", (1, 20, 4, 86)), *outs), *nests)


@pytest.mark.parametrize("count", [1, 16])
def test_pieces_share_the_cost_of_one_copy(count: int) -> None:
    """One alone does not pay for it; of sixteen all read one, in blocks or with a rest."""
    machine, subject = target("x86-64-v4"), pieces(count)
    scheduled = default_schedule(subject, machine).apply(subject, machine)
    made = [b.name for b in scheduled.buffers if b.name.startswith("W_packed")]
    readers = [n for n in scheduled.nests() if any(o.buffer in made for o in loads_of(n))]
    assert len(made) <= 2
    assert len(readers) == (0 if count == 1 else count)


def strided_images(batch: int, filters: int, channels: int, size: int) -> Kernel:
    """Y[n, k, y, x] = sum(c, r, s: X[n, c, 2*y + r, 2*x + s] * W[k, c, r, s])."""
    n, k, c, r, s, y, x = (var(a) for a in "nkcrsyx")
    body = Op("mul", (load("X", n, c, 2 * y + r, 2 * x + s), load("W", k, c, r, s)), f32)
    wide = 2 * size + 1
    return kernel(
        (
            buffer("X", (batch, channels, wide, wide)),
            buffer("W", (filters, channels, 3, 3)),
            buffer("Y", (batch, filters, size, size), "output"),
        ),
        nest(
            "Y",
            {"n": batch, "k": filters, "y": size, "x": size},
            body,
            {"c": channels, "r": 3, "s": 3},
        ),
    )


def test_rows_that_come_from_far_are_not_read_for_every_product() -> None:
    """A tile that moves its own vector operand reads it once for each multiply-add: fine where a
    window finds it in the first cache again, too slow where all of it comes from the second."""
    machine = target("x86-64-v4")
    wide = strided_images(16, 128, 128, 28)
    (nest,) = wide.nests()
    facts = facts_of(nest, wide, machine)
    images = next(o for o in facts.operands if o.load.buffer == "X")
    assert fresh_vectors(facts, images, "n", 16, {"x": 28.0}) == 28.0
    assert fresh_vectors(facts, images, "n", 16, {"k": 28.0}) == 1.0
    assert choose(nest, wide, machine).vector == "k"
    thin = strided_images(1, 1, 1, 28)
    (nest,) = thin.nests()
    facts = facts_of(nest, thin, machine)
    images = next(o for o in facts.operands if o.load.buffer == "X")
    rows = 2 * 7  # that seven steps of two rows bring, over three by three taps
    assert fresh_vectors(facts, images, "x", 16, {"y": 7.0}) == pytest.approx(rows / 9)
    assert bytes_of_part(facts, images, {"y": 4}) == pytest.approx(4 * 57 * 57 * 5 / 28)
    assert bytes_of_part(facts, images, {"y": 28}) == 4 * 57 * 57


def test_all_rows_of_a_tile_come_between_two_taps() -> None:
    """A tile of many rows reads all of them before it comes to the next tap: what that shares with
    the tap before has left the first cache by then."""
    machine = target("x86-64-v3")
    wide = window(1, 128, 8, 24, taps=5, pad=2)
    (nest,) = wide.nests()
    facts = facts_of(nest, wide, machine)
    images = next(o for o in facts.operands if o.load.buffer == "X")
    assert 128 * 12 * 8 * 4 > facts.l1 / 2 > 128 * 2 * 8 * 4
    assert fresh_vectors(facts, images, "x", 8, {"y": 12.0}) == 12.0
    assert fresh_vectors(facts, images, "x", 8, {"y": 2.0}) < 0.5 * 2


def gradient_to_taps(taps: int) -> Kernel:
    """dW[k, c, s] = sum(n, x: dY[n, x, k] * X[n, x + s, c])."""
    n, k, c, s, x = (var(a) for a in "nkcsx")
    body = Op("mul", (load("dY", n, x, k), load("X", n, x + s, c)), f32)
    return kernel(
        (
            buffer("dY", (4, 57, 64)),
            buffer("X", (4, 56 + taps, 64)),
            buffer("dW", (64, 64, taps), "output"),
        ),
        nest("dW", {"k": 64, "c": 64, "s": taps}, body, {"n": 4, "x": 57}),
    )


@pytest.mark.parametrize(
    ("where", "taps", "twice"),
    [("x86-64-v3", 3, True), ("x86-64-v3", 1, False), ("x86-64-v4", 3, False)],
)
def test_short_iterations_that_slide_run_in_pairs(where: str, taps: int, twice: bool) -> None:
    """Two iterations a turn where one is short and hands its window on; without a window the
    second one's vectors would push out states, and long iterations hide the turn."""
    schedule = str(default_schedule(gradient_to_taps(taps), target(where)))
    assert ("unroll(x, 2)" in schedule) == twice, schedule


@pytest.mark.parametrize(
    ("where", "taps", "left"),
    [("x86-64-v3", 7, 13), ("x86-64-v3", 4, 14), ("x86-64-v3", 9, 14), ("x86-64-v4", 7, 30)],
)
def test_a_mask_that_is_a_vector_takes_a_register(where: str, taps: int, left: int) -> None:
    """Of a window of seven taps in eight lanes; four taps are a short vector, nine are one and a
    single one; with sixteen lanes masks have registers of their own."""
    subject, machine = gradient_to_taps(taps), target(where)
    facts = facts_of(next(subject.nests()), subject, machine)
    assert free_registers(facts, "s") == left
    assert free_registers(facts, "k") == machine.vector_registers - 2


def own_filters(batch: int, size: int) -> Kernel:
    """Y[n, k, y, x] = sum(c, r, s: X[n, c, y + r, x + s] * W[y, x, k, c, r, s]), 3 x 3 taps."""
    n, k, c, r, s, y, x = (var(a) for a in "nkcrsyx")
    body = Op("mul", (load("X", n, c, y + r, x + s), load("W", y, x, k, c, r, s)), f32)
    return kernel(
        (
            buffer("X", (batch, 16, size + 2, size + 2)),
            buffer("W", (size, size, 4, 16, 3, 3)),
            buffer("Y", (batch, 4, size, size), "output"),
        ),
        nest("Y", {"n": batch, "k": 4, "y": size, "x": size}, body, {"c": 16, "r": 3, "s": 3}),
    )


@pytest.mark.parametrize("where", ["x86-64-v4", "x86-64-v3"])
def test_what_is_read_once_is_read_in_order(where: str) -> None:
    """Filters that only the batch shares, too many for a cache: lanes along the sum, the batch as
    tile, the loops as the filters lie, the data packed and the filters not."""
    subject, machine = own_filters(8, 4), replace(target(where), l2=1024)
    schedule = default_schedule(subject, machine)
    scheduled = schedule.apply(subject, machine)
    (nest_,) = [n for n in scheduled.nests() if n.name == "Y"]
    assert [o.name for o in nest_.loops][:3] == ["y", "x", "k"]
    assert nest_.loops[-1].name in nest_.reduces[0].factored and nest_.loops[-2].name == "n"
    assert [b.name for b in scheduled.buffers if b.role == "packed"] == ["X_packed"]
    rng = np.random.default_rng(0)
    arrays = {
        b.name: rng.uniform(-1, 1, b.shape).astype("float32")
        for b in subject.buffers
        if b.role == "input"
    }
    want, got = interpret(subject, arrays)["Y"], interpret(scheduled, arrays)["Y"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("first", "vector"), [("y x k", "c"), ("k y x", "k")])
def test_what_stays_while_results_are_written_in_order_counts_as_near(
    first: str, vector: str
) -> None:
    """A gradient to filters of every position: where the results of a position lie together, its
    part of X is near for all k, and vectors along c make up whole runs of the result."""
    index = ", ".join(first.split())
    text = f"dW[{index}, c, r, s] = sum(n: dY[n, k, y, x] * X[n, c, y + r, x + s])"
    sizes = tuple({"k": 32, "y": 32, "x": 32}[a] for a in first.split())
    program = parse(text, dY=(8, 32, 32, 32), X=(8, 32, 34, 34), dW=(*sizes, 32, 3, 3))
    subject, machine = lower(program), target("x86-64-v3")
    (body,) = subject.nests()
    assert choose(body, subject, machine).vector == vector


def test_vectors_fill_the_lines_that_a_long_sum_brings() -> None:
    """80 channels of their own, 3 x 3 taps, summed over an image beyond the first cache: half lines
    would come twice; where all of it stays near they may."""

    def chosen(size: int) -> Candidate:
        text = "dW[g, r, s] = sum(y, x: dY[y, x, g] * X[2*y + r, 2*x + s, g])"
        shapes = {"dY": (size, size, 80), "X": (2 * size + 1, 2 * size + 1, 80)}
        subject = lower(parse(text, dW=(80, 3, 3), **shapes))
        (body,) = subject.nests()
        return choose(body, subject, target("x86-64-v3"))

    assert (chosen(56).vector, chosen(56).width) == ("g", 16)
    assert (chosen(6).vector, chosen(6).width) == ("g", 8)


def test_what_a_cache_holds_is_turned_round() -> None:
    machine = target("x86-64-v4")
    assert "rfactor" not in str(default_schedule(own_filters(8, 4), machine))
    used_often = replace(machine, l2=1024)
    assert "rfactor" not in str(default_schedule(own_filters(64, 4), used_often))


def repeating_filters(size: int) -> Kernel:
    """Y[k, x] = sum(c, s: X[c, x + s] * W[x % 2, k, c, s])."""
    k, c, s, x = (var(a) for a in "kcsx")
    body = Op("mul", (load("X", c, x + s), load("W", x % 2, k, c, s)), f32)
    return kernel(
        (
            buffer("X", (64, size + 2)),
            buffer("W", (2, 32, 64, 3)),
            buffer("Y", (32, size), "output"),
        ),
        nest("Y", {"k": 32, "x": size}, body, {"c": 64, "s": 3}),
    )


def test_an_index_that_comes_round_is_read_once_a_period() -> None:
    """A tile of many positions loads the two filters only, so a tall one is best."""
    subject, machine = repeating_filters(240), target("x86-64-v4")
    (body,) = subject.nests()
    facts = facts_of(body, subject, machine)
    periods = {o.load.buffer: o.periods for o in facts.operands}
    assert periods == {"X": {}, "W": {"x": 2}}
    chosen = choose(body, subject, machine)
    assert chosen.vector == "k" and chosen.width == 32
    assert [(n, max(sizes) >= 10) for n, sizes in chosen.tile] == [("x", True)]


def test_copies_lie_as_the_longest_way_through_them() -> None:
    """Where a tap and a position move one dimension, the position says where it belongs."""
    subject = weights_gradient(8, 16, 12)
    text = "reorder(r, k, s, n, y, x, c); pack(X, c)"
    scheduled = parse_schedule(text).apply(subject, target("x86-64-v4"))
    assert scheduled.buffer("X_packed").layout.order == (0, 2, 3, 1)
    second = "reorder(r, k, s, y, n, x, c); pack(X, c)"
    scheduled = parse_schedule(second).apply(subject, target("x86-64-v4"))
    assert scheduled.buffer("X_packed").layout.order == (2, 0, 3, 1)


@pytest.mark.parametrize(
    ("text", "order"),
    [  # blocks put side by side; read in another order than stored, which stays as it is
        ("Y[2*y + r, 2*x + s, c] = 2 * X[y, x, c] for r < 2, s < 2", "y r x s c"),
        ("Y[2*y + r, x, c] = 2 * X[r, y, x, c]", "r y x x"),  # x with c, cut
    ],
)
def test_maps_run_in_the_order_in_which_results_lie(text: str, order: str) -> None:
    blocked = "X[y" in text
    program = parse(text, X=(5, 6, 16) if blocked else (2, 5, 6, 16))
    before = lower(program)
    schedule = default_schedule(before, target("x86-64-v3"))
    after = schedule.apply(before, target("x86-64-v3"))
    (nest,) = after.nests()
    assert [o.name.split("_")[0] for o in nest.loops if o.extent > 1] == order.split()
    assert not difference(before, after)


def test_windows_are_walked_forwards() -> None:
    """dX[n, c, h, w] = sum(k, r, s: dY[n, k, h + 1 - r, w + 1 - s] * W[k, c, r, s]) reads its rows
    and columns downwards; the weights' flipped axes alone would be no reason."""
    n, k, c, r, s, h, w = (var(a) for a in "nkcrshw")
    zero = Edge("zero")
    read = load("dY", n, k, h + 1 - r, w + 1 - s, edges=(None, None, zero, zero))
    body = Op("mul", (read, load("W", k, c, 2 - r, 2 - s)), f32)
    sums = {"k": 8, "r": 3, "s": 3}
    buffers = (
        buffer("dY", (1, 8, 9, 9)),
        buffer("W", (8, 8, 3, 3)),
        buffer("dX", (1, 8, 9, 9), "output"),
    )
    subject = kernel(buffers, nest("dX", {"n": 1, "c": 8, "h": 9, "w": 9}, body, sums))
    assert backward_windows(next(iter(subject.nests())), subject) == ["r", "s"]
    assert "reverse(r); reverse(s)" in str(default_schedule(subject, target("x86-64-v4")))
    assert not backward_windows(next(iter(window(1, 8, 9, 8).nests())), window(1, 8, 9, 8))


def test_a_sum_over_channels_reads_an_element_for_many_outputs_windows_alone_do_not() -> None:
    i, y, x, p, q = (var(a) for a in "iyxpq")
    body = Op("mul", (load("X", i, y + p, x + q), load("W", p, q)), f32)
    buffers = (buffer("X", (16, 38, 38)), buffer("W", (7, 7)))
    taps, image = {"p": 7, "q": 7}, {"y": 32, "x": 32}
    whole = kernel(
        (*buffers, buffer("Y", (32, 32), "output")), nest("Y", image, body, {"i": 16, **taps})
    )
    each = kernel(
        (*buffers, buffer("Y", (16, 32, 32), "output")), nest("Y", {"i": 16, **image}, body, taps)
    )
    for subject, once in ((whole, False), (each, True)):
        facts = facts_of(next(iter(subject.nests())), subject, target("x86-64-v4"))
        assert is_read_once(facts, facts.operands[0]) is once
