"""Single elements of a program, computed by definition when they are asked for.

For programs too large to be evaluated whole: an element costs what its sums cost, and what it reads
of other stages is computed then and kept. Shares the oracle's closures, and no code with what
makes kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from convgen.affine import Affine
from convgen.errors import DataError, FormulaError
from convgen.symbolic.evaluate import Magnitude
from convgen.symbolic.evaluate_body import (
    Point,
    Scope,
    compile_body,
    compile_constraint,
    row_major,
)
from convgen.symbolic.evaluate_reduce import compile_reduce
from convgen.symbolic.evaluate_scalar import Arithmetic, Number, Numbers
from convgen.symbolic.expr import Definition, Result, Tensor, fixed
from convgen.symbolic.program import Program


class WorkExceeded(Exception):
    """An element reads more than was allowed; what was computed is kept."""


class Elements:
    """A program's elements. All extents must be bound.

    inputs     name -> flat row-major sequence of plain numbers, read by position
    magnitude  each element is the sum of the absolute values of its summands instead
    limit      most reads of elements in all; then WorkExceeded

    >>> from convgen.symbolic.parse import parse
    >>> pairs = parse("Y[i] = sum(r: X[i + r] * W[r])", X=(1000000,), W=(2,))
    >>> Elements(pairs, {"X": range(1000000), "W": [1, -2]})("Y", [999998])
    -1000000
    """

    def __init__(
        self,
        program: Program,
        inputs: Mapping[str, Sequence[Any]],
        numbers: Numbers = "exact",
        *,
        magnitude: bool = False,
        limit: int | None = None,
    ) -> None:
        self.arithmetic, self.magnitude = Arithmetic(numbers), magnitude
        self.left = limit
        self.storage: dict[str, tuple[tuple[int, ...], Any]] = {}
        for tensor in program.inputs:
            if tensor.name not in inputs:
                raise DataError(f"input {tensor.name} is missing", expected=str(tensor))
            self._keep(tensor, inputs[tensor.name])
        for constant in program.constants():
            self._keep(constant, constant.values or ())
        for stage in program.stages:
            scope = Scope(self.arithmetic, {}, dict(self.storage), magnitude)
            for tensor in stage.tensors:
                pieces = [
                    _Piece(p, i, scope)
                    for p in stage.pieces
                    for i, out in enumerate(p.outs)
                    if out.tensor.name == tensor.name
                ]
                written = _Written(tensor, pieces, self)
                self.storage[tensor.name] = (_shape(tensor), written)

    def __call__(self, name: str, index: Sequence[int]) -> Number:
        """The element of a tensor; with magnitude its magnitude."""
        shape, data = self.storage[name]
        offset = sum(i * s for i, s in zip(index, row_major(shape), strict=True))
        value = data[offset]
        if not self.magnitude:
            return value
        return value.total if isinstance(value, Magnitude) else abs(value)

    def spend(self) -> None:
        """Count a read."""
        if self.left is not None:
            if self.left <= 0:
                raise WorkExceeded
            self.left -= 1

    def _keep(self, tensor: Tensor, values: Sequence[Any]) -> None:
        element, dtype = self.arithmetic.element, tensor.dtype

        def read(offset: int) -> Number:
            value = element(values[offset], dtype)
            return Magnitude(value, abs(value)) if self.magnitude and dtype.is_float else value

        self.storage[tensor.name] = (_shape(tensor), _Kept(read, self))


class _Kept:
    """Elements read once from somewhere."""

    def __init__(self, read: Callable[[int], Number], owner: Elements) -> None:
        self.read, self.owner = read, owner
        self.known: dict[int, Number] = {}

    def __getitem__(self, offset: int) -> Number:
        self.owner.spend()
        if offset not in self.known:
            self.known[offset] = self.read(offset)
        return self.known[offset]


class _Written(_Kept):
    """Elements that a stage writes."""

    def __init__(self, tensor: Tensor, pieces: Sequence[_Piece], owner: Elements) -> None:
        super().__init__(self._compute, owner)
        self.tensor, self.pieces = tensor, pieces
        self.strides = row_major(_shape(tensor))

    def _compute(self, offset: int) -> Number:
        index: list[int] = []
        for stride in self.strides:
            index.append(offset // stride)
            offset %= stride
        for piece in self.pieces:
            for point in piece.points(index):
                return self.owner.arithmetic.store(piece.value(point), self.tensor.dtype)
        raise FormulaError(f"{self.tensor.name}{index} is never written")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(fixed(e, tensor.name) for e in tensor.shape)


class _Piece:
    """One output of a definition, computed at one point at a time."""

    def __init__(self, piece: Definition, number: int, outside: Scope) -> None:
        self.piece, self.out = piece, piece.outs[number]
        self.count = len(piece.domain.ranges)
        self.base = self.count + max((len(r.domain.ranges) for r in piece.reduces), default=0)
        scope = outside.within(piece.domain, 0)
        self.tests = [compile_constraint(c, scope) for c in piece.domain.constraints]
        self.reduces: list[tuple[int, int, Callable[[Point], list[Any]]]] = []
        self.size = self.base
        for i, reduce in enumerate(piece.reduces):
            results = len(reduce.reduction.project)
            self.reduces.append((self.size, results, compile_reduce(reduce, scope, self.count)))
            for item in range(results):
                scope.slots[Result(i, item).name] = self.size + item
            self.size += results
        self.body = compile_body(piece.values[number], scope)

    def points(self, element: Sequence[int]) -> Iterator[Point]:
        """The points of the domain that write an element: one or none."""
        spans = {r.axis: range(r.lo, fixed(r.hi)) for r in self.piece.domain.ranges}
        left = [i - e for i, e in zip(self.out.index, element, strict=True)]
        for found in _solutions(left, spans):
            point: Point = [found[r.axis] for r in self.piece.domain.ranges]
            point += [0] * (self.size - self.count)
            if all(test(point) for test in self.tests):
                yield point

    def value(self, point: Point) -> Number:
        for slot, count, reduce in self.reduces:
            point[slot : slot + count] = reduce(point)
        return self.body(point)


def _solutions(zero: Sequence[Affine], spans: Mapping[str, range]) -> Iterator[dict[str, int]]:
    """All values of the axes at which every expression is 0: one axis at a time, by division where
    an expression has only that axis left, else by trying the shortest range."""
    zero = [v for v in zero if not (v.is_constant and v.constant == 0)]
    if any(v.is_constant for v in zero):
        return
    for value in zero:
        bounds = {n: (spans[n].start, spans[n].stop) for n in value.names()}
        low, high = value.bounds(bounds)
        if low > 0 or high < 0:
            return
    single = next((v for v in zero if len(v.terms) == 1 and v.is_plain), None)
    if single is not None:
        (name, factor), constant = single.terms[0], single.constant
        assert isinstance(name, str)
        quotient, rest = divmod(-constant, factor)
        values: Sequence[int] = [quotient] if not rest and quotient in spans[name] else []
    elif spans:
        inside = {n for v in zero for n in v.names()}
        name = min(spans, key=lambda n: (n not in inside, len(spans[n])))
        values = spans[name]
    else:
        yield {}
        return
    others = {n: s for n, s in spans.items() if n != name}
    for chosen in values:
        for found in _solutions([v.substitute({name: chosen}) for v in zero], others):
            yield {**found, name: chosen}
