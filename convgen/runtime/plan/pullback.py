"""The plan of a forward pass that keeps chosen values, and of what goes back from chosen values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from convgen.layers.base import Layer
from convgen.runtime.build import Built
from convgen.runtime.module import Graph, Node
from convgen.runtime.plan.memory import Plan, Region
from convgen.runtime.plan.training import BackwardTape
from convgen.runtime.plan.weights import Weights
from convgen.symbolic.program import Program

# (a layer, its formula) -> the formula that is run and derived in its place
Change = Callable[[Layer, Program], Program]


class PullbackTape(BackwardTape):
    """Forward to the values `sources` and `keep`, then back from cotangents of the sources to the
    values `wrt`, and to the parameters if `trains`. Values are numbers of the graph; only nodes
    that lead to a source or a kept value are recorded."""

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        build: Callable[[Program], Built],
        sources: Sequence[int],
        wrt: Sequence[int],
        keep: Iterable[int] = (),
        training: bool = False,
        trains: bool = False,
        change: Change | None = None,
    ) -> None:
        self.change = change
        super().__init__(graph, weights, build, training, wrt, trains)
        self.sources = tuple(sources)
        self.kept = {*sources, *keep}
        self.seeds = [
            self.builder.region(f"cotangent{i}", graph.values[n].shape, kept=True)
            for i, n in enumerate(self.sources)
        ]
        self.gradients: dict[int, Region] = {}

    def program(self, node: Node) -> Program:
        program = super().program(node)
        return program if self.change is None else self.change(node.layer, program)

    def derived(self, program: Program, wanted: Sequence[str]) -> tuple[Program, Program]:
        ahead, behind = super().derived(program, wanted)
        if any(stage.backward is not None for stage in program.stages):
            behind = replace(behind, origin=None)  # no derivative of the formula
        return ahead, behind

    def cotangent(self, node: Node, number: int) -> Region:
        region = super().cotangent(node, number)
        if number in self.wanted:
            self._want(number, region)
        return region

    def _want(self, number: int, region: Region) -> None:
        region.keep()
        self.gradients[number] = region

    def needed(self) -> list[Node]:
        """The nodes that lead to a source or a kept value."""
        wanted = set(self.kept)
        nodes: list[Node] = []
        for node in reversed(self.graph.nodes):
            if any(o in wanted for o in node.outputs):
                wanted.update(node.inputs)
                nodes.append(node)
        return nodes[::-1]

    def plan(self) -> Plan:
        """Regions: input0.., value numbers by `values`, cotangent0.. of the sources, `gradients` of
        the wanted values, gradient of the parameters. Part 0 is the forward, part 1 the rest."""
        nodes = self.needed()
        for node in nodes:
            self.forward(node)
        cut = len(self.builder.calls)
        for number, region in zip(self.sources, self.seeds, strict=True):
            self.cotangents.setdefault(number, []).append(region)
        for node in reversed(nodes):
            self.backward(node)
        for number in sorted(self.wanted - self.gradients.keys()):
            shape = self.graph.values[number].shape
            parts = self.cotangents.pop(number, [])
            if parts:
                self._want(number, self.total(f"d.value{number}", parts, shape, None))
            else:  # kept regions of a new arena are zero
                zero = self.builder.region(f"d.value{number}.zero", shape, kept=True)
                self.gradients[number] = zero
        self.total_uses()
        return self.builder.finish(cut)
