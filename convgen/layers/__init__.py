"""The layer library: formulas in the DSL with PyTorch's names, argument order and defaults."""

from types import ModuleType

from convgen.layers import (
    activation,
    contrast,
    convolution,
    dense,
    elementwise,
    local,
    matching,
    normalization,
    padding,
    pooling,
    resizing,
    unpooling,
    video,
)
from convgen.layers.base import Layer, ParameterSpec
from convgen.layers.loss import LOSSES, Loss

_FAMILIES: tuple[ModuleType, ...] = (
    convolution,
    local,
    video,
    matching,
    pooling,
    unpooling,
    resizing,
    dense,
    activation,
    elementwise,
    normalization,
    contrast,
    padding,
)


def _layers(family: ModuleType) -> list[type[Layer]]:
    """The public layers that a file defines, in its order."""
    return [
        value
        for name, value in vars(family).items()
        if isinstance(value, type)
        and issubclass(value, Layer)
        and value.__module__ == family.__name__
        and not name.startswith("_")
    ]


# Every layer by its name: what text and files may create.
LAYERS: dict[str, type[Layer]] = {
    layer.__name__: layer for family in _FAMILIES for layer in _layers(family)
}
globals().update(LAYERS)
globals().update(LOSSES)

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    *LAYERS,
    *LOSSES,
    "LAYERS",
    "LOSSES",
    "Layer",
    "Loss",
    "ParameterSpec",
]
