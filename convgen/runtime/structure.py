"""The structure of a network as JSON, and layers from their text.

A layer is written as its constructor call, ``Conv2d(1, 6, (5, 5), padding=(2, 2))``. Reading it
back goes through Python's `ast` and an allow-list: known layer names, literal arguments, nothing
else is ever run.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from typing import Any

from convgen.errors import ConvgenError, DataError
from convgen.layers import LAYERS
from convgen.layers.base import Layer
from convgen.runtime.module import Graph, Module, Value


def parse_layer(text: str) -> Layer:
    """A layer from its constructor call.

    >>> parse_layer("Conv2d(64, 128, 3, stride=2)")
    Conv2d(64, 128, 3, stride=2)
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise DataError(
            "not a layer", expected="a call such as Conv2d(64, 128, 3)", got=text[:80]
        ) from None
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise DataError("not a layer", expected="a call such as Conv2d(64, 128, 3)", got=text[:80])
    kind = LAYERS.get(tree.func.id)
    if kind is None:
        names = {n.lower(): n for n in LAYERS}
        near = difflib.get_close_matches(tree.func.id.lower(), names, n=3)
        raise DataError(
            f"unknown layer {tree.func.id!r}",
            expected=None if near else "one of " + ", ".join(LAYERS),
            hint=" or ".join(names[n] for n in near) or None,
        )
    try:
        arguments = [ast.literal_eval(a) for a in tree.args]
        options = {k.arg or "**": ast.literal_eval(k.value) for k in tree.keywords}
    except (ValueError, TypeError, RecursionError):
        raise DataError(
            f"{tree.func.id}: arguments must be numbers, strings, booleans or tuples", got=text[:80]
        ) from None
    try:
        inspect.signature(kind).bind(*arguments, **options)
        return kind(*arguments, **options)
    except TypeError as error:
        raise DataError(
            f"{tree.func.id}: {error}", expected=f"{tree.func.id}({_words(kind)})"
        ) from None


def _words(kind: type[Layer]) -> str:
    found = inspect.signature(kind).parameters.values()
    return ", ".join(str(p.replace(annotation=p.empty)) for p in found)


def describe(graph: Graph) -> dict[str, Any]:
    """The graph as JSON values: inputs and outputs by value number, nodes in order."""
    return {
        "inputs": [v.number for v in graph.inputs],
        "outputs": [v.number for v in graph.outputs],
        "nodes": [
            {
                "path": n.path,
                "layer": repr(n.layer),
                "inputs": list(n.inputs),
                "outputs": list(n.outputs),
            }
            for n in graph.nodes
        ],
    }


class Described(Module):
    """The module that a described graph is: the same nodes, paths and value numbers."""

    def __init__(self, description: dict[str, Any]) -> None:
        self.description = description
        self.layers: dict[str, Layer] = {}
        try:
            for node in description["nodes"]:
                self.layers.setdefault(str(node["path"]), parse_layer(node["layer"]))
        except (KeyError, TypeError) as error:
            raise DataError("the graph of the file is damaged", got=repr(error)) from None

    def children(self) -> Any:
        yield from self.layers.items()

    def forward(self, *values: Value) -> Any:
        known = dict(zip(self.description["inputs"], values, strict=True))
        try:
            for node in self.description["nodes"]:
                layer = self.layers[node["path"]]
                made = layer(*(known[i] for i in node["inputs"]))
                values_made = made if isinstance(made, tuple) else (made,)
                known.update(zip(node["outputs"], values_made, strict=True))
            return tuple(known[i] for i in self.description["outputs"])
        except ConvgenError:
            raise
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise DataError("the graph of the file is damaged", got=repr(error)) from None
