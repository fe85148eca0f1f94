"""From stages to programs: the stages of programs that are read, roles, input order, collisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from convgen.errors import FormulaError, ShapeError
from convgen.symbolic.build import retarget
from convgen.symbolic.expr import Size, Stage, Tensor
from convgen.symbolic.program import Program
from convgen.symbolic.reductions import Reduction


def assemble(
    name: str,
    stages: Sequence[Stage],
    outputs: Sequence[str],
    inputs: Sequence[Tensor] = (),
    saved: Sequence[str] = (),
    updates: Sequence[tuple[str, str]] = (),
) -> Program:
    """One program of the stages and of those of the programs they read.

    Inputs are the given ones and all that are read, in the order of their creation.
    """
    table: dict[str, Stage] = {}
    found: dict[str, Tensor] = {}
    kept: dict[str, None] = dict.fromkeys(saved)
    changes: dict[tuple[str, str], None] = dict.fromkeys(updates)
    constants: dict[str, Tensor] = {}
    for t in inputs:
        _add_tensor(found, t)
    for stage in stages:
        _add_stage(table, found, constants, kept, changes, stage)
    return finish(
        name, list(dict.fromkeys(table.values())), outputs, found, constants, kept, changes
    )


def finish(
    name: str,
    stages: Sequence[Stage],
    outputs: Sequence[str],
    inputs: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
    saved: Iterable[str],
    updates: Iterable[tuple[str, str]],
) -> Program:
    """Give every tensor its role and make all accesses agree."""
    tensors = {**inputs, **constants}
    for stage in stages:
        for t in stage.tensors:
            if t.name in tensors:
                raise _collision(t.name, tensors[t.name], t)
            # A tensor of its own: its serial tells accesses to it from those to an equal one.
            role = "output" if t.name in outputs else "temporary"
            tensors[t.name] = Tensor(t.name, t.shape, t.dtype, role)
    for wanted in (*outputs, *saved):
        if wanted not in tensors:
            raise FormulaError(f"program {name} writes no tensor {wanted}")
    for state, new in updates:
        _check_update(name, tensors, inputs, state, new)
    _check_sizes_and_axes(stages, tensors)
    _check_reductions(stages)
    ordered = sorted(inputs.values(), key=lambda t: _LATEST.get(t, t.serial))
    return Program(
        name,
        tuple(ordered),
        tuple(tensors[o] for o in outputs),
        tuple(retarget(s, tensors) for s in stages),
        tuple(saved),
        tuple(updates),
    )


def register(tensor: Tensor) -> Tensor:
    """Note when a tensor was created. sympy hands back equal expressions from its cache, with the
    accesses (and serials) of an earlier equal tensor inside; the note keeps the user's order."""
    _LATEST[tensor] = tensor.serial
    return tensor


_LATEST: dict[Tensor, int] = {}


def _check_reductions(stages: Sequence[Stage]) -> None:
    seen: dict[str, Reduction] = {}
    for stage in stages:
        for piece in stage.pieces:
            for reduce in piece.reduces:
                if seen.setdefault(reduce.reduction.name, reduce.reduction) != reduce.reduction:
                    raise FormulaError(f"two reductions are named {reduce.reduction.name}")


def _check_sizes_and_axes(stages: Sequence[Stage], tensors: Mapping[str, Tensor]) -> None:
    sizes = {e.name for t in tensors.values() for e in t.shape if isinstance(e, Size)}
    for stage in stages:
        for piece in stage.pieces:
            names = set(piece.domain.names).union(*(r.domain.names for r in piece.reduces))
            for clash in sorted(sizes & (names | tensors.keys())):
                raise FormulaError(f"the name {clash} is a size and an axis or a tensor as well")


def _check_update(
    name: str, tensors: Mapping[str, Tensor], inputs: Mapping[str, Tensor], state: str, new: str
) -> None:
    if state not in inputs or new not in tensors:
        raise FormulaError(
            f"program {name}: update {state} <- {new}",
            expected="a state among the inputs and a tensor that the program writes",
            got=", ".join(tensors),
        )
    if inputs[state].shape != tensors[new].shape:
        raise ShapeError(
            f"update {state} <- {new}",
            expected=f"shape {list(inputs[state].shape)}",
            got=str(list(tensors[new].shape)),
        )


def _collision(name: str, first: Tensor, second: Tensor) -> FormulaError:
    return FormulaError(
        f"two different tensors are named {name}",
        got=f"{first.role} {first} and {second.role} {second}",
        hint="another name for one of them",
    )


def _add_tensor(found: dict[str, Tensor], tensor: Tensor) -> None:
    plain = tensor.plain()
    known = found.setdefault(plain.name, plain)
    if known != plain:
        raise _collision(plain.name, known, plain)


def _add_stage(
    table: dict[str, Stage],
    inputs: dict[str, Tensor],
    constants: dict[str, Tensor],
    saved: dict[str, None],
    updates: dict[tuple[str, str], None],
    stage: Stage,
) -> None:
    """Enter a stage after the stages of the programs that it reads."""
    accesses = [a for piece in stage.pieces for a in piece.reads()]
    accesses.sort(key=lambda a: a.tensor.serial)
    for access in accesses:
        own = next((t for t in stage.tensors if t.name == access.tensor.name), None)
        if own is not None:
            raise FormulaError(
                f"tensor {own.name} is read before it is written, by its own formula",
                hint="another name for the output",
            )
    for access in accesses:
        tensor = access.tensor
        if tensor.source is not None:
            for earlier in tensor.source.stages:
                _add_stage(table, inputs, constants, saved, updates, earlier)
            for t in tensor.source.inputs:
                _add_tensor(inputs, t)
            saved.update(dict.fromkeys(tensor.source.saved))
            updates.update(dict.fromkeys(tensor.source.updates))
        elif tensor.role == "constant":
            _add_tensor(constants, tensor)
        elif tensor.role in ("input", "parameter", "state"):
            _add_tensor(inputs, tensor)
        elif tensor.name not in table:
            raise FormulaError(f"tensor {tensor.name} is read before it is written")
    plain = {
        a.tensor.name: a.tensor.with_role("temporary")
        for a in accesses
        if a.tensor.source is not None or a.tensor.role in ("output", "temporary")
    }
    plain.update({t.name: t.with_role("temporary") for t in stage.tensors})
    stage = retarget(stage, plain)
    for t in stage.tensors:
        if table.setdefault(t.name, stage) != stage:
            raise _collision(t.name, next(k for k in table[t.name].tensors if k.name == t.name), t)
