"""What is to be solved, and what a solution looks like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from sympy import Expr

from convgen.affine import Affine, Constraint
from convgen.symbolic.expr import Domain, Extent, Range, Size

# A size that is bound later: larger than any array, for bounds only.
UNBOUNDED = 1 << 48


@dataclass(frozen=True)
class Term:
    """For each z of `domain`: body(z) belongs to element index(z) of a tensor of `shape`.

    `positions` are the axes to solve for first (the axes of the definition, not of its sums);
    those in `classes` number the elements of a residue class (2*u + 1 is written).
    """

    domain: Domain
    index: tuple[Affine, ...]
    shape: tuple[Extent, ...]
    body: Expr
    positions: tuple[str, ...]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progression:
    """Elements start + step*param of a dimension, 0 <= param < count."""

    param: str
    start: int
    step: int
    count: Extent


@dataclass(frozen=True)
class Digits:
    """Elements index(axes) of a dimension: low, low + 1, ..., each for one value of the axes."""

    index: Affine
    ranges: tuple[Range, ...]
    low: int
    count: int


Region: TypeAlias = "Progression | Digits"


@dataclass
class Part:
    """The sum over `sums` (cut by `constraints`) of body, for the elements of `regions`.

    `solution` gives every axis of the body in terms of the parameters of the regions and the axes
    of the sum; `names` the wanted name of each dimension's axis; `hints` of each axis of the sum.
    """

    body: Expr
    regions: list[Region]
    solution: dict[str, Affine]
    sums: list[Range]
    constraints: list[Constraint]
    names: tuple[str, ...]
    hints: dict[str, str] = field(default_factory=dict)
    factor: int = 1


def span(range_: Range) -> tuple[int, int]:
    """(lo, hi) for bounds; a size that is not bound counts as very large."""
    return range_.lo, UNBOUNDED if isinstance(range_.hi, Size) else range_.hi
