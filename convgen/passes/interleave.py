"""interleave: chains of dependent operations of neighbouring vectors run side by side.

An elementary function is a chain: one vector waits for itself at every step, and the core looks
ahead no further than a few vectors. Where a block computes and stores vector after vector, a few of
them take their steps in turns. What registers do not hold then waits in the first cache, which
costs less than waiting for a chain. The operations are the same, so are the bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from convgen.ir.nodes import Block, Expr, Gather, Kernel, Op, Register, Set, Stmt, Store, VectorLoad
from convgen.ir.visit import fresh_registers, map_children, map_stmt, walk
from convgen.target import Target

CHAIN = 12  # operations after one another that make waiting matter
WIDEST = 4  # vectors side by side
LIVE = 36  # vectors at once: the wide register files and a few constants, twice the narrow ones


def interleave(kernel: Kernel, target: Target) -> Kernel:
    """A FLAT kernel with the long chains of its blocks in turns."""
    fresh = fresh_registers(kernel, "c")

    def change(stmt: Stmt) -> Stmt:
        return _in_turns(stmt, fresh) if isinstance(stmt, Block) else stmt

    phases = tuple(
        p if isinstance(p.body, tuple) else replace(p, body=map_stmt(p.body, change))
        for p in kernel.phases
    )
    same = all(a.body is b.body for a, b in zip(phases, kernel.phases, strict=True))
    return kernel if same else replace(kernel, phases=phases)


def _in_turns(block: Block, fresh: Callable[[], str]) -> Block:
    """The block with neighbouring groups, each of which ends in a store, in turns."""
    found: list[Stmt] = []
    waiting: list[list[Stmt]] = []
    for group in _groups(block.body):
        long = _chain(group) >= CHAIN
        if waiting and not (long and len(waiting) < _room(waiting[0])):
            found += _together(waiting, fresh)
            waiting = []
        if long and _room(group) > 1:
            waiting.append(group)
        else:
            found += group
    found += _together(waiting, fresh)
    return block if [*map(id, found)] == [*map(id, block.body)] else Block(tuple(found))


def _groups(body: Sequence[Stmt]) -> Iterator[list[Stmt]]:
    """Runs of registers with the store they lead to; other statements alone."""
    group: list[Stmt] = []
    for stmt in body:
        if not isinstance(stmt, (Set, Store)):
            yield group
            yield [stmt]
            group = []
            continue
        group.append(stmt)
        if isinstance(stmt, Store):
            yield group
            group = []
    yield group


def _chain(group: Sequence[Stmt]) -> int:
    """The longest chain of vector operations that leads to the store of a group; 0 where registers
    are set twice or the group ends in no store."""
    if not group or not isinstance(group[-1], Store) or group[-1].value.lanes < 2:
        return 0
    sets = _sets(group)
    names = {s.register for s in sets}
    if len(names) < len(sets):
        return 0
    depth: dict[str, int] = {}
    for stmt in sets:
        depth[stmt.register] = _depth(stmt.value, depth)
    return max(depth.values(), default=0)


def _sets(group: Sequence[Stmt]) -> list[Set]:
    return [s for s in group if isinstance(s, Set)]


def _depth(expr: Expr, depth: dict[str, int]) -> int:
    if isinstance(expr, Register):
        return depth.get(expr.name, 0)
    if isinstance(expr, Op):
        return 1 + max(_depth(a, depth) for a in expr.args)
    return max((_depth(e, depth) for e in walk(expr) if isinstance(e, Register)), default=0)


def _room(group: Sequence[Stmt]) -> int:
    """How many such groups run side by side."""
    last: dict[str, int] = {}
    for place, stmt in enumerate(group):
        last |= {e.name: place for e in walk(stmt) if isinstance(e, Register)}
    made: dict[str, int] = {}
    for place, stmt in enumerate(group):
        if isinstance(stmt, Set):
            made[stmt.register] = place
    live = max(
        (sum(made[n] <= p < last.get(n, 0) for n in made) for p in range(len(group))), default=1
    )
    return min(WIDEST, LIVE // max(1, live))


def _together(groups: Sequence[Sequence[Stmt]], fresh: Callable[[], str]) -> list[Stmt]:
    """The groups in turns, step by step, their stores last; one after another where one reads what
    another stores or sets what another reads."""
    every = [stmt for group in groups for stmt in group]
    stores = [s for s in every if isinstance(s, Store)]
    sets = _sets(every)
    read = {e.buffer for s in every for e in walk(s) if isinstance(e, (VectorLoad, Gather))}
    names = [s.register for s in sets]
    early = _read_before_set(every)
    if len(groups) < 2 or read & {s.buffer for s in stores} or len({*names}) < len(names) or early:
        return every
    steps = [step for s in sets for step in _apart(s, fresh)]
    depth: dict[str, int] = {}
    for step in steps:
        depth[step.register] = 1 + max(
            (depth.get(e.name, 0) for e in walk(step.value) if isinstance(e, Register)), default=0
        )
    in_turns = sorted(steps, key=lambda step: depth[step.register])
    return [*in_turns, *stores]


def _read_before_set(every: Sequence[Stmt]) -> bool:
    """True where a register is read that is set further on."""
    later = {s.register for s in _sets(every)}
    for stmt in every:
        if any(isinstance(e, Register) and e.name in later for e in walk(stmt)):
            return True
        later -= {s.register for s in _sets([stmt])}
    return False


def _apart(stmt: Set, fresh: Callable[[], str]) -> list[Set]:
    """A register with a register for each operation that leads to it."""
    found: list[Set] = []

    def own(expr: Expr) -> Expr:
        if not isinstance(expr, Op):
            return expr
        value = map_children(expr, own)
        found.append(Set(fresh(), value))
        return Register(found[-1].register, value.dtype, value.lanes)

    value = map_children(stmt.value, own) if isinstance(stmt.value, Op) else stmt.value
    return [*found, replace(stmt, value=value)]
