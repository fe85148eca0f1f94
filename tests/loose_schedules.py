"""Random loops for a nest, made by hand: splits with guards, covers, fusions, any order, all kinds.
They follow the meaning of the nodes only, so they reach further than the directives do."""

from __future__ import annotations

import random
from dataclasses import replace

from convgen.affine import Affine, Constraint
from convgen.ir.nodes import Form, Kernel, Loop, LoopKind, Nest, Segment


def scheduled(kernel: Kernel, seed: int) -> Kernel:
    """The kernel with random loops."""
    chance = random.Random(seed)
    phases = tuple(
        replace(p, body=tuple(loosened(nest, chance) for nest in p.body)) for p in kernel.phases
    )
    return replace(kernel, phases=phases, form=Form.SCHEDULED)


def loosened(nest: Nest, chance: random.Random) -> Nest:
    for loop in nest.loops:
        draw = chance.random()
        if loop.extent > 1 and draw < 0.3:
            nest = split(nest, loop, chance.randint(2, min(7, loop.extent + 1)))
        elif loop.extent > 1 and draw < 0.5:
            nest = cover(nest, loop, chance)
    if chance.random() < 0.2:
        nest = fused(nest, chance)
    return marked(replace(nest, loops=tuple(shuffled(nest, chance))), chance)


def _replaced(nest: Nest, old: Loop, new: tuple[Loop, ...], value: Affine) -> Nest:
    place = nest.loops.index(old)
    axes = tuple((a, v.substitute({old.name: value})) for a, v in nest.axes)
    return replace(nest, loops=nest.loops[:place] + new + nest.loops[place + 1 :], axes=axes)


def split(nest: Nest, loop: Loop, factor: int) -> Nest:
    """x = factor*x_o + x_i, with a guard where the factor does not divide."""
    outer = Loop(f"{loop.name}_o", -(-loop.extent // factor), reduce=loop.reduce)
    inner = Loop(f"{loop.name}_i", factor, reduce=loop.reduce)
    after = _replaced(
        nest, loop, (outer, inner), Affine.of(outer.name) * factor + Affine.of(inner.name)
    )
    if loop.extent % factor == 0:
        return after
    axis = next(a for a, v in nest.axes if loop.name in v.names())
    high = next(high for a, _, high in nest.ranges if a == axis)
    guard = Constraint("<=", Affine.of(axis) - (high - 1))
    if loop.reduce is None:
        return replace(after, guards=(*after.guards, guard))
    reduces = list(after.reduces)
    node = reduces[loop.reduce]
    reduces[loop.reduce] = replace(node, guards=(*node.guards, guard))
    return replace(after, reduces=tuple(reduces))


def cover(nest: Nest, loop: Loop, chance: random.Random) -> Nest:
    """x = x_base + x_i over segments of random sizes."""
    parts: list[Segment] = []
    start = 0
    while start < loop.extent:
        left = loop.extent - start
        size = 1 if len(parts) == 2 else chance.randint(1, min(5, left))
        count = left if len(parts) == 2 else chance.randint(1, left // size)
        parts.append(Segment(start, count, size))
        start += size * count
    inner, base = f"{loop.name}_i", f"{loop.name}_base"
    loops = (
        Loop(
            f"{loop.name}_o",
            sum(p.count for p in parts),
            reduce=loop.reduce,
            segments=tuple(parts),
            inner=inner,
            base=base,
        ),
        Loop(inner, max(p.size for p in parts), reduce=loop.reduce),
    )
    return _replaced(nest, loop, loops, Affine.of(base) + Affine.of(inner))


def _simple(nest: Nest, loop: Loop) -> bool:
    return not loop.segments and all(other.inner != loop.name for other in nest.loops)


def fused(nest: Nest, chance: random.Random) -> Nest:
    """Two neighbouring loops as one; their variables become quotient and remainder."""
    pairs = [
        (a, b)
        for a, b in zip(nest.loops, nest.loops[1:], strict=False)
        if a.reduce == b.reduce and _simple(nest, a) and _simple(nest, b)
    ]
    if not pairs:
        return nest
    a, b = chance.choice(pairs)
    both = Loop(f"{a.name}_{b.name}", a.extent * b.extent, reduce=a.reduce)
    number = Affine.of(both.name)
    after = _replaced(nest, a, (), number // b.extent)
    return _replaced(after, b, (both,), number % b.extent)


def _commutative(nest: Nest) -> bool:
    return all(r.combiner.commutative for r in nest.reduces)


def shuffled(nest: Nest, chance: random.Random) -> list[Loop]:
    """Any order in which covers are outside their inner loops and orders that matter stay."""
    loops = chance.sample(nest.loops, len(nest.loops))
    if chance.random() < 0.7:
        outputs = [loop for loop in loops if loop.reduce is None]
        outer = outputs[: chance.randint(0, len(outputs))]
        loops = outer + [loop for loop in loops if loop not in outer]
    if not _commutative(nest):
        for number in range(len(nest.reduces)):
            own = iter([loop for loop in nest.loops if loop.reduce == number])
            loops = [next(own) if loop.reduce == number else loop for loop in loops]
    for loop in list(loops):
        if loop.segments:
            outside, inside = loops.index(loop), loops.index(nest.loop(loop.inner))
            if inside < outside:
                loops[outside], loops[inside] = loops[inside], loops[outside]
    return loops


def marked(nest: Nest, chance: random.Random) -> Nest:
    """Random kinds; factored reduce loops; carried or not."""
    loops: list[Loop] = []
    factored: dict[int, tuple[str, ...]] = {}
    vector, leading = False, True
    for loop in nest.loops:
        draw = chance.random()
        leading = leading and loop.reduce is None and draw < 0.5
        if leading:
            loop = replace(loop, kind=LoopKind.PARALLEL)
        elif draw < 0.3:
            loop = replace(loop, kind=LoopKind.UNROLL)
        elif draw < 0.5 and not vector and not loop.segments and _may_be_vector(nest, loop):
            loop, vector = replace(loop, kind=LoopKind.VECTOR), True
        elif draw < 0.7 and not loop.segments:
            loop = replace(loop, steps=chance.randint(1, 3))
        if loop.reduce is not None and _commutative(nest) and not loop.segments:
            alone = loop.kind is not LoopKind.SERIAL or _simple(nest, loop)
            if loop.kind is LoopKind.VECTOR or (alone and chance.random() < 0.2):
                factored[loop.reduce] = (*factored.get(loop.reduce, ()), loop.name)
        loops.append(loop)
    carried = chance.random() < 0.5
    reduces = tuple(
        replace(r, carried=carried, factored=factored.get(i, ()))
        for i, r in enumerate(nest.reduces)
    )
    return replace(nest, loops=tuple(loops), reduces=reduces)


def _may_be_vector(nest: Nest, loop: Loop) -> bool:
    return loop.reduce is None or _commutative(nest)
