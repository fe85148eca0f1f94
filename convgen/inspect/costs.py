"""What a program costs: operations, bytes of its arrays, operations per byte."""

from __future__ import annotations

from dataclasses import dataclass

from convgen.symbolic.expr import Domain, Size
from convgen.symbolic.program import Program


@dataclass(frozen=True)
class Costs:
    """products: multiply-adds (or other steps) of all reductions; elements: what is written;
    array_bytes: inputs and outputs, each moved once."""

    products: int
    elements: int
    array_bytes: int

    @property
    def operations(self) -> int:
        """Floating-point operations: two for each product, one for each element else written."""
        return 2 * self.products if self.products else self.elements

    @property
    def intensity(self) -> float:
        """Operations per byte when every array moves once."""
        return self.operations / max(1, self.array_bytes)


def costs_of(program: Program) -> Costs:
    """The costs of a program; sizes that are not bound count once.

    >>> from convgen.symbolic.parse import parse
    >>> costs_of(parse("Y[n, k] = sum(c: X[n, c] * W[k, c])", X=(8, 3), W=(4, 3)))
    Costs(products=96, elements=32, array_bytes=272)
    """
    products = elements = 0
    for stage in program.stages:
        for piece in stage.pieces:
            points = _points(piece.domain)
            elements += points
            products += sum(points * _points(r.domain) for r in piece.reduces)
    arrays = (*program.inputs, *program.outputs)
    size = sum(t.dtype.bytes * _product([e for e in t.shape if isinstance(e, int)]) for t in arrays)
    return Costs(products, elements, size)


def _points(domain: Domain) -> int:
    return _product([e for r in domain.ranges if not isinstance(e := r.extent, Size)])


def _product(numbers: list[int]) -> int:
    total = 1
    for n in numbers:
        total *= n
    return total
