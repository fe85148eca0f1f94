"""Programs as LaTeX: an ``aligned`` block for any engine that knows amsmath."""

from __future__ import annotations

import unicodedata
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

BIG = {"sum": r"\sum", "prod": r"\prod", "max": r"\max", "min": r"\min"}
OWN = ("exp", "log", "tanh", "max", "min")  # functions that LaTeX has names for
FENCES = {
    "()": ("(", ")"),
    "[]": ("[", "]"),
    "||": ("|", "|"),
    "floor": (r"\lfloor", r"\rfloor"),
}


def latex(program: Program) -> str:
    """An ``aligned`` block with a line for each definition, long ones broken (no dollar signs)."""
    return aligned(notation.program_lines(program))


def definition_latex(program: Program, piece: Definition) -> str:
    """One definition as an ``aligned`` block."""
    return aligned(notation.definition_lines(program, piece))


def aligned(lines: list[Line]) -> str:
    """Lines as an ``aligned`` block."""
    return "\\begin{aligned}\n" + " \\\\\n".join(_line(line) for line in lines) + "\n\\end{aligned}"


def _line(line: Line) -> str:
    right = render(line.right)
    if line.left is None:
        return rf"&\quad {right}"
    return f"{render(line.left)} &{SIGNS[line.relation][0]} {right}"


def name_latex(name: str) -> str:
    r"""A tensor's or axis's name: letters in italics, words upright, Greek letters as such.

    >>> print(name_latex("X"), name_latex("gamma"), name_latex("new_mean"), name_latex("dX'"))
    X \gamma \mathrm{new\_mean} \mathrm{d}X'
    """
    return render(notation.name_box(name))


def render(box: Box) -> str:
    """A box as LaTeX."""
    match box:
        case Name():
            return _name(box)
        case Word():
            return _word(box.text)
        case Number():
            return box.text.replace("\N{INFINITY}", r"\infty")
        case Sign():
            return SIGNS[box.text][0]
        case Row():
            return _row(box)
        case Scripts():
            sub = "" if box.sub is None else f"_{{{render(box.sub)}}}"
            sup = "" if box.sup is None else f"^{{{render(box.sup)}}}"
            base = render(box.base)
            return f"{{{base}}}{sup}{sub}" if sup and base[-1] == "'" else f"{base}{sup}{sub}"
        case Power():
            base = render(box.base)
            base = f"{{{base}}}" if isinstance(box.base, (Scripts, Row)) else base
            return f"{base}^{{{render(box.exponent)}}}"
        case Fraction():
            return rf"\frac{{{render(box.over)}}}{{{render(box.under)}}}"
        case Root():
            return rf"\sqrt{{{render(box.inner)}}}"
        case Fence():
            left, right = FENCES[box.kind]
            return (
                rf"\left{left}{' ' if left[0] == chr(92) else ''}{render(box.inner)}\right{right}"
            )
        case Under():
            return _under(box)
        case Cases():
            rest = r"\text{otherwise}"
            rows = [
                f"{render(value)} & {rest if where is None else render(where)}"
                for value, where in box.rows
            ]
            return r"\begin{cases} " + r" \\ ".join(rows) + r" \end{cases}"


def _name(box: Name) -> str:
    primes = "'" * box.primes
    letter = _greek(box.text) if len(box.text) == 1 else box.text
    if letter in GREEK:
        return f"\\{letter}{primes}"
    if not box.text.isascii():
        return rf"\text{{{_escape(box.text)}}}" + primes
    return (box.text if len(box.text) == 1 else rf"\mathrm{{{_escape(box.text)}}}") + primes


def _greek(letter: str) -> str:
    """The name of a letter that is Greek; any other letter as it is.

    >>> _greek("\N{GREEK SMALL LETTER ALPHA}"), _greek("X")
    ('alpha', 'X')
    """
    words = unicodedata.name(letter, "").split()
    if words[:1] != ["GREEK"] or words[2:3] != ["LETTER"]:
        return letter
    name = words[-1].replace("LAMDA", "LAMBDA")
    return name.capitalize() if words[1] == "CAPITAL" else name.lower()


def _word(text: str) -> str:
    if text in OWN:
        return f"\\{text}"
    if " " in text:
        return rf"\text{{{_escape(text)}}}"
    return rf"\mathrm{{{_escape(text)}}}"


def _row(box: Row) -> str:
    """Side by side: binary signs between blanks, a leading minus close to what it stands before."""
    out = ""
    for i, item in enumerate(box.items):
        text = render(item)
        if isinstance(item, Sign) and item.text not in (" ", "quad", ".", "/", ",", ";"):
            out += f"{'' if out.endswith(' ') else ' '}{text} " if i else text
        elif isinstance(item, Sign) and item.text in (",", ";"):
            out += f"{text} "
        elif isinstance(item, Sign) and item.text == ".":
            out += f" {text} "
        elif out and out[-1].isalpha() and "\\" in out[out.rfind(" ") + 1 :] and text[:1].isalpha():
            out += f" {text}"
        else:
            out += text
    return out


def _under(box: Under) -> str:
    sign = BIG.get(box.sign, rf"\operatorname*{{{_escape(box.sign)}}}")
    above = f"^{{{box.above}}}" if box.above else ""
    rows = [render(r) for r in box.rows]
    if not rows:
        return sign + above
    under = rows[0] if len(rows) == 1 else r"\substack{" + r" \\ ".join(rows) + "}"
    return f"{sign}_{{{under}}}{above}"


def _escape(text: str) -> str:
    out = text.replace("\\", r"\textbackslash ")
    for sign in "&%$#_{}":
        out = out.replace(sign, "\\" + sign)
    return out
