"""Exact cover: integer maps over domains write each element of a box exactly once.

A piece that treats its axes separately writes a product of arithmetic progressions (one residue
class and range for each dimension). Two products are disjoint when in some dimension their
progressions do not meet (Chinese remainders); disjoint sets inside the box cover it when their
sizes add up to its size. Where constraints or indices tie axes together, the box is cut into
slices along a tied dimension until the axes are separate; equal slices are proved once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from convgen.affine import Affine, Constraint

# Sets of integers: a progression (step > 0), or an explicit sorted tuple.
Values: TypeAlias = "range | tuple[int, ...]"

# How many steps one proof may take: a listed point is one step, a slice of n pieces 8 n.
LIMIT = 1 << 18


class TooLarge(Exception):
    """The proof would need more than LIMIT steps."""


class WritesTwice(Exception):
    """A piece writes some element twice all by itself."""


@dataclass(frozen=True)
class Finding:
    """What is wrong: "twice", "never" or "outside", and at which element as far as it is known."""

    kind: str
    element: tuple[tuple[int, int], ...] = ()

    def at(self, dim: int, value: int) -> Finding:
        return Finding(self.kind, tuple(sorted((*self.element, (dim, value)))))


@dataclass(frozen=True)
class Write:
    """One piece: index[d] over axes whose values are `sets`, cut by constraints. `index` pairs a
    dimension with its expression; dimensions leave as the box is sliced."""

    index: tuple[tuple[int, Affine], ...]
    sets: tuple[tuple[str, Values], ...]
    constraints: tuple[Constraint, ...]


@dataclass
class Budget:
    """Counts steps; raises TooLarge past the limit."""

    left: int = LIMIT
    slices: int = 0
    seen: dict[Any, Finding | None] = field(default_factory=dict)

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise TooLarge


# ---------------------------------------------------------------------------------------------
# Sets of integers


def progression(start: int, count: int, step: int) -> range:
    """`count` integers from start on, step apart, written with a positive step."""
    if count <= 0:
        return range(0)
    if step < 0:
        start, step = start + (count - 1) * step, -step
    step = step if count > 1 else 1
    return range(start, start + (count - 1) * step + 1, step)


def meet(a: Values, b: Values) -> Values:
    """The common elements.

    >>> meet(range(1, 20, 4), range(0, 30, 3))
    range(9, 10)
    """
    if isinstance(a, range):
        a, b = b, a
    if not isinstance(a, range):
        others = b if isinstance(b, range) else frozenset(b)
        return tuple(v for v in a if v in others)
    assert isinstance(b, range)
    if not a or not b:
        return range(0)
    gcd = math.gcd(a.step, b.step)
    if (b.start - a.start) % gcd:
        return range(0)
    period = a.step // gcd * b.step
    modulus = b.step // gcd
    turns = (b.start - a.start) // gcd * pow(a.step // gcd, -1, modulus) % modulus
    first = a.start + a.step * turns  # in both, were they infinite
    low, high = max(a.start, b.start), min(a[-1], b[-1])
    first += -(-(low - first) // period) * period if first < low else 0
    return progression(first, (high - first) // period + 1, period) if first <= high else range(0)


def _image(index: Affine, sets: Mapping[str, Values], budget: Budget) -> Values:
    """The values of an index whose axes belong to it alone. Raises WritesTwice where it repeats."""
    names = sorted(index.names())
    if any(not sets[name] for name in names):
        return range(0)
    if index.is_plain and all(isinstance(sets[name], range) for name in names):
        merged = _mixed_radix(index, sets)
        if merged is not None:
            return merged
    count = math.prod(len(sets[name]) for name in names)
    budget.spend(count)
    values = {
        index.evaluate(dict(zip(names, point, strict=True)))
        for point in itertools.product(*(sets[name] for name in names))
    }
    if len(values) != count:
        raise WritesTwice
    return tuple(sorted(values))


def _mixed_radix(index: Affine, sets: Mapping[str, Values]) -> range | None:
    """sum(c * a) as one progression, where each axis counts what the smaller ones fill: 4*q + t."""
    start, parts = index.constant, list[tuple[int, int]]()
    for atom, coefficient in index.terms:
        assert isinstance(atom, str)
        values = sets[atom]
        assert isinstance(values, range)
        start += coefficient * (values[0] if coefficient > 0 else values[-1])
        if len(values) > 1:
            parts.append((abs(coefficient) * values.step, len(values)))
    parts.sort()
    step, count = parts[0] if parts else (1, 1)
    for coefficient, extent in parts[1:]:
        if coefficient != step * count:
            return None
        count *= extent
    return progression(start, count, step)


def _filter(name: str, values: Values, constraint: Constraint, budget: Budget) -> Values:
    """The values of the only axis of a constraint at which it holds."""
    affine = constraint.value
    if not values:
        return range(0)
    if affine.is_plain and isinstance(values, range):
        c, k = affine.coefficient(name), affine.constant
        if constraint.kind == "==":
            return meet(values, progression(-k // c, 1, 1)) if k % c == 0 else range(0)
        if constraint.kind == "<=":  # c * a <= -k
            if c > 0:
                return meet(values, range(values[0], -k // c + 1))
            return meet(values, range(_ceil(k, -c), values[-1] + 1))
        gcd = math.gcd(c, constraint.modulus)
        if k % gcd:
            return range(0)
        modulus = constraint.modulus // gcd
        residue = -(k // gcd) * pow(c // gcd, -1, modulus) % modulus if modulus > 1 else 0
        first = values[0] + (residue - values[0]) % modulus
        return meet(values, range(first, values[-1] + 1, modulus))
    budget.spend(len(values))
    return tuple(v for v in values if constraint.holds({name: v}))


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


# ---------------------------------------------------------------------------------------------
# Pieces


def simplify(write: Write, budget: Budget) -> Write | None:
    """The piece with constraints on single axes moved into the axes' sets; None when empty."""
    sets = dict(write.sets)
    kept: list[Constraint] = []
    fixed: dict[str, Affine | int] = {}
    for constraint in write.constraints:
        names = constraint.value.names()
        if not names:
            if not constraint.holds({}):
                return None
        elif len(names) == 1:
            (name,) = names
            sets[name] = _filter(name, sets[name], constraint, budget)
        else:
            kept.append(constraint)
    if any(not values for values in sets.values()):
        return None
    for name, values in list(sets.items()):
        if len(values) == 1:
            fixed[name] = values[0]
            del sets[name]
    out = Write(write.index, tuple(sets.items()), tuple(kept))
    if not fixed:
        return out
    index = tuple((d, value.substitute(fixed)) for d, value in write.index)
    reduced = Write(index, out.sets, tuple(_normal(c.substitute(fixed)) for c in kept))
    return simplify(reduced, budget) if kept else reduced


def _normal(constraint: Constraint) -> Constraint:
    """Congruences with the constant reduced, so that equal slices look equal."""
    if constraint.kind != "%":
        return constraint
    value, modulus = constraint.value, constraint.modulus
    return Constraint("%", Affine(value.terms, value.constant % modulus), modulus)


def _tied(write: Write) -> set[str]:
    """Axes that a constraint or a second dimension ties to others."""
    tied: set[str] = set()
    for constraint in write.constraints:
        tied |= constraint.value.names()
    seen: set[str] = set()
    for _, value in write.index:
        names = value.names()
        tied |= names & seen
        seen |= names
    return tied


def _products(write: Write, budget: Budget) -> dict[int, Values]:
    """dimension -> values, of a piece with separate axes. Raises WritesTwice for unused axes."""
    sets = dict(write.sets)
    used: set[str] = set()
    out: dict[int, Values] = {}
    for dim, value in write.index:
        used |= value.names()
        out[dim] = _image(value, sets, budget)
    if any(len(values) > 1 for name, values in sets.items() if name not in used):
        raise WritesTwice
    return out


def _free_points(write: Write, budget: Budget) -> int:
    """How many points the axes that are in no index have (the others are separate)."""
    names = sorted(set().union(*(c.value.names() for c in write.constraints)))
    sets = dict(write.sets)
    budget.spend(math.prod(len(sets[n]) for n in names))
    count = 0
    for point in itertools.product(*(sets[n] for n in names)):
        values = dict(zip(names, point, strict=True))
        count += all(c.holds(values) for c in write.constraints)
    return count


def is_empty(write: Write, budget: Budget) -> bool:
    """True when no point satisfies the constraints."""
    simple = simplify(write, budget)
    return simple is None or (bool(simple.constraints) and _free_points(simple, budget) == 0)


# ---------------------------------------------------------------------------------------------
# The proof


def prove_cover(writes: Iterable[Write], box: Mapping[int, int], budget: Budget) -> Finding | None:
    """None when the pieces write each element of the box (dimension -> extent) exactly once.
    Raises TooLarge."""
    simple = [w for w in (simplify(w, budget) for w in writes) if w is not None]
    key = (tuple(simple), tuple(box.items()))
    if key in budget.seen:
        return budget.seen[key]
    budget.seen[key] = found = _prove(simple, box, budget)
    return found


def _prove(writes: Sequence[Write], box: Mapping[int, int], budget: Budget) -> Finding | None:
    tied_dims = {
        dim
        for write in writes
        for tied in [_tied(write)]
        for dim, value in write.index
        if value.names() & tied
    }
    if math.prod(box.values()) == 0:
        return None if all(is_empty(w, budget) for w in writes) else Finding("outside")
    if tied_dims:
        return _prove_slices(writes, box, min(tied_dims, key=lambda d: (box[d], d)), budget)
    separate: list[Write] = []
    for write in writes:
        if not write.constraints:
            separate.append(write)
            continue
        points = _free_points(write, budget)
        if points > 1:
            return Finding("twice")
        if points:
            free = set().union(*(c.value.names() for c in write.constraints))
            kept = tuple((n, v) for n, v in write.sets if n not in free)
            separate.append(Write(write.index, kept, ()))
    return _prove_products(separate, box, budget)


def _prove_slices(
    writes: Sequence[Write], box: Mapping[int, int], dim: int, budget: Budget
) -> Finding | None:
    extent = box[dim]
    for write in writes:
        bounds = {n: (v[0], v[-1] + 1) for n, v in write.sets}
        low, high = dict(write.index)[dim].bounds(bounds)
        below, above = range(low, min(0, high + 1)), range(max(extent, low), high + 1)
        for value in itertools.chain(below, above):
            if not is_empty(_slice(write, dim, value), budget):
                return Finding("outside").at(dim, value)
    rest = {d: e for d, e in box.items() if d != dim}
    budget.spend(8 * len(writes) * extent)
    for value in range(extent):
        budget.slices += 1
        found = prove_cover([_slice(w, dim, value) for w in writes], rest, budget)
        if found is not None:
            return found.at(dim, value)
    return None


def _slice(write: Write, dim: int, value: int) -> Write:
    """The part of a piece that writes at one value of a dimension, without that dimension."""
    index = dict(write.index)
    tie = Constraint("==", index.pop(dim) - value)
    return Write(tuple(index.items()), write.sets, (*write.constraints, tie))


def _prove_products(
    writes: Sequence[Write], box: Mapping[int, int], budget: Budget
) -> Finding | None:
    products: list[dict[int, Values]] = []
    for write in writes:
        try:
            products.append(_products(write, budget))
        except WritesTwice:
            return Finding("twice")
    for product in products:
        for dim, values in product.items():
            for edge in (values[0], values[-1]):
                if not 0 <= edge < box[dim]:
                    return Finding("outside").at(dim, edge)
    for one, other in itertools.combinations(products, 2):
        common = {d: meet(one[d], other[d]) for d in box}
        if all(common.values()):
            return Finding("twice", tuple((d, v[0]) for d, v in sorted(common.items())))
    size = sum(math.prod(len(p[d]) for d in box) for p in products)
    if size == math.prod(box.values()):
        return None
    return Finding("never", tuple(sorted(_uncovered(products, dict(box)))))


def _uncovered(
    products: Sequence[dict[int, Values]], box: dict[int, int]
) -> Iterator[tuple[int, int]]:
    """An element that disjoint products leave out, dimension by dimension."""
    if not box:
        return
    dim = min(box)
    rest = {d: e for d, e in box.items() if d != dim}
    for value in range(min(box[dim], LIMIT)):
        within = [p for p in products if value in p[dim]]
        if sum(math.prod(len(p[d]) for d in rest) for p in within) != math.prod(rest.values()):
            yield dim, value
            yield from _uncovered(within, rest)
            return
