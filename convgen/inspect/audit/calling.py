"""Calling somebody's function, and saying clearly what is wrong with what comes back."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from convgen.errors import DataError
from convgen.inspect.audit.cases import Case, Values, agree
from convgen.runtime.subject import run_file
from convgen.symbolic.program import Program

Function = Callable[..., Any]


@dataclass(frozen=True)
class Failure:
    """Why a call gave no gradient that can be compared. kind: raised, nothing, kind, dtype, shape
    or argument."""

    kind: str
    text: str
    fault: str = ""


def function_in(text: str) -> tuple[Function, Path]:
    """The function that FILE.py:FUNCTION names, and the file that was run for it. DataError where
    there is no such file or function, or the file raises."""
    file, _, name = text.rpartition(":")
    path = Path(file)
    if not file.endswith(".py") or not name:
        raise DataError(f"no function {text!r}", expected="FILE.py:FUNCTION")
    values = run_file(path)
    found = [n for n, v in values.items() if isinstance(v, FunctionType) and n[0] != "_"]
    if not callable(values.get(name)):
        raise DataError(
            f"{path} has no function {name!r}", expected="one of " + (", ".join(found) or "-")
        )
    return values[name], path


def uses_torch(function: Function) -> bool:
    """Whether a function is about torch tensors: it, or its module, names torch."""
    code = getattr(function, "__code__", None)
    names = set(getattr(code, "co_names", ()))
    known = getattr(function, "__globals__", {})
    if any(getattr(known.get(n), "__name__", "").split(".")[0] == "torch" for n in names):
        return True
    notes = getattr(function, "__annotations__", {}).values()
    if any("torch" in str(note) or "Tensor" in str(note) for note in notes):
        return True
    return not any(getattr(v, "__name__", "") == "numpy" for v in known.values()) and any(
        getattr(v, "__name__", "") == "torch" for v in known.values()
    )


def call(function: Function, case: Case, torch_tensors: bool) -> Values | Failure:
    """The function's gradient on a case as float64, or why there is none."""
    before = [a.copy() for a in case.arguments]
    given: list[Any] = [a.copy() for a in case.arguments]
    shown = given
    if torch_tensors:
        import torch

        given = [torch.from_numpy(a) for a in given]
    try:
        result = function(*given)
    except Exception as error:  # whatever somebody's function raises is reported, not ours
        return Failure("raised", _raised(error, case))
    for name, old, new in zip(case.names, before, shown, strict=True):
        if not np.array_equal(old, new, equal_nan=old.dtype.kind == "f"):
            return Failure("argument", f"the function changes its argument {name} in place")
    return _checked(result, case)


def _raised(error: Exception, case: Case) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    line = frames[1] if len(frames) > 1 else None
    place = f" at line {line.lineno} ({line.line})" if line is not None else ""
    shapes = ", ".join(
        f"{n}{list(a.shape)}" for n, a in zip(case.names, case.arguments, strict=True)
    )
    return f"the function raised {type(error).__name__}: {error}{place}, given {shapes}"


def _checked(result: Any, case: Case) -> Values | Failure:
    want = case.expected
    if result is None:
        return Failure("nothing", "the function returned None", "there is no return")
    if isinstance(result, (tuple, list, dict)):
        return Failure(
            "kind",
            f"the function returned a {type(result).__name__} of {len(result)}, not one array",
        )
    if hasattr(result, "detach"):
        result = result.detach().cpu().numpy()
    try:
        array: Values = np.asarray(result)
    except ValueError as error:
        return Failure("kind", f"the function returned no array: {error}")
    if array.dtype.kind not in "fiu" or array.dtype == np.float16:
        return Failure(
            "dtype", f"the gradient has dtype {array.dtype}; expected float64 (or float32)"
        )
    array = array.astype(np.float64)
    if array.shape != want.shape:
        text = f"the gradient has shape {list(array.shape)}; expected {list(want.shape)}"
        return Failure("shape", text, _shape_fault(array, want, case.program))
    return array


def _shape_fault(got: Values, want: Values, program: Program) -> str:
    """What a wrong shape tells, when the numbers in it are those of the right gradient."""
    if got.size == want.size:
        if agree(got.reshape(want.shape), want):
            return "the numbers are right; only the shape is not: reshape it"
        if got.ndim == want.ndim:
            for order in itertools.permutations(range(want.ndim)):
                if agree(got.transpose(order), want):
                    moved = [d for d, o in enumerate(order) if d != o]
                    return f"axes {_and(moved)} of the gradient have changed places"
    for count in range(1, got.ndim + 1):
        for axes in itertools.combinations(range(got.ndim), count):
            total = got.sum(axis=axes)
            if total.size == want.size and agree(total.reshape(want.shape), want):
                return f"not summed over {_letters(axes, got, program)}"
    return ""


def _letters(axes: Sequence[int], got: Values, program: Program) -> str:
    """Axes by the letters of the output with the same extents, if it is of that shape."""
    stage = next(s for s in program.stages if program.outputs[0] in s.tensors)
    out = stage.pieces[0].outs[0]
    words = [f"axis {d}" for d in axes]
    if len(out.index) == got.ndim and tuple(out.tensor.shape) == got.shape:
        words = [str(out.index[d]) for d in axes]
    elif axes == (0,) and got.shape[0] == out.tensor.shape[0]:
        words = [str(out.index[0])]
    first = bool(out.index) and words[0] == str(out.index[0])
    return ", ".join(words) + (" (the batch)" if first and len(words) == 1 else "")


def _and(dims: Sequence[int]) -> str:
    return " and ".join(map(str, dims)) if len(dims) < 3 else ", ".join(map(str, dims))
