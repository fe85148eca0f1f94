"""What the syntax tree of a formula means: affine indices, constraints, ranges, sympy bodies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
from sympy import Expr, Integer, Rational, Symbol

from convgen.affine import Affine, Constraint
from convgen.errors import FormulaError, InternalError
from convgen.symbolic import functions
from convgen.symbolic.boundary import BOUNDARIES, Boundary, boundary_of
from convgen.symbolic.expr import Access, Axis, Extent, Range, Reduced, Size, Tensor
from convgen.symbolic.grammar import (
    Binary,
    Call,
    Chain,
    Name,
    Node,
    Number,
    Over,
    Product,
    Read,
    Sum,
)
from convgen.symbolic.reductions import REDUCTIONS, Reduction
from convgen.types import DTYPES

NUMBERS: dict[str, Any] = {"inf": sympy.oo, "nan": sympy.nan, "pi": sympy.pi}
LARGEST_POWER = 1024


class Meaning:
    """Gives nodes their meaning in the scope of one program.

    tensor(name, where) finds a tensor; `symbols` stand for names inside reduction declarations.
    """

    def __init__(
        self,
        tensor: Callable[[str, str], Tensor],
        sizes: Mapping[str, Size],
        reductions: Mapping[str, Reduction],
        symbols: Mapping[str, Symbol] | None = None,
    ) -> None:
        self.tensor, self.sizes, self.symbols = tensor, sizes, symbols
        self.reductions = {**REDUCTIONS, **reductions}

    # -- indices ------------------------------------------------------------------------------

    def index(self, node: Node) -> Affine:
        """The affine expression of an index."""
        match node:
            case Number():
                if node.value.denominator != 1:
                    raise FormulaError(f"index {node.value} is not an integer")
                return Affine((), int(node.value))
            case Name():
                if node.text in self.sizes:
                    raise FormulaError(
                        f"the size {node.text} stands in an index", expected="axes and integers"
                    )
                return Affine.of(node.text)
            case Sum():
                total = Affine()
                for sign, term in node.terms:
                    total = total + self.index(term) * sign
                return total
            case Product():
                return self._index_product(node)
            case Binary(operator=("//" | "%") as operator):
                left, right = self.index(node.left), self.index(node.right)
                if not right.is_constant or right.constant <= 0:
                    raise FormulaError(
                        f"{operator} by {right} in an index", expected="a positive integer"
                    )
                return left // right.constant if operator == "//" else left % right.constant
            case Read():
                raise FormulaError(
                    f"an index reads {node.name}[...]: a data-dependent address",
                    where=node.where,
                    hint=f"a sum with select({node.name}[...] == axis, value, 0): a gather",
                )
            case Binary() | Call() | Over():
                raise FormulaError(
                    "an index is not affine",
                    expected="sums of axes times integers, // and % by positive integers",
                )
            case _:
                raise InternalError(f"unknown node {node}", stage="parse")

    def _index_product(self, node: Product) -> Affine:
        total = Affine((), 1)
        for operator, factor in node.factors:
            value = self.index(factor)
            if operator == "/" or not (value.is_constant or total.is_constant):
                raise FormulaError(
                    f"index ({total}) {operator} ({value}) is not affine",
                    expected="sums of axes times integers, // and % by positive integers",
                )
            if 0 in (value.constant * value.is_constant, total.constant * total.is_constant) and (
                total.terms or value.terms
            ):
                still = total if value.is_constant else value
                fixed = value if value.is_constant else total
                if fixed.constant == 0:
                    raise FormulaError(
                        f"a stride of 0: 0*({still}) in an index", expected="a stride of at least 1"
                    )
            total = total * value.constant if value.is_constant else value * total.constant
        return total

    # -- ranges and conditions ----------------------------------------------------------------

    def range(self, chain: Chain, axes: Sequence[str] | None) -> Range | None:
        """The range a chain says (``y < 28``, ``1 <= y < N``), or None: it is a condition.

        `axes`: names that may have a range; None for any."""
        nodes, operators = chain.nodes, chain.operators
        if operators not in (("<",), ("<=", "<")):
            return None
        axis, stop = nodes[-2], nodes[-1]
        if not isinstance(axis, Name) or (axes is not None and axis.text not in axes):
            return None
        lo = self._integer(nodes[0]) if len(nodes) == 3 else 0
        hi: Extent | None = self._integer(stop)
        if hi is None and isinstance(stop, Name) and (axes is None or stop.text not in axes):
            hi = self.sizes.get(stop.text) or Size(stop.text)
        if lo is None or hi is None:
            return None
        if isinstance(hi, Size) and lo:
            raise FormulaError(f"a range up to {hi} starts at 0", where=chain.where, got=str(lo))
        return Range(axis.text, lo, hi)

    @staticmethod
    def _integer(node: Node) -> int | None:
        if isinstance(node, Number) and node.value.denominator == 1:
            return int(node.value)
        if isinstance(node, Product) and all(isinstance(f, Number) for _, f in node.factors):
            value = 1
            for _, f in node.factors:
                value *= int(f.value)  # type: ignore[union-attr]
            return value
        return None

    def conditions(self, chain: Chain) -> list[Constraint]:
        """The constraints a chain of comparisons says."""
        if not chain.operators:
            raise FormulaError(
                "a condition has no comparison", where=chain.where, expected="for example i <= j"
            )
        found: list[Constraint] = []
        for left, operator, right in zip(
            chain.nodes, chain.operators, chain.nodes[1:], strict=False
        ):
            found.append(self._condition(left, operator, right, chain.where))
        return found

    def _condition(self, left: Node, operator: str, right: Node, where: str) -> Constraint:
        b = self.index(right)
        if operator == "==" and isinstance(left, Binary) and left.operator == "%" and b.is_constant:
            modulus = self.index(left.right)
            if modulus.is_constant and 0 <= b.constant < modulus.constant:
                return Constraint("%", self.index(left.left) - b.constant, modulus.constant)
        a = self.index(left)
        match operator:
            case "==":
                return Constraint("==", a - b)
            case "<=":
                return Constraint("<=", a - b)
            case "<":
                return Constraint("<=", a - b + 1)
            case ">=":
                return Constraint("<=", b - a)
            case ">":
                return Constraint("<=", b - a + 1)
            case _:
                raise FormulaError(
                    f"the condition {operator} is not in the language",
                    where=where,
                    expected="one of == <= < >= >",
                )

    # -- bodies -------------------------------------------------------------------------------

    def body(self, node: Node) -> Expr:
        """The sympy expression of a body."""
        match node:
            case Number():
                return Rational(node.value.numerator, node.value.denominator)
            case Name():
                return self._name(node.text)
            case Sum():
                return sympy.Add(*(Integer(sign) * self.body(t) for sign, t in node.terms))
            case Product():
                factors = [g for op, f in node.factors for g in self._factors(op, f)]
                return sympy.Mul(*factors)
            case Binary():
                return self._binary(node)
            case Call():
                return self._call(node)
            case Read():
                return self.read(node)
            case Over():
                return self._over(node)
            case _:
                raise InternalError(f"unknown node {node}", stage="parse")

    def _factors(self, operator: str, node: Node) -> list[Expr]:
        """The factors that ``* node`` or ``/ node`` contributes to one product. A product under a
        division is taken apart: sympy would multiply a number in it into a sum."""
        if operator == "*":
            return [self.body(node)]
        if isinstance(node, Product):
            flipped = ((("/" if op == "*" else "*"), f) for op, f in node.factors)
            return [g for op, f in flipped for g in self._factors(op, f)]
        return [self._reciprocal(node)]

    def _reciprocal(self, node: Node) -> Expr:
        value = self.body(node)
        if value.is_zero:
            raise FormulaError("division by zero in a formula")
        return sympy.Pow(value, -1)

    def _name(self, name: str) -> Expr:
        if self.symbols is not None:
            if name not in self.symbols and name not in NUMBERS:
                raise FormulaError(
                    f"undefined name {name} in a reduction",
                    expected="one of " + " ".join(self.symbols),
                )
            return self.symbols.get(name) or NUMBERS[name]
        if name in NUMBERS:
            return NUMBERS[name]
        return self.sizes.get(name) or Axis(name)

    def _binary(self, node: Binary) -> Expr:
        a, b = self.body(node.left), self.body(node.right)
        match node.operator:
            case "**":
                if a.is_number and b.is_number and not abs(b) <= LARGEST_POWER:  # type: ignore[operator]
                    raise FormulaError("a power of numbers is too large")
                if a.is_zero and b.is_negative:
                    raise FormulaError("division by zero in a formula")
                return sympy.Pow(a, b)
            case "%" | "//":
                if not (b.is_Integer and b.is_positive):
                    raise FormulaError(
                        f"{node.operator} by {b}", expected="a positive integer", got=str(b)
                    )
                return sympy.Mod(a, b) if node.operator == "%" else functions.round_down(a / b)
            case _:
                return functions.compare(node.operator, a, b)

    def _call(self, node: Call) -> Expr:
        function = functions.FUNCTIONS.get(node.name)
        if function is None:
            hint = f"{node.name}(axes: body)" if node.name in self.reductions else None
            if f"{node.name}imum" in functions.FUNCTIONS:
                hint = f"{node.name}imum(a, b), or {hint}"
            raise FormulaError(
                f"a call of {node.name}, which is not in the language",
                where=node.where,
                expected="one of " + " ".join(functions.FUNCTIONS),
                hint=hint,
            )
        if function is functions.cast:
            return self._cast(node)
        arguments = [self.body(a) for a in node.arguments]
        counts = {1} if function is sympy.sqrt else {int(n) for n in function.nargs}
        if function is sympy.log:
            counts = {1}
        if len(arguments) not in counts:
            raise FormulaError(
                f"{node.name} with {len(arguments)} arguments",
                where=node.where,
                expected=" or ".join(map(str, sorted(counts))),
            )
        return function(*arguments)

    def _cast(self, node: Call) -> Expr:
        if len(node.arguments) != 2 or not isinstance(node.arguments[1], Name):
            raise FormulaError("cast", where=node.where, expected="cast(body, dtype)")
        name = node.arguments[1].text
        if name not in DTYPES:
            raise FormulaError(
                f"cast to {name}", where=node.where, expected="one of " + " ".join(DTYPES)
            )
        return functions.cast(self.body(node.arguments[0]), name)

    def read(self, node: Read) -> Access:
        """tensor{boundary}[index]"""
        if self.symbols is not None:
            raise FormulaError("a reduction reads no tensors", where=node.where, got=node.name)
        tensor = self.tensor(node.name, node.where)
        kinds = tuple(self._boundary(b) for b in node.boundary)
        if not kinds:
            return Access(tensor, tuple(self.index(i) for i in node.index))
        if len(kinds) == 1:
            kinds = kinds * tensor.rank
        return Access(tensor, tuple(self.index(i) for i in node.index), kinds)

    def _boundary(self, node: Node) -> Boundary:
        if isinstance(node, Name) and (node.text == "." or node.text in BOUNDARIES):
            return boundary_of(node.text)
        if isinstance(node, Name) and node.text not in NUMBERS:
            raise FormulaError(
                f"unknown boundary {node.text!r}",
                expected="one of . " + " ".join(BOUNDARIES) + " or a constant",
            )
        return boundary_of(self.body(node))

    def _over(self, node: Over) -> Expr:
        reduction = self.reductions.get(node.name)
        if reduction is None:
            raise FormulaError(
                f"{node.name} is no reduction",
                where=node.where,
                expected="one of " + " ".join(self.reductions),
            )
        if self.symbols is not None:
            raise FormulaError("a reduction inside a reduction", where=node.where)
        if node.item >= len(reduction.project):
            raise FormulaError(
                f"{node.name} has {len(reduction.project)} results",
                where=node.where,
                got=f".{node.item}",
            )
        axes: list[str] = []
        ranges: list[Range] = []
        for chain in node.ranges:
            if not chain.operators and isinstance(chain.nodes[0], Name):
                axes.append(chain.nodes[0].text)
                continue
            span = self.range(chain, None)
            if span is None:
                raise FormulaError(
                    f"a range of {node.name}",
                    where=chain.where,
                    expected="an axis or a range such as r < 3 or 1 <= r < 4",
                )
            axes.append(span.axis)
            ranges.append(span)
        where = [c for chain in node.conditions for c in self.conditions(chain)]
        return Reduced(reduction, axes, self.body(node.body), where, ranges, node.item)
