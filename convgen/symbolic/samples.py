"""Programs that compute each sample of a batch alone: found by structure, and cut to another batch.

A program is one formula for every sample when the first axis of its outputs runs over the batch and
everything that depends on the batch reads its inputs at that very position, nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from convgen.affine import Affine
from convgen.symbolic.build import retarget
from convgen.symbolic.expr import Access, Axis, Definition, Domain, Extent, Range, Stage, Tensor
from convgen.symbolic.program import Program


def sample_inputs(program: Program) -> tuple[str, ...]:
    """Inputs that are read at the output's own first position: what a batch is made of. Parameters
    and states never are.

    >>> from convgen.symbolic.parse import parse
    >>> sample_inputs(parse("Y[n, k] = sum(c: X[n, c] * W[k, c])", X=(8, 3), W=(4, 3)))
    ('X',)
    """
    found: set[str] = set()
    for stage in program.stages:
        for piece in stage.pieces:
            axis = _first_axis(piece)
            if axis is not None:
                found |= {a.tensor.name for a in piece.reads() if _is_at(a, axis)}
    return tuple(t.name for t in program.inputs if t.name in found and t.role == "input")


def is_per_sample(program: Program, inputs: Iterable[str]) -> bool:
    """True when sample i of every output depends on sample i of `inputs` alone, by one formula for
    all i. Never true of a program that updates states.

    >>> from convgen.symbolic.parse import parse
    >>> is_per_sample(parse("Y[n, k] = sum(c: X[n, c] * W[k, c])", X=(8, 3), W=(4, 3)), ["X"])
    True
    >>> is_per_sample(parse("Y[n, k] = X[n, k] - sum(m < 8: X[m, k])", X=(8, 3)), ["X"])
    False
    """
    if program.updates:
        return False
    return batch_tensors(program, inputs) is not None


def batch_tensors(program: Program, inputs: Iterable[str]) -> frozenset[str] | None:
    """Names of all tensors whose first dimension is the batch; None where samples are mixed."""
    marked = set(inputs)
    if not marked:
        return None
    tensors = program.tensors()
    if len({tensors[name].shape[:1] for name in marked}) != 1:
        return None
    for stage in program.stages:
        if not any(a.tensor.name in marked for p in stage.pieces for a in p.reads()):
            continue
        for piece in stage.pieces:
            if not _keeps_samples(piece, marked, stage.tensors):
                return None
        marked |= {t.name for t in stage.tensors}
    return frozenset(marked) if all(t.name in marked for t in program.outputs) else None


def rebatched(program: Program, inputs: Sequence[str], count: int) -> Program | None:
    """The same program for a batch of `count`; None where samples are mixed.

    >>> from convgen.symbolic.parse import parse
    >>> layer = parse("Y[n, k] = sum(c: X[n, c] * W[k, c])", X=(8, 3), W=(4, 3))
    >>> print(rebatched(layer, ["X"], 1))
    program Y
    tensor X: f32[1, 3]
    tensor W: f32[4, 3]
    Y[n, k] = sum(c: X[n, c] * W[k, c])
    """
    marked = batch_tensors(program, inputs)
    if marked is None or any(stage.backward is not None for stage in program.stages):
        return None

    def cut(tensor: Tensor) -> Tensor:
        if tensor.name not in marked:
            return tensor
        return replace(tensor, shape=(count, *tensor.shape[1:]), source=None)

    tensors = {name: cut(t) for name, t in program.tensors().items()}
    stages: list[Stage] = []
    for stage in program.stages:
        moved = retarget(stage, tensors)
        if any(t.name in marked for t in stage.tensors):
            moved = replace(moved, pieces=tuple(_cut_domain(p, count) for p in moved.pieces))
        stages.append(moved)
    return replace(
        program,
        inputs=tuple(tensors[t.name] for t in program.inputs),
        outputs=tuple(tensors[t.name] for t in program.outputs),
        stages=tuple(stages),
        origin=None,
    )


def _first_axis(piece: Definition) -> str | None:
    """The axis that alone is the first index of every out of a piece, if there is one."""
    axis: str | None = None
    for out in piece.outs:
        names = sorted(out.index[0].names()) if out.index else []
        if len(names) != 1 or out.index[0] != Affine.of(names[0]) or axis not in (None, names[0]):
            return None
        axis = names[0]
    return axis


def _is_at(access: Access, axis: str) -> bool:
    """The access is at `axis` in its first dimension and does not depend on it elsewhere."""
    if not access.index or access.index[0] != Affine.of(axis):
        return False
    return not any(axis in i.names() for i in access.index[1:])


def _keeps_samples(piece: Definition, marked: set[str], written: Sequence[Tensor]) -> bool:
    axis = _first_axis(piece)
    if axis is None or axis not in piece.domain:
        return False
    where = piece.domain[axis]
    if where.lo != 0 or any(where.hi != t.shape[0] for t in written):
        return False
    if any(axis in i.names() for out in piece.outs for i in out.index[1:]):
        return False
    for access in piece.reads():
        if access.tensor.name in marked:
            if not _is_at(access, axis) or access.tensor.shape[0] != where.hi:
                return False
        elif axis in access.names():
            return False
    domains = [piece.domain, *(r.domain for r in piece.reduces)]
    if any(axis in c.value.names() for d in domains for c in d.constraints):
        return False
    return not any(a.name == axis for body, _ in piece.bodies() for a in body.atoms(Axis))


def _cut_domain(piece: Definition, count: Extent) -> Definition:
    axis = _first_axis(piece)
    ranges = tuple(Range(r.axis, r.lo, count) if r.axis == axis else r for r in piece.domain.ranges)
    return replace(piece, domain=Domain(ranges, piece.domain.constraints))
