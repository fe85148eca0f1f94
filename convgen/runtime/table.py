"""The table of a network: layers with shapes, parameters and operations."""

from __future__ import annotations

from math import prod
from typing import Any

from convgen.runtime.module import Graph
from convgen.types import DType, f32


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


def memory_of(graph: Graph, dtype: DType = f32) -> dict[str, int]:
    """Bytes of weights (parameters and states), and of activations: the values that exist at the
    same time in a forward pass, where they are most. What kernels add depends on the target:
    `Network.memory`.

    >>> from convgen.layers.dense import Linear
    >>> from convgen.runtime.module import trace
    >>> memory_of(trace(Linear(4, 8), [(1, 4)]))
    {'weights': 160, 'activations': 48}
    """
    weights = sum(prod(s.shape) * (s.dtype or dtype).bytes for _, _, s in graph.specs)
    owner = {v.number: v.number for v in graph.values}
    ends = (*graph.inputs, *graph.outputs)  # their memory is theirs alone
    first: dict[int, int] = {}
    last = {v.number: len(graph.nodes) for v in ends}
    for time, node in enumerate(graph.nodes):
        for number in node.outputs:
            if node.layer.is_view:
                owner[number] = owner[node.inputs[0]]
            first[number] = time
        for number in (*node.inputs, *node.outputs):
            root = owner[number]
            last[root] = max(last.get(root, time), last.get(number, time), time)
    first |= {owner[v.number]: 0 for v in ends}
    sizes = {v.number: prod(v.shape) * (v.dtype or dtype).bytes for v in graph.values}
    own = [n for n in first if owner[n] == n]
    activations = max(
        sum(sizes[n] for n in own if first[n] <= time <= last[n])
        for time in range(max(len(graph.nodes), 1))
    )
    return {"weights": weights, "activations": activations}


def memory_line(memory: dict[str, int]) -> str:
    """Bytes by purpose in one line.

    >>> memory_line({"weights": 246824, "activations": 25824})
    'memory: weights 0.247 MB, activations 0.026 MB'
    """
    return "memory: " + ", ".join(f"{name} {size / 1e6:.3f} MB" for name, size in memory.items())
