"""The linear-operator view: a layer as a matrix with symbolic entries, and its adjoint as A^T.

A program that is linear in a tensor is a matrix over that tensor's elements: banded (Toeplitz) for
a convolution in one dimension, doubly block for two, and the matrix of unrolled windows (im2col)
where the tensor is the weights. Elements are computed one by one from the definition, so this is
for small cases; it shares nothing with the derivation it is compared with.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
from sympy import Add, Expr, Integer, Rational

from convgen.affine import Affine
from convgen.errors import DerivationError, ShapeError
from convgen.symbolic import derive
from convgen.symbolic.boundary import Omit
from convgen.symbolic.derive.scalar import derivative
from convgen.symbolic.expr import Access, Definition, Domain, Result, Tensor, substitute
from convgen.symbolic.expr import fixed as bound
from convgen.symbolic.program import Program

MOST_TERMS = 40_000  # products that are worked out one by one

# What a reduction makes of its terms.
TOTALS: dict[str, Callable[..., Any]] = {
    "sum": Add,
    "prod": sympy.Mul,
    "max": sympy.Max,
    "min": sympy.Min,
    "logsumexp": lambda *terms: sympy.log(Add(*map(sympy.exp, terms))),
}

Index = tuple[int, ...]


@dataclass(frozen=True)
class Matrix:
    """rows: the output's elements; columns: those of the tensor, both row-major; entries by (row,
    column), zeros left out; rest: what each row adds that does not read the tensor."""

    output: Tensor
    wrt: Tensor
    entries: Mapping[tuple[int, int], Expr]
    rest: tuple[Expr, ...]

    @property
    def rows(self) -> list[Access]:
        return _accesses(self.output)

    @property
    def columns(self) -> list[Access]:
        return _accesses(self.wrt)

    def entry(self, row: int, column: int) -> Expr:
        """The entry, 0 where there is none."""
        return self.entries.get((row, column), Integer(0))

    def transposed_times(self, vector: Sequence[Expr]) -> list[Expr]:
        """A^T v, expanded."""
        sums: list[list[Any]] = [[] for _ in range(self.wrt.elements)]
        for (i, j), entry in sorted(self.entries.items()):
            sums[j].append(entry * vector[i])
        return [Add(*terms).expand() for terms in sums]

    def numbers(self, values: Mapping[str, Any]) -> list[list[Any]]:
        """The matrix with nested lists of numbers in the place of the other tensors."""
        out: list[list[Any]] = [[0] * self.wrt.elements for _ in range(self.output.elements)]
        for (i, j), entry in self.entries.items():
            at: dict[Any, Any] = {}
            for access in entry.atoms(Access):
                assert isinstance(access, Access)
                value: Any = values[access.tensor.name]
                for k in access.index:
                    value = value[k.constant]
                at[access] = sympy.sympify(value)
            number: Any = entry.xreplace(at)
            if not number.is_number or number.atoms(sympy.Function):
                raise DerivationError(f"entry [{i}, {j}] is no number", got=str(number))
            out[i][j] = int(number) if number.is_Integer else number
        return out

    def __str__(self) -> str:
        cells = [["." for _ in self.columns] for _ in self.rows]
        for (i, j), entry in self.entries.items():
            cells[i][j] = str(entry)
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            " ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells
        )


@dataclass(frozen=True)
class Proof:
    """A^T v from the matrix beside the derived adjoint, element by element, v symbolic."""

    matrix: Matrix
    adjoint: Program
    product: tuple[Expr, ...]
    derived: tuple[Expr, ...]

    @property
    def holds(self) -> bool:
        """True when all elements are the same polynomials."""
        pairs = zip(self.product, self.derived, strict=True)
        return all((a - b).expand() == 0 for a, b in pairs)  # type: ignore[operator]


def _accesses(tensor: Tensor) -> list[Access]:
    spans = [range(bound(e, tensor.name)) for e in tensor.shape]
    return [Access(tensor, [Affine.of(i) for i in at]) for at in itertools.product(*spans)]


def matrix(program: Program, wrt: str) -> Matrix:
    """The matrix of the only output in terms of the elements of `wrt`.

    Raises DerivationError where the output is not linear in that tensor, ShapeError where the
    program is too large to be worked out element by element.

    >>> from convgen.symbolic.parse import parse
    >>> layer = parse("Y[y] = sum(r: X[y + r - 1] * W[r]) for y < 4", X=4, W=3)
    >>> print(matrix(layer, "X"))
    W[1] W[2]    .    .
    W[0] W[1] W[2]    .
       . W[0] W[1] W[2]
       .    . W[0] W[1]
    >>> print(matrix(layer, "W"))
       . X[0] X[1]
    X[0] X[1] X[2]
    X[1] X[2] X[3]
    X[2] X[3]    .
    """
    tensor = program.tensor(wrt).with_role("input")
    output = program.output
    values = elements(program)[output.name]
    columns = {a: j for j, a in enumerate(_accesses(tensor))}
    entries: dict[tuple[int, int], Expr] = {}
    rest: list[Expr] = []
    for i, value in enumerate(values):
        others: list[Any] = []
        found: dict[int, list[Any]] = {}
        for term in Add.make_args(value.expand()):
            own = [a for a in term.atoms(Access) if a in columns]
            if not own:
                others.append(term)
                continue
            factor = derivative(term, own[0])
            if len(own) > 1 or factor.has(*own):
                raise DerivationError(
                    f"{output.name} is not linear in {wrt}",
                    expected="a sum in which every product has one factor of it",
                    got=str(term),
                )
            found.setdefault(columns[own[0]], []).append(factor)
        for j, factors in found.items():
            total = Add(*factors)
            if total != 0:
                entries[i, j] = total
        rest.append(Add(*others))
    return Matrix(output, tensor, entries, tuple(rest))


def prove_adjoint(program: Program, wrt: str) -> Proof:
    """The matrix's transpose applied to a symbolic cotangent beside the derived adjoint."""
    found = matrix(program, wrt)
    adjoint = derive.adjoint(program, wrt)
    cotangent = adjoint.tensor("d" + found.output.name)
    vector = _accesses(cotangent.with_role("input"))
    derived = elements(adjoint)[adjoint.output.name]
    return Proof(
        found,
        adjoint,
        tuple(found.transposed_times(vector)),
        tuple(e.expand() for e in derived),  # type: ignore[misc]
    )


# ---------------------------------------------------------------------------------------------
# Elements as expressions


def elements(program: Program) -> dict[str, list[Expr]]:
    """Every written tensor's elements, row-major, as expressions of the inputs' elements."""
    known: dict[str, dict[Index, Expr]] = {}
    work = 0
    for stage in program.stages:
        for t in stage.tensors:
            known[t.name] = {}
        for piece in stage.pieces:
            work += _work(piece)
            if work > MOST_TERMS:
                raise ShapeError(
                    f"program {program.name} is too large to be worked out by elements",
                    expected=f"at most {MOST_TERMS} products",
                    hint="small_case(program)",
                )
            for point in piece.domain.points():
                results = _results(piece, point, known)
                for out, value in zip(piece.outs, piece.values, strict=True):
                    at = tuple(i.evaluate(point) for i in out.index)
                    plain: Any = substitute(value, point).xreplace(results)
                    known[out.tensor.name][at] = _resolve(plain, known)
    found: dict[str, list[Expr]] = {}
    for stage in program.stages:
        for t in stage.tensors:
            spans = [range(bound(e, t.name)) for e in t.shape]
            found[t.name] = [known[t.name][at] for at in itertools.product(*spans)]
    return found


def _work(piece: Definition) -> int:
    def points(domain: Domain) -> int:
        total = 1
        for r in domain.ranges:
            total *= bound(r.extent, r.axis)
        return total

    return points(piece.domain) * max(1, sum(points(r.domain) for r in piece.reduces))


def _results(
    piece: Definition, point: Mapping[str, int], known: Mapping[str, Mapping[Index, Expr]]
) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for j, reduce in enumerate(piece.reduces):
        total = TOTALS.get(reduce.reduction.name)
        if total is None:
            raise DerivationError(
                f"{reduce.reduction.name} cannot be worked out by elements",
                expected="one of " + ", ".join(TOTALS),
            )
        terms: list[Any] = []
        for inner in reduce.domain.points(point):
            body = substitute(reduce.body, inner)
            if not _left_out(body):
                terms.append(_resolve(body, known))
        found[Result(j)] = total(*terms)
    return found


def _left_out(body: Expr) -> bool:
    """True where a read outside leaves the term out."""
    for access in body.atoms(Access):
        assert isinstance(access, Access)
        for i, kind, extent in zip(access.index, access.boundary, access.tensor.shape, strict=True):
            if isinstance(kind, Omit) and not 0 <= i.constant < bound(extent):
                return True
    return False


def _resolve(body: Any, known: Mapping[str, Mapping[Index, Expr]]) -> Any:
    """The body with every access read: constants and stages by value, inputs as their elements."""
    return body.xreplace({a: _read(a, known) for a in body.atoms(Access)})


def _read(access: Access, known: Mapping[str, Mapping[Index, Expr]]) -> Any:
    tensor = access.tensor
    at: list[int] = []
    for i, kind, extent in zip(access.index, access.boundary, tensor.shape, strict=True):
        inside = kind.fold(i.constant, bound(extent, tensor.name))
        if inside is None:
            return Integer(0) if kind.value is None else _resolve(kind.value, known)
        at.append(inside)
    if tensor.name in known:
        return known[tensor.name][tuple(at)]
    if tensor.values is not None:
        flat = 0
        for i, extent in zip(at, tensor.shape, strict=True):
            flat = flat * bound(extent) + i
        value = tensor.values[flat]
        return Rational(value.numerator, value.denominator)
    return Access(tensor.with_role("input"), [Affine.of(i) for i in at])


# ---------------------------------------------------------------------------------------------
# Small cases


def small_case(program: Program, positions: int = 3, taps: int = 3) -> Program | None:
    """The same formula at small extents: axes that stand alone run over one value, positions over
    `positions`, summed ones over `taps`, groups over two; None where it is no single piece.

    Strides, dilations, paddings and groups stay, so the matrix keeps its structure.
    """
    program = program.bind(**dict.fromkeys(program.sizes(), 1))
    if len(program.stages) != 1 or len(program.stages[0].pieces) != 1:
        return None
    (piece,) = program.stages[0].pieces
    if piece.domain.constraints or any(r.domain.constraints for r in piece.reduces):
        return None
    reads = piece.reads()
    indices = [i for a in (*piece.outs, *reads) for i in a.index]
    if not all(i.is_plain for i in indices) or piece.domain.bounds() == {}:
        return None
    shared = {n for i in indices if len(i.terms) > 1 for n in i.names()}
    own = set(piece.domain.names)
    blocks, inside = _blocks(piece)
    if len(shared & own - blocks - inside) > 2:  # volumes grow fast
        positions = min(positions, 2)

    def limit(axis: str) -> int:
        if axis in blocks:
            return 2
        if axis not in shared or axis in inside:
            return 1
        return positions if axis in own else taps

    def cut(domain: Domain) -> Domain:
        ranges = tuple(replace(r, hi=min(bound(r.hi), r.lo + limit(r.axis))) for r in domain.ranges)
        return Domain(ranges)

    small = replace(
        piece,
        domain=cut(piece.domain),
        reduces=tuple(replace(r, domain=cut(r.domain)) for r in piece.reduces),
    )
    return _resized(program, piece, small)


def _blocks(piece: Definition) -> tuple[set[str], set[str]]:
    """(axes that number blocks of an output's dimension, axes within such blocks): g and k, c of
    ``Y[n, g*K + k, ...]`` and ``X[n, g*C + c, ...]``."""
    blocks: set[str] = set()
    members: set[str] = set()
    for out in piece.outs:
        for index in out.index:
            if len(index.terms) > 1:
                ranked = sorted(index.terms, key=lambda t: t[1])
                blocks |= {str(ranked[-1][0])}
                members |= {str(a) for a, _ in ranked[:-1]}
    for access in piece.reads():
        for index in access.index:
            if index.names() & blocks:
                members |= index.names() - blocks
    return blocks, members


def _rescaled(
    index: Affine, before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]
) -> Affine:
    """An index made of digits (each coefficient the number of values of the digits below) with the
    coefficients that its digits' new extents ask for; any other index as it is."""
    terms = sorted(((str(a), c) for a, c in index.terms), key=lambda t: t[1])
    wanted = expected = 1
    found: list[tuple[str, int]] = []
    for axis, coefficient in terms:
        if coefficient != expected or before[axis][0] != 0:
            return index
        found.append((axis, wanted))
        expected *= before[axis][1]
        wanted *= after[axis][1]
    return index if index.constant else Affine.build(found)


def _resized(program: Program, piece: Definition, small: Definition) -> Program:
    """The program of the small definition: every dimension loses what its indices lost."""
    before, after = _ranges(piece), _ranges(small)

    def new(index: Affine) -> Affine:
        return _rescaled(index, before, after) if len(index.terms) > 1 else index

    shapes: dict[str, list[int]] = {}
    for access in (*piece.outs, *piece.reads()):
        shape = [bound(e) for e in access.tensor.shape]
        for dim, index in enumerate(access.index):
            lost = index.bounds(before)[1] - new(index).bounds(after)[1]
            shape[dim] = max(1, shape[dim] - lost)
        known = shapes.get(access.tensor.name)
        shapes[access.tensor.name] = (
            shape if known is None else [max(a, b) for a, b in zip(known, shape, strict=True)]
        )

    def tensor(t: Tensor) -> Tensor:
        if t.role == "constant":
            return t
        shape = shapes.get(t.name)
        return replace(t, shape=tuple(shape) if shape else t.shape, source=None)

    def resized(a: Access) -> Access:
        return Access(tensor(a.tensor), [new(i) for i in a.index], a.boundary)

    def body(e: Expr) -> Any:
        return e.xreplace({a: resized(a) for a in e.atoms(Access) if isinstance(a, Access)})

    definition = Definition(
        tuple(resized(o) for o in small.outs),
        small.domain,
        tuple(replace(r, body=body(r.body)) for r in small.reduces),
        tuple(body(v) for v in small.values),
    )
    stage = replace(
        program.stages[0],
        tensors=tuple(tensor(t) for t in program.stages[0].tensors),
        pieces=(definition,),
    )
    return replace(
        program,
        inputs=tuple(tensor(t) for t in program.inputs),
        outputs=tuple(tensor(t) for t in program.outputs),
        stages=(stage,),
        saved=(),
        updates=(),
    )


def _ranges(piece: Definition) -> dict[str, tuple[int, int]]:
    found = piece.domain.bounds()
    for r in piece.reduces:
        found |= r.domain.bounds()
    return found
