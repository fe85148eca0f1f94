"""From parts to a stage: the elements of a tensor divided into disjoint pieces that cover it.

Each dimension is cut into residue classes and intervals so that on every piece the same parts add
up; where no part adds anything the piece is zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import sympy
from sympy import Expr, Integer

from convgen.affine import Affine, Constraint
from convgen.errors import DerivationError
from convgen.symbolic.derive.choices import choose_terms
from convgen.symbolic.derive.counting import join_digits
from convgen.symbolic.derive.merge import merge_pieces, merge_sums
from convgen.symbolic.derive.points import fix_points
from convgen.symbolic.derive.scalar import exchange
from convgen.symbolic.derive.terms import Digits, Part, Progression, span
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
    Tensor,
    accesses_of,
    affine_body,
    affine_of,
    axes_of,
    substitute,
)
from convgen.symbolic.functions import round_down
from convgen.symbolic.indexmath import (
    ceil_div,
    digit_values,
    tidy,
    tidy_constraint,
)
from convgen.symbolic.reductions import SUM

MANY_CLASSES = 64  # residue classes from which on empty ones are put together
MOST_PIECES = 4096  # residue classes of one dimension that hold something


@dataclass(frozen=True)
class _Cell:
    """Elements `index` of one dimension, over axes of its own, and what each part reads there."""

    index: Affine
    ranges: tuple[Range, ...]
    hints: tuple[str, ...]
    readings: tuple[tuple[Part, dict[str, Affine]], ...]


def assemble(
    tensor: Tensor, parts: Sequence[Part], flip: bool = False, *, merge: bool = True
) -> Stage:
    """The stage that writes every element of the tensor with the sum of the parts that cover it.

    merge: pieces that one formula says are put together.
    flip: axes of sums that run against the elements are turned round, so that the second factor
    is read backwards instead (W[k, c, R-1-r, S-1-s]).
    """
    pieces: list[Definition] = []

    def walk(chosen: tuple[_Cell, ...], active: list[Part]) -> None:
        dim = len(chosen)
        if dim == tensor.rank:
            pieces.append(_definition(tensor, chosen, active, flip))
            return
        for cell in _cells(active, dim, tensor, hints[dim]):
            walk((*chosen, cell), [part for part, _ in cell.readings])

    # a tensor without elements is one piece of nothing
    hints = parts[0].names if parts else ("i",) * tensor.rank
    walk((), [] if 0 in tensor.shape else list(parts))
    stage = Stage((tensor,), tuple(pieces))
    return choose_terms(fix_points(merge_pieces(stage, hints))) if merge else stage


# ---------------------------------------------------------------------------------------------
# Cutting one dimension


def _cells(active: Sequence[Part], dim: int, tensor: Tensor, otherwise: str) -> list[_Cell]:
    extent = tensor.shape[dim]
    axis = f"__o{dim}"
    hint = next((p.names[dim] for p in active), otherwise)
    if isinstance(extent, Size) or not active:
        whole = tuple((p, {_param(p, dim): Affine.of(axis)}) for p in active)
        return [_Cell(Affine.of(axis), (Range(axis, 0, extent),), (hint,), whole)]
    regions = [p.regions[dim] for p in active]
    first = regions[0]
    if isinstance(first, Digits) and all(_same_digits(first, r) for r in regions):
        return _digit_cells(active, dim, extent, hint)
    runs = [_as_run(p, dim) for p in active]
    return _run_cells(active, runs, axis, hint, extent)


def _param(part: Part, dim: int) -> str:
    region = part.regions[dim]
    assert isinstance(region, Progression)
    return region.param


def _same_digits(first: Digits, other: object) -> bool:
    if not isinstance(other, Digits) or other.index.constant != first.index.constant:
        return False
    mine = [(first.index.coefficient(r.axis), r.lo, r.hi) for r in first.ranges]
    return mine == [(other.index.coefficient(r.axis), r.lo, r.hi) for r in other.ranges]


def _digit_cells(active: Sequence[Part], dim: int, extent: int, hint: str) -> list[_Cell]:
    """The digits' axes number the elements; what they do not reach is zero."""
    first = active[0].regions[dim]
    assert isinstance(first, Digits)
    names = [f"__o{dim}_{i}" for i in range(len(first.ranges))]
    index = Affine.build(
        ((n, first.index.coefficient(r.axis)) for n, r in zip(names, first.ranges, strict=True)),
        first.index.constant,
    )
    ranges = tuple(Range(n, r.lo, r.hi) for n, r in zip(names, first.ranges, strict=True))
    hints = tuple(active[0].hints.get(r.axis, r.axis) for r in first.ranges)
    readings: list[tuple[Part, dict[str, Affine]]] = []
    for part in active:
        region = part.regions[dim]
        assert isinstance(region, Digits)
        values = {r.axis: Affine.of(n) for n, r in zip(names, region.ranges, strict=True)}
        readings.append((part, values))
    cells = [_Cell(index, ranges, hints, tuple(readings))]
    for low, high in ((0, first.low), (first.low + first.count, extent)):
        if high > low:
            cells.append(_interval(f"__o{dim}", hint, low, high, ()))
    return sorted(cells, key=lambda c: c.index.constant if c.ranges[1:] else c.ranges[0].lo)


def _interval(
    axis: str, hint: str, low: int, high: int, readings: Iterable[tuple[Part, dict[str, Affine]]]
) -> _Cell:
    return _Cell(Affine.of(axis), (Range(axis, low, high),), (hint,), tuple(readings))


@dataclass(frozen=True)
class _Run:
    """Elements start, start + step, ... (count of them), and the parameters of element e there."""

    start: int
    step: int
    count: int
    values: dict[str, Affine] | None  # of "e", for digits
    param: str

    @property
    def stop(self) -> int:
        """One past the last element."""
        return self.start + self.step * (self.count - 1) + 1

    def meets(self, residue: int, modulus: int) -> bool:
        """True when the run has elements of a residue class (modulo a multiple of its step)."""
        step = modulus if self.count == 1 else self.step
        return (residue - self.start) % step == 0

    def reading(self, element: Affine) -> dict[str, Affine]:
        if self.values is not None:
            return {n: v.substitute({"e": element}) for n, v in self.values.items()}
        rest = element - self.start
        terms = tuple((a, c // self.step) for a, c in rest.terms)
        return {self.param: Affine(terms, rest.constant // self.step)}


def _as_run(part: Part, dim: int) -> _Run:
    region = part.regions[dim]
    if isinstance(region, Progression):
        assert isinstance(region.count, int)
        return _Run(region.start, region.step, region.count, None, region.param)
    terms = [(r.axis, region.index.coefficient(r.axis)) for r in region.ranges]
    digits = digit_values(terms, Affine.of("e") - region.low)
    values = {r.axis: digits[r.axis] + r.lo for r in region.ranges}
    return _Run(region.low, 1, region.count, values, "")


def _run_cells(
    active: Sequence[Part], runs: Sequence[_Run], axis: str, hint: str, extent: int
) -> list[_Cell]:
    """Residue classes modulo the least common multiple of all steps, cut into intervals. Of a large
    modulus, neighbouring classes that nothing reads are one cell."""
    modulus = math.lcm(*(r.step for r in runs))
    cells: list[_Cell] = []
    name = hint if modulus == 1 else "u"
    for residue in _residues(runs, modulus):
        if isinstance(residue, range):
            cells += _gap_cells(residue, modulus, axis, (name, hint), extent)
            continue
        matching = [i for i, r in enumerate(runs) if r.meets(residue, modulus)]
        ends = {0, extent}
        for i in matching:
            ends |= {runs[i].start, runs[i].stop}
        cuts = sorted(e for e in ends if 0 <= e <= extent)
        for low, high in zip(cuts, cuts[1:], strict=False):
            first, last = ceil_div(low - residue, modulus), ceil_div(high - residue, modulus)
            if last <= first:
                continue
            element = modulus * Affine.of(axis) + residue
            # A class may end before the interval does: its own last element is what counts.
            bottom, top = modulus * first + residue, modulus * (last - 1) + residue
            inside = [i for i in matching if runs[i].start <= bottom and top < runs[i].stop]
            readings = tuple((active[i], runs[i].reading(element)) for i in inside)
            cells.append(_Cell(element, (Range(axis, first, last),), (name,), readings))
    return cells


def _residues(runs: Sequence[_Run], modulus: int) -> Iterator[int | range]:
    """The residues, those between which no run has elements together where there are many."""
    if modulus <= MANY_CLASSES:
        yield from range(modulus)
        return
    met: set[int] = set()
    for run in runs:
        step = modulus if run.count == 1 else run.step
        if len(met) + modulus // step > MOST_PIECES:
            raise DerivationError(
                f"the gradient falls apart into {modulus} residue classes",
                expected=f"at most {MOST_PIECES} that are not zero",
                hint="strides with a small least common multiple",
            )
        met.update(range(run.start % step, modulus, step))
    last = 0
    for residue in sorted(met):
        if residue > last:
            yield range(last, residue)
        yield residue
        last = residue + 1
    if last < modulus:
        yield range(last, modulus)


def _gap_cells(
    gap: range, modulus: int, axis: str, names: tuple[str, str], extent: int
) -> Iterator[_Cell]:
    """Elements modulus*u + v for v in the gap: whole blocks, then what the last block has of it."""
    inner = axis + "_in"
    blocks, rest = divmod(extent, modulus)
    element = modulus * Affine.of(axis) + Affine.of(inner)
    for low, high, stop in ((0, blocks, gap.stop), (blocks, blocks + 1, min(gap.stop, rest))):
        if low < high and gap.start < stop:
            ranges = (Range(axis, low, high), Range(inner, gap.start, stop))
            yield _Cell(element, ranges, names, ())


# ---------------------------------------------------------------------------------------------
# One piece


class _Names:
    """Names given out once each; primes where taken."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.taken = set(taken)

    def take(self, wanted: str) -> str:
        while wanted in self.taken:
            wanted += "'"
        self.taken.add(wanted)
        return wanted


def _definition(
    tensor: Tensor, cells: Sequence[_Cell], active: Sequence[Part], flip: bool
) -> Definition:
    names = _Names()
    final: dict[str, Affine] = {}
    ranges: list[Range] = []
    for cell in cells:
        for r, hint in zip(cell.ranges, cell.hints, strict=True):
            name = names.take(hint)
            final[r.axis] = Affine.of(name)
            ranges.append(Range(name, r.lo, r.hi))
    out = Access(tensor, tuple(c.index.substitute(final) for c in cells))
    reduces: list[Reduce] = []
    values: list[Expr] = []
    for part in active:
        readings: dict[str, Affine] = {}
        for cell in cells:
            known = next((v for p, v in cell.readings if p is part), {})
            readings |= {n: v.substitute(final) for n, v in known.items()}
        values.append(_value(part, readings, ranges, reduces, flip))
    whole = Definition((out,), Domain(tuple(ranges)), tuple(reduces), (sympy.Add(*values),))
    return join_digits(merge_sums(whole))


def _value(
    part: Part,
    readings: dict[str, Affine],
    ranges: Sequence[Range],
    reduces: list[Reduce],
    flip: bool,
) -> Expr:
    """What a part adds on a piece; a sum is appended to `reduces`."""
    names = _Names(r.axis for r in ranges)
    mapping = dict(readings)
    sums: list[Range] = []
    for r in part.sums:
        name = names.take(part.hints.get(r.axis, r.axis))
        mapping[r.axis] = Affine.of(name)
        sums.append(Range(name, r.lo, r.hi))
    bounds = {r.axis: span(r) for r in (*ranges, *sums)}
    body = read_body(part, mapping, bounds)
    constraints = _constraints(part, mapping, bounds)
    if constraints is None:
        return Integer(0)
    if flip:
        body, constraints = _turn(body, constraints, sums, ranges)
    coefficient, core = body.as_coeff_Mul()
    coefficient *= part.factor
    if not sums and not constraints and not _may_leave_out(core, bounds):
        return coefficient * core
    if not sums:
        sums = [Range(names.take("t"), 0, 1)]
    if not constraints:
        outer, core = _split_factors(core, {r.axis for r in sums})
        coefficient *= outer
    reduces.append(Reduce(Domain(tuple(sums), tuple(constraints)), SUM, core))
    return coefficient * Result(len(reduces) - 1)


def _may_leave_out(core: Expr, bounds: Mapping[str, tuple[int, int]]) -> bool:
    """True where the body reads what its boundary leaves out: such a term needs a sum around it."""
    for access in accesses_of(core):
        for index, extent, kind in zip(
            access.index, access.tensor.shape, access.boundary, strict=True
        ):
            if kind.name == "omit" and isinstance(extent, int) and index.names() <= bounds.keys():
                low, high = index.bounds(bounds)
                if low < 0 or high >= extent:
                    return True
    return False


def _split_factors(core: Expr, over: set[str]) -> tuple[Expr, Expr]:
    """(outer, inner): the factors that do not depend on the axes of the sum, and the others. What
    leaves out terms stays inside."""
    factors = sympy.Mul.make_args(core)

    def stays(factor: Expr) -> bool:
        kinds = (b.name for a in accesses_of(factor) for b in a.boundary)
        return bool(axes_of(factor) & over) or "omit" in kinds

    outer = [f for f in factors if not stays(f)]
    return sympy.Mul(*outer), sympy.Mul(*(f for f in factors if f not in outer))


def read_body(
    part: Part, mapping: Mapping[str, Affine], bounds: Mapping[str, tuple[int, int]]
) -> Expr:
    """The body of a part with its axes replaced by what `solution` and then `mapping` say."""
    values: dict[str, Affine | int] = {}
    for name in axes_of(part.body):
        value = part.solution.get(name, Affine.of(name)).substitute(mapping)
        values[name] = tidy(value, bounds)
    return tidy_body(substitute(part.body, values), bounds)


def tidy_body(body: Expr, bounds: Mapping[str, tuple[int, int]]) -> Expr:
    """Indices without the floor divisions and remainders that the bounds decide."""
    changed: dict[Expr, Expr] = {}
    for access in body.atoms(Access):
        assert isinstance(access, Access)
        if not all(i.is_plain for i in access.index):
            index = tuple(tidy(i, bounds) for i in access.index)
            if index != access.index:
                changed[access] = Access(access.tensor, index, access.boundary)
    for whole in body.atoms(sympy.Mod, sympy.floor, round_down):
        if all(isinstance(s, Axis) for s in whole.free_symbols) and not whole.atoms(Access):
            integer = sympy.floor(whole.args[0]) if isinstance(whole, round_down) else whole
            if integer.is_integer:
                changed[whole] = affine_body(tidy(affine_of(integer), bounds))
    return exchange(body, changed) if changed else body


def _constraints(
    part: Part, mapping: Mapping[str, Affine], bounds: Mapping[str, tuple[int, int]]
) -> list[Constraint] | None:
    """The part's constraints over the piece; None when they cannot hold there."""
    kept: list[Constraint] = []
    for constraint in part.constraints:
        verdict = tidy_constraint(constraint.substitute(mapping), bounds)
        if verdict is False:
            return None
        if verdict is not True:
            kept.append(verdict)
    return kept


def _turn(
    body: Expr, constraints: list[Constraint], sums: Sequence[Range], ranges: Sequence[Range]
) -> tuple[Expr, list[Constraint]]:
    """Turn round the axes of sums that run against an axis of the piece."""
    outer = {r.axis for r in ranges}
    values: dict[str, Affine | int] = {}
    for r in sums:
        if isinstance(r.hi, Size):
            continue
        for access in body.atoms(Access):
            assert isinstance(access, Access)
            if any(i.coefficient(r.axis) < 0 and i.names() & outer for i in access.index):
                values[r.axis] = r.lo + r.hi - 1 - Affine.of(r.axis)
    return substitute(body, values), [c.substitute(values) for c in constraints]
