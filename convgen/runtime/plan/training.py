"""The plan of a training step.

Every node's forward (which also saves what its backward reads), the loss, every node's backward in
reverse order, and the optimizer's step, all formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from convgen.layers.base import Layer, Shape
from convgen.layers.dense import Add
from convgen.layers.loss import Loss
from convgen.layers.update import Optimizer
from convgen.runtime.build import Built
from convgen.runtime.module import Graph, Node
from convgen.runtime.plan.memory import Plan, PlanBuilder, Region
from convgen.runtime.plan.tape import NetworkTape, full_name
from convgen.runtime.plan.weights import Weights
from convgen.symbolic import derive
from convgen.symbolic.program import Program
from convgen.types import i64


class BackwardTape(NetworkTape):
    """Records a forward that saves what its backward reads, and the backward, node by node.

    wrt       numbers of values whose gradients are wanted, beside the parameters'
    trains    whether the parameters' gradients are wanted
    """

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        build: Callable[[Program], Built],
        training: bool = True,
        wrt: Iterable[int] = (),
        trains: bool = True,
    ) -> None:
        super().__init__(graph, weights, build, training)
        self.wanted, self.trains = frozenset(wrt), trains
        extent = weights.vector.shape if trains else (0,)
        self.gradient = self.builder.region("gradient", extent, kept=True)
        self.backwards: dict[int, tuple[Program, dict[str, Region]]] = {}
        self.cotangents: dict[int, list[Region]] = {}
        self.trained = set(weights.places)
        self.differentiable = self._dependent_values()
        self.uses: dict[str, list[Region]] = {}

    def _dependent_values(self) -> set[int]:
        """Numbers of the values that depend on a wanted one or on a trained parameter."""
        found: set[int] = set(self.wanted)
        for node in self.graph.nodes:
            specs = node.layer.parameters(*self.shapes(node)) if self.trains else ()
            own = any(s.trained for s in specs)
            if own or any(i in found for i in node.inputs):
                values = self.graph.values
                found |= {o for o in node.outputs if values[o].dtype is None}
        return found

    def wrt(self, node: Node) -> list[tuple[str, int | str]]:
        """(formula name, value number or full parameter name) of what a node's backward gives."""
        shapes = self.shapes(node)
        wanted: list[tuple[str, int | str]] = [
            (name, i)
            for name, i in zip(node.layer.inputs(*shapes), node.inputs, strict=True)
            if i in self.differentiable
        ]
        for spec in node.layer.parameters(*shapes):
            if spec.trained and self.trains:
                wanted.append((spec.tensor, full_name(node.path, spec.name)))
        return wanted

    def forward(self, node: Node) -> None:
        program = None if node.layer.is_view else self.program(node)
        outputs = self.place_outputs(node, program)
        if program is None:
            return
        wanted = [name for name, _ in self.wrt(node)]
        bound = self.bind(node) | outputs
        if not wanted:
            self.builder.call(node.path, program, bound)
            return
        ahead, behind = self.derived(program, wanted)
        self.save(node.path, ahead, bound)
        self.builder.call(node.path, ahead, bound)
        self.backwards[node.output] = (behind, bound)

    def derived(self, program: Program, wanted: Sequence[str]) -> tuple[Program, Program]:
        """(forward, backward) of a node's formula."""
        return derive.split(program, wanted)

    def save(self, title: str, ahead: Program, bound: dict[str, Region]) -> None:
        """Regions for the tensors that the forward keeps for the backward."""
        for name in ahead.saved:
            if name not in bound:
                tensor = ahead.tensor(name)
                shape = tuple(int(e) for e in tensor.shape)  # type: ignore[arg-type]
                bound[name] = self.builder.region(f"{title}.{name}", shape, tensor.dtype)

    def total(
        self, title: str, parts: Sequence[Region], shape: Shape, into: Region | None
    ) -> Region:
        """The sum of contributions; a single one is handed through."""
        if len(parts) == 1 and into is None:
            return parts[0]
        target = into or self.builder.region(f"{title}.total", shape)
        layer: Layer = Add()
        shapes = [shape] * len(parts)
        program = layer.program(*shapes, dtype=self.dtype)
        bound = dict(zip(layer.inputs(*shapes), parts, strict=True))
        self.builder.call(title, program, bound | {program.output.name: target})
        return target

    def backward(self, node: Node) -> None:
        if not any(self.cotangents.get(o) for o in node.outputs):
            return
        if node.layer.is_view:
            cotangent = self.cotangent(node, node.output)
            self.cotangents.setdefault(node.inputs[0], []).append(cotangent)
            return
        if node.output not in self.backwards:
            return
        behind, bound = self.backwards[node.output]
        bound = dict(bound)
        for tensor, number in zip(self.program(node).outputs, node.outputs, strict=True):
            if tensor.dtype.is_float:
                bound["d" + tensor.name] = self.cotangent(node, number)
        for name, goal in self.wrt(node):
            bound["d" + name] = self._goal_region(node, name, goal)
        self.call_backward(node, behind, bound)

    def call_backward(self, node: Node, behind: Program, bound: Mapping[str, Region]) -> None:
        """Record what computes a node's gradients, all of them bound."""
        self.builder.call(f"d.{node.path}", behind, bound)

    def cotangent(self, node: Node, number: int) -> Region:
        """The sum of what a value's readers contribute; zeros if nobody does."""
        parts = self.cotangents.pop(number, [])
        shape = self.graph.values[number].shape
        if not parts:  # never written: kept regions of a new arena are zero
            return self.builder.region(f"d.{node.path}.zero{number}", shape, kept=True)
        return self.total(f"d.{node.path}.sum", parts, shape, None)

    def _goal_region(self, node: Node, name: str, goal: int | str) -> Region:
        if isinstance(goal, int):
            region = self.builder.region(f"d.{node.output}.{name}", self.graph.values[goal].shape)
            self.cotangents.setdefault(goal, []).append(region)
            return region
        shared = sum(n.path == node.path for n in self.graph.nodes) > 1
        if not shared:
            return self._gradient_part(goal)
        region = self.builder.region(f"d.{node.output}.{goal}", self.weights.places[goal][1])
        self.uses.setdefault(goal, []).append(region)
        return region

    def _gradient_part(self, name: str) -> Region:
        """A parameter's stretch of the gradient vector, as a region inside that region."""
        offset, shape = self.weights.places[name]
        region = self.builder.region(f"gradient.{name}", shape, kept=True)
        region.parent, region.start = self.gradient, offset * self.dtype.bytes
        return region

    def total_uses(self) -> None:
        """The gradients of parameters that several nodes share."""
        for name, parts in self.uses.items():
            shape = self.weights.places[name][1]
            self.total(f"d.{name}.sum", parts, shape, self._gradient_part(name))


class TrainingTape(BackwardTape):
    """Builds the plan of a training step, part by part."""

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        build: Callable[[Program], Built],
        loss: Loss,
        optimizer: Optimizer | None,
    ) -> None:
        super().__init__(graph, weights, build)
        self.loss, self.optimizer = loss, optimizer

    def loss_calls(self) -> None:
        (output,) = self.graph.outputs
        program = self.loss.program(output.shape, training=True, dtype=self.dtype)
        labels = i64 if self.loss.labels else self.dtype
        target = self.builder.region(
            "target", self.loss.target_shape(output.shape), labels, kept=True
        )
        one = self.builder.region("one", (), kept=True)
        bound = {
            "X": self.values[output.number],
            "T": target,
            program.output.name: self.builder.region("loss", (), kept=True),
        }
        ahead, behind = derive.split(program, ["X"])
        self.save("loss", ahead, bound)
        self.builder.call("loss", ahead, bound)
        region = self.builder.region("d.loss", output.shape)
        bound |= {"d" + program.output.name: one, "dX": region}
        self.builder.call("d.loss", behind, bound)
        self.cotangents[output.number] = [region]

    def record(self) -> None:
        """All calls of a training step, in order."""
        for node in self.graph.nodes:
            self.forward(node)
        self.loss_calls()
        for node in reversed(self.graph.nodes):
            self.backward(node)
        self.total_uses()
        if self.optimizer is not None:
            record_step(self.builder, self.weights, self.gradient, self.optimizer)

    def plan(self) -> tuple[Plan, list[str]]:
        self.record()
        plan = self.builder.finish()
        plan.view("one")[...] = 1
        return plan, [self.values[v.number].name for v in self.graph.outputs]


def record_step(
    builder: PlanBuilder, weights: Weights, gradient: Region, optimizer: Optimizer
) -> None:
    """The call of an optimizer's step; regions optimizer.NAME of states, hyper.NAME of scalars."""
    count = weights.vector.size
    program = optimizer.program(count, weights.dtype)
    bound = {"P": builder.outside("P", weights.vector, weights.dtype), "G": gradient}
    for name in optimizer.states:
        bound[name] = builder.region(f"optimizer.{name}", (count,), kept=True)
    for name in optimizer.hyper:
        bound[name] = builder.region(f"hyper.{name}", (), kept=True)
    builder.call("step", program, bound)


def training_plan(
    graph: Graph,
    weights: Weights,
    build: Callable[[Program], Built],
    loss: Loss,
    optimizer: Optimizer | None,
) -> tuple[Plan, list[str]]:
    """(plan of a training step, region names of the outputs).

    Regions: input0.., target, loss, gradient (laid out as weights.vector), hyper.NAME and
    optimizer.NAME of the optimizer, seed0.. of random layers. Without an optimizer the step only
    computes loss and gradient.
    """
    return TrainingTape(graph, weights, build, loss, optimizer).plan()


def step_plan(weights: Weights, build: Callable[[Program], Built], optimizer: Optimizer) -> Plan:
    """The plan of an optimizer's step alone; its region `gradient` is laid out as
    weights.vector."""
    builder = PlanBuilder(build, weights.dtype)
    gradient = builder.region("gradient", weights.vector.shape, kept=True)
    record_step(builder, weights, gradient, optimizer)
    return builder.finish()
