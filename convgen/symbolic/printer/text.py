"""The text form: what `parse` reads back to the same program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import sympy
from sympy import Expr, Rational

from convgen.affine import Constraint
from convgen.errors import ShapeError
from convgen.symbolic import functions, infer
from convgen.symbolic.boundary import ZERO
from convgen.symbolic.build import join_pieces, result_dtypes, written_shape
from convgen.symbolic.expr import (
    Access,
    Definition,
    Range,
    Reduce,
    Result,
    Stage,
    Tensor,
    body_dtype,
)
from convgen.symbolic.printer.order import Order, decimal
from convgen.symbolic.reductions import REDUCTIONS, Reduction
from convgen.types import f32

if TYPE_CHECKING:
    from convgen.symbolic.program import Program

NAMES: dict[Any, str] = {f: name for name, f in functions.FUNCTIONS.items()}
NAMES[sympy.floor] = "floor"
INFIX: dict[Any, str] = {functions.equal: "==", functions.less: "<", functions.less_equal: "<="}
COMPARE, SUM, PRODUCT, POWER, ATOM = range(5)


class Writer:
    """Writes bodies of one definition. Every method gives the text and how tightly it binds."""

    def __init__(self, order: Order, definition: Definition | None, short: Shortened | None = None):
        self.order, self.definition, self.short = order, definition, short

    def body(self, e: Expr, least: int = COMPARE) -> str:
        """The text of e, in parentheses where it binds less than `least`."""
        text, binding = self.write(e)
        return text if binding >= least else f"({text})"

    def write(self, e: Expr) -> tuple[str, int]:
        match e:
            case Result():
                return self.result(e), ATOM
            case Access():
                return self.access(e), ATOM
            case sympy.Add():
                return self.sum(e), SUM
            case sympy.Pow() if e.args[1].is_Rational and e.args[1].is_negative:
                return self.product(e), PRODUCT
            case sympy.Pow():
                return self.power(e)
            case sympy.Mod():
                left, right = (self.body(a, POWER) for a in e.args)  # type: ignore[arg-type]
                return f"{left} % {right}", PRODUCT
            case _ if e.is_Rational or isinstance(
                e, (sympy.Mul, sympy.core.numbers.NegativeInfinity)
            ):
                text = self.product(e)
                simple = e.is_Rational and text.replace(".", "").isalnum()
                return text, ATOM if simple else SUM if text.startswith("-") else PRODUCT
            case _:
                return self.leaf(e)

    def leaf(self, e: Any) -> tuple[str, int]:
        if e is sympy.S.Infinity:
            return "inf", ATOM
        if e is sympy.S.Exp1:
            return "exp(1)", ATOM
        if type(e) in INFIX:
            left, right = (self.body(a, SUM) for a in e.args)
            return f"{left} {INFIX[type(e)]} {right}", COMPARE
        if type(e) in NAMES:
            return f"{NAMES[type(e)]}({', '.join(self.body(a) for a in e.args)})", ATOM
        return str(e), ATOM

    def sum(self, e: Expr) -> str:
        out = ""
        for term in self.order.terms(e):
            negative = self.order.product(term).negative
            text = self.body(-term if negative else term, PRODUCT)
            if not out:
                out = f"-{text}" if negative else text
            else:
                out += f" - {text}" if negative else f" + {text}"
        return out

    def product(self, e: Expr) -> str:
        product = self.order.product(e)
        value: Any = product.coefficient
        sign = "-" if product.negative else ""
        value = abs(value)
        under = [self.body(f, POWER) for f in product.under]
        over = [self.body(f, POWER) for f in product.over]
        if value.is_infinite:
            over.insert(0, "inf")
        elif (short := decimal(value)) is not None:
            over.insert(0, short)
        else:
            if value.p != 1 or not over:
                over.insert(0, str(value.p))
            if value.q != 1:
                under.insert(0, str(value.q))
        text = sign + " * ".join(over)
        if not under:
            return text
        if value.is_Rational and not product.over and not product.under:
            return f"{text}/{under[0]}"
        return f"{text} / " + (under[0] if len(under) == 1 else f"({' * '.join(under)})")

    def power(self, e: Any) -> tuple[str, int]:
        base, exponent = e.args
        if exponent == Rational(1, 2):
            return f"sqrt({self.body(base)})", ATOM
        return f"{self.body(base, ATOM)}**{self.body(exponent, ATOM)}", POWER

    def access(self, a: Access) -> str:
        index = ", ".join(self.order.affine(i) for i in a.index)
        return f"{a.tensor.name}{self.boundary(a)}[{index}]"

    def boundary(self, a: Access) -> str:
        if all(b == ZERO for b in a.boundary):
            return ""
        words = [
            "." if b == ZERO else b.name if b.value is None else self.body(b.value)
            for b in a.boundary
        ]
        return "{" + (words[0] if len(set(words)) == 1 else ", ".join(words)) + "}"

    def result(self, r: Result) -> str:
        assert self.definition is not None
        reduce = self.definition.reduces[r.reduce]
        name, suffix = reduce.reduction.name, f".{r.item}" if r.item else ""
        if r.item == 1 and name in ("argmax", "argmin"):
            values = self.definition.values
            if any(Result(r.reduce, 0) in v.free_symbols for v in values):
                name, suffix = name[3:], ""
        return f"{name}({self.over(r.reduce, reduce)}: {self.body(reduce.body)}){suffix}"

    def over(self, number: int, reduce: Reduce) -> str:
        given = self.short.given if self.short is not None else {}
        domain = reduce.domain
        parts = [
            self.range(r) if self.short is None or (number, r.axis) in given else r.axis
            for r in domain.ranges
        ]
        conditions = [self.constraint(c) for c in domain.constraints]
        return ", ".join(parts) + (f" where {', '.join(conditions)}" if conditions else "")

    def range(self, r: Range) -> str:
        start = f"{r.lo} <= " if r.lo else ""
        return f"{start}{r.axis} < {r.hi}"

    def constraint(self, c: Constraint) -> str:
        value = c.value
        if c.kind == "%":
            inner = self.order.affine(value)
            plain = value.single is not None
            return f"{inner if plain else f'({inner})'} % {c.modulus} == 0"
        positive = [(a, f) for a, f in value.terms if f > 0]
        negative = [(a, -f) for a, f in value.terms if f < 0]
        left = type(value)(tuple(positive), max(value.constant, 0))
        right = type(value)(tuple(negative), max(-value.constant, 0))
        a, b = self.order.affine(left), self.order.affine(right)
        if c.kind == "==" and "%" in a and not right.terms:
            a, b = b, a  # `h % 2 == 0` is the congruence; this is the equation
        return f"{a} {c.kind} {b}"


class Shortened:
    """Which ranges of a definition must be written, because inference does not give them."""

    def __init__(self, definition: Definition, declared: Mapping[str, Tensor]) -> None:
        actual: dict[infer.Key, infer.Span] = {
            (-1, r.axis): (r.lo, r.hi) for r in definition.domain.ranges
        }
        for j, reduce in enumerate(definition.reduces):
            actual.update({(j, r.axis): (r.lo, r.hi) for r in reduce.domain.ranges})
        uses: list[infer.Use] = []
        for out in definition.outs:
            if out.tensor.name in declared:
                uses += infer.access_uses(out, written=True)
        for value in definition.values:
            uses += infer.uses_of(value, -1, ())
        for j, reduce in enumerate(definition.reduces):
            uses += infer.uses_of(reduce.body, j, reduce.domain.names)
        self.given = dict(actual)
        for key in actual:
            fewer = {k: v for k, v in self.given.items() if k != key}
            answer = infer.solve(infer.Question(tuple(uses), tuple(actual), fewer))
            if answer.spans == actual:
                self.given = fewer


def text(program: Program) -> str:
    """The text form of a program; ``parse(text(p)) == p``."""
    lines = [f"program {program.name}"]
    for reduction in own_reductions(program):
        lines.append(reduction_text(reduction, Order(program)))
    for t in program.inputs:
        lines.append(f"{'tensor' if t.role == 'input' else t.role} {t}")
    for t in program.constants():
        lines.append(f"constant {t} = {_values(t.values or (), t.shape)}")  # type: ignore[arg-type]
    written, shortened = _declared(program)
    lines += written
    for stage in program.stages:
        for piece in stage.pieces:
            lines.append(definition_text(program, piece, shortened[id(piece)]))
    lines += _custom_gradients(program)
    if program.saved:
        lines.append(f"saved {', '.join(program.saved)}")
    lines += [f"update {state} <- {new}" for state, new in program.updates]
    return "\n".join(lines)


def _custom_gradients(program: Program) -> list[str]:
    """``gradient of Y`` and the program that takes the place of the derivative, indented."""
    given: dict[Program, list[str]] = {}
    for stage in program.stages:
        if stage.backward is not None:
            given.setdefault(stage.backward, []).extend(t.name for t in stage.tensors)
    lines: list[str] = []
    for backward, names in given.items():
        lines.append(f"gradient of {', '.join(names)}")
        lines += [f"  {line}" for line in text(backward).splitlines()]
    return lines


def definition_text(program: Program, piece: Definition, short: Shortened | None) -> str:
    """One line: left sides, bodies, and the ranges and conditions of the left side's axes."""
    writer = Writer(Order(program, piece), piece, short)
    left = ", ".join(writer.access(o) for o in piece.outs)
    right = ", ".join(writer.body(v) for v in piece.values)
    parts = [
        writer.range(r) for r in piece.domain.ranges if short is None or (-1, r.axis) in short.given
    ]
    parts += [writer.constraint(c) for c in piece.domain.constraints]
    return f"{left} = {right}" + (f"   for {', '.join(parts)}" if parts else "")


def own_reductions(program: Program) -> list[Reduction]:
    """The reductions that are not built in, in order of first use."""
    found: dict[str, Reduction] = {}
    for stage in program.stages:
        for piece in stage.pieces:
            for reduce in piece.reduces:
                if reduce.reduction.name not in REDUCTIONS:
                    found.setdefault(reduce.reduction.name, reduce.reduction)
    return list(found.values())


def reduction_text(r: Reduction, order: Order) -> str:
    """The declaration of an own reduction."""
    writer = Writer(order, None)

    def group(items: Sequence[Any]) -> str:
        texts = [
            writer.body(i) if isinstance(i, Expr) else "." if i is None else str(i) for i in items
        ]
        return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"

    parts = [f"lift = {group(r.lift)}", f"combine = {group(r.combine)}"]
    parts += [f"identity = {group(r.identity)}", f"project = {group(r.project)}"]
    if r.adjoint is not None:
        parts.append(f"adjoint = {writer.body(r.adjoint)}")
    if any(d is not None for d in r.dtypes):
        parts.append(f"dtypes = {group(r.dtypes)}")
    if r.companion:
        parts.append(f"companion = {r.companion}")
    parts += [] if r.associative else ["associative = false"]
    parts += [] if r.commutative else ["commutative = false"]
    return f"reduction {r.name}({', '.join(parts)})"


def _values(values: Sequence[Fraction], shape: Sequence[int]) -> str:
    """Nested lists of exact numbers."""
    if not shape:
        return str(values[0])
    step = len(values) // shape[0] if shape[0] else 0
    if len(shape) == 1:
        return f"[{', '.join(map(str, values))}]"
    rows = (_values(values[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0]))
    return f"[{', '.join(rows)}]"


def default_outputs(stages: Sequence[Stage]) -> list[str]:
    """The tensors that are written and not read: the outputs if none are declared."""
    read = {a.tensor.name for s in stages for p in s.pieces for a in p.reads()}
    return [t.name for s in stages for t in s.tensors if t.name not in read]


def _declared(program: Program) -> tuple[list[str], dict[int, Shortened]]:
    """Declarations of written tensors that cannot be inferred, and what each piece must give."""
    from_pieces: dict[str, Tensor] = {}
    needed: set[str] = set()
    for stage in program.stages:
        needed |= _stage_declarations(stage)
        from_pieces.update({t.name: t for t in stage.tensors})
    outputs = [t.name for t in program.outputs]
    lines: list[str] = []
    if outputs != default_outputs(program.stages) or needed & set(outputs):
        needed |= set(outputs)
        lines += [f"output {from_pieces[o]}" for o in outputs] or ["output none"]
    lines += [f"temporary {t}" for n, t in from_pieces.items() if n in needed and n not in outputs]
    declared = {n: t for n, t in from_pieces.items() if n in needed}
    shortened = {
        id(piece): Shortened(piece, declared) for s in program.stages for piece in s.pieces
    }
    return lines, shortened


def _stage_declarations(stage: Stage) -> set[str]:
    """Tensors of a stage whose shape or dtype the definitions do not tell, or whose declaration
    saves ranges where pieces or compound indices are written."""
    needed = _not_inferred(stage)
    compound = any(i.single is None for p in stage.pieces for o in p.outs for i in o.index)
    if len(stage.pieces) > 1 or compound:
        every = {t.name: t for t in stage.tensors}
        without = sum(len(Shortened(p, {}).given) for p in stage.pieces)
        having = sum(len(Shortened(p, every).given) for p in stage.pieces)
        if having < without:
            needed |= every.keys()
    return needed


def _not_inferred(stage: Stage) -> set[str]:
    """The tensors of a stage that parsing it without declarations would make differently."""
    pieces = []
    for piece in stage.pieces:
        dtypes = result_dtypes(piece.reduces)
        outs = tuple(
            Access(
                Tensor(
                    o.tensor.name,
                    written_shape(o.index, piece.domain),
                    body_dtype(v, dtypes) or f32,
                    "output",
                ),
                o.index,
            )
            for o, v in zip(piece.outs, piece.values, strict=True)
        )
        pieces.append(replace(piece, outs=outs))
    try:
        inferred = join_pieces(pieces).tensors
    except ShapeError:
        return {t.name for t in stage.tensors}
    return {
        t.name
        for t, i in zip(stage.tensors, inferred, strict=True)
        if (t.shape, t.dtype) != (i.shape, i.dtype)
    }
