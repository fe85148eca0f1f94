"""Data sets from files: MNIST's IDX format and CIFAR-10's binary version."""

from convgen.runtime.data.files import load_cifar10, load_idx, load_mnist

__all__ = ["load_cifar10", "load_idx", "load_mnist"]
