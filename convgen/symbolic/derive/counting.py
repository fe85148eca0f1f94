"""Sums counted from what they read: over the elements of a tensor instead of a shift of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from convgen.affine import Affine
from convgen.symbolic.derive.guards import guards
from convgen.symbolic.expr import Definition, Domain, Range, Reduce, Size, substitute


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
