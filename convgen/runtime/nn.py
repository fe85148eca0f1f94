"""The names of `cg.nn`: every layer and loss, modules, and functions on values."""

from convgen.layers import LAYERS, LOSSES, Layer, Loss
from convgen.runtime.module import Module, Sequential, Value, add, concat

globals().update(LAYERS)
globals().update(LOSSES)

__all__ = [
    *LAYERS,
    *LOSSES,
    "Layer",
    "Loss",
    "Module",
    "Sequential",
    "Value",
    "add",
    "concat",
]
