"""Layers and networks as torch modules."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convgen.errors import ConvgenError, DataError, ShapeError
from convgen.interop.torch.operator import Operator, operator
from convgen.interop.torch.recipe import LayerFamily, Options, torch_dtype
from convgen.layers.base import Layer, ParameterSpec, Shape
from convgen.runtime import module as networks
from convgen.runtime.network import Network
from convgen.symbolic.program import Program
from convgen.target import Target
from convgen.target import target as target_of
from convgen.types import DType, dtype_of


class _Outline(networks.Graph):
    """A network's nodes without shapes: what is applied to what."""

    def add(self, layer: Layer, values: Sequence[networks.Value]) -> Any:
        path = self._paths.setdefault(
            id(layer), f"{type(layer).__name__.lower()}_{len(self.nodes)}"
        )
        if path not in {n.path for n in self.nodes}:
            try:
                specs = layer.parameters()
            except (ConvgenError, ValueError, IndexError, TypeError):
                raise ShapeError(
                    f"the parameters of {layer!r} depend on the shape of its input",
                    where=f"layer {path}",
                    hint="Module(network, input=(32, 1, 28, 28))",
                ) from None
            self.specs += [(f"{path}.{s.name}" if path else s.name, path, s) for s in specs]
        outs = tuple(self.new_value((), dtype) for dtype in layer.output_dtypes)
        numbers = tuple(v.number for v in outs)
        self.nodes.append(networks.Node(layer, path, tuple(v.number for v in values), numbers))
        return outs[0] if len(outs) == 1 else outs


def _outline(network: Layer | networks.Module) -> networks.Graph:
    """The nodes of a network whose forward does not look at shapes."""
    graph = _Outline()
    networks._name_layers(network, "", graph._paths)  # pyright: ignore[reportPrivateUsage]
    forward = network.inputs if isinstance(network, Layer) else network.forward
    kinds = inspect.signature(forward).parameters.values()
    count = 1 if isinstance(network, Layer) else sum(
        p.kind is not p.VAR_POSITIONAL and p.default is p.empty for p in kinds
    )  # fmt: skip
    graph.inputs = [graph.new_value(()) for _ in range(max(count, 1))]
    result = network(*graph.inputs)
    graph.outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    return graph


class _Step:
    """One layer of a network on tensors: operators for training and inference, and the names of
    its parameters in `holder`."""

    def __init__(
        self,
        node: networks.Node,
        holder: nn.Module,
        specs: Sequence[ParameterSpec],
        shapes: Sequence[Shape],
        options: Options,
    ) -> None:
        self.layer, self.holder = node.layer, holder
        self.inputs, self.outputs = node.inputs, node.outputs
        self.names = [s.name for s in specs]
        self.states = [s.name for s in specs if not s.trained]
        self.seeded = bool(node.layer.seed)
        self.train = self._operator(True, shapes, options)
        self.infer = self._operator(False, shapes, options)

    def _operator(self, training: bool, shapes: Sequence[Shape], options: Options) -> Operator:
        family = LayerFamily(self.layer, len(self.inputs), training)
        return operator(family.with_parameters(shapes), options)

    def run(self, training: bool, values: list[Tensor]) -> tuple[Tensor, ...]:
        if self.layer.is_view and not torch.compiler.is_compiling():
            (value,) = values
            return (value.reshape(self.layer.output_shape(tuple(value.shape))),)
        tensors = [*values, *(getattr(self.holder, name) for name in self.names)]
        if not training:
            return self.infer(*tensors)
        if self.seeded:
            tensors.append(torch.randint(0, 2**62, ()).view(torch.uint64))
        results = self.train(*tensors)
        count = len(self.outputs)
        for name, new in zip(self.states, results[count:], strict=True):
            with torch.no_grad():
                getattr(self.holder, name).copy_(new)
        return results[:count]


class Module(nn.Module):
    """A layer or a network as a torch module: parameters under PyTorch's names, forward and
    backward by derived kernels, on CPU tensors.

    input   the shape of the input, or a list of shapes (batch included): needed only where
            parameters depend on it. Every other shape, of batches too, works as well: kernels are
            made for each at its first use.
    dtype   of the parameters; `.double()` changes it as in torch

    A compiled `Network` brings its weights. State dicts are those of the torch layers.

    >>> import torch
    >>> from convgen.layers import Linear, ReLU
    >>> from convgen.runtime.module import Sequential
    >>> net = Module(Sequential(Linear(4, 8), ReLU(), Linear(8, 2)))
    >>> net(torch.ones(5, 4)).shape, list(net.state_dict())
    (torch.Size([5, 2]), ['0.weight', '0.bias', '2.weight', '2.bias'])
    """

    def __init__(
        self,
        network: Layer | networks.Module | Network,
        input: Any = None,
        *,
        dtype: DType | str = "f32",
        target: Target | str = "native",
        threads: int | None = None,
    ) -> None:
        super().__init__()
        weights = network.state_dict() if isinstance(network, Network) else None
        if isinstance(network, Network):
            input, dtype, network = network.shapes, network.dtype, network.module
        if not isinstance(network, (Layer, networks.Module)):  # pyright: ignore
            raise ShapeError(
                "nothing that a module can be made of",
                expected="a layer, a network or a compiled network",
                got=repr(network),
                hint="cg.torch.function" if isinstance(network, Program) else None,
            )
        options = Options(target_of(target), threads)
        graph = _outline(network) if input is None else networks.trace(network, _shapes(input))
        self._text = repr(network)
        self._count = len(graph.inputs)
        self._inputs = [v.number for v in graph.inputs]
        self._outputs = [v.number for v in graph.outputs]
        self._steps: list[_Step] = []
        self._declare(graph, dtype_of(dtype))
        for node in graph.nodes:
            specs = [s for _, path, s in graph.specs if path == node.path]
            shapes = [] if input is None else [graph.values[i].shape for i in node.inputs]
            holder = self._holder(node.path) if specs else self
            self._steps.append(_Step(node, holder, specs, shapes, options))
        if weights is not None:
            self.load_state_dict({n: torch.from_numpy(a) for n, a in weights.items()})

    def _holder(self, path: str) -> nn.Module:
        """The module that holds the parameters of a layer, made where it is not there."""
        place: nn.Module = self
        for name in path.split(".") if path else ():
            if name not in place._modules:
                place.add_module(name, nn.Module())
            place = place.get_submodule(name)
        return place

    def _declare(self, graph: networks.Graph, dtype: DType) -> None:
        """Parameters and buffers as the layers ask for them, drawn with torch's generator."""
        for _, path, spec in graph.specs:
            tensor = torch.empty(spec.shape, dtype=torch_dtype(spec.dtype or dtype))
            start = spec.initializer
            if start.kind == "constant":
                tensor.fill_(start.a)
            elif start.kind == "uniform":
                tensor.uniform_(start.a, start.b)
            else:
                tensor.normal_(start.a, start.b)
            if spec.trained:
                self._holder(path).register_parameter(spec.name, nn.Parameter(tensor))
            else:
                self._holder(path).register_buffer(spec.name, tensor)

    def forward(self, *inputs: Tensor) -> Any:
        """The network's outputs: a tensor, or a tuple of several."""
        if len(inputs) != self._count:
            raise DataError(
                "wrong number of inputs", expected=str(self._count), got=str(len(inputs))
            )
        for value in inputs:
            if not isinstance(value, Tensor):
                raise DataError(
                    "the input is no tensor", expected="a torch.Tensor", got=type(value).__name__
                )
            if value.device.type not in ("cpu", "meta"):
                raise DataError(
                    "the input is on another device", expected="cpu", got=str(value.device)
                )
        values = dict(zip(self._inputs, inputs, strict=True))
        for step in self._steps:
            results = step.run(self.training, [values[i] for i in step.inputs])
            values.update(zip(step.outputs, results, strict=False))
        found = tuple(values[i] for i in self._outputs)
        return found[0] if len(found) == 1 else found

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        # PyTorch counts batches; nothing here reads the count.
        for name in [n for n in state_dict if n.endswith("num_batches_tracked")]:
            del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return self._text


def _shapes(input: Any) -> list[Shape]:
    several = bool(input) and isinstance(input[0], Sequence)
    return [tuple(int(e) for e in s) for s in (input if several else [input])]
