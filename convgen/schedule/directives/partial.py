"""The directive that adds up parts of a sum apart, so that they are tasks: partial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from convgen.affine import Affine
from convgen.ir.nodes import (
    Buffer,
    Kernel,
    Layout,
    Load,
    Loop,
    LoopKind,
    Nest,
    Phase,
    Reduced,
    StoreNode,
)
from convgen.ir.sums import adds_up
from convgen.schedule.access import loads_of, strides_of
from convgen.schedule.directives.base import (
    Directive,
    Value,
    all_nests,
    fresh_name,
    replace_nest,
)
from convgen.target import Target


@dataclass(frozen=True)
class Partial(Directive):
    """partial(n): sums over the other reduce loops, one for each iteration of n, into a temporary
    that this nest adds up.

    before   for c: s = 0                 after   for n: for c: s = 0
               for n: for i: s += X[n,i,c]                 for i: s += X[n,i,c]
               S[c] = s                                    P[n,c] = s
                                                  for c: s = 0; for n: s += P[n,c]
                                                         S[c] = s

    The new nest runs before this one and has its name with _part; its sums lie as the loops stand,
    but for one along which all operands are contiguous, which is last. Legal: a nest without
    directives but join, whose reduces are plain sums in one set of loops, with no tests; some of
    these loops.
    Elsewhere: rfactor of an outer loop (Halide, TVM), two-level or tree reduction.
    """

    axes: tuple[str, ...]
    keyword: ClassVar[str] = "partial"

    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        return self.axes, {}

    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        plain = {str(v.single or "") for v in _starts(nest).values()}
        for loop in nest.loops:
            if loop.kind is not LoopKind.SERIAL or loop.steps > 1 or loop.name not in plain:
                self.refuse(
                    nest,
                    f"{nest.name} is scheduled already",
                    expected="partial before all directives but join",
                    got=loop.name,
                )
        own = [o.name for o in nest.loops if o.reduce is not None]
        chosen = [self.loop(nest, name).name for name in self.axes]
        if not chosen or len({*chosen}) == len(own) or any(n not in own for n in chosen):
            self.refuse(
                nest,
                "some loops of the sum are apart, some are not",
                expected="one or more of " + ", ".join(own) if own else "a nest that reduces",
                got=", ".join(chosen) or "none",
            )
        sums = all(adds_up(r.combiner) and not r.factored for r in nest.reduces)
        together = {nest.leader(i) for i in range(len(nest.reduces))}
        if not sums or len(together) > 1 or nest.attached:
            self.refuse(
                nest,
                f"{nest.name} does not add up one domain",
                expected="plain sums in the same loops",
                got=", ".join(r.combiner.name for r in nest.reduces),
                hint="join() first" if len(together) > 1 else None,
            )
        if nest.guards or any(r.guards for r in nest.reduces):
            self.refuse(nest, f"{nest.name} tests its points", expected="no guards", got=nest.name)

    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        name = fresh_name(f"{nest.name}_part", [n.name for n in all_nests(kernel)])
        kept = [o for o in nest.loops if o.reduce is None]
        apart = [replace(o, reduce=None) for o in nest.loops if o.name in self.axes]
        axes = {str(value.single): axis for axis, value in _starts(nest).items()}
        low = {axis: first for axis, first, _ in nest.ranges}
        index = tuple(Affine.of(axes[o.name]) - low[axes[o.name]] for o in (*apart, *kept))
        shape = tuple(o.extent for o in (*apart, *kept))
        order = _stored_order(nest, kernel, [o.name for o in (*apart, *kept)])
        buffers = list(self._buffers(nest, kernel, name, shape, order))
        part = replace(
            nest,
            name=name,
            loops=(*apart, *kept, *(o for o in nest.loops if _stays(o, self.axes))),
            stores=tuple(
                StoreNode(b.name, index, Reduced(i, 0, b.dtype)) for i, b in enumerate(buffers)
            ),
        )
        gone = {axes[o.name] for o in nest.loops if _stays(o, self.axes)}
        whole = replace(
            nest,
            loops=tuple(o for o in nest.loops if axes[o.name] not in gone),
            axes=tuple((a, v) for a, v in nest.axes if a not in gone),
            ranges=tuple(r for r in nest.ranges if r[0] not in gone),
            reduces=tuple(
                replace(r, body=Load(b.name, index, (None,) * len(index), b.dtype), position=here)
                for r, b, here in zip(
                    nest.reduces, buffers, [_place(apart, axes, low)] * len(buffers), strict=True
                )
            ),
        )
        place = next(
            i for i, p in enumerate(kernel.phases) if isinstance(p.body, tuple) and nest in p.body
        )
        phases = (*kernel.phases[:place], Phase(name, (part,)), *kernel.phases[place:])
        kernel = replace(kernel, buffers=(*kernel.buffers, *buffers), phases=phases)
        return replace_nest(kernel, nest.name, whole)

    def _buffers(
        self, nest: Nest, kernel: Kernel, name: str, shape: tuple[int, ...], order: tuple[int, ...]
    ) -> Iterator[Buffer]:
        """A temporary for each sum."""
        taken = [b.name for b in kernel.buffers]
        for reduce in nest.reduces:
            taken.append(fresh_name(name, taken))
            layout = Layout(order)
            yield Buffer(taken[-1], reduce.combiner.dtypes[0], shape, layout, "temporary")


def _starts(nest: Nest) -> dict[str, Affine]:
    """The axes that are a loop plus a number, as that loop."""
    plain = {axis: value - value.constant for axis, value in nest.axes}
    return {axis: loop for axis, loop in plain.items() if loop.single}


def _stays(loop: Loop, axes: Sequence[str]) -> bool:
    """True for the loops that are summed over in the parts."""
    return loop.reduce is not None and loop.name not in axes


def _stored_order(nest: Nest, kernel: Kernel, names: Sequence[str]) -> tuple[int, ...]:
    """The dimensions of the temporary: as the loops stand, the one along which all operands that it
    moves are contiguous last."""
    steps = [strides_of(kernel.buffer(o.buffer), o.index, nest, names) for o in loads_of(nest)]
    near = [n for n in names if {s[n] for s in steps} - {0} == {1}]
    return tuple(sorted(range(len(names)), key=lambda d: names[d] in near))


def _place(apart: Sequence[Loop], axes: dict[str, str], low: dict[str, int]) -> Affine:
    """The row-major position of a part."""
    total = Affine()
    for loop in apart:
        total = total * loop.extent + (Affine.of(axes[loop.name]) - low[axes[loop.name]])
    return total


def partial(*axes: str, nest: str = "") -> Partial:
    """See Partial."""
    return Partial(tuple(axes), nest=nest)
