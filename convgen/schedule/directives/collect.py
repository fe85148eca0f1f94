"""collect: sum first over what one operand alone depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce as joined
from typing import ClassVar

from convgen.affine import Affine
from convgen.ir.nodes import (
    Buffer,
    Expr,
    Kernel,
    Layout,
    Load,
    Nest,
    Op,
)
from convgen.ir.sums import adds_up
from convgen.ir.visit import loads, map_expr, walk
from convgen.schedule.directives.ahead import before, sums_ahead, without_loops
from convgen.schedule.directives.base import (
    Directive,
    Value,
    fresh_name,
    replace_nest,
)
from convgen.schedule.directives.fold import commutes
from convgen.target import Target


@dataclass(frozen=True)
class Collect(Directive):
    """collect(c): add up an operand over c first, where the other factors do not depend on c.

    before   Y[y, x] += X[c, y + r, x + s] * w[r, s]
    after    X_sum[i1, i2] += X[c, i1, i2]
             Y[y, x] += X_sum[y + r, x + s] * w[r, s]

    Powers of the operand are added up as they stand. The sum is a nest before this one, without
    directives.
    Legal: before other directives; one sum of products, over loops of which each is a whole
    dimension of one operand, and part of no other index.
    Elsewhere: the distributive law; sum factorization (finite elements), collect (sympy).
    """

    loops: tuple[str, ...] = field(default=())
    keyword: ClassVar[str] = "collect"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return self.loops, {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        self.require_unscheduled(nest, kernel)
        for name in self.loops:
            self.loop(nest, name)
        sources = {collected_from(nest, kernel, name) for name in self.loops}
        if len(sources) != 1 or None in sources:
            self.refuse(
                nest,
                "what is summed over first is no whole dimension of one operand alone",
                expected="a sum of products, and loops that are one index of one factor",
                got=", ".join(self.loops) or "none",
            )

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        source = collected_from(nest, kernel, self.loops[0])
        assert source is not None
        buffer = kernel.buffer(source.buffer)
        kept = [d for d, index in enumerate(source.index) if index.single not in self.loops]
        names = [str(i.single) if d not in kept else f"i{d}" for d, i in enumerate(source.index)]
        [summed] = nest.reduces
        dtype = source.dtype
        name = fresh_name(f"{source.buffer}_sum", [b.name for b in kernel.buffers])
        shape = tuple(buffer.shape[d] for d in kept)
        total = Buffer(name, dtype, shape, Layout.rowmajor(len(shape)), "temporary")
        inside = [f for f in factors(summed.body) if source in loads(f)]
        outside = [f for f in factors(summed.body) if source not in loads(f)]
        walked = replace(source, index=tuple(map(Affine.of, names)), edges=(None,) * len(names))
        sizes = dict(zip(names, buffer.shape, strict=True))
        body = map_expr(_product(inside), lambda e: walked if e == source else e)
        stay = [names[d] for d in kept]
        sums = sums_ahead(kernel, total, stay, self.loops, sizes, summed.combiner, body)
        index = tuple(source.index[d] for d in kept)
        read = Load(name, index, tuple(source.edges[d] for d in kept), dtype)
        after = without_loops(nest, self.loops, _product([*outside, read]))
        return replace_nest(before(kernel, nest, total, sums), nest.name, after)


def collect(*loops: str, nest: str = "") -> Collect:
    """See Collect."""
    return Collect(tuple(loops), nest=nest)


def factors(body: Expr) -> list[Expr]:
    """What a product multiplies."""
    if isinstance(body, Op) and body.name == "mul":
        return [factor for arg in body.args for factor in factors(arg)]
    return [body]


def _product(parts: Sequence[Expr]) -> Expr:
    return joined(lambda a, b: Op("mul", (a, b), a.dtype), parts)


def collected_from(nest: Nest, kernel: Kernel, name: str) -> Load | None:
    """The one load that depends on a loop that a nest sums over, whose whole dimension that is;
    None where there is none, or others depend on it too."""
    ranges = {axis: (low, high) for axis, low, high in nest.ranges}
    if len(nest.reduces) != 1 or not adds_up(nest.reduces[0].combiner) or name not in ranges:
        return None
    [reduce] = nest.reduces
    if reduce.guards or reduce.carried or reduce.factored or reduce.follows:
        return None
    if nest.loop(name).reduce is None or not reduce.combiner.project[0].dtype.is_float:
        return None
    parts = factors(reduce.body)
    if not all(isinstance(part, Load) and part.dtype == parts[0].dtype for part in parts):
        return None  # a product is 0 where an element is; a function may not be
    moved = {e for e in walk(reduce.body) if isinstance(e, Load) and _moves(name, e)}
    if len(moved) != 1:
        return None
    [load] = moved
    dims = [d for d, index in enumerate(load.index) if name in index.names()]
    plain = len(dims) == 1 and load.index[dims[0]].single == name and not load.edges[dims[0]]
    if not plain or any(e and not commutes(e) for e in load.edges):
        return None
    whole = ranges[name] == (0, kernel.buffer(load.buffer).shape[dims[0]])
    return load if whole else None


def _moves(name: str, load: Load) -> bool:
    return any(name in index.names() for index in load.index)
