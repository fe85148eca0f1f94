"""unfold: a copy of an operand with a dimension for each axis that moves through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from convgen.affine import Affine
from convgen.ir.nodes import Buffer, Expr, Kernel, Layout, Load, Nest, Phase
from convgen.ir.visit import map_expr, map_nest_exprs
from convgen.schedule.access import loads_of
from convgen.schedule.directives.base import (
    Directive,
    Value,
    all_nests,
    fresh_name,
    is_packing,
    replace_nest,
)
from convgen.schedule.directives.copying import unfolding_nest
from convgen.schedule.directives.mark import set_grain
from convgen.target import Target


@dataclass(frozen=True)
class Unfold(Directive):
    """unfold(X, y, x, c, r): read a copy of X that has a dimension for each of these axes, in
    their order; the last one is contiguous.

    before   Y[y, x] += X[2*y + r, x, c] * ..     after   X_unfolded[y, x, c, r] = X[2*y + r, x, c]
                                                          Y[y, x] += X_unfolded[y, x, c, r] * ..

    What windows share is copied once for each of them, so that loops which no order of X's own
    dimensions makes contiguous become so, and can be fused. What lies outside X is written into
    the copy. The copying is a phase before the nest.
    Legal: an operand that the nest reads at one place, not where an element is left out, and does
    not write; all axes that move through it; no guards.
    Elsewhere: im2col, unfold (torch), tensor unrolling; Halide's compute_at of a gathered stage.
    """

    buffer: str
    axes: tuple[str, ...]
    keyword: ClassVar[str] = "unfold"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return (self.buffer, *self.axes), {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        reads = self.reads(nest, self.buffer)
        if len(reads) != 1 or is_packing(nest, kernel):
            self.refuse(
                nest,
                f"{nest.name} reads {self.buffer} at {len(reads)} places",
                expected="a nest that computes, and reads the operand at one place",
                got=str(len(reads)),
            )
        role = kernel.buffer(self.buffer).role
        if role in ("packed", "scratch") or any(s.buffer == self.buffer for s in nest.stores):
            self.refuse(
                nest,
                f"{self.buffer} is {role}, or written here",
                expected="an operand as the caller or a stage stores it",
                got=f"a {role} buffer",
            )
        if any(e and (e.kind == "omit" or e.value is not None) for e in reads[0].edges):
            self.refuse(
                nest,
                f"elements outside {self.buffer} are left out or computed",
                expected="edges with a fixed value",
                got=", ".join(e.kind for e in reads[0].edges if e),
            )
        if nest.guards or any(r.guards for r in nest.reduces) or nest.attached:
            self.refuse(
                nest,
                f"not every point of {nest.name} reads {self.buffer}",
                expected="a nest without guards",
                got="guards or attached nests",
            )
        self._check_axes(nest, reads[0])

    def _check_axes(self, nest: Nest, load: Load) -> None:
        moving = {n for index in load.index for n in index.names()}
        if set(self.axes) != moving or len(set(self.axes)) != len(self.axes):
            self.refuse(
                nest,
                f"the copy needs a dimension for each axis that moves through {self.buffer}",
                expected=", ".join(axis for axis, _ in nest.axes if axis in moving),
                got=", ".join(self.axes),
            )

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        source = kernel.buffer(self.buffer)
        load = next(o for o in loads_of(nest) if o.buffer == self.buffer)
        name = fresh_name(f"{self.buffer}_unfolded", [b.name for b in kernel.buffers])
        ranges = {axis: (low, high) for axis, low, high in nest.ranges}
        shape = tuple(ranges[a][1] - ranges[a][0] for a in self.axes)
        copy = Buffer(name, source.dtype, shape, Layout.rowmajor(len(shape)), "packed")
        dims = {a: Affine.of(f"i{d}") + ranges[a][0] for d, a in enumerate(self.axes)}
        index = tuple(i.substitute(dims) for i in load.index)
        phase = fresh_name(f"unfold_{self.buffer}", [n.name for n in all_nests(kernel)])
        body = unfolding_nest(phase, source, copy, replace(load, index=index), target)
        place = next(
            i
            for i, p in enumerate(kernel.phases)
            if isinstance(p.body, tuple) and any(n.name == nest.name for n in p.body)
        )
        phases = (*kernel.phases[:place], Phase(phase, (body,)), *kernel.phases[place:])
        kernel = replace(kernel, buffers=(*kernel.buffers, copy), phases=phases)
        own = tuple(Affine.of(a) - ranges[a][0] for a in self.axes)
        read = Load(name, own, (None,) * len(own), source.dtype)

        def change(expr: Expr) -> Expr:
            return read if expr == load else expr

        after = map_nest_exprs(nest, lambda body: map_expr(body, change))
        return replace_nest(set_grain(kernel, phase), nest.name, after)


def unfold(buffer: str, *axes: str, nest: str = "") -> Unfold:
    """See Unfold."""
    return Unfold(buffer, tuple(axes), nest=nest)
