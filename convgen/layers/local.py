"""Weights that depend on the position: locally connected and tiled layers, bias per position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from convgen.errors import ShapeError
from convgen.layers.arithmetic import output_size
from convgen.layers.base import (
    ZEROS,
    Layer,
    ParameterSpec,
    Shape,
    expect_channels,
    expect_rank,
    kaiming_uniform,
    per_dimension,
    positive,
)
from convgen.layers.convolution import POSITIONS, TAPS, padding_sides
from convgen.symbolic import dsl
from convgen.symbolic.program import Program
from convgen.types import DType, f32


class PositionBias(Layer):
    """Y[n, k, y, x] = X[n, k, y, x] + b[k, y, x]: a bias for every position (AlphaGo's last layer).

    >>> PositionBias(1, 19, 19).parameters((8, 1, 19, 19))[0].shape
    (1, 19, 19)
    """

    def __init__(self, *shape: int) -> None:
        self.shape = positive(shape, "shape of PositionBias")

    def parameters(self, *shapes: Shape) -> tuple[ParameterSpec, ...]:
        return (ParameterSpec("bias", "b", self.shape, ZEROS),)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if shape[1:] != self.shape:
            raise ShapeError(
                f"{self!r}: input", expected=f"(N, {', '.join(map(str, self.shape))})",
                got=str(list(shape)),
            )  # fmt: skip
        return shape

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape = self.output_shape(*shapes)
        index = dsl.axes("n " + " ".join(f"i{d}" for d in range(len(self.shape))))
        x = dsl.tensor("X", shape, dtype)
        b = dsl.tensor("b", self.shape, dtype, role="parameter")
        return dsl.define("Y", index, x[index] + b[index[1:]], name="position_bias")


class _Local(Layer):
    """Shared by the layers whose weights are W[tile, k, c, tap]."""

    rank: ClassVar[int]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    bias: bool

    def _set(
        self,
        channels: tuple[int, int],
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        padding: Any,
        bias: bool,
    ) -> None:
        self.in_channels, self.out_channels = positive(channels, "channels")
        self.kernel_size = positive(
            per_dimension(kernel_size, self.rank, "kernel_size"), "kernel_size"
        )
        self.stride = positive(per_dimension(stride, self.rank, "stride"), "stride")
        self.padding = padding if isinstance(padding, (int, str)) else tuple(padding)
        self.sides = padding_sides(padding, self.kernel_size, self.stride, (1,) * self.rank)
        self.bias = bias

    def tiles(self, outs: tuple[int, ...]) -> tuple[int, ...]:
        """How many different weights there are in each dimension, for that output size."""
        raise TypeError(f"{type(self).__name__} gives no tiles")

    def _sizes(self, shape: Shape) -> tuple[int, ...]:
        expect_rank(self, shape, self.rank + 2, f"(N, C, {self.rank} spatial extents)")
        expect_channels(self, shape, self.in_channels)
        outs = tuple(
            output_size(i, k, s, 1, *p)
            for i, k, s, p in zip(shape[2:], self.kernel_size, self.stride, self.sides, strict=True)
        )
        for size, kernel, out, pads in zip(
            shape[2:], self.kernel_size, outs, self.sides, strict=True
        ):
            if out < 1:
                raise ShapeError(
                    f"{self!r}: the kernel is larger than the padded input",
                    expected=f"at least {kernel}",
                    got=f"{size} + {sum(pads)}",
                )
        return outs

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        return (shape[0], self.out_channels, *self._sizes(shape))

    def _shapes(self, shape: Shape) -> tuple[Shape, Shape]:
        """(weight, bias) shapes."""
        outs = self._sizes(shape)
        weight = (*self.tiles(outs), self.out_channels, self.in_channels, *self.kernel_size)
        return weight, (self.out_channels, *self.tiles(outs))

    def parameters(self, *shapes: Shape) -> tuple[ParameterSpec, ...]:
        weight, bias = self._shapes(*shapes)
        start = kaiming_uniform(self.in_channels * math.prod(self.kernel_size))
        specs = [ParameterSpec("weight", "W", weight, start)]
        if self.bias:
            specs.append(ParameterSpec("bias", "b", bias, start))
        return tuple(specs)

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        outs = self._sizes(shape)
        weight, bias = self._shapes(shape)
        n, k, c = dsl.axes("n k c")
        places = dsl.axes(" ".join(POSITIONS[3 - self.rank :]))
        taps = dsl.axes(" ".join(TAPS[3 - self.rank :]))
        x = dsl.tensor("X", shape, dtype)
        w = dsl.tensor("W", weight, dtype, role="parameter")
        index = [
            s * y + r - before
            for s, y, r, (before, _) in zip(self.stride, places, taps, self.sides, strict=True)
        ]
        tile = [
            y if t >= o else y % t for y, t, o in zip(places, self.tiles(outs), outs, strict=True)
        ]
        body: Any = dsl.sum_over([c, *taps], x[(n, c, *index)] * w[(*tile, k, c, *taps)])
        if self.bias:
            body = body + dsl.tensor("b", bias, dtype, role="parameter")[(k, *tile)]
        extents = dict(zip(places, outs, strict=True)) | {n: shape[0]}
        return dsl.define("Y", [n, k, *places], body, extents=extents, name="local")

    def multiply_adds(self, *shapes: Shape) -> int:
        return (
            math.prod(self.output_shape(*shapes)) * self.in_channels * math.prod(self.kernel_size)
        )


class _LocallyConnected(_Local):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        bias: bool = True,
    ) -> None:
        self._set((in_channels, out_channels), kernel_size, stride, padding, bias)

    def tiles(self, outs: tuple[int, ...]) -> tuple[int, ...]:
        return outs


class LocallyConnected1d(_LocallyConnected):
    """A kernel of its own for every position of (N, C, W), with a bias for each."""

    rank = 1


class LocallyConnected2d(_LocallyConnected):
    """Y[n,k,y,x] = sum(c,r,s: X[n, c, stride*y + r - pad, ...] * W[y,x,k,c,r,s]) + b[k,y,x].

    >>> LocallyConnected2d(1, 1, 10, padding="same").parameters((1, 1, 200, 200))[0].shape
    (200, 200, 1, 1, 10, 10)
    """

    rank = 2


class LocallyConnected3d(_LocallyConnected):
    """A kernel of its own for every position of (N, C, D, H, W)."""

    rank = 3


class _Tiled(_Local):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        period: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        bias: bool = True,
    ) -> None:
        self._set((in_channels, out_channels), kernel_size, stride, padding, bias)
        self.period = positive(per_dimension(period, self.rank, "period"), "period")

    def tiles(self, outs: tuple[int, ...]) -> tuple[int, ...]:
        return self.period


class TiledConv1d(_Tiled):
    """Weights that repeat with a period over the positions of (N, C, W)."""

    rank = 1


class TiledConv2d(_Tiled):
    """Y[n,k,y,x] = sum(c,r,s: X[n, c, stride*y + r - pad, ...] * W[y % T, x % T, k, c, r, s]) +
    b[k, y % T, x % T] (Le et al., 2010): period 1 is convolution, the map's size locally connected.
    """

    rank = 2


class TiledConv3d(_Tiled):
    """Weights that repeat with a period over the positions of (N, C, D, H, W)."""

    rank = 3
