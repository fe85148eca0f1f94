"""The types of a formula, from Axis to Stage (Program: program.py). All are immutable values.

Bodies are sympy expressions whose atoms are numbers, `Axis`, `Size`, `Access` and `Result`.
Indices and domains are integers (`convgen.affine.Affine`), never sympy: sympy sees an access as an
opaque real number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import sympy
from sympy import AtomicExpr, Expr, Integer, Symbol

from convgen.affine import Affine, Constraint, FloorDiv, Mod
from convgen.errors import FormulaError, ShapeError
from convgen.symbolic.boundary import ZERO, Boundary, Constant, boundary_of
from convgen.symbolic.conditions import Compared
from convgen.symbolic.domain import LARGEST as LARGEST
from convgen.symbolic.domain import Axis as Axis
from convgen.symbolic.domain import Domain as Domain
from convgen.symbolic.domain import Extent as Extent
from convgen.symbolic.domain import Range as Range
from convgen.symbolic.domain import Result as Result
from convgen.symbolic.domain import Size as Size
from convgen.symbolic.domain import axes as axes
from convgen.symbolic.domain import check_name, whole_number
from convgen.symbolic.domain import fixed as fixed
from convgen.symbolic.functions import RESULT_DTYPE, cast, quotient, round_down, select, uniform
from convgen.symbolic.letters import usual_taps
from convgen.symbolic.reductions import REDUCTIONS, Reduction
from convgen.symbolic.unindexed import Unindexed
from convgen.types import DType, bool_, dtype_of, f32, i64, promote

if TYPE_CHECKING:
    from convgen.symbolic.program import Program

Role: TypeAlias = Literal["input", "parameter", "state", "output", "temporary", "constant"]
ROLES: tuple[Role, ...] = ("input", "parameter", "state", "output", "temporary", "constant")


# ---------------------------------------------------------------------------------------------
# Tensors and accesses

_serial = itertools.count(1)


@dataclass(frozen=True)
class Tensor(Unindexed):
    """A named array. shape: extents, row-major; values: row-major exact rationals (constants only).

    `source` is the program that computes it (set by define), `serial` the order of creation; both
    are no part of its value.
    """

    name: str
    shape: tuple[Extent, ...]
    dtype: DType = f32
    role: Role = "input"
    values: tuple[Fraction, ...] | None = None
    source: Program | None = field(default=None, compare=False, repr=False)
    serial: int = field(default_factory=lambda: next(_serial), compare=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name, "tensor")
        object.__setattr__(self, "dtype", dtype_of(self.dtype))
        object.__setattr__(self, "shape", tuple(self.shape))
        for extent in self.shape:
            if not isinstance(extent, Size) and (not isinstance(extent, int) or extent < 0):  # pyright: ignore
                raise ShapeError(
                    f"tensor {self.name}: extent {extent!r}", expected="integers >= 0 or a Size"
                )
            if isinstance(extent, int):
                whole_number(extent, f"tensor {self.name}: an extent")
        if (self.values is not None) != (self.role == "constant"):
            raise FormulaError(f"tensor {self.name}: a constant has values, nothing else has")
        if self.values is not None and len(self.values) != self.elements:
            raise ShapeError(
                f"constant {self.name}",
                expected=f"{self.elements} values for shape {list(self.shape)}",
                got=str(len(self.values)),
            )

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> int:
        return math.prod(fixed(extent, self.name) for extent in self.shape)

    def __getitem__(self, index: Any) -> Access:
        """X[i, 2*y + r - 1]: reads an element; reading outside gives 0 (see `pad`)."""
        items = index if isinstance(index, tuple) else (index,)
        return Access(self, tuple(affine_of(i) for i in items), (ZERO,) * self.rank)

    def pad(self, *modes: Boundary | str | int | float | Expr) -> Padded:
        """The tensor with another boundary: one mode for all dimensions or one for each."""
        kinds = tuple(boundary_of(m) for m in modes)
        if len(kinds) == 1:
            kinds = kinds * self.rank
        return Padded(self, kinds)

    def with_role(self, role: Role) -> Tensor:
        """The same tensor in another role, without its source."""
        return replace(
            self, role=role, source=None, values=self.values if role == "constant" else None
        )

    def plain(self) -> Tensor:
        """The same tensor without its source."""
        return self if self.source is None else replace(self, source=None)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(str(e) for e in self.shape)}]"


@dataclass(frozen=True)
class Padded(Unindexed):
    """A tensor with its boundaries, waiting for indices."""

    tensor: Tensor
    boundary: tuple[Boundary, ...]

    name = property(lambda self: self.tensor.name)  # pyright: ignore

    def __getitem__(self, index: Any) -> Access:
        items = index if isinstance(index, tuple) else (index,)
        return Access(self.tensor, tuple(affine_of(i) for i in items), self.boundary)


class Access(Compared, AtomicExpr):
    """tensor[index], with a boundary for each dimension. An opaque real number to sympy."""

    tensor: Tensor
    index: tuple[Affine, ...]
    boundary: tuple[Boundary, ...]
    is_real = True  # type: ignore[assignment]
    is_commutative = True
    _diff_wrt = True  # type: ignore[assignment]

    def __new__(
        cls,
        tensor: Tensor,
        index: Sequence[Affine],
        boundary: Sequence[Boundary] | None = None,
    ) -> Access:
        kinds = tuple(boundary) if boundary is not None else (ZERO,) * tensor.rank
        if len(index) != tensor.rank:
            raise ShapeError(
                f"{tensor.name} has {tensor.rank} dimensions",
                expected=f"{tensor.rank} indices",
                got=f"{len(index)}: [{', '.join(map(str, index))}]",
            )
        if len(kinds) != tensor.rank:
            raise ShapeError(
                f"{tensor.name}: boundaries", expected=f"one, or {tensor.rank}", got=str(len(kinds))
            )
        self = AtomicExpr.__new__(cls)
        self.tensor, self.index, self.boundary = tensor, tuple(index), kinds
        return self

    def _hashable_content(self) -> tuple[Any, ...]:
        serial = self.tensor.serial if self.tensor.source is not None else 0
        values = hash(self.tensor.values) if self.tensor.values is not None else 0
        return (str(self), str(self.tensor), self.tensor.role, serial, values)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (Access, (self.tensor, self.index, self.boundary))

    def __getnewargs__(self) -> tuple[Any, ...]:  # type: ignore[override]
        return (self.tensor, self.index, self.boundary)

    @property
    def boundary_text(self) -> str:
        """ "" for zero, "{reflect}" for one mode everywhere, "{., reflect}" for one a dimension."""
        if all(b == ZERO for b in self.boundary):
            return ""
        words = [
            "." if b == ZERO else str(b.value) if isinstance(b, Constant) else b.name
            for b in self.boundary
        ]
        return "{" + (words[0] if len(set(words)) == 1 else ", ".join(words)) + "}"

    def _sympystr(self, printer: Any) -> str:
        index = ", ".join(str(i) for i in self.index)
        return f"{self.tensor.name}{self.boundary_text}[{index}]"

    def text(self) -> str:
        """For messages: as `str`, positions before taps where the usual names tell them apart."""
        index = ", ".join(
            i.text({n: n in taps for taps in [usual_taps(i.names())] for n in i.names()})
            for i in self.index
        )
        return f"{self.tensor.name}{self.boundary_text}[{index}]"

    def names(self) -> frozenset[str]:
        """The axes of the index and of boundary values."""
        found: frozenset[str] = frozenset()
        for i in self.index:
            found |= i.names()
        for b in self.boundary:
            if b.value is not None:
                found |= axes_of(b.value)
        return found

    def substitute(self, values: Mapping[str, Affine | int]) -> Access:
        """Replace axes in the index and in boundary values."""
        index = tuple(i.substitute(values) for i in self.index)
        kinds = tuple(
            b if b.value is None else Constant(substitute(b.value, values)) for b in self.boundary
        )
        return Access(self.tensor, index, kinds)


class Reduced(Compared, AtomicExpr):
    """What sum_over and its relatives return: a reduction inside a body that define takes apart.

    `axes` in the order written; `where` further constraints; `extents` ranges given with the sum;
    `item` which result.
    """

    reduction: Reduction
    axes: tuple[str, ...]
    body: Expr
    where: tuple[Constraint, ...]
    extents: tuple[Range, ...]
    item: int
    is_real = True  # type: ignore[assignment]
    is_commutative = True

    def __new__(
        cls,
        reduction: Reduction,
        over: Sequence[Axis | str],
        body: Any,
        where: Sequence[Constraint] = (),
        extents: Sequence[Range] = (),
        item: int = 0,
    ) -> Reduced:
        self = AtomicExpr.__new__(cls)
        self.reduction, self.body = reduction, sympy.sympify(body)
        self.axes = tuple(a if isinstance(a, str) else a.name for a in over)
        self.where, self.extents, self.item = tuple(where), tuple(extents), item
        return self

    def _hashable_content(self) -> tuple[Any, ...]:
        own = "" if self.reduction.name in REDUCTIONS else repr(self.reduction)
        return (
            self.reduction.name + own,
            ",".join(self.axes),
            self.body,
            str((self.where, self.extents)),
            self.item,
        )

    def _sympystr(self, printer: Any) -> str:
        return f"{self.reduction.name}({', '.join(self.axes)}: {self.body})"


# ---------------------------------------------------------------------------------------------
# Definitions, stages, programs


@dataclass(frozen=True)
class Reduce:
    """One reduction of a Definition: over `domain` (axes of its own) of `body`."""

    domain: Domain
    reduction: Reduction
    body: Expr
    name: str = ""


@dataclass(frozen=True)
class Definition:
    """For every point of `domain`: each `outs[i]` is written with `values[i]`, a body over axes of
    the domain, accesses, and `Result(j, item)` of `reduces[j]`.
    """

    outs: tuple[Access, ...]
    domain: Domain
    reduces: tuple[Reduce, ...]
    values: tuple[Expr, ...]

    def __post_init__(self) -> None:
        if len(self.outs) != len(self.values) or not self.outs:
            raise FormulaError("a definition has one value for each output")

    def bodies(self) -> Iterator[tuple[Expr, Domain]]:
        """Every body with the domain over which it is evaluated, reduces first."""
        for r in self.reduces:
            yield r.body, self.domain.join(r.domain)
        for v in self.values:
            yield v, self.domain

    def reads(self) -> list[Access]:
        """All accesses read, without repeats, in the order of bodies (sorted within one)."""
        found: dict[Access, None] = {}
        for body, _ in self.bodies():
            for access in accesses_of(body):
                found.setdefault(access)
        return list(found)


@dataclass(frozen=True)
class Stage:
    """Writes every element of `tensors` exactly once; its pieces are disjoint and cover them.

    `backward`, on the stages that write the outputs of a program with a custom gradient, is the
    program that takes the place of the derivative (see derive.custom_gradient).
    """

    tensors: tuple[Tensor, ...]
    pieces: tuple[Definition, ...]
    backward: Program | None = field(default=None, repr=False)


# ---------------------------------------------------------------------------------------------
# Bodies


def affine_of(expr: Any) -> Affine:
    """The quasi-affine integer expression of an index body (axes, integers, + - * // %).

    Raises FormulaError for what is not affine, and for data-dependent addresses; ShapeError for
    numbers beyond 64 bits.
    """
    if isinstance(expr, Affine):
        return expr
    if isinstance(expr, Integral):
        return Affine((), whole_number(expr, "a number in an index"))
    if isinstance(expr, (Axis, Symbol)):
        return Affine.of(expr.name)
    if isinstance(expr, Access):
        raise FormulaError(
            f"the index {expr} is read from a tensor: a data-dependent address",
            hint="a sum with select(equal(index[...], axis), value, 0), a gather both ways",
        )
    if isinstance(expr, sympy.Add):
        total = Affine()
        for term in expr.args:
            total = total + affine_of(term)
        return total
    if isinstance(expr, sympy.Mul):
        coefficient, rest = expr.as_coeff_Mul()
        if isinstance(coefficient, Integer) and coefficient != 1:
            return affine_of(rest) * whole_number(coefficient, "a number in an index")
    if isinstance(expr, sympy.Mod) and isinstance(expr.args[1], Integer) and expr.args[1] > 0:
        return affine_of(expr.args[0]) % whole_number(expr.args[1], "a number in an index")
    if isinstance(expr, (sympy.floor, round_down)):
        numerator, denominator = sympy.fraction(sympy.together(expr.args[0]))
        if isinstance(denominator, Integer) and denominator > 0:
            number = whole_number(denominator, "a number in an index")
            return affine_of(sympy.expand(numerator)) // number
    if isinstance(expr, Expr):
        expanded = sympy.expand(expr)
        if expanded != expr:
            return affine_of(expanded)
    raise FormulaError(
        f"index {expr} is not affine",
        expected="sums of axes times integers, // and % by positive integers",
    )


def affine_body(value: Affine) -> Expr:
    """The sympy expression of an Affine (for axes that occur as numbers in bodies)."""
    terms: list[Expr] = [Integer(value.constant)]
    for atom, coefficient in value.terms:
        if isinstance(atom, str):
            body: Any = Axis(atom)
        elif isinstance(atom, FloorDiv):
            body = sympy.floor(affine_body(atom.value) / atom.divisor)
        else:
            assert isinstance(atom, Mod)
            body = sympy.Mod(affine_body(atom.value), atom.divisor)
        terms.append(Integer(coefficient) * body)
    return sympy.Add(*terms)


@lru_cache(maxsize=65536)
def accesses_of(body: Expr) -> tuple[Access, ...]:
    """All accesses in a body (also those inside boundary values), sorted by their text."""
    found: set[Access] = set(body.atoms(Access))
    for access in list(found):
        for b in access.boundary:
            if b.value is not None:
                found.update(accesses_of(b.value))
    return tuple(sorted(found, key=str))


@lru_cache(maxsize=65536)
def axes_of(body: Expr) -> frozenset[str]:
    """Names of all axes a body depends on, through indices too."""
    names = {a.name for a in body.atoms(Axis)}
    for access in body.atoms(Access):
        names |= access.names()
    for reduced in body.atoms(Reduced):
        names |= axes_of(reduced.body) - set(reduced.axes)
    return frozenset(names)


def substitute(body: Expr, values: Mapping[str, Affine | int]) -> Expr:
    """Replace axes of a body, also inside indices and boundary values, all at once."""
    if not values or not (axes_of(body) & values.keys()):
        return body
    mapping: dict[Expr, Expr] = {}
    for atom in body.atoms(Axis, Access):
        if isinstance(atom, Access):
            if atom.names() & values.keys():
                mapping[atom] = atom.substitute(values)
        elif isinstance(atom, Axis) and atom.name in values:
            mapping[atom] = affine_body(Affine.of(values[atom.name]))
    return body.xreplace(mapping)  # type: ignore[return-value]


def replace_accesses(body: Expr, mapping: Mapping[Access, Expr]) -> Expr:
    """Replace whole accesses, also inside boundary values."""
    full: dict[Expr, Expr] = {**mapping}
    for access in body.atoms(Access):
        if access not in full and any(b.value is not None for b in access.boundary):
            kinds = tuple(
                b if b.value is None else Constant(replace_accesses(b.value, mapping))
                for b in access.boundary
            )
            full[access] = Access(access.tensor, access.index, kinds)
    return body.xreplace(full)  # type: ignore[return-value]


def body_dtype(body: Expr, results: Mapping[Result, DType] | None = None) -> DType | None:
    """The dtype in which a body is computed; None when only numbers occur (they adapt).

    Numbers are weak: integers take any dtype, fractions any float (f32 among integers). Axes are
    i64 but weak beside floats. Division (but not //), exp, log, ... of integers give f32.
    """
    if isinstance(body, Access):
        return body.tensor.dtype
    if isinstance(body, Result):
        return (results or {}).get(body)
    if isinstance(body, cast):
        return body.dtype
    if isinstance(body, Reduced):
        return (
            i64
            if body.reduction.name in ("argmax", "argmin") and body.item == 0
            else body_dtype(body.body)
        )
    if isinstance(body, (Axis, Size)):
        return i64
    for kind, dtype in RESULT_DTYPE.items():
        if isinstance(body, kind):
            return dtype
    if isinstance(body, uniform):
        return f32
    whole = quotient(body)
    if whole is not None:  # a // 2 of integers is an integer, as a is
        dtype = body_dtype(whole[0], results)
        if dtype is not None and dtype.is_integer:
            return dtype
    args = body.args[1:] if isinstance(body, select) else body.args
    found: DType | None = None
    fractional = bool(body.is_number and not body.is_integer and body.is_finite)
    for arg in args:
        if arg.is_number:
            fractional = fractional or not (arg.is_integer or arg.is_infinite)
            continue
        dtype = body_dtype(arg, results)  # type: ignore[arg-type]
        if dtype is not None:
            found = dtype if found is None else promote(found, dtype)
    if isinstance(body, (sympy.exp, sympy.log, sympy.tanh, sympy.erf)) or (
        isinstance(body, sympy.Pow)
        and not (body.args[1].is_integer and body.args[1].is_nonnegative)
    ):
        fractional = True
    if found is not None and not found.is_float and fractional and not isinstance(body, Access):
        return f32
    if found == bool_ and isinstance(body, (sympy.Add, sympy.Mul)):
        return i64
    return found
