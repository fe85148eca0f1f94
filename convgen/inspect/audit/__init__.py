"""The auditor: somebody's hand-written gradient, compared with the derived one.

The function is run on small integer arrays of shapes in which every extent differs, so that a
stride, a dilation, a padding, a group and the role of a channel cannot stand in for each other; the
derived gradient is computed there exactly. A wrong function is shrunk to its smallest
counterexample, and its fault is named by comparing it with plausible wrong gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convgen.errors import DataError, DerivationError
from convgen.inspect.audit.calling import Failure, Function, call, uses_torch
from convgen.inspect.audit.cases import Case, Trials, Values, agree, make
from convgen.inspect.audit.faults import Fault, find_faults
from convgen.inspect.audit.shrink import Shrinker, plain
from convgen.symbolic.derive import grad
from convgen.symbolic.mistakes import has_kinks
from convgen.symbolic.program import Program

__all__ = ["Audit", "Counterexample", "Fault", "audit"]


@dataclass(frozen=True)
class Counterexample:
    """Numbers on which the function is wrong: arguments by name, and at one index of the gradient
    what it gave and what is right."""

    program: str
    arguments: Mapping[str, Any]
    index: tuple[int, ...]
    expected: float
    got: float

    def __str__(self) -> str:
        lines = [f"  {name} = {value}" for name, value in self.arguments.items()]
        place = ", ".join(map(str, self.index))
        lines.append(f"  at [{place}]: expected {self.expected}, got {self.got}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Audit:
    """What an audit found; ``print`` it, or `as_json`.

    passed          the function agreed everywhere it was tried
    message         the verdict in a sentence
    faults          names that explain what it gave, the likeliest first; () when none is known
    formula         the derived gradient of the program as given
    tried           sizes it was run at
    counterexample  the smallest one found; None when it passed or gave no gradient
    """

    function: str
    program: str
    wrt: str
    passed: bool
    message: str
    faults: tuple[Fault, ...]
    formula: str
    tried: tuple[str, ...]
    counterexample: Counterexample | None = None

    @property
    def fault(self) -> str:
        """The name of the likeliest fault; "" when there is none."""
        return self.faults[0].name if self.faults else ""

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        found = {k: v for k, v in vars(self).items() if k not in ("faults", "counterexample")}
        found["tried"] = list(self.tried)
        found["faults"] = [vars(f) for f in self.faults]
        example = self.counterexample
        found["counterexample"] = (
            None if example is None else {**vars(example), "index": list(example.index)}
        )
        return found

    def __str__(self) -> str:
        verdict = "right" if self.passed else "WRONG"
        lines = [f"{self.function} as the gradient of {self.program} to {self.wrt}: {verdict}"]
        lines.append(self.message)
        if len(self.faults) > 1:
            lines.append("what fits as well:")
            lines += [f"  {fault.text}" for fault in self.faults[1:4]]
        if self.counterexample is not None:
            lines += ["smallest counterexample found:", str(self.counterexample)]
        if not self.passed:
            lines += ["the derived gradient:"]
            lines += [f"  {line}" for line in self.formula.splitlines()]
        return "\n".join([*lines, "tried at:", *(f"  {place}" for place in self.tried)])


def audit(backward: Function, program: Program, wrt: str | None = None) -> Audit:
    """Compare a hand-written gradient with the derived one.

    backward  a function of NumPy arrays or torch tensors (floats in float64): the program's inputs
              in their order, then the cotangent of each float output; it returns the gradient to
              `wrt`, of that input's shape. It must take extents from its arguments: it is called
              with small ones.
    wrt       the input; may be left out where there is only one float input

    Raises DataError when `backward` is no function, DerivationError for an unknown `wrt`.

    >>> from convgen.symbolic.parse import parse
    >>> layer = parse("Y[n, k] = sum(c: X[n, c] * W[k, c])", X=(32, 64), W=(10, 64))
    >>> audit(lambda x, w, dy: dy.T @ x, layer, "W").passed
    True
    >>> print(audit(lambda x, w, dy: dy.T @ x / len(x), layer, "W").message)
    divided by the extent of n of Y: a mean where a sum belongs
    """
    if not callable(backward):
        raise DataError("no function to audit", expected="a function", got=repr(backward))
    name = _wanted(program, wrt)
    found = _Auditor(backward, program, name)
    return found.run()


def _wanted(program: Program, wrt: str | None) -> str:
    floats = [t.name for t in program.inputs if t.dtype.is_float]
    if wrt is None and len(floats) == 1:
        return floats[0]
    if wrt not in floats:
        problem = "say what the gradient is to" if wrt is None else f"no float input {wrt!r}"
        raise DerivationError(
            f"audit of a gradient of {program.name}: {problem}",
            expected="one of " + ", ".join(floats),
            hint="wrt=...",
        )
    return wrt


class _Auditor:
    """One audit."""

    def __init__(self, function: Function, program: Program, wrt: str) -> None:
        self.function, self.program, self.wrt = function, program, wrt
        self.name = getattr(function, "__name__", type(function).__name__)
        self.trials = Trials.of(program)
        self.torch = uses_torch(function)
        self.tried: list[str] = []

    def run(self) -> Audit:
        """Try the small programs of distinct extents, then, where the function fails, others."""
        answers: list[tuple[Case, Values]] = []
        failures: list[tuple[Case, Failure]] = []
        for case in self._cases(self.trials.distinct):
            self._try(case, answers, failures)
        raised = bool(failures)
        if raised and not answers:
            self._other_arrays(answers, failures)
        if failures and not any(f.fault for _, f in failures):
            for case in self._cases(self.trials.others):
                self._try(case, answers, failures)
        wrong = [(c, v) for c, v in answers if not agree(v, c.expected)]
        if wrong:
            found = self._refuted(answers, wrong, failures)
            if found.faults or len(failures) < len(self.trials.distinct):
                return found
        if failures:
            return self._failed(failures, bool(answers) and not wrong)
        text = "agrees with the derived gradient on every array tried"
        return self._audit(True, text)

    def _cases(self, programs: Sequence[Program]) -> Iterator[Case]:
        for program in programs:
            for kind in ("distinct", "ties") if has_kinks(program) else ("distinct",):
                yield make(program, self.wrt, kind, self.trials.signed)

    def _try(
        self,
        case: Case,
        answers: list[tuple[Case, Values]],
        failures: list[tuple[Case, Failure]],
    ) -> None:
        got = call(self.function, case, self.torch)
        self.tried.append(case.at())
        if isinstance(got, Failure):
            failures.append((case, got))
        else:
            answers.append((case, got))

    def _other_arrays(
        self, answers: list[tuple[Case, Values]], failures: list[tuple[Case, Failure]]
    ) -> None:
        """NumPy instead of torch, or the other way round, where the first guess only raised."""
        if any(f.kind != "raised" for _, f in failures):
            return
        case = failures[0][0]
        try:
            got = call(self.function, case, not self.torch)
        except ImportError:
            return
        if isinstance(got, Failure) and got.kind == "raised":
            return
        self.torch = not self.torch
        failures.clear()
        self.tried.clear()
        for each in self._cases(self.trials.distinct):
            self._try(each, answers, failures)

    def _refuted(
        self,
        answers: Sequence[tuple[Case, Values]],
        wrong: Sequence[tuple[Case, Values]],
        failures: Sequence[tuple[Case, Failure]],
    ) -> Audit:
        shrinker = Shrinker(self._values, self.trials.signed)
        first = min((c for c, _ in wrong), key=lambda c: sum(a.size for a in c.arguments))
        smallest = shrinker.smallest(first, self.trials.family)
        got = self._values(smallest)
        assert got is not None
        first_wrong = [*wrong, *((c, v) for c, v in answers if all(c is not w for w, _ in wrong))]
        faults = find_faults(first_wrong)
        text = faults[0].text if faults else _described(wrong)
        only_ties = all(c.kind == "ties" for c, _ in wrong)
        if only_ties and any(c.kind == "distinct" for c, _ in answers):
            text += " (it agrees wherever no two elements are equal and none is 0)"
        if failures:
            text += f"; and at other shapes {failures[0][1].text}"
        return self._audit(False, text, faults, _example(smallest, got))

    def _failed(self, failures: Sequence[tuple[Case, Failure]], some: bool) -> Audit:
        failure = next((f for _, f in failures if f.fault), failures[0][1])
        text = failure.text + (f": {failure.fault}" if failure.fault else "")
        if failure.kind == "raised" and not some:
            text += " (an audit gives small arrays: extents must come from the arguments)"
        if some:
            text += "; it agrees at other shapes, so an extent is fixed or confused with another"
        faults = (Fault(_name_of(failure), failure.fault or failure.text),)
        return self._audit(False, text, faults)

    def _values(self, case: Case) -> Values | None:
        got = call(self.function, case, self.torch)
        return None if isinstance(got, Failure) else got

    def _audit(
        self,
        passed: bool,
        message: str,
        faults: tuple[Fault, ...] = (),
        example: Counterexample | None = None,
    ) -> Audit:
        return Audit(
            self.name,
            self.program.name,
            self.wrt,
            passed,
            message,
            faults,
            str(grad(self.program, [self.wrt])),
            tuple(self.tried),
            example,
        )


def _name_of(failure: Failure) -> str:
    if failure.fault.startswith("not summed"):
        return "not summed"
    if "changed places" in failure.fault:
        return "roles swapped"
    return failure.kind


def _example(case: Case, got: Values) -> Counterexample:
    want = case.expected
    finite = np.where(np.isfinite(got), got, np.inf)
    index = np.unravel_index(int(np.abs(finite - want).argmax()), want.shape)
    arguments = {n: plain_list(a) for n, a in zip(case.names, case.arguments, strict=True)}
    return Counterexample(
        str(case.program),
        arguments,
        tuple(int(i) for i in index),
        plain(float(want[index])),
        plain(float(got[index])),
    )


def plain_list(array: Values) -> Any:
    """Nested lists with integers where numbers are whole."""
    if array.ndim == 0:
        return plain(array.item())
    return [plain_list(part) for part in array]


def _described(wrong: Sequence[tuple[Case, Values]]) -> str:
    """Where a gradient is wrong, when nothing known explains it."""
    case, got = max(wrong, key=lambda item: item[1].size)
    off = ~np.isclose(got, case.expected, rtol=0, atol=1e-9 * max(1.0, abs(case.expected).max()))
    text = f"{int(off.sum())} of {off.size} elements are wrong"
    for dim, extent in enumerate(off.shape):
        rows = {int(i) for i in np.nonzero(off)[dim]}
        if extent > 2 and rows <= {0, extent - 1}:
            text += f", all of them at the border of axis {dim}"
        for step in (2, 3, 4):
            phases = {r % step for r in rows}
            if extent > step and len(phases) < step and len(rows) > 1:
                shown = ", ".join(map(str, sorted(phases)))
                text += f", all of them where axis {dim} modulo {step} is {shown}"
                break
    return text + "; no mistake of the catalogue gives this"
