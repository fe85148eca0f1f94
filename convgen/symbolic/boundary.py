"""What an access reads outside its tensor: one boundary for each dimension of the access."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import sympy

from convgen.errors import FormulaError, ShapeError
from convgen.symbolic.functions import exact_floats


@dataclass(frozen=True)
class Boundary:
    """The rule for one dimension of extent `extent` at index i.

    `fold(i, extent)` is the index inside that is read instead, or None where no element is read
    (zero, constant: `value` is read; omit: the term is left out of its reduction).
    """

    name: ClassVar[str] = ""
    value: sympy.Expr | None = None

    def fold(self, index: int, extent: int) -> int | None:
        return index if 0 <= index < extent else None

    def check(self, low: int, high: int, extent: int, where: str) -> None:
        """Refuse an access that reaches low..high (inclusive) further than the rule can fold."""

    @property
    def folds(self) -> bool:
        """True for the modes that read another element (reflect, replicate, circular)."""
        return False

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Zero(Boundary):
    """Reads 0 outside. The default."""

    name: ClassVar[str] = "zero"


@dataclass(frozen=True)
class Constant(Boundary):
    """Reads `value` outside: a rational, or a body over the access's other axes (which may read
    other tensors, as in padding by the map's mean)."""

    name: ClassVar[str] = "constant"


@dataclass(frozen=True)
class Omit(Boundary):
    """Leaves the term out of the reduction: max pooling, averages that do not count padding."""

    name: ClassVar[str] = "omit"


@dataclass(frozen=True)
class Reflect(Boundary):
    """Mirrors without repeating the edge: -1 reads 1. Reaches at most extent - 1 beyond it."""

    name: ClassVar[str] = "reflect"

    @property
    def folds(self) -> bool:
        return True

    def fold(self, index: int, extent: int) -> int | None:
        if index < 0:
            return -index
        return index if index < extent else 2 * (extent - 1) - index

    def check(self, low: int, high: int, extent: int, where: str) -> None:
        reach = max(-low, high - (extent - 1), 0)
        if reach >= extent and reach > 0:
            raise ShapeError(
                "reflect padding is as wide as the input",
                where=where,
                expected=f"at most {extent - 1} beyond each edge of extent {extent}",
                got=str(reach),
                hint="a smaller padding, or replicate",
            )


@dataclass(frozen=True)
class Replicate(Boundary):
    """Repeats the edge: -1 reads 0, -2 reads 0."""

    name: ClassVar[str] = "replicate"

    @property
    def folds(self) -> bool:
        return True

    def fold(self, index: int, extent: int) -> int | None:
        return min(max(index, 0), extent - 1)

    def check(self, low: int, high: int, extent: int, where: str) -> None:
        if extent == 0 and high >= low:
            raise ShapeError("replicate padding of an empty dimension", where=where)


@dataclass(frozen=True)
class Circular(Boundary):
    """Wraps around: -1 reads extent - 1. Reaches at most extent beyond the edge."""

    name: ClassVar[str] = "circular"

    @property
    def folds(self) -> bool:
        return True

    def fold(self, index: int, extent: int) -> int | None:
        return index % extent

    def check(self, low: int, high: int, extent: int, where: str) -> None:
        reach = max(-low, high - (extent - 1), 0)
        if reach > extent:
            raise ShapeError(
                "circular padding is wider than the input",
                where=where,
                expected=f"at most {extent} beyond each edge",
                got=str(reach),
                hint="a smaller padding",
            )


ZERO = Zero()
OMIT = Omit()
REFLECT = Reflect()
REPLICATE = Replicate()
CIRCULAR = Circular()
BOUNDARIES: dict[str, Boundary] = {b.name: b for b in (ZERO, OMIT, REFLECT, REPLICATE, CIRCULAR)}


def constant(value: sympy.Expr | int | float) -> Boundary:
    """The boundary that reads `value` outside; a float is the rational that its shortest decimal
    says, as in bodies, or an infinity."""
    try:
        expr = exact_floats(sympy.sympify(value, strict=True))
    except (sympy.SympifyError, AttributeError) as error:
        raise FormulaError(
            "a boundary", expected="a name, a number or an expression", got=repr(value)
        ) from error
    return ZERO if expr == 0 else Constant(expr)


def boundary_of(value: Boundary | str | int | float | sympy.Expr) -> Boundary:
    """A Boundary from its name, from "." (zero), or from a constant."""
    if isinstance(value, Boundary):
        return value
    if isinstance(value, str):
        found = ZERO if value in (".", "zeros") else BOUNDARIES.get(value)
        if found is None:
            raise FormulaError(
                f"unknown boundary {value!r}",
                expected="one of . " + " ".join(BOUNDARIES) + " or a constant",
                got=repr(value),
            )
        return found
    return constant(value)
