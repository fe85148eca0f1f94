"""Readable text of kernels, in each form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from convgen.affine import Affine, Constraint
from convgen.ir.nodes import (
    Block,
    Broadcast,
    Buffer,
    Combiner,
    Const,
    Edge,
    Expr,
    For,
    Form,
    Gather,
    If,
    Index,
    Kernel,
    Lanes,
    Layout,
    Let,
    Load,
    Loop,
    LoopKind,
    Nest,
    Op,
    Param,
    Phase,
    Reduced,
    ReduceNode,
    Set,
    Stmt,
    VectorLoad,
)
from convgen.ir.rounding import round_float

INDENT = "  "
_INFIX = {  # name -> (sign, how tightly it binds)
    "or": ("or", 1),
    "xor": ("xor", 1),
    "and": ("and", 2),
    "eq": ("==", 3),
    "lt": ("<", 3),
    "le": ("<=", 3),
    "add": ("+", 4),
    "sub": ("-", 4),
    "mul": ("*", 5),
    "div": ("/", 5),
    "floordiv": ("//", 5),
    "mod": ("%", 5),
}


# ---------------------------------------------------------------------------------------------
# Expressions


@dataclass(frozen=True, slots=True)
class Names:
    """What a nest calls things: the result of each reduce (with its number where one of `several`
    results is meant), and the order of axes in sums."""

    reduces: tuple[str, ...] = ()
    several: frozenset[int] = frozenset()
    order: Mapping[str, int] | None = None


def text_of(expr: Expr, names: Names | None = None, outer: int = 0) -> str:
    """One expression. `names` are those of the nest around it; `outer` is how tightly the
    surroundings bind.

    >>> from convgen.types import f32
    >>> x = Load("X", (Affine.of("i") - 1,), (Edge("zero"),), f32)
    >>> text_of(Op("mul", (Op("add", (x, Const(1, f32)), f32), Const(0.5, f32)), f32))
    '(X{zero}[i - 1] + 1.0) * 0.5'
    """
    names = names or Names()
    if isinstance(expr, Op):
        return _operation(expr, names, outer)
    if isinstance(expr, Load):
        index = ", ".join(i.text(names.order) for i in expr.index)
        return f"{expr.buffer}{_edges(expr.edges, names)}[{index}]"
    if isinstance(expr, Reduced):
        known = expr.reduce < len(names.reduces)
        name = names.reduces[expr.reduce] if known else f"reduced{expr.reduce}"
        return f"{name}.{expr.item}" if expr.reduce in names.several else name
    if isinstance(expr, VectorLoad):
        place = f"{text_of(expr.offset)}{_slice(expr.lanes, expr.stride, expr.valid)}"
        return f"{expr.buffer}[{place}{_where(expr.mask)}]"
    if isinstance(expr, Gather):
        first = "" if expr.valid == expr.lanes else f", first {expr.valid}"
        return f"{expr.buffer}[each {text_of(expr.offset)}{first}{_where(expr.mask)}]"
    if isinstance(expr, Broadcast):
        return f"splat({text_of(expr.value)}, {expr.lanes})"
    if isinstance(expr, Lanes):
        return f"{text_of(expr.value, names, 9)}.{_picked(expr.picked)}"
    if isinstance(expr, Const):
        number = _number(expr)
        return number if expr.lanes == 1 else f"splat({number}, {expr.lanes})"
    if isinstance(expr, Index):
        inner = expr.value.text(names.order)
        if expr.lanes > 1:
            return f"ramp({inner}, {expr.stride}, {expr.lanes})"
        return (
            f"({inner})"
            if outer and len(expr.value.terms) + bool(expr.value.constant) > 1
            else inner
        )
    return expr.name


def _picked(lanes: tuple[int, ...]) -> str:
    first, count = lanes[0], len(lanes)
    if lanes == tuple(range(first, first + count)):
        return f"lane({first})" if count == 1 else f"lane({first} : {count})"
    return f"lanes({' '.join(map(str, lanes))})"


def _operation(op: Op, names: Names, outer: int) -> str:
    if op.name in _INFIX:
        sign, level = _INFIX[op.name]
        a = text_of(op.args[0], names, level)
        b = text_of(op.args[1], names, level + 1)
        made = f"{a} {sign} {b}"
        return f"({made})" if level < outer else made
    if op.name == "neg":
        made = f"-{text_of(op.args[0], names, 6)}"
        return f"({made})" if outer > 4 else made
    args = ", ".join(text_of(a, names) for a in op.args)
    if op.name == "cast":
        return f"{op.dtype}({args})"
    return f"{op.name}({args})"


def _number(const: Const) -> str:
    if const.dtype.kind == "bool":
        return "true" if const.value else "false"
    if not const.dtype.is_float:
        return str(int(const.value))
    if math.isnan(const.value) or math.isinf(const.value):
        return str(float(const.value))
    value = float(const.value)
    if const.dtype.bits == 32:  # the fewest digits that give this number back
        for digits in range(1, 9):
            short = float(f"{value:.{digits}g}")
            if round_float(short, 32) == value:
                return repr(short)
    return repr(value)


def _edges(edges: tuple[Edge | None, ...], names: Names) -> str:
    if all(e is None for e in edges):
        return ""
    words: list[str] = []
    for edge in edges:
        if edge is None:
            words.append(".")
        elif edge.kind == "constant" and edge.value is not None:
            words.append(text_of(edge.value, names))
        else:
            words.append(edge.kind)
    return "{" + ", ".join(words) + "}"


def _slice(lanes: int, stride: int, valid: int) -> str:
    if lanes == 1 and valid == 1:
        return ""
    made = f" : {lanes}"
    if stride != 1:
        made += f" by {stride}"
    return made if valid == lanes else made + f", first {valid}"


def _where(mask: Expr | None) -> str:
    return "" if mask is None else f" where {text_of(mask)}"


def guard_text(guard: Constraint, order: Mapping[str, int] | None = None) -> str:
    """A condition with its positive terms on the left: ``i <= j``, ``(h + 1) % 2 == 0``."""
    if guard.kind == "%":
        inner = guard.value.text(order)
        inner = f"({inner})" if " " in inner else inner
        return f"{inner} % {guard.modulus} == 0"
    positive = tuple((a, c) for a, c in guard.value.terms if c > 0)
    left = Affine(positive, max(guard.value.constant, 0))
    right = left - guard.value
    return f"{left.text(order)} {guard.kind} {right.text(order)}"


def buffer_text(buffer: Buffer) -> str:
    """The declaration of a buffer."""
    shape = ", ".join(str(e) for e in buffer.shape)
    made = f"{buffer.role} {buffer.name}: {buffer.dtype}[{shape}]"
    if buffer.layout != Layout.rowmajor(len(buffer.shape)):
        made += " " + layout_text(buffer.layout)
    if buffer.role == "constant":
        shown = ", ".join(_number(Const(v, buffer.dtype)) for v in buffer.values[:16])
        made += f" = [{shown}{', ...' if len(buffer.values) > 16 else ''}]"
    return made


def layout_text(layout: Layout) -> str:
    """``layout(order 0 2 1, blocks 1:16, halo 2:1+1)``."""
    parts = ["order " + " ".join(str(d) for d in layout.order)]
    if layout.blocks:
        parts.append("blocks " + " ".join(f"{d}:{s}" for d, s in layout.blocks))
    halo = [f"{d}:{low}+{high}" for d, (low, high) in enumerate(layout.halo) if low or high]
    if halo:
        parts.append("halo " + " ".join(halo))
    return "layout(" + ", ".join(parts) + ")"


# ---------------------------------------------------------------------------------------------
# Nests


def loop_text(loop: Loop, start: int = 0) -> str:
    """The head of a loop: ``for k_out in 4:  # parallel``; ``for h in 1 .. 6:`` where its axis
    has that name and begins at `start`."""
    extent = f"{start} .. {start + loop.extent}" if start else str(loop.extent)
    if loop.segments:
        parts = [f"{s.count} of {s.size} from {s.start}" for s in loop.segments]
        extent = f"segments({'; '.join(parts)}; {loop.inner} inside, {loop.base} = start)"
    notes = [] if loop.kind is LoopKind.SERIAL else [loop.kind.value]
    if loop.steps > 1:
        notes.append(f"{loop.steps} at a time")
    tail = f"  # {', '.join(notes)}" if notes else ""
    return f"for {loop.name} in {extent}:{tail}"


def reduce_names(nest: Nest) -> tuple[str, ...]:
    """What the printer calls each reduce: its combiner's name, numbered where there are several."""
    if len(nest.reduces) == 1:
        return (nest.reduces[0].combiner.name,)
    return tuple(f"{r.combiner.name}{i}" for i, r in enumerate(nest.reduces))


def names_of(nest: Nest) -> Names:
    """The names that the expressions of a nest are printed with."""
    several = {i for i, r in enumerate(nest.reduces) if len(r.combiner.project) > 1}
    order = {axis: i for i, (axis, _) in enumerate(nest.axes)}
    return Names(reduce_names(nest), frozenset(several), order)


def _nest_lines(nest: Nest, pad: str) -> list[str]:
    order = {name: i for i, lp in enumerate(nest.loops) for name in (lp.name, lp.base) if name}
    named = [(axis, value) for axis, value in nest.axes if not _is_shifted(axis, value)]
    lines = [f"{pad}{axis} = {value.text(order)}" for axis, value in named]
    first = _first_reduce(nest)
    tile = [lp for lp in nest.loops[first:] if lp.reduce is None]
    names = names_of(nest)
    for loop in nest.loops[:first]:
        pad = _open_loop(nest, loop, pad, lines)
    pad = _open_guards(nest.guards, names, pad, lines)
    for number in range(len(nest.reduces)):
        _reduce_lines(nest, number, tile, pad, lines)
    for loop in tile:
        pad = _open_loop(nest, loop, pad, lines, attached=not nest.reduces)
    for store in nest.stores:
        index = ", ".join(i.text(names.order) for i in store.index)
        lines.append(f"{pad}{store.buffer}[{index}] = {text_of(store.value, names)}")
    return lines


def _is_shifted(axis: str, value: Affine) -> bool:
    """True for an axis that is the loop of its own name plus a number."""
    return (value - value.constant).single == axis


def _first_reduce(nest: Nest) -> int:
    return next((i for i, lp in enumerate(nest.loops) if lp.reduce is not None), len(nest.loops))


def _open_guards(guards: tuple[Constraint, ...], names: Names, pad: str, lines: list[str]) -> str:
    if not guards:
        return pad
    lines.append(f"{pad}if {' and '.join(guard_text(g, names.order) for g in guards)}:")
    return pad + INDENT


def _open_loop(nest: Nest, loop: Loop, pad: str, lines: list[str], attached: bool = True) -> str:
    shifts = {a: v.constant for a, v in nest.axes if _is_shifted(a, v) and not loop.segments}
    lines.append(pad + loop_text(loop, shifts.get(loop.name, 0)))
    if attached:
        for producer in nest.attached:
            if producer.at == loop.name:
                lines.append(f"{pad}{INDENT}compute {producer.buffer}:")
                lines.extend(_nest_lines(producer.nest, pad + 2 * INDENT))
    return pad + INDENT


def _reduce_lines(nest: Nest, number: int, tile: list[Loop], pad: str, lines: list[str]) -> None:
    reduce, names = nest.reduces[number], names_of(nest)
    name = names.reduces[number]
    tiled = f"[{', '.join(lp.name for lp in tile)}]" if tile else ""
    notes = ["in registers"] if reduce.carried else []
    notes += [f"in the order of {reduce.follows}"] if reduce.follows else []
    if reduce.factored:
        notes.append("one for each " + ", ".join(reduce.factored))
    if reduce.beside is not None:
        notes.append(f"in one go with {names.reduces[reduce.beside]}")
    start = ", ".join(text_of(c) for c in reduce.combiner.identity)
    tail = f"  # {', '.join(notes)}" if notes else ""
    lines.append(f"{pad}{name}{tiled} = {start}{tail}")
    inner = pad
    for loop in nest.loops[_first_reduce(nest) :]:
        if loop.reduce in (None, nest.leader(number)):
            inner = _open_loop(nest, loop, inner, lines)
    inner = _open_guards(reduce.guards, names, inner, lines)
    lines.append(f"{inner}{name} = {_combined(name, reduce, names)}")
    projected = ", ".join(text_of(p) for p in reduce.combiner.project)
    if projected != "a0":
        lines.append(f"{pad}{name}{tiled} = project({name})")


def _combined(name: str, reduce: ReduceNode, names: Names) -> str:
    """``sum + X[i] * W[i]`` where one operation joins them, else the combiner by its name."""
    combiner = reduce.combiner
    body = text_of(reduce.body, names)
    if _is_plain(combiner):
        op = combiner.combine[0]
        assert isinstance(op, Op)
        if op.name in _INFIX:
            sign, level = _INFIX[op.name]
            return f"{name} {sign} {text_of(reduce.body, names, level + 1)}"
        return f"{op.name}({name}, {body})"
    uses_position = any(_mentions(e, "p") for e in combiner.lift)
    position = f", {reduce.position.text(names.order)}" if uses_position else ""
    return f"combine({name}, lift({body}{position}))"


def _is_plain(combiner: Combiner) -> bool:
    if len(combiner.combine) != 1 or combiner.lift[0] != Param("v", combiner.dtypes[0]):
        return False
    op = combiner.combine[0]
    return (
        isinstance(op, Op)
        and len(op.args) == 2
        and all(isinstance(a, Param) for a in op.args)
        and [text_of(a) for a in op.args] == ["a0", "b0"]
    )


def _mentions(expr: Expr, name: str) -> bool:
    if isinstance(expr, Param):
        return expr.name == name
    return isinstance(expr, Op) and any(_mentions(a, name) for a in expr.args)


def combiner_text(combiner: Combiner) -> str:
    """All parts of a reduction on one line."""

    def group(exprs: tuple[Expr, ...]) -> str:
        return ", ".join(text_of(e) for e in exprs)

    made = f"reduction {combiner.name}({', '.join(str(d) for d in combiner.dtypes)}): "
    made += f"lift {group(combiner.lift)}; combine {group(combiner.combine)}; "
    made += f"identity {group(combiner.identity)}; project {group(combiner.project)}"
    made += "" if combiner.commutative else "; in order"
    return f"{made}; join {group(combiner.join)}" if combiner.join else made


# ---------------------------------------------------------------------------------------------
# Statements


def _stmt_lines(stmt: Stmt, pad: str) -> list[str]:
    if isinstance(stmt, Block):
        return [line for s in stmt.body for line in _stmt_lines(s, pad)]
    if isinstance(stmt, For):
        step = "" if stmt.step == 1 else f" step {stmt.step}"
        head = f"{pad}for {stmt.var} in {stmt.begin.text()} .. {stmt.end.text()}{step}:"
        return [head, *_stmt_lines(stmt.body, pad + INDENT)]
    if isinstance(stmt, Let):
        return [f"{pad}let {stmt.var} = {stmt.value.text()}", *_stmt_lines(stmt.body, pad)]
    if isinstance(stmt, If):
        lines = [f"{pad}if {text_of(stmt.condition)}:", *_stmt_lines(stmt.then, pad + INDENT)]
        if stmt.orelse is not None:
            lines += [f"{pad}else:", *_stmt_lines(stmt.orelse, pad + INDENT)]
        return lines
    if isinstance(stmt, Set):
        return [f"{pad}{stmt.register} = {text_of(stmt.value)}"]
    place = f"{text_of(stmt.offset)}{_slice(stmt.value.lanes, stmt.stride, stmt.valid)}"
    return [f"{pad}{stmt.buffer}[{place}{_where(stmt.mask)}] = {text_of(stmt.value)}"]


# ---------------------------------------------------------------------------------------------
# Kernels


def kernel_text(kernel: Kernel) -> str:
    """A whole kernel: buffers, reductions, phases; the form decides how bodies look."""
    lines = [f"kernel {kernel.name} ({kernel.form.value})"]
    lines += [INDENT + buffer_text(b) for b in kernel.buffers]
    declared: dict[str, None] = {}
    for nest in kernel.nests():
        for inner in (nest, *(a.nest for a in nest.attached)):
            for reduce in inner.reduces:
                if not _is_plain(reduce.combiner):
                    declared.setdefault(INDENT + combiner_text(reduce.combiner))
    lines += list(declared)
    for phase in kernel.phases:
        lines += _phase_lines(phase, kernel.form)
    if kernel.trace:
        lines.append("directives: " + "; ".join(kernel.trace))
    lines += [f"note: {note}" for note in kernel.notes]
    return "\n".join(lines) + "\n"


def _phase_lines(phase: Phase, form: Form) -> list[str]:
    facts: list[str] = []
    if phase.when != "run":
        facts.append(phase.when)
    if form is Form.FLAT:
        facts.append(f"{phase.extent} tasks")
        if phase.grain > 1:
            facts.append(f"at least {phase.grain} at a time")
        if phase.scratch_bytes:
            facts.append(f"{phase.scratch_bytes} bytes of scratch")
    tail = f" ({', '.join(facts)})" if facts else ""
    lines = [f"phase {phase.name}{tail}:"]
    if isinstance(phase.body, tuple):
        for nest in phase.body:
            lines += _nest_lines(nest, INDENT)
    else:
        lines += _stmt_lines(phase.body, INDENT)
    return lines
