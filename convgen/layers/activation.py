"""Activations, softmax and dropout."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import sympy

from convgen.errors import ShapeError
from convgen.layers.base import Layer, Shape
from convgen.symbolic import dsl
from convgen.symbolic.functions import less, relu, select, sigmoid, stop_gradient, uniform
from convgen.symbolic.program import Program
from convgen.types import DType, f32, u64


def _point(rank: int) -> tuple[Any, ...]:
    return dsl.axes(" ".join(f"i{d}" for d in range(rank)))


class _Pointwise(Layer):
    """Y[i] = function(X[i]) for inputs of any shape."""

    def function(self, x: Any) -> Any:
        """The scalar formula."""
        raise TypeError(f"{type(self).__name__} gives no formula")

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        return shape

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        index = _point(len(shape))
        x = dsl.tensor("X", shape, dtype)
        body = self.function(x[index])
        return dsl.define("Y", index, body, shape=shape, name=type(self).__name__.lower())


class ReLU(_Pointwise):
    """max(0, x); relu'(0) = 0."""

    def function(self, x: Any) -> Any:
        return relu(x)


class Tanh(_Pointwise):
    """Hyperbolic tangent."""

    def function(self, x: Any) -> Any:
        return sympy.tanh(x)


class Sigmoid(_Pointwise):
    """1 / (1 + exp(-x))."""

    def function(self, x: Any) -> Any:
        return sigmoid(x)


class Softmax(Layer):
    """exp(x - max) / sum(exp(x - max)) along `dim` (default: the last), in three stages. The
    maximum only keeps exp small: nothing depends on it, so no gradient goes through it."""

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if not -len(shape) <= self.dim < len(shape):
            raise ShapeError(f"{self!r}: dimension of {list(shape)}", got=str(self.dim))
        return shape

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape = self.output_shape(*shapes)
        dim = self.dim % len(shape)
        index = list(_point(len(shape)))
        (j,) = dsl.axes("j")
        along = (*index[:dim], j, *index[dim + 1 :])
        rest = tuple(a for d, a in enumerate(index) if d != dim)
        x = dsl.tensor("X", shape, dtype)
        top = dsl.define("M", rest, dsl.max_over([j], x[along]))
        powers = dsl.define("E", index, sympy.exp(x[tuple(index)] - stop_gradient(top[rest])))
        total = dsl.define("S", rest, dsl.sum_over([j], powers[along]))
        return dsl.define("Y", index, powers[tuple(index)] / total[rest], name="softmax")


class LogSoftmax(Softmax):
    """x - logsumexp(x) along `dim` (default: the last)."""

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape = self.output_shape(*shapes)
        dim = self.dim % len(shape)
        index = list(_point(len(shape)))
        (j,) = dsl.axes("j")
        rest = tuple(a for d, a in enumerate(index) if d != dim)
        x = dsl.tensor("X", shape, dtype)
        along = (*index[:dim], j, *index[dim + 1 :])
        level = dsl.define("L", rest, dsl.logsumexp_over([j], x[along]))
        return dsl.define("Y", index, x[tuple(index)] - level[rest], name="log_softmax")


class Dropout(Layer):
    """In training each element is zeroed with probability p and the others divided by 1 - p; the
    identity otherwise. The mask is uniform(seed, position), a pure function of the run's seed."""

    seed = "seed"

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ShapeError(f"Dropout p={p}", expected="a probability between 0 and 1")
        self.p = p

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        return shape

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        index = _point(len(shape))
        x = dsl.tensor("X", shape, dtype)[index]
        body: Any = x
        if training and self.p > 0:
            seed = dsl.tensor("seed", (), u64, role="input")
            position: Any = sympy.Integer(0)
            for axis, extent in zip(index, shape, strict=True):
                position = position * extent + axis
            drop: Any = sympy.Rational(Fraction(self.p).limit_denominator(1 << 24))
            kept = x / (1 - drop) if drop < 1 else sympy.Integer(0)
            chance = uniform(seed[()], sympy.expand(position))
            body = select(less(chance, drop), sympy.Integer(0), kept)
        return dsl.define("Y", index, body, shape=shape, name="dropout")
