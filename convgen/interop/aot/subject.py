"""What is exported, seen from outside: its arrays, and the calls that serve a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from convgen.interop.aot.tape import Section
from convgen.runtime.build import Built
from convgen.symbolic.program import Program
from convgen.types import DType

Build = Callable[[Program], Built]


@dataclass(frozen=True, slots=True)
class Port:
    """An array of the C interface. `shape` for the nominal batch; `sampled`: its first dimension is
    the batch; `offset`: of a weight, in bytes, in a file of weights and in packed memory."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    sampled: bool = False
    offset: int = 0

    @property
    def bytes(self) -> int:
        return self.dtype.bytes * math.prod(self.shape)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample; 0 for what does not follow the batch."""
        return self.dtype.bytes * math.prod(self.shape[1:]) if self.sampled else 0


@dataclass(frozen=True)
class Ports:
    """All arrays, in program order.

    x, y           inputs and outputs;  dy, dx: their gradients (dx of inputs of floats only)
    weights        what `pack` takes;  grads: the gradients to those that are trained
    states         read and written by forward when it saves for backward
    seeds          how many random numbers generators take
    labels, loss, hyper, optimizer     of a training step, where there is one
    """

    x: tuple[Port, ...]
    y: tuple[Port, ...]
    dy: tuple[Port, ...] = ()
    dx: tuple[Port, ...] = ()
    weights: tuple[Port, ...] = ()
    grads: tuple[Port, ...] = ()
    states: tuple[Port, ...] = ()
    seeds: int = 0
    weight_bytes: int = 0
    labels: Port | None = None
    loss: Port | None = None
    hyper: tuple[str, ...] = ()
    optimizer: tuple[Port, ...] = ()

    @property
    def optimizer_bytes(self) -> int:
        return max((p.offset + p.bytes for p in self.optimizer), default=0)


class Subject(Protocol):
    """A program or a network, ready to be recorded for one target after another.

    batch          the nominal batch: its kernels are those that run in Python
    any_infer      inference is one formula for each sample, so any batch can be served
    any_train      the same of a forward that saves, and so of backward
    """

    formula: str
    batch: int
    ports: Ports
    dtype: DType
    any_infer: bool
    any_train: bool

    def infer(self, batch: int, build: Build) -> Section: ...

    def train(self, batch: int, build: Build) -> Section: ...

    def step(self, build: Build) -> Section: ...


def as_gradient(port: Port) -> Port:
    """The port of the gradient to what a port holds."""
    return replace(port, name="d" + port.name)


def stacked(ports: Sequence[Port], alignment: int = 64) -> tuple[tuple[Port, ...], int]:
    """(the ports with offsets one behind another, bytes in all)."""
    placed: list[Port] = []
    offset = 0
    for port in ports:
        placed.append(replace(port, offset=offset))
        offset += -(-port.bytes // alignment) * alignment
    return tuple(placed), offset
