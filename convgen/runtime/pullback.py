"""Inside a network: values of any node, gradients of any value, and training by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convgen.errors import DataError, ShapeError
from convgen.layers.base import Shape
from convgen.layers.loss import Loss
from convgen.layers.update import Optimizer
from convgen.runtime import kernel
from convgen.runtime.data.stream import run_seed
from convgen.runtime.module import Graph
from convgen.runtime.plan import Plan, PullbackTape, part, step_plan
from convgen.runtime.plan.pullback import Change
from convgen.symbolic.derive import grad

if TYPE_CHECKING:
    from convgen.runtime.network import Network

Array = NDArray[Any]


def value_number(graph: Graph, name: str) -> int:
    """The value of that name: "input0", "output0", or a layer's path ("features.0") for the first
    output of its node; "path:i" for the i-th use of a layer that is used several times.

    Raises ShapeError for a name the network does not have, or of several values.
    """
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        places = {f"{kind}{i}": v.number for i, v in enumerate(values)}
        if name in places:
            return places[name]
    path, _, use = name.partition(":")
    nodes = [node for node in graph.nodes if node.path == path]
    if len(nodes) > 1 and not use:
        raise ShapeError(
            f"layer {path} is used {len(nodes)} times",
            expected=f"{path}:0 to {path}:{len(nodes) - 1}",
        )
    at = int(use) if use.isdecimal() else 0
    if at >= len(nodes) or (use and not use.isdecimal()):
        known = dict.fromkeys(node.path for node in graph.nodes)
        raise ShapeError(
            f"no value {name!r} in the network",
            expected="input0, output0 or one of " + ", ".join(known),
        )
    return nodes[at].output


class Pullback:
    """A network run forward and then back from a cotangent; made by `Network.pullback`.

    >>> from convgen.layers.dense import Linear
    >>> from convgen.runtime.network import Network
    >>> network = Network(Linear(3, 2), [(1, 3)])
    >>> slope = network.pullback(wrt=["input0"])
    >>> scores = slope([[1, 2, 3]])
    >>> gradient = slope.back([[1, 0]])["input0"]    # of score 0
    >>> bool((gradient == network.weights["weight"][:1]).all())
    True
    """

    def __init__(
        self,
        network: Network,
        *,
        sources: Sequence[str] = (),
        wrt: Sequence[str] = (),
        keep: Sequence[str] = (),
        training: bool = False,
        weights: bool = False,
        change: Change | None = None,
    ) -> None:
        graph = network.graph
        self.network = network
        self.sources = tuple(sources) or tuple(f"output{i}" for i in range(len(graph.outputs)))
        self.wrt, self.keep, self.weights = tuple(wrt), tuple(keep), weights
        numbers = {n: value_number(graph, n) for n in (*self.sources, *wrt, *keep)}
        tape = PullbackTape(
            graph,
            network.weights,
            network.build,
            [numbers[n] for n in self.sources],
            sorted({numbers[n] for n in self.wrt}),
            [numbers[n] for n in (*self.keep, *self.wrt)],
            training,
            weights,
            change,
        )
        self.training = training
        self.plan: Plan = tape.plan()
        self._shapes: dict[str, Shape] = {n: graph.values[i].shape for n, i in numbers.items()}
        self._values = {n: tape.values[i].name for n, i in numbers.items()}
        self._gradients = {n: tape.gradients[numbers[n]].name for n in self.wrt}
        self._seeds = len(tape.seed_regions)

    def __call__(self, *inputs: Any, seed: int = 0, step: int = 0) -> Any:
        """The sources' values for one batch of the compiled size; seed and step determine what
        random layers draw. In training mode running statistics are updated."""
        network = self.network
        if len(inputs) != len(network.shapes):
            raise DataError("inputs", expected=str(len(network.shapes)), got=str(len(inputs)))
        for i, (array, shape) in enumerate(zip(inputs, network.shapes, strict=True)):
            data = network.checked(array, shape)
            if len(data) != shape[0]:
                raise DataError(f"input {i}", expected=f"{shape[0]} samples", got=str(len(data)))
            self.plan.view(f"input{i}")[...] = data
        for number in range(self._seeds):
            self.plan.view(f"seed{number}")[...] = run_seed(seed, step, number)
        self.plan.run_part(0, network.thread_count)
        if self.training:
            network.weights_changed()
        found = tuple(self.value(name) for name in self.sources)
        return found[0] if len(found) == 1 else found

    def value(self, name: str) -> Array:
        """A copy of a source, a kept value or one of `wrt`, of the last run."""
        return np.array(self.plan.view(self._values[name])).reshape(self._shapes[name])

    def back(self, *cotangents: Any) -> dict[str, Array]:
        """Gradients of sum(cotangent * source) by the names in `wrt`, and of all parameters if
        `weights`; for the values of the last run. Raises DataError for other shapes."""
        if len(cotangents) != len(self.sources):
            raise DataError("cotangents", expected=f"{len(self.sources)}", got=str(len(cotangents)))
        for i, (name, array) in enumerate(zip(self.sources, cotangents, strict=True)):
            data = np.asarray(array)
            if data.shape != self._shapes[name]:
                raise DataError(
                    f"cotangent of {name}", expected=str(self._shapes[name]), got=str(data.shape)
                )
            self.plan.view(f"cotangent{i}")[...] = data
        self.plan.run_part(1, self.network.thread_count)
        found = {
            n: np.array(self.plan.view(region)).reshape(self._shapes[n])
            for n, region in self._gradients.items()
        }
        if self.weights:
            vector = self.plan.view("gradient")
            places = self.network.weights.places
            found |= {n: np.array(part(vector, place)) for n, place in places.items()}
        return found


class Stepper:
    """Steps of an optimizer with gradients from outside; made by `Network.stepper`."""

    def __init__(self, network: Network, optimizer: Optimizer) -> None:
        self.network, self.optimizer, self.step = network, optimizer, 0
        self.plan = step_plan(network.weights, network.build, optimizer)

    def __call__(self, gradients: Mapping[str, Any], factor: float = 1.0) -> None:
        """One step; the gradient of every parameter by name (other names are passed over).
        `factor` multiplies the learning rate. Raises DataError for a parameter without gradient."""
        places = self.network.weights.places
        missing = sorted(places.keys() - gradients.keys())
        if missing:
            raise DataError("no gradient", got=", ".join(missing))
        vector = self.plan.view("gradient")
        for name, place in places.items():
            part(vector, place)[...] = gradients[name]
        self.step += 1
        for name, value in self.optimizer.values(self.step).items():
            self.plan.view(f"hyper.{name}")[...] = value * factor if name == "lr" else value
        self.plan.run(self.network.thread_count)
        self.network.weights_changed()


class LossSlope:
    """A loss' value and its gradient to the scores, as kernels; made by `Network.loss`."""

    def __init__(self, network: Network, loss: Loss, shape: Shape) -> None:
        program = loss.program(shape, training=True, dtype=network.dtype)
        options: dict[str, Any] = {"target": network.target, "threads": network.threads}
        self.loss, self.dtype = loss, network.dtype.numpy_name
        self._value = kernel.compile(program, **options)
        self._slope = kernel.compile(grad(program, ["X"]), **options)

    def __call__(self, scores: Any, targets: Any) -> tuple[float, Array]:
        """(loss, gradient to the scores); targets as in `fit`, or one number for all."""
        x = np.ascontiguousarray(scores, self.dtype)
        kind = "int64" if self.loss.labels else self.dtype
        wanted = self.loss.target_shape(x.shape)
        t = np.ascontiguousarray(np.broadcast_to(np.asarray(targets, kind), wanted))
        one = np.ones((), self.dtype)
        return float(self._value(x, t)), self._slope(x, t, one)
