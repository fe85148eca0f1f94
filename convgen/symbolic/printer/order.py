"""The order in which a formula is written, whatever order sympy keeps its arguments in.

Terms and factors follow the program's tensors (inputs in the user's order, then what stages
write), axes follow the definition; numbers come last in sums and first in products.

In an index positions come before taps, and what is added before what is subtracted: `2*y + r - 1`
in a layer, `h + 1 - r` in its gradient to the input, `2*y + r - 1` again in that to the weights,
whose positions are those of the cotangent. The constant is the last of its group. Positions are
the axes that cotangents are read at, then those of the left side, then those of sums (the usual
names, h w y x against r s t, tell it before that). Among these what counts whole blocks of the
others comes first, then what more accesses mention, then what runs further.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sympy
from sympy import Expr, Rational, S

from convgen.affine import Affine, Atom, FloorDiv
from convgen.symbolic.expr import Access, Axis, Definition, Result, accesses_of
from convgen.symbolic.letters import usual_taps

if TYPE_CHECKING:
    from convgen.symbolic.program import Program

UNBOUND = 1 << 48  # an extent that is bound later runs furthest


@dataclass(frozen=True)
class Product:
    """coefficient * product(over) / product(under), factors in writing order."""

    coefficient: Expr
    over: tuple[Expr, ...]
    under: tuple[Expr, ...]

    @property
    def negative(self) -> bool:
        return bool(self.coefficient.is_extended_negative)


class Order:
    """Ranks of tensors in a program and of axes in one of its definitions."""

    def __init__(self, program: Program, definition: Definition | None = None) -> None:
        self.tensors = {name: i for i, name in enumerate(program.tensors())}
        self.definition = definition
        self._inputs = {t.name for t in program.inputs}
        self._gradients = {t.name for t in program.outputs}
        names: list[str] = self._positions()
        names += [n for n in self._written() if n not in names]
        for reduce in definition.reduces if definition else ():
            names += [n for n in reduce.domain.names if n not in names]
        self.axes = {name: i for i, name in enumerate(names)}
        self._weights = self._standing()
        self._keys: dict[Expr, tuple[Any, ...]] = {}

    def _positions(self) -> list[str]:
        """The axes that cotangents are read at, one by one: those of the layer's own output."""
        found: dict[str, None] = {}
        if self.definition is not None:
            for access in self.definition.reads():
                if self._is_cotangent(access):
                    found.update((i.single, None) for i in access.index if i.single is not None)
        return list(found)

    def _standing(self) -> dict[str, tuple[int, int, int]]:
        """(group, - accesses, - extent) of each axis: what stands first in an index."""
        definition = self.definition
        if definition is None:
            return {}
        accesses = [*definition.reads(), *definition.outs]
        group = dict.fromkeys(self.axes, 2)
        group.update((n, 1) for o in definition.outs for n in o.names())
        for access in accesses:
            if self._is_cotangent(access):
                group.update((n, 0) for i in access.index for n in i.names())
        extents: dict[str, int] = {}
        for domain in (definition.domain, *(r.domain for r in definition.reduces)):
            for r in domain.ranges:
                extent = r.extent if isinstance(r.extent, int) else UNBOUND
                extents[r.axis] = max(extent, extents.get(r.axis, 0))
        uses = Counter(n for a in accesses for n in a.names())
        return {n: (group[n], -uses[n], -extents.get(n, 0)) for n in self.axes}

    def _written(self) -> list[str]:
        """The axes on the left; of several in one index (blocks and what is in them) those that
        count most come first."""
        found: dict[str, None] = {}
        if self.definition is not None:
            for out in self.definition.outs:
                for index in out.index:
                    terms = sorted(index.terms, key=lambda t: -abs(t[1]))
                    found.update((a, None) for a, _ in terms if isinstance(a, str))
            found.update((n, None) for n in self.definition.domain.names)
        return list(found)

    def items(self, value: Affine) -> list[tuple[Atom | None, int]]:
        """The terms of an index in writing order: see `ordered_terms`."""
        return ordered_terms(value, self.ranks_in(value))

    def affine(self, value: Affine) -> str:
        """An index as text, in writing order."""
        return affine_text(value, self.ranks_in(value))

    def ranks_in(self, value: Affine) -> dict[str, int]:
        """The order of the axes of one index."""
        last = (3, 0, 0)
        coefficient = {a: abs(f) for a, f in value.terms if isinstance(a, str)}
        taps = usual_taps(value.names())
        counted = _is_mixed_radix(
            [(f, -self._weights.get(a, last)[2]) for a, f in coefficient.items() if a not in taps]
        )

        def key(name: str) -> tuple[Any, ...]:
            group, *rest = self._weights.get(name, last)
            size = coefficient.get(name, 0)
            place = self.axes.get(name, len(self.axes))
            return (name in taps, group, -size if counted else 0, *rest, -size, place)

        return {n: i for i, n in enumerate(sorted(value.names(), key=key))}

    def ranks(self, body: Expr) -> list[int]:
        """The ranks of the tensors that a body reads, results included, smallest first."""
        found = {self.tensors.get(a.tensor.name, len(self.tensors)) for a in accesses_of(body)}
        if self.definition is not None:
            for r in body.atoms(Result):
                if 0 <= r.reduce < len(self.definition.reduces):
                    found.update(self.ranks(self.definition.reduces[r.reduce].body))
        return sorted(found)

    def key(self, body: Expr) -> tuple[Any, ...]:
        """Sorts what reads earlier tensors first, what reads none last."""
        if body not in self._keys:
            ranks = self.ranks(body) or [len(self.tensors) + 1]
            axes = sorted(self.axes.get(a.name, 0) for a in body.atoms(Axis))
            text = re.sub(r"\d+", lambda n: n[0].zfill(9), str(body))
            self._keys[body] = (ranks, axes, text.replace("-", "~"))
        return self._keys[body]

    def _is_cotangent(self, factor: Expr) -> bool:
        """dY leads a product: the derived gradient reads dY * W, as one writes the chain rule."""
        return any(
            a.tensor.role in ("input", "temporary") and self._names_cotangent(a.tensor.name)
            for a in factor.atoms(Access)
        )

    def _names_cotangent(self, name: str) -> bool:
        """dY is the cotangent of Y; dy that of y where the program's outputs are gradients too."""
        if name[0] != "d" or name[1:] in self._inputs:
            return False
        gradients = all(g[0] == "d" and g[1:].rstrip("'") in self._inputs for g in self._gradients)
        return name[1:2].isupper() or (len(name) > 1 and bool(self._gradients) and gradients)

    def terms(self, body: Expr) -> list[Expr]:
        """The terms of a sum: those with reductions, then by tensors, numbers last; a positive one
        leads where there is one."""
        found = sorted(
            sympy.Add.make_args(body),
            key=lambda t: (bool(t.is_number), not t.has(Result), *self.key(t)),
        )
        lead = next((i for i, t in enumerate(found) if not self.product(t).negative), 0)
        return [found[lead], *found[:lead], *found[lead + 1 :]]

    def product(self, term: Expr) -> Product:
        """A term as coefficient, numerator and denominator."""
        if term.is_Rational or term.is_infinite and term.is_number:
            return Product(term, (), ())
        coefficient: Expr = S.One
        over: list[Expr] = []
        under: list[Expr] = []
        for factor in sympy.Mul.make_args(term):
            if factor.is_Rational:
                coefficient = coefficient * factor  # type: ignore[operator]
            elif isinstance(factor, sympy.Pow) and _divides(factor.args[1]):
                under.append(factor.args[0] ** -factor.args[1])  # type: ignore[operator]
            else:
                over.append(factor)
        over.sort(key=lambda f: (not self._is_cotangent(f), *self.key(f)))
        return Product(coefficient, tuple(over), tuple(sorted(under, key=self.key)))


def _is_mixed_radix(digits: list[tuple[int, int]]) -> bool:
    """True for (weight, extent) of digits: each weight is the product of the smaller extents."""
    step = min((w for w, _ in digits), default=1)
    for weight, extent in sorted(digits):
        if weight != step:
            return False
        step *= extent
    return True


def ordered_terms(value: Affine, axes: Mapping[str, int]) -> list[tuple[Atom | None, int]]:
    """The terms of an index in writing order, each with its coefficient; None stands for the
    constant. Empty for 0."""

    def rank(item: tuple[Atom | None, int]) -> tuple[bool, bool, int]:
        atom, factor = item
        names = [atom] if isinstance(atom, str) else [] if atom is None else atom.value.names()
        first = min((axes.get(n, len(axes)) for n in names), default=len(axes))
        return (factor < 0, atom is None, first)

    terms: list[tuple[Atom | None, int]] = list(value.terms)
    if value.constant:
        terms.append((None, value.constant))
    return sorted(terms, key=rank)


def affine_text(value: Affine, axes: Mapping[str, int]) -> str:
    """An index as text, in writing order.

    >>> h, r = Affine.of("h"), Affine.of("r")
    >>> print(affine_text(1 - r + h, {"r": 0, "h": 1}), "|", affine_text(2 - r, {}))
    h + 1 - r | 2 - r
    """
    out = ""
    for atom, factor in ordered_terms(value, axes):
        body = _atom_text(atom, factor, axes)
        if not out:
            out = body if factor > 0 else f"-{body}"
        else:
            out += (" + " if factor > 0 else " - ") + body
    return out or "0"


def _atom_text(atom: Atom | None, factor: int, axes: Mapping[str, int]) -> str:
    size = abs(factor)
    if atom is None:
        return str(size)
    body = atom if isinstance(atom, str) else ""
    if not isinstance(atom, str):
        inner = affine_text(atom.value, axes)
        if atom.value.single is None:
            inner = f"({inner})"
        body = f"{inner} {'//' if isinstance(atom, FloorDiv) else '%'} {atom.divisor}"
        if factor != 1:
            body = f"({body})"
    return body if size == 1 else f"{size}*{body}"


def _divides(exponent: Any) -> bool:
    return bool(exponent.is_Rational and exponent.is_negative)


def decimal(value: Rational) -> str | None:
    """A rational with a short decimal that is nicer than its fraction; None elsewhere.

    >>> decimal(Rational(9, 10)), decimal(Rational(1, 100000)), decimal(Rational(1, 2))
    ('0.9', '1e-5', None)
    """
    if value.q % 10:
        return None
    digits = next((k for k in range(1, 25) if 10**k % value.q == 0), 0)
    if not digits:
        return None
    sign = "-" if value.p < 0 else ""
    number = str(abs(value.p) * (10**digits // value.q))
    exponent = len(number) - 1 - digits
    if exponent >= -4:
        padded = number.rjust(digits + 1, "0")
        return f"{sign}{padded[:-digits]}.{padded[-digits:]}"
    mantissa = number[0] + ("." + number[1:] if len(number) > 1 else "")
    return f"{sign}{mantissa}e{exponent}"
