"""Solving a scattered sum for the element it writes.

A `Term` says: for every point z of a domain, `body(z)` is added to element `index(z)` of a tensor.
`solve` turns it round: for every element e, a sum over the points with index(z) == e, as a list of
`Part`s. Each part covers a box of arithmetic progressions of elements; what no part covers gets
nothing. No division is left in a part, except by an explicit digit of a digit-wise index.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

from convgen.affine import Affine, Constraint
from convgen.symbolic.derive.branch import Branch, finish_branch, isolate, start_branch
from convgen.symbolic.derive.guards import guarded_axes
from convgen.symbolic.derive.merge import POSITIONS, TAPS
from convgen.symbolic.derive.rounds import LETTERS
from convgen.symbolic.derive.terms import Digits, Part, Progression, Term, span
from convgen.symbolic.expr import Range, Size
from convgen.symbolic.indexmath import mixed_radix, solve_congruence, tap_range

MOST_CLASSES = 64  # residue classes one equation may be split into before it stays a constraint


def solve(term: Term) -> list[Part]:
    """The parts of a term, over disjoint elements.

    >>> from convgen.symbolic.expr import Access, Domain, Tensor
    >>> y, r = Affine.of("y"), Affine.of("r")
    >>> dY, W = Tensor("dY", (4,)), Tensor("W", (3,))
    >>> domain = Domain((Range("y", 0, 4), Range("r", 0, 3)))
    >>> body = Access(dY, (y,)) * Access(W, (r,))
    >>> for part in solve(Term(domain, (2 * y + r - 1,), (8,), body, ("y",))):
    ...     print(part.regions[0], "y =", part.solution["y"], "r =", part.solution["r"])
    Progression(param='__e0', start=0, step=2, count=4) y = __e0 r = 1
    Progression(param='__e0', start=1, step=2, count=4) y = -__1 + __e0 + 1 r = 2*__1
    """
    branch = start_branch(term)
    _drop_units(branch, term)
    _solve_plain(branch)
    _solve_extras(branch, term.positions)
    _solve_digits(branch)
    wanted = _dimension_names(term, branch)
    branches = [branch]
    for j in range(len(term.index)):
        branches = [b for old in branches for b in _solve_dimension(old, j, term.positions)]
    vanish = guarded_axes(term)
    parts = (finish_branch(b, term, wanted, vanish) for b in branches)
    return [p for p in parts if p is not None]


def _dimension_names(term: Term, branch: Branch) -> tuple[str, ...]:
    """The wanted name of each dimension's axis: its own axis; where positions lead to it h; h w;
    d h w; e0 e1 ...; where only axes of sums do, or none (one tap), r; r s; q r s."""
    own = [
        i.single if isinstance(r, Progression) else "i"
        for i, r in zip(term.index, branch.regions, strict=True)
    ]
    taps = [
        name is None and not value.names() & set(term.positions)
        for name, value in zip(own, term.index, strict=True)
    ]
    found = iter([t for t in TAPS.get(sum(taps), ()) if t not in own])
    for j, tap in enumerate(taps):
        own[j] = next(found, None) if tap else own[j]
    counted = [j for j, name in enumerate(own) if name in term.classes]
    for j, letter in zip(counted, POSITIONS.get(len(counted), ()), strict=False):
        own[j] = letter if letter not in own else own[j]
    count = own.count(None)
    rest = iter(LETTERS.get(count) or [f"e{j}" for j in range(count)])
    return tuple(name or next(rest) for name in own)


def _drop_units(branch: Branch, term: Term) -> None:
    """Axes that run over one value only are that value, where they share an index with others."""
    for j, equation in list(branch.equations.items()):
        if len(branch.own(term.index[j])) < 2:
            continue
        for name in branch.own(equation):
            known = branch.unknowns[name]
            if known.extent == 1:
                branch.unknowns.pop(name)
                value = Affine.of(known.lo)
                branch.replace({name: value})
                branch.solution[name] = value


def _solve_plain(branch: Branch) -> None:
    """axis + constant == e: the axis is e - constant."""
    for j in list(branch.equations):
        equation = branch.equations[j]
        own = branch.own(equation)
        if len(own) != 1 or abs(equation.coefficient(own[0])) != 1:
            continue
        name = own[0]
        value = isolate(equation, name)
        region = branch.regions[j]
        known = branch.unknowns[name]
        assert isinstance(region, Progression)
        if isinstance(known.hi, Size) or isinstance(region.count, Size):
            # A dimension of symbolic extent is indexed by the axis that runs over it.
            branch.unknowns.pop(name)
            branch.replace({name: value})
            branch.solution[name] = value
        else:
            branch.eliminate(name, value)
        del branch.equations[j]


def _preference(branch: Branch, positions: Sequence[str], equation: Affine) -> list[str]:
    """The unknowns of an equation, the one to solve for first: that which leaves the fewest terms
    to add up (a coefficient m leaves one in m). The axes of the definition go before the axes of
    its sums unless that costs more than twice the terms."""
    own = branch.own(equation)
    extents = {n: max(1, stop - start) for n in own for start, stop in [span(branch.unknowns[n])]}
    whole = math.prod(extents.values())

    def cost(name: str) -> Fraction:
        terms = Fraction(whole, extents[name] * abs(equation.coefficient(name)))
        return terms / 2 if name in positions else terms

    return sorted(own, key=lambda n: (cost(n), n not in positions))


def _solve_extras(branch: Branch, positions: Sequence[str]) -> None:
    """Equations that are not about an index: solve those with a coefficient of one."""
    waiting, branch.extras = branch.extras, []
    while waiting:
        equation = waiting.pop(0)
        unit = [
            n
            for n in _preference(branch, positions, equation)
            if abs(equation.coefficient(n)) == 1 and not n.startswith("__")
        ]
        if not unit:
            branch.conditions.append(Constraint("==", equation))
            continue
        value = isolate(equation, unit[0])
        branch.eliminate(unit[0], value)
        waiting = [w.substitute({unit[0]: value}) for w in waiting]


def _solve_digits(branch: Branch) -> None:
    """Indices whose axes are digits (groups, blocks): the axes themselves number the elements."""
    counted: dict[str, int] = {}
    for equation in branch.equations.values():
        for name in branch.own(equation):
            counted[name] = counted.get(name, 0) + 1
    for j, equation in list(branch.equations.items()):
        own = branch.own(equation)
        region = branch.regions[j]
        if len(own) < 2 or any(counted[n] > 1 for n in own):
            continue
        if not isinstance(region, Progression) or isinstance(region.count, Size):
            continue
        index = equation + Affine.of(region.param)
        ranges = [branch.unknowns[n] for n in own]
        if len(index.terms) != len(own) or any(isinstance(r.hi, Size) for r in ranges):
            continue
        low, high = index.bounds({r.axis: span(r) for r in ranges})
        extents = {r.axis: int(r.extent) for r in ranges}  # type: ignore[arg-type]
        terms = [(n, index.coefficient(n)) for n in own]
        if low < 0 or high >= region.count or mixed_radix(terms, extents) is None:
            continue
        ordered = sorted(ranges, key=lambda r: -index.coefficient(r.axis))
        branch.regions[j] = Digits(index, tuple(ordered), low, high - low + 1)
        for name in own:
            branch.solution[name] = Affine.of(name)
            branch.unknowns.pop(name)
        del branch.equations[j]


def _solve_dimension(branch: Branch, j: int, positions: Sequence[str]) -> list[Branch]:
    """Solve the equation of dimension j: one branch for each residue class that has solutions."""
    if j not in branch.equations:
        return [branch]
    equation = branch.equations.pop(j)
    order = _preference(branch, positions, equation)
    params = [a for a, _ in equation.terms if isinstance(a, str) and a not in branch.unknowns]
    region = branch.regions[j]
    assert isinstance(region, Progression)
    others = [p for p in params if p != region.param]
    if not order:
        return _fix_element(branch, j, equation, others)
    if others:  # rather an axis that needs no residue classes
        order.sort(key=lambda n: abs(equation.coefficient(n)) != 1)
    name = order[0]
    modulus = abs(equation.coefficient(name))
    if modulus == 1:
        branch.eliminate(name, isolate(equation, name))
        return [branch]
    dims = [
        d for d, r in enumerate(branch.regions) if isinstance(r, Progression) and r.param in params
    ]
    if len(dims) != len(params) or modulus ** len(dims) > max(MOST_CLASSES, min(modulus, 4096)):
        branch.conditions.append(Constraint("==", equation))
        return [branch]
    branch.classes += 1
    found: list[Branch] = []
    for offsets in itertools.product(range(modulus), repeat=len(dims)):
        split = branch.copy()
        split.equations[j] = equation
        if all(split.refine(d, modulus, o) for d, o in zip(dims, offsets, strict=True)):
            found += _solve_class(split, split.equations.pop(j), name)
    return found


def _fix_element(branch: Branch, j: int, equation: Affine, others: list[str]) -> list[Branch]:
    """No unknown is left: the element itself is fixed, or tied to other elements."""
    region = branch.regions[j]
    assert isinstance(region, Progression)
    if others:
        branch.conditions.append(Constraint("==", equation))
        return [branch]
    value = isolate(equation, region.param).constant
    if isinstance(region.count, Size) or not 0 <= value < region.count:
        return []
    branch.regions[j] = Progression(region.param, region.start + region.step * value, 1, 1)
    branch.replace({region.param: Affine.of(value)})
    return [branch]


def _solve_class(branch: Branch, equation: Affine, name: str) -> list[Branch]:
    """One residue class: the coefficients of all parameters are multiples of that of `name`."""
    coefficient = equation.coefficient(name)
    modulus = abs(coefficient)
    taps = [n for n in branch.own(equation) if n != name and equation.coefficient(n) % modulus]
    parameters = [branch.fresh("t" + "'" * (branch.classes - 1)) for _ in taps]
    solved = solve_congruence(
        [equation.coefficient(n) for n in taps], -equation.constant, modulus, parameters
    )
    if solved is None:
        return []
    known: dict[str, Affine | int] = {}  # the parameters so far, counted from 0
    for tap, parameter, coset in zip(taps, parameters, solved, strict=True):
        start, stop = span(branch.unknowns[tap])
        value = coset.value.substitute(known)
        if coset.step == 1:  # every value of the tap goes with some value of the others
            known[parameter] = Affine.of(tap) - value
            continue
        low, high = tap_range(start, stop, value, coset.step, branch.bounds())
        if high <= low:
            return []
        known[parameter] = low + (Affine.of(parameter) if high - low > 1 else 0)
        if high - low > 1:
            branch.unknowns[parameter] = Range(parameter, 0, high - low)
        new = value + coset.step * Affine.of(known[parameter])
        equation = equation.substitute({tap: new})
        branch.eliminate(tap, new)
    rest = equation.without(name)
    value = Affine(
        tuple((a, -c // coefficient) for a, c in rest.terms), -rest.constant // coefficient
    )
    branch.eliminate(name, value)
    return [branch]
