"""Layers that no library ships: involution, correlation, capsules, max-plus and L1 convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from convgen.errors import ShapeError
from convgen.layers.arithmetic import output_size
from convgen.layers.base import (
    ZEROS,
    Initializer,
    Layer,
    ParameterSpec,
    Shape,
    expect_channels,
    expect_rank,
    kaiming_uniform,
    per_dimension,
    positive,
)
from convgen.layers.convolution import check_groups, padding_sides
from convgen.symbolic import dsl
from convgen.symbolic.boundary import OMIT, ZERO, Boundary
from convgen.symbolic.functions import abs_
from convgen.symbolic.program import Program
from convgen.types import DType, f32


class _Windows(Layer):
    """Shared: windows over the last two dimensions, with kernel_size, stride, padding, dilation."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Any
    sides: tuple[tuple[int, int], ...]

    def _set(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        padding: Any,
        dilation: int | Sequence[int] = 1,
    ) -> None:
        self.kernel_size = positive(per_dimension(kernel_size, 2, "kernel_size"), "kernel_size")
        self.stride = positive(per_dimension(stride, 2, "stride"), "stride")
        self.dilation = positive(per_dimension(dilation, 2, "dilation"), "dilation")
        self.padding = padding if isinstance(padding, (int, str)) else tuple(padding)
        self.sides = padding_sides(padding, self.kernel_size, self.stride, self.dilation)

    def _sizes(self, shape: Shape) -> tuple[int, ...]:
        sizes: list[int] = []
        for i, k, s, d, p in zip(
            shape[-2:], self.kernel_size, self.stride, self.dilation, self.sides, strict=True
        ):
            size = output_size(i, k, s, d, *p)
            if size < 1:
                raise ShapeError(
                    f"{self!r}: the kernel is larger than the padded input",
                    expected=f"at least {d * (k - 1) + 1}",
                    got=f"{i} + {sum(p)}",
                )
            sizes.append(size)
        return tuple(sizes)

    def _index(self, places: Sequence[Any], taps: Sequence[Any]) -> list[Any]:
        """stride*y + dil*r - pad for both dimensions."""
        return [
            s * y + d * r - before
            for s, y, d, r, (before, _) in zip(
                self.stride, places, self.dilation, taps, self.sides, strict=True
            )
        ]


class Involution2d(_Windows):
    """Y[n, (C/G)*g + c, y, x] = sum(r, s: X[n, (C/G)*g + c, stride*y + dil*r - pad, ...] *
    K[n, (R*S)*g + S*r + s, y, x]) (Li et al., 2021).

    Inputs X (N, C, H, W) and the kernels K (N, groups*R*S, Y, X) of every position, which other
    layers make from X.

    >>> Involution2d(3, padding=1, groups=2).output_shape((1, 8, 7, 5), (1, 18, 7, 5))
    (1, 8, 7, 5)
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> None:
        self._set(kernel_size, stride, padding, dilation)
        (self.groups,) = positive((groups,), "groups")

    def inputs(self, *shapes: Shape) -> tuple[str, ...]:
        return ("X", "K")

    def output_shape(self, *shapes: Shape) -> Shape:
        shape = shapes[0]
        expect_rank(self, shape, 4, "(N, C, H, W)")
        if shape[1] % self.groups:
            raise ShapeError(f"{self!r}: groups", expected=f"a divisor of {shape[1]} channels")
        outs = self._sizes(shape)
        kernels = (shape[0], self.groups * math.prod(self.kernel_size), *outs)
        if len(shapes) != 2 or shapes[1] != kernels:
            raise ShapeError(
                f"{self!r}: values and kernels",
                expected=f"{list(shape)} and {list(kernels)}",
                got=" and ".join(str(list(s)) for s in shapes),
            )
        return (*shape[:2], *outs)

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape, out = shapes[0], self.output_shape(*shapes)
        n, g, c, y, x, r, s = dsl.axes("n g c y x r s")
        rows, cols = self.kernel_size
        per = shape[1] // self.groups
        channel: Any = per * g + c if self.groups > 1 else c
        tap: Any = cols * r + s + (rows * cols * g if self.groups > 1 else 0)
        source = dsl.tensor("X", shape, dtype)[(n, channel, *self._index((y, x), (r, s)))]
        kernel = dsl.tensor("K", shapes[1], dtype)[n, tap, y, x]
        body = dsl.sum_over([r, s], source * kernel, extents={r: rows, s: cols})
        extents = {n: shape[0], c: per, y: out[2], x: out[3]}
        extents |= {g: self.groups} if self.groups > 1 else {}
        at = [n, channel, y, x]
        return dsl.define("Y", at, body, extents=extents, shape=out, name="involution")

    def multiply_adds(self, *shapes: Shape) -> int:
        return math.prod(self.output_shape(*shapes)) * math.prod(self.kernel_size)


class Correlation(Layer):
    """The cost volume of two maps (FlowNet): Y[n, (2D+1)*i + j, y, x] =
    sum(c: A[n, c, y, x] * B[n, c, y + step*(i-D), x + step*(j-D)]) / C, zeros outside.

    >>> Correlation(2).output_shape((1, 8, 7, 5), (1, 8, 7, 5))
    (1, 25, 7, 5)
    """

    def __init__(self, max_displacement: int, step: int = 1) -> None:
        (self.max_displacement,) = positive((max_displacement,), "max_displacement", least=0)
        (self.step,) = positive((step,), "step")

    def inputs(self, *shapes: Shape) -> tuple[str, ...]:
        return ("A", "B")

    def output_shape(self, *shapes: Shape) -> Shape:
        shape = shapes[0]
        expect_rank(self, shape, 4, "(N, C, H, W)")
        if len(shapes) != 2 or shapes[1] != shape:
            raise ShapeError(
                f"{self!r}: two maps", expected=f"two inputs of shape {list(shape)}",
                got=" and ".join(str(list(s)) for s in shapes),
            )  # fmt: skip
        return (shape[0], (2 * self.max_displacement + 1) ** 2, *shape[2:])

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape, out = shapes[0], self.output_shape(*shapes)
        n, c, y, x, i, j = dsl.axes("n c y x i j")
        reach, wide = self.max_displacement, 2 * self.max_displacement + 1
        a, b = (dsl.tensor(name, shape, dtype) for name in ("A", "B"))
        moved = b[n, c, y + self.step * (i - reach), x + self.step * (j - reach)]
        body: Any = dsl.sum_over([c], a[n, c, y, x] * moved) / max(shape[1], 1)
        extents = {n: shape[0], i: wide, j: wide, y: shape[2], x: shape[3]}
        at = [n, wide * i + j, y, x]
        return dsl.define("Y", at, body, extents=extents, shape=out, name="correlation")

    def multiply_adds(self, *shapes: Shape) -> int:
        return math.prod(self.output_shape(*shapes)) * shapes[0][1]


class CapsuleConv2d(_Windows):
    """Convolution of capsules with matrix poses: Y[n, k, a, b, y, x] = sum(c, r, s, d:
    X[n, c, a, d, stride*y + r - pad, ...] * W[k, c, r, s, d, b]) (Hinton et al., 2018; Barham and
    Isard, 2019). Input (N, C, P, Q, H, W), output (N, K, P, out_columns, Y, X).

    >>> CapsuleConv2d(8, 16, 4, 3, stride=2).output_shape((1, 8, 4, 4, 7, 7))
    (1, 16, 4, 4, 3, 3)
    """

    def __init__(
        self,
        in_capsules: int,
        out_capsules: int,
        columns: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        out_columns: int | None = None,
    ) -> None:
        self.in_capsules, self.out_capsules = in_capsules, out_capsules
        self.columns, self.out_columns = columns, out_columns
        positive((in_capsules, out_capsules, columns, out_columns or 1), "capsules and columns")
        self._set(kernel_size, stride, padding)

    @property
    def weight_shape(self) -> Shape:
        last = (self.columns, self.out_columns or self.columns)
        return (self.out_capsules, self.in_capsules, *self.kernel_size, *last)

    def parameters(self, *shapes: Shape) -> tuple[ParameterSpec, ...]:
        fan_in = self.in_capsules * math.prod(self.kernel_size) * self.columns
        return (ParameterSpec("weight", "W", self.weight_shape, kaiming_uniform(fan_in)),)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        expect_rank(self, shape, 6, f"(N, {self.in_capsules}, P, {self.columns}, H, W)")
        if (shape[1], shape[3]) != (self.in_capsules, self.columns):
            raise ShapeError(
                f"{self!r}: capsules and columns of the pose",
                expected=f"{self.in_capsules} and {self.columns}",
                got=f"{shape[1]} and {shape[3]}",
            )
        columns = self.out_columns or self.columns
        return (shape[0], self.out_capsules, shape[2], columns, *self._sizes(shape))

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        out = self.output_shape(shape)
        n, k, c, a, b, d, y, x, r, s = dsl.axes("n k c a b d y x r s")
        source = dsl.tensor("X", shape, dtype)[(n, c, a, d, *self._index((y, x), (r, s)))]
        weight = dsl.tensor("W", self.weight_shape, dtype, role="parameter")[k, c, r, s, d, b]
        body = dsl.sum_over([c, r, s, d], source * weight)
        extents = dict(zip((n, k, a, b, y, x), out, strict=True))
        return dsl.define("Y", [n, k, a, b, y, x], body, extents=extents, name="capsule")

    def multiply_adds(self, *shapes: Shape) -> int:
        fan_in = self.in_capsules * math.prod(self.kernel_size) * self.columns
        return math.prod(self.output_shape(*shapes)) * fan_in


class _Structuring(_Windows):
    """Shared by the layers that compare a window with weights W[k, c, r, s], grouped as Conv2d."""

    boundary: ClassVar[Boundary] = ZERO

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        self._set(kernel_size, stride, padding, dilation)
        check_groups(in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.bias = bias

    def compare(self, over: Sequence[Any], x: Any, w: Any) -> Any:
        """The value of a window."""
        raise TypeError(f"{type(self).__name__} gives no formula")

    @property
    def weight_shape(self) -> Shape:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def parameters(self, *shapes: Shape) -> tuple[ParameterSpec, ...]:
        start: Initializer = kaiming_uniform(math.prod(self.weight_shape[1:]))
        specs = [ParameterSpec("weight", "W", self.weight_shape, start)]
        if self.bias:
            specs.append(ParameterSpec("bias", "b", (self.out_channels,), ZEROS))
        return tuple(specs)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        expect_rank(self, shape, 4, "(N, C, H, W)")
        expect_channels(self, shape, self.in_channels)
        return (shape[0], self.out_channels, *self._sizes(shape))

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        out = self.output_shape(shape)
        n, g, k, c, y, x, r, s = dsl.axes("n g k c y x r s")
        filters, depth = self.out_channels // self.groups, self.in_channels // self.groups
        many = self.groups > 1
        channel: Any = filters * g + k if many else k
        source: Any = depth * g + c if many else c
        kinds = (ZERO, ZERO, self.boundary, self.boundary)
        read = dsl.tensor("X", shape, dtype).pad(*kinds)
        weight = dsl.tensor("W", self.weight_shape, dtype, role="parameter")
        element = read[(n, source, *self._index((y, x), (r, s)))]
        body: Any = self.compare([c, r, s], element, weight[channel, c, r, s])
        if self.bias:
            body = body + dsl.tensor("b", (self.out_channels,), dtype, role="parameter")[channel]
        extents = {n: shape[0], k: filters, y: out[2], x: out[3]}
        extents |= {g: self.groups} if many else {}
        at = [n, channel, y, x]
        return dsl.define("Y", at, body, extents=extents, shape=out, name="window")


class MaxPlusConv2d(_Structuring):
    """Dilation by learned structuring elements, convolution in the max-plus semiring:
    Y[n, k, y, x] = max(c, r, s: X[n, c, stride*y + dil*r - pad, ...] + W[k, c, r, s]); what is
    outside does not count. groups = channels: each map by itself."""

    boundary = OMIT

    def compare(self, over: Sequence[Any], x: Any, w: Any) -> Any:
        return dsl.max_over(over, x + w)


class MinPlusConv2d(_Structuring):
    """Erosion by learned structuring elements: min(c, r, s: X[...] - W[k, c, r, s])."""

    boundary = OMIT

    def compare(self, over: Sequence[Any], x: Any, w: Any) -> Any:
        return dsl.min_over(over, x - w)


class AdderConv2d(_Structuring):
    """Y[n, k, y, x] = -sum(c, r, s: |X[n, c, stride*y + dil*r - pad, ...] - W[k, c, r, s]|), zeros
    outside (AdderNet, Chen et al., 2020); the gradients are the derivatives of this formula."""

    def compare(self, over: Sequence[Any], x: Any, w: Any) -> Any:
        return -dsl.sum_over(over, abs_(x - w))
