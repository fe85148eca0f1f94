"""Gradients that are not derivatives: a program that says what goes back (guided backpropagation).

The stages that write the program's outputs carry the backward program; reverse mode puts it in the
place of their derivatives and of those of everything before them in that program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sympy import Expr

from convgen.errors import FormulaError, ShapeError
from convgen.symbolic.derive.scalar import exchange
from convgen.symbolic.expr import Access, Definition, Stage, Tensor
from convgen.symbolic.program import Program, require_program


def custom_gradient(program: Program, backward: Program) -> Program:
    """The same program, whose gradients are those that `backward` computes.

    backward reads tensors of the program by name (inputs, outputs, temporaries) and the cotangents
    "d" + output; its outputs are "d" + input, for the inputs that get a gradient; the others get
    none. In the text form it stands below the program, indented under `gradient of Y`.

    Raises FormulaError for names that are not of the program, ShapeError for shapes that differ.

    >>> from convgen.symbolic.parse import parse
    >>> from convgen.symbolic.derive import grad
    >>> layer = parse("Y[i] = relu(X[i])", X=(4,))
    >>> guided = parse("dX[i] = relu(dY[i]) * step(Y[i])", Y=(4,), dY=(4,))
    >>> print(grad(custom_gradient(layer, guided), ["X"]).unicode().splitlines()[-1])
    dX[i] = relu(dY[i])·step(Y[i])   for i<4
    """
    require_program(backward, "a custom gradient")
    require_program(program, "what has a custom gradient")
    check_backward(program, backward, program.outputs, program.inputs)
    written = {t.name for t in program.outputs}
    stages = tuple(
        replace(s, backward=backward) if written & {t.name for t in s.tensors} else s
        for s in program.stages
    )
    return replace(program, stages=stages)


def check_backward(
    program: Program, backward: Program, outputs: Sequence[Tensor], inputs: Sequence[Tensor]
) -> None:
    """Raises unless a backward program reads tensors of the program and cotangents of `outputs`,
    and writes gradients to `inputs`."""
    allowed = {**program.tensors(), **{"d" + t.name: t for t in outputs}}
    for t in backward.inputs:
        _check(program, backward, allowed, t.name, t)
    for t in backward.outputs:
        _check(program, backward, {"d" + i.name: i for i in inputs}, t.name, t)


def _check(
    program: Program, backward: Program, allowed: dict[str, Tensor], name: str, given: Tensor
) -> None:
    if name not in allowed:
        raise FormulaError(
            f"custom gradient of {program.name}: {name} in {backward.name}",
            expected="one of " + ", ".join(allowed),
            got=name,
        )
    if allowed[name].shape != given.shape:
        raise ShapeError(
            f"custom gradient of {program.name}: {name}",
            expected=f"shape {list(allowed[name].shape)}",
            got=str(list(given.shape)),
        )


def is_first(program: Program, stage: Stage) -> bool:
    """True for the first stage of the program that carries this stage's backward program."""
    return stage is next(s for s in program.stages if s.backward == stage.backward)


def written_by(program: Program, backward: Program) -> list[Tensor]:
    """The tensors whose cotangents a backward program takes."""
    wanted = {t.name for t in backward.inputs}
    return [
        t
        for stage in program.stages
        if stage.backward == backward
        for t in stage.tensors
        if "d" + t.name in wanted
    ]


def inline(
    backward: Program, cotangents: dict[str, Tensor], name: Callable[[str], str]
) -> tuple[list[Stage], dict[str, Tensor]]:
    """(stages, results): the stages of a backward program under free names, and for each input of
    the forward program the tensor that holds its gradient."""
    final: dict[str, Tensor] = dict(cotangents)
    for stage in backward.stages:
        for t in stage.tensors:
            final[t.name] = replace(t, name=name(t.name), role="temporary", source=None)

    def access(a: Access) -> Access:
        kinds = tuple(b if b.value is None else replace(b, value=body(b.value)) for b in a.boundary)
        return Access(final.get(a.tensor.name, a.tensor), a.index, kinds)

    def body(expr: Expr) -> Expr:
        return exchange(expr, {a: access(a) for a in expr.atoms(Access) if isinstance(a, Access)})

    stages = [
        Stage(
            tuple(final[t.name] for t in stage.tensors),
            tuple(
                Definition(
                    tuple(access(o) for o in p.outs),
                    p.domain,
                    tuple(replace(r, body=body(r.body)) for r in p.reduces),
                    tuple(body(v) for v in p.values),
                )
                for p in stage.pieces
            ),
        )
        for stage in backward.stages
    ]
    return stages, {t.name[1:]: final[t.name] for t in backward.outputs}
