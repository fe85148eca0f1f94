"""What nests become: registers, vectors, tasks, versions; counts, refusals and notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from convgen.affine import Affine
from convgen.errors import InternalError
from convgen.ir.interpret import interpret
from convgen.ir.nodes import (
    Block,
    For,
    Form,
    Kernel,
    Loop,
    LoopKind,
    Nest,
    Op,
    Register,
    Segment,
    Set,
    Stmt,
    Store,
    VectorLoad,
)
from convgen.ir.printer import kernel_text
from convgen.ir.visit import walk
from convgen.passes.flatten import flatten
from convgen.passes.flatten.proof import check_memory
from convgen.passes.lower import lower
from convgen.schedule.schedule import parse_schedule
from convgen.symbolic import dsl as cg
from convgen.target import target

V4 = target("x86-64-v4")
k, y, x, c, i, j = cg.axes("k y x c i j")


def product(rows: int, inner: int, columns: int) -> Kernel:
    a, b = cg.tensor("A", (rows, inner)), cg.tensor("B", (inner, columns))
    return lower(cg.define("C", [i, j], cg.sum_over(k, a[i, k] * b[k, j])))


def nest_of(kernel: Kernel) -> Nest:
    return next(kernel.nests())


def with_nest(kernel: Kernel, nest: Nest) -> Kernel:
    return replace(kernel, phases=(replace(kernel.phases[0], body=(nest,)),), form=Form.SCHEDULED)


def tiled(kernel: Kernel, parts: tuple[Segment, ...], columns: int, **of_k: int) -> Kernel:
    """Rows covered by `parts` and unrolled, columns in vectors, states carried."""
    nest = nest_of(kernel)
    size = max(p.size for p in parts)
    loops = (
        Loop(
            "i_out",
            sum(p.count for p in parts),
            LoopKind.PARALLEL,
            segments=parts,
            inner="i_in",
            base="i_base",
        ),
        Loop("j_out", nest.loop("j").extent // columns),
        replace(nest.loop("k"), **of_k),
        Loop("i_in", size, LoopKind.UNROLL),
        Loop("j_in", columns, LoopKind.VECTOR),
    )
    values = {
        "i": Affine.of("i_base") + Affine.of("i_in"),
        "j": Affine.of("j_out") * columns + Affine.of("j_in"),
    }
    axes = tuple((a, v.substitute(values)) for a, v in nest.axes)
    reduces = tuple(replace(r, carried=True) for r in nest.reduces)
    return with_nest(kernel, replace(nest, loops=loops, axes=axes, reduces=reduces))


def arrays_for(kernel: Kernel) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(0)
    return {
        b.name: chance.integers(-4, 5, b.shape).astype(b.dtype.numpy_name)
        for b in kernel.buffers
        if b.role == "input"
    }


def assert_equal(kernel: Kernel, flat: Kernel) -> None:
    arrays = arrays_for(kernel)
    expected, seen = interpret(kernel, arrays), interpret(flat, arrays)
    for name, value in expected.items():
        np.testing.assert_array_equal(value, seen[name])


def body_of(kernel: Kernel) -> Stmt:
    body = kernel.phases[0].body
    assert not isinstance(body, tuple)
    return body


def innermost(kernel: Kernel) -> list[For]:
    loops = [s for s in walk(body_of(kernel)) if isinstance(s, For)]
    return [f for f in loops if not any(isinstance(s, For) for s in walk(f.body))]


def test_a_covered_contraction(golden: Callable[[str, str], None]) -> None:
    kernel = product(5, 4, 32)
    flat = flatten(tiled(kernel, (Segment(0, 1, 3), Segment(3, 1, 2)), 32), V4)
    golden("passes/flatten_contraction.txt", kernel_text(flat))
    assert_equal(kernel, flat)


def test_hot_loops_hold_what_the_tile_needs() -> None:
    kernel = product(27, 6, 32)
    parts = (Segment(0, 1, 14), Segment(14, 1, 13))
    flat = flatten(tiled(kernel, parts, 32, steps=2), V4)
    assert_equal(kernel, flat)
    for loop, rows in zip(innermost(flat), (14, 13), strict=True):
        inside = list(walk(loop.body))
        fused = [s for s in inside if isinstance(s, Op) and s.name == "fma"]
        loads = [s for s in inside if isinstance(s, VectorLoad)]
        assert len(fused) == 2 * rows * 2  # steps * rows * vectors
        assert len(loads) == 2 * (rows + 2)  # steps * (scalars + vectors): none twice
        assert not [s for s in inside if isinstance(s, Store)]


def test_parallel_segments_are_tasks() -> None:
    kernel = product(7, 3, 16)
    flat = flatten(tiled(kernel, (Segment(0, 2, 3), Segment(6, 1, 1)), 16), V4)
    assert flat.phases[0].extent == 3
    assert_equal(kernel, flat)


def test_the_last_vector_has_fewer_valid_lanes() -> None:
    kernel = product(2, 3, 21)
    nest = nest_of(kernel)
    loops = tuple(
        replace(loop, kind=LoopKind.VECTOR) if loop.name == "j" else loop for loop in nest.loops
    )
    flat = flatten(with_nest(kernel, replace(nest, loops=loops)), V4)
    stores = [s for s in walk(body_of(flat)) if isinstance(s, Store)]
    assert sorted((s.value.lanes, s.valid) for s in stores) == [(16, 5), (16, 16)]
    assert_equal(kernel, flat)


def test_states_that_are_not_carried_lie_in_scratch() -> None:
    kernel = product(6, 5, 40)
    nest = nest_of(kernel)
    order = (nest.loop("k"), nest.loop("i"), replace(nest.loop("j"), kind=LoopKind.VECTOR))
    flat = flatten(with_nest(kernel, replace(nest, loops=order)), V4)
    scratch = [b for b in flat.buffers if b.role == "scratch"]
    assert [b.shape for b in scratch] == [(6, 48)]
    assert flat.phases[0].scratch_bytes == 6 * 48 * 4
    assert_equal(kernel, flat)


@pytest.mark.parametrize("extent", [1, 16, 37])
def test_factored_lanes_are_joined(extent: int) -> None:
    kernel = product(2, extent, 3)
    nest = nest_of(kernel)
    loops = tuple(
        replace(loop, kind=LoopKind.VECTOR) if loop.name == "k" else loop for loop in nest.loops
    )
    reduces = tuple(replace(r, factored=("k",)) for r in nest.reduces)
    flat = flatten(with_nest(kernel, replace(nest, loops=loops, reduces=reduces)), V4)
    assert_equal(kernel, flat)


def test_too_much_code_runs_as_a_loop_and_says_so() -> None:
    kernel = product(40, 50, 32)
    nest = nest_of(kernel)
    loops = tuple(replace(loop, kind=LoopKind.UNROLL) for loop in nest.loops)
    flat = flatten(with_nest(kernel, replace(nest, loops=loops)), V4)
    assert sum(isinstance(s, (Set, Store)) for s in walk(body_of(flat))) < 3000
    assert any("runs as a loop" in note for note in flat.notes)
    assert_equal(kernel, flat)


def test_zeros_of_constant_tensors_cost_nothing() -> None:
    taps = cg.tensor("K", (3,), values=[1, 0, -1], role="constant")
    kernel = lower(
        cg.define("Y", [i], cg.sum_over(k, cg.tensor("X", (12,))[i + k] * taps[k]), extents={i: 10})
    )
    nest = nest_of(kernel)
    loops = tuple(
        replace(loop, kind=LoopKind.UNROLL) if loop.name == "k" else loop for loop in nest.loops
    )
    flat = flatten(with_nest(kernel, replace(nest, loops=loops)), V4)
    inside = list(walk(body_of(flat)))
    assert sum(isinstance(s, VectorLoad) for s in inside) == 2
    assert not [s for s in inside if isinstance(s, Op) and s.name in ("mul", "fma")]
    assert_equal(kernel, flat)


def test_the_interior_has_no_tests() -> None:
    data, taps = cg.tensor("X", (3, 30, 30)), cg.tensor("W", (3, 3, 3))
    body = cg.sum_over([c, i, j], data[c, y + i - 1, x + j - 1] * taps[c, i, j])
    kernel = lower(cg.define("Y", [y, x], body, extents={y: 30, x: 30}))
    flat = flatten(
        parse_schedule(
            "split(x, 5); reorder(y, x_out, c, i, j, x_in); unroll(x_in); carry()"
        ).apply(kernel, V4),
        V4,
    )
    plain = [
        loop
        for loop in innermost(flat)
        if not [s for s in walk(loop.body) if isinstance(s, Op) and s.name in ("le", "select")]
    ]
    assert len(plain) >= 1
    assert_equal(kernel, flat)


def most_live(flat: Kernel, buffer: str) -> int:
    """The most vectors of a buffer that are read and still used at one statement of a block."""
    most = 0
    for block in (b for b in walk(body_of(flat)) if isinstance(b, Block)):
        sets = [s for s in block.body if isinstance(s, Set)]
        first = {
            s.register: place
            for place, s in enumerate(sets)
            if isinstance(s.value, VectorLoad) and s.value.buffer == buffer
        }
        last = {
            r.name: place
            for place, s in enumerate(sets)
            for r in walk(s.value)
            if isinstance(r, Register) and r.name in first
        }
        for place in range(len(sets)):
            most = max(most, sum(first[n] <= place < last[n] for n in last))
    return most


@pytest.mark.parametrize("sign", [1, -1])
def test_points_follow_an_operand(sign: int) -> None:
    """Each vector of X is read once, by points that follow one another; every state adds up what it
    did before in the same order: the same bits."""
    data, taps = cg.tensor("X", (12, 12, 16)), cg.tensor("W", (3, 3, 16))
    read = data[y + sign * (i - 1), x + sign * (j - 1), c]
    body = cg.sum_over([i, j], read * taps[i, j, c])
    kernel = lower(cg.define("Y", [y, x, c], body, extents={y: 12, x: 12}))
    text = (
        "split(y, 2); split(x, 4); reorder(y_out, x_out, i, j, y_in, x_in, c); unroll(y_in); "
        "unroll(x_in); unroll(j); unroll(i); vectorize(c); carry({})"
    )
    plain, ordered = (
        flatten(parse_schedule(text.format(how)).apply(kernel, V4), V4) for how in ("", "follow=X")
    )
    rng = np.random.default_rng(5)
    arrays = {
        b.name: rng.normal(size=b.shape).astype("float32")
        for b in kernel.buffers
        if b.role == "input"
    }
    assert np.array_equal(interpret(plain, arrays)["Y"], interpret(ordered, arrays)["Y"])
    assert_equal(kernel, ordered)
    assert most_live(plain, "X") > 8
    assert most_live(ordered, "X") == 1


@pytest.mark.parametrize("later", ["unroll(i)", "pack(X)", "unroll(i); pack(X)"])
def test_what_comes_after_carry_keeps_the_order(later: str) -> None:
    """Of equal elements the first one wins: a loop that is unrolled later does not join in, and a
    copy is followed like its source."""
    data = cg.tensor("X", (23,))
    body = cg.argmax_over([i, j], data[x + i - j + 2], extents={i: 2, j: 3})
    kernel = lower(cg.define("Y", [x], body, extents={x: 20}))
    text = f"split(x, 4); reorder(x_out, i, j, x_in); unroll(x_in); unroll(j); carry(follow=X); {later}"
    flat = flatten(parse_schedule(text).apply(kernel, V4), V4)
    arrays = {"X": np.ones(23, "float32")}
    assert np.array_equal(interpret(flat, arrays)["Y"], interpret(kernel, arrays)["Y"])


def test_a_producer_is_computed_inside() -> None:
    data = cg.tensor("A", (3, 12, 12))
    first = cg.define("T", [c, y, x], data[c, y, x] * 2 + 1)
    body = cg.sum_over([i, j], first[c, y + i, x + j], extents={i: 3, j: 3})
    kernel = lower(cg.define("Y", [c, y, x], body))
    for text in (
        "Y: compute_at(T, y)",
        "Y: split(x, 5); compute_at(T, x_out); unroll(x_out, 2); unroll(x_in)",
    ):
        flat = flatten(parse_schedule(text).apply(kernel, V4), V4)
        assert len(flat.phases) == 1
        assert_equal(kernel, flat)


def test_nests_of_one_phase_become_phases() -> None:
    data = cg.tensor("A", (3, 4))
    first = cg.define("T", [c, x], data[c, x] * 2)
    kernel = lower(cg.define("Y", [c, x], first[c, x] + 1))
    joined = replace(kernel.phases[0], body=tuple(kernel.nests()))
    flat = flatten(replace(kernel, phases=(joined,)), V4)
    assert [p.name for p in flat.phases] == ["T_0", "T_1"]
    assert_equal(kernel, flat)


def test_flat_kernels_are_refused() -> None:
    flat = flatten(product(2, 2, 2), V4)
    with pytest.raises(InternalError, match="wanted nests, saw form flat"):
        flatten(flat, V4)


def test_accesses_outside_are_found() -> None:
    flat = flatten(product(4, 3, 5), V4)
    check_memory(flat)
    smaller = tuple(replace(b, shape=(2, 5)) if b.name == "B" else b for b in flat.buffers)
    with pytest.raises(InternalError, match=r"B\[.*\] reaches 0\.\.14; wanted 0\.\.9"):
        check_memory(replace(flat, buffers=smaller))


def test_offsets_with_digits_are_bounded() -> None:
    kernel = lower(cg.define("Y", [i, j], cg.tensor("S", (9, 9))[j, i] * 1))
    nest = nest_of(kernel)
    both = Affine.of("f")
    axes = tuple((a, v.substitute({"i": both // 9, "j": both % 9})) for a, v in nest.axes)
    fused = replace(nest, loops=(Loop("f", 81, LoopKind.PARALLEL),), axes=axes)
    flat = flatten(with_nest(kernel, fused), V4)
    assert flat.phases[0].extent == 81
    assert_equal(kernel, flat)


def test_an_inner_parallel_loop_runs_and_says_so() -> None:
    kernel = product(3, 4, 5)
    nest = nest_of(kernel)
    loops = tuple(
        replace(loop, kind=LoopKind.PARALLEL) if loop.name == "j" else loop for loop in nest.loops
    )
    flat = flatten(with_nest(kernel, replace(nest, loops=loops)), V4)
    assert flat.phases[0].extent == 1
    assert flat.notes == ("C: j is not parallel, it is inside other loops",)
    assert_equal(kernel, flat)
