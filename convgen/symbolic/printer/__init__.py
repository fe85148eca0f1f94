"""Programs as text, Unicode mathematics, LaTeX, and source for NumPy and torch."""

from convgen.symbolic.printer.latex import latex
from convgen.symbolic.printer.source import to_numpy, to_torch
from convgen.symbolic.printer.text import text
from convgen.symbolic.printer.unicode import unicode

__all__ = ["latex", "text", "to_numpy", "to_torch", "unicode"]
