"""Programs as text, Unicode mathematics, LaTeX, MathML, and source for NumPy and torch."""

from convgen.symbolic.printer.latex import definition_latex, latex
from convgen.symbolic.printer.mathml import definition_mathml, mathml
from convgen.symbolic.printer.source import to_numpy, to_torch
from convgen.symbolic.printer.text import text
from convgen.symbolic.printer.unicode import unicode

__all__ = [
    "definition_latex",
    "definition_mathml",
    "latex",
    "mathml",
    "text",
    "to_numpy",
    "to_torch",
    "unicode",
]
