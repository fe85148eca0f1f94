"""Single points put together: terms, and pieces of one element, whose indices run on evenly.

A layer that was made of residue pieces may have one tap in each: its gradients then come as a sum
for every tap, ``sum(c: dY[3*h - 1] * W[c, 0]) + sum(c: dY[3*h + 1] * W[c, 1]) + ...``, which is
``sum(c, r: dY[3*h + 2*r - 1] * W[c, r])``, and as one line for every element of dW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from sympy import Expr

from convgen.affine import Affine
from convgen.symbolic.derive.scalar import exchange
from convgen.symbolic.expr import (
    Access,
    Definition,
    Domain,
    Range,
    Reduce,
    Size,
    Stage,
    axes_of,
    substitute,
)

Place: TypeAlias = "tuple[Access, int]"  # an access without the constants of its indices, a slot


@dataclass(frozen=True)
class _Apart:
    """Bodies whose indices have no constants, and the constants."""

    bodies: tuple[Expr, ...]
    constants: dict[Place, int]

    def steps_to(self, other: _Apart) -> dict[Place, int]:
        """How far every constant is from here to there."""
        return {p: other.constants[p] - c for p, c in self.constants.items()}

    def along(self, steps: dict[Place, int], number: Affine) -> tuple[Expr, ...]:
        """The bodies `number` steps from here."""
        turned: dict[Expr, Expr] = {}
        for access in dict.fromkeys(a for a, _ in self.constants):
            index = [
                value + self.constants[access, slot] + steps[access, slot] * number
                for slot, value in enumerate(access.index)
            ]
            turned[access] = Access(access.tensor, index, access.boundary)
        return tuple(exchange(b, turned) for b in self.bodies)


def _apart(bodies: Sequence[Expr]) -> _Apart | None:
    """None where two accesses differ by constants only, or a boundary's value reads something."""
    found: list[Expr] = []
    constants: dict[Place, int] = {}
    for body in bodies:
        plain: dict[Expr, Expr] = {}
        for access in body.atoms(Access):
            assert isinstance(access, Access)
            if any(b.value is not None and b.value.atoms(Access) for b in access.boundary):
                return None
            index = [i - i.constant for i in access.index]
            plain[access] = bare = Access(access.tensor, index, access.boundary)
            for slot, value in enumerate(access.index):
                if constants.setdefault((bare, slot), value.constant) != value.constant:
                    return None
        found.append(exchange(body, plain))
    return _Apart(tuple(found), constants)


def _runs(points: Sequence[tuple[int, _Apart]]) -> dict[Place, int] | None:
    """The steps from each point to the next, numbered one after the other; None where they are
    uneven."""
    steps: dict[Place, int] | None = None
    for (number, here), (following, there) in zip(points, points[1:], strict=False):
        if following != number + 1 or here.bodies != there.bodies:
            return None
        found = here.steps_to(there)
        if steps is not None and found != steps:
            return None
        steps = found
    return steps


# ---------------------------------------------------------------------------------------------
# Sums


def merge_point_sums(reduces: list[Reduce], outer: Iterable[str]) -> list[Reduce]:
    """Sums that differ in a number that one of their accesses is read at, as sums over it."""
    taken = set(outer)
    changed = True
    while changed:
        changed = False
        for group in _alike(reduces):
            for merged, members in _merge_group(group, taken):
                place = next(i for i, r in enumerate(reduces) if any(r is m for m in members))
                rest = [r for r in reduces if not any(r is m for m in members)]
                reduces, changed = [*rest[:place], merged, *rest[place:]], True
            if changed:
                break
    return reduces


def _alike(reduces: Sequence[Reduce]) -> Iterator[list[tuple[Reduce, _Apart]]]:
    groups: dict[object, list[tuple[Reduce, _Apart]]] = {}
    for reduce in reduces:
        apart = None if reduce.domain.constraints else _apart([reduce.body])
        if apart is not None:
            key = (reduce.domain, reduce.reduction, apart.bodies)
            groups.setdefault(key, []).append((reduce, apart))
    return (g for g in groups.values() if len(g) > 1)


def _merge_group(
    group: list[tuple[Reduce, _Apart]], taken: set[str]
) -> list[tuple[Reduce, list[Reduce]]]:
    """(a sum, the sums it stands for), along the last slot that can be run along."""
    places = [
        (access, slot)
        for access, slot in group[0][1].constants
        if access.index[slot].is_constant and len({a.constants[access, slot] for _, a in group}) > 1
    ]
    for place in sorted(places, key=lambda p: (str(p[0]), -p[1])):
        others = [p for p in places if p != place and p[0] == place[0]]
        lines: dict[object, list[tuple[int, _Apart, Reduce]]] = {}
        for reduce, apart in group:
            at = tuple(apart.constants[p] for p in others)
            lines.setdefault(at, []).append((apart.constants[place], apart, reduce))
        found: list[tuple[Reduce, list[Reduce]]] = []
        for line in lines.values():
            line.sort(key=lambda item: item[0])
            steps = _runs([(n, a) for n, a, _ in line]) if len(line) > 1 else None
            if steps is not None:
                merged = _sum_along(line, steps, taken, not others)
                found.append((merged, [r for _, _, r in line]))
        if found:
            return found
    return []


def _sum_along(
    line: Sequence[tuple[int, _Apart, Reduce]],
    steps: dict[Place, int],
    taken: set[str],
    alone: bool,
) -> Reduce:
    low, first, model = line[0]
    names = model.domain.names
    taps = [n for n in names if n.rstrip("'") in ("q", "r", "s")]
    letters = ("r", "s", "q") if alone and not taps else ("s", "r", "q")
    name = next((x for x in letters if x not in taken and x not in names), "r'")
    while name in taken or name in names:
        name += "'"
    (body,) = first.along(steps, Affine.of(name) - low)
    place = names.index(taps[0]) if taps else len(names)
    ranges = list(model.domain.ranges)
    ranges.insert(place, Range(name, low, low + len(line)))
    return Reduce(Domain(tuple(ranges)), model.reduction, body)


# ---------------------------------------------------------------------------------------------
# Pieces


def merge_point_pieces(
    pieces: list[Definition], dim: int, settle: Callable[[Definition, str], Definition]
) -> list[Definition]:
    """Neighbours of one element each whose formulas run on evenly, as one; `settle` counts the sums
    of a piece in a way that does not depend on the element."""
    found: list[Definition] = []
    run: list[tuple[int, _Apart, Definition]] = []

    def close() -> None:
        steps = _runs([(n, a) for n, a, _ in run]) if len(run) > 1 else None
        if steps is not None:
            del found[-len(run) :]
            found.append(_piece_along(run, steps, dim))
        run.clear()

    for piece in pieces:
        point = _point(piece, dim, settle)
        if point is None or (run and not _follows(run, point, dim)):
            close()
        found.append(piece)
        if point is not None:
            run.append(point)
    close()
    return found


def _point(
    piece: Definition, dim: int, settle: Callable[[Definition, str], Definition]
) -> tuple[int, _Apart, Definition] | None:
    axis = piece.outs[0].index[dim].single
    if axis is None or len(piece.outs) != 1 or piece.domain[axis].extent != 1:
        return None
    if piece.domain.constraints or any(r.domain.constraints for r in piece.reduces):
        return None
    settled = settle(piece, axis)
    bodies = [*(r.body for r in settled.reduces), *settled.values]
    apart = _apart(bodies)
    mentioned = any(axis in i.names() for b in bodies for a in b.atoms(Access) for i in a.index)  # type: ignore[attr-defined]
    if apart is None or mentioned or not apart.constants:
        return None
    return piece.domain[axis].lo, apart, settled


def _follows(
    run: Sequence[tuple[int, _Apart, Definition]],
    point: tuple[int, _Apart, Definition],
    dim: int,
) -> bool:
    last, new = run[-1][2], point[2]
    axis = last.outs[0].index[dim].single
    assert axis is not None
    same = (
        last.outs == new.outs
        and [r for r in last.domain.ranges if r.axis != axis]
        == [r for r in new.domain.ranges if r.axis != axis]
        and [(r.domain, r.reduction) for r in last.reduces]
        == [(r.domain, r.reduction) for r in new.reduces]
    )
    return same and _runs([(n, a) for n, a, _ in (*run, point)]) is not None


def _piece_along(
    run: Sequence[tuple[int, _Apart, Definition]], steps: dict[Place, int], dim: int
) -> Definition:
    low, first, model = run[0]
    axis = model.outs[0].index[dim].single
    assert axis is not None
    bodies = first.along(steps, Affine.of(axis) - low)
    count = len(model.reduces)
    ranges = tuple(
        Range(axis, low, low + len(run)) if r.axis == axis else r for r in model.domain.ranges
    )
    reduces = tuple(replace(r, body=b) for r, b in zip(model.reduces, bodies[:count], strict=True))
    return replace(model, domain=Domain(ranges), reduces=reduces, values=bodies[count:])


# ---------------------------------------------------------------------------------------------
# One element


def fix_points(stage: Stage) -> Stage:
    """Axes that run over one of several elements, or over the only one and stand nowhere else, as
    that number: ``dX[0, w] = ...``, not ``dX[h, w] = ... for h < 1``."""
    used = [_mentioned(p) for p in stage.pieces]
    needed = {
        dim
        for piece, names in zip(stage.pieces, used, strict=True)
        for out in piece.outs
        for dim, index in enumerate(out.index)
        if index.names() & names
    }
    pieces = tuple(_fixed(p, needed) for p in stage.pieces)
    return stage if pieces == stage.pieces else replace(stage, pieces=pieces)


def _mentioned(piece: Definition) -> set[str]:
    """The axes that stand on the right side, or in a condition."""
    domains = (piece.domain, *(r.domain for r in piece.reduces))
    used = {n for d in domains for c in d.constraints for n in c.value.names()}
    return used.union(*(axes_of(b) for b in (*(r.body for r in piece.reduces), *piece.values)))


def _fixed(piece: Definition, needed: set[int]) -> Definition:
    """`needed`: dimensions whose axis some piece of the stage mentions."""
    if len(piece.outs) != 1:
        return piece
    out = piece.outs[0]
    values: dict[str, Affine | int] = {}
    for dim, (index, extent) in enumerate(zip(out.index, out.tensor.shape, strict=True)):
        axis = index.single
        if axis is None or isinstance(piece.domain[axis].hi, Size):
            continue
        if piece.domain[axis].extent == 1 and (extent != 1 or dim not in needed):
            values[axis] = piece.domain[axis].lo
    if not values:
        return piece

    def inner(domain: Domain) -> Domain:
        ranges = tuple(r for r in domain.ranges if r.axis not in values)
        return Domain(ranges, tuple(c.substitute(values) for c in domain.constraints))

    reduces = tuple(
        replace(r, domain=inner(r.domain), body=substitute(r.body, values)) for r in piece.reduces
    )
    place = Access(out.tensor, tuple(i.substitute(values) for i in out.index), out.boundary)
    bodies = tuple(substitute(v, values) for v in piece.values)
    return Definition((place,), inner(piece.domain), reduces, bodies)
