"""Random programs over strided, dilated, shifted, folded and divided accesses, for the passes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from convgen.symbolic import dsl as cg
from convgen.symbolic import functions as f
from convgen.symbolic.program import Program

a, b, p, q = cg.axes("a b p q")
OVER = {"sum": cg.sum_over, "max": cg.max_over, "min": cg.min_over, "argmax": cg.argmax_over}


def random_program(seed: int) -> Program:
    """One or two stages over random strided, dilated, shifted, folded and divided accesses."""
    chance = random.Random(seed)
    extents = {axis: chance.randrange(1, 6) for axis in (a, b, p, q)}
    over = chance.choice(list(OVER))
    # an extremum of nothing is infinite, which no integer is
    dtype = chance.choice(
        ["f32", "f64"] if over in ("max", "min") else ["f32", "f64", "i32", "i64"]
    )

    def read(name: str, axes: tuple[Any, ...], mode: Any) -> Any:
        index: list[Any] = []
        shape: list[int] = []
        for axis in axes:
            other = chance.choice(axes)
            value = chance.choice([1, 1, 2, 3]) * axis + chance.choice([0, 1, 2]) * other
            low, top = 0, max(1, 4 * (extents[axis] - 1) + 2 * (extents[other] - 1))
            if chance.random() < 0.2:
                value = value // 2 if chance.random() < 0.5 else value % 4
            extent = chance.randrange(max(1, top // 2), top + 6)
            # folding reaches at most the extent itself
            low = chance.randrange(-min(2, extent - 1), 1)
            index.append(value + low)
            shape.append(max(extent, top + 1) if mode in ("reflect", "circular") else extent)
        return cg.tensor(name, tuple(shape), dtype=dtype).pad(mode)[tuple(index)]

    plain = ["zero", "replicate", "reflect", "circular", chance.randrange(-2, 3)]
    X = read("X", (a, b, p, q), "omit" if chance.random() < 0.2 else chance.choice(plain))
    W = read("W", (a, p, q), chance.choice(plain))
    body = chance.choice(
        [X * W, X - W, X * W + p, f.maximum(X, W), f.select(f.less(X, W), X, 2 * W)]
    )
    where = [f.less_equal(p, q + a)] if chance.random() < 0.3 else []
    if chance.random() < 0.2:
        where.append(f.equal((p + q) % 2, 0))
    spans = {axis: extents[axis] for axis in (a, b)}
    inner = {axis: extents[axis] for axis in (p, q)}
    value = OVER[over]([p, q], body, where=where, extents=inner)
    if chance.random() < 0.4:
        value = value + read("Z", (b, a), chance.choice(plain)) - b
    first = cg.define("T", [a, b], value, extents=spans)
    if chance.random() < 0.5:
        return first
    total = cg.sum_over([b], first[a, b], extents={b: extents[b]})
    return cg.define("Y", [a], total - f.relu(first[a, 0]), extents={a: extents[a]})


def sample(program: Program, seed: int) -> dict[str, Any]:
    chance = np.random.default_rng(seed)
    return {t.name: chance.integers(-4, 5, t.shape) for t in program.inputs}
