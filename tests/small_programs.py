"""Small programs that together use every part of the language; shared by the tests of passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from convgen.symbolic import dsl as cg
from convgen.symbolic import functions as f
from convgen.symbolic.program import Program

n, k, y, x, c, r, s, h, w, u = cg.axes("n k y x c r s h w u")
i, j = cg.axes("i j")


def window(mode: Any, stride: int = 2, **options: Any) -> Program:
    X, W, b = cg.tensor("X", (2, 3, 7, 6)), cg.tensor("W", (4, 3, 3, 2)), cg.tensor("b", (4,))
    X = replace(X, **options)
    value = X.pad(mode)[n, c, stride * y + r - 1, stride * x + s - 1] * W[k, c, r, s]
    return cg.define(
        "Y", [n, k, y, x], f.relu(cg.sum_over([c, r, s], value) + b[k]), extents={y: 3, x: 3}
    )


def extremum_with_place() -> Program:
    X = cg.tensor("X", (2, 3, 6, 6)).pad("omit")
    read = X[n, c, 2 * y + r - 1, 2 * x + s - 1]
    outs = [("Y", [n, c, y, x]), ("I", [n, c, y, x])]
    bodies = (cg.max_over([r, s], read), cg.argmax_over([r, s], read))
    return cg.define(outs, bodies, extents={y: 3, x: 3, r: 3, s: 3}, dtype=["f32", "u8"])


def two_stages() -> Program:
    X = cg.tensor("X", (2, 3, 4, 4))
    total = cg.define("M", [n, c], cg.sum_over([h, w], X[n, c, h, w]))
    return cg.define("Y", [n, c, h, w], 2 * X[n, c, h, w] - total[n, c] * (h + 2 * w + 1))


def residue_pieces() -> Program:
    A = cg.tensor("A", (3,))
    even = cg.define("Z", [2 * u], A[u], extents={u: 3}, shape=(6,))
    odd = cg.define("Z", [2 * u + 1], -A[u] + u, extents={u: 3}, shape=(6,))
    return cg.pieces(even, odd)


def triangle() -> Program:
    A = cg.tensor("A", (5, 5))
    return cg.define("Y", [i], cg.sum_over([j], A[i, j], where=f.less_equal(j, i)))


def tiled() -> Program:
    X, W = cg.tensor("X", (9,)), cg.tensor("W", (2, 3))
    return cg.define("Y", [y], cg.sum_over([r], X[y + r] * W[y % 2, r]))


def blocks() -> Program:
    X = cg.tensor("X", (12,))
    return cg.define("Y", [i], X[4 * ((i + 1) // 4)] + i % 3, extents={i: 11})


def constants() -> Program:
    X = cg.tensor("X", (6,))
    B = cg.tensor(
        "B",
        (3, 4),
        role="constant",
        values=[[1, 0, -1, 0], [0, Fraction(1, 2), 1, 0], [0, -1, 0, 1]],
    )
    return cg.define("V", [i], cg.sum_over([j], B[i, j] * X[j + 1]))


def padded_by_a_stage() -> Program:
    X = cg.tensor("X", (2, 4))
    low = cg.define("L", [n], cg.min_over([h], X[n, h]))
    return cg.define("Y", [n, y], X.pad(".", low[n])[n, y - 2], extents={y: 7})


def scalar() -> Program:
    X = cg.tensor("X", (5,), dtype="i32")
    return cg.define("Y", [], cg.sum_over([i], X[i] * X[i]) - 3)


def chosen() -> Program:
    X, T = cg.tensor("X", (3, 4)), cg.tensor("T", (3,), dtype="i64")
    picked = f.select(f.equal(T[n], k), X[n, k], 0)
    return cg.define("Y", [n], cg.sum_over([k], picked) + f.select(f.less(X[n, 0], 0), 1, 2))


def own_reduction() -> Program:
    second = cg.reduction(
        "second",
        lift=lambda v: (v, -1000),
        combine=lambda a, b: (
            f.maximum(a[0], b[0]),
            f.maximum(f.minimum(a[0], b[0]), f.maximum(a[1], b[1])),
        ),
        identity=(-1000, -1000),
        project=lambda a: a[1],
    )
    X = cg.tensor("X", (3, 5))
    return cg.define("Y", [i], second.over([j], X[i, j]))


def same_axes_twice() -> Program:
    X = cg.tensor("X", (3, 5))
    return cg.define("Y", [i], cg.max_over([j], X[i, j]) - cg.sum_over([j], X[i, j] * j))


def truths() -> Program:
    A, B = cg.tensor("A", (6,), dtype="bool"), cg.tensor("B", (6,), dtype="u8")
    both = f.logical_or(A[i], f.less(B[i], 1))
    return cg.define("Y", [i], A[i] + 2 * both + B[i], dtype="i64")


PROGRAMS: dict[str, Callable[[], Program]] = {
    **{
        f"window {m}": (lambda m=m: window(m))
        for m in ("zero", "reflect", "replicate", "circular", 3)
    },
    **{
        g.__name__.replace("_", " "): g
        for g in (
            extremum_with_place,
            two_stages,
            residue_pieces,
            triangle,
            tiled,
            blocks,
            constants,
            padded_by_a_stage,
            scalar,
            chosen,
            own_reduction,
            same_axes_twice,
            truths,
        )
    },
}
