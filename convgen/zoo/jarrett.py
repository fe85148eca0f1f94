"""Two networks of the notes for small images: Jarrett's stack ("What is the best multi-stage
architecture for object recognition?", 2009) and a tiled network (Le and others, "Tiled
convolutional neural networks", 2010)."""

from __future__ import annotations

from convgen.layers import (
    Abs,
    AvgPool2d,
    Conv2d,
    Flatten,
    Linear,
    LocalContrastNorm,
    MaxPool2d,
    ReLU,
    ScaledTanh,
    TiledConv2d,
)
from convgen.runtime.module import Sequential
from convgen.zoo.parts import scaled


def jarrett(classes: int = 10, width: float = 1.0, channels: int = 1) -> Sequential:
    """Twice: filter bank, tanh with learned gain, |x|, local contrast normalization, average pool;
    then a linear classifier. For (N, channels, 28, 28)."""
    a, b = scaled(32, width), scaled(64, width)
    return Sequential(
        Conv2d(channels, a, 5, padding=2),
        ScaledTanh(a),
        Abs(),
        LocalContrastNorm(7),
        AvgPool2d(2),
        Conv2d(a, b, 5),
        ScaledTanh(b),
        Abs(),
        LocalContrastNorm(5),
        AvgPool2d(2),
        Flatten(),
        Linear(b * 25, classes),
    )


def tiled_cnn(
    classes: int = 10, width: float = 1.0, channels: int = 1, period: int = 2
) -> Sequential:
    """Two convolutions whose weights repeat with `period` over positions, with pools, then a linear
    classifier. For (N, channels, 28, 28)."""
    a, b = scaled(12, width), scaled(24, width)
    return Sequential(
        TiledConv2d(channels, a, 5, period, padding=2),
        ReLU(),
        MaxPool2d(2),
        TiledConv2d(a, b, 5, period),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(b * 25, classes),
    )
