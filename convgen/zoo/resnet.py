"""Residual networks (He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2015)
and the plain network they are compared with, for (N, 3, 224, 224). The stride of a bottleneck is
in its 3×3 convolution."""

from __future__ import annotations

from convgen.layers import AdaptiveAvgPool2d, Flatten, Linear, MaxPool2d, ReLU
from convgen.layers.base import Layer
from convgen.runtime.module import Module, Sequential, Value, add
from convgen.zoo.parts import conv_norm, scaled


class Residual(Module):
    """relu(body(x) + shortcut(x)); the shortcut is a 1×1 convolution where the shape changes.
    plain: without the shortcut."""

    def __init__(
        self, body: Sequential, inputs: int, outputs: int, stride: int, plain: bool = False
    ) -> None:
        self.body = body
        changes = stride != 1 or inputs != outputs
        self.downsample = None
        if changes and not plain:
            self.downsample = conv_norm(inputs, outputs, 1, stride=stride)
        self.relu = ReLU()
        self.plain = plain

    def forward(self, *values: Value) -> Value:
        (x,) = values
        y = self.body(x)
        if self.plain:
            return self.relu(y)
        return self.relu(add(y, x if self.downsample is None else self.downsample(x)))


def basic(inputs: int, maps: int, stride: int, plain: bool = False) -> Residual:
    """Two 3×3 convolutions."""
    body = Sequential(
        conv_norm(inputs, maps, 3, stride=stride, padding=1, activation=ReLU()),
        conv_norm(maps, maps, 3, padding=1),
    )
    return Residual(body, inputs, maps, stride, plain)


def bottleneck(inputs: int, maps: int, stride: int) -> Residual:
    """1×1 down, 3×3, 1×1 up to four times the maps."""
    body = Sequential(
        conv_norm(inputs, maps, 1, activation=ReLU()),
        conv_norm(maps, maps, 3, stride=stride, padding=1, activation=ReLU()),
        conv_norm(maps, 4 * maps, 1),
    )
    return Residual(body, inputs, 4 * maps, stride)


def _resnet(
    counts: tuple[int, ...], classes: int, width: float, *, deep: bool, plain: bool = False
) -> Sequential:
    inputs = scaled(64, width)
    layers: list[Layer | Module] = [
        conv_norm(3, inputs, 7, stride=2, padding=3, activation=ReLU()),
        MaxPool2d(3, 2, padding=1),
    ]
    for group, count in enumerate(counts):
        maps = scaled(64 << group, width)
        for number in range(count):
            stride = 2 if group and not number else 1
            if deep:
                layers.append(bottleneck(inputs, maps, stride))
            else:
                layers.append(basic(inputs, maps, stride, plain))
            inputs = 4 * maps if deep else maps
    return Sequential(*layers, AdaptiveAvgPool2d(1), Flatten(), Linear(inputs, classes))


def plain34(classes: int = 1000, width: float = 1.0) -> Sequential:
    """ResNet-34 without its shortcuts."""
    return _resnet((3, 4, 6, 3), classes, width, deep=False, plain=True)


def resnet18(classes: int = 1000, width: float = 1.0) -> Sequential:
    """ResNet-18: 11 689 512 parameters."""
    return _resnet((2, 2, 2, 2), classes, width, deep=False)


def resnet34(classes: int = 1000, width: float = 1.0) -> Sequential:
    """ResNet-34: 21 797 672 parameters."""
    return _resnet((3, 4, 6, 3), classes, width, deep=False)


def resnet50(classes: int = 1000, width: float = 1.0) -> Sequential:
    """ResNet-50: 25 557 032 parameters."""
    return _resnet((3, 4, 6, 3), classes, width, deep=True)


def resnet101(classes: int = 1000, width: float = 1.0) -> Sequential:
    """ResNet-101: 44 549 160 parameters."""
    return _resnet((3, 4, 23, 3), classes, width, deep=True)


def resnet152(classes: int = 1000, width: float = 1.0) -> Sequential:
    """ResNet-152: 60 192 808 parameters."""
    return _resnet((3, 8, 36, 3), classes, width, deep=True)
