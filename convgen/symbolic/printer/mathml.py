"""Programs as MathML (the Core of it that browsers render), for pages that load nothing."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from convgen.symbolic.expr import Definition
from convgen.symbolic.printer import notation
from convgen.symbolic.printer.boxes import (
    SIGNS,
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
)
from convgen.symbolic.printer.notation import GREEK

if TYPE_CHECKING:
    from convgen.symbolic.program import Program

BIG = {"sum": "\N{N-ARY SUMMATION}", "prod": "\N{N-ARY PRODUCT}"}
FENCES = {
    "()": ("(", ")"),
    "[]": ("[", "]"),
    "||": ("|", "|"),
    "floor": ("\N{LEFT FLOOR}", "\N{RIGHT FLOOR}"),
}
_SMALL = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho"
_REST = "sigma tau upsilon phi chi psi omega"
_LOWER = {
    **{n: chr(0x3B1 + i) for i, n in enumerate(_SMALL.split())},
    **{n: chr(0x3C3 + i) for i, n in enumerate(_REST.split())},
}
LETTERS = {**_LOWER, **{n.capitalize(): c.upper() for n, c in _LOWER.items()}}


def mathml(program: Program) -> str:
    """A ``<math>`` element with a table: a row for each definition, long ones broken."""
    return table(notation.program_lines(program))


def definition_mathml(program: Program, piece: Definition) -> str:
    """One definition as a ``<math>`` element."""
    return table(notation.definition_lines(program, piece))


def table(lines: list[Line]) -> str:
    """Lines as a ``<math>`` element, aligned at their relations."""
    rows = "".join(f"<mtr>{_cells(line)}</mtr>" for line in lines)
    return (
        f'<math display="block" class="formula"><mtable displaystyle="true">{rows}</mtable></math>'
    )


def inline(box: Box) -> str:
    """A box as a ``<math>`` element within a line of text."""
    return f"<math>{render(box)}</math>"


def _cells(line: Line) -> str:
    right = render(line.right)
    if line.left is None:
        return (
            '<mtd></mtd><mtd></mtd><mtd style="text-align:left">'
            f'<mspace width="1.2em"></mspace>{right}</mtd>'
        )
    return (
        f'<mtd style="text-align:right">{render(line.left)}</mtd>'
        f"<mtd><mo>{html.escape(SIGNS[line.relation][1])}</mo></mtd>"
        f'<mtd style="text-align:left">{right}</mtd>'
    )


def render(box: Box) -> str:
    """A box as MathML; whatever a user named is escaped.

    >>> render(Name("a<b"))
    '<mi mathvariant="normal">a&lt;b</mi>'
    """
    match box:
        case Name():
            return _name(box)
        case Word():
            text = html.escape(box.text.replace(" ", "\N{NO-BREAK SPACE}"))
            return (
                f"<mtext>{text}</mtext>"
                if " " in box.text or len(box.text) == 1
                else _upright(text)
            )
        case Number():
            return f"<mn>{html.escape(box.text)}</mn>"
        case Sign():
            return _sign(box.text)
        case Row():
            return f"<mrow>{_items(box)}</mrow>"
        case Scripts():
            return _scripts(box)
        case Power():
            return f"<msup>{_one(box.base)}{_one(box.exponent)}</msup>"
        case Fraction():
            return f"<mfrac>{_one(box.over)}{_one(box.under)}</mfrac>"
        case Root():
            return f"<msqrt>{render(box.inner)}</msqrt>"
        case Fence():
            left, right = FENCES[box.kind]
            return (
                f'<mrow><mo fence="true" form="prefix">{left}</mo>{render(box.inner)}'
                f'<mo fence="true" form="postfix">{right}</mo></mrow>'
            )
        case Under():
            return _under(box)
        case Cases():
            return _cases(box)


def _name(box: Name) -> str:
    text = LETTERS[box.text] if box.text in GREEK else html.escape(box.text)
    inner = f"<mi>{text}</mi>" if len(text) == 1 else _upright(text)
    if not box.primes:
        return inner
    prime = "\N{PRIME}" * box.primes
    return f'<mrow>{inner}<mo form="postfix" lspace="0" rspace="0">{prime}</mo></mrow>'


def _upright(text: str) -> str:
    return f'<mi mathvariant="normal">{text}</mi>'


def _one(box: Box) -> str:
    """A box as exactly one element."""
    text = render(box)
    return (
        f"<mrow>{text}</mrow>" if isinstance(box, Row) and not text.startswith("<mrow>") else text
    )


def _items(box: Row) -> str:
    out = ""
    for i, item in enumerate(box.items):
        if isinstance(item, Sign) and item.text in "+-" and i == 0:
            out += f'<mo form="prefix">{SIGNS[item.text][1]}</mo>'
        else:
            out += render(item)
    return out


def _sign(text: str) -> str:
    if text == " ":
        return '<mspace width="0.17em"></mspace>'
    if text == "quad":
        return '<mspace width="2em"></mspace>'
    if text in (",", ";"):
        space = '<mspace width="0.5em"></mspace>' if text == ";" else ""
        return f'<mo separator="true">,</mo>{space}'
    return f"<mo>{html.escape(SIGNS[text][1])}</mo>"


def _scripts(box: Scripts) -> str:
    base = _one(box.base)
    if box.sub is not None and box.sup is not None:
        return f"<msubsup>{base}{_one(box.sub)}{_one(box.sup)}</msubsup>"
    if box.sub is not None:
        return f"<msub>{base}{_one(box.sub)}</msub>"
    return base if box.sup is None else f"<msup>{base}{_one(box.sup)}</msup>"


def _under(box: Under) -> str:
    if box.sign in BIG:
        look = 'movablelimits="false" largeop="false" style="font-size:1.6em"'
        sign = f"<mo {look}>{BIG[box.sign]}</mo>"
    else:
        sign = f'<mo movablelimits="false" form="prefix">{html.escape(box.sign)}</mo>'
    if box.above:
        sign = f"<msup>{sign}<mtext>{html.escape(box.above)}</mtext></msup>"
    rows = [render(r) for r in box.rows]
    if not rows:
        return sign
    cells = "".join(f"<mtr><mtd>{r}</mtd></mtr>" for r in rows)
    under = f"<mrow>{rows[0]}</mrow>" if len(rows) == 1 else f"<mtable>{cells}</mtable>"
    return f'<munder>{sign}<mstyle scriptlevel="1">{under}</mstyle></munder>'


def _cases(box: Cases) -> str:
    rows = "".join(
        f'<mtr><mtd style="text-align:left">{render(value)}</mtd>'
        f'<mtd style="text-align:left;padding-left:1em">'
        f"{'<mtext>otherwise</mtext>' if where is None else render(where)}</mtd></mtr>"
        for value, where in box.rows
    )
    return f'<mrow><mo fence="true" form="prefix">{{</mo><mtable>{rows}</mtable></mrow>'
