"""Padding as layers: zeros, a constant, reflection, replication, wrapping around, the map's mean.

The argument is PyTorch's: one number for every side, or (before, after) pairs that begin with the
last dimension: (left, right, top, bottom, front, back).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from convgen.errors import ShapeError
from convgen.layers.base import Layer, Shape, expect_rank
from convgen.symbolic import dsl
from convgen.symbolic.boundary import ZERO, Boundary, boundary_of, constant
from convgen.symbolic.expr import Tensor
from convgen.symbolic.program import Program
from convgen.types import DType, f32

POINTS = ("d", "h", "w")


def map_mean(x: Tensor) -> Program:
    """M[n, c], the mean of every map of x[n, c, *spatial]."""
    n, c, *spots = dsl.axes("n c " + " ".join(POINTS[5 - x.rank :]))
    count = max(x.elements // max(int(x.shape[0]) * int(x.shape[1]), 1), 1)  # type: ignore[arg-type]
    return dsl.define("M", [n, c], dsl.sum_over(spots, x[(n, c, *spots)]) / count, name="map_mean")


def padded_boundary(mode: str | float, x: Tensor, at: tuple[Any, Any]) -> Boundary:
    """The boundary that a padding mode means for x read at map (n, c) = `at`: a boundary's name,
    a number, or "mean", which reads the mean of the map."""
    if mode == "mean":
        return constant(map_mean(x)[at])
    return boundary_of(mode) if isinstance(mode, str) else constant(mode)


def check_mode(mode: str | float) -> None:
    """Refuse a padding mode that is no boundary's name, no number and not "mean"."""
    names = ("zeros", "reflect", "replicate", "circular", "mean")
    if not (mode in names if isinstance(mode, str) else isinstance(mode, (int, float))):  # pyright: ignore
        raise ShapeError(
            f"padding_mode={mode!r}", expected=", ".join(map(repr, names)) + " or a number"
        )


def check_reach(
    layer: Layer, mode: str | float, sizes: Sequence[int], sides: Sequence[tuple[int, int]]
) -> None:
    """Refuse padding that is wider than a mode can fill from maps of these sizes."""
    for size, pads in zip(sizes, sides, strict=True):
        most = {"reflect": size - 1, "circular": size}.get(str(mode), max(pads))
        if max(pads) > most:
            raise ShapeError(
                f"{layer!r}: {mode} padding of an extent of {size}",
                expected=f"at most {most} on each side",
                got=f"{pads[0]} and {pads[1]}",
            )


class _Pad(Layer):
    """Y[n, c, y, x] = X{mode}[n, c, y - top, x - left]."""

    rank: ClassVar[int]
    mode: ClassVar[str] = "zeros"
    padding: tuple[int, ...]

    def __init__(self, padding: int | Sequence[int]) -> None:
        count = 2 * self.rank
        items = (padding,) * count if isinstance(padding, int) else tuple(padding)
        if len(items) != count or not all(isinstance(p, int) for p in items):  # pyright: ignore
            raise ShapeError(
                f"{type(self).__name__} padding={padding!r}",
                expected=f"an integer or {count} integers, two for each dimension, the last first",
            )
        self.padding = items

    @property
    def sides(self) -> tuple[tuple[int, int], ...]:
        """(before, after) of each spatial dimension, the first one first."""
        pairs = list(zip(self.padding[::2], self.padding[1::2], strict=True))
        return tuple(reversed(pairs))

    def fill(self) -> str | float:
        """The padding mode, or the number that stands outside."""
        return self.mode

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        expect_rank(self, shape, self.rank + 2, f"(N, C, {self.rank} spatial extents)")
        check_reach(self, self.mode, shape[2:], self.sides)
        outs: list[int] = []
        for size, (before, after) in zip(shape[2:], self.sides, strict=True):
            if size + before + after < 1 or (size < 1 and self.mode in ("replicate", "mean")):
                raise ShapeError(
                    f"{self!r}: nothing is left of an extent of {size}",
                    got=f"{size} + {before} + {after}",
                )
            outs.append(size + before + after)
        return (*shape[:2], *outs)

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        out = self.output_shape(shape)
        n, c, *places = dsl.axes("n c " + " ".join(("z", "y", "x")[3 - self.rank :]))
        x = dsl.tensor("X", shape, dtype)
        kinds = (ZERO, ZERO, *(padded_boundary(self.fill(), x, (n, c)),) * self.rank)
        source = [y - before for y, (before, _) in zip(places, self.sides, strict=True)]
        extents = dict(zip((n, c, *places), out, strict=True))
        body = x.pad(*kinds)[(n, c, *source)]
        return dsl.define("Y", [n, c, *places], body, extents=extents, name="pad")


class ZeroPad1d(_Pad):
    """Zeros around (N, C, W), torch.nn.ZeroPad1d; a negative padding cuts off."""

    rank = 1


class ZeroPad2d(_Pad):
    """Zeros around (N, C, H, W), torch.nn.ZeroPad2d.

    >>> ZeroPad2d((1, 2, 0, 3)).output_shape((1, 3, 5, 5))
    (1, 3, 8, 8)
    """

    rank = 2


class ZeroPad3d(_Pad):
    """Zeros around (N, C, D, H, W), torch.nn.ZeroPad3d."""

    rank = 3


class _ConstantPad(_Pad):
    def __init__(self, padding: int | Sequence[int], value: float) -> None:
        super().__init__(padding)
        self.value = value

    def fill(self) -> str | float:
        return self.value


class ConstantPad1d(_ConstantPad):
    """A constant around (N, C, W)."""

    rank = 1


class ConstantPad2d(_ConstantPad):
    """A constant around (N, C, H, W), torch.nn.ConstantPad2d."""

    rank = 2


class ConstantPad3d(_ConstantPad):
    """A constant around (N, C, D, H, W)."""

    rank = 3


class ReflectionPad1d(_Pad):
    """Mirrors without repeating the edge."""

    rank, mode = 1, "reflect"


class ReflectionPad2d(_Pad):
    """Mirrors without repeating the edge, torch.nn.ReflectionPad2d."""

    rank, mode = 2, "reflect"


class ReflectionPad3d(_Pad):
    """Mirrors without repeating the edge."""

    rank, mode = 3, "reflect"


class ReplicationPad1d(_Pad):
    """Repeats the edge."""

    rank, mode = 1, "replicate"


class ReplicationPad2d(_Pad):
    """Repeats the edge, torch.nn.ReplicationPad2d."""

    rank, mode = 2, "replicate"


class ReplicationPad3d(_Pad):
    """Repeats the edge."""

    rank, mode = 3, "replicate"


class CircularPad1d(_Pad):
    """Wraps around."""

    rank, mode = 1, "circular"


class CircularPad2d(_Pad):
    """Wraps around, torch.nn.CircularPad2d."""

    rank, mode = 2, "circular"


class CircularPad3d(_Pad):
    """Wraps around."""

    rank, mode = 3, "circular"


class MeanPad1d(_Pad):
    """The mean of each map outside of it."""

    rank, mode = 1, "mean"


class MeanPad2d(_Pad):
    """The mean of each map outside of it: neither a dark nor a bright frame."""

    rank, mode = 2, "mean"


class MeanPad3d(_Pad):
    """The mean of each map outside of it."""

    rank, mode = 3, "mean"
