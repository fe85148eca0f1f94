"""Elementwise activations beyond ReLU, tanh and sigmoid, with torch.nn's names and defaults.

Branches are written with `select`, of which only the chosen side counts, so that an exp of the
other side may overflow; at the seams the derivatives are torch's.
"""

from __future__ import annotations

from typing import Any

import sympy

from convgen.errors import ShapeError
from convgen.layers.activation import _point, _Pointwise  # pyright: ignore[reportPrivateUsage]
from convgen.layers.base import Initializer, Layer, ParameterSpec, Shape, expect_channels
from convgen.symbolic import dsl
from convgen.symbolic.functions import abs_, exact, less, less_equal, select, sigmoid
from convgen.symbolic.program import Program
from convgen.types import DType, f32


def softplus(x: Any) -> Any:
    """log(1 + exp(x)) without overflow: x + log(1 + exp(-x)) for x > 0."""
    one = sympy.Integer(1)
    return select(less(0, x), x + sympy.log(one + sympy.exp(-x)), sympy.log(one + sympy.exp(x)))


class Identity(_Pointwise):
    """x itself."""

    is_view = True

    def function(self, x: Any) -> Any:
        return x


class Abs(_Pointwise):
    """|x|, the rectification of Jarrett et al. (2009); its derivative at 0 is 0."""

    def function(self, x: Any) -> Any:
        return abs_(x)


class GELU(_Pointwise):
    """x * Phi(x), Phi the normal distribution function; approximate="tanh" for
    x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))."""

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ShapeError(f"GELU approximate={approximate!r}", expected="'none' or 'tanh'")
        self.approximate = approximate

    def function(self, x: Any) -> Any:
        half = sympy.Rational(1, 2)
        if self.approximate == "tanh":
            slope = sympy.sqrt(2 / sympy.pi)
            return half * x * (1 + sympy.tanh(slope * (x + exact(0.044715) * x**3)))
        return half * x * (1 + sympy.erf(x / sympy.sqrt(2)))


class SiLU(_Pointwise):
    """x * sigmoid(x), also known as swish."""

    def function(self, x: Any) -> Any:
        return x * sigmoid(x)


class Mish(_Pointwise):
    """x * tanh(softplus(x))."""

    def function(self, x: Any) -> Any:
        return x * sympy.tanh(softplus(x))


class LeakyReLU(_Pointwise):
    """x for x > 0, else negative_slope * x."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def function(self, x: Any) -> Any:
        return select(less(0, x), x, exact(self.negative_slope) * x)


class ELU(_Pointwise):
    """x for x > 0, else alpha * (exp(x) - 1)."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def function(self, x: Any) -> Any:
        return select(less(0, x), x, exact(self.alpha) * (sympy.exp(x) - 1))


class CELU(_Pointwise):
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""

    def __init__(self, alpha: float = 1.0) -> None:
        if alpha == 0:
            raise ShapeError("CELU alpha=0", expected="another number")
        self.alpha = alpha

    def function(self, x: Any) -> Any:
        a = exact(self.alpha)
        return select(less(0, x), x, a * (sympy.exp(x / a) - 1))


class SELU(_Pointwise):
    """scale * ELU(x, alpha) with the constants of Klambauer et al. (2017)."""

    def function(self, x: Any) -> Any:
        alpha, scale = exact(1.6732632423543772), exact(1.0507009873554805)
        return scale * select(less(0, x), x, alpha * (sympy.exp(x) - 1))


class Softplus(_Pointwise):
    """log(1 + exp(beta * x)) / beta, and x itself where beta * x > threshold."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        if beta == 0:
            raise ShapeError("Softplus beta=0", expected="another number")
        self.beta, self.threshold = beta, threshold

    def function(self, x: Any) -> Any:
        beta = exact(self.beta)
        return select(less(exact(self.threshold), beta * x), x, softplus(beta * x) / beta)


class LogSigmoid(_Pointwise):
    """log(1 / (1 + exp(-x)))."""

    def function(self, x: Any) -> Any:
        return -softplus(-x)


class Softsign(_Pointwise):
    """x / (1 + |x|)."""

    def function(self, x: Any) -> Any:
        return x / (1 + abs_(x))


class Tanhshrink(_Pointwise):
    """x - tanh(x)."""

    def function(self, x: Any) -> Any:
        return x - sympy.tanh(x)


def clamp(x: Any, low: Any, high: Any) -> Any:
    """x cut to low..high; the derivative is 1 strictly inside, 0 elsewhere. NaN stays NaN."""
    return select(less_equal(x, low), low, select(less_equal(high, x), high, x))


class Hardtanh(_Pointwise):
    """x cut to min_val..max_val."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0) -> None:
        if not min_val < max_val:
            raise ShapeError(f"{type(self).__name__}({min_val}, {max_val})", expected="min < max")
        self.min_val, self.max_val = min_val, max_val

    def function(self, x: Any) -> Any:
        return clamp(x, exact(self.min_val), exact(self.max_val))


class ReLU6(_Pointwise):
    """x cut to 0..6."""

    def function(self, x: Any) -> Any:
        return clamp(x, sympy.Integer(0), sympy.Integer(6))


class Hardsigmoid(_Pointwise):
    """x/6 + 1/2 cut to 0..1."""

    def function(self, x: Any) -> Any:
        return clamp(x + 3, sympy.Integer(0), sympy.Integer(6)) / 6


class Hardswish(_Pointwise):
    """x * hardsigmoid(x)."""

    def function(self, x: Any) -> Any:
        inside = x * (x + 3) / 6
        return select(less_equal(x, -3), 0, select(less_equal(3, x), x, inside))


class Softshrink(_Pointwise):
    """x - lambd for x > lambd, x + lambd for x < -lambd, else 0."""

    def __init__(self, lambd: float = 0.5) -> None:
        if lambd < 0:
            raise ShapeError(f"Softshrink lambd={lambd}", expected="a number >= 0")
        self.lambd = lambd

    def function(self, x: Any) -> Any:
        cut = exact(self.lambd)
        return select(less(cut, x), x - cut, select(less(x, -cut), x + cut, 0))


class Hardshrink(_Pointwise):
    """x where |x| > lambd, else 0."""

    def __init__(self, lambd: float = 0.5) -> None:
        self.lambd = lambd

    def function(self, x: Any) -> Any:
        return select(less(exact(self.lambd), abs_(x)), x, 0)


class Threshold(_Pointwise):
    """x where x > threshold, else value."""

    def __init__(self, threshold: float, value: float) -> None:
        self.threshold, self.value = threshold, value

    def function(self, x: Any) -> Any:
        return select(less(exact(self.threshold), x), x, exact(self.value))


class _Learned(Layer):
    """Elementwise with one learned number, or one for each channel, called g in the formula."""

    name = "weight"
    num_parameters: int
    init: float

    def __init__(self, num_parameters: int = 1, init: float = 1.0) -> None:
        if num_parameters < 1:
            raise ShapeError(
                f"{type(self).__name__} num_parameters={num_parameters}", expected="at least 1"
            )
        self.num_parameters, self.init = num_parameters, init

    def function(self, x: Any, g: Any) -> Any:
        """The scalar formula."""
        raise TypeError(f"{type(self).__name__} gives no formula")

    def parameters(self, *shapes: Shape) -> tuple[ParameterSpec, ...]:
        start = Initializer("constant", self.init)
        return (ParameterSpec(self.name, "g", (self.num_parameters,), start),)

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        if self.num_parameters > 1:
            expect_channels(self, shape, self.num_parameters)
        return shape

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        shape = self.output_shape(*shapes)
        index = _point(len(shape))
        x = dsl.tensor("X", shape, dtype)
        g = dsl.tensor("g", (self.num_parameters,), dtype, role="parameter")
        gain = g[index[1] if self.num_parameters > 1 else 0]
        body = self.function(x[index], gain)
        return dsl.define("Y", index, body, shape=shape, name=type(self).__name__.lower())


class ScaledTanh(_Learned):
    """g * tanh(x) with a learned gain g, one or one for each channel (Jarrett et al., 2009)."""

    def function(self, x: Any, g: Any) -> Any:
        return g * sympy.tanh(x)


class PReLU(_Learned):
    """x for x > 0, else g * x with a learned slope g, one or one for each channel."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25) -> None:
        super().__init__(num_parameters, init)

    def function(self, x: Any, g: Any) -> Any:
        return select(less(0, x), x, g * x)
