"""Up- and down-sampling by interpolation: nearest neighbour and linear in 1, 2 or 3 dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import sympy

from convgen.errors import ShapeError
from convgen.layers.base import Layer, Shape
from convgen.symbolic import dsl
from convgen.symbolic.boundary import REPLICATE, ZERO
from convgen.symbolic.functions import cast
from convgen.symbolic.program import Program
from convgen.types import DType, f32

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Upsample(Layer):
    """torch.nn.Upsample for (N, C, *spatial): give `size` or `scale_factor`.

    mode "nearest": Y[h] = X[floor(h / scale)]. mode "linear", "bilinear" or "trilinear" (by the
    number of spatial dimensions): between the two neighbours of the source point, which is
    h * (i-1)/(o-1) with align_corners and (h + 1/2) / scale - 1/2 otherwise. The scale is
    scale_factor where it is given (as torch does by default), else o / i.

    >>> Upsample(scale_factor=2).output_shape((1, 8, 7, 5))
    (1, 8, 14, 10)
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
    ) -> None:
        if (size is None) == (scale_factor is None):
            raise ShapeError("Upsample", expected="either size or scale_factor")
        if mode not in ("nearest", *_LINEAR.values()):
            raise ShapeError(
                f"Upsample mode={mode!r}", expected="'nearest', 'linear', 'bilinear', 'trilinear'"
            )
        if align_corners is not None and mode == "nearest":
            raise ShapeError("Upsample: align_corners with mode='nearest'", expected="None")
        self.size = size if size is None or isinstance(size, int) else tuple(size)
        single = scale_factor is None or isinstance(scale_factor, (int, float))
        self.scale_factor = scale_factor if single else tuple(scale_factor)  # type: ignore[arg-type]
        self.mode, self.align_corners = mode, align_corners

    def _scales(self, shape: Shape) -> tuple[list[int], list[Fraction]]:
        """(output sizes, inputs per output) of the spatial dimensions."""
        rank = len(shape) - 2
        if rank not in _LINEAR or self.mode not in ("nearest", _LINEAR[rank]):
            raise ShapeError(
                f"{self!r}: input of rank {len(shape)}",
                expected="(N, C, spatial extents), as many as the mode says",
                got=str(list(shape)),
            )
        given = self.size if self.size is not None else self.scale_factor
        items = list(given) if isinstance(given, tuple) else [given] * rank
        if len(items) != rank:
            raise ShapeError(
                f"{self!r}: {len(items)} sizes", expected=f"1 or {rank}", got=str(list(shape))
            )
        if self.size is not None:
            sizes = [int(v) for v in items]  # type: ignore[arg-type]
            steps = [Fraction(i, max(o, 1)) for i, o in zip(shape[2:], sizes, strict=True)]
        else:
            factors = [Fraction(str(v)) for v in items]
            if min(factors) <= 0:
                raise ShapeError(f"{self!r}: scale_factor", expected="numbers above 0")
            sizes = [int(i * f) for i, f in zip(shape[2:], factors, strict=True)]
            steps = [1 / f for f in factors]
        if min(sizes) < 1 or min(shape[2:]) < 1:
            raise ShapeError(f"{self!r}: an empty map", got=f"{list(shape)} to {sizes}")
        return sizes, steps

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        return (*shape[:2], *self._scales(shape)[0])

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        sizes, steps = self._scales(shape)
        n, c, *places = dsl.axes("n c " + " ".join(("z", "y", "x")[5 - len(shape) :]))
        x = dsl.tensor("X", shape, dtype)
        extents = dict(zip((n, c, *places), (*shape[:2], *sizes), strict=True))
        # an output reads floor(numerator / denominator), and for `linear` its right neighbour
        nearest = self.mode == "nearest"
        fractions = [
            self._source(y, i, o, step)
            for y, i, o, step in zip(places, shape[2:], sizes, steps, strict=True)
        ]
        if nearest:
            source = [top // bottom for top, bottom in fractions]
            kinds = (ZERO, ZERO, *(REPLICATE,) * len(places))
            body: Any = x.pad(*kinds)[(n, c, *source)]
            return dsl.define("Y", [n, c, *places], body, extents=extents, name="upsample")
        kinds = (ZERO, ZERO, *(REPLICATE,) * len(places))
        terms: list[Any] = []
        for corner in itertools.product((0, 1), repeat=len(places)):
            source = [t // b + r for (t, b), r in zip(fractions, corner, strict=True)]
            term: Any = x.pad(*kinds)[(n, c, *source)]
            for (top, bottom), r in zip(fractions, corner, strict=True):
                share = cast(sympy.Mod(sympy.expand(top), bottom), dtype) / bottom
                term = term * (share if r else 1 - share)
            terms.append(term)
        return dsl.define("Y", [n, c, *places], sympy.Add(*terms), extents=extents, name="upsample")

    def _source(self, y: Any, size: int, out: int, step: Fraction) -> tuple[Any, int]:
        """The source point of position y as (numerator, denominator)."""
        if self.mode == "nearest":
            return y * step.numerator, step.denominator
        if self.align_corners:
            return (y * (size - 1), out - 1) if out > 1 else (sympy.Integer(0), 1)
        # (y + 1/2) * step - 1/2
        return (2 * y + 1) * step.numerator - step.denominator, 2 * step.denominator
