"""Small kernels, written by hand, that the schedule tests share."""

from __future__ import annotations

from convgen.affine import Affine
from convgen.ir.nodes import (
    Buffer,
    Combiner,
    Const,
    Edge,
    Expr,
    Form,
    Kernel,
    Layout,
    Load,
    Loop,
    Nest,
    Op,
    Param,
    Phase,
    Reduced,
    ReduceNode,
    StoreNode,
)
from convgen.types import DType, f32, i64


def var(name: str) -> Affine:
    return Affine.of(name)


def buffer(name: str, shape: tuple[int, ...], role: str = "input", dtype: DType = f32) -> Buffer:
    return Buffer(name, dtype, shape, Layout.rowmajor(len(shape)), role)  # type: ignore[arg-type]


def sum_of(dtype: DType = f32) -> Combiner:
    a, b = Param("a0", dtype), Param("b0", dtype)
    return Combiner(
        "sum", (dtype,), (Param("v", dtype),), (Op("add", (a, b), dtype),), (Const(0, dtype),), (a,)
    )


def first_max(dtype: DType = f32) -> Combiner:
    """(position, value) of the first maximum: the order of the elements decides ties."""
    a, b = Param("a1", dtype), Param("b1", dtype)
    p, q = Param("a0", i64), Param("b0", i64)
    later = Op("lt", (a, b), dtype)
    return Combiner(
        "argmax",
        (i64, dtype),
        (Param("p", i64), Param("v", dtype)),
        (Op("select", (later, q, p), i64), Op("select", (later, b, a), dtype)),
        (Const(0, i64), Const(float("-inf"), dtype)),
        (p, a),
        commutative=False,
    )


def load(name: str, *index: Affine, edges: tuple[Edge | None, ...] = ()) -> Load:
    return Load(name, index, edges or (None,) * len(index), f32)


def nest(
    name: str,
    outputs: dict[str, int],
    body: Expr,
    reduce: dict[str, int] | None = None,
    combiner: Combiner | None = None,
    out: str = "",
    value: Expr | None = None,
) -> Nest:
    sizes = {**outputs, **(reduce or {})}
    loops = tuple(Loop(a, e, reduce=None if a in outputs else 0) for a, e in sizes.items())
    position = Affine()
    for axis, extent in (reduce or {}).items():
        position = position * extent + var(axis)
    node = ReduceNode(combiner or sum_of(), body, (), position)
    item = len(node.combiner.project) - 1
    stored = value or (Reduced(0, item, f32) if reduce else body)
    return Nest(
        name=name,
        loops=loops,
        axes=tuple((a, var(a)) for a in sizes),
        ranges=tuple((a, 0, e) for a, e in sizes.items()),
        guards=(),
        reduces=(node,) if reduce else (),
        stores=(StoreNode(out or name, tuple(var(a) for a in outputs), stored),),
    )


def kernel(buffers: tuple[Buffer, ...], *nests: Nest) -> Kernel:
    return Kernel("test", buffers, tuple(Phase(n.name, (n,)) for n in nests), Form.NEST)


def window(
    batch: int = 1,
    channels: int = 3,
    filters: int = 8,
    size: int = 7,
    taps: int = 3,
    pad: int = 1,
    stride: int = 1,
    kind: str = "zero",
) -> Kernel:
    """Y[n, k, y, x] = sum(c, r, s: X[n, c, s*y + r - p, s*x + s - p] * W[k, c, r, s])."""
    out = (size + 2 * pad - taps) // stride + 1
    n, k, y, x, c, r, s = (var(a) for a in "nkyxcrs")
    edge = Edge(kind) if pad else None  # type: ignore[arg-type]
    body = Op(
        "mul",
        (
            load(
                "X",
                n,
                c,
                stride * y + r - pad,
                stride * x + s - pad,
                edges=(None, None, edge, edge),
            ),
            load("W", k, c, r, s),
        ),
        f32,
    )
    return kernel(
        (
            buffer("X", (batch, channels, size, size)),
            buffer("W", (filters, channels, taps, taps)),
            buffer("Y", (batch, filters, out, out), "output"),
        ),
        nest(
            "Y",
            {"n": batch, "k": filters, "y": out, "x": out},
            body,
            {"c": channels, "r": taps, "s": taps},
        ),
    )


def dense(rows: int = 4, outs: int = 6, ins: int = 5) -> Kernel:
    """Y[n, k] = sum(c: X[n, c] * W[k, c])."""
    n, k, c = var("n"), var("k"), var("c")
    body = Op("mul", (load("X", n, c), load("W", k, c)), f32)
    return kernel(
        (
            buffer("X", (rows, ins)),
            buffer("W", (outs, ins)),
            buffer("Y", (rows, outs), "output"),
        ),
        nest("Y", {"n": rows, "k": outs}, body, {"c": ins}),
    )


def two_stages(size: int = 9, taps: int = 3) -> Kernel:
    """T[i] = X[i] + X[i]; Y[y] = sum(r: T[y + r])."""
    i, y, r = var("i"), var("y"), var("r")
    double = Op("add", (load("X", i), load("X", i)), f32)
    return kernel(
        (
            buffer("X", (size,)),
            buffer("Y", (size - taps + 1,), "output"),
            buffer("T", (size,), "temporary"),
        ),
        nest("T", {"i": size}, double),
        nest("Y", {"y": size - taps + 1}, load("T", y + r), {"r": taps}),
    )
