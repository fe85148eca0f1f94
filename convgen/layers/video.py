"""Space-time factorised convolution over video tensors (N, C, T, H, W)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from convgen.layers.base import (
    Layer,
    ParameterSpec,
    Shape,
    expect_channels,
    expect_rank,
    kaiming_uniform,
    per_dimension,
)
from convgen.layers.convolution import Conv3d
from convgen.symbolic import dsl
from convgen.symbolic.program import Program
from convgen.types import DType, f32


class SpaceTimeConv3d(Layer):
    """A 1 x k x k convolution over space, then a t x 1 x 1 convolution over time (STUNet), without
    anything between them. `mid_channels` (default: out_channels) lie between the two; stride and
    padding are (time, height, width); the bias stands behind the second.

    >>> SpaceTimeConv3d(3, 8, 3, 5, stride=(2, 1, 1), padding=(2, 1, 1)).output_shape(
    ...     (1, 3, 16, 12, 12))
    (1, 8, 8, 12, 12)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        time_kernel: int,
        mid_channels: int | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        bias: bool = True,
    ) -> None:
        self.in_channels, self.out_channels, self.bias = in_channels, out_channels, bias
        self.mid_channels = mid_channels
        self.kernel_size = per_dimension(kernel_size, 2, "kernel_size")
        self.time_kernel = time_kernel
        self.stride = per_dimension(stride, 3, "stride")
        self.padding = per_dimension(padding, 3, "padding")
        middle = out_channels if mid_channels is None else mid_channels
        (st, sy, sx), (pt, py, px) = self.stride, self.padding
        self._space = Conv3d(
            in_channels, middle, (1, *self.kernel_size), (1, sy, sx), (0, py, px), bias=False
        )
        self._time = Conv3d(middle, out_channels, (time_kernel, 1, 1), (st, 1, 1), (pt, 0, 0))

    def parameters(self, *shapes: Shape) -> tuple[ParameterSpec, ...]:
        space, time = self._space.weight_shape, self._time.weight_shape
        fans = [kaiming_uniform(math.prod(s[1:])) for s in (space, time)]
        specs = [
            ParameterSpec("space_weight", "W", space, fans[0]),
            ParameterSpec("time_weight", "V", time, fans[1]),
        ]
        if self.bias:
            specs.append(ParameterSpec("bias", "b", (self.out_channels,), fans[1]))
        return tuple(specs)

    def _middle(self, shape: Shape) -> Shape:
        expect_rank(self, shape, 5, "(N, C, T, H, W)")
        expect_channels(self, shape, self.in_channels)
        return self._space.output_shape(shape)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        return self._time.output_shape(self._middle(shape))

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        middle, out = self._middle(shape), self.output_shape(shape)
        n, k, m, c, t, y, x, q, r, s = dsl.axes("n k m c t y x q r s")
        source = dsl.tensor("X", shape, dtype)
        w = dsl.tensor("W", self._space.weight_shape, dtype, role="parameter")
        v = dsl.tensor("V", self._time.weight_shape, dtype, role="parameter")
        (st, sy, sx), (pt, py, px) = self.stride, self.padding
        space = dsl.define(
            "S",
            [n, m, t, y, x],
            dsl.sum_over(
                [c, r, s], source[n, c, t, sy * y + r - py, sx * x + s - px] * w[m, c, 0, r, s]
            ),
            extents=dict(zip((n, m, t, y, x), middle, strict=True)),
        )
        body: Any = dsl.sum_over([m, q], space[n, m, st * t + q - pt, y, x] * v[k, m, q, 0, 0])
        if self.bias:
            body = body + dsl.tensor("b", (self.out_channels,), dtype, role="parameter")[k]
        extents = dict(zip((n, k, t, y, x), out, strict=True))
        return dsl.define("Y", [n, k, t, y, x], body, extents=extents, name="space_time")

    def multiply_adds(self, *shapes: Shape) -> int:
        (shape,) = shapes
        return self._space.multiply_adds(shape) + self._time.multiply_adds(self._middle(shape))
