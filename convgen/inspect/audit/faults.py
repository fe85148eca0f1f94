"""Naming a fault: wrong gradients that people write, compared with the one at hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convgen.errors import ConvgenError
from convgen.inspect.audit.cases import TOLERANCE, Case, Values, agree, values_of
from convgen.symbolic.derive import grad
from convgen.symbolic.evaluate import Array
from convgen.symbolic.expr import fixed
from convgen.symbolic.mistakes import gradient_mistakes, mistakes_of
from convgen.symbolic.pointwise import Elements
from convgen.symbolic.program import Program


@dataclass(frozen=True)
class Fault:
    """A named fault; text says it in the program's letters."""

    name: str
    text: str


@dataclass(frozen=True)
class Suspect:
    """A fault with what it would have given: `known`, or the gradient of `program` (the case's own
    where None) on `cotangents` (the case's own where None), times `sign`. key: the same for all
    cases of one structure."""

    key: tuple[str, int]
    fault: Fault
    program: Program | None = None
    sign: int = 1
    cotangents: Mapping[str, Array] | None = None
    known: Callable[[], Values] | None = None
    gradient: Program | None = None

    def fits(self, case: Case, got: Values) -> bool:
        """Whether it explains what the function gave; a few elements are looked at first."""
        if self.known is not None:
            return agree(got, self.known())
        weights = case.cotangents if self.cotangents is None else self.cotangents
        try:
            gradient = self.gradient or case.gradient
            if self.program is not None:
                gradient = grad(self.program, [case.wrt])
            return self._glimpse(gradient, case, weights, got) and agree(
                got, self.sign * values_of(gradient, case, weights)
            )
        except (ConvgenError, ArithmeticError):
            return False

    def _glimpse(
        self, gradient: Program, case: Case, weights: Mapping[str, Array], got: Values
    ) -> bool:
        given = {**case.inputs, **{"d" + n: v for n, v in weights.items()}}
        elements = Elements(gradient, {n: a.data for n, a in given.items()})
        name, scale = gradient.outputs[0].name, max(float(np.abs(got).max(initial=0)), 1.0)
        for place in _places(case, got):
            value = self.sign * float(elements(name, place))
            if not abs(value - float(got[place])) <= TOLERANCE * scale:
                return False
        return True


def _places(case: Case, got: Values) -> list[tuple[int, ...]]:
    """Some elements that are wrong and some that need not be."""
    wrong = np.argwhere(~np.isclose(got, case.expected, rtol=0, atol=TOLERANCE))
    chance = np.random.default_rng(0)
    found = [tuple(int(i) for i in wrong[j]) for j in chance.permutation(len(wrong))[:4]]
    if got.size:
        found += [tuple(int(chance.integers(e)) for e in got.shape) for _ in range(3)]
    return found


def find_faults(answers: Sequence[tuple[Case, Values]]) -> tuple[Fault, ...]:
    """The faults that explain every answer, the likeliest first; () when none does."""
    left: dict[tuple[str, int], Fault] | None = None
    for case, got in answers:
        left = {
            suspect.key: suspect.fault
            for suspect in suspects(case)
            if (left is None or suspect.key in left) and suspect.fits(case, got)
        }
        if not left:
            break
    if left:
        return tuple(dict.fromkeys(left.values()))
    ratio = _constant_ratio(answers)
    return (ratio,) if ratio is not None else ()


def suspects(case: Case) -> Iterator[Suspect]:
    """Everything that is compared with, the likeliest first."""
    counts: dict[str, int] = {}

    def key(name: str) -> tuple[str, int]:
        counts[name] = counts.get(name, 0) + 1
        return name, counts[name]

    def known(name: str, text: str, values: Callable[[], Values]) -> Suspect:
        return Suspect(key(name), Fault(name, text), known=values)

    yield known("sign", "the sign is wrong", lambda: -case.expected)
    zero = np.zeros_like(case.expected)
    yield known("nothing", "the gradient is zero everywhere", lambda: zero)
    mistakes = mistakes_of(case.program)
    for m in mistakes:
        yield Suspect(key(m.name), Fault(m.name, m.text), m.program)
    for name, text, cotangents in _cotangents(case):
        yield Suspect(key(name), Fault(name, text), cotangents=cotangents)
    for name, text, values in _results(case):
        yield known(name, text, lambda v=values: v)
    for m in mistakes:
        text = f"the sign is wrong, and {m.text}"
        yield Suspect(key(m.name), Fault(m.name, text), m.program, -1)
    in_pieces = any(len(stage.pieces) > 1 for stage in case.program.stages)
    for m in gradient_mistakes(case.gradient, indices=in_pieces):
        yield Suspect(key("gradient: " + m.name), Fault(m.name, m.text), gradient=m.program)
    if _squares(case):
        text = "only the diagonal of the Jacobian: each element counts for its own output alone"
        yield known("diagonal only", text, lambda: _diagonal(case))


def _squares(case: Case) -> bool:
    """True where outputs and inputs are paired, few, and an output depends on several inputs."""
    shapes = {a.shape for a in case.cotangents.values()}
    return shapes == {case.expected.shape} and len(case.cotangents) == 1 and case.expected.size < 65


def _diagonal(case: Case) -> Values:
    """Each element's gradient through the output of the same index."""
    ((name, whole),) = case.cotangents.items()
    found = np.zeros(case.expected.size)
    for place in range(case.expected.size):
        data = [v if i == place else 0 for i, v in enumerate(whole.data)]
        alone = values_of(case.gradient, case, {name: Array(whole.shape, data)})
        found[place] = alone.reshape(-1)[place]
    return found.reshape(case.expected.shape)


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
        telling = len(counts) == 1 or len(set(counts)) > 1
        if telling and all(c > 1 for c in counts):
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
