"""collect: sum first over what some factors alone depend on."""

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
    ReduceNode,
)
from convgen.ir.sums import adds_up
from convgen.ir.visit import loads, map_affine, map_expr, walk
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
    """collect(c): add up first over c what depends on it, where other factors do not.

    before   Y[y, x] += X[c, y + r, x + s] * w[r, s]
    after    X_sum[i1, i2] += X[c, i1, i2]
             Y[y, x] += X_sum[y + r, x + s] * w[r, s]

    before   Y[i, j] += A[i, a] * M[a, b] * B[j, b]             collect(a)
    after    A_M_sum[i, b] += A[i, a] * M[a, b]
             Y[i, j] += A_M_sum[i, b] * B[j, b]

    Powers of an operand are added up as they stand. The sum is a nest before this one, without
    directives; it has the other dimensions of the operand, where the loops are whole dimensions of
    one operand alone, else the other loops that move those factors.
    Legal: before other directives; one sum of products of floats without tests, some of its loops,
    and a factor that does not depend on them.
    Elsewhere: the distributive law; sum factorization (finite elements), contraction path (einsum),
    collect (sympy).
    """

    loops: tuple[str, ...] = field(default=())
    keyword: ClassVar[str] = "collect"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return self.loops, {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        self.require_unscheduled(nest, kernel)
        for name in self.loops:
            self.loop(nest, name)
        if self._operand(nest, kernel) is None and parted(nest, self.loops) is None:
            self.refuse(
                nest,
                "all factors depend on what is summed over first, or no sum is left",
                expected="a sum of products, and loops of it that not all factors move with",
                got=", ".join(self.loops) or "none",
            )

    def _operand(self, nest: Nest, kernel: Kernel) -> Load | None:
        """The one operand of which all loops are dimensions, and that of no other."""
        found = {collected_from(nest, kernel, name) for name in self.loops}
        return found.pop() if len(found) == 1 else None

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        source = self._operand(nest, kernel)
        if source is None:
            return self._products_first(nest, kernel)
        buffer = kernel.buffer(source.buffer)
        kept = [d for d, index in enumerate(source.index) if index.single not in self.loops]
        names = [str(i.single) if d not in kept else f"i{d}" for d, i in enumerate(source.index)]
        [summed] = nest.reduces
        total = _temporary(kernel, [source], tuple(buffer.shape[d] for d in kept))
        inside = [f for f in factors(summed.body) if source in loads(f)]
        outside = [f for f in factors(summed.body) if source not in loads(f)]
        walked = replace(source, index=tuple(map(Affine.of, names)), edges=(None,) * len(names))
        sizes = dict(zip(names, buffer.shape, strict=True))
        body = map_expr(_product(inside), lambda e: walked if e == source else e)
        stay = [names[d] for d in kept]
        sums = sums_ahead(kernel, total, stay, self.loops, sizes, summed.combiner, body)
        index = tuple(source.index[d] for d in kept)
        read = Load(total.name, index, tuple(source.edges[d] for d in kept), total.dtype)
        after = without_loops(nest, self.loops, _product([*outside, read]))
        return replace_nest(before(kernel, nest, total, sums), nest.name, after)

    def _products_first(self, nest: Nest, kernel: Kernel) -> Kernel:
        found = parted(nest, self.loops)
        assert found is not None
        inside, outside = found
        lows = {axis: low for axis, low, _ in nest.ranges}
        sizes = {axis: high - low for axis, low, high in nest.ranges}
        kept = kept_with(nest, inside, self.loops)
        moved = {axis: Affine.of(axis) + low for axis, low in lows.items()}
        body = map_affine(_product(inside), lambda index: index.substitute(moved))
        sources = [load for factor in inside for load in loads(factor)]
        total = _temporary(kernel, sources, tuple(sizes[axis] for axis in kept))
        combiner = nest.reduces[0].combiner
        sums = sums_ahead(kernel, total, kept, self.loops, sizes, combiner, body)
        index = tuple(Affine.of(axis) - lows[axis] for axis in kept)
        read = Load(total.name, index, (None,) * len(index), total.dtype)
        after = without_loops(nest, self.loops, _product([*outside, read]))
        return replace_nest(before(kernel, nest, total, sums), nest.name, after)


def _temporary(kernel: Kernel, sources: Sequence[Load], shape: tuple[int, ...]) -> Buffer:
    """What the sum of products of some operands is stored in."""
    stem = "_".join(dict.fromkeys(load.buffer.removesuffix("_sum") for load in sources))
    name = fresh_name(f"{stem}_sum", [b.name for b in kernel.buffers])
    return Buffer(name, sources[0].dtype, shape, Layout.rowmajor(len(shape)), "temporary")


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


def parted(nest: Nest, chosen: Sequence[str]) -> tuple[list[Expr], list[Expr]] | None:
    """The factors of a sum that move with some of its loops, and the others; None where there are
    no others, no loop is left, or the nest is no sum of products over a box."""
    if len(nest.reduces) != 1 or nest.guards or not chosen:
        return None
    [reduce] = nest.reduces
    own = {o.name for o in nest.loops if o.reduce is not None}
    if not _is_plain_sum(reduce) or not {*chosen} < own:
        return None
    parts = factors(reduce.body)
    inside = [f for f in parts if any(_moves(n, load) for n in chosen for load in loads(f))]
    outside = [f for f in parts if f not in inside]
    same = len({f.dtype for f in parts}) == 1
    return (inside, outside) if inside and outside and same else None


def kept_with(nest: Nest, inside: Sequence[Expr], chosen: Sequence[str]) -> list[str]:
    """The other loops that move some factors, in the order of the nest."""
    read = [load for factor in inside for load in loads(factor)]
    return [
        o.name
        for o in nest.loops
        if o.name not in chosen and any(_moves(o.name, load) for load in read)
    ]


def _is_plain_sum(reduce: ReduceNode) -> bool:
    """True for a sum of floats over a box that no directive has touched."""
    marks = reduce.guards or reduce.carried or reduce.factored or reduce.follows
    return not marks and adds_up(reduce.combiner) and reduce.combiner.project[0].dtype.is_float


def collected_from(nest: Nest, kernel: Kernel, name: str) -> Load | None:
    """The one load that depends on a loop that a nest sums over, whose whole dimension that is;
    None where there is none, or others depend on it too."""
    ranges = {axis: (low, high) for axis, low, high in nest.ranges}
    if len(nest.reduces) != 1 or name not in ranges:
        return None
    [reduce] = nest.reduces
    if not _is_plain_sum(reduce) or nest.loop(name).reduce is None:
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
