"""Nests that go ahead of another one, which then sums less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from convgen.affine import Affine
from convgen.ir.nodes import (
    Buffer,
    Combiner,
    Expr,
    Kernel,
    Loop,
    Nest,
    Phase,
    Reduced,
    ReduceNode,
    StoreNode,
)
from convgen.schedule.directives.base import all_nests, fresh_name


def sums_ahead(
    kernel: Kernel,
    result: Buffer,
    kept: Sequence[str],
    loops: Sequence[str],
    sizes: Mapping[str, int],
    combiner: Combiner,
    body: Expr,
) -> Nest:
    """The plain nest that combines the body over some loops and stores a result for each of the
    others, in their order."""
    order = [*kept, *loops]
    position = Affine()
    for name in loops:
        position = position * sizes[name] + Affine.of(name)
    stored = StoreNode(result.name, tuple(map(Affine.of, kept)), Reduced(0, 0, result.dtype))
    return Nest(
        name=fresh_name(result.name, [n.name for n in all_nests(kernel)]),
        loops=tuple(Loop(n, sizes[n], reduce=0 if n in loops else None) for n in order),
        axes=tuple((n, Affine.of(n)) for n in order),
        ranges=tuple((n, 0, sizes[n]) for n in order),
        guards=(),
        reduces=(ReduceNode(combiner, body, (), position),),
        stores=(stored,),
    )


def before(kernel: Kernel, nest: Nest, result: Buffer, made: Nest) -> Kernel:
    """The kernel with a nest in front of another, and the buffer that it writes."""
    place = next(
        i
        for i, p in enumerate(kernel.phases)
        if isinstance(p.body, tuple) and any(n.name == nest.name for n in p.body)
    )
    phase = Phase(made.name, (made,))
    phases = (*kernel.phases[:place], phase, *kernel.phases[place:])
    return replace(kernel, buffers=(*kernel.buffers, result), phases=phases)


def without_loops(nest: Nest, loops: Sequence[str], body: Expr) -> Nest:
    """The nest with another body, over fewer loops."""
    gone = {name: Affine() for name in loops}
    [reduce] = nest.reduces
    return replace(
        nest,
        loops=tuple(o for o in nest.loops if o.name not in loops),
        axes=tuple(a for a in nest.axes if a[0] not in loops),
        ranges=tuple(r for r in nest.ranges if r[0] not in loops),
        reduces=(replace(reduce, body=body, position=reduce.position.substitute(gone)),),
    )
