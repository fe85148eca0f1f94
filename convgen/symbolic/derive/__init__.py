"""Deriving gradients: Program -> adjoint Program.

grad(program, ["X", "W"])     inputs and cotangents -> dX, dW (recomputing what it needs)
split(program, ["X", "W"])    (forward that saves what backward needs, backward)
adjoint(program, "X")         grad with the inputs it really reads
steps(program, ["X"])         the derivation, to be read
stop_gradient(body)           the body as a constant of every derivative
custom_gradient(program, backward)    the program with a gradient that is no derivative
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias

from convgen.errors import DerivationError
from convgen.symbolic.build import retarget
from convgen.symbolic.derive.custom import custom_gradient
from convgen.symbolic.derive.reverse import adjoints
from convgen.symbolic.derive.steps import Step, describe
from convgen.symbolic.expr import Definition, Stage, Tensor
from convgen.symbolic.functions import stop_gradient
from convgen.symbolic.program import Origin, Program, require_program

__all__ = ["Step", "adjoint", "custom_gradient", "grad", "split", "steps", "stop_gradient"]

# Inputs by name or as tensors; None: all of floats but states.
Wrt: TypeAlias = str | Tensor | Sequence[str | Tensor] | None


def grad(program: Program, wrt: Wrt = None, *, flip: bool = False) -> Program:
    """The program of the gradients (vector-Jacobian products) of all outputs together.

    Inputs: all inputs of `program` in their order, then one cotangent for each float output,
    named "d" + its name. Outputs: "d" + name for each name in `wrt` (default: all inputs of
    floats but states), in that order; a prime is added where a name is taken. What the gradients
    need of the forward program is computed again.

    A path through integers (argmax, a cast to i32) and the derivatives of step, sign and floor add
    nothing, as in torch.

    Raises DerivationError for names that are no inputs, for integer tensors, for programs whose
    outputs are all of integers, and for reductions without an adjoint.
    """
    wanted = _wanted(program, wrt)
    found = adjoints(program, wanted, flip=flip)
    forward = [stage for outlined in found.ahead for stage in outlined.stages]
    stages = prune([*forward, *found.behind], {t.name for t in found.results})
    inputs = (*program.inputs, *found.cotangents)
    made = _program(program.name + "_grad", inputs, found.results, stages)
    return replace(made, origin=Origin("grad", program, tuple(wanted), flip))


def adjoint(program: Program, wrt: str, *, flip: bool = False) -> Program:
    """The gradient to one input, as a program whose inputs are only what it reads: the adjoint
    operator of a linear layer."""
    whole = grad(program, [wrt], flip=flip)
    read = {a.tensor.name for s in whole.stages for p in s.pieces for a in p.reads()}
    cotangents = {t.name for t in whole.inputs} - {t.name for t in program.inputs}
    inputs = tuple(t for t in whole.inputs if t.name in read | cotangents)
    origin = Origin("adjoint", program, (wrt,), flip)
    return replace(whole, name=program.name + "_adjoint", inputs=inputs, origin=origin)


def split(program: Program, wrt: Wrt = None, *, flip: bool = False) -> tuple[Program, Program]:
    """(forward, backward): forward computes the outputs and stores what backward needs.

    forward.saved names the tensors stored beyond the outputs. backward's inputs are the forward
    inputs that it reads, in their order, then the forward outputs and saved tensors that it reads,
    in the order of the stages, then the cotangents; its outputs are the gradients in `wrt` order.
    """
    wanted = tuple(_wanted(program, wrt))
    found = adjoints(program, wanted, reuse=True, flip=flip)
    outputs = {t.name for t in found.results}
    behind = prune(found.behind, outputs)
    read = _reads(behind)
    forward: list[Stage] = []
    for original, outlined in zip(program.stages, found.ahead, strict=True):
        written = {t.name for stage in outlined.stages for t in stage.tensors}
        extra = written - {t.name for t in original.tensors}
        forward += outlined.stages if extra & read else [original]
    written_by = {t.name: t for stage in forward for t in stage.tensors}
    own = {t.name for stage in behind for t in stage.tensors}
    stored = [n for n in written_by if n in read and n not in own]
    returned = {t.name for t in program.outputs}
    ahead = _program(program.name, program.inputs, program.outputs, forward)
    kept = tuple(dict.fromkeys((*program.saved, *(n for n in stored if n not in returned))))
    origin = Origin("forward", program, wanted, flip)
    ahead = replace(ahead, saved=kept, updates=program.updates, origin=origin)
    inputs = [t for t in program.inputs if t.name in read]
    inputs += [written_by[n].with_role("input") for n in stored]
    backward = _program(
        program.name + "_backward", (*inputs, *found.cotangents), found.results, behind
    )
    return ahead, replace(backward, origin=replace(origin, kind="backward"))


def steps(program: Program, wrt: Wrt = None) -> list[Step]:
    """The derivation of the gradients, in the order in which they were made: chain rule, index
    equation, solution, domain and simplification of every contribution. Each step is a formula and
    a program that runs; the programs of one contribution (`Step.number`) compute the same.

    >>> from convgen.symbolic.parse import parse
    >>> layer = parse("Y[y] = sum(r: X[2*y + r - 1] * W[r]) for y < 4", X=8, W=3)
    >>> for step in steps(layer, "X"):
    ...     print(step)
    dX | chain rule: dX[2*y + r - 1] += dY[y] * W[r]   for y < 4, r < 3
    dX | index equation: h = 2*y + r - 1
    dX | solution: at [2*u]: y = u, r = 1; at [2*u + 1]: y = u + 1 - t, r = 2*t
    dX | domain: at [2*u]: one point; at [2*u + 1]: t < 2
    dX | simplification: 7 of 7 conditions follow from the ranges or from reading zero outside;
    2 pieces
    """
    found = adjoints(program, _wanted(program, wrt))
    return [step for number, event in enumerate(found.events) for step in describe(event, number)]


def _wanted(program: Program, wrt: Wrt) -> list[str]:
    require_program(program, "what is to be derived")
    if wrt is None:
        return [t.name for t in program.inputs if t.dtype.is_float and t.role != "state"]
    if isinstance(wrt, (str, Tensor)):
        wrt = [wrt]
    if not isinstance(wrt, Iterable):
        raise DerivationError("wrt=", expected="names of inputs", got=repr(wrt))
    return [w.name if isinstance(w, Tensor) else w for w in wrt]


def _reads(stages: Iterable[Stage]) -> set[str]:
    return {a.tensor.name for s in stages for p in s.pieces for a in p.reads()}


def prune(stages: Sequence[Stage], wanted: set[str]) -> list[Stage]:
    """The stages, and the outputs of stages, that the wanted tensors depend on.

    A tensor read and written by later stages of another name never occurs: names are unique.
    """
    needed = set(wanted)
    kept: list[Stage] = []
    for stage in reversed(stages):
        used = [i for i, t in enumerate(stage.tensors) if t.name in needed]
        if not used:
            continue
        if len(used) < len(stage.tensors):
            stage = _only(stage, used)
        kept.append(stage)
        needed |= _reads([stage])
    return kept[::-1]


def _only(stage: Stage, used: Sequence[int]) -> Stage:
    pieces = tuple(
        Definition(
            tuple(p.outs[i] for i in used), p.domain, p.reduces, tuple(p.values[i] for i in used)
        )
        for p in stage.pieces
    )
    return Stage(tuple(stage.tensors[i] for i in used), pieces, stage.backward)


def _program(
    name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], stages: Sequence[Stage]
) -> Program:
    """A program in which every access names the tensor as this program declares it."""
    final = {t.name: t.plain() for t in inputs}
    returned = {t.name for t in outputs}
    for stage in stages:
        for tensor in stage.tensors:
            role = "output" if tensor.name in returned else "temporary"
            final[tensor.name] = tensor.with_role(role)
    changed = tuple(retarget(stage, final) for stage in stages)
    return Program(
        name, tuple(final[t.name] for t in inputs), tuple(final[t.name] for t in outputs), changed
    )
