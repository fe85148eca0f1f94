"""A network as a table of kernel calls over one block of memory.

The plan of a training step: every node's forward (which also saves what its backward reads), the
loss, every node's backward in reverse order, and the optimizer's step, all formulas. Regions of
memory are shared by values whose lifetimes do not meet. The whole table is one native call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.layers.base import Layer, ParameterSpec, Shape
from convgen.layers.dense import Add
from convgen.layers.loss import Loss
from convgen.layers.update import Optimizer
from convgen.runtime.build import Built
from convgen.runtime.module import Graph, Node
from convgen.runtime.threads import Range, Table
from convgen.symbolic import derive
from convgen.symbolic.program import Program
from convgen.types import DType, i64, u64

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


def aligned(size: int) -> int:
    """Round up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def aligned_array(size: int) -> NDArray[np.uint8]:
    """`size` zero bytes that start at a multiple of the alignment."""
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


@dataclass
class Region:
    """A stretch of the arena: in use from call `first` to call `last`. `array` set: memory that
    belongs to the caller (weights), not to the arena. `parent` set: a part of that region, `start`
    bytes behind its beginning."""

    name: str
    shape: Shape
    dtype: DType
    first: int = 1 << 30
    last: int = -1
    kept: bool = False
    offset: int = -1
    array: NDArray[Any] | None = None
    parent: Region | None = None
    start: int = 0

    def touch(self, call: int) -> None:
        """Record that a call uses the region."""
        self.first, self.last = min(self.first, call), max(self.last, call)
        if self.parent is not None:
            self.parent.touch(call)

    def keep(self) -> None:
        """Never share the region's memory."""
        self.kept = True
        if self.parent is not None:
            self.parent.keep()

    @property
    def bytes(self) -> int:
        total = self.dtype.bytes
        for extent in self.shape:
            total *= extent
        return total


@dataclass(frozen=True)
class Call:
    """One kernel on regions: `regions[i]` is argument buffer i of the kernel. `ahead`: its prepare
    phases read nothing but weights and need to run only when those have changed."""

    title: str
    built: Built
    regions: tuple[Region, ...]
    ahead: bool = False


@dataclass
class PlanBuilder:
    """Collects calls and regions; `finish` lays out memory and makes the table."""

    build: Callable[[Program], Built]
    dtype: DType
    prepares: bool = False  # weights are packed ahead of the run, and the copies stay
    calls: list[Call] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)

    def region(
        self, name: str, shape: Shape, dtype: DType | None = None, *, kept: bool = False
    ) -> Region:
        region = Region(name, tuple(shape), dtype or self.dtype, kept=kept)
        self.regions.append(region)
        return region

    def outside(self, name: str, array: NDArray[Any], dtype: DType) -> Region:
        """A region that lives in an array of the caller."""
        region = Region(name, array.shape, dtype, kept=True, array=array)
        self.regions.append(region)
        return region

    def call(self, title: str, program: Program, bound: Mapping[str, Region]) -> None:
        """Append the kernel of a program; every tensor of the caller is named in `bound`.

        Updates of states happen in place (the kernel writes the state's own region)."""
        built = self.build(program)
        ahead = self.prepares and all(
            bound[name].array is not None for name in built.prepared if name in bound
        )
        places: list[Region] = []
        for buffer in built.arguments:
            place = bound.get(buffer.name)
            if place is None:
                name = f"{len(self.calls)}.{title}.{buffer.name}"
                stays = ahead and buffer.name in built.packed
                place = self.region(name, (built.bytes_of(buffer),), _BYTE, kept=stays)
            place.touch(len(self.calls))
            places.append(place)
        self.calls.append(Call(title, built, tuple(places), ahead))

    def finish(self) -> Plan:
        size = _lay_out(self.regions, len(self.calls))
        arena = aligned_array(size)
        return Plan(tuple(self.calls), tuple(self.regions), arena)


_BYTE = DType("u8", "uint", 8)


def _lay_out(regions: Sequence[Region], calls: int) -> int:
    """Give every arena region an offset, the largest first, where no region alive at the same time
    lies; returns the arena's size."""
    placed: list[Region] = []
    for region in regions:
        if region.kept:
            region.first, region.last = 0, calls
    own = [r for r in regions if r.array is None and r.parent is None]
    for region in sorted(own, key=lambda r: (-r.bytes, r.name)):
        taken = sorted(
            (p.offset, p.offset + aligned(p.bytes))
            for p in placed
            if p.first <= region.last and region.first <= p.last
        )
        offset = 0
        for start, end in taken:
            if start - offset >= aligned(region.bytes):
                break
            offset = max(offset, end)
        region.offset = offset
        placed.append(region)
    return max((r.offset + aligned(r.bytes) for r in placed), default=0)


@dataclass(frozen=True)
class _Phases:
    """Some phases of a kernel."""

    ranges: tuple[Range, ...]

    @staticmethod
    def at(phases: Sequence[Range], when: str) -> _Phases:
        return _Phases(tuple(p for p in phases if p.when == when))


class Plan:
    """Calls bound to memory; `run` is one native call.

    `prepare` packs the weights of the calls that have this done ahead; to be run again whenever
    weights have changed."""

    def __init__(
        self, calls: tuple[Call, ...], regions: tuple[Region, ...], arena: NDArray[np.uint8]
    ) -> None:
        self.calls, self.regions, self.arena = calls, regions, arena
        self._by_name = {r.name: r for r in regions}
        ahead: list[tuple[_Phases, list[int]]] = []
        rows: list[tuple[_Phases, list[int]]] = []
        for call in calls:
            addresses = [self._address(r) for r in call.regions]
            phases = call.built.ranges
            if call.ahead:
                ahead.append((_Phases.at(phases, "prepare"), addresses))
                phases = _Phases.at(phases, "run").ranges
            rows.append((_Phases(phases), addresses))
        self._prepare, self._table = Table(ahead), Table(rows)

    def _address(self, region: Region) -> int:
        if region.array is not None:
            return region.array.ctypes.data
        if region.parent is not None:
            return self._address(region.parent) + region.start
        return self.arena.ctypes.data + region.offset

    def view(self, name: str) -> NDArray[Any]:
        """The region of that name as an array; valid as long as the plan lives."""
        region = self._by_name[name]
        if region.array is not None:
            return region.array
        flat = self._memory(region)[: region.bytes]
        return flat.view(region.dtype.numpy_name).reshape(region.shape)

    def _memory(self, region: Region) -> NDArray[np.uint8]:
        """The bytes from the beginning of a region on."""
        if region.array is not None:
            return region.array.reshape(-1).view(np.uint8)
        if region.parent is not None:
            return self._memory(region.parent)[region.start :]
        return self.arena[region.offset :]

    def prepare(self, threads: int) -> None:
        """Pack weights ahead of runs."""
        self._prepare.run(threads)

    def run(self, threads: int) -> None:
        """Run all calls in order."""
        self._table.run(threads)

    @property
    def bytes(self) -> int:
        """Size of the arena."""
        return self.arena.nbytes


@dataclass(frozen=True)
class Weights:
    """All trained parameters in one vector, and the states (running statistics) one by one.

    `places` maps a parameter's full name to (offset, shape) in `vector`; gaps between aligned
    parameters are zero and stay zero.
    """

    dtype: DType
    vector: NDArray[Any]
    places: dict[str, tuple[int, Shape]]
    states: dict[str, NDArray[Any]]

    @staticmethod
    def allocate(specs: Sequence[tuple[str, str, ParameterSpec]], dtype: DType) -> Weights:
        places: dict[str, tuple[int, Shape]] = {}
        states: dict[str, NDArray[Any]] = {}
        offset = 0
        step = ALIGNMENT // dtype.bytes
        for name, _, spec in specs:
            count = int(np.prod(spec.shape, dtype=np.int64))
            if spec.trained:
                places[name] = (offset, spec.shape)
                offset += -(-count // step) * step
            else:
                kind = (spec.dtype or dtype).numpy_name
                raw = aligned_array(aligned(count * np.dtype(kind).itemsize))
                states[name] = raw.view(kind)[:count].reshape(spec.shape)
        vector = aligned_array(offset * dtype.bytes).view(dtype.numpy_name)
        return Weights(dtype, vector, places, states)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A parameter or state as an array that shares memory with the network."""
        if name in self.states:
            return self.states[name]
        return part(self.vector, self.places[name])

    def names(self) -> list[str]:
        return [*self.places, *self.states]


def part(vector: NDArray[Any], place: tuple[int, Shape]) -> NDArray[Any]:
    """The stretch of a flat vector at (offset, shape)."""
    offset, shape = place
    return vector[offset : offset + int(np.prod(shape, dtype=np.int64))].reshape(shape)


class NetworkTape:
    """Shared by the two plans: values, parameters and seeds of a graph as regions."""

    def __init__(
        self, graph: Graph, weights: Weights, build: Callable[[Program], Built], training: bool
    ) -> None:
        self.graph, self.weights, self.training = graph, weights, training
        self.dtype = weights.dtype
        self.builder = PlanBuilder(build, weights.dtype, prepares=not training)
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
            bound[spec.tensor] = self.parameters[_full(node.path, spec.name)]
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


def _full(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def inference_plan(
    graph: Graph, weights: Weights, build: Callable[[Program], Built]
) -> tuple[Plan, list[str]]:
    """(plan of the forward pass, region names of the outputs). Inputs are regions input0, ..."""
    network = NetworkTape(graph, weights, build, training=False)
    network.record_forward()
    plan = network.builder.finish()
    return plan, [network.values[v.number].name for v in graph.outputs]


class TrainingTape(NetworkTape):
    """Builds the plan of a training step, part by part."""

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        build: Callable[[Program], Built],
        loss: Loss,
        optimizer: Optimizer | None,
    ) -> None:
        super().__init__(graph, weights, build, training=True)
        self.loss, self.optimizer = loss, optimizer
        self.gradient = self.builder.region("gradient", weights.vector.shape, kept=True)
        self.backwards: dict[int, tuple[Program, dict[str, Region]]] = {}
        self.cotangents: dict[int, list[Region]] = {}
        self.trained = set(weights.places)
        self.differentiable = self._dependent_values()
        self.uses: dict[str, list[Region]] = {}

    def _dependent_values(self) -> set[int]:
        """Numbers of the values that depend on a trained parameter."""
        found: set[int] = set()
        for node in self.graph.nodes:
            own = any(s.trained for s in node.layer.parameters(*self.shapes(node)))
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
            if spec.trained:
                wanted.append((spec.tensor, _full(node.path, spec.name)))
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
        ahead, behind = derive.split(program, wanted)
        self.save(node.path, ahead, bound)
        self.builder.call(node.path, ahead, bound)
        self.backwards[node.output] = (behind, bound)

    def save(self, title: str, ahead: Program, bound: dict[str, Region]) -> None:
        """Regions for the tensors that the forward keeps for the backward."""
        for name in ahead.saved:
            if name not in bound:
                tensor = ahead.tensor(name)
                shape = tuple(int(e) for e in tensor.shape)  # type: ignore[arg-type]
                bound[name] = self.builder.region(f"{title}.{name}", shape, tensor.dtype)

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
        behind, bound = self.backwards[node.output]
        bound = dict(bound)
        for tensor, number in zip(self.program(node).outputs, node.outputs, strict=True):
            if tensor.dtype.is_float:
                bound["d" + tensor.name] = self.cotangent(node, number)
        for name, goal in self.wrt(node):
            region = self._goal_region(node, name, goal)
            bound["d" + name] = region
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

    def record(self) -> None:
        """All calls of a training step, in order."""
        for node in self.graph.nodes:
            self.forward(node)
        self.loss_calls()
        for node in reversed(self.graph.nodes):
            self.backward(node)
        for name, parts in self.uses.items():
            shape = self.weights.places[name][1]
            self.total(f"d.{name}.sum", parts, shape, self._gradient_part(name))
        if self.optimizer is not None:
            self._step(self.optimizer)

    def plan(self) -> tuple[Plan, list[str]]:
        self.record()
        plan = self.builder.finish()
        plan.view("one")[...] = 1
        return plan, [self.values[v.number].name for v in self.graph.outputs]

    def _step(self, optimizer: Optimizer) -> None:
        count = self.weights.vector.size
        program = optimizer.program(count, self.dtype)
        bound = {
            "P": self.builder.outside("P", self.weights.vector, self.dtype),
            "G": self.gradient,
        }
        for name in optimizer.states:
            bound[name] = self.builder.region(f"optimizer.{name}", (count,), kept=True)
        for name in optimizer.hyper:
            bound[name] = self.builder.region(f"hyper.{name}", (), kept=True)
        self.builder.call("step", program, bound)


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
