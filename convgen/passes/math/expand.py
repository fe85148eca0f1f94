"""expand: every elementary function of a FLAT kernel becomes primitive operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from convgen.errors import InternalError
from convgen.ir.nodes import (
    Block,
    Expr,
    For,
    Form,
    If,
    Kernel,
    Let,
    Op,
    Set,
    Stmt,
    Store,
)
from convgen.ir.visit import fresh_registers, map_expr
from convgen.passes.math import functions, random
from convgen.passes.math.values import Lines, Value
from convgen.target import Target
from convgen.types import f32, f64

_FUNCTIONS: dict[str, Callable[..., Value]] = {
    "exp": functions.exp,
    "log": functions.log,
    "tanh": functions.tanh,
    "sigmoid": functions.sigmoid,
    "erf": functions.erf,
    "pow": functions.power,
    "uniform": random.uniform,
}


def expand(kernel: Kernel, target: Target) -> Kernel:
    """The kernel without exp, log, tanh, sigmoid, erf, pow and uniform.

    What is needed more than once goes to registers set just before the statement that asked. The
    target decides nothing here: the same operations, the same bits; `legalize` comes after.
    """
    if kernel.form is not Form.FLAT:
        raise InternalError(
            f"expected a FLAT kernel, got {kernel.form.value}", stage="passes.math.expand"
        )
    names = fresh_registers(kernel, "m")
    phases = tuple(
        replace(p, body=body) if (body := _one(_expand(p.body, names))) is not p.body else p
        for p in kernel.phases
        if not isinstance(p.body, tuple)
    )
    same = all(a is b for a, b in zip(phases, kernel.phases, strict=True))
    return kernel if same else replace(kernel, phases=phases)


def _one(statements: list[Stmt]) -> Stmt:
    return statements[0] if len(statements) == 1 else Block(tuple(statements))


def _expand(stmt: Stmt, fresh: Callable[[], str]) -> list[Stmt]:
    """The statement without elementary functions, after the registers it needs. Set is visible to
    the end of its Block, so the registers go into the Block that holds the statement."""
    match stmt:
        case Block():
            inner = [s for part in stmt.body for s in _expand(part, fresh)]
            same = len(inner) == len(stmt.body) and all(
                a is b for a, b in zip(inner, stmt.body, strict=True)
            )
            return [stmt if same else Block(tuple(inner))]
        case For() | Let():
            body = _one(_expand(stmt.body, fresh))
            return [stmt if body is stmt.body else replace(stmt, body=body)]
        case If():
            sets, (condition,) = _expand_exprs((stmt.condition,), fresh)
            then = _one(_expand(stmt.then, fresh))
            orelse = None if stmt.orelse is None else _one(_expand(stmt.orelse, fresh))
            same = condition is stmt.condition and then is stmt.then and orelse is stmt.orelse
            return [*sets, stmt if same else If(condition, then, orelse)]
        case Set():
            sets, (value,) = _expand_exprs((stmt.value,), fresh)
            return [*sets, stmt if value is stmt.value else replace(stmt, value=value)]
        case Store():
            sets, (offset, value) = _expand_exprs((stmt.offset, stmt.value), fresh)
            same = offset is stmt.offset and value is stmt.value
            return [*sets, stmt if same else replace(stmt, offset=offset, value=value)]


def _expand_exprs(
    exprs: tuple[Expr, ...], fresh: Callable[[], str]
) -> tuple[list[Set], tuple[Expr, ...]]:
    sets: list[Set] = []

    def rewrite(expr: Expr) -> Expr:
        if not isinstance(expr, Op) or expr.name not in _FUNCTIONS:
            return expr
        found, value = _expand_op(expr, fresh)
        sets.extend(found)
        return value

    return sets, tuple(map_expr(e, rewrite) for e in exprs)


def _expand_op(op: Op, fresh: Callable[[], str]) -> tuple[tuple[Set, ...], Expr]:
    lines = Lines(fresh)
    values: Iterator[Value] = (lines.keep(a) for a in op.args)
    if op.name == "uniform":
        result = random.uniform(*values)
    elif op.dtype in (f32, f64):
        result = _FUNCTIONS[op.name](*(v.cast(op.dtype) for v in values))
    else:
        raise InternalError(
            f"{op.name} of {op.dtype}: expected f32 or f64", stage="passes.math.expand"
        )
    return lines.finish(result.cast(op.dtype))
