"""The grammar of formulas: tokens to a small syntax tree, which `parse` gives its meaning.

body      comparison
compare   sum (("==" | "!=" | "<" | "<=" | ">" | ">=") sum)*
sum       ["-"] product (("+" | "-") product)*
product   power (("*" | "/" | "//" | "%") power)*
power     atom ["**" ["-"] power]
atom      number | name | "(" body ")" | name "(" body, ... ")"
          | name ["{" boundary, ... "}"] "[" body, ... "]"
          | name "(" range, ... ["where" condition, ...] ":" body ")" ["." item]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from convgen.errors import FormulaError
from convgen.symbolic.tokens import Tokens

LARGEST_EXPONENT = 400  # of a decimal number


@dataclass(frozen=True)
class Number:
    value: Fraction


@dataclass(frozen=True)
class Name:
    text: str


@dataclass(frozen=True)
class Sum:
    """terms added; signs +1 or -1."""

    terms: tuple[tuple[int, Node], ...]


@dataclass(frozen=True)
class Product:
    """factors multiplied, or divided by where the operator is "/"."""

    factors: tuple[tuple[str, Node], ...]


@dataclass(frozen=True)
class Binary:
    operator: str
    left: Node
    right: Node


@dataclass(frozen=True)
class Call:
    name: str
    arguments: tuple[Node, ...]
    where: str


@dataclass(frozen=True)
class Read:
    """name{boundary}[index]; a boundary is a node, or "." or a word as a Name."""

    name: str
    boundary: tuple[Node, ...]
    index: tuple[Node, ...]
    where: str


@dataclass(frozen=True)
class Chain:
    """nodes[0] operators[0] nodes[1] operators[1] ...: a range or a condition."""

    nodes: tuple[Node, ...]
    operators: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class Over:
    """reduction(ranges where conditions: body).item"""

    name: str
    ranges: tuple[Chain, ...]
    conditions: tuple[Chain, ...]
    body: Node
    item: int
    where: str


Node: TypeAlias = "Number | Name | Sum | Product | Binary | Call | Read | Over"
COMPARISONS = ("==", "!=", "<=", ">=", "<", ">")


class Grammar:
    """Reads the bodies of one line."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens, self.depth = tokens, 0

    def body(self) -> Node:
        self._descend()
        left = self.sum()
        if self.tokens.at(*COMPARISONS):
            operator = self.tokens.next().text
            left = Binary(operator, left, self.sum())
        if self.tokens.at(*COMPARISONS):
            raise FormulaError(
                "a chain of comparisons",
                where=self.tokens.where(),
                expected="one comparison in a condition",
                got=f"a second, {self.tokens.peek().text}",
                hint="logical_and(a < b, b < c)",
            )
        self.depth -= 1
        return left

    def _descend(self) -> None:
        self.depth += 1
        self.tokens.check_depth(self.depth)

    def sum(self) -> Node:
        terms = [(1, self.product())]
        while self.tokens.at("+", "-"):
            sign = 1 if self.tokens.next().text == "+" else -1
            terms.append((sign, self.product()))
        return terms[0][1] if len(terms) == 1 else Sum(tuple(terms))

    def product(self) -> Node:
        factors: list[tuple[str, Node]] = []
        while self.tokens.at("-", "+"):
            if self.tokens.next().text == "-":
                factors.append(("*", Number(Fraction(-1))))
        factors.append(("*", self.power()))
        while self.tokens.at("*", "/", "//", "%"):
            operator = self.tokens.next().text
            if operator in ("*", "/"):
                factors.append((operator, self.power()))
            else:
                left = factors[0][1] if len(factors) == 1 else Product(tuple(factors))
                factors = [("*", Binary(operator, left, self.power()))]
        return factors[0][1] if len(factors) == 1 else Product(tuple(factors))

    def power(self) -> Node:
        base = self.atom()
        if not self.tokens.take("**"):
            return base
        self._descend()
        negative = self.tokens.take("-")
        exponent = self.power()
        self.depth -= 1
        if negative:
            exponent = Product((("*", Number(Fraction(-1))), ("*", exponent)))
        return Binary("**", base, exponent)

    def atom(self) -> Node:
        token = self.tokens.peek()
        if token.kind == "number":
            return Number(self.number())
        if self.tokens.take("("):
            inner = self.body()
            self.tokens.expect(")")
            return inner
        if token.kind != "name":
            raise self.tokens.error("a number, a name or a parenthesis")
        where = self.tokens.where()
        follows = self.tokens.peek(1).text
        if follows in ("[", "{"):
            return self.read()
        name = self.tokens.next().text
        if follows == "(":
            return self.call(name, where)
        if self.tokens.at("."):
            raise FormulaError(
                f"{name}. : attributes are not in the language", where=where, got=self.tokens.line
            )
        return Name(name)

    def number(self) -> Fraction:
        token = self.tokens.next()
        mantissa, _, exponent = token.text.lower().partition("e")
        if len(mantissa) > LARGEST_EXPONENT or abs(int(exponent or 0)) > LARGEST_EXPONENT:
            raise FormulaError("a number is too long", where=self.tokens.where(token.column))
        return Fraction(token.text if not token.text.endswith(".") else token.text + "0")

    def items(self, close: str) -> tuple[Node, ...]:
        """Bodies separated by commas up to the closing symbol."""
        found: list[Node] = []
        for _ in self.tokens.until(close):
            found.append(self.body())
        return tuple(found)

    def read(self) -> Read:
        """name{...}[...]"""
        where = self.tokens.where()
        name = self.tokens.name("a tensor")
        kinds: list[Node] = []
        if self.tokens.take("{"):
            for _ in self.tokens.until("}"):
                kinds.append(Name(".") if self.tokens.take(".") else self.body())
        self.tokens.expect("[")
        return Read(name, tuple(kinds), self.items("]"), where)

    def call(self, name: str, where: str) -> Node:
        """A function, or a reduction where a colon follows its ranges."""
        has_ranges = self.tokens.place in self.tokens.with_colon
        self.tokens.expect("(")
        if not has_ranges:
            return Call(name, self.items(")"), where)
        ranges = [self.chain()]
        while self.tokens.take(","):
            ranges.append(self.chain())
        conditions: list[Chain] = []
        if self.tokens.take("where"):
            conditions.append(self.chain())
            while self.tokens.take(","):
                conditions.append(self.chain())
        self.tokens.expect(":")
        body = self.body()
        self.tokens.expect(")")
        item = 0
        if re.fullmatch(r"\.\d+", self.tokens.peek().text):
            item = int(self.tokens.next().text[1:])
        return Over(name, tuple(ranges), tuple(conditions), body, item, where)

    def chain(self) -> Chain:
        """A range or condition: sums joined by comparisons."""
        where = self.tokens.where()
        nodes, operators = [self.sum()], []
        while self.tokens.at(*COMPARISONS):
            operators.append(self.tokens.next().text)
            nodes.append(self.sum())
        return Chain(tuple(nodes), tuple(operators), where)
