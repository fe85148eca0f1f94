"""AlexNet and its next of kin: ZFNet and OverFeat."""

from __future__ import annotations

from convgen.layers import Conv2d, Dropout, Flatten, Linear, LocalResponseNorm, MaxPool2d, ReLU
from convgen.layers.base import Layer
from convgen.runtime.module import Module, Sequential
from convgen.zoo.parts import conv_relu, scaled


def _head(inputs: int, hidden: tuple[int, int], classes: int) -> list[Layer | Module]:
    return [
        Flatten(),
        Dropout(0.5),
        Linear(inputs, hidden[0]),
        ReLU(),
        Dropout(0.5),
        Linear(hidden[0], hidden[1]),
        ReLU(),
        Linear(hidden[1], classes),
    ]


def alexnet(classes: int = 1000, width: float = 1.0) -> Sequential:
    """AlexNet in one tower (Krizhevsky, Sutskever and Hinton, 2012) for (N, 3, 227, 227):
    62 378 344 parameters."""
    a, b, c, d, e, f = (scaled(x, width) for x in (96, 256, 384, 384, 256, 4096))
    return Sequential(
        conv_relu(3, a, 11, stride=4),
        MaxPool2d(3, 2),
        LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0),
        conv_relu(a, b, 5, padding=2),
        MaxPool2d(3, 2),
        LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0),
        conv_relu(b, c, 3, padding=1),
        conv_relu(c, d, 3, padding=1),
        conv_relu(d, e, 3, padding=1),
        MaxPool2d(3, 2),
        *_head(e * 36, (f, f), classes),
    )


def zfnet(classes: int = 1000, width: float = 1.0) -> Sequential:
    """ZFNet (Zeiler and Fergus, 2013) for (N, 3, 224, 224): AlexNet with a first layer 7×7 at
    stride 2, a second 5×5 at stride 2, and 512, 1024, 512 maps."""
    a, b, c, d, e, f = (scaled(x, width) for x in (96, 256, 512, 1024, 512, 4096))
    return Sequential(
        conv_relu(3, a, 7, stride=2, padding=1),
        MaxPool2d(3, 2, padding=1),
        LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0),
        conv_relu(a, b, 5, stride=2),
        MaxPool2d(3, 2, padding=1),
        LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0),
        conv_relu(b, c, 3, padding=1),
        conv_relu(c, d, 3, padding=1),
        conv_relu(d, e, 3, padding=1),
        MaxPool2d(3, 2),
        *_head(e * 36, (f, f), classes),
    )


def overfeat(classes: int = 1000, width: float = 1.0, dense: bool = False) -> Sequential:
    """OverFeat, fast (Sermanet and others, 2013), for (N, 3, 231, 231). The fully connected layers
    are convolutions over the whole 6×6 map, so larger images give a map of scores: dense=True
    returns (N, classes, y, x), else the scores of one window (N, classes)."""
    a, b, c, d, e, f, g = (scaled(x, width) for x in (96, 256, 512, 1024, 1024, 3072, 4096))
    layers: list[Layer | Module] = [
        conv_relu(3, a, 11, stride=4),
        MaxPool2d(2),
        conv_relu(a, b, 5),
        MaxPool2d(2),
        conv_relu(b, c, 3, padding=1),
        conv_relu(c, d, 3, padding=1),
        conv_relu(d, e, 3, padding=1),
        MaxPool2d(2),
        conv_relu(e, f, 6),
        Dropout(0.5),
        conv_relu(f, g, 1),
        Dropout(0.5),
        Conv2d(g, classes, 1),
    ]
    return Sequential(*layers) if dense else Sequential(*layers, Flatten())
