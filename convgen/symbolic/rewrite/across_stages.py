"""Gradients in closed form: rewrites across stages, by name.

    drop_deviations   where M[c] is the mean of X, the sum of X - M over the same elements is zero
    share_sums        a sum that an output computes already is read from there
    inline_pointwise  a temporary without sums is written out where it is read
    gather_factors    what all terms of a sum have in common stands before it once

Together they give batch normalization's gradient as it is printed everywhere:
dX = gamma / (m * sqrt(var + eps)) * (m * dY - dbeta - (X - mean) / sqrt(var + eps) * dgamma).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
from sympy import Add, Dummy, Expr, Integer, Rational

from convgen.affine import Affine
from convgen.errors import InternalError
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.expr import (
    Access,
    Axis,
    Definition,
    Range,
    Reduce,
    Result,
    Size,
    Stage,
    accesses_of,
    substitute,
)
from convgen.symbolic.program import Program, require_program
from convgen.symbolic.reductions import SUM

MOST_WORK = 60_000  # elements times terms up to which a rewrite is checked by evaluation


@dataclass(frozen=True)
class Applied:
    """A rewrite that changed something: its name, the fact it used, the program it gave."""

    name: str
    fact: str
    program: Program


def closed_form(program: Program) -> Program:
    """The program with its gradients in closed form; the same object where nothing applies.

    >>> from convgen.symbolic import derive
    >>> from convgen.symbolic.parse import parse
    >>> layer = parse('''program centered
    ... tensor X: f32[8, 3]
    ... M[c] = sum(n: X[n, c]) / 8
    ... V[c] = sum(n: (X[n, c] - M[c])**2) / 8
    ... ''')
    >>> print(closed_form(derive.grad(layer)))
    program centered_grad
    tensor X: f32[8, 3]
    tensor dV: f32[3]
    M[c] = sum(n: X[n, c]) / 8
    dX[n, c] = dV[c] * (X[n, c] - M[c]) / 4
    """
    steps = closed_form_steps(program)
    return steps[-1].program if steps else program


def closed_form_steps(program: Program) -> list[Applied]:
    """The rewrites in the order in which they apply, each checked: InternalError where one changes
    what is computed."""
    require_program(program, "what is to be rewritten")
    found: list[Applied] = []
    rules: list[tuple[str, str, Callable[[Program], Program]]] = [
        ("drop_deviations", "deviations from a mean add up to zero", drop_deviations),
        ("share_sums", "an output computes that sum", share_sums),
        ("inline_pointwise", "a temporary is what it is defined as", inline_pointwise),
        ("gather_factors", "a*b + a*c = a*(b + c)", gather_factors),
    ]
    if not any(mean_of(s) for s in program.stages):
        return found
    for name, fact, rewrite in rules:
        changed = rewrite(program)
        if changed is not program:
            check(program, changed, name)
            found.append(Applied(name, fact, changed))
            program = changed
    return found


def check(before: Program, after: Program, name: str, seed: int = 0) -> None:
    """Both programs on the same random numbers, outputs to 1e-9; nothing for large programs."""
    sizes = dict.fromkeys(before.sizes(), 3)
    before, after = before.bind(**sizes), after.bind(**sizes)
    if _work(before) > MOST_WORK:
        return
    rng = random.Random(seed)
    values = {t.name: [rng.uniform(0.2, 2) for _ in range(t.elements)] for t in before.inputs}
    old, new = (evaluate(p, values, exact=False) for p in (before, after))
    for t in before.outputs:
        pairs = zip(old[t.name].data, new[t.name].data, strict=True)
        if any(abs(a - b) > 1e-9 * (1 + abs(a)) for a, b in pairs):
            raise InternalError(f"{name} changed {t.name}", stage="rewrite", dump=str(after))


def _work(program: Program) -> int:
    total = 0
    for stage in program.stages:
        for piece in stage.pieces:
            points = _count(piece.domain.ranges)
            inner = [_count(r.domain.ranges) for r in piece.reduces]
            total += int(points * max(1, sum(inner)))  # type: ignore[arg-type]
    return total


def _count(ranges: Sequence[Range]) -> Expr:
    total: Any = Integer(1)
    for r in ranges:
        total = total * (r.extent if isinstance(r.extent, Size) else Integer(r.extent))
    return total


def single_definition(stage: Stage) -> Definition | None:
    """The only definition of a stage that writes one tensor at plain axes."""
    if len(stage.tensors) != 1 or len(stage.pieces) != 1 or stage.backward is not None:
        return None
    (piece,) = stage.pieces
    names = [i.single for i in piece.outs[0].index]
    whole = all(n is not None for n in names) and len(set(names)) == len(names)
    return piece if whole and not piece.domain.constraints else None


def _replaced(program: Program, stages: Sequence[Stage]) -> Program:
    """The program with other stages; what no output depends on is dropped."""
    needed = {t.name for t in program.outputs} | set(program.saved)
    needed |= {new for _, new in program.updates}
    kept: list[Stage] = []
    for stage in reversed(stages):
        if any(t.name in needed for t in stage.tensors):
            kept.append(stage)
            needed |= {a.tensor.name for p in stage.pieces for a in p.reads()}
    return replace(program, stages=tuple(kept[::-1]))


# ---------------------------------------------------------------------------------------------
# drop_deviations


@dataclass(frozen=True)
class _Mean:
    """tensor[...] averaged over the dimensions `over` (None elsewhere: the position in M)."""

    mean: Access
    source: Access
    over: tuple[bool, ...]


def mean_of(stage: Stage) -> _Mean | None:
    piece = single_definition(stage)
    if piece is None or len(piece.reduces) != 1:
        return None
    (reduce,) = piece.reduces
    source = reduce.body
    if reduce.reduction != SUM or reduce.domain.constraints or not isinstance(source, Access):
        return None
    names = [i.single for i in source.index]
    if None in names or len(set(names)) != len(names):
        return None
    if set(names) != set(piece.domain.names) | set(reduce.domain.names):
        return None
    weight: Any = piece.values[0].coeff(Result(0))
    if piece.values[0] != weight * Result(0) or weight * _count(reduce.domain.ranges) != 1:
        return None
    if not _runs_over_all(source, reduce):
        return None
    return _Mean(piece.outs[0], source, tuple(n in reduce.domain for n in names))


def _runs_over_all(access: Access, reduce: Reduce) -> bool:
    """True where the axes of a sum run over whole dimensions of the access's tensor."""
    extents = {i.single: e for i, e in zip(access.index, access.tensor.shape, strict=True)}
    return all(r.lo == 0 and extents.get(r.axis) == r.hi for r in reduce.domain.ranges)


def drop_deviations(program: Program) -> Program:
    """Terms of sums that cancel because M is the mean of what is summed."""
    means = [m for s in program.stages if (m := mean_of(s)) is not None]
    stages: list[Stage] = []
    for stage in program.stages:
        pieces = tuple(_without_deviations(p, means) for p in stage.pieces)
        same = all(a is b for a, b in zip(pieces, stage.pieces, strict=True))
        stages.append(stage if same else replace(stage, pieces=pieces))
    if all(a is b for a, b in zip(stages, program.stages, strict=True)):
        return program
    return _replaced(program, stages)


def _without_deviations(piece: Definition, means: Sequence[_Mean]) -> Definition:
    gone: dict[Expr, Expr] = {}
    reduces = list(piece.reduces)
    for j, reduce in enumerate(piece.reduces):
        for mean in means:
            left = _left_terms(reduce, mean)
            if left is None:
                continue
            if left == 0:
                gone[Result(j)] = Integer(0)
            else:
                reduces[j] = replace(reduce, body=left)
            break
    if not gone and tuple(reduces) == piece.reduces:
        return piece
    values: tuple[Any, ...] = tuple(v.xreplace(gone) for v in piece.values)
    return replace(piece, reduces=tuple(reduces), values=values)


def _left_terms(reduce: Reduce, mean: _Mean) -> Expr | None:
    """What a sum still has to add when the deviations from the mean are left out; None where it
    holds none."""
    if reduce.reduction != SUM or reduce.domain.constraints:
        return None
    own = set(reduce.domain.names)
    total, left = [], []
    count = _count(reduce.domain.ranges)
    for term in Add.make_args(reduce.body.expand()):
        sources = [
            a
            for a in term.atoms(Access)
            if isinstance(a, Access) and _is_source(a, mean, own) and _runs_over_all(a, reduce)
        ]
        rest: Any = term / sources[0] if len(sources) == 1 else term
        if _mentions(rest, own):
            left.append(term)
        elif sources:
            total.append(rest * count * _mean_at(sources[0], mean))
        else:
            total.append(term * count)
    if not total or not any(t.has(Access) for t in total) or Add(*total).expand() != 0:
        return None
    return Add(*left)


def _mentions(body: Any, names: set[str]) -> bool:
    found = {a.name for a in body.atoms(Axis)}
    for access in accesses_of(body):
        found |= access.names()
    return bool(found & names)


def _is_source(access: Access, mean: _Mean, own: set[str]) -> bool:
    """An access of the averaged tensor that runs over exactly the averaged dimensions."""
    if access.tensor.name != mean.source.tensor.name:
        return False
    names = [i.single for i in access.index]
    inner = {n for n, o in zip(names, mean.over, strict=True) if o}
    outer = {n for n, o in zip(names, mean.over, strict=True) if not o}
    return None not in names and inner == own and not outer & own


def _mean_at(access: Access, mean: _Mean) -> Access:
    """The mean that belongs to an access of the averaged tensor."""
    place = {
        s.single: i
        for s, i, o in zip(mean.source.index, access.index, mean.over, strict=True)
        if not o
    }
    return Access(mean.mean.tensor.plain(), [place[i.single] for i in mean.mean.index])


# ---------------------------------------------------------------------------------------------
# share_sums


def share_sums(program: Program) -> Program:
    """A sum of another stage that an output computes (times a factor without sums) is read from
    that output; stages are put into an order in which that can be."""
    outputs = {t.name for t in program.outputs}
    known: list[tuple[Stage, Definition, Expr]] = []
    for stage in program.stages:
        piece = single_definition(stage)
        if piece is None or stage.tensors[0].name not in outputs or len(piece.reduces) != 1:
            continue
        quotient: Any = piece.values[0] * Result(0) ** -1  # type: ignore[operator]
        factor: Any = quotient
        plain = not factor.has(Result) and not factor.is_zero
        if plain and all(f.is_Number or _positive(f) for f in sympy.Mul.make_args(factor)):
            known.append((stage, piece, factor))
    stages: list[Stage] = []
    for stage in program.stages:
        piece = single_definition(stage)
        others = [k for k in known if k[0] is not stage]
        new = _shared(piece, others) if piece is not None else None
        stages.append(stage if new is None else replace(stage, pieces=(new,)))
    ordered = _ordered(program, stages)
    if ordered is None or all(a is b for a, b in zip(stages, program.stages, strict=True)):
        return program
    return _replaced(program, ordered)


def _positive(factor: Any) -> bool:
    """A power that is no number's zero wherever it is defined: 1 / sqrt(...)."""
    return isinstance(factor, sympy.Pow) and bool(factor.args[1].is_negative)


def _shared(
    piece: Definition, known: Sequence[tuple[Stage, Definition, Expr]]
) -> Definition | None:
    changed: dict[Expr, Expr] = {}
    for j, reduce in enumerate(piece.reduces):
        for _, other, factor in known:
            names = _same_sum(reduce, other.reduces[0], piece, other)
            if names is None:
                continue
            index = [names[str(i.single)] for i in other.outs[0].index]
            read: Any = Access(other.outs[0].tensor.plain(), [Affine.of(n) for n in index])
            scale = substitute(factor, {a: Affine.of(b) for a, b in names.items()})
            changed[Result(j)] = read / scale
            break
    if not changed:
        return None
    values: tuple[Any, ...] = tuple(v.xreplace(changed) for v in piece.values)
    return replace(piece, values=values)


def _same_sum(
    mine: Reduce, theirs: Reduce, piece: Definition, other: Definition
) -> dict[str, str] | None:
    """Axis names of the other's left side -> ours, where both sum the same; None elsewhere."""
    if mine.reduction != theirs.reduction or mine.domain != theirs.domain:
        return None
    outer = [r for r in piece.domain.ranges if _mentions(mine.body, {r.axis})]
    if [(r.lo, r.hi) for r in outer] != [(r.lo, r.hi) for r in other.domain.ranges]:
        return None
    names = {b.axis: a.axis for a, b in zip(outer, other.domain.ranges, strict=True)}
    moved = substitute(theirs.body, {b: Affine.of(a) for b, a in names.items()})
    return names if moved == mine.body else None


def _ordered(program: Program, stages: Sequence[Stage]) -> list[Stage] | None:
    """The stages with each after what it reads; None where they go round in a circle."""
    waiting = list(stages)
    ready = {t.name for t in (*program.inputs, *program.constants())}
    found: list[Stage] = []
    while waiting:
        for stage in waiting:
            reads = {a.tensor.name for p in stage.pieces for a in p.reads()}
            if reads <= ready:
                break
        else:
            return None
        waiting.remove(stage)
        ready |= {t.name for t in stage.tensors}
        found.append(stage)
    return found


# ---------------------------------------------------------------------------------------------
# inline_pointwise, gather_factors


def inline_pointwise(program: Program) -> Program:
    """Temporaries without sums, written out where they are read."""
    fixed = {t.name for t in program.outputs} | set(program.saved)
    fixed |= {new for _, new in program.updates}
    bodies: dict[str, tuple[Access, Expr]] = {}
    stages: list[Stage] = []
    for stage in program.stages:
        pieces = tuple(_inlined(p, bodies) for p in stage.pieces)
        same = all(a is b for a, b in zip(pieces, stage.pieces, strict=True))
        stage = stage if same else replace(stage, pieces=pieces)
        stages.append(stage)
        piece = single_definition(stage)
        if piece is not None and not piece.reduces and stage.tensors[0].name not in fixed:
            bodies[stage.tensors[0].name] = (piece.outs[0], piece.values[0])
    if all(a is b for a, b in zip(stages, program.stages, strict=True)):
        return program
    return _replaced(program, stages)


def _inlined(piece: Definition, bodies: Mapping[str, tuple[Access, Expr]]) -> Definition:
    def written_out(body: Expr) -> Any:
        changed: dict[Expr, Expr] = {}
        for access in body.atoms(Access):
            assert isinstance(access, Access)
            known = bodies.get(access.tensor.name)
            if known is not None and all(i.single is not None for i in access.index):
                out, value = known
                pairs = zip(out.index, access.index, strict=True)
                changed[access] = substitute(value, {str(o.single): i for o, i in pairs})
        return body.xreplace(changed) if changed else body

    values = tuple(written_out(v) for v in piece.values)
    reduces = tuple(replace(r, body=written_out(r.body)) for r in piece.reduces)
    if values == piece.values and reduces == piece.reduces:
        return piece
    return replace(piece, values=values, reduces=reduces)


def gather_factors(program: Program) -> Program:
    """Sums without reductions as products: common factors, powers of one base counted together."""
    stages: list[Stage] = []
    for stage in program.stages:
        piece = single_definition(stage)
        if piece is None or piece.reduces or not isinstance(piece.values[0], (Add, sympy.Mul)):
            stages.append(stage)
            continue
        value = _gathered(piece.values[0])
        same = value == piece.values[0]
        new = stage if same else replace(stage, pieces=(replace(piece, values=(value,)),))
        stages.append(new)
    if all(a is b for a, b in zip(stages, program.stages, strict=True)):
        return program
    return _replaced(program, stages)


def _gathered(value: Expr) -> Any:
    """gcd of the terms first; x**(1/2) and x as powers of one letter meanwhile."""
    roots: set[Any] = set()
    for power in value.atoms(sympy.Pow):
        base, exponent = power.args
        if exponent.is_Rational and exponent.q == 2:  # type: ignore[union-attr]
            roots.add(base)
    letters: dict[Any, Any] = {Dummy("s", positive=True): base for base in roots}
    body: Any = value
    for letter, base in letters.items():
        powers = {
            p: letter ** (-2 * p.args[1])  # type: ignore[operator]
            for p in body.atoms(sympy.Pow)
            if p.args[0] == base
        }
        body = body.xreplace(powers)
    if not isinstance(body, Add):
        return sympy.factor_terms(value)
    body = sympy.gcd_terms(body)
    back = {letter: base ** Rational(-1, 2) for letter, base in letters.items()}
    return body.xreplace(back)
