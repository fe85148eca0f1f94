"""Mean and variance in one pass over a large tensor.

    chunk_moments   deviations from an element of a short chunk give the chunk's mean and squares,
                    and these the whole's

Where M[c] is the mean of X and V[c] that of (X - M)**2, M must be there before V begins, so X is
read twice. With X cut into chunks of b elements, x0 the first of a chunk, A the mean of a chunk and
D the sum of its squared deviations from A,

    A = x0 + sum(x - x0) / b           D = sum((x - x0)**2) - sum(x - x0)**2 / b
    M = sum(A) * b / m                 V = sum(D + b * (A - M)**2) / m

read X once. What cancels in D is bounded for any data: x0 is one of the b elements, so D is at
least a b-th of the sum that it is taken from, and its relative error about b roundings at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sympy import Integer, Rational

from convgen.affine import Affine
from convgen.symbolic.domain import Domain, Range
from convgen.symbolic.expr import Access, Definition, Reduce, Result, Stage, Tensor
from convgen.symbolic.program import Program, require_program
from convgen.symbolic.reductions import SUM
from convgen.symbolic.rewrite.across_stages import Applied, check, mean_of, single_definition

LARGE = 1 << 18  # elements of a tensor that is worth reading once only
LONGEST = 64  # elements of a chunk: the roundings that may add up in one
FACT = "moments of a whole are those of its chunks, about any element of each"


def one_pass(program: Program, large: int = LARGE) -> Program:
    """The program with `chunk_moments` applied to tensors of at least `large` elements; the same
    object where it does not apply.

    >>> from convgen.symbolic.parse import parse
    >>> layer = parse('''program moments
    ... tensor X: f32[8, 4, 3]
    ... M[c] = sum(n, w: X[n, w, c]) / 32
    ... V[c] = sum(n, w: (X[n, w, c] - M[c])**2) / 32
    ... ''')
    >>> for line in str(one_pass(layer, large=1)).splitlines()[2:]: print(line)
    M_part[n, c] = sum(w: X[n, w, c] - X[n, 0, c]) / 4 + X[n, 0, c]
    V_part[n, c] = sum(w: (X[n, w, c] - X[n, 0, c])**2) - sum(w: X[n, w, c] - X[n, 0, c])**2 / 4
    M[c] = sum(n: M_part[n, c]) / 8
    V[c] = sum(n: 4 * (M_part[n, c] - M[c])**2 + V_part[n, c]) / 32
    """
    found = one_pass_step(program, large)
    return program if found is None else found.program


def one_pass_step(program: Program, large: int = LARGE) -> Applied | None:
    """The rewrite, checked: InternalError where it changes what is computed; None where it does
    not apply."""
    require_program(program, "what is to be rewritten")
    stages = list(program.stages)
    taken = {t.name for t in (*program.inputs, *program.constants())}
    taken |= {t.name for s in stages for t in s.tensors}
    for stage in program.stages:
        pair = _pair(stage, stages, large)
        if pair is None:
            continue
        second, inner = pair
        new = _chunked(stage, second, inner, taken)
        place = stages.index(stage)
        stages.remove(second)
        stages[place : place + 1] = new
    if len(stages) == len(program.stages):
        return None
    changed = replace(program, stages=tuple(stages))
    check(program, changed, "chunk_moments")
    return Applied("chunk_moments", FACT, changed)


def _pair(stage: Stage, stages: Sequence[Stage], large: int) -> tuple[Stage, list[str]] | None:
    """(the stage that computes the variance about this stage's mean, the axes of a chunk)."""
    mean = mean_of(stage)
    if mean is None or not all(isinstance(e, int) for e in mean.source.tensor.shape):
        return None
    inner = _chunk(mean.source, mean.over, large)
    if not inner:
        return None
    for other in stages:
        piece = single_definition(other)
        if piece is None or len(piece.reduces) != 1 or other is stage:
            continue
        (reduce,) = piece.reduces
        own = single_definition(stage)
        assert own is not None
        deviation: Any = mean.source - mean.mean  # type: ignore[operator]
        count = math.prod(int(r.extent) for r in reduce.domain.ranges)  # type: ignore[arg-type]
        same = reduce.domain == own.reduces[0].domain and piece.domain == own.domain
        if same and reduce.reduction == SUM and reduce.body == deviation**2:
            if piece.values[0] == Result(0) / Integer(count):  # type: ignore[operator]
                return other, inner
    return None


def _chunk(source: Access, over: Sequence[bool], large: int) -> list[str]:
    """The summed axis before the last dimensions that are not summed, where it is short and others
    are left; else none."""
    shape = [int(e) for e in source.tensor.shape]  # type: ignore[arg-type]
    places = [d for d, summed in enumerate(over) if summed]
    if math.prod(shape) < large or over[-1] or len(places) < 2:
        return []
    last = places[-1]
    return [str(source.index[last].single)] if 1 < shape[last] <= LONGEST else []


def _chunked(mean: Stage, variance: Stage, inner: Sequence[str], taken: set[str]) -> list[Stage]:
    """The stages of the chunks, then mean and variance of them."""
    own, other = single_definition(mean), single_definition(variance)
    assert own is not None and other is not None
    source = own.reduces[0].body
    assert isinstance(source, Access)
    ranges = {r.axis: r for r in (*own.domain.ranges, *own.reduces[0].domain.ranges)}
    names = [n for i in source.index if (n := str(i.single)) not in inner]
    near = Domain(tuple(ranges[n] for n in inner))
    far = Domain(tuple(r for r in own.reduces[0].domain.ranges if r.axis not in inner))
    b = Integer(math.prod(int(r.extent) for r in near.ranges))  # type: ignore[arg-type]
    m = b * Integer(math.prod(int(r.extent) for r in far.ranges))  # type: ignore[arg-type]
    first: Any = Access(
        source.tensor, [Affine() if str(i.single) in inner else i for i in source.index]
    )
    plain: Any = Reduce(near, SUM, source - first)
    squares: Any = Reduce(near, SUM, (source - first) ** 2)
    kind = mean.tensors[0].dtype
    part, spread = (
        _part(stage.tensors[0].name, [ranges[n] for n in names], kind, taken)
        for stage in (mean, variance)
    )
    a, d = (Access(t, [Affine.of(n) for n in names]) for t in (part, spread))
    domain = Domain(tuple(ranges[n] for n in names))
    one, two, about = Result(0), Result(1), own.outs[0]
    centre: Any = Access(about.tensor.plain(), about.index)
    whole: Any = d + b * (a - centre) ** 2  # type: ignore[operator]
    pieces = (
        Definition((a,), domain, (plain,), (first + one / b,)),  # type: ignore[operator]
        Definition((d,), domain, (squares, plain), (one - two**2 / b,)),  # type: ignore[operator]
        Definition(own.outs, own.domain, (Reduce(far, SUM, a),), (one * Rational(b, m),)),
        Definition(other.outs, other.domain, (Reduce(far, SUM, whole),), (one / m,)),  # type: ignore[operator]
    )
    tensors = ((part,), (spread,), mean.tensors, variance.tensors)
    return [Stage(t, (p,)) for t, p in zip(tensors, pieces, strict=True)]


def _part(name: str, ranges: Sequence[Range], dtype: Any, taken: set[str]) -> Tensor:
    found = f"{name}_part"
    while found in taken:
        found += "'"
    taken.add(found)
    return Tensor(found, tuple(r.hi for r in ranges), dtype, "temporary")
