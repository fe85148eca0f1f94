"""The smallest counterexample: smaller extents first, then fewer and simpler numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from convgen.errors import ConvgenError
from convgen.inspect.audit.cases import Case, Values, agree, make
from convgen.symbolic.evaluate import Array
from convgen.symbolic.program import Program
from convgen.symbolic.resize import Family

Call = Callable[[Case], "Values | None"]
_CALLS = 400


class Shrinker:
    """Looks for smaller cases on which the function is still wrong. call: the function's gradient,
    or None where it gives none."""

    def __init__(self, call: Call, signed: bool) -> None:
        self.call, self.signed = call, signed
        self.left = _CALLS

    def smallest(self, case: Case, family: Family) -> Case:
        """The smallest case found."""
        values = _values_in(family, case.program)
        if values is not None:
            case = self._extents(case, family, values)
        self.left = max(self.left, _CALLS // 2)
        return self._numbers(case)

    def wrong(self, case: Case) -> bool:
        """True when the function gives another gradient than the right one."""
        if self.left <= 0:
            return False
        self.left -= 1
        try:
            want = case.expected
        except (ConvgenError, ArithmeticError):
            return False
        got = self.call(case) if np.isfinite(want).all() else None
        return got is not None and not agree(got, want)

    def _extents(self, case: Case, family: Family, values: list[int]) -> Case:
        moved = True
        while moved and self.left > 0:
            moved = False
            for i, value in enumerate(values):
                for smaller in _below(value):
                    tried = [*values[:i], smaller, *values[i + 1 :]]
                    found = self._at(case, family, tried)
                    if found is not None:
                        case, values, moved = found, tried, True
                        break
        return case

    def _at(self, case: Case, family: Family, values: Sequence[int]) -> Case | None:
        program = family.member(values)
        if program is None:
            return None
        for seed in (0, 1):
            found = make(program, case.wrt, case.kind, self.signed, seed)
            if self.wrong(found):
                return found
        return None

    def _numbers(self, case: Case) -> Case:
        case = self._one_cotangent(case)
        for name in case.inputs:
            dtype = case.program.tensor(name).dtype
            if not dtype.is_float:
                continue
            count = len(case.inputs[name].data)
            zeros, ones = (self._with(case, name, [number] * count) for number in (0, 1))
            if self.wrong(zeros):
                case = zeros
            else:
                case = self._entries(ones if self.wrong(ones) else case, name)
        return case

    def _one_cotangent(self, case: Case) -> Case:
        """One element of the cotangent 1, the others 0: the gradient is linear in it."""
        zero: Mapping[str, Array] = {
            n: Array(a.shape, [0] * len(a.data)) for n, a in case.cotangents.items()
        }
        for name, array in case.cotangents.items():
            for i in range(len(array.data)):
                data = [0] * len(array.data)
                data[i] = 1
                tried = replace(case, cotangents={**zero, name: Array(array.shape, data)})
                if self.wrong(tried):
                    return tried
        return case

    def _entries(self, case: Case, name: str) -> Case:
        for i in range(len(case.inputs[name].data)):
            for number in (0, 1):
                data = list(case.inputs[name].data)
                if data[i] in (0, number):
                    continue
                data[i] = number
                tried = self._with(case, name, data)
                if self.wrong(tried):
                    case = tried
                    break
        return case

    @staticmethod
    def _with(case: Case, name: str, data: list[Any]) -> Case:
        array = Array(case.inputs[name].shape, data)
        return replace(case, inputs={**case.inputs, name: array})


def _below(value: int) -> Iterator[int]:
    """Smaller values to try, the smallest first."""
    yield from range(1, min(value, 4))
    if value > 4:
        yield value // 2
        yield value - 1


def _values_in(family: Family, program: Program) -> list[int] | None:
    """The free extents of a member, read off its domains and tensors."""
    return Family(program).values_like(family)


def plain(value: Any) -> Any:
    """A number as JSON has it: an integer where it is one."""
    number = Fraction(value) if not isinstance(value, float) else value
    if isinstance(number, float):
        return int(number) if math.isfinite(number) and number == int(number) else number
    return int(number) if number.denominator == 1 else float(number)
