"""What a layer is: a formula for given input shapes, with named parameters and states.

Layers are descriptions without arrays. Two layers built alike are still two layers (they own
different parameters); using one layer twice shares its parameters.
"""

from __future__ import annotations

import html
import inspect
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from convgen.errors import ConvgenError, ShapeError
from convgen.symbolic.program import Program
from convgen.types import DType, f32

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Initializer:
    """How an array starts: "constant" (a), "uniform" (a..b) or "normal" (mean a, deviation b)."""

    kind: str
    a: float = 0.0
    b: float = 0.0


ZEROS = Initializer("constant", 0.0)
ONES = Initializer("constant", 1.0)


def kaiming_uniform(fan_in: int) -> Initializer:
    """PyTorch's default for weights and biases of convolutions and linear layers: kaiming_uniform
    with a = sqrt(5), which is U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5 if fan_in else 0.0
    return Initializer("uniform", -bound, bound)


@dataclass(frozen=True)
class ParameterSpec:
    """A parameter or state of a layer. `name` as in PyTorch's state dict ("weight"), `tensor` its
    name in the formula ("W"). A state is not trained; the program's updates change it. `dtype`
    None: the network's."""

    name: str
    tensor: str
    shape: Shape
    initializer: Initializer
    trained: bool = True
    dtype: DType | None = None


class Layer:
    """Base of all layers.

    A subclass stores its constructor's arguments under their own names and gives `program`. Where
    inference differs from training (dropout, batch norm), `program` reads `training`.
    """

    # The output is the input's elements in the same order with another shape: no kernel is needed.
    is_view: ClassVar[bool] = False
    # Dtypes of the outputs, all of one shape; None is the network's dtype.
    output_dtypes: tuple[DType | None, ...] = (None,)
    # The name of a u64 scalar input of the formula that takes a fresh random seed for every run.
    seed: ClassVar[str] = ""

    def parameters(self, *shapes: Shape) -> tuple[ParameterSpec, ...]:
        """Parameters and states for inputs of the given shapes (batch included)."""
        return ()

    def program(self, *shapes: Shape, training: bool = False, dtype: DType = f32) -> Program:
        """The formula: inputs first (in order), then parameters and states; one output."""
        raise TypeError(f"{type(self).__name__} gives no formula")

    def inputs(self, *shapes: Shape) -> tuple[str, ...]:
        """Names of the formula's data inputs, in order."""
        return ("X",) if len(shapes) == 1 else tuple(f"X{i}" for i in range(len(shapes)))

    def input_dtypes(self, *shapes: Shape) -> tuple[DType | None, ...]:
        """Dtypes of the data inputs, in order; None is the network's dtype."""
        return (None,) * len(shapes)

    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of the output for inputs of the given shapes (batch included)."""
        return tuple(int(e) for e in self.program(*shapes).output.shape)

    def multiply_adds(self, *shapes: Shape) -> int:
        """Multiply-adds of one forward pass, counted for convolutions and linear layers only."""
        return 0

    def sample(self) -> Program | None:
        """The formula at small extents that suit the layer, to be looked at; None for a layer that
        needs more to be told."""
        channels = [getattr(self, n, None) for n in ("in_channels", "num_features", "in_features")]
        count = next((c for c in channels if isinstance(c, int)), 4)
        for rest in ((16, 16), (), (16,), (16, 16, 16)):
            try:
                return self.program((2, count, *rest))
            except (ConvgenError, TypeError):
                continue
        return None

    def _repr_latex_(self) -> str | None:
        """What a notebook shows: the formula of a sample input."""
        program = self.sample()
        return None if program is None else f"$$\n{program.latex()}\n$$"

    def _repr_html_(self) -> str:
        """The constructor call, and the formula of a sample input."""
        program = self.sample()
        formula = "" if program is None else program.mathml()
        return f"<code>{html.escape(repr(self))}</code>{formula}"

    def __call__(self, *values: Any) -> Any:
        """Apply the layer to values of a network under construction (functional style)."""
        return values[0].apply(self, *values)

    def __repr__(self) -> str:
        words: list[str] = []
        for position, (name, p) in enumerate(inspect.signature(type(self)).parameters.items()):
            value = getattr(self, name)
            items: set[Any] = set(value) if isinstance(value, tuple) else set()  # pyright: ignore
            if len(items) == 1 and all(isinstance(i, int) for i in items):
                value = items.pop()  # one number for all dimensions
            if p.kind is p.VAR_POSITIONAL:
                words += [repr(v) for v in value]
            elif p.default is p.empty and position < 4:
                words.append(repr(value))
            elif value != p.default:
                words.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(words)})"


def per_dimension(value: int | Sequence[int], rank: int, what: str) -> tuple[int, ...]:
    """An argument given as one number or one for each spatial dimension, as in PyTorch.

    >>> per_dimension(2, 3, "stride"), per_dimension((1, 2), 2, "stride")
    ((2, 2, 2), (1, 2))
    """
    items: Sequence[int] = value if isinstance(value, (tuple, list)) else (value,) * rank  # type: ignore[assignment]
    try:
        whole = tuple(operator.index(i) for i in items if not isinstance(i, bool))
    except TypeError:
        whole = ()
    if len(items) != rank or len(whole) != rank:
        raise ShapeError(f"{what}={value!r}", expected=f"an integer or {rank} integers")
    return whole


def expect_rank(layer: Layer, shape: Shape, rank: int, meaning: str) -> None:
    """Refuse an input of the wrong rank in the layer's terms."""
    if len(shape) != rank:
        raise ShapeError(
            f"{layer!r}: input of rank {len(shape)}", expected=f"{meaning}", got=str(list(shape))
        )


def expect_channels(layer: Layer, shape: Shape, channels: int) -> None:
    """Refuse an input without that many channels in dimension 1."""
    if len(shape) < 2 or shape[1] != channels:
        raise ShapeError(
            f"{layer!r}: input channels",
            expected=f"(N, {channels}, ...)",
            got=str(list(shape)),
        )


def positive(value: tuple[int, ...], what: str, least: int = 1) -> tuple[int, ...]:
    """Refuse stride 0, dilation 0, negative padding."""
    if any(v < least for v in value):
        raise ShapeError(f"{what} {value}", expected=f"integers >= {least}")
    return value
