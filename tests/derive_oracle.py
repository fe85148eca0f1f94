"""Checks of derived gradients against forward-mode dual numbers, in exact arithmetic."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from convgen.symbolic import derive
from convgen.symbolic.duals import hessian, vjp
from convgen.symbolic.evaluate import Array, evaluate
from convgen.symbolic.expr import Tensor
from convgen.symbolic.parse import parse
from convgen.symbolic.program import Program
from convgen.symbolic.proofs import check_program


def numbers(rng: random.Random, tensor: Tensor, bound: int = 5) -> list[int]:
    return [rng.randint(-bound, bound) for _ in range(tensor.elements)]


def floats_of(program: Program) -> list[str]:
    return [t.name for t in program.inputs if t.dtype.is_float]


def draw_inputs(
    program: Program, rng: random.Random, values: Mapping[str, Any] | None = None, bound: int = 5
) -> dict[str, Any]:
    return {t.name: numbers(rng, t, bound) for t in program.inputs} | dict(values or {})


def differ(got: Array, wanted: Array | Sequence[Any], tolerance: float = 0) -> bool:
    """True where two arrays are not the same: exactly, or to a tolerance relative to the values."""
    expected = list(wanted.data if isinstance(wanted, Array) else wanted)
    if tolerance == 0:
        return list(got.data) != expected
    return len(got.data) != len(expected) or any(
        not abs(float(a) - float(b)) <= tolerance * max(1, abs(float(b)))
        for a, b in zip(got.data, expected, strict=True)
    )


def wrong_gradients(
    program: Program,
    gradient: Program,
    *,
    seed: int = 0,
    values: Mapping[str, Any] | None = None,
    tolerance: float = 0,
    bound: int = 5,
) -> list[str]:
    """Names of the inputs whose gradient is not what dual numbers give. `gradient` takes all inputs
    and cotangents, as derive.grad makes it, for all inputs of floats."""
    rng = random.Random(seed)
    inputs = draw_inputs(program, rng, values, bound)
    results = [t for t in program.outputs if t.dtype.is_float]
    cotangents = {t.name: numbers(rng, t) for t in results}
    wanted = vjp(program, inputs, cotangents, floats_of(program))
    given = gradient.inputs[len(program.inputs) :]
    named = {t.name: cotangents[r.name] for t, r in zip(given, results, strict=True)}
    got = evaluate(gradient, {**inputs, **named})
    return [
        name
        for name, out in zip(floats_of(program), gradient.outputs, strict=True)
        if differ(got[out.name], wanted[name], tolerance)
    ]


def check_gradients(
    program: Program,
    *,
    seed: int = 0,
    values: Mapping[str, Any] | None = None,
    tolerance: float = 0,
    flip: bool = False,
    bound: int = 5,
) -> Program:
    """grad, and split's two halves, give the exact vector-Jacobian product; every element is
    written once. Returns grad's program."""
    wrt = floats_of(program)
    gradient = derive.grad(program, wrt, flip=flip)
    ahead, behind = derive.split(program, wrt, flip=flip)
    for p in (gradient, ahead, behind):
        check_program(p)
    wrong = wrong_gradients(
        program, gradient, seed=seed, values=values, tolerance=tolerance, bound=bound
    )
    assert not wrong, f"{wrong} of\n{program}\n{gradient}"
    rng = random.Random(seed)
    inputs = draw_inputs(program, rng, values, bound)
    results = [t for t in program.outputs if t.dtype.is_float]
    cotangents = {t.name: numbers(rng, t) for t in results}
    plain, stored = evaluate(program, inputs), evaluate(ahead, inputs)
    for t in program.outputs:
        assert not differ(stored[t.name], plain[t.name], tolerance), f"{t.name} of\n{ahead}"
    names = [t.name for t in gradient.inputs[len(program.inputs) :]]
    have = {**inputs, **{n: a.data for n, a in stored.items()}}
    have |= {n: cotangents[r.name] for n, r in zip(names, results, strict=True)}
    got = evaluate(behind, {t.name: have[t.name] for t in behind.inputs})
    wanted = vjp(program, inputs, cotangents, wrt)
    for name, out in zip(wrt, behind.outputs, strict=True):
        assert not differ(got[out.name], wanted[name], tolerance), f"{name} of\n{ahead}\n{behind}"
    return gradient


def check_second_order(program: Program, *, seed: int = 3, tolerance: float = 0) -> Program:
    """grad(grad(program)) gives weights times the exact Hessian. Returns it."""
    rng = random.Random(seed)
    inputs = draw_inputs(program, rng, bound=3)
    wrt = floats_of(program)
    first = derive.grad(program, wrt)
    second = derive.grad(first, wrt)
    check_program(second)
    cotangents = {t.name: numbers(rng, t, 3) for t in program.outputs}
    given = first.inputs[len(program.inputs) :]
    named = {t.name: cotangents[o.name] for t, o in zip(given, program.outputs, strict=True)}
    weights = {o.name: numbers(rng, o, 3) for o in first.outputs}
    again = second.inputs[len(first.inputs) :]
    seeds = {t.name: weights[o.name] for t, o in zip(again, first.outputs, strict=True)}
    got = evaluate(second, {**inputs, **named, **seeds})
    exact = hessian(program, inputs, cotangents, wrt)
    for b, out in zip(wrt, second.outputs, strict=True):
        wanted: list[Any] = [0] * program.tensor(b).elements
        for a, o in zip(wrt, first.outputs, strict=True):
            for i, weight in enumerate(weights[o.name]):
                for j in range(len(wanted)):
                    wanted[j] += weight * exact[a, b].data[i * len(wanted) + j]
        assert not differ(got[out.name], wanted, tolerance), f"{b} of\n{program}\n{second}"
    return second


def same_formulas(program: Program, *lines: str) -> None:
    """The stages of the program are those of the lines, read with its inputs and outputs."""
    words = [f"{'tensor' if t.role == 'input' else t.role} {t}" for t in program.inputs]
    words += [f"output {t}" for t in program.outputs]
    text = "\n".join([f"program {program.name}", *words, *lines])
    assert parse(text).stages == program.stages, str(program)
