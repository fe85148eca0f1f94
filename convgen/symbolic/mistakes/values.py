"""Mistakes in values: factors, powers, derivatives of functions, ties, statistics, terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import sympy
from sympy import Expr, Integer

from convgen.affine import Affine
from convgen.symbolic.expr import Access, Definition, Reduce, Result, Stage, Tensor, substitute
from convgen.symbolic.functions import (
    abs_,
    equal,
    less_equal,
    maximum,
    minimum,
    relu,
    round_down,
    select,
    sigmoid,
    sign,
    step,
    stop_gradient,
)
from convgen.symbolic.mistakes.mistake import Mistake, Place, change_accesses, with_pieces
from convgen.symbolic.program import Program
from convgen.symbolic.reductions import SUM

_KINKS = (abs_, maximum, minimum, relu, round_down, select, sign, step)
_EXTREMA = {"max": 0, "min": 0, "argmax": 1, "argmin": 1}


def value_mistakes(program: Program) -> Iterator[Mistake]:
    """Mistakes in values."""
    yield from _statistics(program)
    yield from _ties(program)
    for name, text, change in _FUNCTIONS:
        yield from _changed(program, name, text, change)
    yield from _factors(program)
    yield from _terms(program)


def has_kinks(program: Program) -> bool:
    """True when equal or zero elements may matter: extrema, choices, absolute values.

    >>> from convgen.symbolic.parse import parse
    >>> [has_kinks(parse(f"Y[i] = {body}", X=(3,))) for body in ("X[i]**2", "relu(X[i])")]
    [False, True]
    """
    bodies = [b for s in program.stages for p in s.pieces for b, _ in p.bodies()]
    reduces = [r for s in program.stages for p in s.pieces for r in p.reduces]
    smooth = all(r.reduction.name in ("sum", "prod", "logsumexp") for r in reduces)
    return not smooth or any(b.has(*_KINKS) for b in bodies)


def _bodies(program: Program, change: Callable[[Expr], Any]) -> Program | None:
    """The program with every body changed; None when nothing is."""
    touched = False

    def body(value: Expr) -> Any:
        nonlocal touched
        new = change(value)
        touched = touched or new != value
        return new

    def piece(p: Definition) -> Definition:
        reduces = tuple(replace(r, body=body(r.body)) for r in p.reduces)
        return Definition(p.outs, p.domain, reduces, tuple(body(v) for v in p.values))

    changed = with_pieces(program, piece)
    return changed if touched else None


def _changed(
    program: Program, name: str, text: str, change: Callable[[Expr], Any]
) -> Iterator[Mistake]:
    found = _bodies(program, change)
    if found is not None:
        yield Mistake(name, text, found)


# ---------------------------------------------------------------------------------------------
# Statistics


def _statistics(program: Program) -> Iterator[Mistake]:
    """Stages between input and output taken as constants."""
    outputs = {t.name for t in program.outputs}
    inner = [t.name for s in program.stages for t in s.tensors if t.name not in outputs]
    choices = [inner] if inner else []
    choices += [[name] for name in inner] if len(inner) > 1 else []
    for names in choices:
        chosen = set(names)

        def change(body: Expr, chosen: set[str] = chosen) -> Any:
            held = {a: stop_gradient(a) for a in body.atoms(Access) if a.tensor.name in chosen}
            return body.xreplace(held)

        text = f"the gradient through {', '.join(names)} is missing"
        yield from _changed(program, "statistics as constants", text, change)


# ---------------------------------------------------------------------------------------------
# Ties


def _ties(program: Program) -> Iterator[Mistake]:
    for name, text, share in (
        (
            "ties counted twice",
            "ties counted twice: each of several equal elements gets all",
            False,
        ),
        ("ties split", "ties are split evenly, where the first of equal elements gets all", True),
    ):
        found = _all_ties(program, share)
        if found is not None:
            yield Mistake(name, text, found)
    found = _last_tie(program)
    if found is not None:
        text = "ties: the last of several equal elements gets all, not the first"
        yield Mistake("last tie wins", text, found)


def _extremum(piece: Definition) -> Reduce | None:
    """The reduction of a definition that is one extremum and nothing else."""
    if len(piece.reduces) != 1 or len(piece.outs) != 1:
        return None
    reduce = piece.reduces[0]
    item = _EXTREMA.get(reduce.reduction.name)
    return reduce if item is not None and piece.values[0].has(Result(0, item)) else None


def _all_ties(program: Program, share: bool) -> Program | None:
    """Extrema as sums over the elements that equal them, which are found first and held."""
    stages: list[Stage] = []
    touched = False
    for stage in program.stages:
        found = [_extremum(p) for p in stage.pieces]
        if len(stage.tensors) != 1 or not all(found):
            stages.append(stage)
            continue
        touched = True
        tensor = stage.tensors[0]
        best = Tensor(tensor.name + "_best", tensor.shape, tensor.dtype, "temporary")
        first: list[Definition] = []
        second: list[Definition] = []
        for piece, reduce in zip(stage.pieces, found, strict=True):
            assert reduce is not None
            where = Access(best, piece.outs[0].index)
            item = _EXTREMA[reduce.reduction.name]
            first.append(Definition((where,), piece.domain, piece.reduces, (Result(0, item),)))
            held = stop_gradient(where)
            chosen = select(equal(stop_gradient(reduce.body), held), reduce.body, Integer(0))
            count = select(equal(stop_gradient(reduce.body), held), Integer(1), Integer(0))
            sums = [Reduce(reduce.domain, SUM, chosen)]
            total: Any = Result(0)
            if share:
                sums.append(Reduce(reduce.domain, SUM, count + 0 * reduce.body))
                total = Result(0) / Result(1)
            value: Any = piece.values[0].xreplace({Result(0, item): total})
            second.append(Definition(piece.outs, piece.domain, tuple(sums), (value,)))
        stages += [Stage((best,), tuple(first)), Stage(stage.tensors, tuple(second))]
    return replace(program, stages=tuple(stages), origin=None) if touched else None


def _last_tie(program: Program) -> Program | None:
    """Extrema with every range of the sum run through backwards."""
    touched = False

    def piece(p: Definition) -> Definition:
        nonlocal touched
        reduce = _extremum(p)
        if reduce is None or reduce.domain.constraints:
            return p
        touched = True
        inner = Place.of(p, reduce).inner
        turned = {n: Affine((), lo + hi - 1) - Affine.of(n) for n, (lo, hi) in inner.items()}
        return replace(p, reduces=(replace(reduce, body=substitute(reduce.body, turned)),))

    changed = with_pieces(program, piece)
    return changed if touched else None


# ---------------------------------------------------------------------------------------------
# Functions


def _replaced(kind: Any, make: Callable[..., Any]) -> Callable[[Expr], Any]:
    def change(body: Expr) -> Any:
        found = {f: make(*f.args) for f in body.atoms(kind)}
        return body.xreplace(found)

    return change


def _missing_power(body: Expr) -> Any:
    """b**e as b**e / e: the derivative without its factor e."""
    found = {
        p: p / p.args[1]
        for p in body.atoms(sympy.Pow)
        if p.args[1].is_number and p.args[1] not in (-1, 1)
    }
    return body.xreplace(found)


_FUNCTIONS: list[tuple[str, str, Callable[[Expr], Any]]] = [
    (
        "mask at zero",
        "the mask of relu lets 0 through: its derivative at 0 is 0 (x > 0, not x >= 0)",
        _replaced(relu, lambda x: select(less_equal(0, x), x, 0)),
    ),
    ("mask missing", "the mask of relu is missing", _replaced(relu, lambda x: x)),
    (
        "kink",
        "the derivative of |x| at 0 is 0, as torch has it, not 1",
        _replaced(abs_, lambda x: select(less_equal(0, x), x, -x)),
    ),
    ("derivative missing", "the derivative of |x| is missing", _replaced(abs_, lambda x: x)),
    (
        "tie of maximum",
        "a tie of max(a, b) gives each one half, not all to the first",
        _replaced(maximum, lambda a, b: select(less_equal(b, a), a, b)),
    ),
    (
        "derivative of the input",
        "1 - y**2 is the derivative of tanh for its result y, not for its argument",
        _replaced(sympy.tanh, lambda x: x - x**3 / 3),
    ),
    (
        "derivative of the input",
        "y * (1 - y) is the derivative of sigmoid for its result y, not for its argument",
        _replaced(sigmoid, lambda x: x**2 / 2 - x**3 / 3),
    ),
    ("derivative missing", "the derivative of tanh is missing", _replaced(sympy.tanh, lambda x: x)),
    ("derivative missing", "the derivative of sigmoid is missing", _replaced(sigmoid, lambda x: x)),
    (
        "power's factor missing",
        "the factor of the power rule is missing (x**2 gives 2*x)",
        _missing_power,
    ),
]


# ---------------------------------------------------------------------------------------------
# Factors and terms


def _factors(program: Program) -> Iterator[Mistake]:
    """Rational factors left out, one kind at a time."""
    found: dict[Any, None] = {}
    for stage in program.stages:
        for piece in stage.pieces:
            for body, _ in piece.bodies():
                for product in sympy.preorder_traversal(body):
                    if isinstance(product, sympy.Mul) and product.args[0].is_Rational:
                        if product.args[0] != -1:
                            found.setdefault(product.args[0])
    for factor in found:

        def change(body: Expr, factor: Any = factor) -> Any:
            products = {
                m: sympy.Mul(*m.args[1:])
                for m in sympy.preorder_traversal(body)
                if isinstance(m, sympy.Mul) and m.args[0] == factor
            }
            return body.xreplace(products)

        yield from _changed(program, "factor missing", f"the factor {factor} is missing", change)


def _terms(program: Program) -> Iterator[Mistake]:
    """Every read of a tensor that is read in several ways, taken as a constant in turn."""
    reads: dict[str, dict[Access, None]] = {}

    def look(access: Access, place: Place) -> None:
        reads.setdefault(access.tensor.name, {}).setdefault(access)

    change_accesses(program, look)
    inputs = {t.name for t in program.inputs}
    for name, accesses in reads.items():
        if name not in inputs or len(accesses) < 2:
            continue
        for held in accesses:

            def change(body: Expr, held: Access = held) -> Any:
                return body.xreplace({held: stop_gradient(held)}) if body.has(held) else body

            text = f"the contribution through {held} is missing"
            yield from _changed(program, "contribution missing", text, change)
