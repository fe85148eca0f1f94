"""The derivation of an adjoint, kept to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convgen.affine import Affine, Constraint
from convgen.symbolic.derive.terms import Digits, Part, Progression, Term
from convgen.symbolic.expr import Access, Range


@dataclass(frozen=True)
class Step:
    """One step: `title` says what is done (chain rule, index equation, solution, domain,
    simplification), `formula` is what comes out, `tensor` whose adjoint it is about."""

    tensor: str
    title: str
    formula: str

    def __str__(self) -> str:
        return f"d{self.tensor} | {self.title}: {self.formula}"


def _range_text(r: Range) -> str:
    return f"{r.axis} < {r.hi}" if r.lo == 0 else f"{r.lo} <= {r.axis} < {r.hi}"


def _names_of(part: Part) -> dict[str, Affine]:
    """Readable names for parameters and axes of sums."""
    found: dict[str, Affine] = {}
    taken: set[str] = set()

    def take(wanted: str) -> Affine:
        while wanted in taken:
            wanted += "'"
        taken.add(wanted)
        return Affine.of(wanted)

    for dim, region in enumerate(part.regions):
        if isinstance(region, Progression):
            found[region.param] = take(part.names[dim] if region.step == 1 else "u")
        else:
            for r in region.ranges:
                found[r.axis] = take(part.hints.get(r.axis, r.axis))
    for r in part.sums:
        found[r.axis] = take(part.hints.get(r.axis, r.axis))
    return found


def _element(part: Part, dim: int, names: dict[str, Affine]) -> str:
    region = part.regions[dim]
    if isinstance(region, Digits):
        return str(region.index.substitute(names))
    return str(region.start + region.step * names[region.param])


def _constraint_text(c: Constraint) -> str:
    if c.kind == "%":
        return f"({c.value}) % {c.modulus} == 0"
    return f"{c.value} {c.kind} 0"


def describe(tensor: str, access: Access, term: Term, parts: Sequence[Part]) -> list[Step]:
    """The steps of one contribution: the term of the chain rule solved into its parts."""
    domain = ", ".join(_range_text(r) for r in term.domain.ranges)
    elements = ", ".join(f"e{j}" for j in range(len(term.index)))
    steps = [
        Step(tensor, "chain rule", f"d{tensor}[{elements}] += {term.body}  for {domain}"),
        Step(
            tensor,
            "index equation",
            ", ".join(f"e{j} = {i}" for j, i in enumerate(term.index)),
        ),
    ]
    for part in parts:
        names = _names_of(part)
        where = ", ".join(_element(part, j, names) for j in range(len(part.regions)))
        order = {str(name): i for i, name in enumerate(names.values())}
        pairs = ((a, v.substitute(names).text(order)) for a, v in part.solution.items())
        solved = ", ".join(f"{a} = {text}" for a, text in pairs if a != text)
        steps.append(Step(tensor, "solution", f"at [{where}]: {solved or 'nothing to solve'}"))
        sums = [Range(str(names[r.axis]), r.lo, r.hi) for r in part.sums]
        kept = [_constraint_text(c.substitute(names)) for c in part.constraints]
        text = ", ".join([_range_text(r) for r in sums] + kept)
        steps.append(Step(tensor, "domain", f"at [{where}]: {text or 'one point'}"))
    if not parts:
        steps.append(Step(tensor, "solution", f"no element of {access.tensor.name} is reached"))
    dropped = 2 * len(term.domain.ranges) + len(term.domain.constraints)
    kept_count = max((len(p.constraints) for p in parts), default=0)
    steps.append(
        Step(
            tensor,
            "simplification",
            f"{dropped - min(dropped, kept_count)} of {dropped} conditions are implied by the "
            f"ranges or by reading zero outside; {len(parts)} parts",
        )
    )
    return steps
