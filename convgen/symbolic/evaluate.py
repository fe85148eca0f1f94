"""The oracle: runs a Program by its definition, element by element, in Python numbers.

It shares no code with what it checks (passes, derivation). Every element must be written exactly
once; what is written twice or never is an error here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy

from convgen.errors import DataError, FormulaError
from convgen.symbolic.evaluate_body import (
    Point,
    Scope,
    compile_affine,
    compile_body,
    is_lifted,
    row_major,
    walk_points,
)
from convgen.symbolic.evaluate_reduce import compile_reduce
from convgen.symbolic.evaluate_scalar import Arithmetic, Lifted, Number, Numbers, primal
from convgen.symbolic.expr import Definition, Result, Size, Stage, Tensor
from convgen.symbolic.functions import sigmoid
from convgen.symbolic.program import Program, require_program


@dataclass(frozen=True)
class Array:
    """A plain array: shape, and its elements row-major.

    >>> a = Array((2, 2), [1, 2, 3, 4])
    >>> a[1, 0], a.tolist()
    (3, [[1, 2], [3, 4]])
    """

    shape: tuple[int, ...]
    data: list[Any]

    def __getitem__(self, index: int | tuple[int, ...]) -> Any:
        position = index if isinstance(index, tuple) else (index,)
        strides = row_major(self.shape)
        return self.data[sum(i * s for i, s in zip(position, strides, strict=True))]

    def tolist(self) -> Any:
        """Nested lists; the element itself for rank 0."""
        out: list[Any] = list(self.data)
        for extent in reversed(self.shape[1:]):
            count = len(out) // extent if extent else 0
            out = [out[i * extent : (i + 1) * extent] for i in range(count)]
        return out if self.shape else out[0]

    def map(self, function: Callable[[Any], Any]) -> Array:
        """The array of function(element)."""
        return Array(self.shape, [function(v) for v in self.data])

    def floats(self) -> Array:
        """The array with every element as a Python float."""
        return self.map(lambda v: float(primal(v)))


def evaluate(
    program: Program,
    inputs: Mapping[str, Any],
    exact: bool = True,
    *,
    numbers: Numbers | None = None,
    magnitude: bool = False,
    temporaries: bool = False,
) -> dict[str, Array]:
    """Run a program on nested lists (or flat row-major lists, `Array`s, anything with tolist).

    numbers: "exact" (ints and Fractions; floats only where exp and the like force them), "float"
    (Python floats; ints in integer tensors), "mp" (50 digits); by default exact or float as
    `exact` says. Floats are never rounded to 32 bits; integer tensors wrap around at their width.
    Returns the outputs, the `saved` tensors, and each updated state under the state's name; with
    temporaries=True every tensor. With magnitude=True each element is instead the sum of the
    absolute values of its summands, carried through functions to first order: the yardstick of
    rounding errors. Sizes (symbolic extents) are taken from the inputs.

    Raises DataError for missing or ill-shaped inputs, FormulaError where a stage writes an element
    twice, never, or outside.

    >>> from convgen.symbolic.parse import parse
    >>> pairs = parse("Y[i] = sum(r: X[i + r] * W[r])", X=(4,), W=(2,))
    >>> evaluate(pairs, {"X": [1, 2, 3, 4], "W": [1, -1]})["Y"].tolist()
    [-1, -1, -1]
    >>> evaluate(pairs, {"X": [1, 2, 3, 4], "W": [1, -1]}, magnitude=True)["Y"].tolist()
    [3, 5, 7]
    """
    kind: Numbers = numbers or ("exact" if exact else "float")
    run = Run(program, inputs, Arithmetic(kind), magnitude=magnitude)
    return run.results(temporaries)


_IRRATIONAL = (sympy.exp, sympy.log, sympy.tanh, sympy.erf, sigmoid, sympy.NumberSymbol)


def is_rational(program: Program) -> bool:
    """True when rational inputs give rational results: no exp, no root, no irrational number.

    >>> from convgen.symbolic.parse import parse
    >>> [is_rational(parse(f"Y[i] = {body}", X=(3,))) for body in ("X[i]**2 / 3", "sqrt(X[i])")]
    [True, False]
    """
    bodies = [b for stage in program.stages for p in stage.pieces for b, _ in p.bodies()]
    for stage in program.stages:
        for reduce in (r for p in stage.pieces for r in p.reduces):
            kind = reduce.reduction
            bodies += [*kind.lift, *kind.combine, *kind.project]
    return not any(
        b.has(*_IRRATIONAL) or any(not p.exp.is_integer for p in b.atoms(sympy.Pow)) for b in bodies
    )


class Magnitude(Lifted):
    """A value with the sum of the absolute values of its summands."""

    __slots__ = ("total",)

    def __init__(self, value: Number, total: Number) -> None:
        self.value, self.total = value, total

    def __add__(self, other: Number) -> Magnitude:
        value, total = _magnitude(other)
        return Magnitude(self.value + value, self.total + total)

    def __mul__(self, other: Number) -> Magnitude:
        value, total = _magnitude(other)
        return Magnitude(self.value * value, self.total * total)

    __radd__, __rmul__ = __add__, __mul__

    def chain(
        self, function: Callable[[Number], Number], derivative: Callable[[Number], Number]
    ) -> Magnitude:
        value = function(self.value)
        slope = abs(derivative(self.value)) * self.total if self.total else 0
        return Magnitude(value, max(abs(value), slope) if slope == slope else abs(value))


def _magnitude(x: Number) -> tuple[Number, Number]:
    return (x.value, x.total) if isinstance(x, Magnitude) else (x, abs(x))


# ---------------------------------------------------------------------------------------------
# Inputs


def _flatten(value: Any, name: str) -> tuple[tuple[int, ...], list[Any]]:
    """(shape, elements) of nested lists."""
    if not isinstance(value, (list, tuple)):
        return (), [value]
    parts = [_flatten(item, name) for item in value]  # type: ignore[reportUnknownVariableType]
    shapes = {shape for shape, _ in parts}
    if len(shapes) > 1:
        raise DataError(f"input {name}: the nested lists are ragged", got=str(sorted(shapes)))
    inner = parts[0][0] if parts else ()
    return (len(parts), *inner), [v for _, data in parts for v in data]


def _given(value: Any, name: str) -> tuple[tuple[int, ...], list[Any]]:
    if isinstance(value, Array):
        return value.shape, value.data
    if hasattr(value, "tolist"):
        shape, data = _flatten(value.tolist(), name)
        return tuple(getattr(value, "shape", shape)), data
    return _flatten(value, name)


def _fit(tensor: Tensor, shape: tuple[int, ...], count: int, sizes: dict[str, int]) -> None:
    """Check a given shape against a tensor's and learn sizes from it."""
    wanted = ", ".join(str(e) for e in tensor.shape)
    if len(shape) == tensor.rank:
        given = shape
    elif len(shape) == 1 or (count == 0 and len(shape) < tensor.rank):
        given = _unflatten(tensor, count, sizes)
    else:
        given = None
    if given is not None:
        for extent, got in zip(tensor.shape, given, strict=True):
            if isinstance(extent, Size):
                sizes.setdefault(extent.name, got)
        if all(
            (sizes[e.name] if isinstance(e, Size) else e) == got
            for e, got in zip(tensor.shape, given, strict=True)
        ):
            return
    raise DataError(
        f"input {tensor.name}", expected=f"shape [{wanted}]", got=f"shape {list(shape)}"
    )


def _unflatten(tensor: Tensor, count: int, sizes: dict[str, int]) -> tuple[int, ...] | None:
    """The shape that a flat list of `count` elements has, if it fits."""
    unknown = {e.name for e in tensor.shape if isinstance(e, Size) and e.name not in sizes}
    known = 1
    for e in tensor.shape:
        if not isinstance(e, Size):
            known *= e
        elif e.name in sizes:
            known *= sizes[e.name]
    if len(unknown) > 1:
        return None
    free = count // known if unknown and known else 0
    shape = tuple((sizes.get(e.name, free) if isinstance(e, Size) else e) for e in tensor.shape)
    total = 1
    for e in shape:
        total *= e
    return shape if total == count else None


# ---------------------------------------------------------------------------------------------
# Running


class Run:
    """One evaluation: sizes bound, every stage compiled and run in order."""

    def __init__(
        self,
        program: Program,
        inputs: Mapping[str, Any],
        arithmetic: Arithmetic,
        *,
        magnitude: bool = False,
    ) -> None:
        self.program = require_program(program, "what is to be evaluated")
        self.arithmetic = arithmetic
        self.magnitude = magnitude
        self.sizes: dict[str, int] = {}
        self.storage: dict[str, tuple[tuple[int, ...], list[Any]]] = {}
        self.lifted = magnitude
        self._read_inputs(inputs)
        for constant in program.constants():
            self._keep(constant, constant.values or ())
        for stage in program.stages:
            self._run_stage(stage)

    def _read_inputs(self, inputs: Mapping[str, Any]) -> None:
        names = [t.name for t in self.program.inputs]
        for name in inputs:
            if name not in names:
                raise DataError(f"no input is named {name!r}", expected=", ".join(names))
        given: dict[str, list[Any]] = {}
        for tensor in self.program.inputs:
            if tensor.name not in inputs:
                raise DataError(f"input {tensor.name} is missing", expected=str(tensor))
            shape, data = _given(inputs[tensor.name], tensor.name)
            _fit(tensor, shape, len(data), self.sizes)
            given[tensor.name] = data
            self.lifted = self.lifted or is_lifted(data)
        for tensor in self.program.inputs:
            self._keep(tensor, given[tensor.name])

    def _keep(self, tensor: Tensor, values: Sequence[Any]) -> None:
        store, element = self.arithmetic.store, self.arithmetic.element
        data = [
            store(v, tensor.dtype) if isinstance(v, Lifted) else element(v, tensor.dtype)
            for v in values
        ]
        if self.magnitude and tensor.dtype.is_float:
            data = [Magnitude(v, abs(v)) for v in data]
        self.storage[tensor.name] = (self._shape(tensor), data)

    def _shape(self, tensor: Tensor) -> tuple[int, ...]:
        for extent in tensor.shape:
            if isinstance(extent, Size) and extent.name not in self.sizes:
                raise DataError(f"{tensor}: no input tells the size {extent.name}")
        return tuple(self.sizes[e.name] if isinstance(e, Size) else e for e in tensor.shape)

    def _run_stage(self, stage: Stage) -> None:
        written: dict[str, tuple[tuple[int, ...], list[Any]]] = {}
        for tensor in stage.tensors:
            shape = self._shape(tensor)
            count = 1
            for extent in shape:
                count *= extent
            written[tensor.name] = (shape, [None] * count)
        for piece in stage.pieces:
            self._run_piece(piece, written)
        for name, (shape, data) in written.items():
            if any(v is None for v in data):
                hole = _unravel(next(i for i, v in enumerate(data) if v is None), shape)
                raise FormulaError(f"{name}{hole} is never written", where=self.program.name)
        self.storage.update(written)

    def _run_piece(
        self, piece: Definition, written: Mapping[str, tuple[tuple[int, ...], list[Any]]]
    ) -> None:
        outer = len(piece.domain.ranges)
        base = outer + max((len(r.domain.ranges) for r in piece.reduces), default=0)
        point: Point = [0] * base
        empty = Scope(self.arithmetic, self.sizes, self.storage, self.lifted)
        scope = empty.within(piece.domain, 0)
        reduces: list[tuple[int, Callable[[Point], list[Any]]]] = []
        for number, reduce in enumerate(piece.reduces):
            count = len(reduce.reduction.project)
            reduces.append((len(point), compile_reduce(reduce, scope, outer)))
            for item in range(count):
                scope.slots[Result(number, item).name] = len(point) + item
            point += [0] * count
        writers = [
            self._writer(out, value, scope, written)
            for out, value in zip(piece.outs, piece.values, strict=True)
        ]
        for _ in walk_points(piece.domain, empty, 0)(point):
            for slot, results in reduces:
                values = results(point)
                point[slot : slot + len(values)] = values
            for write in writers:
                write(point)

    def _writer(
        self,
        out: Any,
        value: Any,
        scope: Scope,
        written: Mapping[str, tuple[tuple[int, ...], list[Any]]],
    ) -> Callable[[Point], None]:
        shape, data = written[out.tensor.name]
        places = [compile_affine(i, scope) for i in out.index]
        strides = row_major(shape)
        body, store, dtype = compile_body(value, scope), self.arithmetic.store, out.tensor.dtype

        def write(p: Point) -> None:
            offset = 0
            for place, extent, stride in zip(places, shape, strides, strict=True):
                i = place(p)
                if not 0 <= i < extent:
                    raise FormulaError(f"{out} writes outside: index {i} of extent {extent}")
                offset += i * stride
            if data[offset] is not None:
                raise FormulaError(f"{out.tensor.name}{_unravel(offset, shape)} is written twice")
            data[offset] = store(body(p), dtype)

        return write

    def array(self, name: str) -> Array:
        """A tensor after the run."""
        shape, data = self.storage[name]
        if self.magnitude:
            data = [_magnitude(v)[1] for v in data]
        return Array(shape, list(data))

    def results(self, temporaries: bool = False) -> dict[str, Array]:
        """Outputs, saved tensors and updated states; with temporaries everything there is."""
        program = self.program
        names = [t.name for t in program.outputs] + list(program.saved)
        if temporaries:
            names = list(dict.fromkeys([*names, *self.storage]))
        found = {name: self.array(name) for name in names}
        for state, source in program.updates:
            found[state] = self.array(source)
        return found


def _unravel(offset: int, shape: Sequence[int]) -> list[int]:
    return list(_digits(offset, shape))


def _digits(offset: int, shape: Sequence[int]) -> Iterator[int]:
    for stride in row_major(shape):
        yield offset // stride
        offset %= stride
