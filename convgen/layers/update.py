"""Optimizer steps as formulas over flat vectors of parameters.

Each optimizer gives a Program with inputs P (parameters), G (gradients), its states, and scalar
hyperparameters; the updates replace P and the states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import sympy

from convgen.errors import ShapeError
from convgen.symbolic import dsl
from convgen.symbolic.expr import Tensor
from convgen.symbolic.functions import exact, minimum
from convgen.symbolic.program import Program
from convgen.types import DType, f32


class Optimizer:
    """Base of optimizers. `states`: names of vectors kept beside the parameters (start at zero);
    `hyper`: names of scalar inputs, whose values `values(step)` gives for step 1, 2, ...
    `clip_norm`: the gradient of all parameters together is scaled down to that Euclidean norm where
    it is longer (torch.nn.utils.clip_grad_norm_).
    """

    states: tuple[str, ...] = ()
    hyper: tuple[str, ...] = ("lr",)

    def __init__(self, lr: float, clip_norm: float | None = None) -> None:
        _check("learning rate", lr)
        if clip_norm is not None and not clip_norm > 0:
            raise ShapeError(f"clip_norm {clip_norm}", expected="a number > 0, or None")
        self.lr, self.clip_norm = lr, clip_norm

    def values(self, step: int) -> dict[str, float]:
        """Values of the scalar inputs at that step (counted from 1)."""
        return {"lr": self.lr}

    def program(self, count: int, dtype: DType = f32) -> Program:
        """The step for `count` parameters."""
        raise TypeError(f"{type(self).__name__} gives no formula")

    def _tensors(self, count: int, dtype: DType) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """(gradient, vectors by name, scalars by name), each read at i; the gradient clipped."""
        i, j = dsl.axes("i j")
        vectors: dict[str, Tensor] = {"P": dsl.tensor("P", (count,), dtype, role="state")}
        gradient = dsl.tensor("G", (count,), dtype)
        for name in self.states:
            vectors[name] = dsl.tensor(name, (count,), dtype, role="state")
        scalars = {name: dsl.tensor(name, (), dtype)[()] for name in self.hyper}
        slope: Any = gradient[i]
        if self.clip_norm is not None:
            square = dsl.define("square", [], dsl.sum_over([j], gradient[j] ** 2))
            shrink = exact(self.clip_norm) / (sympy.sqrt(square[()]) + exact(1e-6))
            scale = dsl.define("scale", [], minimum(1, shrink))
            slope = slope * scale[()]
        return slope, {n: t[i] for n, t in vectors.items()}, scalars


def _step(name: str, states: Mapping[str, Program]) -> Program:
    """One program in which every state takes the value that its program computes."""
    changes = {state: program.output.name for state, program in states.items()}
    return dsl.combine(name, list(states.values()), outputs=[], updates=changes)


def _check(name: str, value: float, below: float = math.inf) -> None:
    """Refuse what torch refuses: negative numbers, those that are none or too large."""
    if not 0 <= value < below:
        wanted = "a number >= 0" if below == math.inf else f"a number from 0 to below {below:g}"
        raise ShapeError(f"{name} {value}", expected=wanted)


class SGD(Optimizer):
    """torch.optim.SGD: g = G + weight_decay*P; V = momentum*V + (1 - dampening)*g;
    P = P - lr*(V, or g + momentum*V with nesterov). V starts at zero (torch starts at the first
    g, which is the same without dampening)."""

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(lr, clip_norm)
        _check("momentum", momentum)
        _check("weight_decay", weight_decay)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ShapeError("Nesterov momentum", expected="momentum > 0 and dampening 0")
        self.momentum, self.dampening = momentum, dampening
        self.weight_decay, self.nesterov = weight_decay, nesterov
        self.states = ("V",) if momentum else ()

    def program(self, count: int, dtype: DType = f32) -> Program:
        gradient, vectors, scalars = self._tensors(count, dtype)
        p, lr = vectors["P"], scalars["lr"]
        g = gradient + exact(self.weight_decay) * p
        (i,) = dsl.axes("i")
        if not self.momentum:
            return _step("sgd", {"P": dsl.define("P_new", [i], p - lr * g)})
        mu = exact(self.momentum)
        velocity = dsl.define("V_new", [i], mu * vectors["V"] + (1 - exact(self.dampening)) * g)
        step = g + mu * velocity[i] if self.nesterov else velocity[i]
        moved = dsl.define("P_new", [i], p - lr * step)
        return _step("sgd", {"V": velocity, "P": moved})


class Adam(Optimizer):
    """torch.optim.Adam (Kingma and Ba, 2015): M = b1*M + (1-b1)*g; V = b2*V + (1-b2)*g^2;
    P = P - lr * (M / c1) / (sqrt(V / c2) + eps), c = 1 - b^step."""

    states = ("M", "V")
    hyper = ("lr", "c1", "c2")

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(lr, clip_norm)
        for beta in betas:
            _check("beta", beta, below=1.0)
        _check("eps", eps)
        _check("weight_decay", weight_decay)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    def values(self, step: int) -> dict[str, float]:
        return {"lr": self.lr, "c1": 1 - self.betas[0] ** step, "c2": 1 - self.betas[1] ** step}

    def program(self, count: int, dtype: DType = f32) -> Program:
        gradient, vectors, scalars = self._tensors(count, dtype)
        (i,) = dsl.axes("i")
        first, second = (exact(b) for b in self.betas)
        p, g = self.decayed(vectors["P"], gradient, scalars["lr"])
        mean = dsl.define("M_new", [i], first * vectors["M"] + (1 - first) * g)
        square = dsl.define("V_new", [i], second * vectors["V"] + (1 - second) * g**2)
        root = sympy.sqrt(square[i] / scalars["c2"]) + exact(self.eps)
        step = scalars["lr"] * (mean[i] / scalars["c1"]) / root
        return _step("adam", {"M": mean, "V": square, "P": dsl.define("P_new", [i], p - step)})

    def decayed(self, p: Any, g: Any, lr: Any) -> tuple[Any, Any]:
        """(parameter, gradient) after weight decay, which Adam adds to the gradient."""
        return p, g + exact(self.weight_decay) * p


class AdamW(Adam):
    """torch.optim.AdamW (Loshchilov and Hutter, 2019): Adam whose weight decay shrinks the
    parameters themselves, P = P * (1 - lr*weight_decay), and leaves the gradient alone."""

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, clip_norm)

    def decayed(self, p: Any, g: Any, lr: Any) -> tuple[Any, Any]:
        return p * (1 - lr * exact(self.weight_decay)), g
