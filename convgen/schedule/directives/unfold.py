"""unfold: a copy of an operand with a dimension for each loop that moves through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from convgen.affine import Affine
from convgen.ir.nodes import Buffer, Expr, Kernel, Layout, Load, Nest, Phase
from convgen.ir.visit import map_expr, map_nest_exprs
from convgen.schedule.access import in_loops, loads_of
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
    """unfold(X, y, x, c, r): read a copy of X that has a dimension for each of these loops, in
    their order; the last one is contiguous.

    before   Y[y, x] += X[2*y + r, x, c] * ..     after   X_unfolded[y, x, c, r] = X[2*y + r, x, c]
                                                          Y[y, x] += X_unfolded[y, x, c, r] * ..

    What windows share is copied once for each of them, so that loops which no order of X's own
    dimensions makes contiguous become so, and can be fused. What lies outside X is written into
    the copy. The copying is a phase before the nest.
    Legal: an operand that the nest reads at one place, not where an element is left out, and does
    not write; all loops that move through it, each of them a whole axis; no guards.
    Elsewhere: im2col, unfold (torch), tensor unrolling; Halide's compute_at of a gathered stage.
    """

    buffer: str
    loops: tuple[str, ...]
    keyword: ClassVar[str] = "unfold"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return (self.buffer, *self.loops), {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        reads = [o for o in loads_of(nest) if o.buffer == self.buffer]
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
        self._check_loops(nest, reads[0])

    def _check_loops(self, nest: Nest, load: Load) -> None:
        moving = {n for index in load.index for n in in_loops(nest, index).names()}
        if set(self.loops) != moving or len(set(self.loops)) != len(self.loops):
            self.refuse(
                nest,
                f"the copy needs a dimension for each loop that moves through {self.buffer}",
                expected=", ".join(o.name for o in nest.loops if o.name in moving),
                got=", ".join(self.loops),
            )
        for name in self.loops:
            self.loop(nest, name)
            if not axis_of_loop(nest, name):
                self.refuse(
                    nest,
                    f"{name} is a part of an axis",
                    expected="loops that are whole axes",
                    got=name,
                    hint="unfold before split, cover and fuse",
                )

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        source = kernel.buffer(self.buffer)
        load = next(o for o in loads_of(nest) if o.buffer == self.buffer)
        name = fresh_name(f"{self.buffer}_unfolded", [b.name for b in kernel.buffers])
        shape = tuple(nest.loop(loop).extent for loop in self.loops)
        copy = Buffer(name, source.dtype, shape, Layout.rowmajor(len(shape)), "packed")
        dims = {loop: Affine.of(f"i{d}") for d, loop in enumerate(self.loops)}
        index = tuple(in_loops(nest, i).substitute(dims) for i in load.index)
        phase = fresh_name(f"unfold_{self.buffer}", [n.name for n in all_nests(kernel)])
        body = unfolding_nest(phase, source, copy, replace(load, index=index), target)
        place = next(
            i
            for i, p in enumerate(kernel.phases)
            if isinstance(p.body, tuple) and any(n.name == nest.name for n in p.body)
        )
        phases = (*kernel.phases[:place], Phase(phase, (body,)), *kernel.phases[place:])
        kernel = replace(kernel, buffers=(*kernel.buffers, copy), phases=phases)
        own = tuple(_place(nest, loop) for loop in self.loops)
        read = Load(name, own, (None,) * len(own), source.dtype)

        def change(expr: Expr) -> Expr:
            return read if expr == load else expr

        after = map_nest_exprs(nest, lambda body: map_expr(body, change))
        return replace_nest(set_grain(kernel, phase), nest.name, after)


def unfold(buffer: str, *loops: str, nest: str = "") -> Unfold:
    """See Unfold."""
    return Unfold(buffer, tuple(loops), nest=nest)


def axis_of_loop(nest: Nest, name: str) -> str:
    """The axis that a loop is, up to where it starts; "" for one that is a part or several."""
    for axis, value in nest.axes:
        if value.without(name) == Affine((), value.constant) and value.coefficient(name) == 1:
            return axis
    return ""


def _place(nest: Nest, name: str) -> Affine:
    """A loop's variable over axes."""
    axis = axis_of_loop(nest, name)
    return Affine.of(axis) - dict(nest.axes)[axis].constant
