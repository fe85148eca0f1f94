"""A network as the subject of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from convgen.errors import ShapeError
from convgen.interop.aot.programs import restricted
from convgen.interop.aot.subject import Build, Port, Ports, as_gradient, stacked
from convgen.interop.aot.tape import Place, Section
from convgen.layers.loss import Loss
from convgen.layers.update import Optimizer
from convgen.runtime.module import Graph, Node, trace
from convgen.runtime.network import Network
from convgen.runtime.plan import BackwardTape, NetworkTape, Region, TrainingTape, Weights
from convgen.symbolic.program import Program
from convgen.symbolic.samples import is_per_sample
from convgen.types import DType, i64


class NetworkSubject:
    """A network: parameters are its weights, running statistics its states."""

    def __init__(
        self, network: Network, backward: bool, loss: Loss | None, optimizer: Optimizer | None
    ) -> None:
        self.network, self.loss, self.optimizer = network, loss, optimizer
        self.graph, self.weights = network.graph, network.weights
        self.dtype: DType = network.dtype
        self.batch = network.shapes[0][0]
        self.formula = "\n\n".join(_formulas(network))
        self.any_infer = self._separable(training=False)
        self.any_train = self._separable(training=True)
        self._graphs: dict[int, Graph] = {self.batch: self.graph}
        self.ports = self._ports(backward)

    def _separable(self, training: bool) -> bool:
        """Every layer computes each sample alone, and no value loses the batch."""
        values = self.graph.values
        if any(v.shape[:1] != (self.batch,) for v in values):
            return False
        for node in self.graph.nodes:
            if node.layer.is_view:
                continue
            shapes = [values[i].shape for i in node.inputs]
            program = node.layer.program(*shapes, training=training, dtype=self.dtype)
            if not is_per_sample(program, node.layer.inputs(*shapes)):
                return False
        return True

    def _ports(self, backward: bool) -> Ports:
        graph, weights = self.graph, self.weights
        x = tuple(
            Port(f"x{i}" if len(graph.inputs) > 1 else "x", v.shape, self.dtype, True)
            for i, v in enumerate(graph.inputs)
        )
        y = tuple(
            Port(f"y{i}" if len(graph.outputs) > 1 else "y", v.shape, v.dtype or self.dtype, True)
            for i, v in enumerate(graph.outputs)
        )
        parameters = tuple(
            Port(name, shape, self.dtype, offset=offset * self.dtype.bytes)
            for name, (offset, shape) in weights.places.items()
        )
        dtypes = {name: spec.dtype or self.dtype for name, _, spec in graph.specs}
        states = tuple(
            Port(name, array.shape, dtypes[name]) for name, array in weights.states.items()
        )
        ports = Ports(
            x=x,
            y=y,
            weights=parameters,
            states=states,
            seeds=sum(bool(n.layer.seed) for n in graph.nodes),
            weight_bytes=weights.vector.nbytes,
        )
        if backward:
            gradients = tuple(as_gradient(p) for p in parameters)
            dy = tuple(as_gradient(p) for p in y if p.dtype.is_float)
            dx = tuple(map(as_gradient, x))
            ports = replace(ports, dy=dy, dx=dx, grads=gradients)
        return ports if self.optimizer is None else self._with_step(ports, self.optimizer)

    def _with_step(self, ports: Ports, optimizer: Optimizer) -> Ports:
        if self.loss is None or len(self.graph.outputs) != 1:
            raise ShapeError("a training step", expected="a loss, and a network with one output")
        shape = self.loss.target_shape(self.graph.outputs[0].shape)
        vector = self.weights.vector.shape
        states, _ = stacked([Port(name, vector, self.dtype) for name in optimizer.states])
        return replace(
            ports,
            labels=Port("labels", shape, i64 if self.loss.labels else self.dtype, True),
            loss=Port("loss", (), self.dtype),
            hyper=tuple(optimizer.hyper),
            optimizer=states,
        )

    # -- recording -------------------------------------------------------------------------------

    def _graph(self, batch: int) -> Graph:
        if batch not in self._graphs:
            shapes = [(batch, *s[1:]) for s in self.network.shapes]
            self._graphs[batch] = trace(self.network.module, shapes)
        return self._graphs[batch]

    def _known(self, tape: NetworkTape, behind: bool) -> dict[int, Place]:
        """Places of what the caller holds; in backward neither states nor seeds are handed in."""
        known: dict[int, Place] = {}
        states = list(self.weights.states)
        offsets = {p.name: p.offset for p in self.ports.weights}
        for name, region in tape.parameters.items():
            if name in offsets:
                known[id(region)] = Place("packed", offsets[name])
            elif not behind:
                known[id(region)] = Place(f"state{states.index(name)}")
        for i, value in enumerate(tape.graph.inputs):
            known[id(tape.values[value.number])] = Place(f"x{i}")
        if not behind:
            for i, region in enumerate(tape.seed_regions):
                known[id(region)] = Place("seeds", 8 * i)
        return known

    def _place_outputs(self, tape: NetworkTape, section: Section) -> None:
        """An output lies in the caller's array; one that lies elsewhere already is copied."""
        for i, value in enumerate(tape.graph.outputs):
            region = tape.values[value.number]
            place = Place(f"y{i}")
            if region.parent is None:
                section.forward.setdefault(id(region), place)
            section.results.append((region, place))

    def infer(self, batch: int, build: Build) -> Section:
        tape = NetworkTape(self._graph(batch), self.weights, build, training=False)
        known = self._known(tape, behind=False)
        tape.record_forward()
        section = Section(tape.builder.calls, len(tape.builder.calls), known)
        self._place_outputs(tape, section)
        return section

    def train(self, batch: int, build: Build) -> Section:
        tape = _Backward(self._graph(batch), self.weights, build)
        known = self._known(tape, behind=False)
        behind = self._known(tape, behind=True)
        tape.record()
        section = Section(tape.builder.calls, tape.boundary, known, behind)
        self._place_outputs(tape, section)
        for i, region in enumerate(tape.dy):
            behind[id(region)] = Place(f"dy{i}")
        names = [p.name for p in self.ports.grads]
        written = {id(r) for c in tape.builder.calls[tape.boundary :] for r in c.regions}
        made: set[str] = set()
        for region in tape.builder.regions:
            name = "d" + region.name.removeprefix("gradient.")
            if region.name.startswith("gradient.") and name in names:
                behind[id(region)] = Place(f"grad{names.index(name)}")
                if id(region) in written:
                    made.add(name)
                    section.wanted.append(region)
        for i, port in enumerate(self.ports.grads):
            if port.name not in made:
                section.unmade.append((Place(f"grad{i}"), port.bytes))
        for i, region in enumerate(tape.dx):
            if region is None:
                section.unmade.append(
                    (Place(f"dx{i}"), tape.graph.inputs[i].shape[0] * self.ports.dx[i].sample_bytes)
                )
            else:
                behind[id(region)] = Place(f"dx{i}")
        return section

    def step(self, build: Build) -> Section:
        assert self.loss is not None and self.optimizer is not None
        tape = TrainingTape(self.graph, self.weights, build, self.loss, self.optimizer)
        known = self._known(tape, behind=False)
        tape.record()
        calls = tape.builder.calls
        section = Section(calls, len(calls), known)
        offsets = {f"optimizer.{p.name}": p.offset for p in self.ports.optimizer}
        hyper = {f"hyper.{n}": i * self.dtype.bytes for i, n in enumerate(self.ports.hyper)}
        single = {"target": "labels", "loss": "loss", "one": "constants", "P": "packed"}
        for region in tape.builder.regions:
            if region.parent is not None or region.name in self.weights.places:
                continue
            if region.name in offsets:
                known[id(region)] = Place("optimizer", offsets[region.name])
            elif region.name in hyper:
                known[id(region)] = Place("hyper", hyper[region.name])
            elif region.name in single:
                known[id(region)] = Place(single[region.name])
            elif region is tape.gradient:
                section.zeroed.append(region)
        return section


class _Backward(BackwardTape):
    """Forward and backward for a cotangent from outside, with gradients to the inputs."""

    def __init__(self, graph: Graph, weights: Weights, build: Build) -> None:
        super().__init__(graph, weights, build, wrt=[v.number for v in graph.inputs])
        self.boundary = 0
        self.dy: list[Region] = []
        self.dx: list[Region | None] = []
        self.given = {v.number for v in graph.inputs}
        for node in graph.nodes:
            if node.layer.is_view and node.inputs[0] in self.given:
                self.given.add(node.output)

    def record(self) -> None:
        for node in self.graph.nodes:
            self.forward(node)
        self.boundary = len(self.builder.calls)
        floats = [v for v in self.graph.outputs if v.dtype is None]
        for i, value in enumerate(floats):
            self.dy.append(self.builder.region(f"dy{i}", value.shape))
            self.cotangents.setdefault(value.number, []).append(self.dy[-1])
        for node in reversed(self.graph.nodes):
            self.backward(node)
        self.total_uses()
        for i, value in enumerate(self.graph.inputs):
            self.dx.append(self._input_gradient(i, value.number, value.shape))

    def _input_gradient(self, i: int, number: int, shape: tuple[int, ...]) -> Region | None:
        parts = self.cotangents.pop(number, [])
        if not parts:
            return None
        if len(parts) == 1 and parts[0] not in self.dy:
            return parts[0]
        region = self.builder.region(f"dx{i}", shape)
        return self.total(f"dx{i}.sum", parts, shape, region)

    def call_backward(self, node: Node, behind: Program, bound: Mapping[str, Region]) -> None:
        """The gradients to the network's own inputs in calls of their own: they can be left out."""
        wanted = {"d" + name: goal in self.given for name, goal in self.wrt(node)}
        inner = [name for name, outside in wanted.items() if not outside]
        for group in (inner, *([name] for name, outside in wanted.items() if outside)):
            if group:
                super().call_backward(node, restricted(behind, group), bound)


def _formulas(network: Network) -> list[str]:
    """The formula of every layer that computes something, with its path."""
    found: list[str] = []
    for node in network.graph.nodes:
        if not node.layer.is_view:
            shapes = [network.graph.values[i].shape for i in node.inputs]
            program = node.layer.program(*shapes, dtype=network.dtype)
            found.append(f"{node.path}: {node.layer!r}\n{program}")
    return found
