"""LeNet-5 (LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
recognition", 1998), with ReLU and max pooling as in today's notes; and the baseline it is compared
with, two fully connected layers."""

from __future__ import annotations

from convgen.layers import Conv2d, Flatten, Linear, MaxPool2d, ReLU
from convgen.runtime.module import Sequential
from convgen.zoo.parts import scaled


def lenet5(classes: int = 10, width: float = 1.0, channels: int = 1) -> Sequential:
    """LeNet-5 for images (N, channels, 28, 28): convolutions 5×5 with 6 and 16 maps (the first
    padded by 2), 2×2 pools, fully connected 120, 84, `classes`. 61 706 parameters.

    >>> from convgen.runtime.module import trace
    >>> trace(lenet5(), [(1, 1, 28, 28)]).parameter_count()
    61706
    """
    first, second, third, fourth = (scaled(c, width) for c in (6, 16, 120, 84))
    return Sequential(
        Conv2d(channels, first, 5, padding=2),
        ReLU(),
        MaxPool2d(2),
        Conv2d(first, second, 5),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(second * 25, third),
        ReLU(),
        Linear(third, fourth),
        ReLU(),
        Linear(fourth, classes),
    )


def mlp(classes: int = 10, width: float = 1.0, inputs: int = 784) -> Sequential:
    """Two hidden layers of 512 for images of `inputs` numbers."""
    hidden = scaled(512, width)
    return Sequential(
        Flatten(),
        Linear(inputs, hidden),
        ReLU(),
        Linear(hidden, hidden),
        ReLU(),
        Linear(hidden, classes),
    )
