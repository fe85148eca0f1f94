"""What must hold of every Program, proved on integers before anything is made from it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convgen.affine import Affine
from convgen.errors import FormulaError, ShapeError
from convgen.symbolic.boundary import Boundary, Omit
from convgen.symbolic.expr import (
    LARGEST,
    Access,
    Definition,
    Domain,
    Reduced,
    Result,
    Size,
    Stage,
    Tensor,
    accesses_of,
    axes_of,
)
from convgen.symbolic.proofs_cover import (
    LIMIT,
    Budget,
    Finding,
    TooLarge,
    Write,
    prove_cover,
    simplify,
)

if TYPE_CHECKING:
    from convgen.symbolic.program import Program


@dataclass(frozen=True)
class Cover:
    """Proved: the pieces write each element of the tensor exactly once, and nothing outside.

    method: "product" (progressions in every dimension) or "slices" (after cutting along `slices`
    values of tied dimensions).
    """

    tensor: str
    shape: str
    pieces: int
    method: str
    slices: int = 0

    def __str__(self) -> str:
        how = "disjoint residue classes" if self.method == "product" else f"{self.slices} slices"
        return f"{self.tensor}{self.shape}: {self.pieces} piece(s) write each element once ({how})"


@dataclass(frozen=True)
class Reach:
    """Proved: dimension `dim` of the access has indices low..high (inclusive, an enclosure), which
    lie inside the extent, or which its boundary can serve."""

    access: str
    dim: int
    low: int
    high: int
    extent: int
    boundary: str

    @property
    def inside(self) -> bool:
        return 0 <= self.low and self.high < self.extent

    def __str__(self) -> str:
        how = "inside" if self.inside else f"served by {self.boundary}"
        return f"{self.access}: index {self.dim} in {self.low}..{self.high} of {self.extent}, {how}"


@dataclass(frozen=True)
class Proof:
    """What check_program proved, for certificates."""

    program: str
    covers: tuple[Cover, ...]
    reaches: tuple[Reach, ...]

    def __str__(self) -> str:
        lines = [f"program {self.program}", *map(str, self.covers), *map(str, self.reaches)]
        return "\n".join(lines)


def check_program(program: Program) -> Proof:
    """Prove a program sound, or raise.

    Proved exactly, for all sizes that are still symbolic: each stage writes every element of its
    tensors once; every folding boundary reaches what it reads; nothing is read before it is
    written; every axis has a range; omitted elements are read in reductions only.

    Raises FormulaError (elements written twice, never or outside; undefined axes and tensors) and
    ShapeError (boundaries out of reach; symbolic sizes indexed by more than a plain axis).

    >>> from convgen.symbolic.parse import parse
    >>> print(check_program(parse("Y[i] = X{reflect}[i - 1] for i < 6", X=(5,))))
    program Y
    Y[6]: 1 piece(s) write each element once (disjoint residue classes)
    X{reflect}[i - 1]: index 0 in -1..4 of 5, served by reflect
    """
    _check_names(program)
    covers: list[Cover] = []
    reaches: dict[Reach, None] = {}
    for stage in program.stages:
        for number, piece in enumerate(stage.pieces):
            where = _where(program, stage, number)
            _check_axes(piece, where)
            _check_results(piece, where)
            for reach in _check_reads(piece, where):
                reaches.setdefault(reach)
        for tensor in stage.tensors:
            covers.append(_prove_tensor(program, stage, tensor))
    return Proof(program.name, tuple(covers), tuple(reaches))


def _where(program: Program, stage: Stage, piece: int) -> str:
    part = f", piece {piece + 1}" if len(stage.pieces) > 1 else ""
    return _within(program, ", ".join(t.name for t in stage.tensors)) + part


def _within(program: Program, names: str) -> str:
    """Tensors of a program, which often has the name of the only one."""
    return names if names == program.name else f"{program.name}: {names}"


# ---------------------------------------------------------------------------------------------
# Names


def _check_names(program: Program) -> None:
    known = {t.name: t for t in program.inputs}
    if len(known) != len(program.inputs):
        raise FormulaError(f"{program.name}: two inputs have one name")
    for constant in program.constants():
        if known.setdefault(constant.name, constant) != constant:
            raise FormulaError(f"{program.name}: {constant.name} names two different tensors")
    written: set[str] = set()
    for stage in program.stages:
        for piece in stage.pieces:
            for access in piece.reads():
                _check_known(access, known, program)
        for tensor in stage.tensors:
            if tensor.name in known:
                raise FormulaError(f"{program.name}: {tensor.name} is defined twice")
            known[tensor.name] = tensor
            written.add(tensor.name)
    for tensor in program.outputs:
        if tensor.name not in written:
            raise FormulaError(f"{program.name}: the output {tensor.name} is never computed")
    for name in program.saved:
        if name not in known:
            raise FormulaError(f"{program.name}: the saved tensor {name} does not exist")
    for state, source in program.updates:
        before, after = known.get(state), known.get(source)
        if before is None or before.role not in ("state", "parameter") or after is None:
            raise FormulaError(f"{program.name}: update {state} <- {source}", expected="a state")
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise ShapeError(
                f"{program.name}: update {state} <- {source}",
                expected=str(before),
                got=str(after),
            )


def _check_known(access: Access, known: Mapping[str, Tensor], program: Program) -> None:
    found = known.get(access.tensor.name)
    if found is None:
        raise FormulaError(
            f"{access.text()} reads {access.tensor.name}, which nothing before it computes",
            where=program.name,
            expected="one of " + ", ".join(known),
        )
    if (found.shape, found.dtype, found.values) != (
        access.tensor.shape,
        access.tensor.dtype,
        access.tensor.values,
    ):
        raise ShapeError(
            f"{access} reads another tensor of that name",
            where=program.name,
            expected=str(found),
            got=str(access.tensor),
        )


def _check_axes(piece: Definition, where: str) -> None:
    outer = set(piece.domain.names)
    for out in piece.outs:
        _check_ranged(out.names(), outer, f"{where}: {out}")
    _check_constraints(piece.domain, outer, where)
    for reduce in piece.reduces:
        inner = outer | set(reduce.domain.names)
        _check_ranged(axes_of(reduce.body), inner, f"{where}: {reduce.body}")
        _check_constraints(reduce.domain, inner, where)
    for value in piece.values:
        _check_ranged(axes_of(value), outer, f"{where}: {value}")


def _check_ranged(names: frozenset[str], ranged: set[str], where: str) -> None:
    known = ", ".join(sorted(ranged)) or "none"
    for name in sorted(names - ranged):
        raise FormulaError(
            f"the index {name} is undefined",
            where=where,
            expected=f"an axis of the left side or of a sum: {known}",
            hint=f"a sum over {name}",
        )


def _check_constraints(domain: Domain, ranged: set[str], where: str) -> None:
    for constraint in domain.constraints:
        _check_ranged(constraint.value.names(), ranged, where)
        for r in domain.ranges:
            if isinstance(r.hi, Size) and r.axis in constraint.value.names():
                raise _unbound(f"a condition on {r.axis}", r.hi, where)


def _check_results(piece: Definition, where: str) -> None:
    for number, (body, _) in enumerate(piece.bodies()):
        limit = min(number, len(piece.reduces))
        for found in body.atoms(Result, Reduced):
            if isinstance(found, Reduced):
                raise FormulaError(f"{found} stands inside a body", where=where)
            assert isinstance(found, Result)
            if found.reduce >= limit or found.item >= len(
                piece.reduces[found.reduce].reduction.project
            ):
                raise FormulaError(f"there is no reduction result {found}", where=where)


# ---------------------------------------------------------------------------------------------
# Reads


def _check_reads(piece: Definition, where: str) -> Iterator[Reach]:
    for number, (body, domain) in enumerate(piece.bodies()):
        reduced = number < len(piece.reduces)
        if any(r.extent == 0 for r in domain.ranges):
            continue
        for access in accesses_of(body):
            yield from _check_access(access, domain, reduced, f"{where}: {access.text()}")


def _check_access(access: Access, domain: Domain, reduced: bool, where: str) -> Iterator[Reach]:
    for dim, (index, extent) in enumerate(zip(access.index, access.tensor.shape, strict=True)):
        boundary = access.boundary[dim]
        if _is_symbolic(index, extent, domain, where):
            continue
        assert isinstance(extent, int)
        low, high = index.bounds(_bounds(domain, index))
        if max(-low, high) > LARGEST:
            raise ShapeError(
                f"index {index} is beyond 64 bits",
                where=where,
                expected="between -2**62 and 2**62",
                got=f"{low}..{high}",
            )
        if not (0 <= low and high < extent) and _refused(boundary, low, high, extent, reduced):
            tight = _tight_bounds(index, domain)
            if tight is None:
                continue
            low, high = tight
            if not (0 <= low and high < extent):
                boundary.check(low, high, extent, where)
                if isinstance(boundary, Omit) and not reduced:
                    raise FormulaError(
                        "an omitted element is read outside of any reduction",
                        where=where,
                        expected=f"indices in 0..{extent - 1}",
                        got=f"{low}..{high}",
                        hint="another boundary",
                    )
        yield Reach(access.text(), dim, low, high, extent, str(boundary))


def _refused(boundary: Boundary, low: int, high: int, extent: int, reduced: bool) -> bool:
    try:
        boundary.check(low, high, extent, "")
    except ShapeError:
        return True
    return isinstance(boundary, Omit) and not reduced


def _is_symbolic(index: Affine, extent: int | Size, domain: Domain, where: str) -> bool:
    """True for a dimension of symbolic extent under the plain axis that runs over it."""
    single = index.single
    if isinstance(extent, Size):
        if single is not None and (domain[single].lo, domain[single].hi) == (0, extent):
            return True
        raise ShapeError(
            f"a dimension of symbolic extent {extent} is indexed by {index}",
            where=where,
            expected=f"a plain axis that runs over {extent}",
            hint=f"program.bind({extent}=8)",
        )
    for name in sorted(index.names()):
        hi = domain[name].hi
        if isinstance(hi, Size):
            raise _unbound(f"index {index} of extent {extent}", hi, where)
    return False


def _unbound(what: str, size: Size, where: str) -> ShapeError:
    return ShapeError(
        f"{what} depends on the size {size}, which is not bound",
        where=where,
        hint=f"program.bind({size}=8)",
    )


def _bounds(domain: Domain, index: Affine) -> dict[str, tuple[int, int]]:
    out: dict[str, tuple[int, int]] = {}
    for name in index.names():
        r = domain[name]
        assert isinstance(r.hi, int)
        out[name] = (r.lo, r.hi)
    return out


def _tight_bounds(index: Affine, domain: Domain) -> tuple[int, int] | None:
    """(smallest, largest) index over the points that the constraints leave; None without points.
    By single-axis reasoning, then by listing the tied axes where they have at most LIMIT points;
    otherwise the enclosure stands."""
    sets = tuple((r.axis, range(r.lo, r.hi)) for r in domain.ranges if isinstance(r.hi, int))
    budget = Budget()
    simple = simplify(Write(((0, index),), sets, domain.constraints), budget)
    if simple is None:
        return None
    index = simple.index[0][1]
    values = dict(simple.sets)
    enclosure = index.bounds({n: (v[0], v[-1] + 1) for n, v in simple.sets})
    names = sorted(index.names().union(*(c.value.names() for c in simple.constraints)))
    count = 1
    for name in names:
        count *= len(values[name])
    if count > LIMIT:
        return enclosure
    found: list[int] = []
    for combination in itertools.product(*(values[n] for n in names)):
        point = dict(zip(names, combination, strict=True))
        if all(c.holds(point) for c in simple.constraints):
            found.append(index.evaluate(point))
    return (min(found), max(found)) if found else None


# ---------------------------------------------------------------------------------------------
# Writes


def _prove_tensor(program: Program, stage: Stage, tensor: Tensor) -> Cover:
    where = _within(program, tensor.name)
    writes: list[Write] = []
    for piece in stage.pieces:
        for out in piece.outs:
            if out.tensor.name == tensor.name:
                write = _write(out, piece.domain, tensor, where)
                if write is not None:
                    writes.append(write)
    box = {d: e for d, e in enumerate(tensor.shape) if isinstance(e, int)}
    budget = Budget()
    try:
        finding = prove_cover(writes, box, budget)
    except TooLarge:
        raise FormulaError(
            "the pieces cannot be proved to write each element once",
            where=where,
            expected=f"index axes that are separate, or a proof of at most {LIMIT} steps",
            hint="pieces whose conditions mention one axis each",
        ) from None
    if finding is not None:
        raise _refusal(finding, tensor, where)
    shape = f"[{', '.join(map(str, tensor.shape))}]"
    method = "slices" if budget.slices else "product"
    return Cover(tensor.name, shape, len(writes), method, budget.slices)


def _write(out: Access, domain: Domain, tensor: Tensor, where: str) -> Write | None:
    """The write of a piece without its symbolic dimensions; None when a range is empty."""
    if out.tensor.shape != tensor.shape:
        raise ShapeError(
            f"{out} has another shape", where=where, expected=str(tensor), got=str(out.tensor)
        )
    symbolic: list[str] = []
    index: list[tuple[int, Affine]] = []
    for dim, (value, extent) in enumerate(zip(out.index, tensor.shape, strict=True)):
        if _is_symbolic(value, extent, domain, f"{where}: {out}"):
            symbolic.append(str(value))
        else:
            index.append((dim, value))
    if len(set(symbolic)) != len(symbolic):
        raise FormulaError(
            f"{out} writes only where two symbolic indices are equal", where=where, hint="bind them"
        )
    sets: list[tuple[str, range]] = []
    for r in domain.ranges:
        if r.axis in symbolic:
            continue
        if isinstance(r.hi, Size):
            raise _unbound(f"{out}, written again for each {r.axis},", r.hi, where)
        if r.hi <= r.lo:
            return None
        sets.append((r.axis, range(r.lo, r.hi)))
    return Write(tuple(index), tuple(sets), domain.constraints)


def _refusal(finding: Finding, tensor: Tensor, where: str) -> FormulaError:
    known = dict(finding.element)
    element = ", ".join(str(known.get(d, ":")) for d in range(tensor.rank))
    shape: Sequence[object] = tensor.shape
    words = {
        "twice": ("is written twice", "pieces that are disjoint"),
        "never": ("is never written", "pieces that cover every element"),
        "outside": ("is written, which is outside", f"indices inside {list(shape)}"),
    }
    text, expected = words[finding.kind]
    return FormulaError(f"{tensor.name}[{element}] {text}", where=where, expected=expected)
