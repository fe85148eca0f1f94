"""The benchmark's cases: layers of well-known networks, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from convgen.errors import UserError
from convgen.symbolic import dsl
from convgen.symbolic.derive import grad
from convgen.symbolic.program import Program
from convgen.types import DType, f32

Array = NDArray[Any]
PASSES = ("forward", "input", "weights")
LAYOUTS = ("nhwc", "nchw")
_WANTED = {"input": "X", "weights": "W"}


class Measured(Protocol):
    """What a benchmark needs to know of a layer with an input X, weights W and an output Y."""

    @property
    def name(self) -> str: ...

    @property
    def flops(self) -> int:
        """Floating-point operations of each pass, a multiply-add counted as two."""
        ...

    def layouts(self, wanted: Sequence[str]) -> Sequence[str]:
        """Those of the wanted layouts of the caller's arrays that the layer has."""
        ...

    def shape(self, tensor: str, layout: str) -> tuple[int, ...]: ...

    def program(self, which: str, layout: str, dtype: DType = f32) -> Program: ...

    def as_peers_have(self, array: Array, tensor: str, layout: str) -> Array:
        """X, W or Y, of shape (n, c, h, w) and so on, whatever the layout."""
        ...


@dataclass(frozen=True, slots=True)
class Case:
    """A two-dimensional convolution: batch, input channels, square input, filters, square kernel,
    stride, padding, groups, dilation.

    >>> CASES["vgg3_2"].out, CASES["vgg3_2"].flops
    (56, 3699376128)
    """

    name: str
    batch: int
    channels: int
    size: int
    filters: int
    kernel: int
    stride: int
    padding: int
    groups: int = 1
    dilation: int = 1

    @property
    def out(self) -> int:
        """Width and height of the output."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (self.size + 2 * self.padding - reach) // self.stride + 1

    @property
    def flops(self) -> int:
        """Floating-point operations of each pass, a multiply-add counted as two, taps that fall
        into the padding included."""
        depth = self.channels // self.groups
        outputs = self.batch * self.filters * self.out**2
        return 2 * outputs * depth * self.kernel**2

    def layouts(self, wanted: Sequence[str]) -> Sequence[str]:
        """All that are wanted."""
        return wanted

    def as_peers_have(self, array: Array, tensor: str, layout: str) -> Array:
        """The array with its channels second."""
        return array.transpose(0, 3, 1, 2) if tensor != "W" and layout == "nhwc" else array

    def shape(self, tensor: str, layout: str) -> tuple[int, ...]:
        """Shape of X, W or Y. Filters are (K, C/groups, R, S) in both layouts, as callers have
        them."""
        if tensor == "W":
            depth = self.channels // self.groups
            return (self.filters, depth, self.kernel, self.kernel)
        size, channels = (self.size, self.channels) if tensor == "X" else (self.out, self.filters)
        wide = (channels, size, size) if layout == "nchw" else (size, size, channels)
        return (self.batch, *wide)

    def forward(self, layout: str, dtype: DType = f32) -> Program:
        """The layer as a formula on arrays of that layout."""
        n, g, k, y, x, c, r, s = dsl.axes("n g k y x c r s")
        filters, depth = self.filters // self.groups, self.channels // self.groups
        rows = self.stride * y + self.dilation * r - self.padding
        columns = self.stride * x + self.dilation * s - self.padding
        grouped = self.groups > 1
        source = c if not grouped else g if depth == 1 else depth * g + c
        channel = k if not grouped else g if filters == 1 else filters * g + k
        tap = 0 if grouped and depth == 1 else c
        data = dsl.tensor("X", self.shape("X", layout), dtype)
        weight = dsl.tensor("W", self.shape("W", layout), dtype, role="parameter")
        last = layout == "nhwc"
        read = data[(n, rows, columns, source) if last else (n, source, rows, columns)]
        over = [r, s] if grouped and depth == 1 else [c, r, s]
        extents = {n: self.batch, y: self.out, x: self.out, r: self.kernel, s: self.kernel}
        extents |= {c: depth} if c in over else {}
        extents |= {g: self.groups} if grouped else {}
        extents |= {k: filters} if not grouped or filters > 1 else {}
        return dsl.define(
            "Y",
            [n, y, x, channel] if last else [n, channel, y, x],
            dsl.sum_over(over, read * weight[channel, tap, r, s]),
            extents=extents,
            shape=self.shape("Y", layout),
            name=self.name,
        )

    def program(self, which: str, layout: str, dtype: DType = f32) -> Program:
        """The formula of a pass: forward, or the gradient to the input or to the weights."""
        made = self.forward(layout, dtype)
        return made if which == "forward" else grad(made, [_WANTED[which]])


@dataclass(frozen=True, slots=True)
class Dense:
    """A fully connected layer: batch, inputs, outputs.

    >>> DENSE["fc64"].flops
    2147483648
    """

    name: str
    batch: int
    inputs: int
    outputs: int

    @property
    def flops(self) -> int:
        """Floating-point operations of each pass, a multiply-add counted as two."""
        return 2 * self.batch * self.inputs * self.outputs

    def layouts(self, wanted: Sequence[str]) -> Sequence[str]:
        """There is one."""
        return ("nc",)

    def as_peers_have(self, array: Array, tensor: str, layout: str) -> Array:
        """The array as it is."""
        return array

    def shape(self, tensor: str, layout: str) -> tuple[int, ...]:
        """Shape of X, W or Y; weights are (outputs, inputs)."""
        if tensor == "W":
            return (self.outputs, self.inputs)
        return (self.batch, self.inputs if tensor == "X" else self.outputs)

    def program(self, which: str, layout: str, dtype: DType = f32) -> Program:
        """The formula of a pass: forward, or the gradient to the input or to the weights."""
        n, k, c = dsl.axes("n k c")
        data = dsl.tensor("X", self.shape("X", layout), dtype)
        weight = dsl.tensor("W", self.shape("W", layout), dtype, role="parameter")
        product = dsl.sum_over(c, data[n, c] * weight[k, c])
        made = dsl.define("Y", [n, k], product, name=self.name)
        return made if which == "forward" else grad(made, [_WANTED[which]])


_ROWS = """
alex1      1    3  227   96 11 4 0
alex2      1   96   27  256  5 1 2
alex3      1  256   13  384  3 1 1
vgg1_1     1    3  224   64  3 1 1
vgg1_2     1   64  224   64  3 1 1
vgg3_2     1  256   56  256  3 1 1
vgg5       1  512   14  512  3 1 1
res1       1    3  224   64  7 2 3
res2_3x3   1   64   56   64  3 1 1
res2_1x1   1   64   56  256  1 1 0
res3_s2    1  128   56  128  3 2 1
res4_3x3   1  256   14  256  3 1 1
res5_1x1   1 2048    7  512  1 1 0
res5_3x3   1  512    7  512  3 1 1
inc5x5     1   16   28   32  5 1 2
go5        1   48   19  192  5 1 2
go3        1  192   19  192  3 1 1
dw3        1  144   56  144  3 1 1 144
dw3s2      1   96  112   96  3 2 1  96
grp        1  128   56  128  3 1 1  32
dil2       1  256   28  256  3 1 2   1 2
lenet2    32    6   14   16  5 1 0
b16_res3  16  128   28  128  3 1 1
b16_go3   16  192   19  192  3 1 1
"""

CASES: dict[str, Case] = {
    words[0]: Case(words[0], *map(int, words[1:]))
    for words in map(str.split, _ROWS.strip().splitlines())
}


DENSE: dict[str, Dense] = {
    d.name: d for d in (Dense("fc1", 1, 4096, 4096), Dense("fc64", 64, 4096, 4096))
}


def cases(names: Sequence[str], default: Mapping[str, Measured] = CASES) -> tuple[Measured, ...]:
    """The cases of those names; all of the default ones for none or ``all``.

    >>> cases(("vgg9",))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    convgen.errors.UserError: there is no case 'vgg9'; expected all or one of alex1 alex2 alex3 ...
    """
    if not names or "all" in names:
        return tuple(default.values())
    known = {**CASES, **DENSE}
    for name in names:
        if name not in known:
            raise UserError(
                f"there is no case {name!r}", expected="all or one of " + " ".join(known)
            )
    return tuple(known[name] for name in names)
