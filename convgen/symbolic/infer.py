"""Extents of axes from the shapes of what a formula reads and writes.

Given extents come first. An axis used bare as an index takes the extent of that dimension; two
such uses must agree. Then come the indices of a left side whose shape is declared. The rest is
solved from compound indices of zero-boundary accesses: an axis
that is the only unknown of ``2*y + r`` runs as far as the access stays inside for all values of the
others, and it must start at 0. Axes of compound indices that leave the tensor (padding) are
ambiguous and have to be given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sympy import Expr

from convgen.affine import Affine
from convgen.errors import ShapeError
from convgen.symbolic.boundary import ZERO, Boundary
from convgen.symbolic.expr import Access, Extent, Range, Size, accesses_of

# An axis of the definition is (-1, name); an axis of reduce number j is (j, name).
Key = tuple[int, str]
Span = tuple[int, Extent]


@dataclass(frozen=True)
class Use:
    """One dimension of an access: `index` (over the names of `keys`) into `extent` elements."""

    text: str
    tensor: str
    dimension: int
    index: Affine
    extent: Extent
    boundary: Boundary
    written: bool = False

    @property
    def marked(self) -> bool:
        return self.boundary != ZERO

    @property
    def where(self) -> str:
        return f"dimension {self.dimension} of {self.text}"


@dataclass(frozen=True)
class Question:
    """What is to be inferred: the uses, the axes, and the ranges that were given."""

    uses: tuple[Use, ...]
    axes: tuple[Key, ...]
    given: Mapping[Key, Span]


@dataclass(frozen=True)
class Answer:
    """`spans` of the axes that could be inferred, `problems` of the others."""

    spans: dict[Key, Span]
    problems: dict[Key, ShapeError]


def flat_name(key: Key) -> str:
    """One name for an axis of any scope."""
    return key[1] if key[0] < 0 else f"{key[1]}@{key[0]}"


def uses_of(body: Expr, scope: int, own: Sequence[str]) -> list[Use]:
    """The uses in a body; `own` are the axes that belong to reduce number `scope`."""
    rename = {name: Affine.of(flat_name((scope, name))) for name in own}
    found: list[Use] = []
    for access in accesses_of(body):
        found += access_uses(access, rename)
    return found


def access_uses(
    access: Access, rename: Mapping[str, Affine] | None = None, written: bool = False
) -> list[Use]:
    """The dimensions of one access; `written`: it is a left side of known shape."""
    tensor = access.tensor
    return [
        Use(
            access.text(), tensor.name, d, index.substitute(rename or {}), extent, boundary, written
        )
        for d, (index, extent, boundary) in enumerate(
            zip(access.index, tensor.shape, access.boundary, strict=True)
        )
    ]


def infer(question: Question) -> dict[Key, Span]:
    """All spans; raises the first problem in the order of the axes."""
    answer = solve(question)
    for key in question.axes:
        if key in answer.problems:
            raise answer.problems[key]
    check_sizes(question, answer.spans)
    return answer.spans


def solve(question: Question) -> Answer:
    """Infer what can be inferred, collect the problems of what cannot."""
    answer = Answer(dict(question.given), {})
    _take_all_bare(question, answer, False)
    while _solve_round(question, answer, tuple(u for u in question.uses if u.written)):
        pass
    _take_all_bare(question, answer, True)
    while _solve_round(question, answer, question.uses):
        pass
    for key in question.axes:
        if key not in answer.spans and key not in answer.problems:
            answer.problems[key] = _ambiguous(key, question)
    return answer


def _take_all_bare(question: Question, answer: Answer, marked: bool) -> None:
    for key in question.axes:
        if key not in answer.spans and key not in answer.problems:
            _take_bare(key, question, answer, marked)


def _take_bare(key: Key, question: Question, answer: Answer, marked: bool) -> None:
    """The axis takes the extent of the dimensions it indexes bare."""
    name = flat_name(key)
    uses = [u for u in question.uses if u.index.single == name and u.marked == marked]
    if not uses:
        return
    other = next((u for u in uses if u.extent != uses[0].extent), None)
    if other is not None:
        answer.problems[key] = ShapeError(
            f"axis {key[1]} has two extents",
            got=f"{uses[0].extent} from {uses[0].where} and {other.extent} from {other.where}",
            expected="one extent",
            hint=f"shapes that agree, or extents={{{key[1]}: ...}}",
        )
        return
    answer.spans[key] = (0, uses[0].extent)


def _solve_round(question: Question, answer: Answer, uses: tuple[Use, ...]) -> bool:
    """Solve every axis whose compound uses have no other unknown; if there is none, one axis that
    has at least one such use. True when something was found."""
    unknown = {
        flat_name(k): k for k in question.axes if k not in answer.spans and k not in answer.problems
    }
    ready: dict[Key, list[tuple[Use, int, int]]] = {}
    waiting: set[Key] = set()
    for use in uses:
        names = [n for n in use.index.names() if n in unknown]
        if use.marked or isinstance(use.extent, Size) or not names:
            continue
        if len(names) > 1:
            waiting.update(unknown[n] for n in names)
            continue
        limits = _limits(use, names[0], answer.spans)
        if limits is not None:
            ready.setdefault(unknown[names[0]], []).append((use, *limits))
    complete = [k for k in question.axes if k in ready and k not in waiting]
    chosen = complete or [k for k in question.axes if k in ready][:1]
    for key in chosen:
        _take_compound(key, ready[key], answer)
    return bool(chosen)


def _limits(use: Use, name: str, spans: Mapping[Key, Span]) -> tuple[int, int] | None:
    """The largest lo..hi (exclusive) of the axis for which the use stays inside; None: no limit."""
    factor = use.index.coefficient(name)
    rest = use.index.without(name)
    known = {flat_name(k): v for k, v in spans.items()}
    ranges: dict[str, tuple[int, int]] = {}
    if factor == 0 or name in rest.names():
        return None
    for other in rest.names():
        lo, hi = known.get(other, (0, 0))
        if isinstance(hi, Size) or hi <= lo:
            return None
        ranges[other] = (lo, hi)
    low, high = rest.bounds(ranges)
    assert isinstance(use.extent, int)
    # factor * axis + low >= 0 and factor * axis + high <= extent - 1
    if factor > 0:
        return -(low // factor), (use.extent - 1 - high) // factor + 1
    return -((use.extent - 1 - high) // -factor), low // -factor + 1


def _take_compound(key: Key, uses: list[tuple[Use, int, int]], answer: Answer) -> None:
    lo = max(u[1] for u in uses)
    tightest, _, hi = min(uses, key=lambda u: u[2])
    if lo > 0:
        beyond = next(u for u, start, _ in uses if start == lo)
        answer.problems[key] = ShapeError(
            f"the extent of axis {key[1]} is ambiguous: {beyond.where} reaches before its start",
            expected="a given extent where a formula reads padding",
            hint=f"extents={{{key[1]}: ...}}, or `for {key[1]} < ...` in text",
        )
    elif hi <= 0:
        answer.problems[key] = ShapeError(
            f"axis {key[1]} is empty: {tightest.where} never fits",
            expected=f"an index within extent {tightest.extent}",
            got=_plain_text(tightest.index),
            hint="a smaller kernel, or padding with a given extent",
        )
    else:
        answer.spans[key] = (0, hi)


def _plain_text(index: Affine) -> str:
    return str(index.map_names(lambda n: n.split("@")[0]))


def _ambiguous(key: Key, question: Question) -> ShapeError:
    name = flat_name(key)
    uses = [u for u in question.uses if name in u.index.names()]
    for use in uses:
        if isinstance(use.extent, Size) and use.index.single is None:
            return _not_plain(use, use.extent)
    seen = [u.where for u in uses]
    how = "no access uses it"
    if seen:
        how = f"{seen[0]} does not bound it" + (" (nor do others)" if len(seen) > 1 else "")
    given = f"{key[1]} < ... in its sum" if key[0] >= 0 else f"`for {key[1]} < ...`"
    return ShapeError(
        f"the extent of axis {key[1]} is ambiguous: {how}",
        hint=f"extents={{{key[1]}: ...}}, or {given} in text",
    )


def _not_plain(use: Use, extent: Size) -> ShapeError:
    return ShapeError(
        f"{use.where} has the symbolic extent {extent}",
        expected=f"a plain axis that runs over 0..{extent}",
        got=_plain_text(use.index),
        hint=f"a fixed extent instead of {extent}",
    )


def check_sizes(question: Question, spans: Mapping[Key, Span]) -> None:
    """A dimension of symbolic extent is indexed by a plain axis that runs over it, nothing else."""
    names = {flat_name(k): v for k, v in spans.items()}
    for use in question.uses:
        if isinstance(use.extent, Size):
            single = use.index.single
            if single is None or names.get(single) != (0, use.extent):
                raise _not_plain(use, use.extent)


def check_reach(question: Question, spans: Mapping[Key, Span]) -> None:
    """Folding boundaries (reflect, circular, replicate) must not be reached beyond their rule."""
    names = {flat_name(k): v for k, v in spans.items()}
    for use in question.uses:
        if not use.boundary.folds or isinstance(use.extent, Size):
            continue
        ranges: dict[str, tuple[int, int]] = {}
        for name in use.index.names():
            lo, hi = names[name]
            if not isinstance(hi, Size) and hi > lo:
                ranges[name] = (lo, hi)
        if len(ranges) == len(use.index.names()):
            low, high = use.index.bounds(ranges)
            use.boundary.check(low, high, use.extent, use.where)


def ranges_of(axes: Sequence[str], scope: int, spans: Mapping[Key, Span]) -> tuple[Range, ...]:
    """The ranges of the axes of one scope, in order."""
    return tuple(Range(name, *spans[scope, name]) for name in axes)
