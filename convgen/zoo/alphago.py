"""AlphaGo's policy network (Silver and others, "Mastering the game of Go with deep neural networks
and tree search", 2016)."""

from __future__ import annotations

from convgen.layers import Conv2d, Flatten, PositionBias, Softmax
from convgen.layers.base import Layer
from convgen.runtime.module import Module, Sequential
from convgen.zoo.parts import conv_relu, scaled


def alphago(
    width: float = 1.0,
    filters: int = 192,
    planes: int = 48,
    board: int = 19,
    layers: int = 11,
    probabilities: bool = False,
) -> Sequential:
    """Positions (N, planes, board, board) to one score for each point: 5×5, `layers` of 3×3, a 1×1
    with a bias for each position. filters 128, 192, 256, 384 in the paper; 192 has 3 882 793
    parameters. probabilities=True ends in the softmax over the points (the loss wants scores)."""
    k = scaled(filters, width)
    parts: list[Layer | Module] = [conv_relu(planes, k, 5, padding=2)]
    parts += [conv_relu(k, k, 3, padding=1) for _ in range(layers)]
    parts += [Conv2d(k, 1, 1, bias=False), PositionBias(1, board, board), Flatten()]
    return Sequential(*parts, Softmax(1)) if probabilities else Sequential(*parts)
