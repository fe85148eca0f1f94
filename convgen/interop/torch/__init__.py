"""PyTorch: programs as functions, layers and networks as modules, torch networks as networks.

function(program)           a differentiable function on tensors
Module(layer or network)    a torch.nn.Module
from_module(module, input)  a convgen network with the weights of a torch one
"""

from convgen.interop.torch.convert import from_module
from convgen.interop.torch.functions import Function, function
from convgen.interop.torch.modules import Module

__all__ = ["Function", "Module", "from_module", "function"]
