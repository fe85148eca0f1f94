"""What a trained network learned to see, as arrays.

Class activation maps: Zhou and others, "Learning deep features for discriminative localization"
(2016). Grad-CAM: Selvaraju and others (2017). Saliency: Simonyan, Vedaldi and Zisserman (2014).
Guided backpropagation: Springenberg and others, "Striving for simplicity" (2015). Projections:
Zeiler and Fergus, "Visualizing and understanding convolutional networks" (2014).

All functions take a compiled network and samples (N, C, H, W), any number of them, and run the
network as in prediction. A map or a score is a value by its name: a layer's path, "input0" or
"output0". `classes` is one class for each sample, one for all, or None: the network's own answer.
Scores should be those before a softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.errors import DataError, ShapeError
from convgen.layers.activation import ReLU
from convgen.layers.base import Layer
from convgen.layers.dense import Linear
from convgen.layers.pooling import AdaptiveAvgPool2d, AvgPool2d
from convgen.runtime.module import Node
from convgen.runtime.network import Network
from convgen.runtime.pullback import Pullback
from convgen.symbolic import dsl
from convgen.symbolic.derive import custom_gradient
from convgen.symbolic.functions import relu, step
from convgen.symbolic.program import Program

Array = NDArray[Any]


def first_filters(network: Network) -> Array:
    """The weights (K, C, R, S) of the first layer that has filters. ShapeError if none has.

    >>> from convgen.layers.convolution import Conv2d
    >>> first_filters(Network(Conv2d(1, 4, 3), [(1, 1, 8, 8)])).shape
    (4, 1, 3, 3)
    """
    for name, _, spec in network.graph.specs:
        if spec.trained and len(spec.shape) == 4:
            return np.array(network.weights[name])
    raise ShapeError("the network has no layer with filters (K, C, R, S)")


def feature_maps(network: Network, x: Any, names: Sequence[str]) -> dict[str, Array]:
    """The values of the named layers for all samples."""
    kept = network.pullback(sources=names)
    found = [
        [kept.value(n)[:count] for n in names] for count, _ in _runs(network, kept, x)
    ]  # fmt: skip
    return {name: np.concatenate([run[i] for run in found]) for i, name in enumerate(names)}


def input_gradient(network: Network, x: Any, classes: Any = None, score: str = "output0") -> Array:
    """The gradient of each sample's score of a class with respect to the sample."""
    return _score_gradients(network, x, classes, score, "input0")[0]


def saliency(network: Network, x: Any, classes: Any = None, score: str = "output0") -> Array:
    """How much each pixel (N, H, W) would change the score: the largest absolute value of the
    gradient over the channels."""
    return np.abs(input_gradient(network, x, classes, score)).max(axis=1)


def guided_backpropagation(
    network: Network, x: Any, classes: Any = None, score: str = "output0"
) -> Array:
    """What speaks for a class in each sample, (N, C, H, W): the gradient of its score, but every
    ReLU passes back only what is positive, where its output is."""
    return _score_gradients(network, x, classes, score, "input0", guided)[0]


def grad_cam(
    network: Network, x: Any, maps: str, classes: Any = None, score: str = "output0"
) -> Array:
    """Where a class is seen, (N, y, x) of the maps' size: relu(sum over k of alpha_k A_k) with
    alpha_k the mean over the positions of the gradient of the score with respect to map k."""
    slope, values = _score_gradients(network, x, classes, score, maps)
    _expect_maps(values, maps)
    weight = slope.mean(axis=(2, 3), keepdims=True)
    return np.maximum((weight * values).sum(axis=1), 0)


def class_activation_map(network: Network, x: Any, classes: Any = None) -> Array:
    """Where a class is seen, (N, y, x): sum over k of w[class, k] A_k, for a network that ends in
    the mean of its maps A and a linear layer w. ShapeError for another network."""
    maps, head = _averaged_maps(network)
    values = feature_maps(network, x, [maps, "output0"])
    weight = network.weights[f"{head.path}.weight" if head.path else "weight"]
    chosen = _chosen(values["output0"], classes)
    return np.einsum("nk,nkyx->nyx", weight[chosen], values[maps])


def projection(network: Network, x: Any, maps: str, channel: int) -> Array:
    """What in each sample (N, C, H, W) made a feature map's strongest place strong: that place
    alone goes back through the network turned round: filters transposed, values of max pools to
    the recorded winners, ReLU applied to what goes back."""
    back = network.pullback(sources=[maps], wrt=["input0"], change=deconvnet)
    found: list[Array] = []
    for count, values in _runs(network, back, x):
        _expect_maps(values, maps)
        if not 0 <= channel < values.shape[1]:
            raise ShapeError(f"map {channel}", expected=f"0 to {values.shape[1] - 1} of {maps}")
        flat = values[:, channel].reshape(len(values), -1)
        peak = flat.argmax(axis=1)
        start = np.zeros_like(values).reshape(*values.shape[:2], -1)
        rows = np.arange(len(values))
        start[rows, channel, peak] = flat[rows, peak]
        found.append(back.back(start.reshape(values.shape))["input0"][:count])
    return np.concatenate(found)


def guided(layer: Layer, program: Program) -> Program:
    """A ReLU that passes back only what is positive, where its output is; other layers as they
    are. For `Network.pullback(change=...)`; no derivative."""
    return _rectifier(layer, program, lambda dy, y: relu(dy) * step(y))


def deconvnet(layer: Layer, program: Program) -> Program:
    """A ReLU that rectifies what goes back; other layers as they are. For
    `Network.pullback(change=...)`; no derivative."""
    return _rectifier(layer, program, lambda dy, y: relu(dy))


def _rectifier(layer: Layer, program: Program, rule: Callable[[Any, Any], Any]) -> Program:
    if not isinstance(layer, ReLU):
        return program
    y = program.output
    shape = tuple(int(e) for e in y.shape)  # type: ignore[arg-type]
    index = dsl.axes(" ".join(f"i{d}" for d in range(len(shape)))) if shape else ()
    cotangent = dsl.tensor("d" + y.name, shape, y.dtype)
    output = dsl.tensor(y.name, shape, y.dtype)
    body = rule(cotangent[index], output[index])
    back = dsl.define("dX", index, body, shape=shape, name=f"{program.name}_{rule.__name__}")
    return custom_gradient(program, back)


def _runs(network: Network, pull: Pullback, x: Any) -> Any:
    """(samples in it, first source's values) of runs that cover all samples; the last is filled
    with zeros."""
    if len(network.shapes) != 1:
        raise ShapeError("a network with one input", got=f"{len(network.shapes)} inputs")
    shape = network.shapes[0]
    data = network.checked(x, shape)
    if not len(data):
        raise DataError("no samples")
    for start in range(0, len(data), shape[0]):
        part = np.zeros(shape, data.dtype)
        count = min(shape[0], len(data) - start)
        part[:count] = data[start : start + count]
        result = pull(part)
        yield count, result[0] if isinstance(result, tuple) else result


def _score_gradients(
    network: Network, x: Any, classes: Any, score: str, wrt: str, change: Any = None
) -> tuple[Array, Array]:
    """(gradients of the chosen scores with respect to a value, that value)."""
    pull = network.pullback(sources=[score], wrt=[wrt], change=change)
    gradients: list[Array] = []
    values: list[Array] = []
    done = 0
    given = None if classes is None else np.broadcast_to(np.asarray(classes), len(np.asarray(x)))
    for count, scores in _runs(network, pull, x):
        chosen = _chosen(scores[:count], None if given is None else given[done : done + count])
        start = np.zeros_like(scores)
        start[np.arange(count), chosen] = 1
        gradients.append(pull.back(start)[wrt][:count])
        values.append(pull.value(wrt)[:count])
        done += count
    return np.concatenate(gradients), np.concatenate(values)


def _chosen(scores: Array, classes: Any) -> Array:
    """The class of each row of scores (N, K)."""
    if scores.ndim != 2:
        raise ShapeError("scores", expected="(N, classes)", got=str(scores.shape))
    if classes is None:
        return scores.argmax(axis=1)
    chosen = np.broadcast_to(np.asarray(classes), len(scores))
    if chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= scores.shape[1]:
        raise DataError("classes", expected=f"integers 0..{scores.shape[1] - 1}", got=str(classes))
    return chosen


def _expect_maps(values: Array, name: str) -> None:
    if values.ndim != 4:
        raise ShapeError(f"value {name}", expected="maps (N, K, y, x)", got=str(values.shape))


def _averaged_maps(network: Network) -> tuple[str, Node]:
    """(name of the maps whose mean is taken, the linear node behind)."""
    graph = network.graph
    made = {o: node for node in graph.nodes for o in node.outputs}
    head = made.get(graph.outputs[0].number)
    node = head
    while node is not None and len(node.inputs) == 1:
        averages = isinstance(node.layer, (AdaptiveAvgPool2d, AvgPool2d))
        if averages and graph.values[node.output].shape[2:] == (1, 1):
            break
        node = made.get(node.inputs[0])
    source = made.get(node.inputs[0]) if node is not None and len(node.inputs) == 1 else None
    if head is None or source is None or not isinstance(head.layer, Linear):
        raise ShapeError(
            "class activation map",
            expected="a network that ends in the mean of its maps and a linear layer",
            hint="grad_cam serves any network",
        )
    uses = [n.output for n in graph.nodes if n.path == source.path]
    name = source.path if len(uses) == 1 else f"{source.path}:{uses.index(source.output)}"
    return name, head
