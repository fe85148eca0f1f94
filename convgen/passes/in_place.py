"""Updates in place: a state takes its new value without a copy, where that is safe.

A program's update ``state <- new`` may write straight into the state's buffer when nothing that
runs later reads the old state, and the phase that computes `new` reads the state only at the very
element it is about to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from convgen.affine import Affine
from convgen.ir.nodes import Buffer, Expr, Form, Kernel, Load, Loop, Nest, Phase, StoreNode
from convgen.ir.visit import loads, map_expr, map_nest_exprs


def update_in_place(
    kernel: Kernel, updates: Sequence[tuple[str, str]]
) -> tuple[Kernel, tuple[tuple[str, str], ...]]:
    """(kernel, updates left to copy): buffers `new` renamed to their state where that is safe.

    The kernel is in form NEST; pieces of `new` must come from one phase. The state's buffer gets
    role output, since it is written.
    """
    assert kernel.form is Form.NEST
    left: list[tuple[str, str]] = []
    for state, new in updates:
        if _is_safe(kernel, state, new):
            kernel = _rename(kernel, state, new)
        else:
            left.append((state, new))
    return kernel, tuple(left)


def _nests(phase: Phase) -> tuple[Nest, ...]:
    return phase.body if isinstance(phase.body, tuple) else ()


def _is_safe(kernel: Kernel, state: str, new: str) -> bool:
    names = {b.name for b in kernel.buffers}
    if state not in names or new not in names:
        return False
    old, fresh = kernel.buffer(state), kernel.buffer(new)
    if (old.dtype, old.shape, old.layout) != (fresh.dtype, fresh.shape, fresh.layout):
        return False
    writers = [
        i
        for i, phase in enumerate(kernel.phases)
        if any(s.buffer == new for nest in _nests(phase) for s in nest.stores)
    ]
    if len(writers) != 1:
        return False
    (writer,) = writers
    for phase in kernel.phases[writer + 1 :]:
        if any(load.buffer == state for nest in _nests(phase) for load in loads(nest)):
            return False
    for nest in _nests(kernel.phases[writer]):
        places = {s.index for s in nest.stores if s.buffer == new}
        if any(load.buffer == state for reduce in nest.reduces for load in loads(reduce.body)):
            return False
        for store in nest.stores:
            for load in loads(store.value):
                if load.buffer == state and places != {load.index}:
                    return False
    return True


def _rename(kernel: Kernel, state: str, new: str) -> Kernel:
    def visit(expr: Expr) -> Expr:
        if isinstance(expr, Load) and expr.buffer == new:
            return replace(expr, buffer=state)
        return expr

    def nest(old: Nest) -> Nest:
        moved = map_nest_exprs(old, lambda e: map_expr(e, visit))
        stores = tuple(replace(s, buffer=state) if s.buffer == new else s for s in moved.stores)
        return replace(moved, stores=stores)

    def buffer(old: Buffer) -> Buffer:
        return replace(old, role="output") if old.name == state else old

    phases = tuple(replace(p, body=tuple(nest(n) for n in _nests(p))) for p in kernel.phases)
    buffers = tuple(buffer(b) for b in kernel.buffers if b.name != new)
    return replace(kernel, buffers=buffers, phases=phases)


def copy_updates(kernel: Kernel, updates: Sequence[tuple[str, str]]) -> Kernel:
    """The kernel with a phase at its end for each update, which copies `new` into the state.

    The states' buffers get role output, since they are written.
    """
    phases = list(kernel.phases)
    for state, new in updates:
        buffer = kernel.buffer(state)
        axes = [f"i{d}" for d in range(len(buffer.shape))]
        index = tuple(Affine.of(a) for a in axes)
        value = Load(new, index, (None,) * len(axes), kernel.buffer(new).dtype)
        nest = Nest(
            name=f"{state}.update",
            loops=tuple(Loop(a, e) for a, e in zip(axes, buffer.shape, strict=True)),
            axes=tuple(zip(axes, index, strict=True)),
            ranges=tuple((a, 0, e) for a, e in zip(axes, buffer.shape, strict=True)),
            guards=(),
            reduces=(),
            stores=(StoreNode(state, index, value),),
        )
        phases.append(Phase(nest.name, (nest,)))
    states = {state for state, _ in updates}
    buffers = tuple(replace(b, role="output") if b.name in states else b for b in kernel.buffers)
    return replace(kernel, buffers=buffers, phases=tuple(phases)) if updates else kernel
