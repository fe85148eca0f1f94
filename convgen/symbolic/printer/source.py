"""Runnable source for NumPy and torch: every definition over index grids, as it stands.

The source is for reading and checking, not for speed: a sum of products is formed over all its
points at once. torch's is differentiable by autograd.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sympy
from sympy import Expr, Symbol

from convgen.affine import Affine, Constraint
from convgen.symbolic import functions
from convgen.symbolic.expr import (
    Access,
    Axis,
    Definition,
    Range,
    Reduce,
    Result,
    Size,
    accesses_of,
)
from convgen.symbolic.printer.order import Order, affine_text
from convgen.symbolic.printer.prelude import NUMPY, TORCH
from convgen.symbolic.printer.text import definition_text
from convgen.symbolic.reductions import Reduction
from convgen.types import DType

if TYPE_CHECKING:
    from convgen.symbolic.program import Program


@dataclass(frozen=True)
class Dialect:
    """What differs between the two sources: the module's name and its helper functions."""

    module: str
    prelude: str

    def dtype(self, dtype: DType) -> str:
        if dtype.is_float:
            return "dtype"
        mark = "_" if self.module == "np" and dtype.kind == "bool" else ""
        return f"{self.module}.{dtype.numpy_name}{mark}"

    @property
    def true(self) -> str:
        return "np.True_" if self.module == "np" else "torch.tensor(True)"


DIALECTS = {"numpy": Dialect("np", NUMPY), "torch": Dialect("torch", TORCH)}
FAST = {"sum", "prod", "max", "min"}
CALLS: dict[Any, str] = {f: name for name, f in functions.FUNCTIONS.items()}
CALLS.update({functions.abs_: "absolute", sympy.floor: "floor"})


def to_numpy(program: Program) -> str:
    """A Python module with one function of the program's name on NumPy arrays."""
    return _module(program, DIALECTS["numpy"])


def to_torch(program: Program) -> str:
    """A Python module with one function of the program's name on torch tensors."""
    return _module(program, DIALECTS["torch"])


def _module(program: Program, dialect: Dialect) -> str:
    needed = _needed(dialect.prelude, "\n".join(_function(program, dialect)))
    return needed + "\n\n" + "\n".join(_function(program, dialect)) + "\n"


def _needed(prelude: str, body: str) -> str:
    """The parts of a prelude that a body uses, directly or through other parts."""
    parts = re.split(r"\n\n\n", prelude.strip("\n"))
    head, rest = parts[0], parts[1:]
    defines = [set(re.findall(r"^def (\w+)|^(\w[\w, ]*) = ", p, re.MULTILINE)) for p in rest]
    names = [
        {n.strip() for pair in d for n in ",".join(pair).split(",") if n.strip()} for d in defines
    ]
    kept: set[int] = set()
    text = body
    while True:
        used = set(re.findall(r"\w+", text))
        more = [i for i, n in enumerate(names) if i not in kept and n & used]
        if not more:
            break
        kept.update(more)
        text += "\n".join(rest[i] for i in more)
    return "\n\n\n".join([head, *(p for i, p in enumerate(rest) if i in kept)])


class _Names:
    """Names of tensors and axes as Python identifiers that collide with nothing."""

    def __init__(self, prelude: str) -> None:
        self.taken = {"np", "torch", "dtype", "keep", "term", "shape", "math"}
        self.taken |= set(re.findall(r"^def (\w+)", prelude, re.MULTILINE))
        self.taken |= {"exp", "log", "tanh", "sqrt", "floor", "sign", "maximum", "minimum"}
        self.taken |= {"is_nan", "absolute", "erf"}
        self.found: dict[tuple[str, str], str] = {}

    def __call__(self, kind: str, name: str) -> str:
        key = (kind, name)
        if key not in self.found:
            made = name.replace("'", "_prime")
            while made in self.taken or keyword.iskeyword(made):
                made += "_"
            self.taken.add(made)
            self.found[key] = made
        return self.found[key]


def _function(program: Program, dialect: Dialect) -> list[str]:
    """The lines of the function: inputs, constants, then every stage."""
    names = _Names(dialect.prelude)
    arguments = [names("tensor", t.name) for t in program.inputs]
    title = names("program", _identifier(program.name))
    returned = [t.name for t in program.outputs]
    returned += [s for s in program.saved if s not in returned]
    returned += [new for _, new in program.updates if new not in returned]
    lines = [
        f"def {title}({', '.join([*arguments, f'dtype={dialect.module}.float64'])}):",
        f'    """{", ".join(str(t) for t in program.inputs)} -> {", ".join(returned)}."""',
        *_inputs(program, names, dialect),
    ]
    for stage in program.stages:
        for t in stage.tensors:
            shape = ", ".join(_extent(e, names) for e in t.shape)
            name, dtype = names("tensor", t.name), dialect.dtype(t.dtype)
            lines.append(f"    {name} = empty([{shape}], {dtype})")
        for piece in stage.pieces:
            lines.append(f"    # {definition_text(program, piece, None)}")
            lines += [f"    {line}" for line in _Piece(program, piece, names, dialect).lines()]
    results = ", ".join(names("tensor", r) for r in returned)
    return [*lines, f"    return {results}"]


def _inputs(program: Program, names: _Names, dialect: Dialect) -> list[str]:
    """The lines that convert the inputs, find symbolic sizes, and write the constants out."""
    lines: list[str] = []
    seen: set[str] = set()
    for t in program.inputs:
        name = names("tensor", t.name)
        lines.append(f"    {name} = given({name}, {dialect.dtype(t.dtype)})")
        for d, extent in enumerate(t.shape):
            if isinstance(extent, Size) and extent.name not in seen:
                seen.add(extent.name)
                lines.append(f"    {names('size', extent.name)} = {name}.shape[{d}]")
    for t in program.constants():
        values = ", ".join(
            str(v) if v.denominator == 1 else f"{v.numerator} / {v.denominator}"
            for v in t.values or ()
        )
        name, dtype = names("tensor", t.name), dialect.dtype(t.dtype)
        shape = ", ".join(map(str, t.shape))
        lines.append(f"    {name} = given([{values}], {dtype}).reshape([{shape}])")
    return lines


def _identifier(name: str) -> str:
    made = re.sub(r"\W", "_", name)
    return made if made.isidentifier() and not keyword.iskeyword(made) else f"program_{made}"


def _extent(extent: Any, names: _Names) -> str:
    return names("size", extent.name) if isinstance(extent, Size) else str(extent)


class _Piece:
    """The lines of one definition."""

    def __init__(
        self, program: Program, piece: Definition, names: _Names, dialect: Dialect
    ) -> None:
        self.piece, self.names, self.dialect = piece, names, dialect
        self.order = Order(program, piece)
        self.symbols: Mapping[str, str] = {}

    def lines(self) -> list[str]:
        out: list[str] = []
        for j, reduce in enumerate(self.piece.reduces):
            out += self.reduce_lines(j, reduce)
        out += self.grid_lines(self.piece.domain.ranges)
        keep = self.keep(self.piece.domain.constraints, [])
        for access, value in zip(self.piece.outs, self.piece.values, strict=True):
            name = self.names("tensor", access.tensor.name)
            index = self.index(access.index)
            out.append(f"{name} = write({name}, {index}, {keep}, {self.body(value)}, shape)")
        return out

    def grid_lines(self, ranges: Sequence[Range]) -> list[str]:
        spans = ", ".join(f"({r.lo}, {_extent(r.hi, self.names)})" for r in ranges)
        sizes = ", ".join(
            _extent(r.hi, self.names) if isinstance(r.hi, Size) or not r.lo else str(r.extent)
            for r in ranges
        )
        left = ", ".join(self.names("axis", r.axis) for r in ranges)
        lines = [f"shape = [{sizes}]"]
        if ranges:
            lines.append(f"{left}{',' if len(ranges) == 1 else ''} = grid({spans})")
        return lines

    def reduce_lines(self, number: int, reduce: Reduce) -> list[str]:
        ranges = self.piece.domain.ranges + reduce.domain.ranges
        lines = self.grid_lines(ranges)
        # Points that the definition leaves out are computed and never written.
        keep = self.keep(reduce.domain.constraints, list(accesses_of(reduce.body)))
        arguments = f"{self.body(reduce.body)}, {keep}, shape, {len(reduce.domain.ranges)}"
        name = self.names("result", f"part{number}")
        if reduce.reduction.name in FAST:
            return [*lines, f"{name} = [{reduce.reduction.name}_over({arguments})]"]
        return [*lines, f"{name} = fold_over({arguments}, {self.reduction(reduce.reduction)})"]

    def reduction(self, r: Reduction) -> str:
        """lift, combine, identity and project as Python functions."""
        self.symbols = {"v": "v", "p": "p"}
        self.symbols |= {f"{s}{i}": f"{s}[{i}]" for s in "ab" for i in range(r.width)}

        def group(items: Sequence[Expr]) -> str:
            return f"[{', '.join(self.body(i) for i in items)}]"

        text = (
            f"lambda v, p: {group(r.lift)}, lambda a, b: {group(r.combine)}, "
            f"{group(r.identity)}, lambda a: {group(r.project)}"
        )
        self.symbols = {}
        return text

    def keep(self, constraints: Sequence[Constraint], reads: Sequence[Access]) -> str:
        """The condition under which a point counts."""
        parts = []
        for c in constraints:
            value = self.affine(c.value)
            test = {
                "==": f"({value}) == 0",
                "<=": f"({value}) <= 0",
                "%": f"({value}) % {c.modulus} == 0",
            }
            parts.append(f"({test[c.kind]})")
        for access in reads:
            if any(b.name == "omit" for b in access.boundary):
                parts.append(f"present({self.arguments(access)})")
        return (
            " & ".join(parts)
            or f"{self.dialect.module}.{'True_' if self.dialect.module == 'np' else 'tensor(True)'}"
        )

    # -- expressions ----------------------------------------------------------------------------

    def affine(self, value: Affine) -> str:
        named = {n: self.names("axis", n) for n in value.names()}
        ranks = {named[n]: i for n, i in self.order.ranks_in(value).items()}
        return affine_text(value.map_names(named.__getitem__), ranks)

    def index(self, index: Sequence[Affine]) -> str:
        items = [self.affine(i) for i in index]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"

    def arguments(self, a: Access) -> str:
        modes = ", ".join(
            f'"{b.name}"' if b.value is None else self.body(b.value) for b in a.boundary
        )
        return f"{self.names('tensor', a.tensor.name)}, {self.index(a.index)}, [{modes}]"

    def body(self, e: Any) -> str:
        """A body as Python; every operation in parentheses that Python might bind otherwise."""
        match e:
            case Access():
                return f"read({self.arguments(e)})"
            case Result():
                return f"{self.names('result', f'part{e.reduce}')}[{e.item}]"
            case Axis():
                return self.names("axis", e.name)
            case Size():
                return self.names("size", e.name)
            case Symbol():
                return self.symbols[e.name]
            case sympy.Add():
                return "(" + " + ".join(self.body(t) for t in self.order.terms(e)) + ")"
            case sympy.Mul():
                return self.product(e)
            case sympy.Pow():
                return self.power(e)
            case sympy.Mod():
                return f"({self.body(e.args[0])} % {self.body(e.args[1])})"  # type: ignore[arg-type]
            case _:
                return self.number(e) if e.is_number and not e.args else self.call(e)

    def number(self, e: Any) -> str:
        if e.is_Integer:
            return str(e) if e >= 0 else f"({e})"
        if e.is_Rational:
            return f"({e.p} / {e.q})"
        if e is sympy.pi or e is sympy.E:
            return f"math.{'pi' if e is sympy.pi else 'e'}"
        return {"oo": "math.inf", "-oo": "(-math.inf)"}.get(str(e), "math.nan")

    def product(self, e: Expr) -> str:
        product = self.order.product(e)
        over = [self.body(f) for f in product.over]
        under = [self.body(f) for f in product.under]
        value: Any = product.coefficient
        if value.is_infinite or value.p != 1 or not over:
            over.insert(0, self.number(sympy.Integer(value.p) if value.is_Rational else value))
        if value.is_Rational and value.q != 1:
            under.insert(0, str(value.q))
        return "(" + " * ".join(over) + "".join(f" / {u}" for u in under) + ")"

    def power(self, e: Any) -> str:
        base, exponent = e.args
        if exponent.is_Rational and exponent.is_negative:
            return f"(1 / {self.body(base**-exponent)})"
        if exponent == sympy.Rational(1, 2):
            return f"sqrt({self.body(base)})"
        return f"({self.body(base)} ** {self.body(exponent)})"

    def condition(self, e: Any) -> str:
        """A body as a truth value."""
        if isinstance(e, (functions.equal, functions.less, functions.less_equal)):
            sign = {functions.equal: "==", functions.less: "<", functions.less_equal: "<="}[type(e)]
            return f"({self.body(e.args[0])} {sign} {self.body(e.args[1])})"
        if isinstance(e, (functions.logical_and, functions.logical_or)):
            sign = "&" if isinstance(e, functions.logical_and) else "|"
            return f"({self.condition(e.args[0])} {sign} {self.condition(e.args[1])})"
        if isinstance(e, functions.logical_not):
            return f"({self.condition(e.args[0])} == False)"
        if isinstance(e, functions.is_nan):
            return f"is_nan({self.body(e.args[0])})"
        return f"({self.body(e)} != 0)"

    def call(self, e: Any) -> str:
        if isinstance(e, functions.TRUTH):
            return f"truth({self.condition(e)})"
        if isinstance(e, functions.select):
            a, b = self.body(e.args[1]), self.body(e.args[2])
            return f"select({self.condition(e.args[0])}, {a}, {b})"
        if isinstance(e, functions.cast):
            return f"cast({self.body(e.args[0])}, {self.dialect.dtype(e.dtype)})"
        return f"{CALLS[type(e)]}({', '.join(self.body(a) for a in e.args)})"
