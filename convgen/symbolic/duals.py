"""Exact derivatives of programs by forward-mode dual numbers on the forward formula.

The oracle of derive, with which it shares no code. Conventions at kinks are those of functions.py:
relu'(0) = 0, |.|'(0) = 0, ties of `maximum` one half to each; a max reduction follows its first
maximum. Dual numbers nest, so second derivatives are exact as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convgen.errors import DerivationError
from convgen.symbolic.evaluate import Array, Run
from convgen.symbolic.evaluate_scalar import Arithmetic, Lifted, Number, Numbers
from convgen.symbolic.program import Program

_level = itertools.count(1)


class Dual(Lifted):
    """value + sum(tangent[k] * eps_k), first order in the eps of its level. Values and tangents may
    be dual numbers of lower levels."""

    __slots__ = ("level", "tangent")

    def __init__(self, value: Number, tangent: Mapping[int, Number], level: int) -> None:
        self.value, self.tangent, self.level = value, tangent, level

    def __add__(self, other: Number) -> Dual:
        if isinstance(other, Dual):
            if other.level > self.level:
                return Dual(self + other.value, other.tangent, other.level)
            if other.level == self.level:
                tangent = dict(self.tangent)
                for key, t in other.tangent.items():
                    tangent[key] = tangent[key] + t if key in tangent else t
                return Dual(self.value + other.value, tangent, self.level)
        return Dual(self.value + other, self.tangent, self.level)

    def __mul__(self, other: Number) -> Dual:
        if isinstance(other, Dual):
            if other.level > self.level:
                return other * self
            if other.level == self.level:
                tangent = {key: t * other.value for key, t in self.tangent.items()}
                for key, t in other.tangent.items():
                    extra = self.value * t
                    tangent[key] = tangent[key] + extra if key in tangent else extra
                return Dual(self.value * other.value, tangent, self.level)
        tangent = {key: t * other for key, t in self.tangent.items()}
        return Dual(self.value * other, tangent, self.level)

    __radd__, __rmul__ = __add__, __mul__

    def chain(
        self, function: Callable[[Number], Number], derivative: Callable[[Number], Number]
    ) -> Number:
        value = function(self.value)
        if not self.tangent:
            return Dual(value, {}, self.level)
        slope = derivative(self.value)
        return Dual(value, {k: slope * t for k, t in self.tangent.items()}, self.level)


def _split(x: Number, level: int) -> tuple[Number, Mapping[int, Number]]:
    return (x.value, x.tangent) if isinstance(x, Dual) and x.level == level else (x, {})


class _Seeded:
    """A run in which chosen elements of inputs carry tangents of one level."""

    def __init__(
        self,
        program: Program,
        inputs: Mapping[str, Any],
        seed: Callable[[str, int], Mapping[int, Number] | None],
        numbers: Numbers,
    ) -> None:
        self.level = next(_level)
        self.program = program
        plain = _plain_inputs(program, inputs, numbers)
        self.shapes = {name: array.shape for name, array in plain.items()}
        lifted: dict[str, Array] = {}
        for name, array in plain.items():
            data: list[Any] = []
            for i, v in enumerate(array.data):
                tangent = seed(name, i)
                data.append(v if tangent is None else Dual(v, tangent, self.level))
            lifted[name] = Array(array.shape, data)
        self.results = Run(program, lifted, Arithmetic(numbers)).results()

    def values(self, name: str) -> Array:
        return self.results[name].map(lambda v: _split(v, self.level)[0])

    def tangents(self, name: str) -> list[Mapping[int, Number]]:
        return [_split(v, self.level)[1] for v in self.results[name].data]


def _plain_inputs(
    program: Program, inputs: Mapping[str, Any], numbers: Numbers
) -> dict[str, Array]:
    """The inputs as arrays in the arithmetic's numbers, after the checks of evaluate."""
    reading = Program(program.name, program.inputs, (), ())
    run = Run(reading, inputs, Arithmetic(numbers))
    return {t.name: run.array(t.name) for t in program.inputs}


def jvp(
    program: Program,
    inputs: Mapping[str, Any],
    tangents: Mapping[str, Any],
    *,
    numbers: Numbers = "exact",
) -> tuple[dict[str, Array], dict[str, Array]]:
    """(values, derivatives along `tangents`) of every result of evaluate.

    tangents: for some of the inputs, arrays of the same shapes; the others stand still.
    """
    directions = _plain_inputs(
        Program(program.name, tuple(t for t in program.inputs if t.name in tangents), (), ()),
        tangents,
        numbers,
    )

    def seed(name: str, i: int) -> Mapping[int, Number] | None:
        return {0: directions[name].data[i]} if name in directions else None

    run = _Seeded(program, inputs, seed, numbers)
    values = {name: run.values(name) for name in run.results}
    moved = {
        name: Array(run.results[name].shape, [t.get(0, 0) for t in run.tangents(name)])
        for name in run.results
    }
    return values, moved


def jacobian(
    program: Program,
    inputs: Mapping[str, Any],
    wrt: str,
    output: str | None = None,
    *,
    numbers: Numbers = "exact",
) -> Array:
    """d output / d wrt, of shape [*output.shape, *wrt.shape]; the only output by default.

    >>> from convgen.symbolic.parse import parse
    >>> pairs = parse("Y[i] = sum(r: X[i + r] * W[r])", X=(3,), W=(2,))
    >>> jacobian(pairs, {"X": [1, 2, 3], "W": [5, 7]}, "X").tolist()
    [[5, 7, 0], [0, 5, 7]]
    """
    name = output or program.output.name
    _check_real(program, wrt)
    run = _Seeded(program, inputs, lambda n, i: {i: 1} if n == wrt else None, numbers)
    shape = run.shapes[wrt]
    count = _count(shape)
    data = [t.get(i, 0) for t in run.tangents(name) for i in range(count)]
    return Array((*run.results[name].shape, *shape), data)


def vjp(
    program: Program,
    inputs: Mapping[str, Any],
    cotangents: Mapping[str, Any],
    wrt: Sequence[str],
    *,
    numbers: Numbers = "exact",
) -> dict[str, Array]:
    """For each name of wrt: sum over results of cotangent * d result / d name, of that input's
    shape: what a derived gradient program must give.

    cotangents: result name -> array of the result's shape.
    """
    for name in wrt:
        _check_real(program, name)
    starts: dict[str, int] = {}
    plain = _plain_inputs(program, inputs, numbers)
    total = 0
    for name in wrt:
        starts[name] = total
        total += _count(plain[name].shape)
    run = _Seeded(
        program, inputs, lambda n, i: {starts[n] + i: 1} if n in starts else None, numbers
    )
    weights: dict[str, Array] = {}
    for name, value in cotangents.items():
        result = program.tensor(name)
        like = Program(program.name, (result.with_role("input"),), (), ())
        weights[name] = _plain_inputs(like, {name: value}, numbers)[name]
    gradient: list[Any] = [0] * total
    for name, weight in weights.items():
        for g, tangent in zip(weight.data, run.tangents(name), strict=True):
            for key, t in tangent.items():
                gradient[key] = gradient[key] + g * t
    out: dict[str, Array] = {}
    for name in wrt:
        shape, start = run.shapes[name], starts[name]
        out[name] = Array(shape, gradient[start : start + _count(shape)])
    return out


def hessian(
    program: Program,
    inputs: Mapping[str, Any],
    cotangents: Mapping[str, Any],
    wrt: Sequence[str],
    *,
    numbers: Numbers = "exact",
) -> dict[tuple[str, str], Array]:
    """For names a, b of wrt: d² (sum of cotangent * result) / da db, of shape [*a.shape, *b.shape],
    by dual numbers of dual numbers."""
    level = next(_level)
    plain = _plain_inputs(program, inputs, numbers)
    out: dict[tuple[str, str], Array] = {}
    for second in wrt:
        _check_real(program, second)
        array = plain[second]
        seeds = [Dual(v, {i: 1}, level) for i, v in enumerate(array.data)]
        lifted = {**plain, second: Array(array.shape, seeds)}
        gradients = vjp(program, lifted, cotangents, wrt, numbers=numbers)
        for first in wrt:
            rows = gradients[first]
            data = [
                _split(v, level)[1].get(i, 0) for v in rows.data for i in range(len(array.data))
            ]
            out[first, second] = Array((*rows.shape, *array.shape), data)
    return out


def _count(shape: Sequence[int]) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total


def _check_real(program: Program, name: str) -> None:
    tensor = next((t for t in program.inputs if t.name == name), None)
    if tensor is None or not tensor.dtype.is_float:
        raise DerivationError(
            f"cannot differentiate with respect to {name!r}",
            expected="a float input: "
            + ", ".join(t.name for t in program.inputs if t.dtype.is_float),
            got="no input" if tensor is None else str(tensor),
        )
