"""Mistakes in the gradient itself: an index of it, or a factor of its products."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import sympy
from sympy import Expr

from convgen.symbolic.expr import Access, Definition, Result
from convgen.symbolic.letters import usual_taps
from convgen.symbolic.mistakes.indices import index_mistakes
from convgen.symbolic.mistakes.mistake import Mistake, with_pieces
from convgen.symbolic.printer.order import Order
from convgen.symbolic.printer.text import Writer
from convgen.symbolic.program import Program

MOST = 40  # ways to leave factors out that are tried


def gradient_mistakes(gradient: Program, indices: bool = True) -> Iterator[Mistake]:
    """Mistakes whose `program` is the wrong gradient. indices: also wrong ones, where taps are not
    what is written (the stride of dW reads as a dilation there).

    >>> from convgen.symbolic.parse import parse
    >>> gradient = parse("dg[c] = sum(n: dY[n, c] * (X[n, c] - m[c])) / s[c]",
    ...                  dY=(4, 3), X=(4, 3), m=3, s=3)
    >>> for mistake in sorted(map(str, gradient_mistakes(gradient)))[:3]:
    ...     print(mistake)
    the factor 1 / s[c] is missing
    the factor X[n, c] - m[c] is missing
    the factor dY[n, c] is missing
    """
    if indices and not _is_of_weights(gradient):
        yield from index_mistakes(gradient)
    places = list(_factors(gradient))
    chosen = (c for count in (1, 2) for c in itertools.combinations(places, count))
    for left_out in itertools.islice(chosen, MOST):
        words = " and ".join(text for _, text in left_out)
        text = f"the factor{'s' if len(left_out) > 1 else ''} {words} {_be(len(left_out))} missing"
        yield Mistake("factor missing", text, _without(gradient, [f for f, _ in left_out]))


def _is_of_weights(program: Program) -> bool:
    """True where taps are what is written: dW[k, c, r, s]."""
    for piece in (p for stage in program.stages for p in stage.pieces):
        inner = {n for r in piece.reduces for n in r.domain.names}
        for index in (i for a in piece.reads() for i in a.index):
            taps = usual_taps(index.names())
            if taps - inner and (index.names() - taps) & inner:
                return True
    return False


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _factors(program: Program) -> Iterator[tuple[Expr, str]]:
    """The factors of products that read something, and their text."""
    seen: dict[Expr, str] = {}
    for stage in program.stages:
        for piece in stage.pieces:
            writer = Writer(Order(program, piece), piece)
            for body, _ in piece.bodies():
                for product in sympy.preorder_traversal(body):
                    reading = [f for f in product.args if f.has(Access, Result)]
                    if not isinstance(product, sympy.Mul) or len(reading) < 2:
                        continue
                    for factor in reading:
                        if not factor.has(Result):
                            seen.setdefault(factor, writer.body(factor))  # type: ignore[arg-type]
    return iter(seen.items())


def _without(program: Program, factors: list[Expr]) -> Program:
    gone = set(factors)

    def body(value: Expr) -> Any:
        products = {
            m: sympy.Mul(*(f for f in m.args if f not in gone))
            for m in sympy.preorder_traversal(value)
            if isinstance(m, sympy.Mul) and gone & set(m.args)
        }
        return value.xreplace(products)

    def piece(p: Definition) -> Definition:
        reduces = tuple(replace(r, body=body(r.body)) for r in p.reduces)
        return Definition(p.outs, p.domain, reduces, tuple(body(v) for v in p.values))

    return with_pieces(program, piece)
