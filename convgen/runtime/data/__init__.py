"""Data sets from files: MNIST's IDX format and CIFAR-10's binary version."""

from convgen.runtime.data.files import load_cifar10, load_idx, load_mnist
from convgen.runtime.data.stream import RandomShift, Stream

__all__ = ["RandomShift", "Stream", "load_cifar10", "load_idx", "load_mnist"]
