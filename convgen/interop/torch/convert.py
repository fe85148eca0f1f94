"""Torch networks as convgen networks: traced by torch.fx, layer by layer."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from convgen.errors import DataError
from convgen.layers import LAYERS
from convgen.layers.base import Layer
from convgen.runtime.module import Module, Value, add, concat
from convgen.runtime.network import Network

# What changes nothing that is computed, or only where the result is put.
_IGNORED = {"inplace", "device", "dtype"}
# Options of torch modules that are kept under another name than that of the constructor.
_KEPT_AS = {"bias": lambda m: getattr(m, "bias", None) is not None}


def from_module(module: nn.Module, input: Any, *, mode: str = "train", **options: Any) -> Network:
    """A torch network of layers that convgen knows, as a compiled network with its weights.

    input    shape of the input (batch included), or a list of shapes for several
    options  dtype, target, threads, seed as for `convgen.compile`

    Layers may be called in any order and joined by +, torch.add and torch.cat; functions such as
    relu, flatten and max_pool2d are known too. DataError names a layer or function that is not,
    and options that convgen's layer does not have.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> from_module(net, (5, 4)).parameters
    58
    """
    if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DataError("no torch module", expected="a torch.nn.Module", got=repr(module)[:80])
    graph = None if _is_known(module) else _trace(module)
    several = bool(input) and isinstance(input[0], (tuple, list, torch.Size))
    shapes = [tuple(s) for s in input] if several else [tuple(input)]
    subject = convert_layer(module, "") if graph is None else Traced(module, graph)
    network = Network(subject, shapes, mode=mode, **options)
    wanted = {name for name, _, _ in network.graph.specs}
    state = {n: t.detach().cpu().numpy() for n, t in module.state_dict().items() if n in wanted}
    network.load_state_dict(state)
    return network


def _trace(module: nn.Module) -> fx.Graph:
    """The graph in training mode, so that dropout(x, training=self.training) is seen."""
    modes = {m: m.training for m in module.modules()}
    module.train()
    try:
        return fx.symbolic_trace(module).graph
    except Exception as error:
        raise DataError(
            f"{type(module).__name__} cannot be traced",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            hint="a forward without branches on values",
        ) from error
    finally:
        for inner, training in modes.items():
            inner.training = training


def _is_known(module: nn.Module) -> bool:
    return (
        type(module).__module__.startswith("torch.nn.modules") and type(module).__name__ in LAYERS
    )


def convert_layer(module: nn.Module, path: str) -> Layer:
    """convgen's layer of the same name and options. DataError for what it cannot express."""
    name = type(module).__name__
    where = f"{path}: {module!r}" if path else repr(module)
    if not _is_known(module):
        raise DataError(f"no layer for {name}", expected="one of " + ", ".join(LAYERS), where=where)
    kind = LAYERS[name]
    theirs = inspect.signature(type(module)).parameters
    ours = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {}
    for option, parameter in theirs.items():
        if option in _IGNORED:
            continue
        value = _KEPT_AS[option](module) if option in _KEPT_AS else getattr(module, option, None)
        if option in ours:
            if hasattr(module, option) or option in _KEPT_AS:
                arguments[option] = value
        elif hasattr(module, option) and value != parameter.default:
            raise DataError(
                f"{name} has no {option}",
                expected=f"{option}={parameter.default!r}",
                got=f"{option}={value!r}",
                where=where,
            )
    return kind(**arguments)


class Traced(Module):
    """The network that a torch.fx graph is. Children carry torch's names; a function of the graph
    is a layer of its node's name."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        self.layers: dict[str, Layer] = {}
        self._graph = graph
        self._targets: dict[str, str] = {}
        first: dict[int, str] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                inner = module.get_submodule(node.target)
                path = first.setdefault(id(inner), node.target)
                self._targets[node.name] = path
                if path not in self.layers:
                    self.layers[path] = convert_layer(inner, path)
            elif node.op == "get_attr":
                raise DataError(
                    f"{node.target} is read by the network itself, not by a layer",
                    expected="parameters inside of known layers",
                )

    def children(self) -> Any:
        yield from self.layers.items()

    def forward(self, *values: Value) -> Any:
        known: dict[fx.Node, Any] = {}
        inputs = iter(values)

        def value(item: Any) -> Any:
            return fx.map_arg(item, lambda node: known[node])

        for node in self._graph.nodes:
            if node.op == "placeholder":
                known[node] = next(inputs)
            elif node.op == "output":
                return value(node.args[0])
            elif node.op == "call_module":
                known[node] = self.layers[self._targets[node.name]](*value(node.args))
            else:
                known[node] = _call(node, value(node.args), value(node.kwargs))
        raise DataError("the network returns nothing")


def _functional(kind: str) -> Callable[..., Any]:
    """A function with the arguments of a layer's constructor behind its input."""

    def apply(x: Value, *args: Any, **kwargs: Any) -> Any:
        signature = inspect.signature(LAYERS[kind])
        names = list(signature.parameters)
        options = dict(zip(names, args, strict=False)) | kwargs
        given = {n: v for n, v in options.items() if n not in _IGNORED and not n.startswith("_")}
        unknown = [n for n, v in given.items() if n not in names and v not in (None, False)]
        if unknown or len(args) > len(names):
            raise DataError(
                f"{kind} has no {', '.join(unknown) or 'such argument'}",
                expected=f"{kind}{signature}",
            )
        return LAYERS[kind](**{n: v for n, v in given.items() if n in names})(x)

    return apply


def _dropout(x: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return LAYERS["Dropout"](p)(x) if training else x


def _cat(values: Any, dim: int = 0) -> Any:
    return concat(list(values), dim)


def _reshape(x: Value, *shape: Any) -> Any:
    """view and reshape where they say flatten(1): (batch, -1) or the product of the rest."""
    sizes = (
        list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else list(shape)
    )
    rest = 1
    for extent in x.shape[1:]:
        rest *= extent
    if len(sizes) == 2 and sizes[0] in (x.shape[0], -1) and sizes[1] in (-1, rest):
        return LAYERS["Flatten"](1)(x)
    raise DataError(
        f"reshape of {x.shape} to {tuple(sizes)}", expected=f"({x.shape[0]}, -1)", hint="flatten(1)"
    )


def _flatten(x: Value, start_dim: int = 0, end_dim: int = -1) -> Any:
    return LAYERS["Flatten"](start_dim, end_dim)(x)


def _size(x: Value, dim: int | None = None) -> Any:
    return x.shape if dim is None else x.shape[dim]


_SAME = {
    "relu": "ReLU", "relu_": "ReLU", "tanh": "Tanh", "sigmoid": "Sigmoid", "softmax": "Softmax",
    "log_softmax": "LogSoftmax", "gelu": "GELU", "silu": "SiLU", "mish": "Mish",
    "leaky_relu": "LeakyReLU", "elu": "ELU", "selu": "SELU", "celu": "CELU", "relu6": "ReLU6",
    "softplus": "Softplus", "logsigmoid": "LogSigmoid", "softsign": "Softsign",
    "tanhshrink": "Tanhshrink", "hardtanh": "Hardtanh", "hardsigmoid": "Hardsigmoid",
    "hardswish": "Hardswish", "abs": "Abs", "max_pool1d": "MaxPool1d", "max_pool2d": "MaxPool2d",
    "max_pool3d": "MaxPool3d", "avg_pool1d": "AvgPool1d", "avg_pool2d": "AvgPool2d",
    "avg_pool3d": "AvgPool3d", "adaptive_avg_pool1d": "AdaptiveAvgPool1d",
    "adaptive_avg_pool2d": "AdaptiveAvgPool2d", "adaptive_avg_pool3d": "AdaptiveAvgPool3d",
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _functional(kind) for name, kind in _SAME.items()},
    "add": add, "iadd": add, "cat": _cat, "concat": _cat, "flatten": _flatten,
    "reshape": _reshape, "view": _reshape, "size": _size, "getitem": operator.getitem,
    "dropout": _dropout, "contiguous": lambda x: x,
}  # fmt: skip


def _call(node: fx.Node, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """A function or method of the graph on values."""
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if name == "getattr" and args[1] == "shape":
        return args[0].shape
    if name not in _FUNCTIONS:
        raise DataError(
            f"{node.format_node()} has no layer",
            expected="one of " + ", ".join(sorted(_FUNCTIONS)),
        )
    try:
        return _FUNCTIONS[name](*args, **kwargs)
    except (AttributeError, TypeError) as error:
        raise DataError(
            f"{node.format_node()}: {error}", expected=f"{name} of values of the network"
        ) from None
