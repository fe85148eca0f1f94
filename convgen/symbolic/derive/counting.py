"""Sums counted from what they read: over the elements of a tensor instead of a shift of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from sympy import Expr

from convgen.affine import Affine
from convgen.symbolic.derive.guards import guards
from convgen.symbolic.derive.scalar import exchange
from convgen.symbolic.expr import (
    Access,
    Axis,
    Definition,
    Domain,
    Range,
    Reduce,
    Size,
    substitute,
)


def counted_from_reads(piece: Definition, own: str, always: bool = False) -> Definition:
    """Sums over positions run over the elements of a tensor that they read shifted by `own`:
    ``sum(u: A[2*u] * B[u - h])`` is ``sum(y: A[2*y + 2*h] * B[y])``, both zero outside. always:
    shifted by a number too."""
    reduces = tuple(_counted(r, {own}, always) for r in piece.reduces)
    return replace(piece, reduces=reduces)


def _counted(reduce: Reduce, outer: set[str], always: bool) -> Reduce:
    body, ranges = reduce.body, list(reduce.domain.ranges)
    if reduce.domain.constraints:
        return reduce
    for i, known in enumerate(ranges):
        if isinstance(known.hi, Size):
            continue
        zero = guards(body)
        shifted = next(
            (
                (index, extent)
                for index, extent in sorted(zero, key=lambda g: str(g[0]))
                if abs(index.coefficient(known.axis)) == 1
                and (len(index.terms) > 1 or (always and index.constant))
                and index.names() - {known.axis} <= outer
                and not isinstance(extent, Size)
            ),
            None,
        )
        if shifted is None or not _vanishes(zero, known):
            continue
        index, extent = shifted
        slope = index.coefficient(known.axis)
        value = (Affine.of(known.axis) - index.without(known.axis)) * slope
        body = substitute(body, {known.axis: value})
        ranges[i] = Range(known.axis, 0, extent)
    return Reduce(Domain(tuple(ranges)), reduce.reduction, body, reduce.name)


def _vanishes(zero: Sequence[tuple[Affine, object]], known: Range) -> bool:
    """True when a read that depends on this axis alone is outside wherever the axis is."""
    for index, extent in zero:
        slope = index.coefficient(known.axis)
        if len(index.terms) != 1 or slope <= 0 or isinstance(extent, Size):
            continue
        hi = known.hi
        assert isinstance(hi, int) and isinstance(extent, int)
        before = index.constant + slope * (known.lo - 1)
        if before < 0 and index.constant + slope * hi >= extent:
            return True
    return False


def join_digits(piece: Definition) -> Definition:
    """Axes of a sum that stand only together, one counting blocks of the other, as the one axis
    they number: ``sum(y, r: dY[2*y + r])`` over r < 2 is ``sum(y: dY[y])``."""
    reduces = tuple(_joined(r) for r in piece.reduces)
    return piece if reduces == piece.reduces else replace(piece, reduces=reduces)


def _joined(reduce: Reduce) -> Reduce:
    body, domain = reduce.body, reduce.domain
    if domain.constraints:
        return reduce
    accesses = [a for a in body.atoms(Access) if isinstance(a, Access)]
    loose = {a.name for a in body.atoms(Axis) if isinstance(a, Axis)}
    loose |= {n for a in accesses for n in a.names() - {m for i in a.index for m in i.names()}}
    for block, digit in itertools.permutations(domain.ranges, 2):
        extent, size = block.extent, digit.extent
        if block.lo or digit.lo or isinstance(extent, Size) or isinstance(size, Size):
            continue
        pair = size * Affine.of(block.axis) + Affine.of(digit.axis)
        used = [i for a in accesses for i in a.index if i.names() & pair.names()]
        if not used or loose & pair.names() or any((i - i.constant) != pair for i in used):
            continue
        joined = Range(block.axis, 0, extent * size)
        ranges = tuple(joined if r is block else r for r in domain.ranges if r is not digit)
        turned: dict[Expr, Expr] = {}
        for a in accesses:
            index = [Affine.of(block.axis) + i.constant if i in used else i for i in a.index]
            turned[a] = Access(a.tensor, index, a.boundary)
        return _joined(replace(reduce, domain=Domain(ranges), body=exchange(body, turned)))
    return reduce
