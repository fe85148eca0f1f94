"""What an operator does for inputs of given shapes: forward, saved tensors and backward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch

from convgen.errors import DataError
from convgen.layers.base import Layer, Shape
from convgen.runtime.arrays import bind_sizes
from convgen.runtime.build import build_program
from convgen.runtime.call import Caller
from convgen.symbolic.derive import grad, split
from convgen.symbolic.program import Program
from convgen.target import Target
from convgen.types import DType, f32, f64

_ALIGN = 64


def torch_dtype(dtype: DType) -> torch.dtype:
    return getattr(torch, dtype.numpy_name)


@dataclass(frozen=True)
class Options:
    """How an operator's kernels are made and run."""

    target: Target
    threads: int | None = None
    schedule: str | None = None


class Family(Protocol):
    """Programs of one kind for inputs of every shape.

    inputs    names of the operator's arguments; data: how many of them come first that are data
    states    which of them are states that the program may update
    results   number of outputs without the states' new values; floats: which of them have gradients
    """

    title: str
    key: str
    inputs: tuple[str, ...]
    data: int
    states: tuple[int, ...]
    results: int
    floats: tuple[int, ...]

    def program(self, shapes: Sequence[Shape], dtype: DType) -> tuple[Program, tuple[str, ...]]:
        """(the program with all sizes bound, its name for each argument)."""
        ...

    def input_dtype(self, number: int) -> DType | None:
        """The dtype of an argument; None: the dtype of the network."""
        ...


class ProgramFamily:
    """A user's program, its symbolic sizes bound to the arguments."""

    def __init__(self, program: Program) -> None:
        self.whole = program
        self.title = program.name
        self.key = str(program)
        self.inputs = tuple(t.name for t in program.inputs)
        names = {state for state, _ in program.updates}
        self.states = tuple(i for i, t in enumerate(program.inputs) if t.name in names)
        self.data = len(self.inputs)
        self.results = len(_returned(program))
        self.floats = tuple(i for i, t in enumerate(program.outputs) if t.dtype.is_float)

    def program(self, shapes: Sequence[Shape], dtype: DType) -> tuple[Program, tuple[str, ...]]:
        for tensor, shape in zip(self.whole.inputs, shapes, strict=True):
            if len(shape) != len(tensor.shape):
                raise DataError(
                    f"{tensor.name} has the wrong rank",
                    expected=f"{len(tensor.shape)} dimensions",
                    got=str(tuple(shape)),
                    where=self.title,
                )
        given = {n: tuple(s) for n, s in zip(self.inputs, shapes, strict=True)}
        sizes = bind_sizes(self.whole.inputs, given, self.title)
        return self.whole.bind(**sizes), self.inputs

    def input_dtype(self, number: int) -> DType | None:
        return self.whole.inputs[number].dtype


class LayerFamily:
    """A layer for `arity` values, with its parameters, states and seed as further arguments.

    specs     of its parameters and states, in order; the seed comes last
    """

    def __init__(self, layer: Layer, arity: int, training: bool) -> None:
        self.layer, self.training = layer, training
        self.title = type(layer).__name__
        self.key = f"{layer!r} {arity} {training}"
        self.data = arity
        self.inputs = tuple(f"x{i}" for i in range(arity))
        self.states: tuple[int, ...] = ()
        self.results = len(layer.output_dtypes)
        kinds = enumerate(layer.output_dtypes)
        self.floats = tuple(i for i, dtype in kinds if dtype is None or dtype.is_float)
        self._kinds: list[DType | None] = [None] * arity

    def with_parameters(self, shapes: Sequence[Shape]) -> LayerFamily:
        """The same family with its parameters as arguments; `shapes` where they depend on them."""
        specs = self.layer.parameters(*shapes)
        self.inputs += tuple(s.name for s in specs)
        self._kinds += [s.dtype for s in specs]
        if self.training:
            self.states = tuple(self.data + i for i, s in enumerate(specs) if not s.trained)
            if self.layer.seed:
                self.inputs += (self.layer.seed,)
                self._kinds.append(DType("u64", "uint", 64))
        return self

    def program(self, shapes: Sequence[Shape], dtype: DType) -> tuple[Program, tuple[str, ...]]:
        data = [tuple(s) for s in shapes[: self.data]]
        program = self.layer.program(*data, training=self.training, dtype=dtype)
        names = [*self.layer.inputs(*data), *(s.tensor for s in self.layer.parameters(*data))]
        if self.training and self.layer.seed:
            names.append(self.layer.seed)
        return program, tuple(names)

    def input_dtype(self, number: int) -> DType | None:
        return self._kinds[number]


class GradientFamily:
    """The gradients of another family to some of its arguments, everything computed again: what
    a derivative of a derivative is taken of. Arguments: the other's, then the cotangents."""

    def __init__(self, forward: Family, wrt: tuple[int, ...]) -> None:
        self.forward, self.wrt = forward, wrt
        self.title = f"{forward.title}_grad"
        self.key = f"{forward.key} {wrt}"
        self.inputs = (*forward.inputs, *(f"cotangent{i}" for i in forward.floats))
        self.data = len(self.inputs)
        self.states: tuple[int, ...] = ()
        self.results = len(wrt)
        self.floats = tuple(range(len(wrt)))

    def program(self, shapes: Sequence[Shape], dtype: DType) -> tuple[Program, tuple[str, ...]]:
        count = len(self.forward.inputs)
        program, names = self.forward.program(shapes[:count], dtype)
        made = grad(program, [names[i] for i in self.wrt])
        extra = [t.name for t in made.inputs[len(program.inputs) :]]
        return made, (*names, *extra)

    def input_dtype(self, number: int) -> DType | None:
        return self.forward.input_dtype(number) if number < len(self.forward.inputs) else None


def _returned(program: Program) -> list[str]:
    return list(dict.fromkeys([*(t.name for t in program.outputs), *program.saved]))


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of a tensor."""

    name: str
    shape: Shape
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Recipe:
    """A family's work for arguments of given shapes.

    save    which arguments' gradients the backward will be asked for, one bit each; 0: none
    """

    def __init__(
        self, family: Family, shapes: Sequence[Shape], dtype: DType, save: int, options: Options
    ) -> None:
        self.options = options
        program, self.names = family.program(shapes, dtype)
        self.program = program
        self.wrt = [i for i in range(len(self.names)) if save >> i & 1]
        self.ahead, self.behind = program, None
        if save:
            self.ahead, self.behind = split(program, [self.names[i] for i in self.wrt])
        facts = {
            name: Spec(name, tuple(int(e) for e in t.shape), torch_dtype(t.dtype))  # type: ignore[arg-type]
            for name, t in self.ahead.tensors().items()
        }
        self.inputs = [facts.get(n) for n in self.names]
        updates = dict(program.updates)
        returned = _returned(program)
        # A state that this program leaves alone is returned as it is.
        self.results = [facts[n] for n in returned]
        self.results += [facts[updates.get(self.names[i], self.names[i])] for i in family.states]
        self.cotangents = len(family.floats)
        self.made = list(dict.fromkeys(s for s in self.results if s.name not in self.names))
        stored = dict.fromkeys(self.ahead.saved) if save else {}
        known = {s.name for s in self.made} | set(self.names)
        self.saved = [facts[n] for n in stored if n not in known]

    def check(self, tensors: Sequence[Any], where: str) -> None:
        """DataError unless the arguments have the dtypes and shapes of the formula."""
        for spec, tensor in zip(self.inputs, tensors, strict=True):
            if spec is None:
                continue
            if tensor.dtype != spec.dtype:
                raise DataError(
                    f"{spec.name} has the wrong dtype",
                    expected=str(spec.dtype),
                    got=str(tensor.dtype),
                    where=where,
                    hint=f"{spec.name}.to({spec.dtype})",
                )
            if tuple(tensor.shape) != spec.shape:
                raise DataError(
                    f"{spec.name} has the wrong shape",
                    expected=str(spec.shape),
                    got=str(tuple(tensor.shape)),
                    where=where,
                )

    @cached_property
    def reads(self) -> list[bool]:
        """Whether the backward reads each argument, then each result."""
        assert self.behind is not None
        names = {t.name for t in self.behind.inputs}
        return [n in names for n in (*self.names, *(s.name for s in self.results))]

    def _caller(self, program: Program, names: Sequence[str]) -> Caller:
        built = build_program(program, self.options.target, self.options.schedule, in_place=False)
        return Caller(built, names)

    @cached_property
    def forward(self) -> Forward:
        return Forward(self, saves=True)

    @cached_property
    def infer(self) -> Forward:
        return Forward(self, saves=False)

    @cached_property
    def backward(self) -> Backward:
        return Backward(self)


def storage(specs: Sequence[Spec]) -> tuple[list[int], int]:
    """(where each tensor begins in one block, bytes of the block)."""
    offsets: list[int] = []
    size = 0
    for spec in specs:
        offsets.append(size)
        size += -(-spec.bytes // _ALIGN) * _ALIGN
    return offsets, size


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as a kernel reads it: itself unless strided or misaligned."""
    if tensor.is_contiguous() and tensor.data_ptr() % tensor.itemsize == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


class Forward:
    """The forward kernel on tensors; only a recipe that saves nothing has one without `saves`."""

    def __init__(self, recipe: Recipe, saves: bool) -> None:
        made = recipe.made
        used = [i for i, spec in enumerate(recipe.inputs) if spec is not None]
        self._used = used if len(used) < len(recipe.inputs) else None
        names = [recipe.names[i] for i in used] + [s.name for s in [*made, *recipe.saved]]
        program = recipe.ahead if recipe.behind is not None else recipe.program
        self._caller = recipe._caller(program, names)
        self._threads = recipe.options.threads
        self._made = [(s.shape, s.dtype) for s in made]
        self._offsets, self._bytes = storage(recipe.saved)
        ends = [o + s.bytes for o, s in zip(self._offsets, recipe.saved, strict=True)]
        starts = [*self._offsets[1:], self._bytes]
        # No result has bytes that nobody wrote: the same call gives the same bits.
        self._gaps = [(e, n - e) for e, n in zip(ends, starts, strict=False) if n > e]
        self._saves = saves
        # The bits that the address of an aligned element does not have.
        self._odd = [0 if s is None else s.dtype.itemsize - 1 for s in recipe.inputs]
        where = {s.name: i for i, s in enumerate(made)}
        self._results = [
            where[s.name] if s.name in where else -1 - recipe.names.index(s.name)
            for s in recipe.results
        ]
        self._direct = self._results == list(range(len(made)))

    def run(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The results; where it `saves`, then one block of bytes with what is saved."""
        addresses = [t.data_ptr() for t in tensors]
        given = tensors
        for tensor, start, odd in zip(tensors, addresses, self._odd, strict=True):
            if start & odd or not tensor.is_contiguous():
                given = [plain(t) for t in tensors]
                addresses = [t.data_ptr() for t in given]
                break
        if self._used is not None:
            addresses = [addresses[i] for i in self._used]
        made = [torch.empty(shape, dtype=dtype) for shape, dtype in self._made]
        addresses += [t.data_ptr() for t in made]
        block = None
        if self._saves:
            block = torch.empty(self._bytes, dtype=torch.uint8)
            for start, size in self._gaps:
                block.narrow(0, start, size).zero_()
            base = block.data_ptr()
            addresses += [base + offset for offset in self._offsets]
        self._caller.run(addresses, self._threads)
        if self._direct:
            return (*made, block) if self._saves else (*made,)
        seen: set[int] = set()
        results: list[torch.Tensor] = []
        for i in self._results:
            # No result shares memory with another, nor with an argument.
            found = given[-1 - i].clone() if i < 0 else made[i].clone() if i in seen else made[i]
            seen.add(i)
            results.append(found)
        return (*results, block) if self._saves else tuple(results)


class Backward:
    """The backward kernel on tensors."""

    def __init__(self, recipe: Recipe) -> None:
        behind = recipe.behind
        assert behind is not None
        read = [t.name for t in behind.inputs]
        count = len(read) - recipe.cotangents
        self._caller = recipe._caller(behind, [*read, *(t.name for t in behind.outputs)])
        self._threads = recipe.options.threads
        offsets, _ = storage(recipe.saved)
        stored = {s.name: o for s, o in zip(recipe.saved, offsets, strict=True)}
        place = {n: i for i, n in enumerate(recipe.names)}
        place |= {s.name: len(recipe.names) + i for i, s in enumerate(recipe.results)
                  if s.name not in place}  # fmt: skip
        self._sources = [(place.get(n, -1), stored.get(n, 0)) for n in read[:count]]
        self._made = [
            (tuple(int(e) for e in t.shape), torch_dtype(t.dtype))  # type: ignore[arg-type]
            for t in behind.outputs
        ]

    def run(
        self, given: Sequence[torch.Tensor | None], cotangents: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Gradients. given: arguments and results (None where not read), then the saved block."""
        held: list[torch.Tensor] = []
        addresses: list[int] = []
        block = given[-1]
        assert block is not None
        for position, offset in self._sources:
            if position < 0:
                addresses.append(block.data_ptr() + offset)
                continue
            tensor = given[position]
            assert tensor is not None
            held.append(plain(tensor))
            addresses.append(held[-1].data_ptr())
        for cotangent in cotangents:
            held.append(plain(cotangent))
            addresses.append(held[-1].data_ptr())
        made = [torch.empty(shape, dtype=dtype) for shape, dtype in self._made]
        addresses += [t.data_ptr() for t in made]
        self._caller.run(addresses, self._threads)
        return made


def network_dtype(family: Family, tensors: Sequence[Any]) -> DType:
    """The dtype of floats: that of the first argument whose dtype the family leaves open."""
    for i, tensor in enumerate(tensors):
        if family.input_dtype(i) is None:
            for dtype in (f32, f64):
                if tensor.dtype == torch_dtype(dtype):
                    return dtype
            raise DataError(
                f"{family.inputs[i]} has the wrong dtype",
                expected="torch.float32 or torch.float64",
                got=str(tensor.dtype),
                where=family.title,
            )
    return f32
