"""DenseNet-121 (Huang, Liu, van der Maaten and Weinberger, "Densely connected convolutional
networks", 2016) for (N, 3, 224, 224)."""

from __future__ import annotations

from convgen.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    ReLU,
)
from convgen.layers.base import Layer
from convgen.runtime.module import Module, Sequential, Value, concat
from convgen.zoo.parts import conv_norm, scaled


class Dense(Module):
    """Norm, ReLU, 1×1 to four times the growth, norm, ReLU, 3×3 to the growth; the result is joined
    to the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        self.body = Sequential(
            BatchNorm2d(inputs),
            ReLU(),
            conv_norm(inputs, 4 * growth, 1, activation=ReLU()),
            Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, *values: Value) -> Value:
        (x,) = values
        return concat([x, self.body(x)])


def densenet121(classes: int = 1000, width: float = 1.0) -> Sequential:
    """Growth 32, blocks of 6, 12, 24, 16 layers, transitions that halve: 7 978 856 parameters."""
    growth, maps = scaled(32, width), scaled(64, width)
    layers: list[Layer | Module] = [
        conv_norm(3, maps, 7, stride=2, padding=3, activation=ReLU()),
        MaxPool2d(3, 2, padding=1),
    ]
    blocks = (6, 12, 24, 16)
    for number, count in enumerate(blocks):
        for _ in range(count):
            layers.append(Dense(maps, growth))
            maps += growth
        layers += [BatchNorm2d(maps), ReLU()]
        if number < len(blocks) - 1:
            layers += [Conv2d(maps, maps // 2, 1, bias=False), AvgPool2d(2)]
            maps //= 2
    return Sequential(*layers, AdaptiveAvgPool2d(1), Flatten(), Linear(maps, classes))
