"""The pass: phases of nests become phases of statements whose parallel loops are tasks."""

from __future__ import annotations

import math
from dataclasses import replace

from convgen.affine import Affine
from convgen.errors import InternalError
from convgen.ir.layout import scratch_offsets
from convgen.ir.nodes import (
    Block,
    Buffer,
    Form,
    Kernel,
    Loop,
    LoopKind,
    Nest,
    Phase,
    Stmt,
)
from convgen.ir.visit import walk
from convgen.passes.flatten.nest import NestWriter, Room
from convgen.passes.flatten.proof import check_memory
from convgen.passes.flatten.scope import Scope
from convgen.passes.flatten.shape import first_reduce_loop, iterations, true_extents
from convgen.target import Target

BEGIN, END = Affine.of("begin"), Affine.of("end")


def flatten(kernel: Kernel, target: Target) -> Kernel:
    """The kernel in form FLAT.

    Each nest becomes a phase. Its leading PARALLEL loops are the task number; expanded loops are
    registers and vectors of the target; states of reduces are registers where the tile is
    expanded, scratch memory elsewhere. Every unconditional access is proved to lie in its buffer.

    Raises InternalError for a kernel that is FLAT already, and when the proof fails.
    """
    if kernel.form is Form.FLAT:
        raise InternalError(f"kernel {kernel.name}: wanted nests, saw form flat", stage="flatten")
    buffers = {b.name: b for b in kernel.buffers}
    notes = list(kernel.notes)
    phases: list[Phase] = []
    for phase in kernel.phases:
        if not isinstance(phase.body, tuple):
            raise InternalError(
                f"phase {phase.name}: its body is no tuple of nests", stage="flatten"
            )
        for number, nest in enumerate(phase.body):
            name = phase.name if len(phase.body) == 1 else f"{phase.name}_{number}"
            phases.append(_phase(replace(phase, name=name), nest, buffers, notes, target))
    flat = replace(
        kernel,
        buffers=tuple(buffers.values()),
        phases=tuple(_with_scratch(p, tuple(buffers.values())) for p in phases),
        form=Form.FLAT,
        notes=tuple(notes),
    )
    check_memory(flat)
    return flat


def _phase(
    phase: Phase, nest: Nest, buffers: dict[str, Buffer], notes: list[str], target: Target
) -> Phase:
    """One nest as a phase."""
    room = Room(target, buffers, notes=notes)
    nest = true_extents(nest)
    leading = _leading(nest)
    for loop in nest.loops:
        if loop.kind is LoopKind.PARALLEL and loop not in leading:
            room.note(f"{nest.name}: {loop.name} is not parallel, it is inside other loops")
    extent = math.prod(iterations(one) for one in leading)
    names = {one.name for one in nest.loops}
    task = "task"
    while task in names:
        task += "_"
    decoded = _decoded(leading, task)
    writer = NestWriter(nest, room, decoded)
    with room.emitter.loop(task, BEGIN, END):
        writer.write(Scope().live(task, 0, max(extent, 1)))
    return replace(phase, body=_statement(room.emitter.finish()), extent=extent)


def _statement(statement: Stmt) -> Stmt:
    return statement if not isinstance(statement, Block) or statement.body else Block(())


def _leading(nest: Nest) -> tuple[Loop, ...]:
    """The PARALLEL loops before all others."""
    found: list[Loop] = []
    for loop in nest.loops[: first_reduce_loop(nest)]:
        if loop.kind is not LoopKind.PARALLEL:
            break
        found.append(loop)
    return tuple(found)


def _decoded(loops: tuple[Loop, ...], task: str) -> dict[str, Affine]:
    """Each loop's iteration as an expression of the task number, the last running fastest."""
    found: dict[str, Affine] = {}
    below = 1
    for loop in reversed(loops):
        count = iterations(loop)
        value = Affine.of(task) // below if below > 1 else Affine.of(task)
        if loop is not loops[0]:
            value = value % count if count else value
        found[loop.name] = value
        below *= max(count, 1)
    return found


def _with_scratch(phase: Phase, buffers: tuple[Buffer, ...]) -> Phase:
    """The phase with the scratch bytes of the kernel, where it uses scratch at all."""
    offsets, total = scratch_offsets(buffers)
    assert not isinstance(phase.body, tuple)
    used = any(getattr(node, "buffer", None) in offsets for node in walk(phase.body))
    return replace(phase, scratch_bytes=total if used else 0)
