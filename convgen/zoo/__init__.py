"""Networks by name."""

from convgen.runtime.module import Module
from convgen.zoo.lenet import lenet5

# name -> (maker, shape of one input without the batch)
NETWORKS = {"lenet5": (lenet5, (1, 28, 28))}

__all__ = ["NETWORKS", "Module", "lenet5"]
