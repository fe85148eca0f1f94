"""Max and average pooling over 1, 2 or 3 spatial dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import sympy

from convgen.errors import ShapeError
from convgen.layers.arithmetic import output_size
from convgen.layers.base import Layer, Shape, expect_rank, per_dimension, positive
from convgen.layers.convolution import POSITIONS, TAPS
from convgen.symbolic import dsl
from convgen.symbolic.boundary import OMIT, ZERO
from convgen.symbolic.functions import equal, less_equal, maximum, minimum, select
from convgen.symbolic.program import Program
from convgen.types import DType, f32, i64


class _Pool(Layer):
    """Windows of `kernel_size` at `stride` (default: the kernel size), as torch.nn's pools."""

    rank: ClassVar[int]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool

    def _set(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None,
        padding: int | Sequence[int],
        dilation: int | Sequence[int],
        ceil_mode: bool,
    ) -> None:
        rank = self.rank
        self.kernel_size = positive(per_dimension(kernel_size, rank, "kernel_size"), "kernel_size")
        chosen = self.kernel_size if stride is None else stride
        self.stride = positive(per_dimension(chosen, rank, "stride"), "stride")
        self.padding = positive(per_dimension(padding, rank, "padding"), "padding", least=0)
        self.dilation = positive(per_dimension(dilation, rank, "dilation"), "dilation")
        self.ceil_mode = ceil_mode
        for pad, kernel in zip(self.padding, self.kernel_size, strict=True):
            if 2 * pad > kernel:
                raise ShapeError(
                    f"padding {pad} of a pool", expected=f"at most half the kernel size {kernel}"
                )

    def _sizes(self, shape: Shape) -> tuple[int, ...]:
        expect_rank(self, shape, self.rank + 2, f"(N, C, {self.rank} spatial extents)")
        outs: list[int] = []
        for i, k, s, d, p in zip(
            shape[2:], self.kernel_size, self.stride, self.dilation, self.padding, strict=True
        ):
            size = output_size(i, k, s, d, p, p)
            if self.ceil_mode:
                size = -((d * (k - 1) + 1 - i - 2 * p) // s) + 1
                if (size - 1) * s >= i + p:  # a window must start inside the input or left padding
                    size -= 1
            if size < 1:
                raise ShapeError(
                    f"{self!r}: the window is larger than the padded input",
                    expected=f"at least {d * (k - 1) + 1}",
                    got=f"{i} + {2 * p}",
                )
            outs.append(size)
        return tuple(outs)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        return (*shape[:2], *self._sizes(shape))

    def _window(self, shape: Shape) -> tuple[Any, Any, list[Any], dict[Any, int]]:
        """(positions, taps, index expressions, extents) of the windows."""
        positions = dsl.axes(" ".join(POSITIONS[3 - self.rank :]))
        taps = dsl.axes(" ".join(TAPS[3 - self.rank :]))
        index = [
            s * y + d * r - p
            for s, y, d, r, p in zip(
                self.stride, positions, self.dilation, taps, self.padding, strict=True
            )
        ]
        extents = dict(zip(positions, self._sizes(shape), strict=True))
        return positions, taps, index, extents | dict(zip(taps, self.kernel_size, strict=True))


def row_major(index: Sequence[Any], extents: Sequence[int]) -> Any:
    """The position of an index in a box, the last dimension fastest."""
    total: Any = sympy.Integer(0)
    for i, extent in zip(index, extents, strict=True):
        total = total * extent + i
    return sympy.expand(total)


class _MaxPool(_Pool):
    """Y[n, c, y] = max(r: X[n, c, stride*y + dil*r - pad]). return_indices: a second output I, the
    row-major position of the winner in its map (i64), what MaxUnpool takes."""

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        self._set(kernel_size, stride, padding, dilation, ceil_mode)
        self.return_indices = return_indices
        if return_indices:
            self.output_dtypes = (None, i64)
        self.output_dtypes = (None, i64) if return_indices else (None,)

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        n, c = dsl.axes("n c")
        positions, taps, index, extents = self._window(shape)
        kinds = (ZERO, ZERO, *(OMIT,) * self.rank)
        read = dsl.tensor("X", shape, dtype).pad(*kinds)[(n, c, *index)]
        extents |= {n: shape[0], c: shape[1]}
        at = [n, c, *positions]
        best = dsl.max_over(list(taps), read)
        if not self.return_indices:
            return dsl.define("Y", at, best, extents=extents, name="max_pool")
        winner = dsl.argmax_over(list(taps), read)
        pooled = dsl.define([("Y", at), ("T", at)], (best, winner), extents=extents)
        tap = row_major(taps, self.kernel_size)
        found = select(equal(pooled["T"][tuple(at)], tap), row_major(index, shape[2:]), 0)
        spans = dict(zip(taps, self.kernel_size, strict=True))
        flat = dsl.define("I", at, dsl.sum_over(list(taps), found, extents=spans))
        return dsl.combine("max_pool", [pooled, flat], outputs=["Y", "I"])


class MaxPool1d(_MaxPool):
    """1-d max pooling; the first maximum of a window gets the gradient."""

    rank = 1


class MaxPool2d(_MaxPool):
    """2-d max pooling, torch.nn.MaxPool2d.

    >>> MaxPool2d(3, 2).output_shape((1, 96, 55, 55))
    (1, 96, 27, 27)
    """

    rank = 2


class MaxPool3d(_MaxPool):
    """3-d max pooling."""

    rank = 3


class _AvgPool(_Pool):
    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        self._set(kernel_size, stride, padding, 1, ceil_mode)
        self.count_include_pad = count_include_pad

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        n, c = dsl.axes("n c")
        positions, taps, index, extents = self._window(shape)
        x = dsl.tensor("X", shape, dtype)
        body: Any = dsl.sum_over(list(taps), x.pad("zero")[(n, c, *index)])
        for y, k, s, p, size, out in zip(
            positions,
            self.kernel_size,
            self.stride,
            self.padding,
            shape[2:],
            self._sizes(shape),
            strict=True,
        ):
            # torch counts padding as part of the window, but never beyond the padded input.
            first, beyond = (0, size) if not self.count_include_pad else (-p, size + p)
            if first <= -p and s * (out - 1) - p + k <= beyond:
                body = body / k
                continue
            start = s * y - p
            end = minimum(start + k, sympy.Integer(beyond))
            body = body / (end - maximum(start, sympy.Integer(first)))
        extents |= {n: shape[0], c: shape[1]}
        return dsl.define("Y", [n, c, *positions], body, extents=extents, name="avg_pool")


class AvgPool1d(_AvgPool):
    """1-d average pooling."""

    rank = 1


class AvgPool2d(_AvgPool):
    """2-d average pooling, torch.nn.AvgPool2d; padding counts unless count_include_pad=False."""

    rank = 2


class AvgPool3d(_AvgPool):
    """3-d average pooling."""

    rank = 3


class _Adaptive(Layer):
    """Windows that divide the input evenly into `output_size` positions. Position y of o has the
    inputs floor(y*i/o) <= h < ceil((y+1)*i/o), as in torch."""

    rank: ClassVar[int]
    output_size: tuple[int, ...]

    def _set(self, output_size: int | Sequence[int]) -> None:
        self.output_size = positive(
            per_dimension(output_size, self.rank, "output_size"), "output_size"
        )

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        expect_rank(self, shape, self.rank + 2, f"(N, C, {self.rank} spatial extents)")
        if min(shape[2:]) < 1:
            raise ShapeError(f"{self!r}: an empty map", got=str(list(shape)))
        return (*shape[:2], *self.output_size)

    def _windows(self, shape: Shape) -> tuple[list[Any], list[Any], list[Any], dict[Any, int], Any]:
        """(output axes, input axes, conditions, extents, number of inputs) of the windows."""
        self.output_shape(shape)
        n, c = dsl.axes("n c")
        positions = dsl.axes(" ".join(POSITIONS[3 - self.rank :]))
        inputs = dsl.axes(" ".join(("d", "h", "w")[3 - self.rank :]))
        where: list[Any] = []
        counts: Any = sympy.Integer(1)
        extents: dict[Any, int] = {n: shape[0], c: shape[1]}
        for y, h, i, o in zip(positions, inputs, shape[2:], self.output_size, strict=True):
            extents |= {y: o, h: i}
            first, end = (y * i) // o, -((-(y + 1) * i) // o)
            if o > 1:
                where += [less_equal(first, h), less_equal(h + 1, end)]
            counts = counts * (end - first if o > 1 else i)
        return [n, c, *positions], [n, c, *inputs], where, extents, counts


class _AdaptiveAvgPool(_Adaptive):
    def __init__(self, output_size: int | Sequence[int]) -> None:
        self._set(output_size)

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        at, read, where, extents, counts = self._windows(shape)
        x = dsl.tensor("X", shape, dtype)
        body = dsl.sum_over(read[2:], x[tuple(read)], where=where) / counts
        return dsl.define("Y", at, body, extents=extents, name="adaptive_avg_pool")


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """1-d adaptive average pooling."""

    rank = 1


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """2-d adaptive average pooling; AdaptiveAvgPool2d(1) is the global mean."""

    rank = 2


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    """3-d adaptive average pooling."""

    rank = 3


class _AdaptiveMaxPool(_Adaptive):
    """The maximum of each window. return_indices: as in MaxPool."""

    def __init__(self, output_size: int | Sequence[int], return_indices: bool = False) -> None:
        self._set(output_size)
        self.return_indices = return_indices
        if return_indices:
            self.output_dtypes = (None, i64)

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        at, read, where, extents, _ = self._windows(shape)
        x = dsl.tensor("X", shape, dtype)[tuple(read)]
        best = dsl.max_over(read[2:], x, where=where)
        if not self.return_indices:
            return dsl.define("Y", at, best, extents=extents, name="adaptive_max_pool")
        winner = dsl.argmax_over(read[2:], x, where=where)
        outs = [("Y", at), ("I", at)]
        return dsl.define(outs, (best, winner), extents=extents, name="adaptive_max_pool")


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """1-d adaptive max pooling."""

    rank = 1


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """2-d adaptive max pooling, torch.nn.AdaptiveMaxPool2d.

    >>> AdaptiveMaxPool2d((3, 2)).output_shape((1, 8, 7, 5))
    (1, 8, 3, 2)
    """

    rank = 2


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """3-d adaptive max pooling."""

    rank = 3
