"""Solving a scattered sum for the element it writes.

A `Term` says: for every point z of a domain, `body(z)` is added to element `index(z)` of a tensor.
`solve` turns it round: for every element e, a sum over the points with index(z) == e, as a list of
`Part`s. Each part covers a box of arithmetic progressions of elements; what no part covers gets
nothing. No division is left in a part, except by an explicit digit of a digit-wise index.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from sympy import Add, Expr, Mul, Pow

from convgen.affine import Affine, Constraint, FloorDiv
from convgen.symbolic.boundary import ZERO
from convgen.symbolic.expr import Access, Domain, Extent, Range, Size, axes_of
from convgen.symbolic.functions import (
    FUNCTIONS,
    abs_,
    cast,
    maximum,
    minimum,
    relu,
    select,
    sigmoid,
    sign,
    step,
)
from convgen.symbolic.indexmath import (
    ceil_div,
    mixed_radix,
    solve_congruence,
    tap_range,
    tidy,
    tidy_constraint,
)

# A size that is bound later: larger than any array, for bounds only.
UNBOUNDED = 1 << 48
LETTERS = {1: ("h",), 2: ("h", "w"), 3: ("d", "h", "w")}
MOST_CLASSES = 64  # residue classes one equation may be split into before it stays a constraint


@dataclass(frozen=True)
class Term:
    """For each z of `domain`: body(z) belongs to element index(z) of a tensor of `shape`.

    `positions` are the axes to solve for first (the axes of the definition, not of its sums).
    """

    domain: Domain
    index: tuple[Affine, ...]
    shape: tuple[Extent, ...]
    body: Expr
    positions: tuple[str, ...]


@dataclass(frozen=True)
class Progression:
    """Elements start + step*param of a dimension, 0 <= param < count."""

    param: str
    start: int
    step: int
    count: Extent


@dataclass(frozen=True)
class Digits:
    """Elements index(axes) of a dimension: low, low + 1, ..., each for one value of the axes."""

    index: Affine
    ranges: tuple[Range, ...]
    low: int
    count: int


Region: TypeAlias = "Progression | Digits"


@dataclass
class Part:
    """The sum over `sums` (cut by `constraints`) of body, for the elements of `regions`.

    `solution` gives every axis of the body in terms of the parameters of the regions and the axes
    of the sum; `names` the wanted name of each dimension's axis; `hints` of each axis of the sum.
    """

    body: Expr
    regions: list[Region]
    solution: dict[str, Affine]
    sums: list[Range]
    constraints: list[Constraint]
    names: tuple[str, ...]
    hints: dict[str, str] = field(default_factory=dict)
    factor: int = 1


def span(range_: Range) -> tuple[int, int]:
    """(lo, hi) for bounds; a size that is not bound counts as very large."""
    return range_.lo, UNBOUNDED if isinstance(range_.hi, Size) else range_.hi


# ---------------------------------------------------------------------------------------------
# What makes a term vanish outside its domain


def guards(body: Expr) -> list[tuple[Affine, Extent]]:
    """(index, extent) pairs such that the body is zero where an index leaves 0..extent-1.

    Only accesses that multiply everything else count, and only where everything else stays finite
    and readable out of range.
    """
    if not _finite(body):
        return []
    return list(_zero_factors(body))


def _zero_factors(body: Expr) -> Iterator[tuple[Affine, Extent]]:
    if isinstance(body, Access):
        for index, extent, kind in zip(body.index, body.tensor.shape, body.boundary, strict=True):
            if kind == ZERO:
                yield index, extent
    elif isinstance(body, Mul):
        for factor in body.args:
            yield from _zero_factors(factor)
    elif isinstance(body, Pow) and body.exp.is_positive:
        yield from _zero_factors(body.base)
    elif isinstance(body, select) and body.args[2] == 0:
        yield from _zero_factors(body.args[1])
    elif isinstance(body, Add):
        found = [set(_zero_factors(term)) for term in body.args]
        yield from set.intersection(*found)


_BOUNDED = (step, relu, sign, sigmoid, abs_, select, cast, maximum, minimum)


def _finite(body: Expr) -> bool:
    """True when the body has a finite value wherever its (finite) inputs are read."""
    if isinstance(body, Access):
        return not any(b.folds or b.value is not None or b.name == "omit" for b in body.boundary)
    if body.is_Atom:
        return True
    if isinstance(body, Pow) and not (body.exp.is_integer and body.exp.is_nonnegative):
        return bool(body.base.is_number)
    known = isinstance(body, (Add, Mul, Pow, *_BOUNDED)) or body.func in _CONDITIONS
    return known and all(_finite(a) for a in body.args if isinstance(a, Expr))


_CONDITIONS = {
    FUNCTIONS[name]
    for name in ("equal", "less", "less_equal", "logical_and", "logical_or", "logical_not")
    + ("is_nan", "tanh", "erf", "floor", "uniform")
}


# ---------------------------------------------------------------------------------------------
# One branch of the solution


@dataclass
class _Branch:
    """Equations still to be solved (each is zero), what is solved, and what must hold."""

    regions: list[Region]
    unknowns: dict[str, Range]
    equations: dict[int, Affine]  # by dimension
    extras: list[Affine]
    conditions: list[Constraint]
    solution: dict[str, Affine]
    hints: dict[str, str]
    serial: Iterator[int]
    classes: int = 0  # dimensions divided into residue classes so far

    def copy(self) -> _Branch:
        return _Branch(
            list(self.regions),
            dict(self.unknowns),
            dict(self.equations),
            list(self.extras),
            list(self.conditions),
            dict(self.solution),
            dict(self.hints),
            self.serial,
            self.classes,
        )

    def fresh(self, hint: str) -> str:
        name = f"__{next(self.serial)}"
        self.hints[name] = hint
        return name

    def replace(self, values: dict[str, Affine]) -> None:
        """Substitute unknowns or parameters everywhere."""
        self.equations = {j: e.substitute(values) for j, e in self.equations.items()}
        self.extras = [e.substitute(values) for e in self.extras]
        self.conditions = [c.substitute(values) for c in self.conditions]
        self.solution = {n: v.substitute(values) for n, v in self.solution.items()}

    def eliminate(self, name: str, value: Affine) -> None:
        """name := value; its range becomes a condition (dropped later where it is implied)."""
        known = self.unknowns.pop(name)
        low, high = known.lo - value, value - (span(known)[1] - 1)
        self.replace({name: value})
        self.solution[name] = value
        self.conditions.append(Constraint("<=", low))
        if not isinstance(known.hi, Size):
            self.conditions.append(Constraint("<=", high))

    def refine(self, dim: int, step: int, offset: int) -> bool:
        """Keep only parameter values step*p + offset of a dimension; False when none is left."""
        region = self.regions[dim]
        if not isinstance(region, Progression) or isinstance(region.count, Size):
            return False
        count = ceil_div(region.count - offset, step)
        if count <= 0:
            return False
        p, first = region.param, region.start + region.step * offset
        self.regions[dim] = Progression(p, first, region.step * step, count)
        self.replace({p: step * Affine.of(p) + offset})
        return True

    def bounds(self) -> dict[str, tuple[int, int]]:
        found = {n: span(r) for n, r in self.unknowns.items()}
        for region in self.regions:
            if isinstance(region, Progression):
                found[region.param] = span(Range(region.param, 0, region.count))
            else:
                found.update({r.axis: span(r) for r in region.ranges})
        return found

    def own(self, equation: Affine) -> list[str]:
        """The unknowns of an equation."""
        return [a for a, _ in equation.terms if isinstance(a, str) and a in self.unknowns]


def _start(term: Term) -> _Branch:
    """The system of a term: digits instead of // and %, one equation for each dimension."""
    branch = _Branch(
        [Progression(f"__e{j}", 0, 1, extent) for j, extent in enumerate(term.shape)],
        {r.axis: r for r in term.domain.ranges},
        {},
        [],
        [],
        {},
        {r.axis: r.axis for r in term.domain.ranges},
        itertools.count(),
    )
    digits: dict[tuple[Affine, int], tuple[Affine, Affine]] = {}
    for j, index in enumerate(term.index):
        plain = _expand_digits(branch, index, digits)
        branch.equations[j] = plain - Affine.of(f"__e{j}")
    for constraint in term.domain.constraints:
        if constraint.kind == "==" and constraint.value.is_plain:
            branch.extras.append(constraint.value)
        else:
            branch.conditions.append(constraint)
    return branch


def _expand_digits(
    branch: _Branch, index: Affine, known: dict[tuple[Affine, int], tuple[Affine, Affine]]
) -> Affine:
    """index with value // T and value % T replaced by new unknowns q, m: value == T*q + m."""
    total = Affine((), index.constant)
    for atom, coefficient in index.terms:
        if isinstance(atom, str):
            total = total + coefficient * Affine.of(atom)
            continue
        value = _expand_digits(branch, atom.value, known)
        key = (value, atom.divisor)
        if key not in known:
            hint = value.single or "q"
            q, m = branch.fresh(hint + "_out"), branch.fresh(hint + "_in")
            low, high = value.bounds(branch.bounds())
            branch.unknowns[q] = Range(q, low // atom.divisor, high // atom.divisor + 1)
            branch.unknowns[m] = Range(m, 0, atom.divisor)
            known[key] = (Affine.of(q), Affine.of(m))
            branch.extras.append(value - atom.divisor * Affine.of(q) - Affine.of(m))
        q_value, m_value = known[key]
        total = total + coefficient * (q_value if isinstance(atom, FloorDiv) else m_value)
    return total


# ---------------------------------------------------------------------------------------------
# The steps of the solution


def solve(term: Term) -> list[Part]:
    """The parts of a term, over disjoint elements.

    >>> from convgen.symbolic.expr import Tensor
    >>> y, r = Affine.of("y"), Affine.of("r")
    >>> dY, W = Tensor("dY", (4,)), Tensor("W", (3,))
    >>> domain = Domain((Range("y", 0, 4), Range("r", 0, 3)))
    >>> body = Access(dY, (y,)) * Access(W, (r,))
    >>> for part in solve(Term(domain, (2 * y + r - 1,), (8,), body, ("y",))):
    ...     print(part.regions[0], "y =", part.solution["y"], "r =", part.solution["r"])
    Progression(param='__e0', start=0, step=2, count=4) y = __e0 r = 1
    Progression(param='__e0', start=1, step=2, count=4) y = -__1 + __e0 + 1 r = 2*__1
    """
    branch = _start(term)
    _drop_units(branch, term)
    _solve_plain(branch)
    _solve_extras(branch, term.positions)
    _solve_digits(branch)
    wanted = _dimension_names(term, branch)
    branches = [branch]
    for j in range(len(term.index)):
        branches = [b for old in branches for b in _solve_dimension(old, j, term.positions)]
    vanish = _guarded(term)
    parts = (_finish(b, term, wanted, vanish) for b in branches)
    return [p for p in parts if p is not None]


def _dimension_names(term: Term, branch: _Branch) -> tuple[str, ...]:
    """The wanted name of each dimension's axis: its own axis, or h; h w; d h w; e0 e1 ..."""
    own = [
        i.single if isinstance(r, Progression) else "i"
        for i, r in zip(term.index, branch.regions, strict=True)
    ]
    count = own.count(None)
    rest = iter(LETTERS.get(count) or [f"e{j}" for j in range(count)])
    return tuple(name or next(rest) for name in own)


def _drop_units(branch: _Branch, term: Term) -> None:
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


def _solve_plain(branch: _Branch) -> None:
    """axis + constant == e: the axis is e - constant."""
    for j in list(branch.equations):
        equation = branch.equations[j]
        own = branch.own(equation)
        if len(own) != 1 or abs(equation.coefficient(own[0])) != 1:
            continue
        name = own[0]
        value = _isolate(equation, name)
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


def _isolate(equation: Affine, name: str) -> Affine:
    """The value of a name of coefficient 1 or -1 that makes the equation zero."""
    return equation.without(name) * -equation.coefficient(name)


def _preference(branch: _Branch, positions: Sequence[str], equation: Affine) -> list[str]:
    """Unknowns in the order in which they are solved for: positions first, larger extents first."""

    def rank(name: str) -> tuple[bool, int, int]:
        low, high = span(branch.unknowns[name])
        return (name not in positions, -(high - low), abs(equation.coefficient(name)))

    return sorted(branch.own(equation), key=rank)


def _solve_extras(branch: _Branch, positions: Sequence[str]) -> None:
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
        value = _isolate(equation, unit[0])
        branch.eliminate(unit[0], value)
        waiting = [w.substitute({unit[0]: value}) for w in waiting]


def _solve_digits(branch: _Branch) -> None:
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


def _solve_dimension(branch: _Branch, j: int, positions: Sequence[str]) -> list[_Branch]:
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
        branch.eliminate(name, _isolate(equation, name))
        return [branch]
    dims = [
        d
        for d, r in enumerate(branch.regions)
        if isinstance(r, Progression) and r.param in params
    ]
    if len(dims) != len(params) or modulus ** len(dims) > max(MOST_CLASSES, modulus):
        branch.conditions.append(Constraint("==", equation))
        return [branch]
    branch.classes += 1
    found: list[_Branch] = []
    for offsets in itertools.product(range(modulus), repeat=len(dims)):
        split = branch.copy()
        split.equations[j] = equation
        if all(split.refine(d, modulus, o) for d, o in zip(dims, offsets, strict=True)):
            found += _solve_class(split, split.equations.pop(j), name)
    return found


def _fix_element(branch: _Branch, j: int, equation: Affine, others: list[str]) -> list[_Branch]:
    """No unknown is left: the element itself is fixed, or tied to other elements."""
    region = branch.regions[j]
    assert isinstance(region, Progression)
    if others:
        branch.conditions.append(Constraint("==", equation))
        return [branch]
    value = _isolate(equation, region.param).constant
    if isinstance(region.count, Size) or not 0 <= value < region.count:
        return []
    branch.regions[j] = Progression(region.param, region.start + region.step * value, 1, 1)
    branch.replace({region.param: Affine.of(value)})
    return [branch]


def _solve_class(branch: _Branch, equation: Affine, name: str) -> list[_Branch]:
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


# ---------------------------------------------------------------------------------------------
# What must hold, and what need not be said


def _guarded(term: Term) -> dict[str, tuple[bool, bool]]:
    """For each axis whether the body vanishes below, above its range."""
    found: dict[str, tuple[bool, bool]] = {}
    for index, extent in guards(term.body):
        if len(index.terms) != 1 or not isinstance(index.terms[0][0], str):
            continue
        ((name, slope),) = index.terms
        if name not in term.domain or isinstance(extent, Size):
            continue
        start, stop = span(term.domain[name])
        before, after = slope * (start - 1), slope * stop
        if slope < 0:
            below = index.constant + before >= extent
            above = index.constant + after < 0
        else:
            below = index.constant + before < 0
            above = index.constant + after >= extent
        known = found.get(name, (False, False))
        found[name] = (known[0] or below, known[1] or above)
    return found


def _needless(
    term: Term, vanish: dict[str, tuple[bool, bool]], solution: dict[str, Affine]
) -> set[Affine]:
    """The values of conditions (``value <= 0``) that the zero boundary takes care of."""
    found: set[Affine] = set()
    for name, (below, above) in vanish.items():
        if name in solution:
            start, stop = span(term.domain[name])
            if below:
                found.add(start - solution[name])
            if above:
                found.add(solution[name] - (stop - 1))
    return found


def _finish(
    branch: _Branch, term: Term, names: tuple[str, ...], vanish: dict[str, tuple[bool, bool]]
) -> Part | None:
    """Drop what the ranges imply, cut regions to where something is added, name what is left."""
    branch.conditions += [Constraint("==", e) for e in branch.extras]
    changed = True
    while changed:
        needless = _needless(term, vanish, branch.solution)
        bounds = branch.bounds()
        kept: dict[Constraint, None] = {}
        for condition in branch.conditions:
            if condition.kind == "<=" and condition.value in needless:
                continue
            verdict = tidy_constraint(condition, bounds)
            if verdict is False:
                return None
            if verdict is not True:
                kept.setdefault(verdict)
        branch.conditions = list(kept)
        changed = _cut_regions(branch) or _narrow_sums(branch)
        if any(_empty(r) for r in branch.regions):
            return None
    return _part(branch, term, names)


def _empty(region: Region) -> bool:
    count = region.count
    return not isinstance(count, Size) and count <= 0


def _cut_regions(branch: _Branch) -> bool:
    """Conditions on one parameter only become the ends of its region."""
    changed = False
    where = {r.param: d for d, r in enumerate(branch.regions) if isinstance(r, Progression)}
    for condition in list(branch.conditions):
        if condition.kind != "<=" or len(condition.value.terms) != 1:
            continue
        ((name, slope),) = condition.value.terms
        if not isinstance(name, str) or name not in where:
            continue
        region = branch.regions[where[name]]
        assert isinstance(region, Progression)
        if isinstance(region.count, Size):
            continue
        branch.conditions.remove(condition)
        changed = True
        if slope < 0:
            first = max(0, ceil_div(condition.value.constant, -slope))
            if not branch.refine(where[name], 1, first):
                branch.regions[where[name]] = replace(region, count=0)
            return True
        last = -condition.value.constant // slope
        branch.regions[where[name]] = replace(region, count=min(region.count, last + 1))
    return changed


def _narrow_sums(branch: _Branch) -> bool:
    """An axis of the sum that the conditions keep within a window of constant width counts from
    the window's start: ``2*y <= h <= 2*y + 1`` makes h = 2*y + t."""
    for name, known in list(branch.unknowns.items()):
        lows = [_isolate(c.value, name) for c in branch.conditions if _bounds_below(c, name)]
        highs = [
            _isolate(c.value, name)
            for c in branch.conditions
            if c.kind == "<=" and c.value.coefficient(name) == 1 and c.value.is_plain
        ]
        start, stop = span(known)
        for low, high in itertools.product(lows, highs):
            width = high - low
            if not width.is_constant or width.constant + 1 >= stop - start:
                continue
            if not low.names() or any(n in branch.unknowns for n in low.names()):
                continue
            fresh = branch.fresh("t")
            branch.unknowns[fresh] = Range(fresh, 0, max(0, width.constant + 1))
            branch.eliminate(name, low + Affine.of(fresh))
            return True
    return False


def _bounds_below(condition: Constraint, name: str) -> bool:
    return (
        condition.kind == "<="
        and condition.value.coefficient(name) == -1
        and condition.value.is_plain
    )


def _part(branch: _Branch, term: Term, names: tuple[str, ...]) -> Part:
    """A branch as a part: axes the body does not mention become a factor."""
    solution = branch.solution
    bounds = branch.bounds()
    used: set[str] = set()
    for name in axes_of(term.body):
        used |= solution[name].names() if name in solution else {name}
    for condition in branch.conditions:
        used |= condition.value.names()
    sums: list[Range] = []
    factor = 1
    for name, known in branch.unknowns.items():
        if name in used or isinstance(known.extent, Size):
            sums.append(known)
        else:
            factor *= known.extent
    tidied = {n: tidy(v, bounds) for n, v in solution.items()}
    return Part(
        term.body, branch.regions, tidied, sums, branch.conditions, names, branch.hints, factor
    )
