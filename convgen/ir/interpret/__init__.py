"""Runs kernels in any form, by the definitions in nodes.py, with numpy: slow and checked."""

from convgen.ir.interpret.compare import difference, sample_inputs, work
from convgen.ir.interpret.run import interpret

__all__ = ["difference", "interpret", "sample_inputs", "work"]
