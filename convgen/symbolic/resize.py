"""The same structure at other extents: a program made small without changing what it says.

Strides, dilations, paddings and group counts stand in indices and stay; the extents of tensors and
axes are unknowns tied to each other by the accesses (``H = 2*Y + R - 2`` of ``X[2*y + r - 1]``,
with whatever a stride skips at the end left over as before). Averages over a range keep their
meaning: ``/ 3136`` becomes ``/ 20`` when 56 x 56 becomes 4 x 5.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, TypeAlias

import sympy

from convgen.affine import Affine
from convgen.errors import FormulaError, ShapeError
from convgen.symbolic.expr import (
    Access,
    Definition,
    Domain,
    Range,
    Reduce,
    Stage,
    Tensor,
    accesses_of,
    fixed,
)
from convgen.symbolic.indexmath import mixed_radix
from convgen.symbolic.program import Program

# ("t", tensor, dimension) or ("r", where, axis); where = "stage.piece" or "stage.piece.reduce"
Key: TypeAlias = tuple[str, str, "int | str"]
Row: TypeAlias = "dict[Key, Fraction]"
Kind: TypeAlias = Literal["plain", "position", "tap"]

_FAR = 4  # conditions and starts beyond this speak of an extent, which then stays


@dataclass(frozen=True)
class Free:
    """An extent that may be chosen. kind: "position" (an index adds something to it), "tap" (what
    is added, in a sum), or "plain"."""

    name: str
    value: int
    kind: Kind


class Family:
    """All programs of one structure. `free` are the extents that may be chosen; the others follow.

    >>> from convgen.symbolic.parse import parse
    >>> layer = parse("Y[n,y] = sum(r: X[n,2*y + r - 1] * W[r]) for y < 28", X=(8, 56), W=(3,))
    >>> family = Family(layer)
    >>> [(f.name, f.value, f.kind) for f in family.free]
    [('n', 8, 'plain'), ('y', 28, 'position'), ('r', 3, 'tap')]
    >>> [str(t) for t in family.member([2, 4, 3]).inputs]
    ['X: f32[2, 8]', 'W: f32[3]']
    """

    def __init__(self, program: Program, digits: bool = True) -> None:
        if program.sizes():
            raise ShapeError(
                f"program {program.name} has open sizes {', '.join(program.sizes())}",
                hint="program.bind(...)",
            )
        self.program = program
        self._values: dict[Key, int] = {}
        self._ranges: dict[str, dict[str, Range]] = {}
        self._high = block_numbers(program) if digits else frozenset()
        self._pinned: set[Key] = set()
        self._compound: dict[Key, Kind] = {}
        self._collect()
        rows = [row for use in self._accesses() for row in self._rows(*use)]
        self._solve(rows)

    # --------------------------------------------------------------------------- unknowns

    def _collect(self) -> None:
        for tensor in self.program.tensors().values():
            for dim, extent in enumerate(tensor.shape):
                self._values["t", tensor.name, dim] = fixed(extent)
                if tensor.role == "constant":
                    self._pinned.add(("t", tensor.name, dim))
        for where, domain, outer in self._domains():
            known = dict(self._ranges.get(outer, {}))
            known.update({r.axis: r for r in domain.ranges})
            self._ranges[where] = known
            for r in domain.ranges:
                key: Key = ("r", where, r.axis)
                self._values[key] = fixed(r.hi)
                if r.lo >= _FAR:
                    self._pinned.add(key)
            for condition in domain.constraints:
                if abs(condition.value.constant) >= _FAR or condition.value.hidden_names():
                    self._pin(condition.value, where)

    def _domains(self) -> Iterator[tuple[str, Domain, str]]:
        for s, stage in enumerate(self.program.stages):
            for p, piece in enumerate(stage.pieces):
                yield f"{s}.{p}", piece.domain, ""
                for i, reduce in enumerate(piece.reduces):
                    yield f"{s}.{p}.{i}", reduce.domain, f"{s}.{p}"

    def _accesses(self) -> Iterator[tuple[Access, str, bool]]:
        """(access, where, whether it is written)."""
        for s, stage in enumerate(self.program.stages):
            for p, piece in enumerate(stage.pieces):
                for out in piece.outs:
                    yield out, f"{s}.{p}", True
                for value in piece.values:
                    for access in accesses_of(value):
                        yield access, f"{s}.{p}", False
                for i, reduce in enumerate(piece.reduces):
                    for access in accesses_of(reduce.body):
                        yield access, f"{s}.{p}.{i}", False

    def _key(self, axis: str, where: str) -> Key:
        """The unknown of an axis seen from a place: its own or the enclosing definition's."""
        if ("r", where, axis) in self._values:
            return "r", where, axis
        return "r", where.rpartition(".")[0], axis

    def _pin(self, value: Affine, where: str) -> None:
        for name in value.names():
            self._pinned.add(self._key(name, where))

    def _bounds(self, where: str) -> dict[str, tuple[int, int]]:
        return {
            name: (r.lo, self._values[self._key(name, where)])
            for name, r in self._ranges[where].items()
        }

    # --------------------------------------------------------------------------- equations

    def _digits(self, index: Affine, where: str) -> list[tuple[str, int]] | None:
        """(axis, weight), lowest first, of an index whose digits include a block number."""
        names = [a for a, _ in index.terms if isinstance(a, str)]
        if index.constant or len(names) != 2 or len(index.terms) != 2:
            return None
        if not any(
            (where.split(".")[0] + "." + where.split(".")[1], n) in self._high for n in names
        ):
            return None
        ranges = self._ranges[where]
        extents = {n: self._values[self._key(n, where)] for n in names}
        terms = [(a, c) for a, c in index.terms if isinstance(a, str)]
        if any(ranges[n].lo for n in names) or mixed_radix(terms, extents) is None:
            return None
        return sorted(terms, key=lambda item: (item[1], extents[item[0]] == 1))

    def _rows(self, access: Access, where: str, written: bool) -> Iterator[Row]:
        """For each dimension: extent - what the largest index depends on = constant."""
        for dim, index in enumerate(access.index):
            row: Row = {("t", access.tensor.name, dim): Fraction(1)}
            digits = self._digits(index, where)
            if digits is not None:
                (low, _), *rest = digits
                times = 1
                for name, _ in rest:
                    key = self._key(name, where)
                    self._pinned.add(key)
                    times *= self._values[key]
                _add(row, self._key(low, where), -times)
                yield row
                continue
            self._note(index, where)
            if written and len(index.terms) > 1:
                _, *lower = sorted(index.terms, key=lambda item: -item[1])
                self._pin(Affine(tuple(lower)), where)
            for atom, coefficient in index.terms:
                if not isinstance(atom, str):
                    self._pin(atom.value, where)
                elif coefficient > 0:
                    _add(row, self._key(atom, where), -coefficient)
            yield row

    def _note(self, index: Affine, where: str) -> None:
        """Positions are those an output runs over, taps those a sum runs over."""
        if len(index.terms) < 2:
            return
        for atom, _ in index.terms:
            if isinstance(atom, str):
                key = self._key(atom, where)
                inner = key[1].count(".") == 2
                self._compound.setdefault(key, "tap" if inner else "position")

    def _solve(self, rows: Sequence[Row]) -> None:
        """Gauss-Jordan: pinned unknowns go to the right side, tensors depend on axes."""
        rows = [*rows, *({key: Fraction(1)} for key in sorted(self._pinned, key=str))]
        pivots: dict[Key, Row] = {}
        for row in rows:
            row = _reduced(row, pivots)
            if not row:
                continue
            pivot = min(row, key=lambda k: (abs(row[k]) != 1, k[0] != "t", self._rank(k), str(k)))
            row = {k: v / row[pivot] for k, v in row.items()}
            for other, earlier in pivots.items():
                if pivot in earlier:
                    pivots[other] = _minus(earlier, row, earlier[pivot])
            pivots[pivot] = row
        self._pivots = pivots
        self._free = [key for key in self._values if key[0] == "r" and key not in pivots]
        self._free += [key for key in self._values if key[0] == "t" and key not in pivots]
        self.free = tuple(Free(str(k[2]), self._values[k], self._kind(k)) for k in self._free)

    def _rank(self, key: Key) -> int:
        """Which axis of equals stands for all: the first written; taps before positions depend."""
        return -list(self._values).index(key)

    def _kind(self, key: Key) -> Kind:
        """The kind of an unknown or of any that equals it."""
        found: Kind = self._compound.get(key, "plain")
        for pivot, row in self._pivots.items():
            if set(row) == {pivot, key} and row[key] == -1 and pivot in self._compound:
                if found == "plain" or self._compound[pivot] == "tap":
                    found = self._compound[pivot]
        return found

    # --------------------------------------------------------------------------- members

    def member(self, values: Sequence[int]) -> Program | None:
        """The program with these values of `free`; None when no program of whole, positive extents
        that says the same has them."""
        if any(stage.backward is not None for stage in self.program.stages):
            return None
        extents = dict(zip(self._free, values, strict=True))
        found: dict[Key, int] = dict(extents)
        for pivot, row in self._pivots.items():
            total = Fraction(self._values[pivot])
            for key, factor in row.items():
                if key != pivot:
                    total -= factor * (extents[key] - self._values[key])
            if total.denominator != 1:
                return None
            found[pivot] = int(total)
        if any(v < min(1, self._values[k]) for k, v in found.items()):
            return None
        try:
            program = _Rebuild(self, found).program()
            program.check()
        except (ShapeError, FormulaError):
            return None
        return program

    def values_like(self, other: Family) -> list[int] | None:
        """The values from which `other.member` makes this program; None when it is no member."""
        if not all(key in self._values for key in other._free):
            return None
        return [self._values[key] for key in other._free]

    def smaller(self, least: int = 2, taps: int = 3, *, distinct: bool = True) -> Program | None:
        """A small member: extents from `least` up, all different if asked for and possible; taps
        are at most `taps`. None when there is no small member."""
        for values in self._small(least, taps, distinct):
            program = self.member(values)
            if program is not None:
                return program
        return None

    def _small(self, least: int, taps: int, distinct: bool) -> Iterator[list[int]]:
        wished: list[int] = []
        used: set[int] = set()
        for free in self.free:
            floor = taps if free.kind == "tap" else least + (free.kind == "position")
            value = min(floor, free.value)
            while distinct and free.kind != "tap" and value in used and value < free.value:
                value += 1
            used.add(value)
            wished.append(value)
        yield wished
        for step in range(1, 6):
            yield [min(w + step, f.value) for w, f in zip(wished, self.free, strict=True)]
        spans = [range(w, min(w + 3, f.value) + 1) for w, f in zip(wished, self.free, strict=True)]
        for choice in itertools.islice(itertools.product(*spans), 400):
            yield list(choice)


def _add(row: Row, key: Key, factor: int) -> None:
    row[key] = row.get(key, Fraction(0)) + factor
    if not row[key]:
        del row[key]


def _minus(row: Row, other: Row, factor: Fraction) -> Row:
    out = dict(row)
    for key, value in other.items():
        rest = out.get(key, Fraction(0)) - factor * value
        if rest:
            out[key] = rest
        else:
            out.pop(key, None)
    return out


def _reduced(row: Row, pivots: Mapping[Key, Row]) -> Row:
    for key in list(row):
        if key in row and key in pivots:
            row = _minus(row, pivots[key], row[key])
    return row


def block_numbers(program: Program) -> frozenset[tuple[str, str]]:
    """(piece, axis) of block numbers. A dimension is blocked where the axes of a definition, not of
    a sum, are its digits; an axis is a block number where it is the high digit of a blocked
    dimension, and a dimension is blocked, too, where a block number is its high digit."""
    found: set[tuple[str, str]] = set()
    blocked: set[tuple[str, int]] = set()
    uses = list(_two_digits(program))
    while True:
        before = len(found) + len(blocked)
        for piece, axis, place, outer in uses:
            if outer or place in blocked or (piece, axis) in found:
                found.add((piece, axis))
                blocked.add(place)
        if len(found) + len(blocked) == before:
            return frozenset(found)


def _two_digits(program: Program) -> Iterator[tuple[str, str, tuple[str, int], bool]]:
    """(piece, high digit, (tensor, dimension), whether no digit belongs to a sum) of every index of
    two digits."""
    for s, stage in enumerate(program.stages):
        for p, piece in enumerate(stage.pieces):
            outer = set(piece.domain.names)
            places = [(out, piece.domain) for out in piece.outs]
            places += [(a, domain) for body, domain in piece.bodies() for a in accesses_of(body)]
            for access, domain in places:
                extents = {r.axis: fixed(r.hi) for r in domain.ranges}
                for dim, index in enumerate(access.index):
                    terms = [(a, c) for a, c in index.terms if isinstance(a, str)]
                    if len(terms) != 2 or index.constant or len(index.terms) != 2:
                        continue
                    if mixed_radix(terms, extents) is None:
                        continue
                    high = max(terms, key=lambda item: (item[1], extents[item[0]] > 1))
                    if high[1] >= 2:
                        names = {a for a, _ in terms}
                        yield f"{s}.{p}", high[0], (access.tensor.name, dim), names <= outer


class _Rebuild:
    """A program with its extents exchanged."""

    def __init__(self, family: Family, extents: Mapping[Key, int]) -> None:
        self.family, self.extents = family, extents
        self.before = family._values  # pyright: ignore[reportPrivateUsage]
        self.tensors = {name: self._tensor(t) for name, t in family.program.tensors().items()}

    def program(self) -> Program:
        old = self.family.program
        stages: list[Stage] = []
        for s, stage in enumerate(old.stages):
            pieces = tuple(self._piece(p, f"{s}.{i}") for i, p in enumerate(stage.pieces))
            stages.append(Stage(tuple(self.tensors[t.name] for t in stage.tensors), pieces))
        return replace(
            old,
            inputs=tuple(self.tensors[t.name] for t in old.inputs),
            outputs=tuple(self.tensors[t.name] for t in old.outputs),
            stages=tuple(stages),
            origin=None,
        )

    def _tensor(self, tensor: Tensor) -> Tensor:
        shape = tuple(self.extents["t", tensor.name, d] for d in range(tensor.rank))
        return replace(tensor, shape=shape, source=None)

    def _domain(self, domain: Domain, where: str) -> Domain:
        ranges = tuple(Range(r.axis, r.lo, self.extents["r", where, r.axis]) for r in domain.ranges)
        return Domain(ranges, domain.constraints)

    def _piece(self, piece: Definition, where: str) -> Definition:
        counts = self._counts(piece, where)
        reduces = tuple(
            Reduce(
                self._domain(r.domain, f"{where}.{i}"),
                r.reduction,
                self._body(r.body, f"{where}.{i}", {}),
                r.name,
            )
            for i, r in enumerate(piece.reduces)
        )
        values = tuple(self._body(v, where, counts) for v in piece.values)
        outs = tuple(self._access(o, where) for o in piece.outs)
        return Definition(outs, self._domain(piece.domain, where), reduces, values)

    def _counts(self, piece: Definition, where: str) -> dict[int, int]:
        """How many elements a sum had -> how many it has now."""
        found: dict[int, int] = {}
        for i, reduce in enumerate(piece.reduces):
            keys = [("r", f"{where}.{i}", r.axis) for r in reduce.domain.ranges]
            lows = [r.lo for r in reduce.domain.ranges]
            old = math.prod(self.before[k] - lo for k, lo in zip(keys, lows, strict=True))
            new = math.prod(self.extents[k] - lo for k, lo in zip(keys, lows, strict=True))
            if old >= _FAR and old != new:
                found.setdefault(old, new)
                if new > 1:
                    found.setdefault(old - 1, new - 1)
        return found

    def _body(self, body: sympy.Expr, where: str, counts: Mapping[int, int]) -> Any:
        changed: dict[Any, Any] = {a: self._access(a, where) for a in body.atoms(Access)}
        for number in body.atoms(sympy.Rational) if counts else ():
            p, q = counts.get(abs(int(number.p)), 0), counts.get(int(number.q), 0)
            if p or q:
                top = int(number.p) if not p else p * (1 if number.p > 0 else -1)
                changed[number] = sympy.Rational(top, q or int(number.q))
        return body.xreplace({a: to for a, to in changed.items() if to is not a})

    def _access(self, access: Access, where: str) -> Access:
        kinds = tuple(
            b if b.value is None else replace(b, value=self._body(b.value, where, {}))
            for b in access.boundary
        )
        index = tuple(self._index(i, where) for i in access.index)
        return Access(self.tensors[access.tensor.name], index, kinds)

    def _index(self, index: Affine, where: str) -> Affine:
        family = self.family
        digits = family._digits(index, where)  # pyright: ignore[reportPrivateUsage]
        if digits is None:
            return index
        weight, terms = 1, []
        for name, _ in digits:
            terms.append((name, weight))
            weight *= self.extents[family._key(name, where)]  # pyright: ignore
        return Affine.build(terms)
