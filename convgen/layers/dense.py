"""Fully connected layers, and the layers that only rearrange: flatten, add, concat."""

from __future__ import annotations

from typing import Any

from convgen.errors import ShapeError
from convgen.layers.base import (
    Layer,
    ParameterSpec,
    Shape,
    kaiming_uniform,
    per_dimension,
    positive,
)
from convgen.symbolic import dsl
from convgen.symbolic.program import Program
from convgen.types import DType, f32


def _point(rank: int) -> tuple[Any, ...]:
    """Axes i0, i1, ... for tensors of any rank."""
    return dsl.axes(" ".join(f"i{d}" for d in range(rank))) if rank else ()


class Linear(Layer):
    """Y[..., k] = sum(c: X[..., c] * W[k, c]) + b[k], torch.nn.Linear; any leading dimensions.

    >>> Linear(400, 120).output_shape((32, 400))
    (32, 120)
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        features = per_dimension((in_features, out_features), 2, "(in_features, out_features)")
        positive(features, "(in_features, out_features)")
        (self.in_features, self.out_features), self.bias = features, bias

    def parameters(self, *shapes: Shape) -> tuple[ParameterSpec, ...]:
        start = kaiming_uniform(self.in_features)
        specs = [ParameterSpec("weight", "W", (self.out_features, self.in_features), start)]
        if self.bias:
            specs.append(ParameterSpec("bias", "b", (self.out_features,), start))
        return tuple(specs)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if len(shape) < 2 or shape[-1] != self.in_features:
            raise ShapeError(
                f"{self!r}: input features",
                expected=f"(N, ..., {self.in_features})",
                got=str(list(shape)),
                hint="Flatten() before it",
            )
        return (*shape[:-1], self.out_features)

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        self.output_shape(shape)
        n, k, c = dsl.axes("n k c")
        lead = (n,) if len(shape) == 2 else _point(len(shape) - 1)
        x = dsl.tensor("X", shape, dtype)
        w = dsl.tensor("W", (self.out_features, self.in_features), dtype, role="parameter")
        body: Any = dsl.sum_over([c], x[(*lead, c)] * w[k, c])
        if self.bias:
            body = body + dsl.tensor("b", (self.out_features,), dtype, role="parameter")[k]
        return dsl.define("Y", [*lead, k], body, name="linear")

    def multiply_adds(self, *shapes: Shape) -> int:
        total = self.in_features
        for extent in self.output_shape(*shapes):
            total *= extent
        return total


class Flatten(Layer):
    """All dimensions from start_dim to end_dim become one, torch.nn.Flatten. Moves nothing."""

    is_view = True

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        start, end = (d + len(shape) if d < 0 else d for d in (self.start_dim, self.end_dim))
        if not 0 <= start <= end < len(shape):
            raise ShapeError(f"{self!r}: dimensions of {list(shape)}", got=f"{start}..{end}")
        merged = 1
        for extent in shape[start : end + 1]:
            merged *= extent
        return (*shape[:start], merged, *shape[end + 1 :])

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        (shape,) = shapes
        out = self.output_shape(shape)
        start = self.start_dim % len(shape)
        index = list(_point(len(out)))
        flat, middle = index[start], shape[start : len(shape) - len(out) + start + 1]
        digits: list[Any] = []
        weight = 1
        for extent in reversed(middle):
            digits.insert(
                0, (flat // weight) % extent if len(digits) + 1 < len(middle) else flat // weight
            )
            weight *= extent
        source = (*index[:start], *digits, *index[start + 1 :])
        x = dsl.tensor("X", shape, dtype)
        extents = dict(zip(index, out, strict=True))
        return dsl.define("Y", index, x[source], extents=extents, name="flatten")


class Add(Layer):
    """The sum of its inputs, elementwise; all of one shape (residual connections)."""

    def output_shape(self, *shapes: Shape) -> Shape:
        if len(set(shapes)) != 1:
            raise ShapeError("Add: shapes differ", got=" and ".join(str(list(s)) for s in shapes))
        return shapes[0]

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape = self.output_shape(*shapes)
        index = _point(len(shape))
        terms = [dsl.tensor(name, shape, dtype)[index] for name in self.inputs(*shapes)]
        body: Any = terms[0]
        for term in terms[1:]:
            body = body + term
        return dsl.define("Y", index, body, shape=shape, name="add")


class Concat(Layer):
    """Inputs side by side along `dim`, as torch.cat; one piece of the output for each input."""

    def __init__(self, dim: int = 1) -> None:
        self.dim = dim

    def output_shape(self, *shapes: Shape) -> Shape:
        first, dim = shapes[0], self.dim % len(shapes[0])
        for shape in shapes:
            if len(shape) != len(first) or any(
                a != b for d, (a, b) in enumerate(zip(shape, first, strict=True)) if d != dim
            ):
                raise ShapeError(
                    f"{self!r}: shapes differ outside dimension {dim}",
                    got=" and ".join(str(list(s)) for s in shapes),
                )
        return (*first[:dim], sum(s[dim] for s in shapes), *first[dim + 1 :])

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        out = self.output_shape(*shapes)
        dim = self.dim % len(out)
        parts: list[Program] = []
        start = 0
        for name, shape in zip(self.inputs(*shapes), shapes, strict=True):
            index: list[Any] = list(_point(len(shape)))
            body = dsl.tensor(name, shape, dtype)[tuple(index)]
            extents = dict(zip(index, shape, strict=True))
            index[dim] = index[dim] + start
            parts.append(dsl.define("Y", index, body, extents=extents, shape=out, name="concat"))
            start += shape[dim]
        return dsl.pieces(*parts) if len(parts) > 1 else parts[0]
