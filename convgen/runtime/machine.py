"""Machine code against exact arithmetic, at its own size."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from convgen.backends.protocol import Argument
from convgen.ir.interpret.memory import pack, unpack
from convgen.ir.layout import parse_layout
from convgen.ir.nodes import Buffer, Layout
from convgen.runtime.build import Built
from convgen.runtime.checks import Check, sizes_text
from convgen.runtime.threads import Table
from convgen.symbolic.evaluate_scalar import Numbers
from convgen.symbolic.expr import fixed
from convgen.symbolic.pointwise import Elements, WorkExceeded
from convgen.symbolic.program import Program
from convgen.target import runs_here
from convgen.types import DTYPES

# The largest error by the dtype of the result; integers are exact.
BOUNDS = {"float32": 1e-5, "float64": 1e-12}
_SAMPLES = 32  # elements of each result
_READS = 150_000  # elements read for them
_ALIGN = 64

Array = np.ndarray[Any, Any]


def run_built(
    built: Built, given: Mapping[str, Array], threads: int | None, fill: int = 255
) -> dict[str, Array]:
    """Every argument after a run: results start as bytes of `fill`; inputs are copies."""
    workspace = _aligned(built.workspace_bytes)
    flats: dict[str, tuple[Buffer, Array]] = {}
    addresses: list[int] = []
    for argument in built.arguments:
        if argument.name in built.offsets:
            addresses.append(workspace.ctypes.data + built.offsets[argument.name])
            continue
        buffer = _memory_of(built, argument)
        if argument.name in given:
            flat = pack(buffer, np.asarray(given[argument.name], order="C"))
        else:
            raw = _aligned(argument.bytes, fill)
            flat = raw[: argument.bytes].view(DTYPES[argument.dtype].numpy_name)
        flats[argument.name] = buffer, flat
        addresses.append(flat.ctypes.data)
    Table([(built, addresses)]).run(threads)
    return {name: unpack(buffer, flat) for name, (buffer, flat) in flats.items()}


def _memory_of(built: Built, argument: Argument) -> Buffer:
    """Where the elements of an argument of the caller lie."""
    rank = len(argument.shape)
    tag = built.layouts.get(argument.name)
    layout = parse_layout(tag, rank, argument.name) if tag else Layout.rowmajor(rank)
    return Buffer(argument.name, DTYPES[argument.dtype], argument.shape, layout, "input")


def _aligned(size: int, fill: int = 0) -> Array:
    raw = np.full(size + _ALIGN, fill, np.uint8)
    start = -raw.ctypes.data % _ALIGN
    return raw[start : start + size]


def results_of(program: Program, built: Built) -> dict[str, str]:
    """Argument -> tensor of the program whose values it holds after a run."""
    names = [t.name for t in program.outputs] + list(program.saved)
    known = {a.name for a in built.arguments} - set(built.offsets)
    found = {n: n for n in names if n in known}
    written = {t.name for t in program.inputs}
    for state, source in program.updates:
        if source in known and source not in written:
            found[source] = source
        elif state in known:
            found[state] = source
    return found


def check_machine(
    program: Program, built: Built, *, signed: bool, exact: bool, seed: int = 0
) -> Check:
    """The machine code's results, sampled, within the bound of exact arithmetic."""
    claim = "machine code"
    if not runs_here(built.target):
        return Check(claim, None, f"made for {built.target.name}, which does not run here")
    given = random_arrays(program, signed, seed)
    runs = [run_built(built, given, threads, fill) for threads, fill in ((1, 255), (2, 0))]
    results = results_of(program, built)
    same = all(runs[0][n].tobytes() == runs[1][n].tobytes() for n in results)
    samples = _Samples(program, given, "exact" if exact else "mp")
    rows: dict[str, Any] = {}
    passed = same
    for argument, name in results.items():
        array = runs[0][argument]
        row = samples.compare(array, name)
        row["bound"] = BOUNDS.get(str(array.dtype), 0.0)
        rows[argument] = row
        if row["elements"]:
            passed = passed and row["error"] <= row["bound"]
    how = (
        "run at full size on random numbers; elements at corners and at random places against "
        f"{'exact rational' if exact else '50-digit'} arithmetic: max |a-b| / max(max |b|, max sum "
        "|terms|) over them. Twice, with 1 and 2 threads over memory filled with ones and zeros: "
        "the same bits, so every element is written, whatever the thread count"
    )
    facts = {"same_bits": same, "results": rows}
    if not any(row["elements"] for row in rows.values()):
        how += ". No element could be computed exactly: each reads too much"
    return Check(claim, bool(passed), how, (sizes_text(program),), facts)


def random_arrays(program: Program, signed: bool, seed: int) -> dict[str, Array]:
    """Random numbers for every input, with all their bits."""
    chance = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for tensor in program.inputs:
        shape = tuple(fixed(e) for e in tensor.shape)
        if not tensor.dtype.is_float:
            values = chance.integers(0, 2, shape)
        elif signed:
            values = chance.standard_normal(shape)
        else:
            values = chance.uniform(0.5, 1.5, shape)
        made[tensor.name] = np.asarray(values).astype(tensor.dtype.numpy_name)
    return made


class _Flat:
    """An array as a flat sequence of Python numbers."""

    def __init__(self, array: Array) -> None:
        self.flat = array.reshape(-1)

    def __getitem__(self, position: int) -> Any:
        return self.flat[position].item()


class _Samples:
    """Exact elements of a program on given arrays, at places that tell much."""

    def __init__(self, program: Program, given: Mapping[str, Array], numbers: Numbers) -> None:
        inputs: dict[str, Any] = {n: _Flat(a) for n, a in given.items()}
        count = max(1, len(program.outputs) + len(program.saved) + len(program.updates))
        self.share = _READS // count
        self.values = Elements(program, inputs, numbers, limit=self.share)
        self.sizes = Elements(program, inputs, "float", magnitude=True, limit=self.share)

    def compare(self, array: Array, name: str) -> dict[str, Any]:
        """{elements compared, of how many, largest error}."""
        self.values.left = self.sizes.left = self.share
        far = scale = 0.0
        count = 0
        for place in _places(array.shape):
            try:
                want = self.values(name, place)
                size = self.sizes(name, place)
            except WorkExceeded:
                break
            got = array[place].item()
            count += 1
            a, b = float(got), float(want)
            if not (math.isfinite(a) and math.isfinite(b)):
                if a != b and not (a != a and b != b):
                    far = math.inf
                continue
            far = max(far, _distance(got, want))
            scale = max(scale, abs(b), float(size) if math.isfinite(float(size)) else 0.0)
        error = far / scale if scale else (math.inf if far else 0.0)
        return {"elements": count, "of": int(array.size), "error": error}


def _distance(got: Any, want: Any) -> float:
    """|got - want| without rounding before the subtraction."""
    return float(abs((Fraction(got) if isinstance(want, (int, Fraction)) else got) - want))


def _places(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The corners (some of many), then random places, each once."""
    if 0 in shape:
        return
    chance = random.Random(0)
    corners = list(itertools.product(*({0, e - 1} for e in shape[:10])))
    rest = tuple(0 for _ in shape[10:])
    chance.shuffle(corners)
    seen: dict[tuple[int, ...], None] = {}
    for corner in corners[: _SAMPLES // 2]:
        seen.setdefault((*corner, *rest))
    for _ in range(4 * _SAMPLES):
        if len(seen) >= _SAMPLES:
            break
        seen.setdefault(tuple(chance.randrange(e) for e in shape))
    yield from seen
