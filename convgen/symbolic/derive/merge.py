"""Putting residue classes together again where one formula says what several say.

The gradient of a layer that was itself made of residue pieces (a transposed one) comes as several
sums, or several pieces, whose formulas are one formula at the elements of different classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from sympy import Add, Expr

from convgen.affine import Affine, Constraint
from convgen.symbolic.derive.counting import counted_from_reads
from convgen.symbolic.derive.points import merge_point_pieces, merge_point_sums
from convgen.symbolic.derive.scalar import affine_in_results, exchange
from convgen.symbolic.expr import (
    Access,
    Axis,
    Definition,
    Domain,
    Range,
    Reduce,
    Result,
    Size,
    Stage,
    substitute,
)
from convgen.symbolic.indexmath import ceil_div
from convgen.symbolic.reductions import SUM

# What the axes of residue classes are called once they count all of them: taps t, t', ... and
# positions u, u', ..., by how many there are.
TAPS = {1: ("r",), 2: ("r", "s"), 3: ("q", "r", "s")}
POSITIONS = {1: ("y",), 2: ("y", "x"), 3: ("z", "y", "x")}
# Terms that one formula may add up, most of them zero, for each that its classes do: two dimensions
# multiply, and what the classes read needs no test of its edges.
MOST_WORK = 1.2


def _whole_name(
    axis: str, base: str, axes: Iterable[str], names: dict[int, tuple[str, ...]]
) -> str:
    """The name for all of t, t', ... (`base` t) in the place of one class's."""
    bare = axis.rstrip("'")
    rank = max((len(a) - len(base) + 1 for a in axes if a.rstrip("'") == base), default=0)
    return names[rank][len(axis) - len(bare)] if bare == base and rank in names else axis


def _positions(axes: Sequence[str]) -> dict[str, str]:
    """What the axes u, u', ... among some are called once they count all positions."""
    own = [a for a in axes if a.rstrip("'") == "u"]
    return dict(zip(own, POSITIONS.get(len(own), own), strict=True))


# ---------------------------------------------------------------------------------------------
# Stretching an axis: a body over t as a body over the number r = m*t + c


def _slots(body: Expr) -> Iterator[tuple[Access, int, Affine]]:
    for access in sorted(body.atoms(Access), key=str):
        assert isinstance(access, Access)
        for slot, index in enumerate(access.index):
            yield access, slot, index


def _stride(bodies: Sequence[Expr], axis: str) -> int:
    """The greatest m such that every index depends on m*axis only; 0 where the axis occurs in
    another way or not at all."""
    found = 0
    for body in bodies:
        if any(a.name == axis for a in body.atoms(Axis)):  # type: ignore[attr-defined]
            return 0
        for access, _, index in _slots(body):
            values = [b.value for b in access.boundary if b.value is not None]
            if axis in index.hidden_names() or any(axis in _names(v) for v in values):
                return 0
            found = math.gcd(found, index.coefficient(axis))
    return found


def _names(body: Expr) -> set[str]:
    return {a.name for a in body.atoms(Axis)}  # type: ignore[attr-defined]


def _stretched(value: Affine, axis: str, m: int, c: int, number: str) -> Affine:
    """value with axis := (number - c) / m, whose coefficient m divides."""
    slope = value.coefficient(axis)
    if not slope:
        return value
    return value.without(axis) + (slope // m) * (Affine.of(number) - c)


def _stretch(body: Expr, axis: str, m: int, c: int, number: str) -> Expr:
    changed: dict[Expr, Expr] = {}
    for access in body.atoms(Access):
        assert isinstance(access, Access)
        index = tuple(_stretched(i, axis, m, c, number) for i in access.index)
        if index != access.index:
            changed[access] = Access(access.tensor, index, access.boundary)
    return exchange(body, changed)


# ---------------------------------------------------------------------------------------------
# Sums


def merge_sums(piece: Definition) -> Definition:
    """Sums over the taps of several residue classes as one sum over all taps."""
    piece = _products_as_sums(piece)
    values = list(piece.values)
    numbers = [affine_in_results(v) for v in values]
    if len(values) != 1 or len(piece.reduces) < 2 or numbers[0] is None:
        return piece
    weights = {r.reduce: n for r, n in numbers[0].items()}
    if len(weights) != len(piece.reduces):
        return piece
    groups: list[tuple[Expr, list[Reduce]]] = []
    for i, reduce in enumerate(piece.reduces):
        known = next((g for n, g in groups if n == weights[i]), None)
        if known is None:
            groups.append((weights[i], [reduce]))
        else:
            known.append(reduce)
    outer = set(piece.domain.names)
    merged = [(n, _merge_group(g, outer)) for n, g in groups]
    if sum(len(g) for _, g in merged) == len(piece.reduces):
        return piece
    reduces = [r for _, g in merged for r in g]
    scales = [n for n, g in merged for _ in g]
    rest = exchange(values[0], {Result(i): 0 for i in range(len(piece.reduces))})
    terms = [n * Result(i) for i, n in enumerate(scales)]
    return Definition(piece.outs, piece.domain, tuple(reduces), (Add(*terms, rest),))


def _products_as_sums(piece: Definition) -> Definition:
    """Products that differ in a number that an access is read at, as a sum over it."""
    groups: dict[Expr, list[Reduce]] = {}
    for term in Add.make_args(piece.values[0]) if len(piece.values) == 1 else ():
        coefficient, core = term.as_coeff_Mul()
        if not term.atoms(Result):
            groups.setdefault(coefficient, []).append(Reduce(Domain(()), SUM, core))
    outer, value = set(piece.domain.names), piece.values[:1]
    reduces = list(piece.reduces)
    terms: list[Expr] = []
    for coefficient, group in groups.items():
        for reduce in merge_point_sums(group, outer) if len(group) > 1 else group:
            if not reduce.domain.ranges:
                terms.append(coefficient * reduce.body)
                continue
            terms.append(coefficient * Result(len(reduces)))
            reduces.append(reduce)
    if len(reduces) == len(piece.reduces):
        return piece
    kept = [t for t in Add.make_args(value[0]) if t.atoms(Result)]
    return replace(piece, reduces=tuple(reduces), values=(Add(*kept, *terms),))


def _merge_group(reduces: list[Reduce], outer: set[str]) -> list[Reduce]:
    changed = True
    while changed and len(reduces) > 1:
        changed = False
        axes = dict.fromkeys(r.axis for reduce in reduces for r in reduce.domain.ranges)
        for axis in axes:
            found = _merge_axis(reduces, axis, outer)
            if found is not None:
                reduces, changed = found, True
                break
    return merge_point_sums(reduces, outer)


def _merge_axis(reduces: list[Reduce], axis: str, outer: set[str]) -> list[Reduce] | None:
    """The list with the classes of one sum along an axis put together; None if there are none."""
    for reduce in reduces:
        if axis not in reduce.domain or reduce.domain.constraints:
            continue
        m = _stride([reduce.body], axis)
        pivot = next(
            (
                (a.tensor, slot, i.constant)
                for a, slot, i in _slots(reduce.body)
                if i.coefficient(axis) == m and len(i.terms) == 1
            ),
            None,
        )
        if m < 2 or pivot is None:
            continue
        known = [a for r in reduces for a in r.domain.names]
        number = _whole_name(axis, "t", known, TAPS)
        number = _whole_name(number, "u", known, POSITIONS)
        while number in outer or (number != axis and number in reduce.domain):
            number += "'"
        tensor, slot, c = pivot
        whole = _stretch(reduce.body, axis, m, c, number)
        taken: dict[int, Reduce] = {}
        for other in reduces:
            for value in _class_of(other, reduce, axis, m, (whole, number, tensor.name, slot)):
                taken.setdefault(value, other)
        members = [r for r in reduces if any(r is t for t in taken.values())]
        low, high = min(taken, default=0), max(taken, default=0) + 1
        if len(members) < 2 or len(taken) != high - low:
            continue
        ranges = tuple(
            Range(number, low, high) if r.axis == axis else r for r in reduce.domain.ranges
        )
        new = Reduce(Domain(ranges), reduce.reduction, whole)
        first = next(i for i, r in enumerate(reduces) if any(r is m_ for m_ in members))
        rest = [r for r in reduces if not any(r is m_ for m_ in members)]
        return [*rest[:first], new, *rest[first:]]
    return None


def _class_of(
    other: Reduce, model: Reduce, axis: str, m: int, whole: tuple[Expr, str, str, int]
) -> list[int]:
    """The numbers at which the whole body says what `other` sums; empty when it says something
    else."""
    body, number, tensor, slot = whole
    if other.domain.constraints or other.reduction != model.reduction:
        return []
    mine = {r for r in other.domain.ranges if r.axis != axis}
    if mine != {r for r in model.domain.ranges if r.axis != axis}:
        return []
    for access, where, index in _slots(other.body):
        if access.tensor.name != tensor or where != slot:
            continue
        if axis not in other.domain:
            at = {number: index.constant}
            same = index.is_constant and substitute(body, at) == other.body
            return [index.constant] if same else []
        slope, known = index.coefficient(axis), other.domain[axis]
        if slope != m or len(index.terms) != 1 or isinstance(known.hi, Size):
            continue
        value = m * Affine.of(axis) + index.constant
        if substitute(body, {number: value}) == other.body:
            return [value.evaluate({axis: t}) for t in range(known.lo, known.hi)]
    return []


# ---------------------------------------------------------------------------------------------
# Pieces


def merge_pieces(stage: Stage, hints: Sequence[str]) -> Stage:
    """Residue pieces that one formula covers, and neighbours that read alike, as one; `hints` are
    the wanted names of the axes of the dimensions."""
    pieces = list(stage.pieces)
    if len(stage.tensors) != 1 or len(pieces) < 2:
        return stage
    whole = _positions(hints)
    hints = [whole.get(h, h) for h in hints]
    for dim in reversed(range(stage.tensors[0].rank)):
        pieces = _merge_intervals(_merge_classes(pieces, dim, hints[dim]), dim)
        as_read = [
            merge_point_pieces(pieces, dim, lambda p, _: p),
            merge_point_pieces(pieces, dim, lambda p, own: counted_from_reads(p, own, True)),
        ]
        pieces = min(as_read, key=lambda found: (len(found), _index_terms(found)))
    if len(pieces) == len(stage.pieces):
        return stage
    return Stage(stage.tensors, tuple(_unprimed(p) for p in pieces))


def _index_terms(pieces: Sequence[Definition]) -> int:
    """How much is to be read in the indices of pieces."""
    indices = (i for p in pieces for a in p.reads() for i in a.index)
    return sum(len(i.terms) + bool(i.constant) for i in indices)


def _unprimed(piece: Definition) -> Definition:
    """The piece with as few primes in the names of its sums' axes as can be."""
    reduces: list[Reduce] = []
    for r in piece.reduces:
        taken, names = set(piece.domain.names), dict[str, Affine | int]()
        ranges: list[Range] = []
        whole = {} if "u" in taken else _positions(r.domain.names)
        for known in r.domain.ranges:
            name = whole.get(known.axis, known.axis).rstrip("'")
            while name in taken:
                name += "'"
            taken.add(name)
            names[known.axis] = Affine.of(name)
            ranges.append(Range(name, known.lo, known.hi))
        constraints = tuple(c.substitute(names) for c in r.domain.constraints)
        domain = Domain(tuple(ranges), constraints)
        reduces.append(Reduce(domain, r.reduction, substitute(r.body, names), r.name))
    return replace(piece, reduces=tuple(reduces))


def _merge_intervals(pieces: list[Definition], dim: int) -> list[Definition]:
    found: list[Definition] = []
    for piece in pieces:
        last = found[-1] if found else None
        joined = _joined(last, piece, dim) if last is not None else None
        if joined is not None:
            found[-1] = joined
        else:
            found.append(piece)
    return found


def _joined(first: Definition, second: Definition, dim: int) -> Definition | None:
    axis = first.outs[0].index[dim].single
    same = (
        axis is not None
        and first.outs == second.outs
        and first.values == second.values
        and first.reduces == second.reduces
        and first.domain.names == second.domain.names
        and first.domain.constraints == second.domain.constraints
    )
    if not same or axis is None:
        return None
    pairs = zip(first.domain.ranges, second.domain.ranges, strict=True)
    if any(a != b for a, b in pairs if a.axis != axis):
        return None
    if first.domain[axis].hi != second.domain[axis].lo:
        return None
    ranges = tuple(
        Range(axis, r.lo, second.domain[axis].hi) if r.axis == axis else r
        for r in first.domain.ranges
    )
    return replace(first, domain=Domain(ranges, first.domain.constraints))


def _merge_classes(pieces: list[Definition], dim: int, hint: str) -> list[Definition]:
    """All residue classes of one dimension, for each setting of the others."""
    groups: dict[tuple[object, ...], list[Definition]] = {}
    for piece in pieces:
        groups.setdefault(_setting(piece, dim), []).append(piece)
    found: list[Definition] = []
    for group in groups.values():
        whole = _merge_class_group(group, dim, hint) if len(group) > 1 else None
        found += group if whole is None else [whole]
    return found


def _setting(piece: Definition, dim: int) -> tuple[object, ...]:
    """What pieces of one dimension's classes have in common."""
    index = piece.outs[0].index
    own = [a for a, _ in index[dim].terms if isinstance(a, str)]
    modulus = index[dim].coefficient(own[0]) if len(own) == 1 else 0
    others = tuple(r for r in piece.domain.ranges if r.axis not in own)
    return (modulus, tuple(own), index[:dim], index[dim + 1 :], others, piece.domain.constraints)


def _merge_class_group(group: list[Definition], dim: int, hint: str) -> Definition | None:
    index = [p.outs[0].index[dim] for p in group]
    own = index[0].terms[0][0] if len(index[0].terms) == 1 else None
    if not isinstance(own, str):
        return None
    modulus = index[0].coefficient(own)
    classes = sorted(i.constant for i in index)
    ranges = [p.domain[own] for p in group]
    if modulus < 2 or classes != list(range(modulus)) or any(r.lo != 0 for r in ranges):
        return None
    if any(isinstance(r.hi, Size) for r in ranges):
        return None
    counts = {
        i.constant: int(r.hi)  # type: ignore[arg-type]
        for i, r in zip(index, ranges, strict=True)
    }
    extent = sum(counts.values())  # the classes together are the first elements, or stay apart
    if any(count != ceil_div(extent - c, modulus) for c, count in counts.items()):
        return None
    settled = [counted_from_reads(p, own) for p in group]
    number = hint
    while number in group[0].domain or any(number in r.domain for p in group for r in p.reduces):
        number += "'"
    for model in sorted(settled, key=lambda p: -int(p.domain[own].hi)):  # type: ignore[arg-type]
        whole = _stretched_piece(model, own, modulus, dim, number, extent)
        if whole is None or _work([whole]) > MOST_WORK * _work(group):
            continue
        if all(_is_at(p, whole, dim, own, number) for p in settled):
            return whole
    return None


def _work(pieces: Sequence[Definition]) -> int:
    """Terms added up by pieces; a size that is not bound counts once."""
    total = 0
    for piece in pieces:
        elements = _points(piece.domain)
        total += sum(elements * _points(r.domain) for r in piece.reduces) or elements
    return total


def _points(domain: Domain) -> int:
    return math.prod(r.extent for r in domain.ranges if isinstance(r.extent, int))


def _stretched_piece(
    piece: Definition, own: str, modulus: int, dim: int, number: str, extent: object
) -> Definition | None:
    """A residue piece as the piece of all elements, where its indices allow it."""
    bodies = [r.body for r in piece.reduces] + list(piece.values)
    stride = _stride(bodies, own)
    slopes = [c.value.coefficient(own) for r in piece.reduces for c in r.domain.constraints]
    if stride % modulus or stride == 0 or any(s % modulus for s in slopes):
        return None
    c = piece.outs[0].index[dim].constant

    def turn(value: Affine) -> Affine:
        return _stretched(value, own, modulus, c, number)

    def body(expr: Expr) -> Expr:
        return _stretch(expr, own, modulus, c, number)

    reduces = tuple(
        Reduce(
            Domain(
                r.domain.ranges,
                tuple(Constraint(k.kind, turn(k.value), k.modulus) for k in r.domain.constraints),
            ),
            r.reduction,
            body(r.body),
        )
        for r in piece.reduces
    )
    out = piece.outs[0]
    ranges = tuple(
        Range(number, 0, extent) if r.axis == own else r  # type: ignore[arg-type]
        for r in piece.domain.ranges
    )
    place = Access(out.tensor, tuple(turn(i) for i in out.index), out.boundary)
    values = tuple(body(v) for v in piece.values)
    return Definition((place,), Domain(ranges, piece.domain.constraints), reduces, values)


def _is_at(piece: Definition, whole: Definition, dim: int, own: str, number: str) -> bool:
    """True where the whole, at the elements of a piece, is that piece."""
    value = piece.outs[0].index[dim]
    if piece.domain[own].extent == 1:
        value = Affine.of(value.constant)
        piece = _substituted(piece, {own: Affine()})
    at = _substituted(whole, {number: value})
    return at.values == piece.values and at.reduces == piece.reduces


def _substituted(piece: Definition, values: Mapping[str, Affine | int]) -> Definition:
    reduces = tuple(
        Reduce(
            Domain(r.domain.ranges, tuple(c.substitute(values) for c in r.domain.constraints)),
            r.reduction,
            substitute(r.body, values),
        )
        for r in piece.reduces
    )
    return replace(
        piece, reduces=reduces, values=tuple(substitute(v, values) for v in piece.values)
    )
