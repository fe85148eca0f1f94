"""Programs put together from the types alone, for tests that must not lean on the DSL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sympy

from convgen.affine import Constraint
from convgen.symbolic.boundary import boundary_of
from convgen.symbolic.expr import (
    Access,
    Definition,
    Domain,
    Range,
    Reduce,
    Result,
    Stage,
    Tensor,
    affine_of,
    axes,
)
from convgen.symbolic.program import Program
from convgen.symbolic.reductions import REDUCTIONS, Reduction

Ranges = Mapping[str, Any]  # axis -> hi or (lo, hi)


def domain(ranges: Ranges, where: Iterable[Constraint] = ()) -> Domain:
    spans = [Range(a, *(hi if isinstance(hi, tuple) else (0, hi))) for a, hi in ranges.items()]
    return Domain(tuple(spans), tuple(where))


def reduce(
    kind: str | Reduction, ranges: Ranges, body: Any, where: Iterable[Constraint] = ()
) -> Reduce:
    rule = REDUCTIONS[kind] if isinstance(kind, str) else kind
    return Reduce(domain(ranges, where), rule, sympy.sympify(body))


def piece(
    outs: Any,
    ranges: Ranges,
    values: Any,
    reduces: Sequence[Reduce] = (),
    where: Iterable[Constraint] = (),
) -> Definition:
    many = isinstance(outs, (tuple, list))
    return Definition(
        tuple(outs) if many else (outs,),
        domain(ranges, where),
        tuple(reduces),
        tuple(sympy.sympify(v) for v in (values if many else (values,))),
    )


def program(
    inputs: Sequence[Tensor], *stages: Any, outputs: Sequence[Tensor] | None = None, **more: Any
) -> Program:
    """Stages are Definitions or lists of Definitions (pieces); outputs: what the last one writes."""
    made = []
    for s in stages:
        pieces = tuple(s) if isinstance(s, (list, tuple)) else (s,)
        made.append(Stage(tuple(dict.fromkeys(o.tensor for p in pieces for o in p.outs)), pieces))
    return Program("test", tuple(inputs), tuple(outputs or made[-1].tensors), tuple(made), **more)


def tensor(
    name: str, *shape: Any, dtype: Any = "f32", role: Any = "input", values: Any = None
) -> Tensor:
    return Tensor(name, shape, dtype, role, values)


def image_program(
    size: Sequence[int],
    kernel: Sequence[int],
    maps: tuple[int, int] = (1, 1),
    batch: int = 1,
    stride: int = 1,
    dilation: int = 1,
    padding: int = 0,
    mode: Any = "zero",
    flip: bool = False,
    dtype: Any = "f32",
    out: Sequence[int] | None = None,
) -> Program:
    """Y[n, k, y, x] = sum(c, r, s: X[n, c, ...] * W[k, c, r, s]) on one or two spatial dimensions."""
    k, c = maps
    rank = len(size)
    places, taps = [axes("y x")[d] for d in range(rank)], [axes("r s")[d] for d in range(rank)]
    shape = out or [
        (i + 2 * padding - dilation * (e - 1) - 1) // stride + 1
        for i, e in zip(size, kernel, strict=True)
    ]
    X, W = tensor("X", batch, c, *size, dtype=dtype), tensor("W", k, c, *kernel, dtype=dtype)
    Y = tensor("Y", batch, k, *shape, dtype=dtype, role="output")
    sign = -1 if flip else 1
    index = [
        affine_of(p * stride + sign * dilation * t - sign * padding)
        for p, t in zip(places, taps, strict=True)
    ]
    n, kk, cc = axes("n k c")
    kinds = [boundary_of("zero")] * 2 + [boundary_of(mode)] * rank
    read = Access(X, [affine_of(n), affine_of(cc), *index], kinds)
    body = read * W[(kk, cc, *taps)]
    over = {"c": c, **{t.name: e for t, e in zip(taps, kernel, strict=True)}}
    ranges = {"n": batch, "k": k, **{p.name: e for p, e in zip(places, shape, strict=True)}}
    return program(
        [X, W], piece(Y[(n, kk, *places)], ranges, Result(0), [reduce("sum", over, body)])
    )
