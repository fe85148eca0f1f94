"""Losses: programs of predictions X and targets T with one scalar output, as in torch.nn."""

from __future__ import annotations

from typing import Any

import sympy

from convgen.errors import ShapeError
from convgen.layers.base import Layer, Shape
from convgen.layers.elementwise import softplus
from convgen.symbolic import dsl
from convgen.symbolic.functions import abs_, equal, exact, less, maximum, select
from convgen.symbolic.program import Program
from convgen.types import DType, f32, i64


class Loss(Layer):
    """Base of losses. `labels` True: the target is a class number for each row (i64)."""

    labels = False

    def inputs(self, *shapes: Shape) -> tuple[str, ...]:
        return ("X", "T")

    def output_shape(self, *shapes: Shape) -> Shape:
        return ()

    def target_shape(self, shape: Shape) -> Shape:
        """Shape of the target for predictions of that shape."""
        return shape


class _Reduced(Loss):
    """reduction "mean" (over all elements, or all labels) or "sum"."""

    def __init__(self, reduction: str = "mean") -> None:
        if reduction not in ("mean", "sum"):
            raise ShapeError(
                f"{type(self).__name__} reduction={reduction!r}", expected="'mean' or 'sum'"
            )
        self.reduction = reduction

    def total(self, body: Any, over: Any, count: int, name: str) -> Program:
        """The sum or mean of a body over the axes."""
        whole: Any = dsl.sum_over(list(over), body) if over else body
        if self.reduction == "mean":
            whole = whole / max(count, 1)
        return dsl.define("loss", [], whole, name=name)


class _Labelled(_Reduced):
    """Predictions (N, K, *spatial), class numbers (N, *spatial)."""

    labels = True

    def target_shape(self, shape: Shape) -> Shape:
        if len(shape) < 2 or shape[1] < 1:
            raise ShapeError(
                f"{type(self).__name__}: predictions",
                expected="(N, classes) or (N, classes, *spatial)",
                got=str(list(shape)),
            )
        return (shape[0], *shape[2:])

    def _read(self, shape: Shape, dtype: DType) -> tuple[Any, Any, Any, Any]:
        """(axes of the labels, class axis, predictions there, the labelled prediction)."""
        n, k, *spots = dsl.axes(" ".join(["n k", *(f"i{d}" for d in range(len(shape) - 2))]))
        x = dsl.tensor("X", shape, dtype)[(n, k, *spots)]
        t = dsl.tensor("T", self.target_shape(shape), i64)[(n, *spots)]
        return (n, *spots), k, x, dsl.sum_over([k], select(equal(t, k), x, 0))

    def _sum_of(self, rows: Program, at: Any, name: str) -> Program:
        count = 1
        for extent in rows.output.shape:
            count *= int(extent)  # type: ignore[arg-type]
        return self.total(rows[at], at, count, name)


class CrossEntropyLoss(_Labelled):
    """mean over n of logsumexp(k: X[n, k]) - X[n, T[n]], torch.nn.CrossEntropyLoss on (N, K) or
    (N, K, *spatial). label_smoothing e gives every class e/K of the target and the label the rest.
    """

    def __init__(self, label_smoothing: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        if not 0 <= label_smoothing <= 1:
            raise ShapeError(
                f"CrossEntropyLoss label_smoothing={label_smoothing}", expected="between 0 and 1"
            )
        self.label_smoothing = label_smoothing

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape = shapes[0]
        at, k, x, chosen = self._read(shape, dtype)
        smooth = exact(self.label_smoothing)
        body = dsl.logsumexp_over([k], x) - (1 - smooth) * chosen
        if smooth != 0:
            body = body - smooth / shape[1] * dsl.sum_over([k], x)
        return self._sum_of(dsl.define("L", at, body), at, "cross_entropy")


class NLLLoss(_Labelled):
    """mean over n of -X[n, T[n]], for X the log of probabilities (LogSoftmax), torch.nn.NLLLoss."""

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        at, _, _, chosen = self._read(shapes[0], dtype)
        return self._sum_of(dsl.define("L", at, -chosen), at, "nll")


class _Elementwise(_Reduced):
    """Losses of x[i] and t[i] of one shape."""

    def function(self, x: Any, t: Any) -> Any:
        """The loss of one element."""
        raise TypeError(f"{type(self).__name__} gives no formula")

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape = shapes[0]
        index: Any = dsl.axes(" ".join(f"i{d}" for d in range(len(shape)))) if shape else ()
        x, t = dsl.tensor("X", shape, dtype), dsl.tensor("T", shape, dtype)
        body = self.function(x[index], t[index])
        return self.total(body, index, x.elements, type(self).__name__.lower())


class MSELoss(_Elementwise):
    """mean of (X - T)^2 over all elements, torch.nn.MSELoss."""

    def function(self, x: Any, t: Any) -> Any:
        return (x - t) ** 2


class L1Loss(_Elementwise):
    """mean of |X - T|, torch.nn.L1Loss."""

    def function(self, x: Any, t: Any) -> Any:
        return abs_(x - t)


class SmoothL1Loss(_Elementwise):
    """mean of d^2 / (2 beta) where |d| = |X - T| < beta, else |d| - beta/2."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        if beta <= 0:
            raise ShapeError(
                f"SmoothL1Loss beta={beta}", expected="a number above 0", hint="L1Loss"
            )
        self.beta = beta

    def function(self, x: Any, t: Any) -> Any:
        beta, d = exact(self.beta), abs_(x - t)
        return select(less(d, beta), (x - t) ** 2 / (2 * beta), d - beta / 2)


class HuberLoss(_Elementwise):
    """mean of d^2 / 2 where |d| = |X - T| <= delta, else delta * (|d| - delta/2)."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        if delta <= 0:
            raise ShapeError(f"HuberLoss delta={delta}", expected="a number above 0")
        self.delta = delta

    def function(self, x: Any, t: Any) -> Any:
        delta, d = exact(self.delta), abs_(x - t)
        return select(less(delta, d), delta * (d - delta / 2), (x - t) ** 2 / 2)


class BCELoss(_Elementwise):
    """mean of -(T log X + (1-T) log(1-X)) for probabilities X; each log is at least -100."""

    def function(self, x: Any, t: Any) -> Any:
        least = sympy.Integer(-100)
        one = sympy.Integer(1)
        return -(t * maximum(sympy.log(x), least) + (1 - t) * maximum(sympy.log(one - x), least))


class BCEWithLogitsLoss(_Elementwise):
    """mean of -(T log s + (1-T) log(1-s)), s = sigmoid(X), computed as softplus(X) - T*X."""

    def function(self, x: Any, t: Any) -> Any:
        return softplus(x) - t * x


LOSSES: dict[str, type[Loss]] = {
    loss.__name__: loss
    for loss in (
        CrossEntropyLoss, NLLLoss, MSELoss, L1Loss, SmoothL1Loss, HuberLoss, BCELoss,
        BCEWithLogitsLoss,
    )
}  # fmt: skip
