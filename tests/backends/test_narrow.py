"""Narrow integers in vector lanes: a position stays as wide as the element until it is stored."""

from __future__ import annotations

import re

import numpy as np
import pytest

import convgen as cg
from convgen.backends import llvm
from convgen.passes import pipeline
from convgen.passes.lower import lower
from convgen.symbolic.derive import split
from convgen.symbolic.parse import parse
from convgen.symbolic.program import Program
from convgen.target import target
from convgen.types import f32, i32, i64

POOL = """program pool
tensor X: f32[2, 9, 8, 32]
Y[n, y, x, c] = max(r < 3, s < 3: X{omit}[n, 2*y + r - 1, 2*x + s - 1, c]) for y < 5, x < 4
"""


def ahead() -> Program:
    """The forward pass of training, which keeps the places of the largest in bytes."""
    return split(parse(POOL), ["X"])[0]


def states(text: str, **shapes: object) -> tuple[object, ...]:
    (nest,) = lower(parse(text, **shapes)).nests()  # type: ignore[arg-type]
    return nest.reduces[0].combiner.dtypes


def test_positions_are_as_wide_as_the_elements() -> None:
    body = "Y[n], I[n] = max(k: X[n, k]), argmax(k: X[n, k])"
    assert states(body, X=(3, 40)) == (f32, i32)
    assert i64 in states(body, X=cg.tensor("X", (3, 40), "f64"))
    assert i64 in states(body, X=(1, (1 << 31) + 1))  # more of them than 32 bits tell apart


@pytest.mark.parametrize("machine", ["x86-64-v3", "x86-64-v4"])
def test_conditions_do_not_cross_lanes(machine: str) -> None:
    where = target(machine)
    flat = pipeline.build(ahead(), None, where)
    made = llvm.compile_kernel(flat, where)
    lines = made.asm.splitlines()
    narrow = r"vpack|vpmov|vpshufb|vextract|vpunpck|vpblendvb"
    across = sum(bool(re.match(rf"\s+(?:{narrow})", line)) for line in lines)
    chosen = sum(bool(re.match(r"\s+v(?:blendvps|blendmps|cmp)", line)) for line in lines)
    assert 4 * across < chosen, (across, chosen)


def test_places_of_the_largest() -> None:
    """The first of equals; a NaN before all numbers."""
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (2, 9, 8, 32)).astype(np.float32)
    x[0, 3, 3, 5] = np.nan
    program = ahead()
    y, place = cg.compile(program)(x)
    wide = np.full((2, 11, 10, 32), -np.inf, np.float32)
    wide[:, 1:10, 1:9] = x
    taps = np.stack([wide[:, r : r + 9 : 2, s : s + 7 : 2] for r in range(3) for s in range(3)])
    wanted = np.argmax(taps, axis=0)
    np.testing.assert_array_equal(place, wanted)
    np.testing.assert_array_equal(y, np.take_along_axis(taps, wanted[None], 0)[0])


@pytest.mark.parametrize("what", ["max", "min"])
@pytest.mark.parametrize("size", [64, 43])
def test_places_in_lanes(what: str, size: int) -> None:
    """Lanes hold every so-maniest element: the first of equals wins, the last NaN over the rest."""
    rng = np.random.default_rng(1)
    x = rng.integers(-2, 3, (40, size)).astype(np.float32)
    x[3, 7] = x[3, 22] = x[3, 5] = np.nan
    x[4] = -np.inf if what == "max" else np.inf
    program = parse(f"Y[n], I[n] = {what}(k: X[n, k]), arg{what}(k: X[n, k])", X=(40, size))
    tail = "" if size % 16 == 0 else ", tail='guard'"
    schedule = f"split(k, 16{tail}); rfactor(k_in); vectorize(k_in); carry()"
    kernel = cg.compile(program, schedule=schedule)
    y, place = kernel(x)
    wanted = (np.argmax if what == "max" else np.argmin)(x, axis=1)
    wanted[3] = 22
    np.testing.assert_array_equal(place, wanted)
    np.testing.assert_array_equal(y, x[np.arange(40), wanted])
