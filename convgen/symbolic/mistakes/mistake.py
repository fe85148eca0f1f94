"""A mistake, and how programs are changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sympy import Expr

from convgen.affine import Affine
from convgen.symbolic.expr import Access, Definition, Reduce, Stage, fixed
from convgen.symbolic.letters import usual_taps
from convgen.symbolic.program import Program
from convgen.symbolic.resize import block_numbers


@dataclass(frozen=True)
class Mistake:
    """name: of the kind, the same for all programs; text: what is wrong, in this program's letters;
    program: the forward formula whose gradient has the mistake."""

    name: str
    text: str
    program: Program

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Place:
    """Where an access is read: (lo, hi) of the definition's axes and of the sum's; those of the
    definition's that number blocks, such as groups."""

    outer: Mapping[str, tuple[int, int]]
    inner: Mapping[str, tuple[int, int]]
    blocks: frozenset[str] = frozenset()

    @staticmethod
    def of(piece: Definition, reduce: Reduce | None, blocks: frozenset[str] = frozenset()) -> Place:
        def ranges(domain: Any) -> dict[str, tuple[int, int]]:
            return {r.axis: (r.lo, fixed(r.hi)) for r in domain.ranges}

        inner = ranges(reduce.domain) if reduce is not None else {}
        return Place(ranges(piece.domain), inner, blocks)


Change = Callable[[Access, Place], "Access | None"]


def change_accesses(program: Program, change: Change) -> tuple[Program, str] | None:
    """(the program with every read access changed, "new instead of old"); None when nothing is."""
    words: dict[str, None] = {}

    def body(value: Expr, place: Place) -> Any:
        found: dict[Any, Any] = {}
        for access in sorted(value.atoms(Access), key=str):
            assert isinstance(access, Access)
            new = change(access, place)
            if new is not None and new != access:
                found[access] = new
                words.setdefault(
                    f"{access_text(new, place)} instead of {access_text(access, place)}"
                )
        return value.xreplace(found) if found else value

    blocks = frozenset(axis for _, axis in block_numbers(program))

    def piece(p: Definition) -> Definition:
        own = Place.of(p, None, blocks)
        reduces = tuple(replace(r, body=body(r.body, Place.of(p, r, blocks))) for r in p.reduces)
        return Definition(p.outs, p.domain, reduces, tuple(body(v, own) for v in p.values))

    changed = with_pieces(program, piece)
    if not words:
        return None
    shown = sorted(words)
    more = f" (and {len(shown) - 1} more)" if len(shown) > 1 else ""
    return changed, shown[0] + more


def access_text(access: Access, place: Place) -> str:
    """An access with the axes of the definition first, as the text form writes it."""
    names = (*place.outer, *place.inner)
    index = ", ".join(
        _index_text(i, {n: j + len(names) * (n in taps) for j, n in enumerate(names)})
        for i in access.index
        for taps in [usual_taps(i.names())]
    )
    return f"{access.tensor.name}{access.boundary_text}[{index}]"


def _index_text(index: Affine, order: Mapping[str, int]) -> str:
    """2 - r rather than -r + 2."""
    text = index.text(order)
    if text.startswith("-") and index.constant > 0:
        return f"{index.constant} - {(index - index.constant).text(order)[1:]}"
    return text


def with_pieces(program: Program, change: Callable[[Definition], Definition]) -> Program:
    """The program with every definition changed."""
    stages = tuple(
        Stage(stage.tensors, tuple(change(p) for p in stage.pieces), stage.backward)
        for stage in program.stages
    )
    return replace(program, stages=stages, origin=None)


def with_dim(access: Access, dim: int, index: Affine) -> Access:
    """The access with one index changed."""
    found = tuple(index if d == dim else i for d, i in enumerate(access.index))
    return Access(access.tensor, found, access.boundary)
