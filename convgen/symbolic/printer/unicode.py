"""Programs as Unicode mathematics, for terminals."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from convgen.symbolic.expr import Definition, Result
from convgen.symbolic.printer.naming import name_parts
from convgen.symbolic.printer.order import Order
from convgen.symbolic.printer.text import Writer

if TYPE_CHECKING:
    from convgen.symbolic.program import Program

SIGNS = {"sum": "Σ", "prod": "Π", "max": "max", "min": "min"}
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
REPLACEMENTS = (
    (r" \* ", "·"),
    (r"(?<=\d)\*(?=\w)", ""),
    (r"<=", "≤"),
    (r"==", "="),
    (r"\*\*(\d+)\b(?!\.)", lambda m: m.group(1).translate(SUPERSCRIPTS)),
    (r"\*\*", "^"),
    (r"\binf\b", "∞"),
    (r"\bpi\b", "π"),
    (r"\bsqrt\(", "√("),
    (r" // ", " ÷ "),
    (r"(\d[\d.]*)e-(\d+)", lambda m: _small(m.group(1), m.group(2))),
    (r"-", "−"),
)


def _small(mantissa: str, exponent: str) -> str:
    """2.5e-5 as 2.5·10⁻⁵."""
    power = f"10⁻{exponent.lstrip('0').translate(SUPERSCRIPTS)}"
    return power if mantissa == "1" else f"{mantissa}·{power}"


class UnicodeWriter(Writer):
    """Sums carry their ranges: Σ[c<64, r<3](…)."""

    def result(self, r: Result) -> str:
        assert self.definition is not None
        reduce = self.definition.reduces[r.reduce]
        name = reduce.reduction.name
        item = f".{r.item}" if r.item else ""
        if r.item == 1 and name in ("argmax", "argmin"):
            name, item = name[3:], ""
        ranges = self.over(r.reduce, reduce).replace(" where ", "; ").replace(" < ", "<")
        return f"{SIGNS.get(name, name)}[{ranges}]({self.body(reduce.body)}){item}"


def unicode(program: Program) -> str:
    """One line for each definition, with all ranges."""
    lines = [_definition(program, piece) for stage in program.stages for piece in stage.pieces]
    lines += [f"{state} ← {new}" for state, new in program.updates]
    return "\n".join(lines)


def _definition(program: Program, piece: Definition) -> str:
    shown, parts = name_parts(program, piece)
    writer = UnicodeWriter(Order(program, piece), shown)
    left = ", ".join(writer.access(o) for o in piece.outs)
    right = ", ".join(writer.body(v) for v in shown.values)
    conditions = [writer.range(r).replace(" < ", "<") for r in piece.domain.ranges]
    conditions += [writer.constraint(c) for c in piece.domain.constraints]
    text = f"{left} = {right}" + (f"   for {', '.join(conditions)}" if conditions else "")
    for part in parts:
        text += f"\n    where {part} = {writer.body(part.body)}"
    for pattern, sign in REPLACEMENTS:
        text = re.sub(pattern, sign, text)
    return text
