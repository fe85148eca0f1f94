"""Convolution and transposed convolution over 1, 2 or 3 spatial dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from convgen.errors import ShapeError
from convgen.layers.arithmetic import (
    full_padding,
    output_size,
    same_padding,
    transposed_output_size,
)
from convgen.layers.base import (
    Layer,
    ParameterSpec,
    Shape,
    expect_rank,
    kaiming_uniform,
    per_dimension,
    positive,
)
from convgen.layers.padding import check_mode, check_reach, padded_boundary
from convgen.symbolic import derive, dsl
from convgen.symbolic.boundary import ZERO
from convgen.symbolic.expr import Access, Definition, Stage
from convgen.symbolic.program import Program
from convgen.types import DType, f32

POSITIONS = ("z", "y", "x")
TAPS = ("q", "r", "s")


def convolution_program(
    shape: Shape,
    weight: Shape,
    *,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int = 1,
    mode: str | float = "zeros",
    flip: bool = False,
    bias: bool = True,
    dtype: DType = f32,
    name: str = "conv",
) -> Program:
    """Y[n,k,y,x] = sum(c, r, s: X[n, c, stride*y + dil*r - pad, ...] * W[k, c, r, s]) + b[k].

    shape (N, C, *spatial); weight (K, C/groups, *kernel); padding (before, after) per dimension.
    With groups the output channel is written k*groups-digit wise: channel (K/groups)*g + k reads
    the input channels (C/groups)*g + c. mode: a boundary's name, a number, or "mean"; flip: true
    convolution, which reads X[stride*y + dil*(R-1-r) - pad].
    """
    rank = len(shape) - 2
    n, g, k, c = dsl.axes("n g k c")
    positions = dsl.axes(" ".join(POSITIONS[3 - rank :]))
    taps = dsl.axes(" ".join(TAPS[3 - rank :]))
    batch, _, *sizes = shape
    filters, depth, *kernel = weight
    outs = [
        output_size(i, f, s, d, *p)
        for i, f, s, d, p in zip(sizes, kernel, stride, dilation, padding, strict=True)
    ]
    x = dsl.tensor("X", shape, dtype)
    w = dsl.tensor("W", weight, dtype, role="parameter")
    turned = [f - 1 - r if flip else r for f, r in zip(kernel, taps, strict=True)]
    index = [
        s * y + d * r - p[0]
        for s, y, d, r, p in zip(stride, positions, dilation, turned, padding, strict=True)
    ]
    per_group = filters // groups
    channel: Any = k if groups == 1 else per_group * g + k if per_group > 1 else g
    source: Any = c if groups == 1 else depth * g + c if depth > 1 else g
    extents: dict[Any, int] = dict(zip(positions, outs, strict=True)) | {n: batch}
    extents |= {k: per_group, c: depth, g: groups} | dict(zip(taps, kernel, strict=True))
    over = [c, *taps] if depth > 1 or groups == 1 else list(taps)
    kinds = (ZERO, ZERO, *(padded_boundary(mode, x, (n, source)),) * rank)
    tap = 0 if depth == 1 and groups > 1 else c
    body: Any = dsl.sum_over(over, x.pad(*kinds)[(n, source, *index)] * w[(channel, tap, *taps)])
    if bias:
        body = body + dsl.tensor("b", (filters,), dtype, role="parameter")[channel]
    used = {a: e for a, e in extents.items() if a in over or a in positions or a is n}
    if groups == 1 or per_group > 1:
        used[k] = per_group
    if groups > 1:
        used[g] = groups
    return dsl.define(
        "Y", [n, channel, *positions], body, extents=used, shape=(batch, filters, *outs), name=name
    )


def check_groups(in_channels: int, out_channels: int, groups: int) -> None:
    """Refuse channels that are not positive or that the groups do not divide."""
    what = "(in_channels, out_channels, groups)"
    least = min(per_dimension((in_channels, out_channels, groups), 3, what))
    if least < 1 or in_channels % groups or out_channels % groups:
        raise ShapeError(
            f"groups={groups} does not divide the channels",
            expected="a positive divisor of in_channels and out_channels",
            got=f"in_channels={in_channels}, out_channels={out_channels}",
        )


def padding_sides(
    padding: Any, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """(before, after) of each dimension for a padding argument: 'valid', 'same', 'full', an
    integer, an integer for each dimension, or a pair (before, after) for each dimension.

    >>> padding_sides(((0, 1), 2), (3, 3), (1, 1), (1, 1))
    ((0, 1), (2, 2))
    """
    rank = len(kernel)
    if isinstance(padding, str):
        if padding == "same" and any(s != 1 for s in stride):
            raise ShapeError("padding='same' needs stride 1", got=f"stride={tuple(stride)}")
        schemes = {"valid": lambda k, d: (0, 0), "same": same_padding, "full": full_padding}
        if padding not in schemes:
            raise ShapeError(
                f"padding={padding!r}", expected="'valid', 'same', 'full', integers or pairs"
            )
        return tuple(schemes[padding](k, d) for k, d in zip(kernel, dilation, strict=True))
    items = (padding,) * rank if isinstance(padding, int) else tuple(padding)
    pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in items]
    if len(pairs) != rank or any(len(p) != 2 or min(p) < 0 for p in pairs):
        raise ShapeError(
            f"padding={padding!r}",
            expected=f"'valid', 'same', 'full', integers >= 0, or {rank} pairs (before, after)",
        )
    return tuple((before, after) for before, after in pairs)


class _Convolution(Layer):
    """Shared by Conv1d, Conv2d, Conv3d: arguments, order and defaults as in torch.nn."""

    rank: ClassVar[int]
    flip: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] | Sequence[tuple[int, int]] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str | float = "zeros",
    ) -> None:
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = positive(
            per_dimension(kernel_size, self.rank, "kernel_size"), "kernel_size"
        )
        self.stride = positive(per_dimension(stride, self.rank, "stride"), "stride")
        self.dilation = positive(per_dimension(dilation, self.rank, "dilation"), "dilation")
        self.padding = padding if isinstance(padding, (int, str)) else tuple(padding)
        if isinstance(padding, int):
            self.padding = per_dimension(padding, self.rank, "padding")
        self.groups, self.bias, self.padding_mode = groups, bias, padding_mode
        self.sides = padding_sides(self.padding, self.kernel_size, self.stride, self.dilation)
        check_mode(padding_mode)
        check_groups(in_channels, out_channels, groups)

    @property
    def weight_shape(self) -> Shape:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def parameters(self, *shapes: Shape) -> tuple[ParameterSpec, ...]:
        fan_in = 1
        for extent in self.weight_shape[1:]:
            fan_in *= extent
        start = kaiming_uniform(fan_in)
        specs = [ParameterSpec("weight", "W", self.weight_shape, start)]
        if self.bias:
            specs.append(ParameterSpec("bias", "b", (self.out_channels,), start))
        return tuple(specs)

    def _check(self, shape: Shape) -> None:
        expect_rank(self, shape, self.rank + 2, f"(N, C, {self.rank} spatial extents)")
        if shape[1] != self.in_channels:
            raise ShapeError(
                f"{self!r}: input channels", expected=str(self.in_channels), got=str(shape[1])
            )
        for size, kernel, dilation, pads in zip(
            shape[2:], self.kernel_size, self.dilation, self.sides, strict=True
        ):
            if size + sum(pads) < dilation * (kernel - 1) + 1:
                raise ShapeError(
                    f"{self!r}: the kernel is larger than the padded input",
                    expected=f"at least {dilation * (kernel - 1) + 1}",
                    got=f"{size} + {sum(pads)}",
                )
        check_reach(self, self.padding_mode, shape[2:], self.sides)

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        self._check(shape)
        return convolution_program(
            shape,
            self.weight_shape,
            stride=self.stride,
            padding=self.sides,
            dilation=self.dilation,
            groups=self.groups,
            mode=self.padding_mode,
            flip=self.flip,
            bias=self.bias,
            dtype=dtype,
        )

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        self._check(shape)
        outs = (
            output_size(i, k, s, d, *p)
            for i, k, s, d, p in zip(
                shape[2:], self.kernel_size, self.stride, self.dilation, self.sides, strict=True
            )
        )
        return (shape[0], self.out_channels, *outs)

    def multiply_adds(self, *shapes: Shape) -> int:
        total = 1
        for extent in self.output_shape(*shapes) + self.weight_shape[1:]:
            total *= extent
        return total


class Conv1d(_Convolution):
    """1-d convolution, torch.nn.Conv1d: input (N, C, W)."""

    rank = 1


class Conv2d(_Convolution):
    """2-d convolution (cross-correlation), torch.nn.Conv2d: input (N, C, H, W).

    >>> Conv2d(64, 128, 3, stride=2, padding=1).output_shape((8, 64, 56, 56))
    (8, 128, 28, 28)
    """

    rank = 2


class Conv3d(_Convolution):
    """3-d convolution, torch.nn.Conv3d: input (N, C, D, H, W)."""

    rank = 3


class TrueConv1d(_Convolution):
    """1-d true convolution: Y[y] = sum(r: X[stride*y + dil*(R-1-r) - pad] * W[r])."""

    rank, flip = 1, True


class TrueConv2d(_Convolution):
    """2-d true convolution: as Conv2d with the kernel flipped; padding='full' gives all of I * K.

    >>> TrueConv2d(1, 1, 3, padding="full").output_shape((1, 1, 5, 5))
    (1, 1, 7, 7)
    """

    rank, flip = 2, True


class TrueConv3d(_Convolution):
    """3-d true convolution."""

    rank, flip = 3, True


class _TransposedConvolution(Layer):
    """Shared by ConvTranspose1d, 2d, 3d: the adjoint of a convolution to its input."""

    rank: ClassVar[int]
    transposed: ClassVar[bool] = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
    ) -> None:
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = positive(
            per_dimension(kernel_size, self.rank, "kernel_size"), "kernel_size"
        )
        self.stride = positive(per_dimension(stride, self.rank, "stride"), "stride")
        self.padding = positive(per_dimension(padding, self.rank, "padding"), "padding", least=0)
        self.output_padding = positive(
            per_dimension(output_padding, self.rank, "output_padding"), "output_padding", least=0
        )
        self.dilation = positive(per_dimension(dilation, self.rank, "dilation"), "dilation")
        self.groups, self.bias, self.padding_mode = groups, bias, padding_mode
        if padding_mode != "zeros":
            raise ShapeError(
                f"padding_mode={padding_mode!r}", expected="'zeros' for transposed convolution"
            )
        check_groups(in_channels, out_channels, groups)
        for extra, s, d in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if extra >= max(s, d):
                raise ShapeError(
                    f"output_padding {extra}", expected=f"less than stride {s} or dilation {d}"
                )

    @property
    def weight_shape(self) -> Shape:
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    def parameters(self, *shapes: Shape) -> tuple[ParameterSpec, ...]:
        fan_in = 1  # as torch counts it for this layout: all dimensions but the first
        for extent in self.weight_shape[1:]:
            fan_in *= extent
        start = kaiming_uniform(fan_in)
        specs = [ParameterSpec("weight", "W", self.weight_shape, start)]
        if self.bias:
            specs.append(ParameterSpec("bias", "b", (self.out_channels,), start))
        return tuple(specs)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        expect_rank(self, shape, self.rank + 2, f"(N, C, {self.rank} spatial extents)")
        if shape[1] != self.in_channels:
            raise ShapeError(
                f"{self!r}: input channels", expected=str(self.in_channels), got=str(shape[1])
            )
        outs = tuple(
            transposed_output_size(i, k, s, d, p, extra)
            for i, s, d, k, p, extra in zip(
                shape[2:],
                self.stride,
                self.dilation,
                self.kernel_size,
                self.padding,
                self.output_padding,
                strict=True,
            )
        )
        if min(outs) < 1:
            raise ShapeError(f"{self!r}: the padding removes the whole output", got=str(outs))
        return (shape[0], self.out_channels, *outs)

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        forward = convolution_program(
            self.output_shape(shape),
            self.weight_shape,
            stride=self.stride,
            padding=[(p, p - e) for p, e in zip(self.padding, self.output_padding, strict=True)],
            dilation=self.dilation,
            groups=self.groups,
            bias=False,
            dtype=dtype,
        )
        return _transposed(forward, self.bias, dtype)

    def multiply_adds(self, *shapes: Shape) -> int:
        (shape,) = shapes
        total = 1
        for extent in shape + self.weight_shape[1:]:
            total *= extent
        return total


def _transposed(forward: Program, bias: bool, dtype: DType) -> Program:
    """The adjoint dX(W, dY) as a layer: dY renamed to X, dX to Y, the bias added to each piece.
    W is an input even where no tap reaches any output."""
    adjoint = derive.adjoint(forward, "X")
    x = replace(adjoint.tensor("dY"), name="X", role="input", source=None)
    w = forward.tensor("W")
    y = replace(adjoint.output, name="Y", role="output", source=None)
    b = dsl.tensor("b", (int(y.shape[1]),), dtype, role="parameter")  # type: ignore[arg-type]
    rename = {"dY": x, adjoint.output.name: y}

    def access(a: Access) -> Access:
        return Access(rename.get(a.tensor.name, a.tensor), a.index, a.boundary)

    def body(expr: Any) -> Any:
        return expr.xreplace({a: access(a) for a in expr.atoms(Access)})

    def piece(d: Definition) -> Definition:
        (out,) = d.outs
        value = body(d.values[0])
        if bias and out.tensor.name == adjoint.output.name:
            value = value + Access(b, (out.index[1],))
        reduces = tuple(replace(r, body=body(r.body)) for r in d.reduces)
        return Definition((access(out),), d.domain, reduces, (value,))

    stages = tuple(
        Stage(tuple(rename.get(t.name, t) for t in s.tensors), tuple(piece(d) for d in s.pieces))
        for s in adjoint.stages
    )
    return Program("conv_transpose", (x, w, b) if bias else (x, w), (y,), stages)


class ConvTranspose1d(_TransposedConvolution):
    """1-d transposed convolution, torch.nn.ConvTranspose1d."""

    rank = 1


class ConvTranspose2d(_TransposedConvolution):
    """2-d transposed convolution, torch.nn.ConvTranspose2d.

    >>> ConvTranspose2d(16, 8, 4, stride=2, padding=1).output_shape((1, 16, 7, 7))
    (1, 8, 14, 14)
    """

    rank = 2


class ConvTranspose3d(_TransposedConvolution):
    """3-d transposed convolution, torch.nn.ConvTranspose3d."""

    rank = 3
