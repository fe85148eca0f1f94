"""How kernels and networks show themselves in a notebook and on a terminal."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from convgen.runtime.table import memory_line, memory_of, rows_of
from convgen.symbolic.program import Program
from convgen.types import DType

if TYPE_CHECKING:
    from convgen.runtime.module import Graph
    from convgen.runtime.report import Report


class ShowsProgram:
    """What carries a program reads like it: text, Unicode, LaTeX, MathML."""

    program: Program

    def report(self) -> Report:
        """What was made; see the subclass."""
        raise TypeError("no report")

    def unicode(self) -> str:
        """The formula in Unicode."""
        return self.program.unicode()

    def latex(self) -> str:
        """The formula in LaTeX."""
        return self.program.latex()

    def _repr_latex_(self) -> str:
        return self.program._repr_latex_()  # pyright: ignore[reportPrivateUsage]

    def _repr_html_(self) -> str:
        """The formula, and the report below it."""
        facts = html.escape(str(self.report())) if not self.program.sizes() else "sizes are open"
        return f"{self.program._repr_html_()}<pre>{facts}</pre>"  # pyright: ignore[reportPrivateUsage]


class ShowsNetwork:
    """What carries a graph of layers: its table, and the formula of every layer."""

    graph: Graph
    dtype: DType

    def formulas(self) -> dict[str, Program]:
        """The formula of each layer that computes something, by its name."""
        found: dict[str, Program] = {}
        for node in self.graph.nodes:
            if not node.layer.is_view:
                shapes = [self.graph.values[i].shape for i in node.inputs]
                found.setdefault(node.path, node.layer.program(*shapes))
        return found

    def unicode(self) -> str:
        """Every layer's formula in Unicode, below its name."""
        return "\n".join(f"{name}:\n{p.unicode()}" for name, p in self.formulas().items())

    def latex(self) -> str:
        """Every layer's formula in LaTeX, after its name."""
        rows = [
            rf"\text{{{name.replace('_', chr(92) + '_')}}} & {p.latex()}"
            for name, p in self.formulas().items()
        ]
        return "\\begin{array}{rl}\n" + " \\\\\n".join(rows) + "\n\\end{array}"

    def _repr_latex_(self) -> str:
        return f"$$\n{self.latex()}\n$$"

    def _repr_html_(self) -> str:
        """The table."""
        return table_html(rows_of(self.graph))

    def __str__(self) -> str:
        """The table as text, and the memory of a forward pass."""
        memory = memory_line(memory_of(self.graph, self.dtype))
        return f"{table_text(rows_of(self.graph))}\n{memory}"


HEAD = ("name", "layer", "output", "parameters", "multiply-adds")


def cells_of(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A network's rows as text, totals last."""
    found = [
        (
            str(row["path"]),
            str(row["layer"]),
            "\N{MULTIPLICATION SIGN}".join(map(str, row["shape"])),
            f"{row['parameters']:,}" if row["parameters"] else "",
            f"{row['multiply_adds']:,}" if row["multiply_adds"] else "",
        )
        for row in rows
    ]
    totals = (sum(r["parameters"] for r in rows), sum(r["multiply_adds"] for r in rows))
    return [*found, ("", "total", "", *(f"{t:,}" for t in totals))]


def table_text(rows: list[dict[str, Any]]) -> str:
    """A network's table in plain text.

    >>> row = {"path": "0", "layer": "ReLU()", "shape": [1, 6], "parameters": 0, "multiply_adds": 0}
    >>> print(table_text([row]))
    name  layer   output  parameters  multiply-adds
    0     ReLU()  1×6
          total                    0              0
    """
    lines = [HEAD, *cells_of(rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]

    def text(line: tuple[str, ...]) -> str:
        pairs = list(zip(line, widths, strict=True))
        cells = [c.ljust(w) for c, w in pairs[:3]] + [c.rjust(w) for c, w in pairs[3:]]
        return "  ".join(cells).rstrip()

    return "\n".join(map(text, lines))


def table_html(rows: list[dict[str, Any]]) -> str:
    """A network's table for a notebook."""

    def line(cells: tuple[str, ...], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells)

    body = "".join(f"<tr>{line(cells, 'td')}</tr>" for cells in cells_of(rows))
    return f"<table><thead><tr>{line(HEAD, 'th')}</tr></thead><tbody>{body}</tbody></table>"
