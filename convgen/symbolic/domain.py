"""Axes, sizes and the integer domains over which formulas run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from sympy import Symbol

from convgen.affine import Constraint
from convgen.errors import FormulaError, ShapeError
from convgen.symbolic.conditions import Compared


class Axis(Compared, Symbol):
    """An index of a formula; equal names are equal axes. Ranges live in the Domain."""

    def __new__(cls, name: str) -> Axis:
        check_name(name, "axis")
        return Symbol.__new__(cls, name, integer=True)  # type: ignore[return-value]

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        return (self.name,), {}


class Size(Compared, Symbol):
    """A named extent that is bound later (a symbolic batch): N in ``X: f32[N, 3, 8, 8]``.

    A dimension of symbolic extent can only be indexed by a plain axis that runs over it.
    """

    def __new__(cls, name: str) -> Size:
        check_name(name, "size")
        return Symbol.__new__(cls, name, integer=True, nonnegative=True)  # type: ignore[return-value]

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        return (self.name,), {}


Extent: TypeAlias = "int | Size"


class Result(Compared, Symbol):
    """The value of reduce number `reduce` of the same Definition, its result number `item`."""

    reduce: int
    item: int

    def __new__(cls, reduce: int, item: int = 0) -> Result:
        self = Symbol.__new__(cls, f"%{reduce}.{item}", real=True)
        self.reduce, self.item = reduce, item
        return self  # type: ignore[return-value]

    def __getnewargs_ex__(self) -> tuple[tuple[int, int], dict[str, Any]]:
        return (self.reduce, self.item), {}


def axes(names: str) -> tuple[Axis, ...]:
    """Axes from their names, separated by blanks or commas.

    >>> axes("n k y x")
    (n, k, y, x)
    """
    if not isinstance(names, str):
        raise FormulaError("names of axes", expected="text such as 'n k y x'", got=repr(names))
    return tuple(Axis(name) for name in names.replace(",", " ").split())


LARGEST = 1 << 62  # indices and ranges stay below: sums of two fit in 64 bits


def whole_number(number: Any, what: str) -> int:
    """An integer of an index or a range; ShapeError beyond 64 bits."""
    if abs(number) > LARGEST:
        raise ShapeError(f"{what} is beyond 64 bits", expected="at most 2**62", got=str(number))
    return int(number)


def check_name(name: str, what: str) -> None:
    # A prime is allowed at the end: derived axes are primed where their name is taken.
    if not isinstance(name, str) or not name.rstrip("'").isidentifier():
        raise FormulaError(f"{what} name {name!r}", expected="an identifier", got=repr(name))


@dataclass(frozen=True, slots=True)
class Range:
    """lo <= axis < hi."""

    axis: str
    lo: int
    hi: Extent

    def __post_init__(self) -> None:
        for end in (self.lo, self.hi):
            if not isinstance(end, Size):
                whole_number(end, f"the range of {self.axis}")

    @property
    def extent(self) -> Extent:
        """hi - lo, never below 0. A symbolic hi starts at 0."""
        return self.hi if isinstance(self.hi, Size) else max(0, self.hi - self.lo)


@dataclass(frozen=True, slots=True)
class Domain:
    """Integer points: a box of ranges, cut by constraints over quasi-affine expressions. Ranges are
    ordered (row-major: the last varies fastest). Constraints may mention axes of an enclosing
    domain.
    """

    ranges: tuple[Range, ...] = ()
    constraints: tuple[Constraint, ...] = ()

    def __post_init__(self) -> None:
        names = [r.axis for r in self.ranges]
        if len(set(names)) != len(names):
            raise FormulaError("an axis occurs twice in one domain", got=", ".join(names))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(r.axis for r in self.ranges)

    def __getitem__(self, name: str) -> Range:
        for r in self.ranges:
            if r.axis == name:
                return r
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(r.axis == name for r in self.ranges)

    def bounds(self) -> dict[str, tuple[int, int]]:
        """axis -> (lo, hi), for Affine.bounds. All extents must be bound."""
        return {r.axis: (r.lo, fixed(r.hi, r.axis)) for r in self.ranges}

    def join(self, other: Domain) -> Domain:
        """Ranges and constraints of both."""
        return Domain(self.ranges + other.ranges, self.constraints + other.constraints)

    def where(self, *constraints: Constraint) -> Domain:
        """The same, cut further."""
        return Domain(self.ranges, self.constraints + constraints)

    def points(self, outer: Mapping[str, int] | None = None) -> Iterator[dict[str, int]]:
        """All points in row-major order, each with the values of `outer` included."""
        base = dict(outer or {})
        spans = [range(r.lo, fixed(r.hi, r.axis)) for r in self.ranges]
        for values in itertools.product(*spans):
            point = {**base, **dict(zip(self.names, values, strict=True))}
            if all(c.holds(point) for c in self.constraints):
                yield point


def fixed(extent: Extent, where: str = "") -> int:
    """The integer an extent is; ShapeError for a size that is not bound yet."""
    if isinstance(extent, Size):
        raise ShapeError(
            f"the size {extent.name} is not bound",
            where=where,
            hint=f"program.bind({extent.name}=8)",
        )
    return extent
