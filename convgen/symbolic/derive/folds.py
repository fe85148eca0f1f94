"""Boundaries that read another element (reflect, replicate, circular): the adjoint of padding.

Reading X through a folding boundary is reading Xp = pad(X). Its adjoint is a gather onto Xp and
then one fold per dimension: what was added outside is added to the element that was read instead.
"""

from __future__ import annotations

from collections.abc import Iterator

from convgen.affine import Affine
from convgen.symbolic.boundary import Boundary
from convgen.symbolic.derive.terms import Part, Progression
from convgen.symbolic.expr import Access, Range, Size, Tensor


def runs(
    boundary: Boundary, low: int, high: int, extent: int
) -> Iterator[tuple[int, int, int, int]]:
    """The elements outside, low..-1 and extent..high-1, as runs (first, count, target, slope):
    element first + k is read as target + slope*k.

    >>> from convgen.symbolic.boundary import CIRCULAR, REFLECT, REPLICATE
    >>> list(runs(REFLECT, -2, 6, 5)), list(runs(CIRCULAR, -2, 5, 5))
    ([(-2, 2, 2, -1), (5, 1, 3, -1)], [(-2, 2, 3, 1)])
    >>> list(runs(REPLICATE, -2, 5, 5))
    [(-2, 2, 0, 0)]
    """
    for side in (range(low, 0), range(extent, high)):
        outward = -1 if side.start < 0 else 1
        start = 0
        targets = [boundary.fold(i, extent) for i in side]
        while start < len(targets):
            first = targets[start]
            assert first is not None
            stop = start + 1
            if stop < len(targets):
                slope = (targets[stop] or 0) - first
            else:  # a single element goes on as the rule would further out
                slope = ((boundary.fold(side[start] + outward, extent) or 0) - first) * outward
            slope = slope if abs(slope) <= 1 else 0
            if stop < len(targets):
                while stop < len(targets) and targets[stop] == first + slope * (stop - start):
                    stop += 1
            yield side[start], stop - start, first, slope
            start = stop


def fold_parts(
    source: Tensor,
    target: Tensor,
    dim: int,
    boundary: Boundary,
    before: int,
    names: tuple[str, ...],
) -> list[Part]:
    """The parts of `target` that fold dimension `dim` of `source`, which begins `before` elements
    before the target's and is otherwise as large."""
    extent, whole = target.shape[dim], source.shape[dim]
    assert not isinstance(extent, Size) and not isinstance(whole, Size)
    parts = [_part(source, target, dim, names, (0, extent), Affine.of(f"__e{dim}") + before)]
    for first, count, aim, slope in runs(boundary, -before, whole - before, extent):
        if slope == 0 and count > 1:
            taps = Range("__t", 0, count)
            index = Affine.of("__t") + (first + before)
            parts.append(_part(source, target, dim, names, (aim, 1), index, taps))
            continue
        # aim + slope*k is element low + p of the strip
        low = min(aim, aim + slope * (count - 1))
        p = Affine.of(f"__e{dim}")
        k = p if slope >= 0 else count - 1 - p
        parts.append(_part(source, target, dim, names, (low, count), k + (first + before)))
    return parts


def _part(
    source: Tensor,
    target: Tensor,
    dim: int,
    names: tuple[str, ...],
    strip: tuple[int, int],
    index: Affine,
    taps: Range | None = None,
) -> Part:
    params = [f"__e{j}" for j in range(target.rank)]
    reads = [Affine.of(f"__z{j}") for j in range(target.rank)]
    solution = {f"__z{j}": Affine.of(p) for j, p in enumerate(params)}
    solution[f"__z{dim}"] = index
    regions: list[Progression] = []
    for j, extent in enumerate(target.shape):
        start, count = strip if j == dim else (0, extent)
        regions.append(Progression(params[j], start, 1, count))
    return Part(
        Access(source, reads),
        list(regions),
        solution,
        [taps] if taps else [],
        [],
        names,
        {"__t": "t"},
    )
