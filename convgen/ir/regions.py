"""What a nest reaches: ranges of loops and axes, bounds of indices, footprints of loads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from convgen.affine import Affine, Constraint, FloorDiv
from convgen.ir.nodes import Loop, Nest
from convgen.ir.simplify import Ranges, simplify_affine
from convgen.ir.visit import loads


@dataclass(frozen=True, slots=True)
class Span:
    """Indices base .. base + extent - 1; `base` is over the names that stay fixed."""

    base: Affine
    extent: int


Box = tuple[Span, ...]


def axis_ranges(nest: Nest) -> dict[str, tuple[int, int]]:
    """axis -> (lo, hi), hi excluded."""
    return {name: (low, high) for name, low, high in nest.ranges}


def loop_extent(nest: Nest, loop: Loop) -> int:
    """The most iterations the loop makes in one go; for a loop that other loops' segments size,
    the largest of the sizes."""
    sizes = [s.size for other in nest.loops if other.inner == loop.name for s in other.segments]
    if sizes:
        return max(sizes)
    return max((s.count for s in loop.segments), default=loop.extent)


def loop_ranges(nest: Nest) -> dict[str, tuple[int, int]]:
    """(lo, hi) of every loop variable and of the `base` variables of covered axes.

    A segmented loop's own variable runs to the largest count of its segments.
    """
    found: dict[str, tuple[int, int]] = {}
    for loop in nest.loops:
        found[loop.name] = (0, loop_extent(nest, loop))
        if loop.segments:
            starts = [s.start for s in loop.segments if s.count]
            last = [s.start + s.size * (s.count - 1) for s in loop.segments if s.count]
            found[loop.base] = (min(starts, default=0), max(last, default=0) + 1)
    return found


def axes_over_loops(nest: Nest, value: Affine) -> Affine:
    """An expression over axes, rewritten over loop and base variables and simplified."""
    return simplify_affine(value.substitute(dict(nest.axes)), loop_ranges(nest))


def inside(index: Affine, extent: int, ranges: Ranges) -> bool:
    """True when 0 <= index < extent at every point of the ranges (also where there is none)."""
    if any(high <= low for name, (low, high) in ranges.items() if name in index.names()):
        return True
    low, high = simplify_affine(index, ranges).bounds(ranges)
    return low >= 0 and high < extent


def tighten(ranges: Ranges, guards: Iterable[Constraint]) -> dict[str, tuple[int, int]]:
    """A box inside `ranges` that still holds every point where all guards hold.

    >>> i, j = Affine.of("i"), Affine.of("j")
    >>> tighten({"i": (0, 9), "j": (0, 4)}, [Constraint("<=", i - j)])
    {'i': (0, 4), 'j': (0, 4)}
    """
    found = dict(ranges)
    lines: list[Affine] = []
    for guard in guards:
        if guard.kind != "%" and guard.value.is_plain and guard.value.names() <= found.keys():
            lines.append(guard.value)
            if guard.kind == "==":
                lines.append(-guard.value)
    changed = True
    rounds = 0
    while changed and rounds < 16:  # each round is sound by itself
        before = dict(found)
        for line in lines:
            _tighten_line(found, line)
        changed, rounds = found != before, rounds + 1
    return found


def _tighten_line(found: dict[str, tuple[int, int]], line: Affine) -> None:
    """Use line <= 0: each term is at most minus the least of the others."""
    for name, coefficient in line.terms:
        assert isinstance(name, str)
        low, high = found[name]
        if any(found[str(n)][1] <= found[str(n)][0] for n, _ in line.terms):
            return
        least, _ = line.without(name).bounds(found)
        if coefficient > 0:  # name <= floor(-least / coefficient)
            high = min(high, -least // coefficient + 1)
        else:  # name >= ceil(least / -coefficient)
            low = max(low, -(-least // -coefficient))
        found[name] = (low, max(low, high))


def footprint(index: Sequence[Affine], inner: Ranges) -> Box:
    """The box of indices touched while the inner names run through their ranges and all other
    names stay fixed: exact extents for plain indices, an enclosure with // and %.

    >>> y, r = Affine.of("y"), Affine.of("r")
    >>> [(str(s.base), s.extent) for s in footprint((2 * y + r - 1,), {"r": (0, 3)})]
    [('2*y - 1', 3)]
    """
    return tuple(_span(i, inner) for i in index)


def _span(index: Affine, inner: Ranges) -> Span:
    base = Affine((), index.constant)
    reach = 0
    for atom, coefficient in index.terms:
        low, width = Affine.of(atom), 0
        if isinstance(atom, str):
            if atom in inner:
                low, width = Affine((), inner[atom][0]), inner[atom][1] - 1 - inner[atom][0]
        elif atom.value.names() & inner.keys():
            part = _span(atom.value, inner)
            if isinstance(atom, FloorDiv):
                low = part.base // atom.divisor
                # floor((b + w) / d) - floor(b / d) is at most ceil(w / d)
                width = -(-(part.extent - 1) // atom.divisor)
                if part.base.is_constant:
                    width = (part.base.constant + part.extent - 1) // atom.divisor - low.constant
            else:
                low, width = Affine(), atom.divisor - 1
        if coefficient < 0:
            low = low + width
        base = base + low * coefficient
        reach += abs(coefficient) * width
    return Span(base, reach + 1)


def join(first: Box, second: Box) -> Box | None:
    """The smallest box that holds both, or None where their bases differ by more than a number."""
    found: list[Span] = []
    for a, b in zip(first, second, strict=True):
        difference = b.base - a.base
        if not difference.is_constant:
            return None
        low = min(0, difference.constant)
        high = max(a.extent, difference.constant + b.extent)
        found.append(Span(a.base + low, high - low))
    return tuple(found)


def footprint_of_loads(nest: Nest, buffer: str, inner: Mapping[str, tuple[int, int]]) -> Box | None:
    """The box of `buffer` that the nest's loads touch while the inner loop variables run; None
    where it is not read or its loads do not share a base."""
    found: Box | None = None
    for load in loads(nest):
        if load.buffer == buffer:
            box = footprint([axes_over_loops(nest, i) for i in load.index], inner)
            if found is None:
                found = box
            else:
                found = join(found, box)
                if found is None:
                    return None
    return found


def points(ranges: Ranges) -> int:
    """Number of points of a box."""
    total = 1
    for low, high in ranges.values():
        total *= max(0, high - low)
    return total
