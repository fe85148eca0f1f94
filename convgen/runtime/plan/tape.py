"""The recorder of a network's forward pass."""

from __future__ import annotations

from collections.abc import Callable

from convgen.layers.base import Shape
from convgen.runtime.build import Built
from convgen.runtime.module import Graph, Node
from convgen.runtime.plan.memory import Plan, PlanBuilder, Region
from convgen.runtime.plan.weights import Weights
from convgen.symbolic.program import Program
from convgen.types import u64


class NetworkTape:
    """Shared by all plans: values, parameters and seeds of a graph as regions. `prepares`: weights
    are packed ahead of runs and the copies stay."""

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        build: Callable[[Program], Built],
        training: bool,
        prepares: bool = False,
    ) -> None:
        self.graph, self.weights, self.training = graph, weights, training
        self.dtype = weights.dtype
        self.builder = PlanBuilder(build, weights.dtype, prepares)
        self.values: dict[int, Region] = {}
        outputs = {v.number for v in graph.outputs}
        for i, value in enumerate(graph.inputs):
            self.values[value.number] = self.builder.region(f"input{i}", value.shape, kept=True)
        self.kept = outputs
        self.parameters = {
            name: self.builder.outside(name, weights[name], weights.dtype)
            for name in weights.names()
        }
        seeded = [n for n in graph.nodes if n.layer.seed]
        self.seed_numbers = {n.output: i for i, n in enumerate(seeded)}
        self.seed_regions = [
            self.builder.region(f"seed{i}", (), u64, kept=True) for i in range(len(seeded))
        ]

    def shapes(self, node: Node) -> list[Shape]:
        return [self.graph.values[i].shape for i in node.inputs]

    def program(self, node: Node) -> Program:
        return node.layer.program(*self.shapes(node), training=self.training, dtype=self.dtype)

    def bind(self, node: Node) -> dict[str, Region]:
        """Formula names -> regions, for what a node's forward reads."""
        shapes = self.shapes(node)
        bound = {
            name: self.values[i]
            for name, i in zip(node.layer.inputs(*shapes), node.inputs, strict=True)
        }
        for spec in node.layer.parameters(*shapes):
            bound[spec.tensor] = self.parameters[full_name(node.path, spec.name)]
        if node.layer.seed and node.output in self.seed_numbers:
            bound[node.layer.seed] = self.seed_regions[self.seed_numbers[node.output]]
        return bound

    def place_outputs(self, node: Node, program: Program | None) -> dict[str, Region]:
        """Regions for a node's outputs by their names in the formula; a view's is its input's."""
        if program is None:
            return {"": self._place(node, node.output)}
        return {
            tensor.name: self._place(node, number)
            for tensor, number in zip(program.outputs, node.outputs, strict=True)
        }

    def _place(self, node: Node, number: int) -> Region:
        value = self.graph.values[number]
        region = self.builder.region(f"value{number}", value.shape, value.dtype)
        if node.layer.is_view:
            region.parent = self.values[node.inputs[0]]
        if number in self.kept:
            region.keep()
        self.values[number] = region
        return region

    def record_forward(self) -> None:
        """The calls of a forward pass that saves nothing, in order."""
        for node in self.graph.nodes:
            program = None if node.layer.is_view else self.program(node)
            outputs = self.place_outputs(node, program)
            if program is not None:
                self.builder.call(node.path, program, self.bind(node) | outputs)


def full_name(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def inference_plan(
    graph: Graph, weights: Weights, build: Callable[[Program], Built], prepares: bool = True
) -> tuple[Plan, list[str]]:
    """(plan of the forward pass, region names of the outputs). Inputs are regions input0, ..."""
    network = NetworkTape(graph, weights, build, training=False, prepares=prepares)
    network.record_forward()
    plan = network.builder.finish()
    return plan, [network.values[v.number].name for v in graph.outputs]
