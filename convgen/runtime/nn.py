"""The names of `cg.nn`: every layer and loss, modules, and functions on values."""

from convgen.layers import LAYERS, CrossEntropyLoss, Layer, Loss, MSELoss
from convgen.runtime.module import Module, Sequential, Value, add, concat

globals().update(LAYERS)

__all__ = [
    *LAYERS,
    "CrossEntropyLoss",
    "Layer",
    "Loss",
    "MSELoss",
    "Module",
    "Sequential",
    "Value",
    "add",
    "concat",
]
