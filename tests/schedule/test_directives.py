"""Each directive: printed before and after, its refusals beside its successes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from schedule_nests import buffer, first_max, kernel, load, nest, two_stages, var, window

from convgen.errors import ScheduleError
from convgen.ir.interpret import interpret
from convgen.ir.nodes import Edge, Kernel, Op
from convgen.ir.printer import kernel_text
from convgen.schedule.schedule import parse_schedule
from convgen.target import target
from convgen.types import f32

V4 = target("x86-64-v4")
Golden = Callable[[str, str], None]


def apply(text: str, subject: Kernel) -> Kernel:
    return parse_schedule(text).apply(subject, V4)


def line(extent: int = 19) -> Kernel:
    """Y[x] = sum(r: X[x + r])."""
    return kernel(
        (buffer("X", (extent + 2,)), buffer("Y", (extent,), "output")),
        nest("Y", {"x": extent}, load("X", var("x") + var("r")), {"r": 3}),
    )


def first(rows: int = 3, columns: int = 8) -> Kernel:
    """Y[i] = the first maximum over j, k of X[i, j, k]: order matters."""
    return kernel(
        (buffer("X", (rows, columns, 2)), buffer("Y", (rows,), "output")),
        nest(
            "Y",
            {"i": rows},
            load("X", var("i"), var("j"), var("k")),
            {"j": columns, "k": 2},
            first_max(),
        ),
    )


def rows() -> Kernel:
    """S[c] = sum(n, i: X[n, i, c])."""
    return kernel(
        (buffer("X", (3, 5, 4)), buffer("S", (4,), "output")),
        nest("S", {"c": 4}, load("X", var("n"), var("i"), var("c")), {"n": 3, "i": 5}),
    )


def with_result() -> Kernel:
    """Two stages, the first of which is a result too."""
    made = two_stages()
    roles = {"T": "output"}
    buffers = (replace(b, role=roles.get(b.name, b.role)) for b in made.buffers)
    return replace(made, buffers=tuple(buffers))


def same(before: Kernel, after: Kernel) -> None:
    """Both compute the same on small integers."""
    chance = np.random.default_rng(3)
    arrays = {
        b.name: chance.integers(-4, 5, b.shape).astype(b.dtype.numpy_name)
        for b in before.buffers
        if b.role == "input"
    }
    wanted, got = interpret(before, arrays), interpret(after, arrays)
    for name, value in wanted.items():
        np.testing.assert_array_equal(value, got[name])


GOLDEN = {
    "split": (line, "split(x, 4, tail='peel')"),
    "split_guard": (line, "split(x, 4, tail='guard'); split(r, 2, tail='guard')"),
    "cover": (line, "cover(x, 10, 9)"),
    "peel": (line, "peel(x, 1, 2)"),
    "peel_tiles": (line, "split(x, 4, tail='peel'); peel(x_out, 2, 1)"),
    "reorder": (lambda: window(1, 2, 4, 5), "reorder(n, k, y, r, c, x)"),
    "fuse": (lambda: window(1, 2, 4, 5), "fuse(y, x); fuse(c, r)"),
    "reverse": (lambda: window(1, 2, 4, 5), "reverse(s); reverse(y)"),
    "unroll": (line, "unroll(r); reorder(r, x); unroll(x, 4)"),
    "vectorize": (line, "reorder(r, x); vectorize(x)"),
    "parallel": (lambda: window(2, 2, 4, 5), "parallel(n, k)"),
    "carry": (line, "cover(x, 10, 9); reorder(x_out, r, x_in); unroll(x_in); carry()"),
    "carry_follow": (
        line,
        "cover(x, 10, 9); reorder(x_out, r, x_in); unroll(x_in); unroll(r); carry(follow=X)",
    ),
    "rfactor": (line, "rfactor(r); unroll(r)"),
    "partial": (rows, "partial(n)"),
    "pack": (lambda: window(1, 3, 20, 5), "split(k, 8, tail='peel'); pack(W, k_in, hoist=True)"),
    "pack_edges": (lambda: window(1, 2, 4, 5), "pack(X)"),
    "pack_order": (lambda: window(1, 2, 4, 5), "reorder(n, k, y, r, s, c, x); pack(X, c)"),
    "pack_reflect": (lambda: window(1, 2, 4, 5, kind="reflect"), "pack(X, x)"),
    "unfold": (
        lambda: window(1, 2, 4, 5),
        "unfold(X, n, y, x, c, r, s); fuse(y, x); fuse(c, r); fuse(c_r, s); rfactor(c_r_s)",
    ),
    "unfold_reflect": (
        lambda: window(1, 20, 4, 5, kind="reflect"),
        "fuse(r, s); cover(x, 3, 2); unfold(X, n, s, c, r, x, y)",
    ),
    "fold": (lambda: window(1, 2, 4, 5), "fold(c)"),
    "fold_reflect": (
        lambda: window(1, 2, 4, 5, kind="reflect"),
        "Y: fold(c)\nY_columns: fuse(i5, i6); vectorize(i5_i6)\nY: split(x, 2, tail='peel')",
    ),
    "compute_at": (two_stages, "Y: compute_at(T, y)"),
    "compute_at_chunk": (two_stages, "Y: split(y, 4, tail='peel'); compute_at(T, y_out)"),
    "inline": (two_stages, "Y: inline(T)"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str, golden: Golden) -> None:
    make, text = GOLDEN[name]
    before = make()
    after = apply(text, before)
    shown = f"{kernel_text(before)}\n--- {text}\n\n{kernel_text(after)}"
    golden(f"schedule/{name}.txt", shown)
    same(before, after)


REFUSED = {
    "split of no loop": (
        line,
        "split(z, 4)",
        "split(z, 4): there is no loop z; loops are x, r; expected a loop of the nest, got z",
    ),
    "split without tail": (
        line,
        "split(x, 4)",
        "split(x, 4): 4 does not divide 19; loops are x, r; expected a factor of 19 or a tail "
        "strategy, got 4; try tail='peel'",
    ),
    "split too large": (
        line,
        "split(r, 4)",
        "split(r, 4): the factor must fit the extent of r; loops are x, r; expected a factor in "
        "1..3, got 4",
    ),
    "unknown tail": (
        line,
        "split(x, 4, tail='mask')",
        "split(x, 4, tail='mask'): unknown tail; loops are x, r; expected one of exact peel "
        "guard, got 'mask'",
    ),
    "guard of a part": (
        lambda: line(20),
        "split(x, 10); split(x_in, 4, tail='guard')",
        "split(x_in, 4, tail='guard'): x_in is part of an axis, a guard needs a whole one; loops "
        "are x_out, x_in, r; expected a loop that runs over one axis, got x_in; try tail='peel'",
    ),
    "cover that leaves a gap": (
        line,
        "cover(x, 8, 7)",
        "cover(x, 8, 7): no sum of 8 and 7 is 19; loops are x, r; expected sizes that cover 19 "
        "exactly, got 8, 7; try cover(x, 7, 6)",
    ),
    "peel of everything": (
        line,
        "peel(r, 2, 1)",
        "peel(r, 2, 1): nothing would be left of r, or nothing be peeled; loops are x, r; "
        "expected low + high in 1..2, got 2 + 1",
    ),
    "split of a segment": (
        line,
        "cover(x, 10, 9); split(x_in, 2)",
        "split(x_in, 2): x_in belongs to a cover or peel, its extent differs between segments; "
        "loops are x_out, x_in, r; expected a plain loop, got x_in; try the directive before "
        "cover or peel",
    ),
    "reorder of a segment": (
        line,
        "cover(x, 10, 9); reorder(x_in, x_out)",
        "reorder(x_in, x_out): x_in has another extent in each segment of x_out; loops are "
        "x_out, x_in, r; expected x_out outside x_in, got x_in outside",
    ),
    "reorder of an ordered reduction": (
        first,
        "reorder(k, j)",
        "reorder(k, j): argmax depends on the order of its elements; loops are i, j, k; expected "
        "its loops in the order j, k, got k, j",
    ),
    "reorder twice": (
        line,
        "reorder(x, x)",
        "reorder(x, x): a loop is named twice; loops are x, r; expected each loop once",
    ),
    "reorder of parallel loops": (
        lambda: window(2, 2, 4, 5),
        "parallel(n); reorder(k, n)",
        "reorder(k, n): parallel loops must stay outermost; loops are n, k, y, x, c, r, s; "
        "expected the parallel loops first",
    ),
    "fuse of strangers": (
        lambda: window(2, 2, 4, 5),
        "fuse(n, y)",
        "fuse(n, y): y is not directly inside n; loops are n, k, y, x, c, r, s; expected "
        "neighbouring loops, the outer named first, got n, k, y, x, c, r, s; try reorder first",
    ),
    "fuse of output and reduce": (
        line,
        "fuse(x, r)",
        "fuse(x, r): an output loop and a reduce loop cannot become one; loops are x, r; expected "
        "two outputs, or two loops of one reduce, got x, r",
    ),
    "reverse of an ordered reduction": (
        first,
        "reverse(j)",
        "reverse(j): argmax depends on the order of its elements; loops are i, j, k; expected an "
        "output loop, or a commutative reduction, got j (reduce)",
    ),
    "unroll of too much": (
        line,
        "unroll(r, 4)",
        "unroll(r, 4): the steps must fit the extent; loops are x, r; expected steps in 1..3, "
        "got 4",
    ),
    "unroll twice": (
        line,
        "unroll(r); unroll(r)",
        "unroll(r): r is marked already; loops are x, r; expected a serial loop, got r (unroll)",
    ),
    "vectorize strided": (
        lambda: window(1, 3, 32, 5),
        "vectorize(k)",
        "vectorize(k): W is strided along k; loops are n, k, y, x, c, r, s; expected contiguous "
        "or broadcast operands, got a step of 27; try pack(W, k)",
    ),
    "vectorize reflected": (
        lambda: window(1, 3, 32, 5, kind="reflect"),
        "vectorize(x)",
        "vectorize(x): X folds back along x; loops are n, k, y, x, c, r, s; expected contiguous "
        "or broadcast operands, got a reflect edge; try pack(X, x)",
    ),
    "vectorize reduced": (
        line,
        "vectorize(r)",
        "vectorize(r): the iterations of r share one state; loops are x, r; expected an output "
        "loop or a factored reduce loop, got r (reduce); try rfactor(r)",
    ),
    "vectorize segments": (
        line,
        "cover(x, 10, 9); vectorize(x_out)",
        "vectorize(x_out): x_out runs over the segments of a cover or peel; loops are x_out, "
        "x_in, r; expected a plain loop, got x_out; try vectorize(x_in)",
    ),
    "parallel reduce": (
        line,
        "parallel(r)",
        "parallel(r): r is a reduce loop, its iterations share a result; loops are x, r; expected "
        "output loops, got r",
    ),
    "parallel inside": (
        lambda: window(2, 2, 4, 5),
        "parallel(k)",
        "parallel(k): the parallel loops must be the outermost, in their order; loops are n, k, y, "
        "x, c, r, s; expected the outermost loops: n, got k; try reorder(k, ...) before",
    ),
    "carry of a loop": (
        line,
        "reorder(r, x); carry()",
        "carry(): the tile loop x stays a loop, registers have no addresses; loops are r, x; "
        "expected tile loops that are unrolled or vectorized, got x (serial); try unroll(x)",
    ),
    "carry of too much": (
        lambda: line(600),
        "reorder(r, x); vectorize(x); carry()",
        "carry(): the tile does not fit the vector registers; loops are r, x; expected at most 30 "
        "live vectors of 32, got 76; try a smaller tile",
    ),
    "carry that follows a stranger": (
        line,
        "reorder(r, x); vectorize(x); unroll(r); carry(follow=W)",
        "carry(follow=W): an order of W is wanted; loops are r, x; expected one reduce that reads "
        "one element of W, got 1 reduces with 0 such loads",
    ),
    "carry that follows through a loop": (
        line,
        "reorder(r, x); vectorize(x); carry(follow=X)",
        "carry(follow=X): no reduce loop is written out; loops are r, x; expected an innermost "
        "reduce loop that is unrolled, got none; try unroll first",
    ),
    "carry in an order that is none": (
        lambda: line(16),
        "split(r, 2, tail='guard'); reorder(r_out, r_in, x); vectorize(x); unroll(r_out); "
        "unroll(r_in); carry(follow=X)",
        "carry(follow=X): the order of X would not keep the order of the loops; loops are r_out, "
        "r_in, x; expected each unrolled reduce loop in a dimension of X of its own, got "
        "r_in + 2*r_out + x",
    ),
    "rfactor of an output": (
        line,
        "rfactor(x)",
        "rfactor(x): x is an output loop; loops are x, r; expected a reduce loop, got x",
    ),
    "rfactor out of order": (
        first,
        "rfactor(k)",
        "rfactor(k): argmax depends on the order of its elements; loops are i, j, k; expected the "
        "outermost loop of its reduce, j, got k",
    ),
    "partial of all": (
        rows,
        "partial(n, i)",
        "partial(n, i): some loops of the sum are apart, some are not; loops are c, n, i; expected "
        "one or more of n, i, got n, i",
    ),
    "partial of an output": (
        rows,
        "partial(c)",
        "partial(c): some loops of the sum are apart, some are not; loops are c, n, i; expected "
        "one or more of n, i, got c",
    ),
    "partial too late": (
        rows,
        "split(n, 3); partial(i)",
        "partial(i): S is scheduled already; loops are c, n_out, n_in, i; expected partial before "
        "all directives but join, got n_out",
    ),
    "partial in order": (
        first,
        "partial(j)",
        "partial(j): Y does not add up one domain; loops are i, j, k; expected plain sums in the "
        "same loops, got argmax",
    ),
    "pack of a stranger": (
        line,
        "pack(W)",
        "pack(W): Y does not read W; loops are x, r; expected one of X, got W",
    ),
    "unfold without an axis": (
        line,
        "unfold(X, r)",
        "unfold(X, r): the copy needs a dimension for each axis that moves through X; loops are "
        "x, r; expected x, r, got r",
    ),
    "unfold of a loop": (
        line,
        "cover(x, 10, 9); unfold(X, x_out, x_in, r)",
        "unfold(X, x_out, x_in, r): the copy needs a dimension for each axis that moves through "
        "X; loops are x_out, x_in, r; expected x, r, got x_out, x_in, r",
    ),
    "unfold of what is left out": (
        lambda: window(1, 2, 4, 5, kind="omit"),
        "unfold(X, n, y, x, c, r, s)",
        "unfold(X, n, y, x, c, r, s): elements outside X are left out or computed; loops are n, "
        "k, y, x, c, r, s; expected edges with a fixed value, got omit, omit",
    ),
    "fold of a window": (
        lambda: window(1, 2, 4, 5),
        "fold(r)",
        "fold(r): r is not summed over, or no whole dimension of both operands; loops are n, k, y, "
        "x, c, r, s; expected a loop that is one index of both, got r",
    ),
    "fold of an output": (
        lambda: window(1, 2, 4, 5),
        "fold(k)",
        "fold(k): k is not summed over, or no whole dimension of both operands; loops are n, k, y, "
        "x, c, r, s; expected a loop that is one index of both, got k",
    ),
    "fold of nothing": (
        lambda: window(1, 2, 4, 5),
        "fold()",
        "fold(): no loop is summed over first; loops are n, k, y, x, c, r, s; expected a loop that "
        "is, got none",
    ),
    "fold after a split": (
        lambda: window(1, 4, 4, 5),
        "split(c, 2); fold(c_out)",
        "fold(c_out): Y is scheduled already, or a copy; loops are n, k, y, x, c_out, c_in, r, s; "
        "expected fold before all other directives, got Y",
    ),
    "fold of one operand": (
        line,
        "fold(r)",
        "fold(r): Y is not one sum of products of two operands, 0 or nothing outside; loops are x, "
        "r; expected a nest that sums a[..] * b[..], got 1 reduces",
    ),
    "pack along nothing": (
        lambda: window(1, 3, 32, 5),
        "pack(X, k)",
        "pack(X, k): X does not vary along k; loops are n, k, y, x, c, r, s; expected loops that "
        "move through X, got k",
    ),
    "hoist of a temporary": (
        two_stages,
        "Y: pack(T, hoist=True)",
        "pack(T, hoist=True): T is not known before the kernel runs; loops are y, r; expected an "
        "input or a constant, got a temporary buffer; try pack(T)",
    ),
    "compute_at an input": (
        two_stages,
        "T: compute_at(X, i)",
        "compute_at(X, i): X is an input; loops are i; expected a temporary, got X (input)",
    ),
    "compute_at a result": (
        with_result,
        "Y: compute_at(T, y)",
        "compute_at(T, y): the parts of T overlap or leave elements out; loops are y, r; expected "
        "parts that make up T, got what an iteration of y reads",
    ),
    "compute_at a reduce": (
        two_stages,
        "Y: compute_at(T, r)",
        "compute_at(T, r): r is not outside all reduces; loops are y, r; expected one of y, got r",
    ),
    "inline of a reduce": (
        lambda: kernel(
            (buffer("X", (4,)), buffer("T", (2,), "temporary"), buffer("Y", (2,), "output")),
            nest("T", {"i": 2}, load("X", var("i") + var("r")), {"r": 3}),
            nest("Y", {"y": 2}, load("T", var("y"))),
        ),
        "Y: inline(T)",
        "inline(T): T reduces, tests or writes more than one value; loops are y; expected a "
        "producer that is one expression, got T; try compute_at(T, ...)",
    ),
    "no nest": (
        two_stages,
        "unroll(r)",
        "unroll(r): the kernel has the nests T, Y; expected the name of one, got none; try "
        "T: unroll(r)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str) -> None:
    make, text, message = REFUSED[name]
    with pytest.raises(ScheduleError) as caught:
        apply(text, make())
    assert str(caught.value) == message


def test_not_associative_is_not_factored() -> None:
    subject = line()
    (body,) = subject.nests()
    reduce = body.reduces[0]
    odd = replace(
        body, reduces=(replace(reduce, combiner=replace(reduce.combiner, associative=False)),)
    )
    wrong = replace(subject, phases=(replace(subject.phases[0], body=(odd,)),))
    with pytest.raises(ScheduleError, match="not associative"):
        apply("rfactor(r)", wrong)


def test_equal_packs_share_one_copy() -> None:
    x, y = var("x"), var("y")
    subject = kernel(
        (
            buffer("W", (4, 6)),
            buffer("A", (6, 4), "output"),
            buffer("B", (6, 4), "output"),
        ),
        nest("A", {"y": 6, "x": 4}, load("W", x, y)),
        nest("B", {"y": 6, "x": 4}, load("W", x, y)),
    )
    after = apply("A: pack(W, x); vectorize(x)\nB: pack(W, x); vectorize(x)", subject)
    assert [b.name for b in after.buffers if b.role == "packed"] == ["W_packed"]
    same(subject, after)


def test_edges_that_disagree_are_not_packed() -> None:
    x = var("x")
    ends = load("X", x - 1, edges=(Edge("zero"),)), load("X", x + 1, edges=(Edge("reflect"),))
    subject = kernel(
        (buffer("X", (6,)), buffer("Y", (6,), "output")),
        nest("Y", {"x": 6}, Op("add", ends, f32)),
    )
    with pytest.raises(ScheduleError, match="X is read with different edges"):
        apply("pack(X)", subject)


def test_reads_inside_share_the_copy_of_reads_with_edges() -> None:
    x = var("x")
    both = load("X", x), load("X", x - 2, edges=(Edge("circular"),))
    subject = kernel(
        (buffer("X", (6,)), buffer("Y", (6,), "output")),
        nest("Y", {"x": 6}, Op("sub", both, f32)),
    )
    after = apply("pack(X); vectorize(x)", subject)
    assert after.buffer("X_packed").layout.halo == ((2, 0),)
    same(subject, after)


def test_trace_and_marks_are_kept() -> None:
    after = apply("cover(x, 10, 9); reorder(x_out, r, x_in)", line())
    assert after.trace == ("Y: cover(x, 10, 9)", "Y: reorder(x_out, r, x_in)")
    assert f32 in {b.dtype for b in after.buffers}
