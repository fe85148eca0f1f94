"""Programs as text, Unicode mathematics, LaTeX, and source for NumPy and torch."""

from convgen.symbolic.printer.source import to_numpy, to_torch
from convgen.symbolic.printer.text import text

__all__ = ["text", "to_numpy", "to_torch"]
