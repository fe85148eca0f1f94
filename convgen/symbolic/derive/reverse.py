"""Reverse mode over the stages: one contribution for each access of a wanted tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from sympy import Expr, Integer

from convgen.affine import Affine, Constraint
from convgen.errors import DerivationError
from convgen.symbolic.derive.choices import choose_terms
from convgen.symbolic.derive.custom import inline, is_first, written_by
from convgen.symbolic.derive.folds import fold_parts
from convgen.symbolic.derive.gather import solve
from convgen.symbolic.derive.outline import Outlined, is_atomic, outline
from convgen.symbolic.derive.pieces import assemble
from convgen.symbolic.derive.reduces import Reduces
from convgen.symbolic.derive.rounds import go_round
from convgen.symbolic.derive.scalar import (
    affine_in_results,
    by_output,
    derivative,
    inner_accesses,
    outside,
)
from convgen.symbolic.derive.steps import Contribution, Event, Fold, Given, Total
from convgen.symbolic.derive.terms import Part, Progression, Term, span
from convgen.symbolic.expr import (
    Access,
    Definition,
    Domain,
    Size,
    Stage,
    Tensor,
    accesses_of,
    fixed,
)
from convgen.symbolic.functions import select
from convgen.symbolic.program import Program


@dataclass
class Adjoints:
    """What reverse mode made of a program.

    ahead     for each stage of the program the stages that stand for it (see outline)
    behind    the stages of the adjoints, in order
    results   the adjoint of each wanted tensor, in the order asked for
    """

    program: Program
    ahead: list[Outlined]
    cotangents: tuple[Tensor, ...]
    behind: list[Stage] = field(default_factory=list)
    results: tuple[Tensor, ...] = ()
    events: list[Event] = field(default_factory=list)


def adjoints(
    program: Program, wrt: Sequence[str], *, reuse: bool = False, flip: bool = False
) -> Adjoints:
    """Derive the adjoint of each wanted input. reuse: derivatives may read the forward's outputs
    (relu' as step of the output), which a forward run has stored. The program is proved sound
    first: of one that writes an element twice there is no gradient."""
    program.check()
    return _Reverse(program, wrt, reuse, flip).run()


class _Reverse:
    def __init__(self, program: Program, wrt: Sequence[str], reuse: bool, flip: bool) -> None:
        self.program, self.wrt, self.reuse, self.flip = program, tuple(wrt), reuse, flip
        self.taken = set(program.tensors())
        self._check()
        self.given = {
            t.name: Tensor(self.name("d" + t.name), t.shape, t.dtype)
            for t in program.outputs
            if t.dtype.is_float
        }
        self.ahead = [outline(stage, self.name) for stage in program.stages]
        self.active = self._active()
        self.parts: dict[str, list[Part]] = {}
        self.behind: list[Stage] = []
        self.events: list[Event] = []
        self.kept: set[Tensor] = set()  # tensors that are gradients as they stand
        self.reduces = Reduces(self.name, self.behind)

    def name(self, wanted: str) -> str:
        """A tensor name that is not taken yet; primes stand at the end."""
        wanted = wanted.replace("'", "") + "'" * wanted.count("'")
        while wanted in self.taken:
            wanted += "'"
        self.taken.add(wanted)
        return wanted

    def _check(self) -> None:
        inputs = {t.name: t for t in self.program.inputs}
        for name in self.wrt:
            if name not in inputs:
                raise DerivationError(
                    f"program {self.program.name} has no input {name!r}",
                    expected="one of " + ", ".join(inputs),
                )
            if not inputs[name].dtype.is_float:
                raise DerivationError(
                    f"{name} has dtype {inputs[name].dtype}: its gradient does not exist",
                    expected="a tensor of floats",
                )
        outputs = self.program.outputs
        if outputs and not any(t.dtype.is_float for t in outputs):
            raise DerivationError(
                f"the gradient of {self.program.name} does not exist: a result of integers, such "
                "as that of argmax, moves with nothing",
                expected="an output of floats",
                got=", ".join(map(str, outputs)),
                hint="max for the value; cast(..., f32) for a gradient of zeros",
            )
        if len(set(self.wrt)) != len(self.wrt):
            raise DerivationError("a tensor is asked for twice", got=", ".join(self.wrt))

    def _active(self) -> set[str]:
        """The tensors that depend on a wanted one through floats."""
        found = set(self.wrt)
        for outlined in self.ahead:
            for stage in outlined.stages:
                reads = (a for p in stage.pieces for a in p.reads())
                if any(a.tensor.name in found and a.tensor.dtype.is_float for a in reads):
                    found |= {t.name for t in stage.tensors if t.dtype.is_float}
        return found

    def run(self) -> Adjoints:
        for outlined in reversed(self.ahead):
            for i in reversed(range(len(outlined.stages))):
                stage = outlined.stages[i]
                if stage.backward is None:
                    outlined.stages[i] = self._stage(stage)
                elif is_first(self.program, stage):
                    self._custom(stage.backward)
        for outlined in self.ahead:
            outlined.stages = [choose_terms(stage) for stage in outlined.stages]
        results: list[Tensor] = []
        inputs = {t.name: t for t in self.program.inputs}
        for name in self.wrt:
            known = inputs[name]
            parts = self.parts.pop(name, [])
            whole = _same_elements(parts, known)
            if whole is not None and whole in self.kept:
                results.append(whole)
                continue
            out = Tensor(self.name("d" + name), known.shape, known.dtype, "output")
            self.behind.append(assemble(out, parts, self.flip))
            self._add_up(known)
            results.append(out)
        given = tuple(self.given[t.name] for t in self.program.outputs if t.name in self.given)
        return Adjoints(self.program, self.ahead, given, self.behind, tuple(results), self.events)

    # -----------------------------------------------------------------------------------------

    def _stage(self, stage: Stage) -> Stage:
        """Send the cotangents of a stage's tensors to what it reads. Gives the stage back, with
        the outputs that its adjoint needs."""
        cotangents: dict[str, Tensor] = {}
        for tensor in stage.tensors:
            found = self._cotangent(tensor)
            if found is not None and tensor.name in self.active:
                cotangents[tensor.name] = found
        if not cotangents:
            return stage
        if any(p.reduces and is_atomic(p) for p in stage.pieces):
            stage = self.reduces.keep_positions(stage)
        for piece in stage.pieces:
            for body, access, factor, domain in self._terms(piece, cotangents):
                self._access(piece, body, access, factor, domain)
        return stage

    def _custom(self, backward: Program) -> None:
        """Put a program with given gradients in the place of derivatives."""
        cotangents: dict[str, Tensor] = {}
        for tensor in written_by(self.program, backward):
            if not tensor.dtype.is_float:
                continue
            found = self._cotangent(tensor)
            if found is None:
                wanted = self.name("d" + tensor.name)
                found = Tensor(wanted, tensor.shape, tensor.dtype, "temporary")
                self.behind.append(assemble(found, []))
            cotangents["d" + tensor.name] = found
        stages, results = inline(backward, cotangents, self.name)
        self.behind += stages
        self.kept |= set(results.values())
        for name, tensor in results.items():
            if name in self.active:
                names = tuple(f"e{j}" for j in range(tensor.rank))
                self.parts.setdefault(name, []).append(_identity(tensor, names))
                self.events.append(Given(name, tensor.name, backward))

    def _cotangent(self, tensor: Tensor) -> Tensor | None:
        """The cotangent of a tensor, its contributions added up; None when there are none."""
        given = self.given.get(tensor.name)
        parts = self.parts.pop(tensor.name, [])
        if not parts:
            return given
        whole = _same_elements(parts, tensor)
        if given is None and whole is not None:
            return whole
        if given is not None:
            parts.append(_identity(given, parts[0].names))
        total = Tensor(self.name("d" + tensor.name), tensor.shape, tensor.dtype, "temporary")
        self.behind.append(assemble(total, parts, self.flip))
        self._add_up(tensor)
        return total

    def _add_up(self, tensor: Tensor) -> None:
        """Note the sum of several contributions, for the derivation."""
        own = [e for e in self.events if isinstance(e, (Contribution, Fold, Given))]
        if sum(e.name == tensor.name for e in own) > 1:
            self.events.append(Total(tensor, self.behind[-1]))

    def _terms(
        self, piece: Definition, cotangents: dict[str, Tensor]
    ) -> Iterator[tuple[Expr, Access, Expr, Domain]]:
        """(body, access, factor, domain): factor times the derivative of body by the access is
        what is added to the access's element, for each point of the domain."""
        for out, value in zip(piece.outs, piece.values, strict=True):
            if out.tensor.name not in cotangents:
                continue
            cotangent = Access(cotangents[out.tensor.name], out.index)
            if is_atomic(piece):
                reduce = piece.reduces[0]
                factor = self.reduces.element_cotangent(piece, value, cotangent)
                for access in self._wanted(reduce.body):
                    yield reduce.body, access, factor, piece.domain.join(reduce.domain)
                continue
            for access in self._wanted(value):
                yield value, access, cotangent, piece.domain
            for result, number in (affine_in_results(value) or {}).items():
                reduce = piece.reduces[result.reduce]
                for access in self._wanted(reduce.body):
                    yield reduce.body, access, number * cotangent, piece.domain.join(reduce.domain)

    def _wanted(self, body: Expr) -> list[Access]:
        """The accesses through which a body depends on wanted tensors."""
        return [
            a
            for a in sorted(body.atoms(Access), key=str)
            if isinstance(a, Access) and any(b.tensor.name in self.active for b in accesses_of(a))
        ]

    def _access(
        self, piece: Definition, body: Expr, access: Access, factor: Expr, domain: Domain
    ) -> None:
        """The contributions of one access, and of what its boundary values read."""
        slope = derivative(body, access)
        if self.reuse and not piece.reduces:
            slope = by_output(slope, body, _out_of(piece, body))
        if slope == 0:
            return
        if access.tensor.name in self.active and access.tensor.dtype.is_float:
            self._add(access, body, _times(factor, slope), domain, piece)
        for outer, inner, dim in inner_accesses(access):
            value = outer.boundary[dim].value
            if inner.tensor.name in self.active and value is not None:
                bounds = {r.axis: span(r) for r in domain.ranges}
                there = outside(outer, dim, bounds)
                slope_inside = select(there, derivative(value, inner), Integer(0))
                whole = factor * slope * slope_inside
                self._add(inner, body, whole, domain, piece)

    # -----------------------------------------------------------------------------------------

    def _add(
        self, access: Access, body: Expr, added: Expr, domain: Domain, piece: Definition
    ) -> None:
        """added(z) belongs to the element that the access reads at z."""
        if added == 0:
            return
        domain = domain.where(*_omitted(body, added, access))
        access, added, domain = go_round(access, added, domain)
        folding = self._folding(access, domain)
        tensor = access.tensor
        if folding:
            parts = self._fold(access, added, domain, piece, folding)
        else:
            classes = _class_axes(piece)
            term = Term(domain, access.index, tensor.shape, added, piece.domain.names, classes)
            parts = solve(term)
            self.events.append(Contribution(tensor, term, tuple(parts), self.flip))
        self.parts.setdefault(tensor.name, []).extend(parts)

    def _folding(self, access: Access, domain: Domain) -> dict[int, tuple[int, int]]:
        """Dimensions whose boundary reads other elements, with how far they reach outside."""
        found: dict[int, tuple[int, int]] = {}
        bounds = {r.axis: span(r) for r in domain.ranges}
        for dim, (index, kind) in enumerate(zip(access.index, access.boundary, strict=True)):
            extent = access.tensor.shape[dim]
            if not kind.folds or isinstance(extent, Size):
                continue
            low, high = index.bounds(bounds)
            if high < low:
                continue
            reach = (max(0, -low), max(0, high - extent + 1))
            if reach != (0, 0):
                found[dim] = reach
        return found

    def _fold(
        self,
        access: Access,
        added: Expr,
        domain: Domain,
        piece: Definition,
        folding: dict[int, tuple[int, int]],
    ) -> list[Part]:
        """A gather onto the padded tensor, then one fold for each dimension."""
        tensor = access.tensor
        shape, index = list(tensor.shape), list(access.index)
        for dim, (before, after) in folding.items():
            shape[dim] = before + fixed(shape[dim], tensor.name) + after
            index[dim] = index[dim] + before
        term = Term(domain, tuple(index), tuple(shape), added, piece.domain.names)
        source = Tensor(self.name(f"d{tensor.name}p"), tuple(shape), tensor.dtype, "temporary")
        parts = solve(term)
        names = parts[0].names if parts else ("i",) * len(shape)
        padded = tuple("p" if d in folding else n for d, n in enumerate(names))
        parts = [replace(p, names=padded) for p in parts]
        padded_tensor = replace(source, name=tensor.name + "p")
        self.events.append(Contribution(padded_tensor, term, tuple(parts), self.flip))
        self.behind.append(assemble(source, parts, self.flip))
        for count, (dim, (before, _)) in enumerate(folding.items(), 1):
            shape[dim] = tensor.shape[dim]
            last = count == len(folding)
            name = tensor.name if last else self.name(f"d{tensor.name}p")
            target = Tensor(name, tuple(shape), tensor.dtype, "temporary")
            kind = access.boundary[dim]
            parts = fold_parts(source, target, dim, kind, before, names)
            self.events.append(Fold(target, source.name, dim, kind.name, tuple(parts)))
            if not last:
                self.behind.append(assemble(target, parts))
            source = target
        return parts


def _class_axes(piece: Definition) -> tuple[str, ...]:
    """The axes that number the elements of a residue class: u of 2*u + 1."""
    terms = (i.terms for o in piece.outs for i in o.index if len(i.terms) == 1)
    return tuple(a for ((a, step),) in terms if isinstance(a, str) and abs(step) > 1)


def _out_of(piece: Definition, value: Expr) -> Access:
    """The element that a value of a piece is written to."""
    return next(o for o, v in zip(piece.outs, piece.values, strict=True) if v == value)


def _times(factor: Expr, slope: Expr) -> Expr:
    """The product; a choice between a slope and nothing stays a choice."""
    if isinstance(slope, select) and slope.args[2] == 0:
        condition, chosen, _ = slope.args
        return select(condition, _times(factor, chosen), Integer(0))  # type: ignore[return-value, arg-type]
    return factor * slope


def _same_elements(parts: Sequence[Part], tensor: Tensor) -> Tensor | None:
    """The tensor whose elements the parts are, one by one; None when they are anything else."""
    if len(parts) != 1:
        return None
    (part,) = parts
    body = part.body
    if part.sums or part.constraints or part.factor != 1 or not isinstance(body, Access):
        return None
    if body.tensor.shape != tensor.shape or body.tensor.dtype != tensor.dtype:
        return None
    params = [r.param for r in part.regions if isinstance(r, Progression) and r.step == 1]
    whole = [r.count for r in part.regions if isinstance(r, Progression)] == list(tensor.shape)
    reads = [i.substitute(part.solution).single for i in body.index]
    same = whole and len(params) == tensor.rank and reads == params
    return body.tensor if same else None


def _identity(tensor: Tensor, names: tuple[str, ...]) -> Part:
    """The part that is the tensor itself."""
    regions = [Progression(f"__e{j}", 0, 1, extent) for j, extent in enumerate(tensor.shape)]
    index = [Affine.of(r.param) for r in regions]
    return Part(Access(tensor, index), list(regions), {}, [], [], names)


def _omitted(body: Expr, added: Expr, access: Access) -> list[Constraint]:
    """Conditions that the terms left out of a reduction give: accesses whose omitted elements
    leave out the term, but which the derivative does not read any more."""
    found: list[Constraint] = []
    present = added.atoms(Access)
    for other in sorted(body.atoms(Access), key=str):
        assert isinstance(other, Access)
        if other in present or other == access:
            continue
        shape = other.tensor.shape
        for index, extent, kind in zip(other.index, shape, other.boundary, strict=True):
            if kind.name == "omit" and not isinstance(extent, Size):
                found += [Constraint("<=", -index), Constraint("<=", index - (extent - 1))]
    return found
