"""The arithmetic of layers: sizes, parameters, multiply-adds, receptive fields, memory.

Plain integers for tables and error messages (Dumoulin and Visin, "A guide to convolution
arithmetic for deep learning", 2016).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from convgen.errors import ShapeError
from convgen.layers.base import Layer, Shape
from convgen.types import DType, f32


def output_size(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    """floor((size + padding - dilation*(kernel-1) - 1) / stride) + 1 (textbook §2).

    >>> output_size(227, 11, 4, 1, 0, 0)
    55
    """
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def fits(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> bool:
    """Whether the windows reach exactly to the end of the padded input.

    >>> fits(7, 3, 2, 1, 0, 0), fits(7, 3, 3, 1, 0, 0)
    (True, False)
    """
    rest = size + before + after - dilation * (kernel - 1) - 1
    return rest >= 0 and rest % stride == 0


def transposed_output_size(
    size: int, kernel: int, stride: int, dilation: int, padding: int, output_padding: int = 0
) -> int:
    """stride*(size-1) + dilation*(kernel-1) + 1 - 2*padding + output_padding.

    >>> transposed_output_size(7, 4, 2, 1, 1)
    14
    """
    return stride * (size - 1) + dilation * (kernel - 1) + 1 - 2 * padding + output_padding


def same_padding(kernel: int, dilation: int = 1) -> tuple[int, int]:
    """(before, after) that keep the size at stride 1: half the kernel; the larger half comes after.

    >>> same_padding(5), same_padding(4), same_padding(3, dilation=2)
    ((2, 2), (1, 2), (2, 2))
    """
    total = dilation * (kernel - 1)
    return total // 2, total - total // 2


def full_padding(kernel: int, dilation: int = 1) -> tuple[int, int]:
    """(before, after) that keep every overlap: the size grows by dilation*(kernel-1).

    >>> output_size(5, 3, 1, 1, *full_padding(3))
    7
    """
    total = dilation * (kernel - 1)
    return total, total


def elements(shape: Shape) -> int:
    """Number of elements of a shape."""
    return math.prod(shape)


def parameter_count(layer: Layer, *shapes: Shape) -> int:
    """Trained numbers of a layer for inputs of these shapes (batch included).

    >>> from convgen.layers import Conv2d
    >>> parameter_count(Conv2d(3, 10, 5, padding=2), (1, 3, 32, 32))
    760
    """
    return sum(elements(s.shape) for s in layer.parameters(*shapes) if s.trained)


@dataclass(frozen=True)
class Memory:
    """Bytes that a layer needs: weights with states, inputs, outputs."""

    weights: int
    inputs: int
    outputs: int

    @property
    def total(self) -> int:
        return self.weights + self.inputs + self.outputs


def memory(layer: Layer, *shapes: Shape, dtype: DType = f32) -> Memory:
    """Bytes of a layer's weights, inputs and output.

    >>> from convgen.layers import Linear
    >>> memory(Linear(100, 10), (2, 100))
    Memory(weights=4040, inputs=800, outputs=80)
    """
    weights = sum(elements(s.shape) * (s.dtype or dtype).bytes for s in layer.parameters(*shapes))
    inputs = sum(elements(s) for s in shapes) * dtype.bytes
    return Memory(weights, inputs, elements(layer.output_shape(*shapes)) * dtype.bytes)


@dataclass(frozen=True)
class Window:
    """What one output position of a layer reads along one dimension: `size` inputs, of which the
    first is stride*position - before; the step is a fraction for layers that enlarge."""

    size: int
    stride: float = 1
    before: float = 0


@dataclass(frozen=True)
class Reach:
    """The receptive field of one position: `size` inputs of the network, neighbouring positions
    `stride` apart, position 0 beginning at input `start` (negative: inside the padding)."""

    size: float = 1
    stride: float = 1
    start: float = 0

    def through(self, window: Window) -> Reach:
        """The reach after one more layer.

        >>> Reach().through(Window(3, 1, 1)).through(Window(3, 1, 1)).size
        5
        """
        return Reach(
            self.size + (window.size - 1) * self.stride,
            self.stride * window.stride,
            self.start - window.before * self.stride,
        )

    def join(self, other: Reach) -> Reach:
        """The reach of two branches added or concatenated."""
        if self.stride != other.stride:
            raise ShapeError(
                "branches of different strides meet",
                expected=f"stride {self.stride}",
                got=f"{other.stride}",
            )
        start = min(self.start, other.start)
        end = max(self.start + self.size, other.start + other.size)
        return Reach(end - start, self.stride, start)


def windows_of(layer: Layer) -> tuple[Window, ...]:
    """The windows of a layer, one for each spatial dimension; () for layers that read each
    position alone. Taken from the attributes kernel_size, stride, dilation and padding."""
    kernel: tuple[int, ...] | None = getattr(layer, "kernel_size", None)
    if kernel is None:
        return ()
    rank = len(kernel)
    ones, zeros = (1,) * rank, (0,) * rank
    stride: Sequence[int] = getattr(layer, "stride", ones)
    dilation: Sequence[int] = getattr(layer, "dilation", ones)
    pads: Sequence[tuple[int, int]] | None = getattr(layer, "sides", None)
    padding: Sequence[int] = getattr(layer, "padding", zeros) if pads is None else zeros
    before = padding if pads is None else [p for p, _ in pads]
    if getattr(layer, "transposed", False):
        return tuple(
            Window(-(-(d * (k - 1) + 1) // s), 1 / s, (d * (k - 1) - p) / s)
            for k, s, d, p in zip(kernel, stride, dilation, before, strict=True)
        )
    return tuple(
        Window(d * (k - 1) + 1, s, p)
        for k, s, d, p in zip(kernel, stride, dilation, before, strict=True)
    )


def receptive_field(layers: Iterable[Layer]) -> tuple[Reach, ...]:
    """The receptive field of a chain of layers, one Reach for each spatial dimension.

    >>> from convgen.layers import Conv2d, MaxPool2d, ReLU
    >>> chain = [Conv2d(1, 4, 3), ReLU(), Conv2d(4, 4, 3), MaxPool2d(2)]
    >>> receptive_field(chain)[0]
    Reach(size=6, stride=2, start=0)
    """
    reaches: tuple[Reach, ...] = ()
    for layer in layers:
        windows = windows_of(layer)
        if not windows:
            continue
        reaches = reaches or (Reach(),) * len(windows)
        if len(reaches) != len(windows):
            raise ShapeError(
                f"{layer!r} after layers over {len(reaches)} spatial dimensions",
                got=f"{len(windows)} dimensions",
            )
        reaches = tuple(r.through(w) for r, w in zip(reaches, windows, strict=True))
    return reaches
