"""What a gradient is tried on: small programs of one structure, with numbers that tell."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from convgen.runtime.checks import cost, nature, sizes_text
from convgen.symbolic.derive import grad
from convgen.symbolic.evaluate import Array, evaluate
from convgen.symbolic.evaluate_scalar import primal
from convgen.symbolic.expr import Tensor, fixed
from convgen.symbolic.program import Program
from convgen.symbolic.resize import Family

_ALL_TAPS = 1 << 30
_MOST = 2_000_000  # points of all sums that one evaluation may have
TOLERANCE = 1e-9  # of float64, relative to the largest element

_WORDS = {"distinct": "all values distinct", "ties": "many values equal, some 0"}

Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """A program, the input asked for, and numbers. kind: "distinct" (no two elements of a tensor
    are equal, none is 0) or "ties" (many are)."""

    program: Program
    wrt: str
    kind: str
    inputs: Mapping[str, Array]
    cotangents: Mapping[str, Array]

    @cached_property
    def gradient(self) -> Program:
        """The derived gradient program."""
        return grad(self.program, [self.wrt])

    @cached_property
    def expected(self) -> Values:
        """The derived gradient, exact where the program is rational, rounded to float64."""
        return values_of(self.gradient, self, self.cotangents)

    @cached_property
    def arguments(self) -> list[Values]:
        """What the function is given: inputs in order, then cotangents; floats as float64."""
        tensors = {t.name: t for t in self.program.inputs}
        found = [as_numpy(self.inputs[n], tensors[n]) for n in tensors]
        outs = {t.name: t for t in self.program.outputs}
        return found + [as_numpy(v, outs[n]) for n, v in self.cotangents.items()]

    @property
    def names(self) -> list[str]:
        """The names of the arguments."""
        return [t.name for t in self.program.inputs] + ["d" + n for n in self.cotangents]

    def at(self) -> str:
        """The sizes, for a report."""
        return f"{sizes_text(self.program)} ({_WORDS[self.kind]})"


def as_numpy(array: Array, tensor: Tensor) -> Values:
    """The numbers in NumPy's kind of the tensor's dtype, floats in float64."""
    dtype = "float64" if tensor.dtype.is_float else tensor.dtype.numpy_name
    return np.array([float(v) for v in array.data]).astype(dtype).reshape(array.shape)


def values_of(gradient: Program, case: Case, cotangents: Mapping[str, Array]) -> Values:
    """The only output of a gradient program on the case's inputs and given cotangents."""
    given = {**case.inputs, **{"d" + n: v for n, v in cotangents.items()}}
    found = evaluate(gradient, given)[gradient.outputs[0].name]
    numbers = [float(primal(v)) for v in found.data]
    return np.array(numbers, dtype=np.float64).reshape(found.shape)


def agree(got: Values, want: Values) -> bool:
    """Equal but for the rounding of float64."""
    if got.shape != want.shape:
        return False
    finite = np.abs(want[np.isfinite(want)])
    scale = max(float(finite.max()) if finite.size else 0.0, 1.0)
    return bool(np.allclose(got, want, rtol=0, atol=TOLERANCE * scale, equal_nan=True))


def make(program: Program, wrt: str, kind: str, signed: bool, seed: int = 0) -> Case:
    """A case with random numbers."""
    chance = random.Random(seed)
    inputs = {t.name: _numbers(t, kind, signed, chance) for t in program.inputs}
    outs = [t for t in program.outputs if t.dtype.is_float]
    cotangents = {t.name: _cotangent(t, chance) for t in outs}
    return Case(program, wrt, kind, inputs, cotangents)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(fixed(e) for e in tensor.shape)


def _cotangent(tensor: Tensor, chance: random.Random) -> Array:
    shape = _shape(tensor)
    numbers = [n for n in range(-7, 8) if n]
    return Array(shape, [chance.choice(numbers) for _ in range(math.prod(shape))])


def _numbers(tensor: Tensor, kind: str, signed: bool, chance: random.Random) -> Array:
    shape = _shape(tensor)
    count = math.prod(shape)
    if not tensor.dtype.is_float:
        return Array(shape, [chance.randrange(2) for _ in range(count)])
    if kind == "ties":
        few = [-1, 0, 0, 1, 2] if signed else [Fraction(1, 2), 1, 1, Fraction(3, 2)]
        return Array(shape, [chance.choice(few) for _ in range(count)])
    if signed:
        numbers: list[Any] = [n for n in range(-(count // 2) - 1, count // 2 + 2) if n]
    else:
        numbers = [Fraction(8 + n, 16) for n in range(count)]
    chance.shuffle(numbers)
    return Array(shape, numbers[:count])


@dataclass(frozen=True)
class Trials:
    """The programs a function is tried on, in order, and others to fall back on: extents that are
    equal, and the program as it is."""

    family: Family
    distinct: tuple[Program, ...]
    others: tuple[Program, ...]
    signed: bool

    @staticmethod
    def of(program: Program) -> Trials:
        """Small members that keep every tap."""
        sizes = {name: 5 + i for i, name in enumerate(program.sizes())}
        whole = replace(program.bind(**sizes), origin=None)
        family = Family(whole)
        found = list(_members(family))
        equal = family.smaller(3, _ALL_TAPS, distinct=False)
        others = [p for p in (equal, whole) if p is not None and p not in found]
        others = [p for p in others if cost(p) <= _MOST]
        if not found:
            found, others = others[-1:] or [whole], others[:-1]
        signed, _ = nature(found[0])
        return Trials(family, tuple(found), tuple(others), signed)


def _members(family: Family) -> Iterator[Program]:
    seen: list[str] = []
    for least in (2, 3):
        program = family.smaller(least, _ALL_TAPS)
        if program is not None and str(program) not in seen and cost(program) <= _MOST:
            seen.append(str(program))
            yield program
