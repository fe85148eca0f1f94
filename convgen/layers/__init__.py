"""The layer library: formulas in the DSL with PyTorch's names, argument order and defaults."""

from convgen.layers.activation import Dropout, ReLU, Sigmoid, Softmax, Tanh
from convgen.layers.base import Layer, ParameterSpec
from convgen.layers.convolution import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from convgen.layers.dense import Add, Concat, Flatten, Linear
from convgen.layers.loss import CrossEntropyLoss, Loss, MSELoss
from convgen.layers.normalization import BatchNorm1d, BatchNorm2d, BatchNorm3d
from convgen.layers.pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)

# Every layer by its name: what text and files may create.
LAYERS: dict[str, type[Layer]] = {
    layer.__name__: layer
    for layer in (
        Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d,
        MaxPool1d, MaxPool2d, MaxPool3d, AvgPool1d, AvgPool2d, AvgPool3d,
        AdaptiveAvgPool1d, AdaptiveAvgPool2d, AdaptiveAvgPool3d,
        Linear, Flatten, Add, Concat, ReLU, Tanh, Sigmoid, Softmax, Dropout,
        BatchNorm1d, BatchNorm2d, BatchNorm3d,
    )
}  # fmt: skip

__all__ = [
    *LAYERS,
    "LAYERS",
    "CrossEntropyLoss",
    "Layer",
    "Loss",
    "MSELoss",
    "ParameterSpec",
]
