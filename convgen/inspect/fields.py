"""Receptive fields through a network: how far each layer's element sees into the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convgen.inspect.drawing import CLASSES, Drawing
from convgen.inspect.windows import find_window
from convgen.runtime.module import Graph
from convgen.symbolic.program import Program


@dataclass(frozen=True)
class Field:
    """A layer's element sees `extent` neighbouring input elements; neighbours are `step` apart."""

    path: str
    layer: str
    extent: int
    step: int
    whole: bool


def window_of(program: Program) -> tuple[int, int] | None:
    """(stride, extent) of the window with which a layer moves over its first input, in its last
    dimension; None for a layer without one.

    >>> from convgen.symbolic.parse import parse
    >>> window_of(parse("Y[y] = sum(r: X[2*y + 3*r - 1] * W[r]) for y < 4", X=13, W=3))
    (2, 7)
    """
    program = program.bind(**dict.fromkeys(program.sizes(), 1))
    window = find_window(program, program.inputs[0].name)
    if window is None:
        return None
    index = window.access.index[window.dims[-1]]
    (place,) = (n for n in window.piece.domain.names if index.coefficient(n))
    bounds: dict[str, tuple[int, int]] = {}
    for reduce in window.piece.reduces:
        bounds |= reduce.domain.bounds()
    bounds[place] = (0, 1)
    low, high = index.bounds({n: bounds[n] for n in index.names()})
    return abs(index.coefficient(place)), high - low + 1


def fields(graph: Graph) -> list[Field]:
    """One row for each layer in the order of computation. A layer that mixes all positions (linear,
    flattened) sees everything."""
    size = graph.inputs[0].shape[-1]
    seen: dict[int, tuple[int, int]] = {v.number: (1, 1) for v in graph.inputs}
    found: list[Field] = []
    for node in graph.nodes:
        shapes = [graph.values[i].shape for i in node.inputs]
        extent = max(seen[i][0] for i in node.inputs)
        step = max(seen[i][1] for i in node.inputs)
        shape = graph.values[node.output].shape
        if len(shape) != len(graph.inputs[0].shape):
            extent, step = size, size
        elif not node.layer.is_view:
            window = window_of(node.layer.program(*shapes))
            if window is not None:
                extent, step = extent + (window[1] - 1) * step, step * window[0]
            elif shapes[0][2:] != shape[2:]:  # adaptive: each element sees a share of all
                extent, step = size, size
        for number in node.outputs:
            seen[number] = (extent, step)
        found.append(Field(node.path, repr(node.layer), extent, step, extent >= size))
    return found


def receptive_fields(rows: Sequence[Field], size: int) -> Drawing:
    """Bars as wide as what an element sees of the input's `size` elements. Layers that change
    nothing (activations) are left out, and all after the first that sees everything."""
    shown: list[Field] = []
    for row in rows:
        if shown and (row.extent, row.step) == (shown[-1].extent, shown[-1].step):
            continue
        if row.extent == 1 and not shown:
            continue
        shown.append(row)
        if row.whole:
            break
    width, left, line = 640.0, 170.0, 24
    drawing = Drawing(width, 60 + line * len(shown), "receptive field of each layer")
    drawing.words(12, 20, f"receptive field in the input's {size} columns", 12, bold=True)
    span = width - left - 130
    for number, row in enumerate(shown):
        y = 34 + line * number
        wide = span * min(1.0, row.extent / size)
        drawing.words(
            left - 10, y + 13, f"{row.path} {row.layer.split('(')[0]}", 11, anchor="end", mono=True
        )
        drawing.rectangle(left, y, span, 18, "wash", None, radius=3)
        drawing.rectangle(
            left + (span - wide) / 2, y, wide, 18, f"c{number % CLASSES}", None,
            opacity=0.85, radius=3,
        )  # fmt: skip
        text = "everything" if row.whole else f"{row.extent}, step {row.step}"
        drawing.words(left + span + 10, y + 13, text, 11, "muted")
    return drawing
