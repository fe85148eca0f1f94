"""The sixteen programs of the language: lowered and built, they agree with the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import error

from convgen import knobs
from convgen.ir.interpret import interpret
from convgen.ir.verify import verify
from convgen.passes.lower import lower
from convgen.passes.pipeline import build
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.parse import parse
from convgen.symbolic.program import Program

FILES = sorted((Path(__file__).parents[1] / "golden" / "programs").glob("*.txt"))


def sample(program: Program) -> dict[str, Any]:
    """Positive numbers near 1 (roots and logarithms stay finite); small integers elsewhere."""
    chance = np.random.default_rng(3)
    made: dict[str, Any] = {}
    for t in program.inputs:
        if t.dtype.is_float:
            made[t.name] = (chance.integers(2, 16, t.shape) / 8).astype(t.dtype.numpy_name)
        else:
            made[t.name] = chance.integers(0, 2, t.shape).astype(t.dtype.numpy_name)
    return made


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_programs_agree_with_the_oracle(file: Path) -> None:
    program = parse(file.read_text())
    sizes = dict.fromkeys(program.sizes(), 2)
    program = program.bind(**sizes) if sizes else program
    given = sample(program)
    lists = {n: v.tolist() for n, v in given.items()}
    want = evaluate(program, lists, exact=False)
    weight = evaluate(program, lists, exact=False, magnitude=True)
    kernel = lower(program)
    verify(kernel)
    with knobs.override(VERIFY=1):
        flat = build(kernel, None, "x86-64-v3")
    for form in (kernel, flat):
        got = interpret(form, given)
        for t in program.outputs:
            assert error(got[t.name], want[t.name], weight[t.name]) < 1e-5, t.name
