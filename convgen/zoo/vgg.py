"""VGG (Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
recognition", 2014): configurations A, A-LRN, B, C, D, E for (N, 3, 224, 224)."""

from __future__ import annotations

from convgen.layers import (
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
)
from convgen.layers.base import Layer
from convgen.runtime.module import Module, Sequential
from convgen.zoo.parts import conv_relu, scaled

# Maps of the convolutions of each of the five groups; a negative number is a 1×1 convolution.
_GROUPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "A": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "B": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    "C": ((64, 64), (128, 128), (256, 256, -256), (512, 512, -512), (512, 512, -512)),
    "D": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    "E": ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}


def features(kind: str, width: float = 1.0, *, norm: bool = False) -> list[list[Layer | Module]]:
    """The five groups of convolutions, without their pools."""
    groups: list[list[Layer | Module]] = []
    inputs = 3
    for maps in _GROUPS[kind]:
        group: list[Layer | Module] = []
        for count in maps:
            outputs = scaled(abs(count), width)
            kernel = 3 if count > 0 else 1
            group.append(conv_relu(inputs, outputs, kernel, padding=kernel // 2))
            inputs = outputs
        groups.append(group)
    if norm:
        groups[0].append(LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0))
    return groups


def _vgg(kind: str, classes: int, width: float, *, norm: bool = False) -> Sequential:
    layers: list[Layer | Module] = []
    for group in features(kind, width, norm=norm):
        layers += [*group, MaxPool2d(2)]
    maps, hidden = scaled(512, width), scaled(4096, width)
    return Sequential(
        *layers,
        Flatten(),
        Linear(maps * 49, hidden),
        ReLU(),
        Dropout(0.5),
        Linear(hidden, hidden),
        ReLU(),
        Dropout(0.5),
        Linear(hidden, classes),
    )


def vgg11(classes: int = 1000, width: float = 1.0) -> Sequential:
    """Configuration A: 132 863 336 parameters."""
    return _vgg("A", classes, width)


def vgg11_lrn(classes: int = 1000, width: float = 1.0) -> Sequential:
    """Configuration A-LRN: A with a local response normalization after the first layer."""
    return _vgg("A", classes, width, norm=True)


def vgg13(classes: int = 1000, width: float = 1.0) -> Sequential:
    """Configuration B: 133 047 848 parameters."""
    return _vgg("B", classes, width)


def vgg16_1x1(classes: int = 1000, width: float = 1.0) -> Sequential:
    """Configuration C, whose last three groups end in a 1×1 convolution: 133 638 952 parameters."""
    return _vgg("C", classes, width)


def vgg16(classes: int = 1000, width: float = 1.0) -> Sequential:
    """Configuration D: 138 357 544 parameters."""
    return _vgg("D", classes, width)


def vgg19(classes: int = 1000, width: float = 1.0) -> Sequential:
    """Configuration E: 143 667 240 parameters."""
    return _vgg("E", classes, width)
