"""Rows outside an operand are left out, not multiplied: same numbers, fewer iterations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from schedule_nests import window

from convgen.affine import Constraint
from convgen.ir.interpret import interpret
from convgen.ir.nodes import If, Kernel, Loop
from convgen.ir.printer import kernel_text
from convgen.ir.visit import walk
from convgen.passes.flatten import edges, flatten
from convgen.passes.flatten.loops import Loops
from convgen.passes.flatten.scope import Scope
from convgen.schedule.schedule import parse_schedule
from convgen.target import target

PACKED = (
    "split(k, 16); reorder(n, k_out, y, r, s, c, x, k_in); pack(X, x{skip}); "
    "pack(W, k_in); unroll(x); vectorize(k_in); carry()"
)
V4 = target("x86-64-v4")


def built(subject: Kernel, skip: bool) -> Kernel:
    text = PACKED.replace("{skip}", ", skip=True" if skip else "")
    assert str(parse_schedule(text)) == text
    return parse_schedule(text).apply(subject, V4)


def test_the_same_sums() -> None:
    subject = window(2, 5, 16, 6)
    rng = np.random.default_rng(0)
    arrays = {
        b.name: rng.normal(size=b.shape).astype(np.float32)
        for b in subject.buffers
        if b.role == "input"
    }
    want = interpret(subject, arrays)["Y"]
    for skip in (False, True):
        scheduled = built(subject, skip)
        halo = scheduled.buffer("X_packed").layout.halo
        assert halo[2] == ((0, 0) if skip else (1, 1)) and halo[3] == (1, 1)
        for kernel in (scheduled, flatten(scheduled, V4)):
            np.testing.assert_allclose(interpret(kernel, arrays)["Y"], want, rtol=1e-5, atol=1e-5)


def test_the_test_stands_outside_the_hot_loop() -> None:
    flat = flatten(built(window(1, 5, 16, 6), True), V4)
    (body,) = [p.body for p in flat.phases if p.name == "Y"]
    assert not isinstance(body, tuple)
    tests = [node for node in walk(body) if isinstance(node, If)]
    assert len(tests) == 1  # one of y + r, around the loops over s and c


def test_a_mutant_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit one too tight leaves out a row that counts."""

    def tight(index: object, extent: int) -> tuple[Constraint, Constraint]:
        return Constraint("<=", -index + 1), Constraint("<=", index - (extent - 1))  # type: ignore

    subject = window(1, 3, 16, 5)
    ones = {b.name: np.ones(b.shape, np.float32) for b in subject.buffers if b.role == "input"}
    want = interpret(subject, ones)["Y"]
    monkeypatch.setattr(edges, "limits", tight)
    assert not np.allclose(interpret(flatten(built(subject, True), V4), ones)["Y"], want)


# -- along the tile --------------------------------------------------------------------------------

ALONG = (
    "split(k, 16); cover(x, 3, 2); reorder(n, k_out, y, x_out, r, s, c, x_in, k_in); "
    "pack(X, x_in, skip=True); pack(W, k_in); unroll(x_in); vectorize(k_in); carry()"
)
ALONG_LANES = (
    "split(x, 3, tail='peel'); reorder(n, k, y, x_out, r, s, c, x_in); pack(X, x_in, skip=True); "
    "vectorize(x_in, strided=True); carry()"
)
SPLIT_TAPS = (
    "split(s, 2, tail='peel'); cover(x, 3, 2); reorder(n, k, y, x_out, r, s_out, s_in, c, x_in); "
    "pack(X, x_in, skip=True); unroll(x_in); carry()"
)


def met(tile: range, tap: int, pad: int, size: int) -> bool:
    """True where some point of a tile lies inside the operand for a tap."""
    return any(0 <= x + tap - pad < size for x in tile)


@pytest.mark.parametrize("text", [ALONG, ALONG_LANES, SPLIT_TAPS])
@pytest.mark.parametrize("tap", [0, 1, 3, 5, 6])
def test_a_tile_leaves_out_the_taps_that_miss_it(text: str, tap: int) -> None:
    """Seven taps over an operand of three: where a tap that is infinite was run, even with a halo
    of zeros alone, the output is NaN or infinite; elsewhere it is the sum of the others."""
    pad, size, taps = 5, 3, 7
    subject = window(1, 2, 16, size, taps, pad)
    arrays = {b.name: np.ones(b.shape, np.float32) for b in subject.buffers if b.role == "input"}
    want = interpret(subject, arrays)["Y"]
    arrays["W"][..., tap] = np.inf
    flat = flatten(parse_schedule(text).apply(subject, V4), V4)
    with np.errstate(invalid="ignore"):
        got = interpret(flat, arrays)["Y"]
    length = got.shape[-1]
    sizes = [3] * (length // 3) + [length % 3] * bool(length % 3)
    if "cover" in text:
        sizes = [3, 2, 2]  # seven positions
    first = 0
    for count in sizes:
        tile = range(first, first + count)
        first += count
        ran = met(tile, tap, pad, size)
        # at the middle row all taps of the column count; a tap that was not run adds nothing
        row = got[0, 0, length // 2, tile.start : tile.stop]
        assert np.isfinite(row).all() == (not ran), (tile, row)
        if not ran:
            np.testing.assert_array_equal(row, want[0, 0, length // 2, tile.start : tile.stop])
    assert first == length


@pytest.mark.parametrize("text", [ALONG, ALONG_LANES, SPLIT_TAPS])
def test_the_same_sums_along_the_tile(text: str) -> None:
    for size, taps, pad, stride in [(3, 7, 5, 1), (5, 4, 3, 2), (9, 3, 1, 1), (4, 9, 6, 1)]:
        subject = window(2, 3, 16, size, taps, pad, stride)
        if "cover" in text and (size + 2 * pad - taps) // stride + 1 < 3:
            continue
        rng = np.random.default_rng(size)
        arrays = {
            b.name: rng.integers(-4, 5, b.shape).astype(np.float32)
            for b in subject.buffers
            if b.role == "input"
        }
        want = interpret(subject, arrays)["Y"]
        scheduled = parse_schedule(text).apply(subject, V4)
        assert "halo" in kernel_text(scheduled)
        for kernel in (scheduled, flatten(scheduled, V4)):
            np.testing.assert_array_equal(interpret(kernel, arrays)["Y"], want)


def test_a_test_that_is_too_tight_along_the_tile_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at for the first point of the tile alone, it leaves out what the others need."""
    subject = window(1, 2, 16, 3, 7, 5)
    ones = {b.name: np.ones(b.shape, np.float32) for b in subject.buffers if b.role == "input"}
    want = interpret(subject, ones)["Y"]

    def first(self: Loops, limit: Constraint, scope: Scope, later: tuple[Loop, ...]) -> Constraint:
        value = self.values.resolve(limit.value, scope)
        return replace(limit, value=value.substitute({loop.name: 0 for loop in later}))

    monkeypatch.setattr(Loops, "_somewhere", first)
    flat = flatten(parse_schedule(ALONG).apply(subject, V4), V4)
    assert not np.array_equal(interpret(flat, ones)["Y"], want)
