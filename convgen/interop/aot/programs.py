"""A program as the subject of a bundle."""

from __future__ import annotations

from dataclasses import replace

from convgen.errors import DataError, ShapeError
from convgen.interop.aot.subject import Build, Port, Ports, as_gradient, stacked
from convgen.interop.aot.tape import Place, Section
from convgen.runtime.plan import PlanBuilder, Region
from convgen.symbolic.derive import prune, split
from convgen.symbolic.expr import Size, Tensor
from convgen.symbolic.program import Program
from convgen.symbolic.samples import batch_tensors, rebatched, sample_inputs
from convgen.types import DType, f32


class ProgramSubject:
    """The formula of a user. Its sample inputs are what is read at the output's first position;
    the other inputs (parameters among them) are weights, states are states.

    Where samples are mixed, inputs are inputs, parameters weights, and only the nominal batch runs.
    """

    def __init__(self, program: Program, batch: int | None, backward: bool) -> None:
        program = _bound(program, batch)
        self.program = program
        self.formula = str(program)
        floats = [t.dtype for t in (*program.outputs, *program.inputs) if t.dtype.is_float]
        self.dtype: DType = floats[0] if floats else f32
        samples = sample_inputs(program)
        marked = None if program.updates else batch_tensors(program, samples)
        self._samples = samples
        self.any_infer = marked is not None and rebatched(program, samples, 1) is not None
        self.any_train = self.any_infer
        inputs = (
            samples if self.any_infer else [t.name for t in program.inputs if t.role == "input"]
        )
        first = program.tensor(samples[0]).shape[0] if self.any_infer else 1
        self.batch = int(first)  # type: ignore[arg-type]
        x = [self._port(t) for t in program.inputs if t.name in inputs]
        weights = [
            self._port(t) for t in program.inputs if t.name not in inputs and t.role != "state"
        ]
        packed, size = stacked(weights)
        y = tuple(self._port(t) for t in program.outputs)
        self.ports = Ports(
            x=tuple(x),
            y=y,
            weights=packed,
            states=tuple(self._port(t) for t in program.inputs if t.role == "state"),
            weight_bytes=size,
        )
        if backward:
            self.ports = replace(
                self.ports,
                dy=tuple(as_gradient(p) for p in y if p.dtype.is_float),
                dx=tuple(as_gradient(p) for p in x if p.dtype.is_float),
                grads=tuple(as_gradient(p) for p in packed if p.dtype.is_float),
            )
            if not self.ports.dx and not self.ports.grads:
                raise DataError(
                    f"{program.name} has no input of floats to derive by", hint="backward=False"
                )

    def _port(self, tensor: Tensor) -> Port:
        shape = tuple(int(e) for e in tensor.shape)  # type: ignore[arg-type]
        sampled = self.any_infer and (
            tensor.name in self._samples or tensor in self.program.outputs
        )
        return Port(tensor.name, shape, tensor.dtype, sampled)

    def _at(self, batch: int) -> Program:
        if batch == self.batch:
            return self.program
        found = rebatched(self.program, self._samples, batch)
        assert found is not None
        return found

    def infer(self, batch: int, build: Build) -> Section:
        tape = _Tape(self, self._at(batch), build)
        tape.call(tape.program, tape.bound)
        return Section(tape.builder.calls, 1, tape.forward)

    def train(self, batch: int, build: Build) -> Section:
        program = self._at(batch)
        tape = _Tape(self, program, build)
        inputs = [p.name for p in self.ports.x if p.dtype.is_float]
        weights = [p.name for p in self.ports.weights if p.dtype.is_float]
        ahead, behind = split(program, [*weights, *inputs])
        for name in ahead.saved:
            tensor = ahead.tensor(name)
            tape.bound[name] = tape.region(tensor)
        tape.call(ahead, tape.bound)
        names = [t.name for t in behind.outputs]
        cotangents = {p.name: f"dy{i}" for i, p in enumerate(self.ports.dy)}
        bound = dict(tape.bound)
        backward = {id(r): p for r in tape.bound.values() if (p := tape.known_behind(r))}
        for tensor in behind.inputs:
            if tensor.name in cotangents:
                bound[tensor.name] = tape.region(tensor)
                backward[id(bound[tensor.name])] = Place(cotangents[tensor.name])
        wanted: list[Region] = []
        slots = [f"grad{i}" for i in range(len(weights))] + [f"dx{i}" for i in range(len(inputs))]
        for name, slot in zip(names, slots, strict=True):
            bound[name] = tape.region(behind.tensor(name))
            backward[id(bound[name])] = Place(slot)
            if slot.startswith("grad"):
                wanted.append(bound[name])
        groups = [names[: len(weights)], *([name] for name in names[len(weights) :])]
        for group in groups:
            if group:
                tape.call(restricted(behind, group), bound)
        section = Section(tape.builder.calls, 1, tape.forward, backward)
        section.wanted = wanted
        return section

    def step(self, build: Build) -> Section:
        raise ShapeError("a program has no training step", hint="export a network")


class _Tape:
    """A program's tensors as regions with places in the caller's memory."""

    def __init__(self, subject: ProgramSubject, program: Program, build: Build) -> None:
        self.program = program
        self.builder = PlanBuilder(build, subject.dtype)
        self.bound: dict[str, Region] = {}
        self.forward: dict[int, Place] = {}
        self._behind: dict[int, Place] = {}
        ports = subject.ports
        groups = {"x": ports.x, "y": ports.y, "state": ports.states}
        for stem, group in groups.items():
            for i, port in enumerate(group):
                self._bind(port.name, Place(f"{stem}{i}"), behind=stem == "x")
        for port in ports.weights:
            self._bind(port.name, Place("packed", port.offset), behind=True)

    def _bind(self, name: str, place: Place, *, behind: bool) -> None:
        region = self.region(self.program.tensor(name))
        self.bound[name] = region
        self.forward[id(region)] = place
        if behind:
            self._behind[id(region)] = place

    def region(self, tensor: Tensor) -> Region:
        shape = tuple(int(e) for e in tensor.shape)  # type: ignore[arg-type]
        return self.builder.region(tensor.name, shape, tensor.dtype)

    def known_behind(self, region: Region) -> Place | None:
        """The place of a region in backward, where the caller hands it in again."""
        return self._behind.get(id(region))

    def call(self, program: Program, bound: dict[str, Region]) -> None:
        self.builder.call(program.name, program, bound)


def restricted(program: Program, outputs: list[str]) -> Program:
    """The part of a program that computes some of its outputs."""
    if outputs == [t.name for t in program.outputs]:
        return program
    stages = prune(program.stages, set(outputs))
    read = {a.tensor.name for s in stages for p in s.pieces for a in p.reads()}
    return replace(
        program,
        inputs=tuple(t for t in program.inputs if t.name in read),
        outputs=tuple(t for t in program.outputs if t.name in outputs),
        stages=tuple(stages),
    )


def _bound(program: Program, batch: int | None) -> Program:
    """The program with its one open size, the batch, bound."""
    sizes = program.sizes()
    if not sizes:
        if batch is not None:
            raise ShapeError(
                f"batch={batch} for {program.name}, whose sizes are all given",
                hint="a size name such as N as the first extent",
            )
        return program
    first = {e.name for t in program.outputs for e in t.shape[:1] if isinstance(e, Size)}
    if set(sizes) != first:
        raise ShapeError(
            f"{program.name} has open sizes {', '.join(sizes)}",
            expected="none but the batch, the first extent of inputs and outputs",
            hint="program.bind(...)",
        )
    return program.bind(**dict.fromkeys(sizes, batch or 1))
