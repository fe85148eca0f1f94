"""Quasi-affine integer expressions: the index arithmetic that formulas and kernels share.

An `Affine` is ``sum(coefficient * atom) + constant`` where an atom is a name (an axis, a loop), or
the floor quotient or remainder of another Affine by a positive constant. Division rounds down and
``0 <= a % m < m`` always, as in Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class FloorDiv:
    """floor(value / divisor), divisor > 0."""

    value: Affine
    divisor: int

    def __str__(self) -> str:
        return f"({self.value}) // {self.divisor}"


@dataclass(frozen=True, slots=True)
class Mod:
    """value - divisor * floor(value / divisor), in 0..divisor-1, divisor > 0."""

    value: Affine
    divisor: int

    def __str__(self) -> str:
        return f"({self.value}) % {self.divisor}"


Atom: TypeAlias = "str | FloorDiv | Mod"


def _key(term: tuple[Atom, int]) -> tuple[int, str]:
    atom = term[0]
    return (0, atom) if isinstance(atom, str) else (1, str(atom))


@dataclass(frozen=True, slots=True)
class Affine:
    """``sum(c * a for a, c in terms) + constant``. Terms are sorted, coefficients non-zero: equal
    values built in any order compare equal (up to what `FloorDiv` and `Mod` hide).

    >>> y, r = Affine.of("y"), Affine.of("r")
    >>> index = 2 * y + r - 1
    >>> print(index, "|", index.substitute({"y": 3 * y + 1}))
    r + 2*y - 1 | r + 6*y + 1
    >>> index.bounds({"y": (0, 4), "r": (0, 3)})
    (-1, 7)
    """

    terms: tuple[tuple[Atom, int], ...] = ()
    constant: int = 0

    @staticmethod
    def of(value: Affine | Atom | int) -> Affine:
        """An Affine from a name, an atom or an integer."""
        if isinstance(value, Affine):
            return value
        if isinstance(value, int):
            return Affine((), int(value))
        return Affine(((value, 1),), 0)

    @staticmethod
    def build(terms: Iterable[tuple[Atom, int]], constant: int = 0) -> Affine:
        """Add up terms (repeated atoms are merged, zeros dropped)."""
        total: dict[Atom, int] = {}
        for atom, coefficient in terms:
            total[atom] = total.get(atom, 0) + coefficient
        kept = [(a, c) for a, c in total.items() if c]
        if len(kept) > 1:
            kept.sort(key=_key)
        return Affine(tuple(kept), constant)

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.terms, self.constant + other)
        return Affine.build(self.terms + other.terms, self.constant + other.constant)

    __radd__ = __add__

    def __neg__(self) -> Affine:
        return self * -1

    def __sub__(self, other: Affine | int) -> Affine:
        return self + -other

    def __rsub__(self, other: Affine | int) -> Affine:
        return -self + other

    def __mul__(self, factor: int) -> Affine:
        if factor == 0:
            return Affine()
        return Affine(tuple((a, c * factor) for a, c in self.terms), self.constant * factor)

    __rmul__ = __mul__

    def __floordiv__(self, divisor: int) -> Affine:
        """Floor division by a positive constant; multiples of the divisor are split off exactly."""
        if divisor <= 0:
            raise ValueError(f"floor division by {divisor}; the divisor must be positive")
        whole, rest = self._split(divisor)
        if not rest.terms:
            return whole + rest.constant // divisor
        return whole + Affine.of(FloorDiv(rest, divisor))

    def __mod__(self, divisor: int) -> Affine:
        if divisor <= 0:
            raise ValueError(f"remainder modulo {divisor}; the modulus must be positive")
        _, rest = self._split(divisor)
        if not rest.terms:
            return Affine((), rest.constant % divisor)
        return Affine.of(Mod(rest, divisor))

    def _split(self, divisor: int) -> tuple[Affine, Affine]:
        """(whole, rest): self == divisor*whole + rest, the constant of rest in 0..divisor-1."""
        whole = Affine.build(
            ((a, c // divisor) for a, c in self.terms if c % divisor == 0),
            self.constant // divisor,
        )
        rest = Affine(tuple((a, c) for a, c in self.terms if c % divisor), self.constant % divisor)
        return whole, rest

    @property
    def is_constant(self) -> bool:
        return not self.terms

    @property
    def is_plain(self) -> bool:
        """True when no floor division or remainder occurs."""
        return all(isinstance(a, str) for a, _ in self.terms)

    @property
    def single(self) -> str | None:
        """The name this is exactly (coefficient 1, constant 0), or None."""
        if self.constant == 0 and len(self.terms) == 1:
            atom, coefficient = self.terms[0]
            if coefficient == 1 and isinstance(atom, str):
                return atom
        return None

    def coefficient(self, name: str) -> int:
        """The coefficient of a plain name (occurrences inside // and % do not count)."""
        for atom, coefficient in self.terms:
            if atom == name:
                return coefficient
        return 0

    def without(self, name: str) -> Affine:
        """The same without the plain term of that name."""
        return Affine(tuple((a, c) for a, c in self.terms if a != name), self.constant)

    def names(self) -> frozenset[str]:
        """Every name that occurs, also inside // and %."""
        found: set[str] = set()
        for atom, _ in self.terms:
            if isinstance(atom, str):
                found.add(atom)
            else:
                found |= atom.value.names()
        return frozenset(found)

    def hidden_names(self) -> frozenset[str]:
        """Names that occur inside // or %."""
        found: set[str] = set()
        for atom, _ in self.terms:
            if not isinstance(atom, str):
                found |= atom.value.names()
        return frozenset(found)

    def substitute(self, values: Mapping[str, Affine | int]) -> Affine:
        """Replace names by expressions, all at once."""
        if not values:
            return self
        out: list[tuple[Atom, int]] = []
        constant = self.constant
        changed = False
        for atom, coefficient in self.terms:
            if isinstance(atom, str):
                if atom not in values:
                    out.append((atom, coefficient))
                    continue
                new = Affine.of(values[atom])
            else:
                inner = atom.value.substitute(values)
                if inner is atom.value:
                    out.append((atom, coefficient))
                    continue
                new = inner // atom.divisor if isinstance(atom, FloorDiv) else inner % atom.divisor
            changed = True
            out += [(a, c * coefficient) for a, c in new.terms]
            constant += new.constant * coefficient
        return Affine.build(out, constant) if changed else self

    def evaluate(self, values: Mapping[str, int]) -> int:
        """The integer this is when every name has a value."""
        total = self.constant
        for atom, coefficient in self.terms:
            if isinstance(atom, str):
                total += coefficient * values[atom]
            elif isinstance(atom, FloorDiv):
                total += coefficient * (atom.value.evaluate(values) // atom.divisor)
            else:
                total += coefficient * (atom.value.evaluate(values) % atom.divisor)
        return total

    def bounds(self, ranges: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
        """(smallest, largest) over lo <= name < hi, both inclusive. Exact for plain expressions;
        with // and % an enclosure (exact where one atom occurs once).
        """
        low = high = self.constant
        for atom, coefficient in self.terms:
            if isinstance(atom, str):
                start, stop = ranges[atom]
                first, last = start, stop - 1
            else:
                first, last = atom.value.bounds(ranges)
                if isinstance(atom, FloorDiv):
                    first, last = first // atom.divisor, last // atom.divisor
                elif first // atom.divisor == last // atom.divisor:
                    first, last = first % atom.divisor, last % atom.divisor
                else:
                    first, last = 0, atom.divisor - 1
            if coefficient < 0:
                first, last = last, first
            low += coefficient * first
            high += coefficient * last
        return low, high

    def content(self) -> int:
        """The greatest common divisor of the coefficients (0 for a constant)."""
        return math.gcd(*(c for _, c in self.terms))

    def map_names(self, rename: Callable[[str], str]) -> Affine:
        """The same with every name replaced by rename(name)."""
        return self.substitute({n: Affine.of(rename(n)) for n in self.names()})

    def text(self, order: Mapping[str, int] | None = None) -> str:
        """Written out; terms in the order given (names not in it come last), then the constant.

        >>> (Affine.of("h") + 1 - Affine.of("r")).text({"h": 0, "r": 1})
        'h - r + 1'
        """
        terms = list(self.terms)
        if order is not None:
            last = len(order)

            def rank(item: tuple[Atom, int]) -> int:
                atom = item[0]
                if isinstance(atom, str):
                    return order.get(atom, last)
                return min((order.get(n, last) for n in atom.value.names()), default=last)

            terms.sort(key=rank)
        out = ""
        for atom, coefficient in terms:
            if isinstance(atom, str):
                body = atom
            else:
                sign = "//" if isinstance(atom, FloorDiv) else "%"
                inner = atom.value.text(order)
                if len(atom.value.terms) + bool(atom.value.constant) > 1 or not (
                    atom.value.single is not None
                ):
                    inner = f"({inner})"
                body = f"{inner} {sign} {atom.divisor}"
                if abs(coefficient) != 1 or coefficient < 0:
                    body = f"({body})"
            size = abs(coefficient)
            piece = body if size == 1 else f"{size}*{body}"
            if not out:
                out = piece if coefficient > 0 else f"-{piece}"
            else:
                out += (" + " if coefficient > 0 else " - ") + piece
        if not out:
            return str(self.constant)
        if self.constant:
            out += f" + {self.constant}" if self.constant > 0 else f" - {-self.constant}"
        return out

    def __str__(self) -> str:
        return self.text()


@dataclass(frozen=True, slots=True)
class Constraint:
    """A condition on integer points: ``value == 0``, ``value <= 0`` or ``value % modulus == 0``."""

    kind: Literal["==", "<=", "%"]
    value: Affine
    modulus: int = 0

    def holds(self, point: Mapping[str, int]) -> bool:
        number = self.value.evaluate(point)
        if self.kind == "==":
            return number == 0
        return number <= 0 if self.kind == "<=" else number % self.modulus == 0

    def substitute(self, values: Mapping[str, Affine | int]) -> Constraint:
        return Constraint(self.kind, self.value.substitute(values), self.modulus)


ZERO = Affine()
ONE = Affine((), 1)
