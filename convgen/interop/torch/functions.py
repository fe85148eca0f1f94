"""Programs as functions on tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convgen.errors import DataError, ShapeError
from convgen.interop.torch.operator import Operator, operator
from convgen.interop.torch.recipe import Options, ProgramFamily, torch_dtype
from convgen.schedule.schedule import Schedule
from convgen.symbolic.program import Program
from convgen.target import Target
from convgen.target import target as target_of


class Function:
    """A program as a differentiable function on CPU tensors; made by `function`.

    `op` is the operator in torch.ops.convgen; its last argument, save, has a bit for each input
    whose gradient will be asked for, and its last result is what the backward reads.
    """

    def __init__(self, program: Program, operator: Operator) -> None:
        self.program = program
        self.op = operator.op
        self._operator = operator
        self._numbers = {
            i: torch_dtype(t.dtype) for i, t in enumerate(program.inputs) if not t.shape
        }
        self._states = operator.family.states
        self._results = operator.family.results

    def __call__(self, *inputs: Any) -> Any:
        """The outputs: one tensor, or a tuple of several. States are changed in place. DataError
        for a wrong number of inputs, wrong dtypes or shapes, and for what is no tensor."""
        tensors = self._checked(inputs)
        results = self._operator(*tensors)
        for i, new in zip(self._states, results[self._results :], strict=True):
            with torch.no_grad():
                tensors[i].copy_(new)
        return results[0] if self._results == 1 else results[: self._results] or None

    def _checked(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        names = self._operator.family.inputs
        if len(inputs) != len(names):
            raise DataError(
                "wrong number of inputs",
                expected=f"{len(names)}: {', '.join(names)}",
                got=str(len(inputs)),
                where=self.program.name,
            )
        if all(isinstance(t, Tensor) and t.is_cpu for t in inputs):
            return list(inputs)
        tensors: list[Tensor] = []
        for i, value in enumerate(inputs):
            if not isinstance(value, Tensor):
                if i not in self._numbers or not isinstance(value, (int, float)):
                    raise DataError(
                        f"{names[i]} is no tensor",
                        expected="a torch.Tensor",
                        got=type(value).__name__,
                        where=self.program.name,
                    )
                value = torch.tensor(value, dtype=self._numbers[i])
            elif value.device.type not in ("cpu", "meta"):
                raise DataError(
                    f"{names[i]} is on another device",
                    expected="cpu",
                    got=str(value.device),
                    where=self.program.name,
                    hint=f"{names[i]}.cpu()",
                )
            tensors.append(value)
        return tensors

    def __reduce__(self) -> Any:
        return Function, (self.program, self._operator)

    def __repr__(self) -> str:
        return f"<torch function {self.program.name}: convgen::{self._operator.name}>"


def function(
    program: Program,
    schedule: Schedule | str | None = None,
    target: Target | str = "native",
    threads: int | None = None,
) -> Function:
    """A program as a function on torch tensors, without copies, with derived gradients.

    Gradients come from `split(program)`; gradients of gradients from the derivative of the derived
    program. Works under torch.compile, torch.export, gradcheck and opcheck. Symbolic sizes are
    read off the tensors; each combination is compiled once. A schedule is for the forward kernel.

    >>> import torch
    >>> from convgen.symbolic.dsl import axes, define, sum_over, tensor
    >>> i, j = axes("i j")
    >>> A, v = tensor("A", (2, 3)), tensor("v", (3,))
    >>> f = function(define("y", [i], sum_over(j, A[i, j] * v[j])))
    >>> v = torch.ones(3, requires_grad=True)
    >>> f(torch.tensor([[1., 2, 3], [4, 5, 6]]), v).sum().backward()
    >>> v.grad
    tensor([5., 7., 9.])
    """
    if not isinstance(program, Program):  # pyright: ignore[reportUnnecessaryIsInstance]
        hint = "cg.parse(text)" if isinstance(program, str) else "cg.torch.Module"
        raise ShapeError("function() takes a program", got=repr(program), hint=hint)
    text = None if schedule is None else str(schedule)
    options = Options(target_of(target), threads, text)
    return Function(program, operator(ProgramFamily(program), options))
