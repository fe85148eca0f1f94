"""Stages that run together: chosen by the default schedule, equal to the stages one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy

from convgen.errors import ScheduleError
from convgen.ir.interpret import difference
from convgen.ir.nodes import Kernel, LoopKind
from convgen.ir.verify import verify
from convgen.passes.flatten import flatten
from convgen.passes.lower import lower
from convgen.schedule.predict import predict
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.schedule import parse_schedule
from convgen.symbolic import dsl
from convgen.symbolic.derive import grad, split
from convgen.symbolic.parse import parse
from convgen.symbolic.program import Program
from convgen.target import Target, target
from convgen.types import f32

MACHINE = target("x86-64-v3")
n, h, w, c, d = dsl.axes("n h w c d")


def normalized(shape: tuple[int, ...], last: bool) -> Program:
    index = [n, h, w, c] if last else [n, c, h, w]
    channels = shape[-1] if last else shape[1]
    X = dsl.tensor("X", shape)
    g = dsl.tensor("g", (channels,))
    count = X.elements // channels
    m = dsl.define("m", [c], dsl.sum_over([n, h, w], X[tuple(index)]) / count)
    v = dsl.define("v", [c], dsl.sum_over([n, h, w], (X[tuple(index)] - m[c]) ** 2) / count)
    body = g[c] * (X[tuple(index)] - m[c]) / sympy.sqrt(v[c] + sympy.Rational(1, 1000))
    return dsl.define("Y", index, body)


def softmax(shape: tuple[int, ...], last: bool) -> Program:
    index, along = ([n, h, w, c], [n, h, w, d]) if last else ([n, c, h, w], [n, d, h, w])
    X = dsl.tensor("X", shape)
    top = dsl.define("top", [n, h, w], dsl.max_over([d], X[tuple(along)]))
    powers = dsl.define("E", index, sympy.exp(X[tuple(index)] - top[n, h, w]))
    total = dsl.define("total", [n, h, w], dsl.sum_over([d], powers[tuple(along)]))
    return dsl.define("Y", index, powers[tuple(index)] / total[n, h, w])


def check(program: Program, machine: Target = MACHINE) -> tuple[Kernel, str]:
    """The scheduled kernel and its schedule's text, the same answer at every stage."""
    nest = lower(program)
    schedule = default_schedule(nest, machine)
    scheduled = schedule.apply(nest, machine)
    verify(scheduled, "schedule")
    assert not difference(nest, scheduled)
    flat = flatten(scheduled, machine)
    verify(flat, "flatten")
    assert not difference(nest, flat)
    assert parse_schedule(str(schedule)).directives == schedule.directives
    return scheduled, str(schedule)


def test_sums_over_one_domain_share_a_pass() -> None:
    _, backward = split(normalized((2, 4, 5, 16), True), ["X", "g"])
    scheduled, text = check(backward)
    assert "dv: join(dm, dg)" in text
    assert [nest.name for nest in scheduled.nests()] == ["dv", "dX"]
    (first, _) = scheduled.nests()
    assert {first.leader(i) for i in range(len(first.reduces))} == {0}
    assert len(first.reduces) == 3  # the sum that two gradients share is there once


@pytest.mark.parametrize(("width", "rows"), [(20, 4), (21, 3), (25, 5), (23, 0)])
@pytest.mark.parametrize("machine", ["x86-64-v4", "x86-64-v3", "aarch64"])
def test_long_sums_over_far_operands_come_in_parts(machine: str, width: int, rows: int) -> None:
    """Tasks that few outputs do not make, and rows from end to end inside of them."""
    near = target(machine)
    far = replace(near, l2=1 << 12)
    lanes = far.lanes(f32)
    _, backward = split(normalized((3, 4, width, 8 * lanes), True), ["X", "g"])
    scheduled, text = check(backward, far)
    assert "dv: join(dm, dg); partial(n, h)" in text
    part = next(nest for nest in scheduled.nests() if nest.name == "dv_part")
    order = ["n_h", "w_out", "c_out", "w_in", "c_in"] if rows else ["n_h", "c_out", "w", "c_in"]
    assert [o.name for o in part.loops] == order
    assert not rows or part.loop("w_in").extent == rows
    assert part.loops[0].kind is LoopKind.PARALLEL
    assert "partial" not in check(backward, near)[1]


ROWS = """m[i] = max(k: A[i, k])
s[i] = sum(k: exp(A[i, k] - m[i]))
Y[i, k] = exp(A[i, k] - m[i]) / s[i]"""


@pytest.mark.parametrize("machine", ["x86-64-v4", "x86-64-v3", "aarch64"])
def test_sums_along_rows_run_row_by_row_in_one_pass(machine: str) -> None:
    """A sum that reads what another one stores at the same point joins it; lanes lie along the
    rows, for all sums of the pass; what they store together is a tile of the row's map."""
    scheduled, text = check(grad(parse(ROWS, A=(8, 264))), target(machine))
    assert "s: join(ds, dm)" in text and "strided" not in text
    assert "compute_at(dm, i); compute_at(m, i)" in text and "rfactor(dm_k_in)" in text
    (nest,) = scheduled.nests()
    assert [a.nest.name for a in nest.attached] == ["m", "s"]
    assert {s.buffer for s in nest.attached[1].nest.stores} == {"s_tile", "ds_tile", "dm_tile"}
    assert len(nest.attached[1].nest.reduces) == 2  # the sums that three stages share


@pytest.mark.parametrize("machine", ["x86-64-v4", "x86-64-v3"])
def test_stages_inside_a_loop_are_counted_once(machine: str) -> None:
    """Rows twice as many take twice as long, in the stages and in what they are computed in."""
    takes: list[dict[str, float]] = []
    for rows in (8, 16):
        scheduled, _ = check(grad(parse(ROWS, A=(rows, 264))), target(machine))
        takes.append({p.nest: p.cycles for p in predict(scheduled, target(machine))})
    assert takes[0].keys() == {"m", "s", "dA"}
    for name, cycles in takes[0].items():
        assert 1.8 * cycles < takes[1][name] < 2.2 * cycles


BESIDE = """T[i] = sum(r: X[i, r])
U[i] = sum(r: X[i, r]**2)
Y[y, x] = T[y] * X[y, x] + U[y{shift}]   for y < 4"""


def test_temporaries_stored_together_move_together() -> None:
    text = "T: join(U)\nY: compute_at(T, y)"
    nest = lower(parse(BESIDE.format(shift=""), X=(4, 4)))
    after = parse_schedule(text).apply(nest, MACHINE)
    assert {"T_tile", "U_tile"} <= {b.name for b in after.buffers}
    assert not {"T", "U"} & {b.name for b in after.buffers}
    verify(after, "schedule")
    assert not difference(nest, after)


def test_temporaries_read_in_other_parts_stay() -> None:
    nest = lower(parse(BESIDE.format(shift=" + 1"), X=(5, 4)))
    with pytest.raises(ScheduleError, match="stores U too, which is read in other parts"):
        parse_schedule("T: join(U)\nY: compute_at(T, y)").apply(nest, MACHINE)


def strided(what: str, last: bool, dtype: str) -> Program:
    """The gradient of a window of 3 x 3 with stride 2, which comes in four pieces; "turned": the
    weights lie along the window."""
    y, x, r, s = dsl.axes("y x r s")
    shape, at = ((1, 12, 16, 16), [n, y, x, c]) if last else ((1, 16, 12, 16), [n, c, y, x])
    row, column = 2 * y + r - 1, 2 * x + s - 1
    place = (n, row, column, c) if last else (n, c, row, column)
    X = dsl.tensor("X", shape, dtype).pad("omit" if what == "largest" else "zero")
    body = dsl.max_over([r, s], X[place])
    if what == "weighted":
        body = dsl.sum_over([r, s], X[place] * dsl.tensor("W", (3, 3, 16), dtype)[r, s, c])
    if what == "turned":
        body = dsl.sum_over([r, s], X[place] * dsl.tensor("W", (16, 3, 3), dtype)[c, r, s])
    extents = {y: 6, x: 8, r: 3, s: 3}
    return split(dsl.define("Y", at, body, extents=extents), ["X"])[1]


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("machine", ["x86-64-v4", "x86-64-v3", "x86-64-v2", "aarch64"])
@pytest.mark.parametrize("what", ["largest", "weighted", "turned"])
def test_pieces_of_a_tensor_share_a_pass(what: str, machine: str, dtype: str) -> None:
    scheduled, text = check(strided(what, True, dtype), target(machine))
    assert "dX.0: join(dX.1, dX.2, dX.3)" in text and "carry()" in text
    nest = list(scheduled.nests())[-1]
    assert len(list(scheduled.nests())) == 1 + (what == "turned")
    assert len(nest.stores) == 4
    # All reads of a point's gradient are written out side by side, in registers.
    assert all(o.kind is LoopKind.UNROLL for o in nest.loops if o.reduce is not None)
    # The batch of one is no reason to run on one worker.
    assert [o.name for o in nest.loops if o.kind is LoopKind.PARALLEL][:3] == ["n", "u", "u'"]
    assert ("hoist=True" in text) == (what == "turned")


def test_pieces_that_no_vector_runs_along_stay_apart() -> None:
    scheduled, text = check(strided("largest", False, "f32"))
    assert len(list(scheduled.nests())) > 1 and "dX.0: join" not in text


def test_a_chunk_passes_through_all_stages() -> None:
    scheduled, text = check(softmax((2, 4, 5, 16), True))
    assert [nest.name for nest in scheduled.nests()] == ["Y"]
    for stage in ("total", "E", "top"):
        assert f"compute_at({stage}, n_h_w)" in text
    assert not [b for b in scheduled.buffers if b.role == "temporary"]
    scheduled, text = check(softmax((3, 16, 4, 20), False))
    assert "compute_at(E, n_h)" in text  # rows stay whole where they are contiguous


@pytest.mark.parametrize("machine", ["x86-64-v4", "x86-64-v3", "aarch64"])
def test_a_chunk_stores_the_results_that_stages_pass_on(machine: str) -> None:
    ahead, _ = split(softmax((2, 4, 5, 16), True), ["X"])
    scheduled, text = check(ahead, target(machine))
    assert [nest.name for nest in scheduled.nests()] == ["Y"]
    for stage in ("total", "E", "top"):
        assert f"compute_at({stage}, n_h_w)" in text
    kept = {b.name for b in scheduled.buffers if b.role == "output"}
    assert kept == {"Y", "E", "total", "top_index"}


def test_statistics_stay_in_the_cache_where_a_channel_fits() -> None:
    scheduled, text = check(normalized((3, 16, 4, 6), False))
    assert "reorder(c, n, h, w)" in text and "compute_at(m, c" in text
    assert [nest.name for nest in scheduled.nests()] == ["Y"]
    scheduled, _ = check(normalized((3, 4, 6, 16), True))  # channels lie side by side: no chunk
    assert len(list(scheduled.nests())) == 3


def test_cheap_maps_disappear() -> None:
    X = dsl.tensor("X", (6, 40))
    half = dsl.define("half", [h, w], X[h, w] / 2 + 1)
    scheduled, text = check(dsl.define("Y", [h, w], half[h, w] * half[h, w] - X[h, w]))
    assert "inline(half)" in text and len(list(scheduled.nests())) == 1


def sums(second: str) -> Kernel:
    X = dsl.tensor("X", (5, 7))
    a = dsl.define("A", [h], dsl.sum_over([w], X[h, w]))
    bodies = {
        "reads a": dsl.sum_over([w], X[h, w] * a[h]),
        "other loops": dsl.sum_over([h], X[h, w] + a[h]),
        "fits": dsl.sum_over([w], X[h, w] ** 2) + a[h],
    }
    index = [w] if second == "other loops" else [h]
    b = dsl.define("B", index, bodies[second])
    return lower(dsl.combine("sums", [a, b], outputs=["A", "B"]))


@pytest.mark.parametrize(
    ("second", "text", "message"),
    [
        ("reads a", "A: join(B)", "B reads other points of what A stores"),
        ("other loops", "A: join(B)", "B has other output loops"),
        ("fits", "B: join(A)", "A runs before B"),
        ("fits", "A: split(h, 5); join(B)", "A is scheduled already"),
    ],
)
def test_what_cannot_be_joined(second: str, text: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        parse_schedule(text).apply(sums(second), MACHINE)


def test_joined_sums_are_the_sums() -> None:
    kernel = sums("fits")
    joined = parse_schedule("A: join(B); split(w, 3, 'guard'); rfactor(w_in)").apply(
        kernel, MACHINE
    )
    verify(joined, "join")
    assert not difference(kernel, joined)
    assert not difference(kernel, flatten(joined, MACHINE))
