"""Walking and rewriting expressions and statements. A rewrite that changes nothing returns the
same object, so ``new is old`` says that nothing happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import TypeAlias

from convgen.affine import Affine
from convgen.ir.nodes import (
    Block,
    Broadcast,
    Edge,
    Expr,
    For,
    Gather,
    If,
    Index,
    Kernel,
    Lanes,
    Let,
    Load,
    Nest,
    Op,
    Set,
    Stmt,
    Store,
    VectorLoad,
)

ExprRewrite: TypeAlias = Callable[[Expr], Expr]
StmtRewrite: TypeAlias = Callable[[Stmt], Stmt]


def children(expr: Expr) -> tuple[Expr, ...]:
    """The expressions directly inside: arguments, edge values, offsets."""
    if isinstance(expr, Op):
        return expr.args
    if isinstance(expr, Load):
        return tuple(e.value for e in expr.edges if e is not None and e.value is not None)
    if isinstance(expr, (VectorLoad, Gather)):
        return (expr.offset,) if expr.mask is None else (expr.offset, expr.mask)
    if isinstance(expr, (Broadcast, Lanes)):
        return (expr.value,)
    return ()


def map_children(expr: Expr, rewrite: ExprRewrite) -> Expr:
    """The expression with `rewrite` applied to what is directly inside it."""
    if isinstance(expr, Op):
        args = tuple(rewrite(a) for a in expr.args)
        if all(a is b for a, b in zip(args, expr.args, strict=True)):
            return expr
        return Op(expr.name, args, expr.dtype, expr.lanes)
    if isinstance(expr, Load):
        if all(e is None or e.value is None for e in expr.edges):
            return expr
        edges = tuple(_map_edge(e, rewrite) for e in expr.edges)
        if all(a is b for a, b in zip(edges, expr.edges, strict=True)):
            return expr
        return replace(expr, edges=edges)
    if isinstance(expr, (VectorLoad, Gather)):
        offset = rewrite(expr.offset)
        mask = None if expr.mask is None else rewrite(expr.mask)
        if offset is expr.offset and mask is expr.mask:
            return expr
        return replace(expr, offset=offset, mask=mask)
    if isinstance(expr, (Broadcast, Lanes)):
        value = rewrite(expr.value)
        return expr if value is expr.value else replace(expr, value=value)
    return expr


def _map_edge(edge: Edge | None, rewrite: ExprRewrite) -> Edge | None:
    if edge is None or edge.value is None:
        return edge
    value = rewrite(edge.value)
    return edge if value is edge.value else Edge(edge.kind, value)


def map_expr(expr: Expr, rewrite: ExprRewrite) -> Expr:
    """Rewrite from the leaves up: `rewrite` sees each node after its children were rewritten.
    Parts that are the same object are rewritten once.

    >>> from convgen.types import f32
    >>> from convgen.ir.nodes import Const
    >>> two = Op("add", (Const(1, f32), Const(1, f32)), f32)
    >>> map_expr(two, lambda e: e) is two
    True
    """
    done: dict[int, Expr] = {}

    def visit(node: Expr) -> Expr:
        found = done.get(id(node))
        if found is None:
            found = done[id(node)] = rewrite(map_children(node, visit))
        return found

    return visit(expr)


def map_stmt(
    stmt: Stmt, rewrite: StmtRewrite | None = None, expr: ExprRewrite | None = None
) -> Stmt:
    """Rewrite a statement from the leaves up; `expr` is applied to each whole expression in it
    (wrap it in map_expr to reach the inner ones), `rewrite` to each statement afterwards."""

    def visit(node: Stmt) -> Stmt:
        new = _map_inside(node, visit, expr)
        return rewrite(new) if rewrite else new

    return visit(stmt)


def _map_inside(stmt: Stmt, visit: StmtRewrite, expr: ExprRewrite | None) -> Stmt:
    apply: ExprRewrite = expr or _same
    if isinstance(stmt, Block):
        body = tuple(visit(s) for s in stmt.body)
        same = all(a is b for a, b in zip(body, stmt.body, strict=True))
        return stmt if same else Block(body)
    if isinstance(stmt, (For, Let)):
        inner = visit(stmt.body)
        return stmt if inner is stmt.body else replace(stmt, body=inner)
    if isinstance(stmt, If):
        condition, then = apply(stmt.condition), visit(stmt.then)
        orelse = None if stmt.orelse is None else visit(stmt.orelse)
        if condition is stmt.condition and then is stmt.then and orelse is stmt.orelse:
            return stmt
        return If(condition, then, orelse)
    if isinstance(stmt, Set):
        value = apply(stmt.value)
        return stmt if value is stmt.value else Set(stmt.register, value)
    offset, value = apply(stmt.offset), apply(stmt.value)
    mask = None if stmt.mask is None else apply(stmt.mask)
    if offset is stmt.offset and value is stmt.value and mask is stmt.mask:
        return stmt
    return replace(stmt, offset=offset, value=value, mask=mask)


def _same(expr: Expr) -> Expr:
    return expr


def map_affine(expr: Expr, rewrite: Callable[[Affine], Affine]) -> Expr:
    """Apply `rewrite` to every integer expression inside: indices of loads, Index values."""

    def visit(node: Expr) -> Expr:
        if isinstance(node, Index):
            value = rewrite(node.value)
            return node if value is node.value else replace(node, value=value)
        if isinstance(node, Load):
            index = tuple(rewrite(i) for i in node.index)
            if all(a is b for a, b in zip(index, node.index, strict=True)):
                return node
            return replace(node, index=index)
        return node

    return map_expr(expr, visit)


def map_nest_exprs(nest: Nest, rewrite: ExprRewrite) -> Nest:
    """Apply `rewrite` to the body of each reduce and the value of each store (attached nests are
    left alone)."""
    reduces = tuple(_changed(r, "body", r.body, rewrite(r.body)) for r in nest.reduces)
    stores = tuple(_changed(s, "value", s.value, rewrite(s.value)) for s in nest.stores)
    same = all(a is b for a, b in zip(reduces + stores, nest.reduces + nest.stores, strict=True))
    return nest if same else replace(nest, reduces=reduces, stores=stores)


def _changed(node: object, field: str, old: Expr, new: Expr) -> object:
    return node if old is new else replace(node, **{field: new})  # type: ignore[type-var]


def walk(node: Expr | Stmt | Nest) -> Iterator[Expr | Stmt]:
    """Every expression and statement inside, outermost first; expressions that are the same object
    come once for each place. Attached nests are walked before the nest's own expressions."""
    if isinstance(node, Nest):
        for attached in node.attached:
            yield from walk(attached.nest)
        for reduce in node.reduces:
            yield from walk(reduce.body)
        for store in node.stores:
            yield from walk(store.value)
        return
    yield node
    for inner in _parts(node):
        yield from walk(inner)


def _parts(node: Expr | Stmt) -> tuple[Expr | Stmt, ...]:
    if isinstance(node, Block):
        return node.body
    if isinstance(node, (For, Let)):
        return (node.body,)
    if isinstance(node, If):
        tail = () if node.orelse is None else (node.orelse,)
        return (node.condition, node.then, *tail)
    if isinstance(node, Set):
        return (node.value,)
    if isinstance(node, Store):
        masks = () if node.mask is None else (node.mask,)
        return (node.offset, node.value, *masks)
    return children(node)


def loads(node: Expr | Nest) -> Iterator[Load]:
    """All loads inside, in order of appearance."""
    for part in walk(node):
        if isinstance(part, Load):
            yield part


def fresh_registers(kernel: Kernel, prefix: str) -> Callable[[], str]:
    """A maker of register names that a FLAT kernel does not use: the prefix and a number."""
    taken = {
        part.register
        for phase in kernel.phases
        if not isinstance(phase.body, tuple)
        for part in walk(phase.body)
        if isinstance(part, Set)
    }
    numbers = count()

    def fresh() -> str:
        return next(name for n in numbers if (name := f"{prefix}{n}") not in taken)

    return fresh
