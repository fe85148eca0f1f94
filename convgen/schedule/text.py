"""The text form of schedules, read back.

``cover(x, 10, 9); split(k, 32); vectorize(k_in)`` for a kernel with one nest; with several, a line
for each run of directives: ``Y: split(k, 32)``. Nothing is evaluated: a scanner and a table of
directive names are all there is.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable

from convgen.errors import ScheduleError
from convgen.schedule import directives
from convgen.schedule.directives import Directive

_TABLE: dict[str, Callable[..., Directive]] = {
    "split": directives.split,
    "cover": directives.cover,
    "peel": directives.peel,
    "reorder": directives.reorder,
    "fuse": directives.fuse,
    "reverse": directives.reverse,
    "unroll": directives.unroll,
    "vectorize": directives.vectorize,
    "parallel": directives.parallel,
    "carry": directives.carry,
    "rfactor": directives.rfactor,
    "pack": directives.pack,
    "unfold": directives.unfold,
    "fold": directives.fold,
    "collect": directives.collect,
    "compute_at": directives.compute_at,
    "inline": directives.inline,
    "join": directives.join,
    "partial": directives.partial,
}

_TOKEN = re.compile(
    r"\s*(?:(?P<name>[^\W\d][\w.']*)|(?P<number>\d+)|(?P<text>'[a-z]+'|\"[a-z]+\")"
    r"|(?P<sign>[(),;:=\n]))"
)
_BOOLS = {"True": True, "False": False}


def parse_directives(text: str) -> tuple[Directive, ...]:
    """The directives of a text, in order. Raises ScheduleError where it is not one.

    >>> [str(d) for d in parse_directives("split(k, 32); pack(W, k_in, hoist=True)")]
    ['split(k, 32)', 'pack(W, k_in, hoist=True)']
    """
    found: list[Directive] = []
    for line in text.splitlines():
        scanner = _Scanner(line)
        nest = scanner.nest()
        while scanner.more():
            found.append(_directive(scanner, nest))
            if scanner.more():
                scanner.take(";")
    return tuple(found)


class _Scanner:
    """Tokens of one line, with the places they came from."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.tokens: list[tuple[str, str]] = []
        place, end = 0, len(line.rstrip())
        while place < end:
            match = _TOKEN.match(line, place)
            if match is None or match.lastgroup is None:
                self.tokens.append(("bad", line[place:].strip()[:1]))
                break
            self.tokens.append((match.lastgroup, match.group(match.lastgroup)))
            place = match.end()
        self.at = 0

    def more(self) -> bool:
        return self.at < len(self.tokens)

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.more() else ("end", "the end")

    def next(self) -> tuple[str, str]:
        token = self.peek()
        self.at += 1
        return token

    def take(self, sign: str) -> None:
        kind, word = self.next()
        if word != sign or kind != "sign":
            self.fail(f"'{sign}'", word)

    def nest(self) -> str:
        """The name before a colon, "" where there is none."""
        if len(self.tokens) > 1 and self.tokens[1] == ("sign", ":") and self.tokens[0][0] == "name":
            self.at = 2
            return self.tokens[0][1]
        return ""

    def fail(self, expected: str, got: str, hint: str = "split(x, 4); vectorize(x_in)") -> None:
        raise ScheduleError(
            "this is not a schedule",
            expected=expected,
            got=got if got == "the end" else repr(got),
            where=self.line.strip(),
            hint=hint,
        )


def _directive(scanner: _Scanner, nest: str) -> Directive:
    kind, word = scanner.next()
    if kind != "name" or word not in _TABLE:
        near = difflib.get_close_matches(word.lower(), _TABLE, n=1, cutoff=0.75)
        scanner.fail("one of " + " ".join(_TABLE), word, *(f"{name}(...)" for name in near))
    scanner.take("(")
    positional: list[str | int | bool] = []
    named: dict[str, str | int | bool] = {}
    while scanner.peek() != ("sign", ")"):
        first_kind, first = scanner.next()
        if scanner.peek() == ("sign", "=") and first_kind == "name":
            scanner.next()
            named[first] = _value(scanner, *scanner.next())
        else:
            positional.append(_value(scanner, first_kind, first))
        if scanner.peek() != ("sign", ")"):
            scanner.take(",")
    scanner.take(")")
    return _build(scanner, word, positional, named, nest)


def _value(scanner: _Scanner, kind: str, word: str) -> str | int | bool:
    if kind == "number":
        return int(word)
    if kind == "text":
        return word[1:-1]
    if kind != "name":
        scanner.fail("a name or a number", word)
    return _BOOLS.get(word, word)


def _build(
    scanner: _Scanner,
    word: str,
    positional: list[str | int | bool],
    named: dict[str, str | int | bool],
    nest: str,
) -> Directive:
    """Call the directive after holding the arguments against its signature."""
    make = _TABLE[word]
    signature = inspect.signature(make, eval_str=False)
    shown = f"{word}({', '.join(p for p in signature.parameters if p != 'nest')})"
    try:
        bound = signature.bind(*positional, **named)
    except TypeError as error:
        raise ScheduleError(
            str(error), expected=shown, got=f"{word}{tuple(positional)}", where=scanner.line.strip()
        ) from None
    kinds = {"str": str, "int": int, "bool": bool}
    for name, value in bound.arguments.items():
        wanted = kinds[str(signature.parameters[name].annotation)]
        for item in value if isinstance(value, tuple) else (value,):
            if type(item) is not wanted or name == "nest":
                scanner.fail(f"{shown} with {name} a {wanted.__name__}", str(item))
    return make(*positional, **named, nest=nest)
