"""Networks: layers joined by Python functions, traced into a graph.

A `Module` owns layers and other modules as attributes and says in `forward` how values flow, as in
PyTorch. Compiling a module traces `forward` once with values that have shapes and no numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from convgen.errors import FormulaError, ShapeError
from convgen.layers.base import Layer, ParameterSpec, Shape
from convgen.layers.dense import Add, Concat
from convgen.types import DType


class Module:
    """Base of networks. Set layers as attributes, write `forward(self, x)`, call layers on values.

    Branches, `add` and `concat` are functions on values:

    >>> from convgen.layers.convolution import Conv2d
    >>> class Block(Module):
    ...     def __init__(self, width):
    ...         self.conv = Conv2d(width, width, 3, padding=1)
    ...     def forward(self, x):
    ...         return add(self.conv(x), x)
    >>> trace(Block(4), [(2, 4, 8, 8)]).outputs[0].shape
    (2, 4, 8, 8)
    """

    def forward(self, *values: Value) -> Any:
        """What the network computes; called with `Value`s."""
        raise FormulaError(f"{type(self).__name__} has no forward(self, x)")

    def __call__(self, *values: Value) -> Any:
        return self.forward(*values)

    def children(self) -> Iterator[tuple[str, Layer | Module]]:
        """(name, layer or module) of the attributes, in the order they were set."""
        for name, value in vars(self).items():
            if isinstance(value, (Layer, Module)):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for position, item in enumerate(value):  # pyright: ignore[reportUnknownArgumentType]
                    if isinstance(item, (Layer, Module)):
                        yield f"{name}.{position}", item
            elif isinstance(value, dict):
                for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
                    if isinstance(item, (Layer, Module)):
                        yield f"{name}.{key}", item


class Sequential(Module):
    """Layers one after another; names are positions, or the keys of an OrderedDict.

    >>> from convgen.layers.dense import Linear
    >>> from convgen.layers.activation import ReLU
    >>> net = Sequential(Linear(4, 8), ReLU(), Linear(8, 2))
    >>> trace(net, [(5, 4)]).outputs[0].shape
    (5, 2)
    """

    def __init__(self, *layers: Layer | Module | OrderedDict[str, Layer | Module]) -> None:
        first = layers[0] if layers else None
        if len(layers) == 1 and isinstance(first, dict):
            self.layers: dict[str, Layer | Module] = dict(first)
        else:
            self.layers = {str(i): layer for i, layer in enumerate(layers)}  # type: ignore[misc]
        for name, layer in self.layers.items():
            if not isinstance(layer, (Layer, Module)):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise FormulaError(
                    f"Sequential: item {name}", expected="a layer or module", got=repr(layer)
                )

    def children(self) -> Iterator[tuple[str, Layer | Module]]:
        yield from self.layers.items()

    def forward(self, *values: Value) -> Any:
        (value,) = values
        for layer in self.layers.values():
            value = layer(value)
        return value

    def __repr__(self) -> str:
        return "Sequential(" + ", ".join(repr(v) for v in self.layers.values()) + ")"


@dataclass(eq=False)
class Value:
    """A tensor of a network under construction: a shape (batch included) and where it is from."""

    graph: Graph
    number: int
    shape: Shape
    dtype: DType | None = None  # None: the network's

    def apply(self, layer: Layer, *values: Value) -> Any:
        """Add a node that computes the layer on the values; a tuple if it has several outputs."""
        return self.graph.add(layer, values)

    def __add__(self, other: Value) -> Value:
        return add(self, other)


def add(*values: Value) -> Value:
    """The elementwise sum of values of one shape."""
    return values[0].apply(Add(), *values)


def concat(values: Sequence[Value], dim: int = 1) -> Value:
    """Values side by side along `dim` (channels by default)."""
    return values[0].apply(Concat(dim), *values)


@dataclass(frozen=True)
class Node:
    """One layer applied to values: `inputs` and `outputs` are value numbers."""

    layer: Layer
    path: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def output(self) -> int:
        """The first output."""
        return self.outputs[0]


@dataclass
class Graph:
    """A traced network: nodes in the order of computation.

    `values[i]` is value number i; `specs` lists the parameters and states as (full name, path of
    the layer, spec), each layer once however often it is used.
    """

    values: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    specs: list[tuple[str, str, ParameterSpec]] = field(default_factory=list)
    _paths: dict[int, str] = field(default_factory=dict)

    def new_value(self, shape: Shape, dtype: DType | None = None) -> Value:
        value = Value(self, len(self.values), tuple(shape), dtype)
        self.values.append(value)
        return value

    def add(self, layer: Layer, values: Sequence[Value]) -> Any:
        """Append a node; the layer's own errors name the layer's path."""
        for value in values:
            if not isinstance(value, Value) or value.graph is not self:  # pyright: ignore
                raise FormulaError(
                    f"{layer!r} is applied to {value!r}", expected="values of forward"
                )
        shapes = tuple(v.shape for v in values)
        path = self._paths.get(id(layer))
        if path is None:
            if layer.parameters(*shapes):
                raise FormulaError(
                    f"{layer!r} has parameters but is no attribute of a module",
                    hint="create it in __init__ and store it on self",
                )
            path = f"{type(layer).__name__.lower()}_{len(self.nodes)}"
            self._paths[id(layer)] = path
        place = f"layer {path}" if path else "the layer"
        try:
            shape = layer.output_shape(*shapes)
        except ShapeError as error:
            raise ShapeError(
                error.message,
                expected=error.expected,
                got=error.got,
                where=place if error.where is None else f"{place}, {error.where}",
                hint=error.hint,
            ) from None
        for value, dtype in zip(values, layer.input_dtypes(*shapes), strict=True):
            if value.dtype != dtype:
                raise FormulaError(
                    f"{layer!r} reads a value of another dtype",
                    expected=str(dtype or "the network's floats"),
                    got=str(value.dtype or "the network's floats"),
                    where=place,
                )
        known = {p for _, p, _ in self.specs}
        if path not in known:
            for spec in layer.parameters(*shapes):
                self.specs.append((f"{path}.{spec.name}" if path else spec.name, path, spec))
        outs = tuple(self.new_value(shape, dtype) for dtype in layer.output_dtypes)
        numbers = tuple(v.number for v in outs)
        self.nodes.append(Node(layer, path, tuple(v.number for v in values), numbers))
        return outs[0] if len(outs) == 1 else outs

    def parameter_count(self) -> int:
        """Number of trained parameters."""
        total = 0
        for _, _, spec in self.specs:
            if spec.trained:
                count = 1
                for extent in spec.shape:
                    count *= extent
                total += count
        return total

    def multiply_adds(self) -> int:
        """Multiply-adds of convolutions and linear layers in one forward pass."""
        return sum(
            n.layer.multiply_adds(*(self.values[i].shape for i in n.inputs)) for n in self.nodes
        )


def _name_layers(module: Layer | Module, prefix: str, paths: dict[int, str]) -> None:
    """Record the path of every layer below a module; the first name of a shared layer counts."""
    if isinstance(module, Layer):
        paths.setdefault(id(module), prefix)
        return
    for name, child in module.children():
        _name_layers(child, f"{prefix}.{name}" if prefix else name, paths)


def trace(module: Layer | Module, shapes: Sequence[Shape]) -> Graph:
    """The graph of a module for inputs of the given shapes (batch included).

    Raises FormulaError when forward returns something else than values, ShapeError (naming the
    layer) when shapes do not fit.
    """
    graph = Graph()
    _name_layers(module, "", graph._paths)  # pyright: ignore[reportPrivateUsage]
    graph.inputs = [graph.new_value(s) for s in shapes]
    result = module(*graph.inputs)
    outputs = result if isinstance(result, (tuple, list)) else [result]
    for value in outputs:
        if not isinstance(value, Value):
            raise FormulaError(
                f"forward of {type(module).__name__} returned {value!r}", expected="a value"
            )
    graph.outputs = list(outputs)
    return graph
