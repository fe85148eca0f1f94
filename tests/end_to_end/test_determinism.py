"""Same input and version, same bytes; same bits for any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import convgen as cg
from convgen import knobs
from convgen.runtime.build import build_program
from convgen.symbolic.program import Program

SCRIPT = """
import hashlib
import convgen as cg
from convgen.runtime.build import build_program

def show(name, program):
    built = build_program(program)
    code = hashlib.sha256(built.object).hexdigest()
    text = hashlib.sha256((str(program) + built.schedule + built.text("loops")).encode()).hexdigest()
    print(name, text, code)

conv = cg.nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="reflect").program((2, 4, 9, 8))
show("forward", conv)
show("gradients", cg.grad(conv))
for name, half in zip(("ahead", "behind"), cg.split(conv)):
    show(name, half)
show("max", cg.grad(cg.nn.MaxPool2d(3, 2, padding=1).program((1, 2, 7, 7))))
logits = cg.parse("L[n] = logsumexp(k: X[n, k]) - sum(k: select(T[n] == k, X[n, k], 0))",
                  X=(5, 7), T=cg.tensor("T", (5,), "i64"))
show("loss", cg.grad(logits, ["X"]))
"""


def test_same_bytes_whatever_the_hash_seed() -> None:
    seen: set[str] = set()
    for seed in ("0", "1", "4242"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "CONVGEN_CACHE": "0",
        }
        found = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr
        assert len(found.stdout.splitlines()) == 6
        seen.add(found.stdout)
    assert len(seen) == 1, seen


def test_same_bytes_when_compiled_again_in_other_company() -> None:
    """What was compiled before in a process leaves no trace in what comes after."""

    def make() -> Program:
        return cg.grad(cg.nn.Conv1d(3, 4, 3, stride=2, padding=1).program((2, 3, 9)))

    with knobs.override(CACHE=False):
        first = build_program(make())
        cg.compile(cg.grad(cg.parse("Q[u, v] = prod(w: A[u, w] * B[w, v])", A=(3, 3), B=(3, 5))))
        again = build_program(make())
    assert first.object == again.object
    assert first.schedule == again.schedule


def test_another_program_has_other_bytes() -> None:
    """The comparison sees a changed stride, tap and boundary."""
    with knobs.override(CACHE=False):
        made = {
            build_program(cg.nn.Conv1d(2, 2, 3, *rest, padding_mode=mode).program((1, 2, 8))).object
            for rest, mode in [
                ((1, 1), "zeros"),
                ((2, 1), "zeros"),
                ((1, 0), "zeros"),
                ((1, 1), "reflect"),
            ]
        }
    assert len(made) == 4


PROGRAMS = {
    "conv": lambda: cg.nn.Conv2d(5, 7, 3, padding=1).program((3, 5, 13, 11)),
    "gradients": lambda: cg.grad(cg.nn.Conv2d(5, 7, 3, 2, padding=1).program((3, 5, 13, 11))),
    "reflect": lambda: cg.grad(
        cg.nn.Conv2d(3, 4, 3, padding=2, padding_mode="reflect").program((2, 3, 9, 9))
    ),
    "depthwise": lambda: cg.grad(
        cg.nn.Conv2d(6, 6, 3, padding=1, groups=6).program((2, 6, 12, 12))
    ),
    "sum of everything": lambda: cg.parse("Y[] = sum(i, j: X[i, j])", X=(301, 257)),
    "softmax": lambda: cg.grad(cg.parse("Y[n] = logsumexp(k: X[n, k])", X=(33, 1001))),
    "norm": lambda: cg.grad(
        cg.parse(
            "M[c] = sum(n, y: X[n, c, y]) / 310\n"
            "V[c] = sum(n, y: (X[n, c, y] - M[c])**2) / 310\n"
            "Y[n, c, y] = (X[n, c, y] - M[c]) / sqrt(V[c] + 1/1000)",
            X=(10, 5, 31),
        )
    ),
    "statistics in parts": lambda: cg.grad(
        cg.parse(
            "M[c] = sum(n, y: X[n, y, c]) / 14000\n"
            "V[c] = sum(n, y: (X[n, y, c] - M[c])**2) / 14000\n"
            "Y[n, y, c] = (X[n, y, c] - M[c]) / sqrt(V[c] + 1/1000)",
            X=(10, 1400, 64),
        )
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_same_bits_for_any_number_of_threads(name: str) -> None:
    program = PROGRAMS[name]()
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=t.shape).astype(np.float32) for t in program.inputs]
    with knobs.override(CACHE=False):
        first, *others = (cg.compile(program, threads=count)(*arrays) for count in (1, 2, 5))
    for other in others:
        for a, b in zip(several(first), several(other), strict=True):
            assert a.tobytes() == b.tobytes()


def several(results: Any) -> tuple[np.ndarray, ...]:
    return results if isinstance(results, tuple) else (results,)
