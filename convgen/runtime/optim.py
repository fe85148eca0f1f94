"""The names of `cg.optim`: optimizers and learning-rate schedules."""

from convgen.layers.update import SGD, Adam, AdamW, Optimizer
from convgen.runtime.schedules import Cosine, Plateau, Schedule, StepDecay, Warmup

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Cosine",
    "Optimizer",
    "Plateau",
    "Schedule",
    "StepDecay",
    "Warmup",
]
