"""Batch normalization."""

from __future__ import annotations

from typing import Any, ClassVar

import sympy

from convgen.errors import ShapeError
from convgen.layers.base import ONES, ZEROS, Layer, ParameterSpec, Shape
from convgen.symbolic import dsl
from convgen.symbolic.program import Program
from convgen.types import DType, f32


class _BatchNorm(Layer):
    """Y = gamma * (X - mean) / sqrt(variance + eps) + beta over the batch and all positions, as in
    torch.nn: training uses the batch's biased variance and moves the running statistics by
    `momentum` (with the unbiased variance); inference uses the running statistics."""

    ranks: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats

    def parameters(self, *shapes: Shape) -> tuple[ParameterSpec, ...]:
        c = (self.num_features,)
        specs: list[ParameterSpec] = []
        if self.affine:
            specs += [
                ParameterSpec("weight", "gamma", c, ONES),
                ParameterSpec("bias", "beta", c, ZEROS),
            ]
        if self.track_running_stats:
            specs += [
                ParameterSpec("running_mean", "running_mean", c, ZEROS, trained=False),
                ParameterSpec("running_var", "running_var", c, ONES, trained=False),
            ]
        return tuple(specs)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if len(shape) not in self.ranks or shape[1] != self.num_features:
            raise ShapeError(
                f"{self!r}: input",
                expected=f"rank {' or '.join(map(str, self.ranks))}, {self.num_features} channels",
                got=str(list(shape)),
            )
        return shape

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape = self.output_shape(*shapes)
        n, c = dsl.axes("n c")
        spots = dsl.axes("d h w")[3 - len(shape) + 2 :] if len(shape) > 2 else ()
        index = (n, c, *spots)
        over = [n, *spots]
        x = dsl.tensor("X", shape, dtype)
        channel = (self.num_features,)
        gamma = dsl.tensor("gamma", channel, dtype, role="parameter") if self.affine else None
        beta = dsl.tensor("beta", channel, dtype, role="parameter") if self.affine else None
        eps = sympy.Rational(str(self.eps))
        batch_statistics = training or not self.track_running_stats
        if self.track_running_stats:
            running = dsl.tensor("running_mean", channel, dtype, role="state")
            spread = dsl.tensor("running_var", channel, dtype, role="state")
        if batch_statistics:
            count = x.elements // self.num_features
            if training and count < 2:
                raise ShapeError(
                    f"{self!r}: one value per channel", expected="a larger batch when training"
                )
            mean = dsl.define("mean", [c], dsl.sum_over(over, x[index]) / count)
            variance = dsl.define("var", [c], dsl.sum_over(over, (x[index] - mean[c]) ** 2) / count)
            at, scale = mean[c], variance[c]
        else:
            at, scale = running[c], spread[c]  # pyright: ignore[reportPossiblyUnboundVariable]
        body: Any = (x[index] - at) / sympy.sqrt(scale + eps)
        if gamma is not None and beta is not None:
            body = gamma[c] * body + beta[c]
        program = dsl.define("Y", index, body, name="batch_norm")
        if not (training and self.track_running_stats):
            return program
        m = sympy.Rational(str(self.momentum))
        unbiased = sympy.Rational(count, count - 1)  # pyright: ignore[reportPossiblyUnboundVariable]
        moved = [
            dsl.define("new_mean", [c], (1 - m) * running[c] + m * at),  # pyright: ignore
            dsl.define("new_var", [c], (1 - m) * spread[c] + m * unbiased * scale),  # pyright: ignore
        ]
        changes = {"running_mean": "new_mean", "running_var": "new_var"}
        return dsl.combine("batch_norm", [program, *moved], outputs=["Y"], updates=changes)


class BatchNorm1d(_BatchNorm):
    """Batch normalization of (N, C) or (N, C, L), torch.nn.BatchNorm1d."""

    ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Batch normalization of (N, C, H, W), torch.nn.BatchNorm2d."""

    ranks = (4,)


class BatchNorm3d(_BatchNorm):
    """Batch normalization of (N, C, D, H, W), torch.nn.BatchNorm3d."""

    ranks = (5,)
