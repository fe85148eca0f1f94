"""What several families share."""

from __future__ import annotations

from convgen.layers import BatchNorm2d, Conv2d, ReLU
from convgen.layers.base import Layer
from convgen.runtime.module import Module, Sequential


def scaled(channels: int, width: float) -> int:
    """A channel count times the network's width, at least 1.

    >>> scaled(64, 1.0), scaled(64, 0.1), scaled(3, 0.1)
    (64, 6, 1)
    """
    return max(1, round(channels * width))


def conv_relu(
    inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0
) -> Sequential:
    """Convolution with bias, then ReLU."""
    return Sequential(Conv2d(inputs, outputs, kernel, stride=stride, padding=padding), ReLU())


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    activation: Layer | Module | None = None,
) -> Sequential:
    """Convolution without bias, batch norm, and an activation if one is given."""
    layers: list[Layer | Module] = [
        Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, bias=False),
        BatchNorm2d(outputs),
    ]
    return Sequential(*layers, *([activation] if activation is not None else []))
