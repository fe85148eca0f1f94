"""The text form of programs, read back. `printer.text` writes it.

The text meets a tokenizer and a grammar of its own with a list of allowed names; nothing of it is
ever run as Python.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from sympy import Symbol

from convgen.errors import FormulaError, ShapeError, UserError
from convgen.symbolic import reductions
from convgen.symbolic.assemble import assemble
from convgen.symbolic.build import Out, build_definition, join_pieces
from convgen.symbolic.derive.custom import check_backward
from convgen.symbolic.dsl import tensor as make_tensor
from convgen.symbolic.expr import Definition, Extent, Role, Size, Stage, Tensor
from convgen.symbolic.grammar import Chain, Grammar, Node, Read
from convgen.symbolic.meaning import Meaning
from convgen.symbolic.printer.text import default_outputs
from convgen.symbolic.program import Program
from convgen.symbolic.reductions import Reduction
from convgen.symbolic.tokens import Tokens
from convgen.types import DType, dtype_of

DECLARATIONS: dict[str, Role] = {
    "tensor": "input",
    "parameter": "parameter",
    "state": "state",
    "constant": "constant",
    "output": "output",
    "temporary": "temporary",
}


def parse(text: str, /, **shapes: Any) -> Program:
    """The Program that a text says, in the full form or as one line with shapes as keywords.

    shapes: tuples of integers and names of sizes, or Tensors, of tensors that are read (or written:
    then its axes run over that shape) and have no declaration.
    Inputs are ordered as declared, else as they first occur in the text. Raises FormulaError for
    what is not in the language (with line and column), ShapeError where extents do not fit.

    >>> print(parse("Y[n, k] = sum(c: X[n, c] * W[k, c])", X=("N", 3), W=(4, 3)))
    program Y
    tensor X: f32[N, 3]
    tensor W: f32[4, 3]
    Y[n, k] = sum(c: X[n, c] * W[k, c])
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise FormulaError("a formula is text", got=type(text).__name__)
    return _Reader(shapes).program(_lines(text), text)


def _lines(text: str) -> list[tuple[int, str]]:
    """Statements with the number of their first line; open brackets continue on the next line."""
    found: list[tuple[int, str]] = []
    depth = 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split("#")[0].rstrip()
        if not line.strip():
            continue
        if depth > 0 and found:
            found[-1] = (found[-1][0], found[-1][1] + " " + line.strip())
        else:
            found.append((number, line))
        depth += sum(line.count(c) for c in "([{") - sum(line.count(c) for c in ")]}")
    return found


def _below(line: str, others: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """The first of the other lines, as many as are indented more than this one."""

    def indent(text: str) -> int:
        return len(text) - len(text.lstrip())

    return list(itertools.takewhile(lambda other: indent(other[1]) > indent(line), others))


class _Reader:
    """Reads the statements of one program in order."""

    def __init__(self, shapes: Mapping[str, Any]) -> None:
        self.shapes = dict(shapes)
        self.name = ""
        self.known: dict[str, Tensor] = {}
        self.inputs: list[Tensor] = []
        self.declared: dict[str, tuple[tuple[Extent, ...], DType]] = {}
        self.outputs: list[str] | None = None
        self.reductions: dict[str, Reduction] = {}
        self.sizes: dict[str, Size] = {}
        self.stages: list[Stage] = []
        self.open: list[Definition] = []
        self.saved: list[str] = []
        self.updates: list[tuple[str, str]] = []
        self.gradients: dict[str, Program] = {}
        for name, shape in self.shapes.items():
            if isinstance(shape, Mapping):
                raise FormulaError(
                    f"{name}= is a mapping",
                    expected="a shape for each tensor, as a keyword of its own",
                    hint="parse(text, X=(2, 3)), or parse(text, **shapes)",
                )
            self._note_sizes(shape.shape if isinstance(shape, Tensor) else shape)

    def program(self, lines: Sequence[tuple[int, str]], text: str) -> Program:
        waiting = list(lines)
        while waiting:
            number, line = waiting.pop(0)
            try:
                if line.split()[:2] == ["gradient", "of"]:
                    inner = _below(line, waiting)
                    del waiting[: len(inner)]
                    self._gradient(line, number, inner)
                else:
                    self._statement(line, number)
            except UserError as error:
                if error.where is None:
                    raise type(error)(
                        error.message,
                        expected=error.expected,
                        got=error.got,
                        hint=error.hint,
                        where=f"line {number}",
                    ) from error
                raise
        self._close()
        if not self.stages:
            raise FormulaError("no formula in the text", expected="Y[...] = ...", got=repr(text))
        unused = [n for n in self.shapes if n not in self.known]
        if unused:
            raise FormulaError(f"a shape is given for {unused[0]}, which the formula does not read")
        missing = [n for n in self.declared if n not in self.known]
        if missing:
            raise FormulaError(f"{missing[0]} is declared and never written")
        outputs = default_outputs(self.stages) if self.outputs is None else self.outputs
        name = self.name or (outputs or [t.name for t in self.stages[-1].tensors])[-1]
        stages = [self._with_gradient(stage) for stage in self.stages]
        program = assemble(name, stages, outputs, self.inputs, self.saved, self.updates)
        program.check()
        every = list(program.tensors().values())
        for stage in program.stages:
            if stage.backward is not None:
                check_backward(program, stage.backward, every, every)
        return program

    # -- custom gradients -----------------------------------------------------------------------

    def _gradient(self, line: str, number: int, inner: Sequence[tuple[int, str]]) -> None:
        """``gradient of Y, Z`` and the lines of a program that are indented below it."""
        names = [n.strip() for n in line.split(None, 2)[2].split(",")] if line.split()[2:] else []
        self._close()
        written = [t.name for s in self.stages for t in s.tensors]
        for name in names or [""]:
            if name not in written:
                raise FormulaError(
                    f"the gradient of {name or 'nothing'} is given",
                    where=f"line {number}",
                    expected="one of " + ", ".join(written) + ", written above",
                )
        if not inner:
            raise FormulaError(
                f"no gradient of {names[0]}",
                where=f"line {number}",
                expected="the lines of a program, indented, below",
            )
        backward = _Reader({}).program(inner, line)
        self.gradients.update(dict.fromkeys(names, backward))

    def _with_gradient(self, stage: Stage) -> Stage:
        found = [self.gradients[t.name] for t in stage.tensors if t.name in self.gradients]
        return replace(stage, backward=found[0]) if found else stage

    # -- statements -----------------------------------------------------------------------------

    def _statement(self, line: str, number: int) -> None:
        words = line.split(None, 1)
        if words[0] == "program" and len(words) == 2 and not words[1].startswith(("[", "{", "=")):
            self.name = words[1].strip()
            return
        tokens = Tokens(line, number)
        first, second = tokens.peek(), tokens.peek(1)
        if first.kind != "name" or second.kind != "name":
            self._definition(tokens)
            return
        match first.text:
            case "reduction":
                self._reduction(tokens)
            case "saved":
                self._saved(tokens)
            case "update":
                self._update(tokens)
            case word if word in DECLARATIONS:
                self._declaration(tokens, DECLARATIONS[word])
            case word:
                raise FormulaError(
                    f"cannot read {line.strip()!r}",
                    where=tokens.where(),
                    expected="program, reduction, saved, update, "
                    + ", ".join(DECLARATIONS)
                    + " or a formula",
                    got=word,
                )

    def _declaration(self, tokens: Tokens, role: Role) -> None:
        tokens.next()
        name = tokens.name("the name of a tensor")
        if role == "output" and name == "none" and tokens.peek().kind == "end":
            self.outputs = []
            return
        tokens.expect(":")
        dtype = dtype_of(tokens.name("a dtype"))
        shape = self._shape(tokens)
        if name in self.known or name in self.declared:
            raise FormulaError(f"{name} is declared twice", where=tokens.where())
        if role == "constant":
            tokens.expect("=")
            self.known[name] = make_tensor(name, shape, dtype, "constant", self._values(tokens))
        elif role in ("output", "temporary"):
            self.declared[name] = (shape, dtype)
            if role == "output":
                self.outputs = [*(self.outputs or []), name]
        else:
            self.known[name] = make_tensor(name, shape, dtype, role)
            self.inputs.append(self.known[name])
        tokens.end()

    def _shape(self, tokens: Tokens) -> tuple[Extent, ...]:
        tokens.expect("[")
        shape: list[Extent] = []
        for _ in tokens.until("]"):
            named = tokens.peek().kind == "name"
            shape.append(Size(tokens.next().text) if named else tokens.integer("an extent"))
        if any(isinstance(e, int) and e < 0 for e in shape):
            raise ShapeError("a negative extent", where=tokens.where(), expected="integers >= 0")
        self._note_sizes(shape)
        return tuple(shape)

    def _note_sizes(self, shape: Any) -> None:
        for extent in shape if isinstance(shape, (tuple, list)) else [shape]:
            if isinstance(extent, (str, Size)):
                name = extent if isinstance(extent, str) else extent.name
                self.sizes[name] = Size(name)

    def _values(self, tokens: Tokens, depth: int = 0) -> list[Any] | Fraction:
        tokens.check_depth(depth)
        if not tokens.take("["):
            sign = -1 if tokens.take("-") else 1
            if tokens.peek().kind != "number":
                raise tokens.error("a number")
            value = sign * Grammar(tokens).number()
            return value / Grammar(tokens).number() if tokens.take("/") else value
        found: list[Any] = []
        for _ in tokens.until("]"):
            found.append(self._values(tokens, depth + 1))
        return found

    def _saved(self, tokens: Tokens) -> None:
        tokens.next()
        self.saved.append(tokens.name("a tensor"))
        while tokens.take(","):
            self.saved.append(tokens.name("a tensor"))
        tokens.end()

    def _update(self, tokens: Tokens) -> None:
        tokens.next()
        state = tokens.name("a state")
        tokens.expect("<-")
        self.updates.append((state, tokens.name("a tensor")))
        tokens.end()

    # -- formulas ---------------------------------------------------------------------------------

    def _tensor(self, name: str, where: str) -> Tensor:
        if name not in self.known and any(
            o.tensor.name == name for d in self.open[-1:] for o in d.outs
        ):
            self._close()
        if name not in self.known and name in self.shapes:
            shape = self.shapes[name]
            made = shape if isinstance(shape, Tensor) else make_tensor(name, shape)
            if made.name != name:
                raise FormulaError(f"{name}= is given the tensor {made.name}")
            self.known[name] = made
            if made.role != "constant":
                self.inputs.append(made)
        if name not in self.known:
            raise FormulaError(
                f"unknown tensor {name}",
                where=where,
                expected="one of " + ", ".join(self.known) if self.known else "a declared tensor",
                hint=f"a line `tensor {name}: f32[...]`, or {name}=(...) / --shape {name}=...",
            )
        return self.known[name]

    def _definition(self, tokens: Tokens) -> None:
        grammar = Grammar(tokens)
        meaning = Meaning(self._tensor, self.sizes, self.reductions)
        lefts = [grammar.read()]
        while tokens.take(","):
            lefts.append(grammar.read())
        tokens.expect("=")
        nodes = [grammar.body()]
        while tokens.take(","):
            nodes.append(grammar.body())
        chains: list[Chain] = []
        if tokens.take("for"):
            chains.append(grammar.chain())
            while tokens.take(","):
                chains.append(grammar.chain())
        tokens.end()
        names = [r.name for r in lefts]
        if self.open and [o.tensor.name for o in self.open[-1].outs] != names:
            self._close()
        outs = [self._out(r, meaning) for r in lefts]
        self.open.append(self._build(outs, nodes, chains, meaning))

    def _build(
        self, outs: Sequence[Out], nodes: Sequence[Node], chains: Sequence[Chain], meaning: Meaning
    ) -> Definition:
        axes = sorted({n for o in outs for i in o.index for n in i.names()})
        spans: dict[str, tuple[int, Extent]] = {}
        where = []
        for chain in chains:
            span = meaning.range(chain, None)
            if (
                span is None
                or span.axis in spans
                or (isinstance(span.hi, Size) and span.hi.name in axes)
            ):
                where += meaning.conditions(chain)
            else:
                spans[span.axis] = (span.lo, span.hi)
        return build_definition(outs, [meaning.body(n) for n in nodes], spans, where)

    def _out(self, node: Read, meaning: Meaning) -> Out:
        if node.boundary:
            raise FormulaError(f"a boundary on the left side of {node.name}", where=node.where)
        if node.name in self.known:
            raise FormulaError(
                f"{node.name} is written twice, or is an input",
                where=node.where,
                hint="pieces of one tensor on lines that follow each other",
            )
        shape, dtype = self.declared.get(node.name, (None, None))
        if shape is None and node.name in self.shapes:
            given = self.shapes[node.name]
            shape = (
                make_tensor(node.name, given).shape
                if not isinstance(given, Tensor)
                else given.shape
            )
        return Out(node.name, tuple(meaning.index(i) for i in node.index), shape, dtype)

    def _close(self) -> None:
        """The pieces read so far are a stage."""
        if self.open:
            stage = join_pieces(self.open)
            self.open = []
            self.stages.append(stage)
            for t in stage.tensors:
                self.known[t.name] = t.with_role("temporary")

    # -- reductions -----------------------------------------------------------------------

    def _reduction(self, tokens: Tokens) -> None:
        tokens.next()
        name = tokens.name("the name of a reduction")
        tokens.expect("(")
        fields: dict[str, Any] = {}
        for _ in tokens.until(")"):
            field = tokens.name("lift, combine, identity, project, adjoint, dtypes, ...")
            tokens.expect("=")
            fields[field] = self._field(tokens, field)
        tokens.end()
        self.reductions[name] = _reduction_of(name, fields, tokens)

    def _field(self, tokens: Tokens, field: str) -> Any:
        if field in ("companion", "associative", "commutative"):
            return tokens.name()
        if field not in ("lift", "combine", "identity", "project", "adjoint", "dtypes"):
            raise FormulaError(f"a reduction has no {field}", where=tokens.where())
        if field == "dtypes":
            return self._dtypes(tokens)
        symbols = {s.name: s for s in _reduction_symbols()}
        meaning = Meaning(self._tensor, {}, {}, symbols)
        grammar = Grammar(tokens)
        place = tokens.place
        if tokens.take("("):  # a tuple, or a parenthesis at the start of a body
            items = [grammar.body()]
            while tokens.take(","):
                items.append(grammar.body())
            tokens.expect(")")
            if len(items) > 1:
                return tuple(meaning.body(i) for i in items)
            tokens.place = place
        return (meaning.body(grammar.body()),)

    def _dtypes(self, tokens: Tokens) -> tuple[DType | None, ...]:
        def one() -> DType | None:
            return None if tokens.take(".") else dtype_of(tokens.name("a dtype"))

        if not tokens.take("("):
            return (one(),)
        found = [one()]
        while tokens.take(","):
            found.append(one())
        tokens.expect(")")
        return tuple(found)


def _reduction_symbols() -> list[Symbol]:
    fixed = [reductions.ELEMENT, reductions.POSITION, reductions.COTANGENT, reductions.OTHERS]
    for i in range(10):
        fixed += [reductions.left(i), reductions.right(i), reductions.result(i)]
    return fixed


def _reduction_of(name: str, fields: Mapping[str, Any], tokens: Tokens) -> Reduction:
    for needed in ("lift", "combine", "identity", "project"):
        if needed not in fields:
            raise FormulaError(f"reduction {name} has no {needed}", where=tokens.where())
    made = reductions.reduction(
        name, fields["lift"], fields["combine"], fields["identity"], fields["project"]
    )
    adjoint = fields.get("adjoint")
    return Reduction(
        name,
        made.lift,
        made.combine,
        made.identity,
        made.project,
        adjoint[0] if adjoint else None,
        fields.get("dtypes", made.dtypes),
        fields.get("associative") != "false",
        fields.get("commutative") != "false",
        fields.get("companion", ""),
    )
