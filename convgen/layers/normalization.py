"""Batch, group, layer and instance normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import sympy

from convgen.errors import ShapeError
from convgen.layers.base import ONES, ZEROS, Layer, ParameterSpec, Shape, expect_channels
from convgen.symbolic import dsl
from convgen.symbolic.functions import exact
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
        eps = exact(self.eps)
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
        m = exact(self.momentum)
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


def _affine(shape: Shape, weight: bool = True, bias: bool = True) -> tuple[ParameterSpec, ...]:
    specs = [ParameterSpec("weight", "gamma", shape, ONES)] if weight else []
    return (*specs, ParameterSpec("bias", "beta", shape, ZEROS)) if bias else tuple(specs)


class GroupNorm(Layer):
    """Y = gamma * (X - mean) / sqrt(variance + eps) + beta over the channels of a group and all
    positions of a sample, torch.nn.GroupNorm: input (N, C, *spatial)."""

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True
    ) -> None:
        if num_groups < 1 or num_channels < 1 or num_channels % num_groups:
            raise ShapeError(
                f"GroupNorm: num_groups={num_groups} does not divide the channels",
                expected="a positive divisor of num_channels",
                got=f"num_channels={num_channels}",
            )
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.affine = affine

    def parameters(self, *shapes: Shape) -> tuple[ParameterSpec, ...]:
        return _affine((self.num_channels,)) if self.affine else ()

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        expect_channels(self, shape, self.num_channels)
        return shape

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape = self.output_shape(*shapes)
        n, g, c, *spots = dsl.axes(" ".join(["n g c", *(f"i{d}" for d in range(len(shape) - 2))]))
        per = self.num_channels // self.num_groups
        x = dsl.tensor("X", shape, dtype)
        channel: Any = per * g + c if per > 1 else g
        over = [c, *spots] if per > 1 else list(spots)
        index = (n, channel, *spots)
        extents = {g: self.num_groups} | ({c: per} if per > 1 else {})
        inner = {a: e for a, e in extents.items() if a in over}
        count = max(per * x.elements // max(shape[0] * self.num_channels, 1), 1)

        def mean_of(name: str, body: Any) -> Program:
            total = dsl.sum_over(over, body, extents=inner) if over else body
            return dsl.define(name, [n, g], total / count, extents={g: self.num_groups})

        mean = mean_of("mean", x[index])
        variance = mean_of("var", (x[index] - mean[n, g]) ** 2)
        eps = exact(self.eps)
        body: Any = (x[index] - mean[n, g]) / sympy.sqrt(variance[n, g] + eps)
        if self.affine:
            channels = (self.num_channels,)
            gamma = dsl.tensor("gamma", channels, dtype, role="parameter")
            beta = dsl.tensor("beta", channels, dtype, role="parameter")
            body = gamma[channel] * body + beta[channel]
        return dsl.define("Y", index, body, extents=extents, shape=shape, name="group_norm")


class LayerNorm(Layer):
    """(X - mean) / sqrt(variance + eps) over the last dimensions, times weight plus bias,
    torch.nn.LayerNorm: input (*, *normalized_shape).

    >>> LayerNorm((3, 5)).output_shape((2, 3, 5))
    (2, 3, 5)
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        single = isinstance(normalized_shape, int)
        self.normalized_shape = (normalized_shape,) if single else tuple(normalized_shape)  # type: ignore[arg-type]
        if not self.normalized_shape or min(self.normalized_shape) < 1:
            raise ShapeError(
                f"LayerNorm normalized_shape={normalized_shape!r}", expected="integers >= 1"
            )
        self.eps, self.elementwise_affine, self.bias = eps, elementwise_affine, bias

    def __repr__(self) -> str:
        rest = "" if self.elementwise_affine else ", elementwise_affine=False"
        rest += "" if self.bias else ", bias=False"
        return f"LayerNorm({self.normalized_shape!r}, eps={self.eps!r}{rest})"

    def parameters(self, *shapes: Shape) -> tuple[ParameterSpec, ...]:
        on = self.elementwise_affine
        return _affine(self.normalized_shape, on, on and self.bias)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        last = self.normalized_shape
        if shape[-len(last) :] != last:
            raise ShapeError(
                f"{self!r}: input",
                expected=f"(*, {', '.join(map(str, last))})",
                got=str(list(shape)),
            )
        return shape

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape = self.output_shape(*shapes)
        lead = len(shape) - len(self.normalized_shape)
        index = dsl.axes(" ".join(f"i{d}" for d in range(len(shape))))
        outer, inner = index[:lead], index[lead:]
        x = dsl.tensor("X", shape, dtype)
        count = 1
        for extent in self.normalized_shape:
            count *= extent
        mean = dsl.define("mean", outer, dsl.sum_over(list(inner), x[index]) / count)
        spread = dsl.sum_over(list(inner), (x[index] - mean[outer]) ** 2) / count
        variance = dsl.define("var", outer, spread)
        eps = exact(self.eps)
        body: Any = (x[index] - mean[outer]) / sympy.sqrt(variance[outer] + eps)
        names = [s.tensor for s in self.parameters(shape)]
        tensors = {
            name: dsl.tensor(name, self.normalized_shape, dtype, role="parameter")[inner]
            for name in names
        }
        body = body * tensors.get("gamma", 1) + tensors.get("beta", 0)
        return dsl.define("Y", index, body, shape=shape, name="layer_norm")


class _InstanceNorm(Layer):
    """(X - mean) / sqrt(variance + eps) over the positions of each map, as torch.nn's: without
    learned scale and running statistics unless asked for."""

    rank: ClassVar[int]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
    ) -> None:
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats

    def parameters(self, *shapes: Shape) -> tuple[ParameterSpec, ...]:
        c = (self.num_features,)
        specs = _affine(c) if self.affine else ()
        if self.track_running_stats:
            specs += (
                ParameterSpec("running_mean", "running_mean", c, ZEROS, trained=False),
                ParameterSpec("running_var", "running_var", c, ONES, trained=False),
            )
        return specs

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if len(shape) != self.rank + 2 or shape[1] != self.num_features:
            raise ShapeError(
                f"{self!r}: input",
                expected=f"(N, {self.num_features}, {self.rank} spatial extents)",
                got=str(list(shape)),
            )
        return shape

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape = self.output_shape(*shapes)
        n, c, *spots = dsl.axes("n c " + " ".join(("d", "h", "w")[3 - self.rank :]))
        index = (n, c, *spots)
        x = dsl.tensor("X", shape, dtype)
        channel = (self.num_features,)
        own = training or not self.track_running_stats
        count = max(x.elements // max(shape[0] * self.num_features, 1), 1)
        if own and training and count < 2:
            raise ShapeError(f"{self!r}: one value per map", expected="larger maps when training")
        mean = dsl.define("mean", [n, c], dsl.sum_over(spots, x[index]) / count)
        spread = dsl.sum_over(spots, (x[index] - mean[n, c]) ** 2) / count
        variance = dsl.define("var", [n, c], spread)
        at: Any = mean[n, c]
        scale: Any = variance[n, c]
        running, moved_from = (
            (dsl.tensor(name, channel, dtype, role="state")[c] for name in _RUNNING)
            if self.track_running_stats
            else (None, None)
        )
        if not own:
            at, scale = running, moved_from
        eps = exact(self.eps)
        body: Any = (x[index] - at) / sympy.sqrt(scale + eps)
        if self.affine:
            gamma = dsl.tensor("gamma", channel, dtype, role="parameter")
            beta = dsl.tensor("beta", channel, dtype, role="parameter")
            body = gamma[c] * body + beta[c]
        program = dsl.define("Y", index, body, name="instance_norm")
        if not (training and self.track_running_stats):
            return program
        m = exact(self.momentum)
        batch, unbiased = max(shape[0], 1), sympy.Rational(count, count - 1)
        means = [
            dsl.define("new_mean", [c], (1 - m) * running + m * dsl.sum_over([n], at) / batch),
            dsl.define(
                "new_var",
                [c],
                (1 - m) * moved_from + m * unbiased * dsl.sum_over([n], scale) / batch,
            ),
        ]
        changes = {"running_mean": "new_mean", "running_var": "new_var"}
        return dsl.combine("instance_norm", [program, *means], outputs=["Y"], updates=changes)


_RUNNING = ("running_mean", "running_var")


class InstanceNorm1d(_InstanceNorm):
    """Instance normalization of (N, C, L), torch.nn.InstanceNorm1d."""

    rank = 1


class InstanceNorm2d(_InstanceNorm):
    """Instance normalization of (N, C, H, W), torch.nn.InstanceNorm2d."""

    rank = 2


class InstanceNorm3d(_InstanceNorm):
    """Instance normalization of (N, C, D, H, W), torch.nn.InstanceNorm3d."""

    rank = 3
