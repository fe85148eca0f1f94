"""Tokens of the text form. Nothing of Python's is run: a character is in this list or refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from convgen.errors import FormulaError

DEEPEST = 100  # levels of nesting: of parentheses, powers, lists of values

_PATTERN = re.compile(
    r"""(?P<space>[ \t]+)
      | (?P<number>(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?)
      | (?P<name>[^\W\d]\w*'*)
      | (?P<symbol>\*\*|//|<=|>=|==|!=|<-|[-+*/%<>=()\[\]{},:.])
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Token:
    """kind: number, name, symbol or end."""

    kind: str
    text: str
    column: int


class Tokens:
    """The tokens of one line, with a place to read from."""

    def __init__(self, line: str, number: int = 1) -> None:
        self.line, self.number, self.place = line, number, 0
        self.items = self._scan(line)

    def _scan(self, line: str) -> list[Token]:
        found: list[Token] = []
        column = 0
        while column < len(line):
            match = _PATTERN.match(line, column)
            if match is None:
                raise FormulaError(
                    f"the character {line[column]!r} is not in the language",
                    where=self.where(column),
                    got=line,
                )
            kind = match.lastgroup or ""
            kind = next(k for k in ("space", "number", "name", "symbol") if match.group(k))
            if kind != "space":
                text = match.group()
                if text.startswith("__"):
                    raise FormulaError(
                        f"the name {text} is not in the language", where=self.where(column)
                    )
                found.append(Token(kind, text, column))
            column = match.end()
        found.append(Token("end", "", len(line)))
        return found

    @cached_property
    def with_colon(self) -> frozenset[int]:
        """Places of opening brackets that hold a colon of their own: those of reductions."""
        found: set[int] = set()
        open_places: list[int] = []
        for place, token in enumerate(self.items):
            if token.kind != "symbol":
                continue
            if token.text in "([{":
                open_places.append(place)
            elif token.text in ")]}" and open_places:
                open_places.pop()
            elif token.text == ":" and open_places:
                found.add(open_places[-1])
        return frozenset(found)

    def check_depth(self, depth: int) -> None:
        """Refuse nesting that would exhaust the stack of whatever walks the formula."""
        if depth > DEEPEST:
            raise FormulaError(
                "the formula is nested too deeply",
                where=self.where(),
                expected=f"at most {DEEPEST} levels",
            )

    def where(self, column: int | None = None) -> str:
        at = self.peek().column if column is None else column
        return f"line {self.number}, column {at + 1}"

    def peek(self, ahead: int = 0) -> Token:
        return self.items[min(self.place + ahead, len(self.items) - 1)]

    def next(self) -> Token:
        token = self.peek()
        self.place = min(self.place + 1, len(self.items) - 1)
        return token

    def at(self, *texts: str) -> bool:
        """True when the next token is one of these symbols or words."""
        token = self.peek()
        return token.kind != "number" and token.text in texts and token.kind != "end"

    def take(self, text: str) -> bool:
        """Step over `text` if it comes next."""
        if self.at(text):
            self.next()
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise self.error(f"{text!r}")

    def until(self, close: str) -> Iterator[None]:
        """Once for each item of a list with commas between them, up to the closing symbol."""
        first = True
        while not self.take(close):
            if not first and not self.take(","):
                raise self.error(f"',' or {close!r}")
            first = False
            yield

    def name(self, what: str = "a name") -> str:
        if self.peek().kind != "name":
            raise self.error(what)
        return self.next().text

    def integer(self, what: str = "an integer") -> int:
        sign = -1 if self.take("-") else 1
        if self.peek().kind != "number" or not self.peek().text.isdigit():
            raise self.error(what)
        return sign * int(self.next().text)

    def end(self) -> None:
        if self.peek().kind != "end":
            raise self.error("the end of the line")

    def error(self, expected: str) -> FormulaError:
        token = self.peek()
        return FormulaError(
            f"cannot read {self.line.strip()!r}",
            where=self.where(),
            expected=expected,
            got=repr(token.text) if token.kind != "end" else "the end of the line",
        )
