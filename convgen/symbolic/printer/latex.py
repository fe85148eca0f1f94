"""Programs as LaTeX: named tensors with subscripts, ranges under the sums, fractions, cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sympy
from sympy import Expr

from convgen.affine import Affine, Constraint, FloorDiv
from convgen.symbolic import functions
from convgen.symbolic.boundary import ZERO
from convgen.symbolic.expr import Access, Axis, Definition, Range, Reduce, Result, Size
from convgen.symbolic.printer.order import Order, decimal
from convgen.symbolic.printer.text import NAMES, own_reductions, reduction_text

if TYPE_CHECKING:
    from convgen.symbolic.program import Program

BIG = {"sum": r"\sum", "prod": r"\prod", "max": r"\max", "min": r"\min"}
GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega".split()
)
COMPARE, SUM, PRODUCT, ATOM = range(4)


def latex(program: Program) -> str:
    """An ``aligned`` block with one line for each definition (without dollar signs)."""
    lines = [
        rf"&\text{{{_escape(reduction_text(r, Order(program)))}}}" for r in own_reductions(program)
    ]
    for stage in program.stages:
        lines += [definition_latex(program, piece) for piece in stage.pieces]
    for state, new in program.updates:
        lines.append(rf"{name_latex(state)} &\leftarrow {name_latex(new)}")
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"


def definition_latex(program: Program, piece: Definition) -> str:
    """``Y_{n,k} &= ... \\qquad 0 \\le n < 8``"""
    writer = LatexWriter(Order(program, piece), piece)
    left = r",\; ".join(writer.access(o) for o in piece.outs)
    right = r",\; ".join(writer.body(v) for v in piece.values)
    conditions = [writer.range(r) for r in piece.domain.ranges]
    conditions += [writer.constraint(c) for c in piece.domain.constraints]
    tail = r" \qquad " + r",\; ".join(conditions) if conditions else ""
    return f"{left} &= {right}{tail}"


def name_latex(name: str) -> str:
    r"""A tensor's or axis's name: letters in italics, words upright, Greek letters as such.

    >>> print(name_latex("X"), name_latex("gamma"), name_latex("new_mean"), name_latex("u'"))
    X \gamma \mathrm{new\_mean} u'
    """
    bare = name.rstrip("'")
    primes = name[len(bare) :]
    if bare in GREEK:
        return f"\\{bare}{primes}"
    return (bare if len(bare) == 1 else rf"\mathrm{{{_escape(bare)}}}") + primes


def _escape(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, "\\" + sign)
    return text


class LatexWriter:
    """Writes the bodies of one definition."""

    def __init__(self, order: Order, definition: Definition) -> None:
        self.order, self.definition = order, definition

    def body(self, e: Any, least: int = COMPARE) -> str:
        text, binding = self.write(e)
        return text if binding >= least else rf"\left({text}\right)"

    def write(self, e: Any) -> tuple[str, int]:
        match e:
            case Access():
                return self.access(e), ATOM
            case Result():
                return self.result(e)
            case Axis() | Size():
                return name_latex(e.name), ATOM
            case sympy.Add():
                return self.sum(e), SUM
            case sympy.Mod():
                return rf"{self.body(e.args[0], ATOM)} \bmod {self.body(e.args[1], ATOM)}", SUM
            case sympy.Pow() if not (e.args[1].is_Rational and e.args[1].is_negative):
                base, exponent = e.args
                if exponent == sympy.Rational(1, 2):
                    return rf"\sqrt{{{self.body(base)}}}", ATOM
                if isinstance(base, Access):
                    return rf"{{{self.body(base)}}}^{{{self.body(exponent)}}}", ATOM
                return f"{self.body(base, ATOM)}^{{{self.body(exponent)}}}", ATOM
            case sympy.Mul() | sympy.Pow():
                return self.product(e)
            case _ if e.is_Rational:
                return self.product(e)
            case _ if not e.args:
                return sympy.latex(e), ATOM if e is not sympy.S.NegativeInfinity else SUM
            case _:
                return self.call(e)

    def sum(self, e: Expr) -> str:
        out = ""
        for term in self.order.terms(e):
            negative = self.order.product(term).negative
            text = self.body(-term if negative else term, PRODUCT)
            sign = ("-" if negative else "") if not out else (" - " if negative else " + ")
            out += sign + text
        return out

    def product(self, e: Expr) -> tuple[str, int]:
        product = self.order.product(e)
        value: Any = abs(product.coefficient)
        alone = len(product.over) + len(product.under) == 1
        over = [
            self.body(f, ATOM if isinstance(f, Result) and f != product.over[-1] else PRODUCT)
            for f in product.over
        ]
        under = [
            self.body(f, COMPARE if alone and value.q == 1 else PRODUCT) for f in product.under
        ]
        short = decimal(value)
        if short is not None and "e" in short:
            mantissa, exponent = short.split("e")
            times = "" if mantissa == "1" else rf"{mantissa} \cdot "
            short = f"{times}10^{{{exponent}}}"
        if short is not None:
            over.insert(0, short)
        elif value.p != 1 or not over:
            over.insert(0, str(value.p))
        if short is None and value.q != 1:
            under.insert(0, str(value.q))
        sign = "-" if product.negative else ""
        if not under:
            single = len(over) == 1 and not sign
            return sign + r" \, ".join(over), ATOM if single else SUM if sign else PRODUCT
        if len(product.over) > 0 and isinstance(product.over[0], Result) and len(over) == 1:
            return rf"{sign}\frac{{1}}{{{self._times(under)}}} {over[0]}", PRODUCT
        return (
            rf"{sign}\frac{{{self._times(over)}}}{{{self._times(under)}}}",
            SUM if sign else PRODUCT,
        )

    @staticmethod
    def _times(factors: Sequence[str]) -> str:
        return r" \, ".join(factors)

    def call(self, e: Any) -> tuple[str, int]:
        arguments = [self.body(a) for a in e.args]
        match e:
            case functions.select():
                chosen, other = arguments[1], arguments[2]
                rows = rf"{chosen} & {self.condition(e.args[0])} \\ {other} & \text{{otherwise}}"
                return rf"\begin{{cases}} {rows} \end{{cases}}", ATOM
            case functions.equal() | functions.less() | functions.less_equal():
                return rf"\left[{self.condition(e)}\right]", ATOM
            case functions.abs_():
                return rf"\left|{arguments[0]}\right|", ATOM
            case functions.round_down() | sympy.floor():
                return rf"\left\lfloor {arguments[0]} \right\rfloor", ATOM
            case functions.maximum():
                return rf"\max\left({', '.join(arguments)}\right)", ATOM
            case functions.minimum():
                return rf"\min\left({', '.join(arguments)}\right)", ATOM
            case sympy.exp() | sympy.log() | sympy.tanh():
                return rf"\{NAMES[type(e)]}\left({arguments[0]}\right)", ATOM
            case functions.cast():
                return rf"\mathrm{{{e.dtype}}}\left({arguments[0]}\right)", ATOM
            case _:
                name = _escape(NAMES[type(e)])
                return rf"\operatorname{{{name}}}\left({', '.join(arguments)}\right)", ATOM

    def condition(self, e: Any) -> str:
        signs = {functions.equal: "=", functions.less: "<", functions.less_equal: r"\le"}
        if type(e) in signs:
            return f"{self.body(e.args[0], SUM)} {signs[type(e)]} {self.body(e.args[1], SUM)}"
        return self.body(e)

    def access(self, a: Access) -> str:
        mark = ""
        if any(b != ZERO for b in a.boundary):
            words = [
                r"\cdot"
                if b == ZERO
                else rf"\mathrm{{{b.name}}}"
                if b.value is None
                else self.body(b.value)
                for b in a.boundary
            ]
            mark = f"^{{{words[0] if len(set(words)) == 1 else ', '.join(words)}}}"
        index = ", ".join(self.affine(i) for i in a.index)
        name = name_latex(a.tensor.name)
        return f"{name}{mark}" + (f"_{{{index}}}" if index else "")

    def affine(self, value: Affine) -> str:
        """An index, terms in the order of the axes."""
        terms = sorted(
            value.terms,
            key=lambda t: self.order.axes.get(t[0], 99) if isinstance(t[0], str) else 98,
        )
        out = ""
        for atom, factor in terms:
            if isinstance(atom, str):
                text = name_latex(atom)
            elif isinstance(atom, FloorDiv):
                text = rf"\lfloor ({self.affine(atom.value)}) / {atom.divisor} \rfloor"
            else:
                text = rf"(({self.affine(atom.value)}) \bmod {atom.divisor})"
            size = "" if abs(factor) == 1 else str(abs(factor))
            sign = ("-" if factor < 0 else "") if not out else (" - " if factor < 0 else " + ")
            out += sign + size + text
        if not out:
            return str(value.constant)
        if value.constant:
            out += f" {'+' if value.constant > 0 else '-'} {abs(value.constant)}"
        return out

    def range(self, r: Range) -> str:
        return rf"{r.lo} \le {name_latex(r.axis)} < {r.hi}"

    def constraint(self, c: Constraint) -> str:
        if c.kind == "%":
            return rf"{self.affine(c.value)} \equiv 0 \pmod{{{c.modulus}}}"
        sign = "=" if c.kind == "==" else r"\le"
        return f"{self.affine(c.value)} {sign} 0"

    def result(self, r: Result) -> tuple[str, int]:
        reduce = self.definition.reduces[r.reduce]
        name = reduce.reduction.name
        if name in ("argmax", "argmin") and r.item == 1:
            name = name[3:]
        under = self.under(reduce)
        sign = BIG.get(name, rf"\operatorname*{{{_escape(name)}}}")
        item = f"^{{({r.item})}}" if r.item and name not in BIG else ""
        return f"{sign}_{{{under}}}{item} {self.body(reduce.body, PRODUCT)}", PRODUCT

    def under(self, reduce: Reduce) -> str:
        """Ranges and conditions, one on each line under the sign."""
        rows = [self.range(r) for r in reduce.domain.ranges]
        rows += [self.constraint(c) for c in reduce.domain.constraints]
        return rows[0] if len(rows) == 1 else r"\substack{" + r" \\ ".join(rows) + "}"
