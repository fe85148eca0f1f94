"""legalize: operations a target does not have become others that it has."""

from __future__ import annotations

from dataclasses import replace

from convgen.ir.nodes import Expr, Kernel, Op
from convgen.ir.visit import map_expr, map_stmt
from convgen.target import Target


def legalize(kernel: Kernel, target: Target) -> Kernel:
    """fma becomes mul and add for integers, and for floats where the target has no FMA (LLVM would
    call a library function there)."""

    def rewrite(expr: Expr) -> Expr:
        if not isinstance(expr, Op) or expr.name != "fma":
            return expr
        if target.has_fma and expr.dtype.is_float:
            return expr
        a, b, c = expr.args
        product = Op("mul", (a, b), expr.dtype, expr.lanes)
        return Op("add", (product, c), expr.dtype, expr.lanes)

    def visit(expr: Expr) -> Expr:
        return map_expr(expr, rewrite)

    phases = tuple(
        p
        if isinstance(p.body, tuple) or (body := map_stmt(p.body, expr=visit)) is p.body
        else replace(p, body=body)
        for p in kernel.phases
    )
    same = all(a is b for a, b in zip(phases, kernel.phases, strict=True))
    return kernel if same else replace(kernel, phases=phases)
