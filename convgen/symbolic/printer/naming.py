"""Parts of a definition that are written several times get a name, so that they are read once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sympy import Expr, Symbol

from convgen.symbolic.expr import Access, Axis, Definition, Result

if TYPE_CHECKING:
    from convgen.symbolic.program import Program

LETTERS = "zvqpaefg"
LEAST = 12  # a shorter part is quicker read than looked up


class Part(Symbol):
    """A named part of a definition: stands for `body`."""

    letter: str
    number: int
    body: Expr

    def __new__(cls, letter: str, number: int, body: Expr) -> Part:
        self = Symbol.__new__(cls, f"{letter}{number}", real=True)
        self.letter, self.number, self.body = letter, number, body
        return self  # type: ignore[return-value]


def name_parts(program: Program, piece: Definition) -> tuple[Definition, list[Part]]:
    """(the definition with parts in the place of repeated expressions, the parts in the order in
    which they are needed). For reading only: the text form writes everything out.

    >>> from convgen.symbolic.parse import parse
    >>> p = parse("Y[i] = sigmoid(X[i] * V[i] - M[i]) * relu(sigmoid(X[i] * V[i] - M[i]) - B[i])",
    ...           X=4, V=4, M=4, B=4)
    >>> shown, parts = name_parts(p, p.stages[0].pieces[0])
    >>> shown.values[0], parts[0].body
    (z1*relu(-B[i] + z1), sigmoid(-M[i] + V[i]*X[i]))
    """
    bodies = [*piece.values, *(r.body for r in piece.reduces)]
    letter = _letter(program, piece)
    parts: list[Part] = []
    while (repeated := _repeated(bodies)) is not None:
        part = Part(letter, len(parts) + 1, repeated)
        parts.append(part)
        bodies = [_replaced(b, repeated, part) for b in bodies]
        for i, known in enumerate(parts[:-1]):
            body = _replaced(known.body, repeated, part)
            if body != known.body:
                parts[i].body = body
    count = len(piece.values)
    reduces = tuple(replace(r, body=b) for r, b in zip(piece.reduces, bodies[count:], strict=True))
    return replace(piece, values=tuple(bodies[:count]), reduces=reduces), parts


def _letter(program: Program, piece: Definition) -> str:
    taken = set(program.tensors()) | set(piece.domain.names)
    for reduce in piece.reduces:
        taken |= set(reduce.domain.names)
    return next((x for x in LETTERS if x not in taken), "part")


def _replaced(body: Expr, old: Expr, new: Part) -> Any:
    return new if body == old else body.xreplace({old: new})


def _size(body: Any) -> int:
    if isinstance(body, Result):
        return LEAST
    if isinstance(body, Access):
        return 3
    return 1 + sum(_size(a) for a in body.args)


def _repeated(bodies: list[Any]) -> Expr | None:
    """The largest expression that is written at least twice."""
    counts: dict[Expr, int] = {}

    def visit(body: Any) -> None:
        if isinstance(body, (Access, Axis, Part)) or body.is_number:
            return
        if _size(body) >= LEAST:
            counts[body] = counts.get(body, 0) + 1
        for a in body.args:
            visit(a)

    for body in bodies:
        visit(body)
    found = [b for b, n in counts.items() if n > 1]
    return max(found, key=lambda b: (_size(b), str(b)), default=None)
