"""Data: files (MNIST's IDX, CIFAR-10), sources, augmentation, batches ahead of time."""

from convgen.runtime.data.augment import ColourJitter, RandomCrop, RandomFlip, RandomShift
from convgen.runtime.data.files import load_cifar10, load_idx, load_mnist
from convgen.runtime.data.source import (
    Arrays,
    Generated,
    ImageFolder,
    Prefetch,
    Source,
    compose,
    one_hot,
)
from convgen.runtime.data.stream import Stream

__all__ = [
    "Arrays",
    "ColourJitter",
    "Generated",
    "ImageFolder",
    "Prefetch",
    "RandomCrop",
    "RandomFlip",
    "RandomShift",
    "Source",
    "Stream",
    "compose",
    "load_cifar10",
    "load_idx",
    "load_mnist",
    "one_hot",
]
