"""Mean and variance in one pass: the same moments, exactly; few roundings on data that cancels."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from convgen.errors import InternalError
from convgen.runtime import kernel
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.parse import parse
from convgen.symbolic.rewrite import one_pass, one_pass_step
from convgen.symbolic.rewrite.across_stages import check

TEXT = """program moments
tensor X: f32[{n}, {h}, {w}, {c}]
M[c] = sum(n, h, w: X[n, h, w, c]) / {count}
V[c] = sum(n, h, w: (X[n, h, w, c] - M[c])**2) / {count}
Y[n, h, w, c] = (X[n, h, w, c] - M[c]) / sqrt(V[c] + 1e-5)
"""


def moments(n, h, w, c, text=TEXT):
    return parse(text.format(n=n, h=h, w=w, c=c, count=n * h * w))


def test_exactly_the_same_moments(golden):
    program = moments(2, 3, 4, 2)
    found = one_pass_step(program, large=1)
    assert found is not None and found.name == "chunk_moments"
    golden("formulas/moments.txt", str(found.program))
    assert parse(str(found.program)) == found.program
    rng = random.Random(3)
    values = {"X": [Fraction(rng.randrange(-99, 99), 7) for _ in range(48)]}
    for name in ("M", "V"):
        old, new = (_only(p, name) for p in (program, found.program))
        assert evaluate(old, values)[name].data == evaluate(new, values)[name].data


def _only(program, name):
    """The program with one tensor as its output, and what that needs."""
    tensors = {t.name: t for s in program.stages for t in s.tensors}
    stages = tuple(s for s in program.stages if s.tensors[0].name != "Y")
    return replace(program, stages=stages, outputs=(tensors[name],))


@pytest.mark.parametrize("wrong", ["12 * (M_part", "3 * (M_part"])
def test_a_wrong_weight_is_found(wrong):
    program = moments(2, 3, 4, 2)
    text = str(one_pass(program, large=1))
    assert "4 * (M_part" in text
    with pytest.raises(InternalError, match="chunk_moments changed"):
        check(program, parse(text.replace("4 * (M_part", wrong)), "chunk_moments")


def test_what_stays_as_it_is():
    large = moments(16, 56, 56, 64)
    assert one_pass(large) is not large
    for same in (
        moments(4, 8, 8, 64),  # fits a cache
        moments(16, 56, 128, 64),  # chunks are too long
        moments(16, 56, 56, 64, TEXT.replace("X[n, h, w, c]", "X[c, n, h, w]").replace(
            "f32[{n}, {h}, {w}, {c}]", "f32[{c}, {n}, {h}, {w}]")),
        moments(16, 56, 56, 64, TEXT.replace(")**2", ")**4")),
        moments(16, 56, 56, 64, TEXT.replace("X[n, h, w, c] - M[c])**2", "X[n, h, w, c])**2")),
    ):  # fmt: skip
        assert one_pass(same) is same


@pytest.mark.parametrize("data", ["plain", "far from zero", "first of each chunk far away"])
def test_few_roundings(data):
    """Within 1e-5 of the variance itself, although the chunks' squares cancel."""
    program = _only(moments(4, 32, 32, 64), "V")
    assert one_pass(program) is not program
    x = np.random.default_rng(1).normal(size=(4, 32, 32, 64)).astype("float32")
    if data == "far from zero":
        x += np.float32(1000)
    elif data != "plain":
        x[:, :, 0, :] += np.float32(10_000)
    wide = x.astype(np.float64)
    want = wide.var(axis=(0, 1, 2))
    got = kernel.compile(program)(x)
    np.testing.assert_allclose(got, want, rtol=1e-5)
