"""The table of a network: layers with shapes, parameters and operations."""

from __future__ import annotations

from math import prod
from typing import Any, TypeAlias

from convgen.errors import ShapeError
from convgen.layers.arithmetic import Reach, windows_of
from convgen.runtime.module import Graph, Node
from convgen.types import DType, f32


def rows_of(graph: Graph) -> list[dict[str, Any]]:
    """One row for each node: path, layer (its constructor call), shape of the output (with batch),
    parameters (of a shared layer at its first use only), multiply_adds for one sample, and the
    receptive_field of one position with its stride in inputs of the network, one for each spatial
    dimension (None once a layer reads the whole map)."""
    reaches = reaches_of(graph)
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
                "receptive_field": _part(reaches[node.output], "size"),
                "stride": _part(reaches[node.output], "stride"),
            }
        )
    return rows


Reaches: TypeAlias = "tuple[Reach, ...] | None"


def _part(reaches: Reaches, name: str) -> list[float] | None:
    return None if reaches is None else [getattr(r, name) for r in reaches]


def reaches_of(graph: Graph) -> dict[int, Reaches]:
    """Value number -> the receptive field of one of its positions, a Reach for each spatial
    dimension; None where a layer before it reads the whole map, or branches of different strides
    meet.

    >>> from convgen.layers import Conv2d, MaxPool2d
    >>> from convgen.runtime.module import Sequential, trace
    >>> graph = trace(Sequential(Conv2d(1, 4, 5), MaxPool2d(2)), [(1, 1, 28, 28)])
    >>> reaches_of(graph)[2][0]
    Reach(size=6, stride=2, start=0)
    """
    found: dict[int, Reaches] = {
        v.number: (Reach(),) * max(len(v.shape) - 2, 0) for v in graph.inputs
    }
    for node in graph.nodes:
        reach = _through(node, [found[i] for i in node.inputs], graph)
        found |= dict.fromkeys(node.outputs, reach)
    return found


def _through(node: Node, inputs: list[Reaches], graph: Graph) -> Reaches:
    shape = graph.values[node.output].shape
    before = inputs[0]
    if before is None or len(shape) - 2 != len(before) or not before:
        return None
    for other in inputs[1:]:
        if other is None or len(other) != len(before):
            return None
        try:
            before = tuple(a.join(b) for a, b in zip(before, other, strict=True))
        except ShapeError:
            return None
    kernel = getattr(node.layer, "kernel_size", ())
    same = shape[2:] == graph.values[node.inputs[0]].shape[2:]
    if not isinstance(kernel, tuple) or len(kernel) not in (0, len(before)):  # pyright: ignore
        return None
    windows = windows_of(node.layer) if kernel else ()
    if not windows:  # position by position, or over the whole map
        return before if same else None
    return tuple(r.through(w) for r, w in zip(before, windows, strict=True))


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
