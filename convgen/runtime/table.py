"""The table of a network: layers with shapes, parameters and operations."""

from __future__ import annotations

from math import prod
from typing import Any

from convgen.runtime.module import Graph


def rows_of(graph: Graph) -> list[dict[str, Any]]:
    """One row for each node: path, layer (its constructor call), shape of the output (with batch),
    parameters (of a shared layer at its first use only), multiply_adds for one sample."""
    rows: list[dict[str, Any]] = []
    counted: set[str] = set()
    for node in graph.nodes:
        shapes = [graph.values[i].shape for i in node.inputs]
        specs = node.layer.parameters(*shapes) if node.path not in counted else ()
        counted.add(node.path)
        rows.append(
            {
                "path": node.path,
                "layer": repr(node.layer),
                "shape": list(graph.values[node.output].shape),
                "parameters": sum(prod(s.shape) for s in specs if s.trained),
                "multiply_adds": node.layer.multiply_adds(*shapes) // max(shapes[0][0], 1),
            }
        )
    return rows
