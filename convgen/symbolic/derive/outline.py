"""The normal form that is differentiated: what a gradient must reuse gets a stage of its own.

After `outline` every definition is one of three kinds:
  linear      values are numbers times sums, plus a pointwise rest; every sum depends on all axes
  atomic      one reduction that is not a sum, and values that are its results
  pointwise   no reductions
so the cotangent of a sum is a number times a cotangent, and nothing is summed inside a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sympy import Expr

from convgen.affine import Affine
from convgen.symbolic.derive.choices import sum_choices
from convgen.symbolic.derive.scalar import affine_in_results, exchange
from convgen.symbolic.expr import (
    Access,
    Definition,
    Domain,
    Reduce,
    Result,
    Size,
    Stage,
    Tensor,
    axes_of,
    body_dtype,
)
from convgen.symbolic.functions import cast
from convgen.types import DType


@dataclass
class Outlined:
    """The stages that stand for one stage, and the names of the tensors that were added."""

    stages: list[Stage]
    added: set[str] = field(default_factory=set)


def is_atomic(piece: Definition) -> bool:
    """One reduction that is not a sum, whose results (or positions cast to integers) are the
    values."""

    def is_result(value: Expr) -> bool:
        if isinstance(value, cast) and value.dtype.is_integer:
            return isinstance(value.args[0], Result)
        return isinstance(value, Result)

    return (
        len(piece.reduces) == 1
        and piece.reduces[0].reduction.name != "sum"
        and all(map(is_result, piece.values))
    )


def outline(stage: Stage, name: Callable[[str], str]) -> Outlined:
    """The stages equivalent to a stage, all of the three kinds; `name` gives a free name."""
    if stage.backward is not None:
        return Outlined([stage])
    stage = sum_choices(stage)
    pieces: list[Definition] = []
    before: list[Stage] = []
    for piece in stage.pieces:
        if not piece.reduces or is_atomic(piece) or _is_linear(piece):
            pieces.append(piece)
            continue
        work = _Piece(piece, name, len(stage.pieces) == 1)
        values = tuple(work.cut(v) for v in piece.values)
        pieces.append(Definition(piece.outs, piece.domain, (), values))
        before += work.stages
    if not before:
        return Outlined([stage])
    added = {t.name for s in before for t in s.tensors}
    return Outlined([*before, Stage(stage.tensors, tuple(pieces))], added)


def _is_linear(piece: Definition) -> bool:
    """Every value is affine in sums that depend on all axes; no result is used twice."""
    seen: set[Result] = set()
    for value in piece.values:
        found = affine_in_results(value)
        if found is None or seen & found.keys():
            return False
        seen |= found.keys()
    return all(_is_full_sum(piece, r) for r in piece.reduces)


def _reduce_axes(piece: Definition, reduce: Reduce) -> set[str]:
    """The axes of the definition on which a reduce depends."""
    used = set(axes_of(reduce.body))
    for c in reduce.domain.constraints:
        used |= c.value.names()
    return used & set(piece.domain.names)


def _is_full_sum(piece: Definition, reduce: Reduce) -> bool:
    used = _reduce_axes(piece, reduce)
    return reduce.reduction.name == "sum" and all(
        r.axis in used or r.extent == 1 for r in piece.domain.ranges
    )


class _Piece:
    """Takes the values of one definition apart."""

    def __init__(self, piece: Definition, name: Callable[[str], str], alone: bool) -> None:
        self.piece, self.name, self.alone = piece, name, alone
        self.stages: list[Stage] = []
        self.known: dict[Expr, Expr] = {}
        self.whole = self._whole_sums()

    def _whole_sums(self) -> set[Expr]:
        """Affine subexpressions that can be kept as one stage: no result is needed elsewhere."""
        found: set[Expr] = set()

        def walk(body: Expr) -> None:
            if not body.atoms(Result):
                return
            if self._is_whole(body):
                found.add(body)
                return
            for arg in body.args:
                if isinstance(arg, Expr):
                    walk(arg)

        for value in self.piece.values:
            walk(value)
        used = [r for body in found for r in body.atoms(Result)]
        return found if len(used) == len(set(used)) else set()

    def _is_whole(self, body: Expr) -> bool:
        results = affine_in_results(body)
        return results is not None and all(
            _is_full_sum(self.piece, self.piece.reduces[r.reduce]) for r in results
        )

    def cut(self, body: Expr) -> Expr:
        """The body with its sums and other reductions replaced by accesses to new tensors."""
        if body in self.known:
            return self.known[body]
        if not body.atoms(Result):
            return body
        if body in self.whole:
            self.known[body] = self._stage(body, tuple(sorted(body.atoms(Result), key=str)))
        elif isinstance(body, Result):
            self._results(body.reduce)
        else:
            args = [self.cut(a) if isinstance(a, Expr) else a for a in body.args]
            self.known[body] = body.func(*args)
        return self.known[body]

    def _results(self, number: int) -> None:
        """All used results of one reduce, as one stage."""
        used: set[Result] = set()
        for value in self.piece.values:
            used |= {r for r in value.atoms(Result) if isinstance(r, Result) and r.reduce == number}
        ordered = sorted(used, key=lambda r: r.item)
        accesses = self._stages(ordered, (self.piece.reduces[number],), ordered)
        self.known.update(zip(ordered, accesses, strict=True))

    def _stage(self, body: Expr, results: tuple[Expr, ...]) -> Expr:
        """A stage for one affine body over the results it uses."""
        numbers = {r: Result(i, r.item) for i, r in enumerate(results) if isinstance(r, Result)}
        reduces = tuple(self.piece.reduces[r.reduce] for r in results if isinstance(r, Result))
        return self._stages([body], reduces, list(numbers), numbers)[0]

    def _stages(
        self,
        bodies: list[Expr] | list[Result],
        reduces: tuple[Reduce, ...],
        results: list[Result],
        numbers: dict[Result, Result] | None = None,
    ) -> list[Access]:
        renumber = numbers or {r: Result(0, r.item) for r in results}
        values = [exchange(b, renumber) for b in bodies]
        used: set[str] = set()
        for r in reduces:
            used |= _reduce_axes(self.piece, r)
        for b in bodies:
            used |= axes_of(b)
        domain = self.piece.domain
        ranges = tuple(r for r in domain.ranges if r.axis in used)
        constraints = tuple(c for c in domain.constraints if c.value.names() <= set(used))
        inner = tuple(
            Reduce(r.domain.where(*constraints), r.reduction, r.body, r.name) for r in reduces
        )
        shape = tuple(r.extent for r in ranges)
        index = tuple(Affine.of(r.axis) - r.lo for r in ranges)
        if self.alone and ranges == domain.ranges and not domain.constraints:
            # As large as the output: the same elements in the same places.
            shape, index = self.piece.outs[0].tensor.shape, self.piece.outs[0].index
        outs: list[Access] = []
        for value in values:
            dtype = self._dtype(value, reduces)
            tensor = Tensor(self._wanted(value, reduces), shape, dtype, "temporary")
            outs.append(Access(tensor, index))
        piece = Definition(tuple(outs), Domain(ranges), inner, tuple(values))
        self.stages.append(Stage(tuple(o.tensor for o in outs), (piece,)))
        return outs

    def _wanted(self, value: Expr, reduces: tuple[Reduce, ...]) -> str:
        base = self.piece.outs[0].tensor.name
        if isinstance(value, Result):
            return self.name(f"{base}_{reduces[0].reduction.name}")
        return self.name(f"{base}_pre")

    def _dtype(self, value: Expr, reduces: tuple[Reduce, ...]) -> DType:
        kinds: dict[Result, DType] = {}
        default = self.piece.outs[0].tensor.dtype
        for result in value.atoms(Result):
            assert isinstance(result, Result)
            reduce = reduces[result.reduce]
            projected = reduce.reduction.project[result.item].free_symbols
            found = body_dtype(reduce.body)
            for i, dtype in enumerate(reduce.reduction.dtypes):
                if dtype is not None and any(s.name == f"a{i}" for s in projected):  # type: ignore[attr-defined]
                    found = dtype
            kinds[result] = found or default
        return body_dtype(value, kinds) or default


def box(domain: Domain) -> tuple[tuple[str, int, int], ...] | None:
    """(axis, lo, hi) of a domain; None when an extent but the first is not bound."""
    found: list[tuple[str, int, int]] = []
    for i, r in enumerate(domain.ranges):
        if isinstance(r.hi, Size):
            if i:
                return None
            found.append((r.axis, r.lo, r.lo + 1))
            continue
        found.append((r.axis, r.lo, r.hi))
    return tuple(found)
