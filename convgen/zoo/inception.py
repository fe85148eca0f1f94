"""GoogLeNet (Szegedy and others, "Going deeper with convolutions", 2014), its factorised sister
(Szegedy and others, "Rethinking the inception architecture", 2015), and network in network (Lin,
Chen and Yan, 2013)."""

from __future__ import annotations

from convgen.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
)
from convgen.layers.base import Layer
from convgen.runtime.module import Module, Sequential, Value, concat
from convgen.zoo.parts import conv_relu, scaled

# 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5, pool projection of each module; "pool" between.
_MODULES: tuple[tuple[int, ...] | None, ...] = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    None,
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    None,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


class Inception(Module):
    """Four branches side by side: 1×1; 1×1 then 3×3; 1×1 then 5×5; 3×3 max pool then 1×1.

    factorised: the 3×3 as 1×3 then 3×1, the 5×5 as two 3×3.
    """

    def __init__(self, inputs: int, maps: tuple[int, ...], factorised: bool = False) -> None:
        one, reduce3, three, reduce5, five, pool = maps
        self.one = conv_relu(inputs, one, 1)
        if factorised:
            self.three = Sequential(
                conv_relu(inputs, reduce3, 1),
                Conv2d(reduce3, three, (1, 3), padding=(0, 1)),
                ReLU(),
                Conv2d(three, three, (3, 1), padding=(1, 0)),
                ReLU(),
            )
            self.five = Sequential(
                conv_relu(inputs, reduce5, 1),
                conv_relu(reduce5, five, 3, padding=1),
                conv_relu(five, five, 3, padding=1),
            )
        else:
            self.three = Sequential(
                conv_relu(inputs, reduce3, 1), conv_relu(reduce3, three, 3, padding=1)
            )
            self.five = Sequential(
                conv_relu(inputs, reduce5, 1), conv_relu(reduce5, five, 5, padding=2)
            )
        self.pool = Sequential(MaxPool2d(3, 1, padding=1), conv_relu(inputs, pool, 1))

    def forward(self, *values: Value) -> Value:
        (x,) = values
        return concat([self.one(x), self.three(x), self.five(x), self.pool(x)])


def _inception(classes: int, width: float, factorised: bool) -> Sequential:
    stem, inputs = scaled(64, width), scaled(192, width)
    layers: list[Layer | Module] = [
        conv_relu(3, stem, 7, stride=2, padding=3),
        MaxPool2d(3, 2, ceil_mode=True),
        LocalResponseNorm(5, alpha=1e-4, beta=0.75),
        conv_relu(stem, stem, 1),
        conv_relu(stem, inputs, 3, padding=1),
        LocalResponseNorm(5, alpha=1e-4, beta=0.75),
        MaxPool2d(3, 2, ceil_mode=True),
    ]
    for maps in _MODULES:
        if maps is None:
            layers.append(MaxPool2d(3, 2, ceil_mode=True))
            continue
        counts = tuple(scaled(m, width) for m in maps)
        layers.append(Inception(inputs, counts, factorised))
        inputs = counts[0] + counts[2] + counts[4] + counts[5]
    return Sequential(
        *layers, AdaptiveAvgPool2d(1), Flatten(), Dropout(0.4), Linear(inputs, classes)
    )


def googlenet(classes: int = 1000, width: float = 1.0) -> Sequential:
    """GoogLeNet for (N, 3, 224, 224), without the auxiliary classifiers: 6 998 552 parameters."""
    return _inception(classes, width, factorised=False)


def inception_factorised(classes: int = 1000, width: float = 1.0) -> Sequential:
    """GoogLeNet whose 3×3 are 1×3 then 3×1 and whose 5×5 are two 3×3."""
    return _inception(classes, width, factorised=True)


def nin(classes: int = 10, width: float = 1.0) -> Sequential:
    """Network in network for (N, 3, 32, 32): each convolution followed by two of 1×1, a global
    average as classifier."""
    a, b, c = (scaled(x, width) for x in (192, 160, 96))
    return Sequential(
        conv_relu(3, a, 5, padding=2),
        conv_relu(a, b, 1),
        conv_relu(b, c, 1),
        MaxPool2d(3, 2, padding=1),
        Dropout(0.5),
        conv_relu(c, a, 5, padding=2),
        conv_relu(a, a, 1),
        conv_relu(a, a, 1),
        AvgPool2d(3, 2, padding=1),
        Dropout(0.5),
        conv_relu(a, a, 3, padding=1),
        conv_relu(a, a, 1),
        conv_relu(a, classes, 1),
        AdaptiveAvgPool2d(1),
        Flatten(),
    )
