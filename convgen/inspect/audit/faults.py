"""Naming a fault: wrong gradients that people write, compared with the one at hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convgen.errors import ConvgenError
from convgen.inspect.audit.cases import Case, Values, agree, gradient_values, values_of
from convgen.symbolic.derive import grad
from convgen.symbolic.evaluate import Array
from convgen.symbolic.expr import fixed
from convgen.symbolic.mistakes import mistakes_of
from convgen.symbolic.program import Program


@dataclass(frozen=True)
class Fault:
    """A named fault; text says it in the program's letters."""

    name: str
    text: str


@dataclass(frozen=True)
class Suspect:
    """A fault with what it would have given. key: the same for all cases of one structure."""

    key: tuple[str, int]
    fault: Fault
    values: Callable[[], Values]


def find_faults(answers: Sequence[tuple[Case, Values]]) -> tuple[Fault, ...]:
    """The faults that explain every answer, the likeliest first; () when none does. The first
    answer should be the smallest: it rules most of them out."""
    left: dict[tuple[str, int], Fault] | None = None
    for case, got in answers:
        fits: dict[tuple[str, int], Fault] = {}
        for suspect in suspects(case):
            if left is not None and suspect.key not in left:
                continue
            try:
                values = suspect.values()
            except (ConvgenError, ArithmeticError):
                continue
            if agree(got, values):
                fits[suspect.key] = suspect.fault
        left = fits if left is None else {k: f for k, f in left.items() if k in fits}
        if not left:
            break
    if left:
        case = max((c for c, _ in answers), key=lambda c: c.expected.size)
        named = {s.key: s.fault for s in suspects(case)}
        return tuple(dict.fromkeys(named.get(k, f) for k, f in left.items()))
    ratio = _constant_ratio(answers)
    return (ratio,) if ratio is not None else ()


def suspects(case: Case) -> Iterator[Suspect]:
    """Everything that is compared with, the likeliest first."""
    counts: dict[str, int] = {}

    def suspect(name: str, text: str, values: Callable[[], Values]) -> Suspect:
        counts[name] = counts.get(name, 0) + 1
        return Suspect((name, counts[name]), Fault(name, text), values)

    yield suspect("sign", "the sign is wrong", lambda: -case.expected)
    zero = np.zeros_like(case.expected)
    yield suspect("nothing", "the gradient is zero everywhere", lambda: zero)
    mistakes = mistakes_of(case.program)
    for mistake in mistakes:
        program = mistake.program
        yield suspect(mistake.name, mistake.text, lambda p=program: gradient_values(p, case))
    gradient = grad(case.program, [case.wrt])
    for name, text, cotangents in _cotangents(case):
        yield suspect(name, text, lambda c=cotangents: values_of(gradient, case, c))
    for name, text, values in _results(case):
        yield suspect(name, text, lambda v=values: v)
    for mistake in mistakes:
        program, text = mistake.program, f"the sign is wrong, and {mistake.text}"
        yield suspect(mistake.name, text, lambda p=program: -gradient_values(p, case))


# ---------------------------------------------------------------------------------------------
# Cotangents and results


def letters(program: Program, tensor: str) -> list[str]:
    """The index of each dimension of a written tensor, or of an input as it is read plainly."""
    for stage in program.stages:
        for piece in stage.pieces:
            for access in (*piece.outs, *piece.reads()):
                if access.tensor.name == tensor and all(i.single for i in access.index):
                    return [str(i) for i in access.index]
    rank = program.tensor(tensor).rank
    return [f"axis {d}" for d in range(rank)]


def _cotangents(case: Case) -> Iterator[tuple[str, str, Mapping[str, Array]]]:
    """The cotangent ignored, or parts of it left out."""
    ones = {n: Array(a.shape, [1] * len(a.data)) for n, a in case.cotangents.items()}
    yield "cotangent ignored", "the cotangent is not used (it is taken as 1)", ones
    for name, array in case.cotangents.items():
        names = letters(case.program, name)
        for dim, extent in enumerate(array.shape):
            if extent < 2:
                continue
            parts = [
                ("one row only", f"only the first {names[dim]} of d{name} is used", {0}),
                ("row missing", f"the last {names[dim]} of d{name} is left out", _but(extent, -1)),
                ("row missing", f"the first {names[dim]} of d{name} is left out", _but(extent, 0)),
            ]
            for kind, text, kept in parts:
                yield kind, text, {**case.cotangents, name: _masked(array, dim, kept)}


def _but(extent: int, left: int) -> set[int]:
    return set(range(extent)) - {left % extent}


def _masked(array: Array, dim: int, kept: set[int]) -> Array:
    block = math.prod(array.shape[dim + 1 :])
    extent = array.shape[dim]
    data = [v if i // block % extent in kept else 0 for i, v in enumerate(array.data)]
    return Array(array.shape, data)


def _results(case: Case) -> Iterator[tuple[str, str, Values]]:
    """Results with rows left at zero, moved, or turned round."""
    want = case.expected
    for dim, extent in enumerate(want.shape):
        if extent < 2:
            continue
        for place, word in ((-1, "last"), (0, "first")):
            values = want.copy()
            values[(slice(None),) * dim + (place,)] = 0
            text = f"the {word} row along axis {dim} of the gradient is missing (0)"
            yield "border missing", text, values
        for by in (1, -1):
            text = f"the gradient is shifted by {by} along axis {dim}"
            yield "shifted", text, np.roll(want, by, dim)
    dims = [d for d, e in enumerate(want.shape) if e > 1]
    for count in (1, 2, 3):
        for chosen in itertools.combinations(dims, count):
            text = f"the gradient is turned round along {', '.join(f'axis {d}' for d in chosen)}"
            yield "result flipped", text, np.flip(want, chosen)
    for one, other in itertools.combinations(dims, 2):
        if want.shape[one] == want.shape[other]:
            text = f"axes {one} and {other} of the gradient have changed places"
            yield "roles swapped", text, np.swapaxes(want, one, other)


# ---------------------------------------------------------------------------------------------
# Constant ratios


def _constant_ratio(answers: Sequence[tuple[Case, Values]]) -> Fault | None:
    """One factor between the right gradient and every answer, and where it may come from."""
    factors: list[float] = []
    for case, got in answers:
        want = case.expected
        at = np.abs(want).argmax() if want.size else 0
        if not want.size or not want.flat[at]:
            continue
        factor = float(got.flat[at] / want.flat[at])
        if not math.isfinite(factor) or not agree(got, want * factor):
            return None
        factors.append(factor)
    if not factors:
        return None
    for name, extents in _extent_sets(answers[0][0]):
        counts = [math.prod(extents(case)) for case, _ in answers if case.expected.any()]
        if all(c > 1 for c in counts):
            if np.allclose(factors, [1 / c for c in counts]):
                text = f"divided by the extent of {name}: a mean where a sum belongs"
                return Fault("mean for sum", text)
            if np.allclose(factors, counts):
                text = f"multiplied by the extent of {name}: a sum where a mean belongs"
                return Fault("sum for mean", text)
    if np.allclose(factors, factors[0]):
        return Fault("scale", f"the gradient is {factors[0]:g} times what it should be")
    return None


def _extent_sets(case: Case) -> Iterator[tuple[str, Callable[[Case], list[int]]]]:
    """Sets of dimensions of outputs and inputs: (their letters, their extents in a case)."""
    program = case.program
    tensors = [*(t.name for t in program.outputs), *(t.name for t in program.inputs)]
    for tensor in tensors:
        names = letters(program, tensor)
        for count in range(1, min(len(names), 4) + 1):
            for dims in itertools.combinations(range(len(names)), count):

                def extents(
                    c: Case, tensor: str = tensor, dims: tuple[int, ...] = dims
                ) -> list[int]:
                    return [fixed(c.program.tensor(tensor).shape[d]) for d in dims]

                yield ", ".join(names[d] for d in dims) + f" of {tensor}", extents


def held(case: Case, **changes: Any) -> Case:
    """The case with other numbers."""
    return replace(case, **changes)
