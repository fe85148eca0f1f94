"""LeNet-5 (LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
recognition", 1998), with ReLU and max pooling as in today's notes."""

from __future__ import annotations

from convgen.layers import Conv2d, Flatten, Linear, MaxPool2d, ReLU
from convgen.runtime.module import Sequential


def lenet5(classes: int = 10, width: int = 6, channels: int = 1) -> Sequential:
    """LeNet-5 for images (N, channels, 28, 28): convolutions 5×5 with `width` and 16/6 `width`
    maps (the first padded by 2), 2×2 pools, fully connected 120, 84, `classes`. The defaults have
    61 706 parameters.

    >>> from convgen.runtime.module import trace
    >>> trace(lenet5(), [(1, 1, 28, 28)]).parameter_count()
    61706
    """
    maps = 16 * width // 6
    return Sequential(
        Conv2d(channels, width, 5, padding=2),
        ReLU(),
        MaxPool2d(2),
        Conv2d(width, maps, 5),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(maps * 25, 120),
        ReLU(),
        Linear(120, 84),
        ReLU(),
        Linear(84, classes),
    )
