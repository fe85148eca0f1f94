"""What compiling costs: import, one case with both gradients from an empty cache and from a full
one, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from convgen import knobs
from convgen.bench.cases import cases
from convgen.runtime import kernel
from convgen.symbolic.derive import grad


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds. `imported`: ``import convgen`` in a new interpreter, its start included;
    `cold`, `warm`: deriving and compiling forward and both gradients, imports excluded;
    `object_bytes`: machine code of both kernels."""

    case: str
    imported: float
    cold: float
    warm: float
    object_bytes: int


def measure_cost(case: str) -> Cost:
    """The cost of a case, the median of three processes for the import."""
    start = [_import_seconds() for _ in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        cold, size = _in_new_process(case, folder)
        warm, _ = _in_new_process(case, folder)
    return Cost(case, sorted(start)[1], cold, warm, size)


def _import_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import convgen"], check=True)
    return time.perf_counter() - start


def _in_new_process(case: str, folder: str) -> tuple[float, int]:
    command = [sys.executable, "-m", "convgen.bench.compiling", case, folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, size = json.loads(done.stdout)
    return seconds, size


def compile_case(case: str, folder: str) -> tuple[float, int]:
    """(seconds, bytes of machine code) of deriving and compiling with the cache in that folder."""
    with knobs.override(CACHE=True, CACHE_DIR=folder):
        start = time.perf_counter()
        found = cases((case,))[0]
        forward = found.program("forward", found.layouts(("nchw",))[0])
        made = [kernel.compile(p, threads=1) for p in (forward, grad(forward, ["X", "W"]))]
        seconds = time.perf_counter() - start
        return seconds, sum(k.report().object_bytes for k in made)


if __name__ == "__main__":
    print(json.dumps(compile_case(sys.argv[1], sys.argv[2])))
