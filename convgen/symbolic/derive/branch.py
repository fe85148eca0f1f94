"""One branch of a solution under way, and its end: what must hold, and what need not be said."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from convgen.affine import Affine, Constraint, FloorDiv
from convgen.symbolic.derive.guards import needless
from convgen.symbolic.derive.terms import Part, Progression, Region, Term, span
from convgen.symbolic.expr import Range, Size, axes_of
from convgen.symbolic.indexmath import ceil_div, tidy, tidy_constraint


@dataclass
class Branch:
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

    def copy(self) -> Branch:
        return Branch(
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


def start_branch(term: Term) -> Branch:
    """The system of a term: digits instead of // and %, one equation for each dimension."""
    branch = Branch(
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
    branch: Branch, index: Affine, known: dict[tuple[Affine, int], tuple[Affine, Affine]]
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


def isolate(equation: Affine, name: str) -> Affine:
    """The value of a name of coefficient 1 or -1 that makes the equation zero."""
    return equation.without(name) * -equation.coefficient(name)


def finish_branch(
    branch: Branch, term: Term, names: tuple[str, ...], vanish: dict[str, tuple[bool, bool]]
) -> Part | None:
    """Drop what the ranges imply, cut regions to where something is added, name what is left."""
    branch.conditions += [Constraint("==", e) for e in branch.extras]
    changed = True
    while changed:
        changed = _drop_slack(branch)
    changed = True
    while changed:
        served = needless(term, vanish, branch.solution)
        bounds = branch.bounds()
        kept: dict[Constraint, None] = {}
        for condition in branch.conditions:
            if condition.kind == "<=" and condition.value in served:
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


def _cut_regions(branch: Branch) -> bool:
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


def _drop_slack(branch: Branch) -> bool:
    """A digit that one equation alone mentions only says that the rest lies within its range:
    ``9*h + q == 4*x`` with 0 <= q < 9 is ``0 <= 4*x - 9*h <= 8``."""
    for condition in list(branch.conditions):
        if condition.kind != "==" or not condition.value.is_plain:
            continue
        others = [c.value for c in branch.conditions if c is not condition]
        used = {n for v in (*others, *branch.solution.values()) for n in v.names()}
        for name in branch.own(condition.value):
            unit = abs(condition.value.coefficient(name)) == 1
            if unit and name.startswith("__") and name not in used:
                branch.conditions.remove(condition)
                branch.eliminate(name, isolate(condition.value, name))
                return True
    return False


def _narrow_sums(branch: Branch) -> bool:
    """An axis of the sum that the conditions keep within a window of constant width counts from
    the window's start: ``2*y <= h <= 2*y + 1`` makes h = 2*y + t, ``9*h <= 4*x <= 9*h + 8`` makes
    x = (9*h + 3) // 4 + t."""
    for name, known in list(branch.unknowns.items()):
        slopes = [(c, c.value.coefficient(name)) for c in branch.conditions if _is_bound(c)]
        start, stop = span(known)
        for (low, down), (high, up) in itertools.product(slopes, slopes):
            if not down == -up < 0:
                continue
            least, most = low.value.without(name), -1 * high.value.without(name)
            width = most - least
            if not width.is_constant or width.constant // up + 1 >= stop - start:
                continue
            if not least.names() or any(n in branch.unknowns for n in least.names()):
                continue
            fresh = branch.fresh("t")
            branch.unknowns[fresh] = Range(fresh, 0, max(0, width.constant // up + 1))
            branch.conditions.remove(low)  # the window's start is the first that meets it
            first = least if up == 1 else (least + (up - 1)) // up
            branch.eliminate(name, first + Affine.of(fresh))
            return True
    return False


def _is_bound(condition: Constraint) -> bool:
    return condition.kind == "<=" and condition.value.is_plain


def _part(branch: Branch, term: Term, names: tuple[str, ...]) -> Part:
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
