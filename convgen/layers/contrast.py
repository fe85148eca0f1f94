"""Normalization by the neighbourhood: local contrast and local response normalization."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import sympy

from convgen.errors import ShapeError
from convgen.layers.base import Layer, Shape, expect_rank
from convgen.symbolic import dsl
from convgen.symbolic.functions import exact, less, maximum, select
from convgen.symbolic.program import Program
from convgen.types import DType, f32


def gaussian(size: int, sigma: float) -> list[list[Fraction]]:
    """A size x size Gaussian window whose weights add up to exactly 1.

    >>> sum(map(sum, gaussian(7, 1.5)))
    Fraction(1, 1)
    """
    middle = (size - 1) / 2
    line = [Fraction(math.exp(-((i - middle) ** 2) / (2 * sigma**2))) for i in range(size)]
    total = sum(line) ** 2
    return [[a * b / total for b in line] for a in line]


class LocalContrastNorm(Layer):
    """v = X - sum(i,p,q: w[p,q] X[n, i, y+p, x+q]); sigma^2 = sum(i,p,q: w[p,q] v^2);
    Y = v / max(c, sigma) (Jarrett et al., 2009), with zeros outside.

    w is a Gaussian over kernel_size x kernel_size and all channels that adds up to 1. c is a
    number, or None for the mean of sigma over the map of each sample.
    """

    def __init__(
        self, kernel_size: int = 7, sigma: float | None = None, c: float | None = None
    ) -> None:
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ShapeError(
                f"LocalContrastNorm kernel_size={kernel_size}", expected="an odd number"
            )
        if c is not None and c <= 0:
            raise ShapeError(f"LocalContrastNorm c={c}", expected="a number above 0, or None")
        self.kernel_size, self.sigma, self.c = kernel_size, sigma, c

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        expect_rank(self, shape, 4, "(N, C, H, W)")
        return shape

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape = self.output_shape(*shapes)
        n, i, y, x, p, q = dsl.axes("n i y x p q")
        size, half = self.kernel_size, self.kernel_size // 2
        window = gaussian(size, size / 4 if self.sigma is None else self.sigma)
        channels = max(shape[1], 1)
        rows = [[w / channels for w in row] for row in window]
        source = dsl.tensor("X", shape, dtype)
        weight = dsl.tensor("w", (size, size), dtype, values=rows)
        extents = {n: shape[0], y: shape[2], x: shape[3]}
        near = (n, i, y + p - half, x + q - half)
        mean = dsl.define(
            "mean",
            [n, y, x],
            dsl.sum_over([i, p, q], weight[p, q] * source[near]),
            extents=extents,
        )
        centred = dsl.define("V", [n, i, y, x], source[n, i, y, x] - mean[n, y, x])
        power = dsl.define(
            "power",
            [n, y, x],
            dsl.sum_over([i, p, q], weight[p, q] * centred[near] ** 2),
            extents=extents,
        )
        # the root's slope is infinite at 0, where nothing varies: take 0 with slope 0 there
        spread = power[n, y, x]
        sigma = dsl.define("sigma", [n, y, x], select(less(0, spread), sympy.sqrt(spread), 0))
        if self.c is not None:
            level: Any = exact(self.c)
        else:
            count = max(shape[2] * shape[3], 1)
            level = dsl.define("level", [n], dsl.sum_over([y, x], sigma[n, y, x]) / count)[n]
        body = centred[n, i, y, x] / maximum(level, sigma[n, y, x])
        return dsl.define("Y", [n, i, y, x], body, name="local_contrast_norm")


class LocalResponseNorm(Layer):
    """Y = X / (k + alpha/size * sum over the `size` channels around of X^2)^beta,
    torch.nn.LocalResponseNorm (Krizhevsky et al., 2012, have alpha without the division)."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        if size < 1:
            raise ShapeError(f"LocalResponseNorm size={size}", expected="an integer >= 1")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if len(shape) < 3:
            raise ShapeError(f"{self!r}: input", expected="(N, C, ...)", got=str(list(shape)))
        return shape

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape = self.output_shape(*shapes)
        n, c, j, *spots = dsl.axes(" ".join(["n c j", *(f"i{d}" for d in range(len(shape) - 2))]))
        x = dsl.tensor("X", shape, dtype)
        around = x[(n, c + j - self.size // 2, *spots)]
        total = dsl.sum_over([j], around**2, extents={j: self.size})
        extents = {n: shape[0], c: shape[1]}
        scale = dsl.define(
            "S", [n, c, *spots], exact(self.k) + exact(self.alpha) / self.size * total,
            extents=extents,
        )  # fmt: skip
        body = x[(n, c, *spots)] * scale[(n, c, *spots)] ** -exact(self.beta)
        return dsl.define("Y", [n, c, *spots], body, name="local_response_norm")
