"""MobileNet v2 (Sandler, Howard, Zhu, Zhmoginov and Chen, "Inverted residuals and linear
bottlenecks", 2018) for (N, 3, 224, 224)."""

from __future__ import annotations

from convgen.layers import AdaptiveAvgPool2d, Dropout, Flatten, Linear, ReLU6
from convgen.layers.base import Layer
from convgen.runtime.module import Module, Sequential, Value, add
from convgen.zoo.parts import conv_norm, scaled

# expansion, maps, repeats, stride of the first
_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(Module):
    """1×1 up, depthwise 3×3, 1×1 down without activation; added to the input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        middle = inputs * expansion
        layers: list[Layer | Module] = []
        if expansion != 1:
            layers.append(conv_norm(inputs, middle, 1, activation=ReLU6()))
        layers.append(
            conv_norm(
                middle, middle, 3, stride=stride, padding=1, groups=middle, activation=ReLU6()
            )
        )
        layers.append(conv_norm(middle, outputs, 1))
        self.body = Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, *values: Value) -> Value:
        (x,) = values
        y = self.body(x)
        return add(y, x) if self.adds else y


def mobilenetv2(classes: int = 1000, width: float = 1.0) -> Sequential:
    """MobileNet v2: 3 504 872 parameters."""
    inputs, last = scaled(32, width), scaled(1280, width)
    layers: list[Layer | Module] = [
        conv_norm(3, inputs, 3, stride=2, padding=1, activation=ReLU6())
    ]
    for expansion, count, repeats, stride in _BLOCKS:
        maps = scaled(count, width)
        for number in range(repeats):
            step = 1 if number else stride
            layers.append(InvertedResidual(inputs, maps, step, expansion))
            inputs = maps
    layers.append(conv_norm(inputs, last, 1, activation=ReLU6()))
    return Sequential(*layers, AdaptiveAvgPool2d(1), Flatten(), Dropout(0.2), Linear(last, classes))
