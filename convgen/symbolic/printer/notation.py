"""Formulas as boxes: named tensors with subscripts, ranges under the sums, fractions, cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sympy
from sympy import Expr

from convgen.affine import Affine, Constraint, FloorDiv
from convgen.symbolic import functions
from convgen.symbolic.boundary import ZERO
from convgen.symbolic.expr import Access, Axis, Definition, Domain, Range, Reduce, Result, Size
from convgen.symbolic.printer.boxes import (
    Box,
    Cases,
    Fence,
    Fraction,
    Line,
    Name,
    Number,
    Power,
    Root,
    Row,
    Scripts,
    Sign,
    Under,
    Word,
    row,
    separated,
    width,
)
from convgen.symbolic.printer.naming import Part, name_parts
from convgen.symbolic.printer.order import Order, decimal
from convgen.symbolic.printer.text import NAMES, own_reductions, reduction_text

if TYPE_CHECKING:
    from convgen.symbolic.program import Program

GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega".split()
)
BIG = ("sum", "prod", "max", "min")
FULL = 72  # letters after which a line is broken: they fit a page and a window of 1100 pixels
COMPARE, SUM, PRODUCT, ATOM = range(4)


def program_lines(program: Program) -> list[Line]:
    """The lines of a program: own reductions, definitions, updates."""
    lines = [
        Line(None, "", Word(reduction_text(r, Order(program)))) for r in own_reductions(program)
    ]
    for stage in program.stages:
        for piece in stage.pieces:
            lines += definition_lines(program, piece)
    for state, new in program.updates:
        lines.append(Line(name_box(state), "<-", name_box(new)))
    return lines


def definition_lines(program: Program, piece: Definition) -> list[Line]:
    """``Y_{n,k} = ...    0 <= n < 8``, long ones on several lines, repeated parts named below."""
    shown, parts = name_parts(program, piece)
    writer = NotationWriter(Order(program, piece), shown)
    left = separated([writer.access(o) for o in shown.outs], ";")
    conditions = writer.conditions(shown.domain)
    lines = _broken(left, writer, shown.values)
    if conditions:
        last = lines[-1]
        tail = separated(conditions, ";")
        if width(left) + width(last.right) + width(tail) > FULL:
            lines.append(Line(None, "", row([Sign("quad"), tail])))
        else:
            lines[-1] = Line(last.left, last.relation, row([last.right, Sign("quad"), tail]))
    for part in parts:
        name, body = writer.body(part), writer.body(part.body)
        lines.append(Line(None, "", row([Word("where "), name, Sign("="), body])))
    return lines


def _broken(left: Box, writer: NotationWriter, values: tuple[Expr, ...]) -> list[Line]:
    """left = values; a long sum goes on in the next line at a plus or minus."""
    whole = separated([writer.body(v) for v in values], ";")
    if len(values) != 1 or not isinstance(values[0], sympy.Add) or width(whole) <= FULL:
        return [Line(left, "=", whole)]
    lines: list[Line] = []
    current: list[Box] = []
    for items in writer.terms(values[0]):
        term = row(items)
        if current and width(row(current)) + width(term) > FULL:
            first = not lines
            lines.append(Line(left if first else None, "=" if first else "", row(current)))
            current = []
        current.append(term)
    first = not lines
    return [*lines, Line(left if first else None, "=" if first else "", row(current))]


def name_box(name: str) -> Box:
    """A tensor's or axis's name; dX is an upright d and the name it is the gradient to."""
    bare = name.rstrip("'")
    primes = len(name) - len(bare)
    rest = bare[1:]
    gradient = rest[:1].isupper() or len(rest) == 1 or rest in GREEK or rest[:2] in ("dX", "dY")
    if bare[:1] != "d" or not gradient:
        return Name(bare, primes)
    inner = name_box(rest + "'" * primes)
    return Row((Word("d"), *(inner.items if isinstance(inner, Row) else (inner,))))


class NotationWriter:
    """Writes the bodies of one definition."""

    def __init__(self, order: Order, definition: Definition) -> None:
        self.order, self.definition = order, definition

    def body(self, e: Any, least: int = COMPARE) -> Box:
        box, binding = self.write(e)
        return box if binding >= least else Fence("()", box)

    def write(self, e: Any) -> tuple[Box, int]:
        match e:
            case Access():
                return self.access(e), ATOM
            case Part():
                return Scripts(Name(e.letter), Number(str(e.number))), ATOM
            case Result():
                return self.result(e)
            case Axis() | Size():
                return name_box(e.name), ATOM
            case sympy.Add():
                return row([i for term in self.terms(e) for i in term]), SUM
            case sympy.Mod():
                a, b = (self.body(x, ATOM) for x in e.args)
                return row([a, Sign("mod"), b]), SUM
            case sympy.Pow() if not (e.args[1].is_Rational and e.args[1].is_negative):
                return self.power(e), ATOM
            case sympy.Mul() | sympy.Pow():
                return self.product(e)
            case _ if e.is_Rational:
                return self.product(e)
            case _ if not e.args:
                return self.constant(e)
            case _:
                return self.call(e), ATOM

    @staticmethod
    def constant(e: Any) -> tuple[Box, int]:
        if e is sympy.S.NegativeInfinity:
            return row([Sign("-"), Number("\N{INFINITY}")]), SUM
        words = {sympy.S.Infinity: "\N{INFINITY}", sympy.S.Exp1: "e"}
        if e in words:
            return Number(words[e]), ATOM
        return name_box(str(e)), ATOM

    def terms(self, e: Expr) -> list[list[Box]]:
        """The terms of a sum, each with its sign."""
        found: list[list[Box]] = []
        for term in self.order.terms(e):
            negative = self.order.product(term).negative
            box = self.body(-term if negative else term, PRODUCT)
            if found or negative:
                found.append([Sign("-" if negative else "+"), box])
            else:
                found.append([box])
        return found

    def power(self, e: Any) -> Box:
        base, exponent = e.args
        if exponent == sympy.Rational(1, 2):
            return Root(self.body(base))
        return Power(self.body(base, ATOM), self.body(exponent))

    def product(self, e: Expr) -> tuple[Box, int]:
        product = self.order.product(e)
        value: Any = abs(product.coefficient)
        short = decimal(value)
        fraction = bool(product.under) or (short is None and value.q != 1)
        whole = short is None and value.p == 1 and fraction and len(product.over) == 1
        least = SUM if whole else PRODUCT
        over = [
            self.body(f, ATOM if isinstance(f, Result) and f != product.over[-1] else least)
            for f in product.over
        ]
        single = len(product.under) == 1 and (short is not None or value.q == 1)
        under = [self.body(f, SUM if single else PRODUCT) for f in product.under]
        if short is not None:
            over.insert(0, _decimal_box(short))
        else:
            if value.p != 1 or not over:
                over.insert(0, Number(str(value.p)))
            if value.q != 1:
                under.insert(0, Number(str(value.q)))
        minus: list[Box] = [Sign("-")] if product.negative else []
        if not under:
            binding = SUM if minus else ATOM if len(over) == 1 else PRODUCT
            return row([*minus, separated(over, " ")]), binding
        if len(over) == 1 and product.over and isinstance(product.over[0], Result):
            one = Fraction(Number("1"), separated(under, " "))
            return row([*minus, one, over[0]]), PRODUCT
        quotient = Fraction(separated(over, " "), separated(under, " "))
        return row([*minus, quotient]), SUM if minus else PRODUCT

    def call(self, e: Any) -> Box:
        match e:
            case functions.select():
                rows: list[tuple[Box, Box | None]] = []
                while isinstance(e, functions.select):  # a choice among the rest goes on below
                    rows.append((self.body(e.args[1]), self.condition(e.args[0])))
                    e = e.args[2]
                return Cases((*rows, (self.body(e), None)))
            case functions.equal() | functions.less() | functions.less_equal():
                return Fence("[]", self.condition(e))
            case functions.abs_():
                return Fence("||", self.body(e.args[0]))
            case functions.round_down() | sympy.floor():
                return Fence("floor", self.body(e.args[0]))
            case functions.cast():
                return row([Word(str(e.dtype)), Fence("()", self.body(e.args[0]))])
            case functions.maximum():
                name = "max"
            case functions.minimum():
                name = "min"
            case _:
                name = NAMES[type(e)]
        arguments = separated([self.body(a) for a in e.args], ",")
        return row([Word(name), Fence("()", arguments)])

    def condition(self, e: Any) -> Box:
        signs = {functions.equal: "=", functions.less: "<", functions.less_equal: "<="}
        if type(e) in signs:
            a, b = (self.body(x, SUM) for x in e.args)
            return row([a, Sign(signs[type(e)]), b])
        if isinstance(e, functions.logical_and):
            return separated([self.condition(a) for a in e.args], ";")
        return self.body(e)

    def access(self, a: Access) -> Box:
        mark: Box | None = None
        if any(b != ZERO for b in a.boundary):
            words = [
                Sign(".") if b == ZERO else Word(b.name) if b.value is None else self.body(b.value)
                for b in a.boundary
            ]
            mark = words[0] if len(set(words)) == 1 else separated(words, ",")
        index = separated([self.affine(i) for i in a.index], ",") if a.index else None
        name = name_box(a.tensor.name)
        if index is None and mark is None:
            return name
        return Scripts(name, index, mark)

    def affine(self, value: Affine) -> Box:
        """An index, in writing order."""
        out: list[Box] = []
        for atom, factor in self.order.items(value):
            if factor < 0 or out:
                out.append(Sign("-" if factor < 0 else "+"))
            size = abs(factor)
            if atom is None or size != 1:
                out.append(Number(str(size)))
            if isinstance(atom, str):
                out.append(name_box(atom))
            elif isinstance(atom, FloorDiv):
                inner = [self.affine(atom.value), Sign("/"), Number(str(atom.divisor))]
                if atom.value.single is None:
                    inner[0] = Fence("()", inner[0])
                out.append(Fence("floor", row(inner)))
            elif atom is not None:
                inner = self.affine(atom.value)
                if atom.value.single is None:
                    inner = Fence("()", inner)
                out.append(Fence("()", row([inner, Sign("mod"), Number(str(atom.divisor))])))
        return row(out) if out else Number("0")

    def conditions(self, domain: Domain) -> list[Box]:
        """Ranges, axes that run alike together, then constraints."""
        groups: dict[tuple[int, object], list[Range]] = {}
        for r in domain.ranges:
            groups.setdefault((r.lo, r.hi), []).append(r)
        found: list[Box] = []
        for group in groups.values():
            names = separated([name_box(r.axis) for r in group], ",")
            hi = group[0].hi
            bound = name_box(hi.name) if isinstance(hi, Size) else Number(str(hi))
            found.append(row([Number(str(group[0].lo)), Sign("<="), names, Sign("<"), bound]))
        return found + [self.constraint(c) for c in domain.constraints]

    def constraint(self, c: Constraint) -> Box:
        if c.kind == "%":
            zero = [self.affine(c.value), Sign("equiv"), Number("0")]
            modulus = Fence("()", row([Word("mod "), Number(str(c.modulus))]))
            return row([*zero, Sign(" "), modulus])
        value = c.value
        left = Affine(tuple((a, f) for a, f in value.terms if f > 0), max(value.constant, 0))
        right = Affine(tuple((a, -f) for a, f in value.terms if f < 0), max(-value.constant, 0))
        sign = "=" if c.kind == "==" else "<="
        return row([self.affine(left), Sign(sign), self.affine(right)])

    def result(self, r: Result) -> tuple[Box, int]:
        reduce: Reduce = self.definition.reduces[r.reduce]
        name = reduce.reduction.name
        if name in ("argmax", "argmin") and r.item == 1:
            name = name[3:]
        above = f"({r.item})" if r.item and name not in BIG else ""
        sign = Under(name, tuple(self.conditions(reduce.domain)), above)
        return row([sign, Sign(" "), self.body(reduce.body, PRODUCT)]), PRODUCT


def _decimal_box(short: str) -> Box:
    if "e" not in short:
        return Number(short)
    mantissa, exponent = short.split("e")
    digits = Number(exponent.lstrip("-"))
    power = Power(Number("10"), row([Sign("-"), digits]) if exponent[0] == "-" else digits)
    return power if mantissa == "1" else row([Number(mantissa), Sign("."), power])
