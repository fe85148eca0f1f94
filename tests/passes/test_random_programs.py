"""Random programs: what is lowered and what is built give the integers of the oracle."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from random_programs import random_program, sample

from convgen.ir.interpret import interpret
from convgen.ir.verify import verify
from convgen.passes.lower import lower
from convgen.passes.pipeline import build
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.program import Program


def differences(program: Program, got: dict[str, Any], given: dict[str, Any]) -> list[str]:
    want = evaluate(program, {n: v.tolist() for n, v in given.items()})
    found: list[str] = []
    for t in program.outputs:
        exact = np.array([float(v) for v in want[t.name].data]).reshape(t.shape)
        if not np.array_equal(got[t.name].astype(np.float64), exact, equal_nan=True):
            found.append(t.name)
    return found


@pytest.mark.parametrize("block", range(6))
def test_random_programs_are_exact_at_every_stage(block: int) -> None:
    for seed in range(block * 12, block * 12 + 12):
        program = random_program(seed)
        given = sample(program, seed)
        kernel = lower(program)
        verify(kernel)
        assert not differences(program, interpret(kernel, given), given), (seed, str(program))
        flat = build(kernel, None, random.Random(seed).choice(["x86-64-v2", "x86-64-v4"]))
        verify(flat)
        assert not differences(program, interpret(flat, given, seed=seed), given), (
            seed,
            str(program),
        )
