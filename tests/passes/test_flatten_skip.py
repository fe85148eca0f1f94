"""Rows outside an operand are left out, not multiplied: same numbers, fewer iterations."""

from __future__ import annotations

import numpy as np
import pytest
from schedule_nests import window

from convgen.affine import Constraint
from convgen.ir.interpret import interpret
from convgen.ir.nodes import If, Kernel
from convgen.ir.visit import walk
from convgen.passes.flatten import edges, flatten
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
