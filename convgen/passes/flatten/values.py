"""Expressions of nests as expressions over registers and vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from convgen.affine import Affine, Constraint, FloorDiv
from convgen.errors import InternalError
from convgen.ir.nodes import (
    Buffer,
    Const,
    Expr,
    Index,
    Load,
    Op,
    Param,
    Reduced,
    Register,
)
from convgen.ir.simplify import decide, simplify_affine, simplify_expr
from convgen.passes.flatten.emitter import Emitter, widen
from convgen.passes.flatten.scope import LANE, Scope
from convgen.types import bool_, i64


@dataclass(frozen=True, slots=True)
class Place:
    """Where an expression is evaluated. `mask`: the lanes whose elements exist (None: all below
    scope.valid). `params`: placeholders of combiners; `reduced`: results of reduces."""

    scope: Scope
    mask: Expr | None = None
    params: Mapping[str, Expr] = field(default_factory=dict)
    reduced: Mapping[tuple[int, int], Expr] = field(default_factory=dict)


def lane_ranges(scope: Scope) -> dict[str, tuple[int, int]]:
    """The ranges of the scope and of its lane number."""
    return {**scope.ranges, LANE: (0, scope.valid)}


class Values(ABC):
    """Evaluates expressions of one nest; what it computes is shared through the emitter."""

    def __init__(
        self, emitter: Emitter, buffers: Mapping[str, Buffer], axes: Mapping[str, Affine]
    ) -> None:
        self.emitter = emitter
        self.buffers = buffers
        self.axes = axes

    def resolve(self, value: Affine, scope: Scope) -> Affine:
        """An expression over axes as one over live variables and the lane number."""
        bound = value.substitute(self.axes).substitute(scope.values)
        return simplify_affine(bound, lane_ranges(scope))

    # -- expressions ---------------------------------------------------------------------------

    def of(self, expr: Expr, place: Place) -> Expr:
        """An atom with the value of `expr`: a scalar when all lanes agree, else a vector."""
        if isinstance(expr, Const):
            return expr
        if isinstance(expr, Index):
            return self.integer(self.resolve(expr.value, place.scope), place.scope)
        if isinstance(expr, Param):
            return place.params[expr.name]
        if isinstance(expr, Reduced):
            return place.reduced[expr.reduce, expr.item]
        if isinstance(expr, Load):
            return self.load(expr, place)
        if isinstance(expr, Op):
            if self.is_zero(expr, place):
                return Const(0, expr.dtype)
            return self.op(expr.name, [self.of(a, place) for a in expr.args], expr)
        raise InternalError(f"no nest holds a {type(expr).__name__}", stage="flatten")

    def op(self, name: str, args: Iterable[Expr], like: Op) -> Expr:
        """The operation on atoms, folded where it can be, in a register otherwise."""
        atoms = tuple(args)
        if name == "cast" and like.dtype.is_integer:
            atoms = tuple(map(self._narrowest, atoms))
        lanes = max(a.lanes for a in atoms)
        made = simplify_expr(
            Op(name, tuple(widen(self._share(a, lanes), lanes) for a in atoms), like.dtype, lanes)
        )
        return self.emitter.share(made)

    def _share(self, value: Expr, lanes: int) -> Expr:
        """Broadcasts of scalars are shared too."""
        if value.lanes == lanes or isinstance(value, (Const, Index)):
            return widen(value, lanes)
        return self.emitter.share(widen(value, lanes), "b")

    def wide(self, value: Expr, lanes: int) -> Expr:
        """The value in all lanes, as an atom."""
        return self._share(value, lanes)

    def select(self, condition: Expr, then: Expr, orelse: Expr) -> Expr:
        like = Op("select", (condition, then, orelse), then.dtype)
        return self.op("select", like.args, like)

    def cast(self, value: Expr, like: Buffer) -> Expr:
        """The value converted to what the buffer holds."""
        if value.dtype == like.dtype:
            return value
        return self.op("cast", [value], Op("cast", (value,), like.dtype))

    def _narrowest(self, value: Expr) -> Expr:
        """The integer of which the value is the same one in a wider dtype, or the value."""
        made = self.emitter.shared(value) if isinstance(value, Register) else None
        if not isinstance(made, Op) or made.name != "cast" or not value.dtype.is_integer:
            return value
        source = made.args[0]
        signed = value.dtype.kind == "int" or source.dtype.kind != "int"
        wider = source.dtype.is_integer and source.dtype.bits < value.dtype.bits
        return source if wider and signed else value

    def is_zero(self, expr: Expr, place: Place) -> bool:
        """True for an element of a constant tensor that is 0, and for a product with one."""
        if isinstance(expr, Load) and self.buffers[expr.buffer].role == "constant":
            value = self.of(expr, place)
            return isinstance(value, Const) and value.value == 0
        if isinstance(expr, Op) and expr.name == "mul":
            return any(self.is_zero(a, place) for a in expr.args)
        return False

    # -- integers ------------------------------------------------------------------------------

    def integer(self, value: Affine, scope: Scope, named: Mapping[str, Expr] | None = None) -> Expr:
        """An integer expression as a value; vectors where it depends on the lane number. `named`
        gives the values of names that are no variables."""
        named = named or {}
        plain = Affine((), value.constant)
        stride = 0
        rest: list[tuple[Expr, int]] = []
        for atom, coefficient in value.terms:
            names = Affine.of(atom).names()
            if atom == LANE:
                stride = coefficient
            elif LANE not in names and not names & named.keys():
                plain = plain + Affine(((atom, coefficient),))
            elif isinstance(atom, str):
                rest.append((named[atom], coefficient))
            else:
                inner = self.integer(atom.value, scope, named)
                name = "floordiv" if isinstance(atom, FloorDiv) else "mod"
                rest.append((self._integer_op(name, inner, Const(atom.divisor, i64)), coefficient))
        lanes = scope.lanes if stride else 1
        total: Expr = Index(plain, stride, lanes)
        for part, coefficient in rest:
            scaled = (
                part if coefficient == 1 else self._integer_op("mul", part, Const(coefficient, i64))
            )
            total = scaled if total == Index(Affine()) else self._integer_op("add", total, scaled)
        return total

    def _integer_op(self, name: str, a: Expr, b: Expr) -> Expr:
        return self.op(name, (a, b), Op(name, (a, b), i64))

    # -- conditions ----------------------------------------------------------------------------

    def condition(self, constraint: Constraint, scope: Scope) -> Expr:
        """A resolved constraint as a bool, a vector where it depends on the lane number."""
        value = constraint.value
        if constraint.kind == "%":
            value = simplify_affine(value % constraint.modulus, lane_ranges(scope))
        number = self.integer(value, scope)
        name = "le" if constraint.kind == "<=" else "eq"
        return self.op(name, (number, Const(0, i64)), Op(name, (), bool_))

    def all_of(self, conditions: Iterable[Expr]) -> Expr | None:
        """Their conjunction; None when there are none."""
        total: Expr | None = None
        for condition in conditions:
            if total is None:
                total = condition
            else:
                total = self.op("and", (total, condition), Op("and", (), bool_))
        return total

    def open_conditions(
        self, constraints: Iterable[Constraint], scope: Scope
    ) -> list[Constraint] | None:
        """The constraints that are still open at this place, resolved; None when one is false."""
        ranges = lane_ranges(scope)
        found: dict[Constraint, None] = {}
        for constraint in constraints:
            if scope.interior and constraint.kind == "<=":
                continue
            resolved = Constraint(
                constraint.kind, self.resolve(constraint.value, scope), constraint.modulus
            )
            known = resolved in scope.known or decide(resolved, ranges)
            if known is False:
                return None
            if known is None:
                found[resolved] = None
        return list(found)

    @abstractmethod
    def load(self, node: Load, place: Place) -> Expr:
        """The element of a Load in each lane, its edges resolved."""
