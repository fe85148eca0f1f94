"""The derivation of an adjoint, to be read and to be run: each step says the same in another way.

chain rule       every product of the sum goes to one element: all of them, where it is that one
index equation   the same, the choice among them said as equations of the sum's domain
solution         the equations solved, one piece for each residue class; all ranges still said
domain           without the conditions that ranges imply or reading zero outside serves
simplification   pieces that one formula says put together: what the gradient program computes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

from sympy import Expr, Integer

from convgen.affine import Affine, Constraint
from convgen.symbolic.build import retarget
from convgen.symbolic.derive.pieces import assemble
from convgen.symbolic.derive.terms import Digits, Part, Progression, Term
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
    affine_body,
)
from convgen.symbolic.functions import equal, logical_and, select
from convgen.symbolic.printer.order import affine_text
from convgen.symbolic.printer.text import definition_text
from convgen.symbolic.program import Program
from convgen.symbolic.reductions import SUM


@dataclass(frozen=True)
class Step:
    """One step: `tensor` whose adjoint it is about, `title` what is done, `formula` what comes out,
    in words of indices; `program` computes the contribution (of this `number`) in that form."""

    tensor: str
    title: str
    formula: str
    number: int
    make: Callable[[], Program] = field(repr=False, compare=False)

    @cached_property
    def program(self) -> Program:
        """The step as a program: its inputs are what the contribution reads, in any role."""
        return self.make()

    @property
    def lines(self) -> list[str]:
        """The definitions of the program, as text."""
        return [
            definition_text(self.program, piece, None)
            for stage in self.program.stages
            for piece in stage.pieces
        ]

    def __str__(self) -> str:
        return f"d{self.tensor} | {self.title}: {self.formula}"


@dataclass(frozen=True)
class Contribution:
    """The term of the chain rule through one access, and the parts it was solved into."""

    tensor: Tensor
    term: Term
    parts: tuple[Part, ...]
    flip: bool

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.tensor.name


@dataclass(frozen=True)
class Fold:
    """Strips of a padded tensor's adjoint folded onto the tensor, in one dimension."""

    tensor: Tensor
    source: str
    dim: int
    boundary: str
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.tensor.name


@dataclass(frozen=True)
class Given:
    """A gradient that the user gave."""

    name: str
    result: str
    backward: Program


@dataclass(frozen=True)
class Total:
    """All contributions to a tensor added up."""

    tensor: Tensor
    stage: Stage


Event: TypeAlias = "Contribution | Fold | Given | Total"


def describe(event: Event, number: int) -> list[Step]:
    """The steps of one event of reverse mode."""
    match event:
        case Contribution():
            return _contribution_steps(event, number)
        case Fold():
            strips = len(event.parts) - 1
            text = f"{event.boundary} in dimension {event.dim}: {strips} strips of {event.source}"
            out = _out(event.tensor)

            def fold() -> Program:
                return _as_program("fold", assemble(out, event.parts))

            return [Step(event.tensor.name, "fold", text, number, fold)]
        case Given():
            text = f"{event.result} of {event.backward.name}"
            return [Step(event.name, "custom gradient", text, number, lambda: event.backward)]
        case Total():
            text = f"the contributions to d{event.tensor.name} added up"
            stage = event.stage
            return [Step(event.tensor.name, "sum", text, number, lambda: _as_program("sum", stage))]


def _contribution_steps(event: Contribution, number: int) -> list[Step]:
    name, term = event.tensor.name, event.term
    solved = [_solution_text(p, term) for p in event.parts]
    domains = [_domain_text(p) for p in event.parts]
    nothing = f"no element of {name} is reached"
    makers = (
        ("chain rule", _chain_text(event), lambda: _chain(event)),
        ("index equation", _equation_text(event), lambda: _equation(event)),
        ("solution", "; ".join(solved) or nothing, lambda: _solution(event)),
        ("domain", "; ".join(domains) or nothing, lambda: _domain(event)),
        ("simplification", _simplification_text(event), lambda: _simplified(event)),
    )
    return [Step(name, title, text, number, make) for title, text, make in makers]


# ---------------------------------------------------------------------------------------------
# The programs


def _out(tensor: Tensor) -> Tensor:
    return Tensor("d" + tensor.name, tensor.shape, tensor.dtype, "output")


def _as_program(title: str, stage: Stage) -> Program:
    """A program of one stage; whatever it reads is an input, constants excepted."""
    (out,) = stage.tensors
    final = {out.name: out.with_role("output")}
    for piece in stage.pieces:
        for access in piece.reads():
            tensor = access.tensor
            if tensor.role != "constant":
                final.setdefault(tensor.name, tensor.with_role("input"))
    inputs = sorted((t for n, t in final.items() if n != out.name), key=lambda t: t.serial)
    name = "_".join([out.name.replace("'", "_"), *title.split()])
    return Program(name, tuple(inputs), (final[out.name],), (retarget(stage, final),))


def _elements(event: Contribution) -> list[str]:
    """A free name for the element of each dimension."""
    wanted = event.parts[0].names if event.parts else ("h",) * len(event.term.index)
    taken = set(event.term.domain.names)
    found: list[str] = []
    for name in wanted:
        while name in taken:
            name += "'"
        taken.add(name)
        found.append(name)
    return found


def _whole(event: Contribution, title: str, where: Sequence[Constraint], body: Expr) -> Program:
    """One sum over the whole domain of the term for every element."""
    out, names, term = _out(event.tensor), _elements(event), event.term
    place = Access(out, [Affine.of(n) for n in names])
    ranges = tuple(Range(n, 0, e) for n, e in zip(names, out.shape, strict=True))
    inner = term.domain.where(*where)
    if not inner.ranges:
        inner = Domain((Range("one", 0, 1),), inner.constraints)
    reduce = Reduce(inner, SUM, body)
    piece = Definition((place,), Domain(ranges), (reduce,), (Result(0),))
    return _as_program(title, Stage((out,), (piece,)))


def _chain(event: Contribution) -> Program:
    condition: Expr | None = None
    for index, name in zip(event.term.index, _elements(event), strict=True):
        here: Expr = equal(affine_body(index), Axis(name))
        condition = here if condition is None else logical_and(condition, here)
    body = event.term.body
    whole = body if condition is None else select(condition, body, Integer(0))
    return _whole(event, "chain rule", (), whole)


def _equation(event: Contribution) -> Program:
    where = [
        Constraint("==", index - Affine.of(name))
        for index, name in zip(event.term.index, _elements(event), strict=True)
    ]
    return _whole(event, "index equation", where, event.term.body)


def _all_conditions(part: Part, term: Term) -> list[Constraint]:
    """The part's conditions and every range of the term, said of the solution."""
    found = dict.fromkeys(part.constraints)
    for r in term.domain.ranges:
        value = part.solution.get(r.axis, Affine.of(r.axis))
        if value.single == r.axis:
            continue
        found.setdefault(Constraint("<=", r.lo - value))
        if not isinstance(r.hi, Size):
            found.setdefault(Constraint("<=", value - (r.hi - 1)))
    for c in term.domain.constraints:
        found.setdefault(c.substitute(part.solution))
    return list(found)


def _solution(event: Contribution) -> Program:
    parts = [replace(p, constraints=_all_conditions(p, event.term)) for p in event.parts]
    return _as_program("solution", assemble(_out(event.tensor), parts, merge=False))


def _domain(event: Contribution) -> Program:
    return _as_program("domain", assemble(_out(event.tensor), event.parts, merge=False))


def _simplified(event: Contribution) -> Program:
    return _as_program("simplification", assemble(_out(event.tensor), event.parts, event.flip))


# ---------------------------------------------------------------------------------------------
# The texts


def _ranks(names: Sequence[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def _chain_text(event: Contribution) -> str:
    ranks = _ranks(event.term.domain.names)
    index = ", ".join(affine_text(i, ranks) for i in event.term.index)
    program = _chain(event)
    (piece,) = program.stages[0].pieces
    plain = replace(piece, reduces=(), values=(event.term.body,), domain=event.term.domain)
    added = definition_text(program, plain, None).split(" = ", 1)[1].split("   for ")[0]
    ranges = ", ".join(_range_text(r) for r in event.term.domain.ranges)
    return f"d{event.tensor.name}[{index}] += {added}   for {ranges}"


def _equation_text(event: Contribution) -> str:
    ranks = _ranks(event.term.domain.names)
    pairs = zip(_elements(event), event.term.index, strict=True)
    return ", ".join(f"{name} = {affine_text(index, ranks)}" for name, index in pairs)


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


def _place_text(part: Part, names: dict[str, Affine]) -> str:
    """The elements of a part."""
    found: list[str] = []
    for region in part.regions:
        if isinstance(region, Digits):
            value = region.index.substitute(names)
        else:
            value = region.start + region.step * names[region.param]
        found.append(affine_text(value, _ranks(list(map(str, names.values())))))
    return f"at [{', '.join(found)}]: "


def _solution_text(part: Part, term: Term) -> str:
    names = _names_of(part)
    ranks = _ranks(list(map(str, names.values())))
    pairs = (
        (axis, affine_text(part.solution[axis].substitute(names), ranks))
        for axis in term.domain.names
        if axis in part.solution
    )
    solved = ", ".join(f"{axis} = {text}" for axis, text in pairs if axis != text)
    return _place_text(part, names) + (solved or "nothing to solve")


def _domain_text(part: Part) -> str:
    names = _names_of(part)
    ranks = _ranks(list(map(str, names.values())))
    sums = [_range_text(Range(str(names[r.axis]), r.lo, r.hi)) for r in part.sums]
    kept = [_constraint_text(c.substitute(names), ranks) for c in part.constraints]
    return _place_text(part, names) + (", ".join(sums + kept) or "one point")


def _constraint_text(c: Constraint, ranks: dict[str, int]) -> str:
    text = affine_text(c.value, ranks)
    return f"({text}) % {c.modulus} == 0" if c.kind == "%" else f"{text} {c.kind} 0"


def _simplification_text(event: Contribution) -> str:
    said = {c for p in event.parts for c in _all_conditions(p, event.term)}
    left = {c for p in event.parts for c in p.constraints}
    pieces = len(_simplified(event).stages[0].pieces) if event.parts else 1
    count = f"{pieces} piece{'' if pieces == 1 else 's'}"
    if not said:
        return f"no conditions; {count}"
    gone = len(said) - len(left)
    return (
        f"{gone} of {len(said)} conditions follow from the ranges or from reading zero outside; "
        + count
    )
