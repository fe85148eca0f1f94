"""What a formula looks like, before it is LaTeX or MathML: a tree of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Name:
    """A name in italics when it is one letter or a Greek one, upright otherwise, with primes."""

    text: str
    primes: int = 0


@dataclass(frozen=True)
class Word:
    """Upright text: a function's name, a mode, a remark."""

    text: str


@dataclass(frozen=True)
class Number:
    """Digits as they stand."""

    text: str


@dataclass(frozen=True)
class Sign:
    """An operator: one of `SIGNS`."""

    text: str


@dataclass(frozen=True)
class Row:
    """Boxes side by side."""

    items: tuple[Box, ...]


@dataclass(frozen=True)
class Scripts:
    """base with boxes below and above to the right."""

    base: Box
    sub: Box | None = None
    sup: Box | None = None


@dataclass(frozen=True)
class Power:
    """base to an exponent."""

    base: Box
    exponent: Box


@dataclass(frozen=True)
class Fraction:
    """over / under."""

    over: Box
    under: Box


@dataclass(frozen=True)
class Root:
    """A square root."""

    inner: Box


@dataclass(frozen=True)
class Fence:
    """inner between delimiters that grow with it: ( ) [ ] | | floor."""

    kind: Literal["()", "[]", "||", "floor"]
    inner: Box


@dataclass(frozen=True)
class Under:
    """A big sign (sum, prod, max, min or a word) with rows under it and a mark above."""

    sign: str
    rows: tuple[Box, ...]
    above: str = ""


@dataclass(frozen=True)
class Cases:
    """(value, condition) rows behind a brace; a condition of None is the rest."""

    rows: tuple[tuple[Box, Box | None], ...]


@dataclass(frozen=True)
class Line:
    """One line of an aligned block: left side (None where a line goes on), relation, right side."""

    left: Box | None
    relation: str
    right: Box


Box: TypeAlias = (
    "Name | Word | Number | Sign | Row | Scripts | Power | Fraction | Root | Fence | Under | Cases"
)

# sign -> (LaTeX, Unicode)
SIGNS: dict[str, tuple[str, str]] = {
    "+": ("+", "+"),
    "-": ("-", "\N{MINUS SIGN}"),
    "=": ("=", "="),
    "<": ("<", "<"),
    "<=": (r"\le", "\N{LESS-THAN OR EQUAL TO}"),
    "<-": (r"\leftarrow", "\N{LEFTWARDS ARROW}"),
    "mod": (r"\bmod", "mod"),
    "equiv": (r"\equiv", "\N{IDENTICAL TO}"),
    ",": (",", ","),
    ";": (r",\;", ","),
    " ": (r" \, ", "\N{THIN SPACE}"),
    "quad": (r" \qquad ", "\N{EM SPACE}"),
    ".": (r"\cdot", "\N{MIDDLE DOT}"),
    "/": ("/", "/"),
}


def row(items: Sequence[Box]) -> Box:
    """Boxes side by side; one alone is itself."""
    return items[0] if len(items) == 1 else Row(tuple(items))


def separated(items: Sequence[Box], sign: str) -> Box:
    """Boxes with a sign between them."""
    out: list[Box] = []
    for item in items:
        out += [Sign(sign), item] if out else [item]
    return row(out) if out else Row(())


def width(box: Box | None) -> int:
    """Roughly how many letters wide a box is."""
    match box:
        case None:
            return 0
        case Name() | Word() | Number():
            return len(box.text)
        case Sign():
            return 3 if box.text in ("+", "-", "=", "<", "<=", "mod", "quad") else 1
        case Row():
            return sum(width(i) for i in box.items)
        case Scripts():
            return width(box.base) + max(width(box.sub), width(box.sup)) * 2 // 3
        case Power():
            return width(box.base) + width(box.exponent) * 2 // 3
        case Fraction():
            return max(width(box.over), width(box.under))
        case Root() | Fence():
            return width(box.inner) + 2
        case Under():
            return max([4, *(width(r) * 2 // 3 for r in box.rows)])
        case Cases():
            return max(width(a) + width(b) + 4 for a, b in box.rows)
