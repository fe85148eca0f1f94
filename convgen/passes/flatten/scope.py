"""What is known at a place of the walk, and the conditions that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from convgen.affine import Affine, Atom, Constraint, FloorDiv, Mod
from convgen.ir.simplify import simplify_affine

LANE = "$lane"  # the number of the lane, in offsets and conditions of one vector

Ranges = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Scope:
    """A place inside a nest.

    values    loops, `base` variables and outer axes that are expressions of live variables
    ranges    live variables, lo <= name < hi
    extents   extents of inner loops set by the segment the walk is in
    lanes     lanes of the vector at a position of the tile (1: scalars); `valid` of them count
    interior  every condition ``<=`` of edges and guards is known to hold from here on
    versioned an interior test was made where it could not be made better further in
    known     conditions that an enclosing If has tested
    """

    values: Mapping[str, Affine] = field(default_factory=dict)
    ranges: Ranges = field(default_factory=dict)
    extents: Mapping[str, int] = field(default_factory=dict)
    lanes: int = 1
    valid: int = 1
    interior: bool = False
    versioned: bool = False
    known: frozenset[Constraint] = frozenset()

    def bind(self, name: str, value: Affine | int) -> Scope:
        """The scope in which a loop or base variable is an expression of live variables."""
        return replace(self, values={**self.values, name: Affine.of(value)})

    def live(self, name: str, low: int, high: int) -> Scope:
        """The scope inside a For or Let of that variable, low <= name < high."""
        values = {k: v for k, v in self.values.items() if k != name}
        return replace(self, values=values, ranges={**self.ranges, name: (low, high)})

    def sized(self, loop: str, extent: int) -> Scope:
        """The scope in which that loop has another extent."""
        return replace(self, extents={**self.extents, loop: extent})

    def knowing(self, conditions: Iterable[Constraint]) -> Scope:
        return replace(self, known=self.known | frozenset(conditions))

    def resolve(self, value: Affine, axes: Mapping[str, Affine]) -> Affine:
        """An expression over axes as one over live variables (and loops not entered yet)."""
        return simplify_affine(value.substitute(axes).substitute(self.values), self.ranges)


def verdict(condition: Constraint, ranges: Ranges) -> bool | None:
    """True or False when the ranges decide the condition, else None. Names without a range leave
    it undecided unless it is constant."""
    value = condition.value
    if not value.names() <= ranges.keys():
        return None
    low, high = value.bounds(ranges)
    if condition.kind == "<=":
        return True if high <= 0 else False if low > 0 else None
    if condition.kind == "==":
        return True if low == high == 0 else False if low > 0 or high < 0 else None
    if value.is_constant:
        return value.constant % condition.modulus == 0
    if all(c % condition.modulus == 0 for _, c in value.terms):
        return value.constant % condition.modulus == 0
    return None


def upper(value: Affine, inner: Ranges) -> Affine:
    """An expression that is not below `value` for all values of the inner names and free of them.

    >>> print(upper(Affine.of("y") - Affine.of("r") + 1, {"r": (0, 3)}))
    y + 1
    """
    total = Affine((), value.constant)
    for atom, coefficient in value.terms:
        total = total + _upper_term(atom, coefficient, inner)
    return total


def _upper_term(atom: Atom, coefficient: int, inner: Ranges) -> Affine:
    term = Affine(((atom, coefficient),))
    names = term.names()
    if not names & inner.keys():
        return term
    if names <= inner.keys():
        return Affine((), term.bounds(inner)[1])
    if isinstance(atom, Mod):
        return Affine((), max(0, coefficient * (atom.divisor - 1)))
    assert isinstance(atom, FloorDiv)
    value = upper(atom.value, inner) if coefficient > 0 else -upper(-atom.value, inner)
    return (value // atom.divisor) * coefficient
