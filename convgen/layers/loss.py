"""Losses: programs of predictions X and targets T with one scalar output."""

from __future__ import annotations

from typing import Any

from convgen.errors import ShapeError
from convgen.layers.base import Layer, Shape
from convgen.symbolic import dsl
from convgen.symbolic.functions import equal, select
from convgen.symbolic.program import Program
from convgen.types import DType, f32, i64


class Loss(Layer):
    """Base of losses. `labels` True: the target is a class number for each row (i64)."""

    labels = False

    def inputs(self, *shapes: Shape) -> tuple[str, ...]:
        return ("X", "T")

    def output_shape(self, *shapes: Shape) -> Shape:
        return ()

    def target_shape(self, shape: Shape) -> Shape:
        """Shape of the target for predictions of that shape."""
        return shape


class CrossEntropyLoss(Loss):
    """mean over n of logsumexp(k: X[n, k]) - X[n, T[n]], torch.nn.CrossEntropyLoss on (N, K)."""

    labels = True

    def target_shape(self, shape: Shape) -> Shape:
        if len(shape) != 2:
            raise ShapeError(
                "CrossEntropyLoss: predictions", expected="(N, classes)", got=str(list(shape))
            )
        return shape[:1]

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape = shapes[0]
        n, k = dsl.axes("n k")
        x = dsl.tensor("X", shape, dtype)
        t = dsl.tensor("T", self.target_shape(shape), i64)
        rows = dsl.define(
            "L",
            [n],
            dsl.logsumexp_over([k], x[n, k])
            - dsl.sum_over([k], select(equal(t[n], k), x[n, k], 0)),
        )
        return dsl.define("loss", [], dsl.sum_over([n], rows[n]) / shape[0], name="cross_entropy")


class MSELoss(Loss):
    """mean of (X - T)^2 over all elements, torch.nn.MSELoss."""

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape = shapes[0]
        index: Any = dsl.axes(" ".join(f"i{d}" for d in range(len(shape))))
        x, t = dsl.tensor("X", shape, dtype), dsl.tensor("T", shape, dtype)
        body = dsl.sum_over(list(index), (x[index] - t[index]) ** 2) / max(x.elements, 1)
        return dsl.define("loss", [], body, name="mse")
