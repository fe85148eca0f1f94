"""fold: multiply first, for all pairs of elements, then sum over windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeAlias

from convgen.affine import Affine
from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import (
    Buffer,
    Edge,
    Kernel,
    Layout,
    Load,
    Nest,
    Op,
)
from convgen.ir.sums import adds_up
from convgen.ir.visit import map_expr
from convgen.schedule.directives.ahead import before, sums_ahead, without_loops
from convgen.schedule.directives.base import (
    Directive,
    Value,
    fresh_name,
    replace_nest,
)
from convgen.target import Target

# A dimension of an operand, or a digit of one: its index, its extent, its edge.
Dim: TypeAlias = tuple[Affine, int, Edge | None]


@dataclass(frozen=True)
class Fold(Directive):
    """fold(k): sum the products of two operands over k first, for all elements that the operands
    have along their other dimensions; what is left of the sum adds up such columns.

    before   dX[u, c] += dY[u - r, k] * W[k, c, r]
    after    dX_columns[i0, c, r] += dY[i0, k] * W[k, c, r]
             dX[u, c] += dX_columns[u - r, c, r]

    The columns are a product of matrices that walks each operand as it lies, and has no edges: the
    sum that folds them keeps those. The product is a nest before this one, without directives;
    nests that fold the same one (the pieces of a gradient) share it. A dimension that holds groups
    of so many, at K*g + k, counts as two; groups that both have are a dimension of the columns.
    Legal: before other directives; one sum of products of two operands, over loops of which each
    is a whole dimension of both, or what a group of both holds, and part of no other index, and
    over others; edges that are not numbers of their own.
    Elsewhere: col2im, fold (torch); the gradient of im2col.
    """

    loops: tuple[str, ...] = field(default=())
    keyword: ClassVar[str] = "fold"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return self.loops, {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        self.require_unscheduled(nest, kernel)
        pair = factors_of(nest)
        if pair is None or any(e and not commutes(e) for o in pair for e in o.edges):
            self.refuse(
                nest,
                f"{nest.name} is not one sum of products of two operands, 0 or nothing outside",
                expected="a nest that sums a[..] * b[..]",
                got=f"{len(nest.reduces)} reduces",
            )
        for name in self.loops:
            if self.loop(nest, name).reduce is None or not _is_shared(nest, kernel, name):
                self.refuse(
                    nest,
                    f"{name} is not summed over, or no whole dimension of both operands",
                    expected="a loop that is one index of both",
                    got=name,
                )
        if not self.loops:
            self.refuse(nest, "no loop is summed over first", expected="a loop that is", got="none")
        if all(index.single in self.loops for load in pair for index in load.index):
            self.refuse(
                nest,
                "the product is a single number",
                expected="operands with a dimension that is not summed over first",
                got=", ".join(self.loops),
            )

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        pair = factors_of(nest)
        assert pair is not None
        columns, product, read = self._columns(nest, kernel, pair)
        found = _existing(kernel, columns, product)
        if found is None:
            kernel = before(kernel, nest, columns, product)
        body = replace(read, buffer=found or columns.name)
        return replace_nest(kernel, nest.name, without_loops(nest, self.loops, body))

    def _columns(
        self, nest: Nest, kernel: Kernel, pair: tuple[Load, Load]
    ) -> tuple[Buffer, Nest, Load]:
        """(the buffer of the columns, the nest of the product, what is left to sum)."""
        first, second = sorted(pair, key=lambda o: size_in_elements(kernel.buffer(o.buffer)))
        dims: dict[str, Dim] = {}
        walked: dict[Load, Load] = {}
        for load in (first, second):
            names = list[str]()
            places = list[Affine]()
            for parts in dims_of(load, self.loops, nest, kernel):
                place = Affine()
                for dim in parts:
                    known = [n for n, other in dims.items() if other == dim and n not in names]
                    if load is first or not dim[0].names():
                        known = []
                    own = [n for n in self.loops if dim[0].single == n]
                    number = fresh_name(f"i{len(dims)}", [*self.loops, *dims])
                    names.append((own or known or [number])[0])
                    dims[names[-1]] = dim
                    place = place * dim[1] + Affine.of(names[-1])
                places.append(place)
            walked[load] = replace(load, index=tuple(places), edges=(None,) * len(places))
        kept = {n: dim for n, dim in dims.items() if n not in self.loops}
        [reduce] = nest.reduces
        dtype = reduce.combiner.project[0].dtype
        name = fresh_name(f"{nest.stores[0].buffer}_columns", [b.name for b in kernel.buffers])
        shape = tuple(size for _, size, _ in kept.values())
        columns = Buffer(name, dtype, shape, Layout.rowmajor(len(shape)), "temporary")
        sizes = {n: size for n, (_, size, _) in dims.items()}
        body = map_expr(reduce.body, lambda e: walked.get(e, e) if isinstance(e, Load) else e)
        product = sums_ahead(kernel, columns, [*kept], self.loops, sizes, reduce.combiner, body)
        places, _, edges = zip(*kept.values(), strict=True)
        return columns, product, Load(name, places, edges, dtype)


def fold(*loops: str, nest: str = "") -> Fold:
    """See Fold."""
    return Fold(tuple(loops), nest=nest)


def factors_of(nest: Nest) -> tuple[Load, Load] | None:
    """The two different loads whose products a nest adds up, without tests; else None."""
    if len(nest.reduces) != 1 or not adds_up(nest.reduces[0].combiner):
        return None
    [reduce] = nest.reduces
    body, dtype = reduce.body, reduce.combiner.dtypes[0]
    plain = not (reduce.guards or reduce.carried or reduce.factored or reduce.follows)
    if not plain or not isinstance(body, Op) or body.name != "mul":
        return None
    first, second = body.args
    if not isinstance(first, Load) or not isinstance(second, Load) or first == second:
        return None
    kinds = {first.dtype, second.dtype, body.dtype, reduce.combiner.project[0].dtype}
    return (first, second) if kinds == {dtype} and dtype.is_float else None


def foldable(nest: Nest, kernel: Kernel) -> list[str]:
    """The loops that a sum of products can go over first."""
    if factors_of(nest) is None:
        return []
    reduces = [o.name for o in nest.loops if o.reduce is not None]
    return [n for n in reduces if _is_shared(nest, kernel, n)]


def _is_shared(nest: Nest, kernel: Kernel, name: str) -> bool:
    """True for a loop that is a whole dimension of both operands, or what each group along one
    holds, and part of no other index."""
    pair = factors_of(nest)
    ranges = {axis: (low, high) for axis, low, high in nest.ranges}
    low, held = ranges.get(name, (0, 0))
    if pair is None or not held or low:
        return False
    for load in pair:
        dims = [dim for parts in dims_of(load, (name,), nest, kernel) for dim in parts]
        once = sum(name in index.names() for index in load.index) == 1
        if not once or (Affine.of(name), held, None) not in dims:
            return False
    return True


def dims_of(load: Load, loops: Sequence[str], nest: Nest, kernel: Kernel) -> Iterator[list[Dim]]:
    """For each dimension of an operand what it is made of: itself, or groups and what each holds
    where that is one of the loops."""
    ranges = {axis: (low, high) for axis, low, high in nest.ranges}
    shape = kernel.buffer(load.buffer).shape
    for index, size, edge in zip(load.index, shape, load.edges, strict=True):
        inner = next((n for n in loops if index.coefficient(n) == 1 and index.single != n), "")
        low, held = ranges.get(inner, (0, 0))
        group = index.without(inner) // max(1, held)
        groups = ranges.get(group.single or "")
        whole = held and group * held + Affine.of(inner) == index and low == 0 and edge is None
        if whole and groups == (0, size // held) and size % held == 0:
            yield [(group, size // held, None), (Affine.of(inner), held, None)]
        else:
            yield [(index, size, edge)]


def commutes(edge: Edge) -> bool:
    """True where a product of what lies outside is the product's own edge."""
    return edge.kind not in ("constant", "halo") and edge.value is None


def _existing(kernel: Kernel, columns: Buffer, product: Nest) -> str | None:
    """Columns that are there already: those of a nest that is the same but for names."""
    for nest in kernel.nests():
        name = nest.stores[0].buffer
        renamed = replace(product, stores=(replace(product.stores[0], buffer=name),))
        source = kernel.buffer(name)
        same = replace(columns, name=name) == source and nest.stores == renamed.stores
        if same and nest.reduces == renamed.reduces and nest.ranges == renamed.ranges:
            return name
    return None
