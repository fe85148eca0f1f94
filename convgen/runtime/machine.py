"""Machine code against exact arithmetic, at its own size."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from convgen.backends.protocol import Argument
from convgen.errors import ScheduleError, ShapeError
from convgen.ir.interpret.memory import pack, unpack
from convgen.ir.layout import parse_layout
from convgen.ir.nodes import Buffer, Layout
from convgen.runtime.build import Built, build_apart
from convgen.runtime.call import zeros_on_line
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

Array = np.ndarray[Any, Any]


def run_built(
    built: Built, given: Mapping[str, Array], threads: int | None, fill: int = 255
) -> dict[str, Array]:
    """Every argument after a run: results start as bytes of `fill`; inputs are copies."""
    workspace = zeros_on_line(built.workspace_bytes)
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
            raw = zeros_on_line(argument.bytes)
            raw.fill(fill)
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
    program: Program,
    built: Built,
    *,
    signed: bool,
    exact: bool,
    member: Program | None = None,
    seed: int = 0,
) -> Check:
    """The machine code's results within the bound of exact arithmetic: samples at full size, every
    element of a small `member` of the program's family."""
    claim = "machine code"
    if not runs_here(built.target):
        return Check(claim, None, f"made for {built.target.name}, which does not run here")
    numbers: Numbers = "exact" if exact else "mp"
    given = random_arrays(program, signed, seed)
    runs = [run_built(built, given, threads, fill) for threads, fill in ((1, 255), (2, 0))]
    results = results_of(program, built)
    same = all(runs[0][n].tobytes() == runs[1][n].tobytes() for n in results)
    samples = _Samples(program, given, numbers, _READS)
    rows = {
        argument: samples.compare(runs[0][argument], name, _places(program, name))
        for argument, name in results.items()
    }
    at = [sizes_text(program)]
    facts: dict[str, Any] = {"same_bits": same, "results": rows}
    how = (
        "run at full size on random numbers; elements at corners, of every piece and at random "
        f"places against {'exact rational' if exact else '50-digit'} arithmetic: max |a-b| / "
        "max(max |b|, max sum |terms|) over them. Twice, with 1 and 2 threads over memory filled "
        "with ones and zeros: the same bits, so every element is written, whatever the thread count"
    )
    small = None if member is None else _every_element(member, built, signed, numbers, seed)
    if member is not None and small is not None:
        at.append(f"{sizes_text(member)}; every element")
        facts["small_results"] = small
        how += ". Machine code of the same formula at a small size likewise, element by element"
    every = [*rows.values(), *(small or {}).values()]
    passed = same and all(row["error"] <= row["bound"] for row in every if row["elements"])
    if not any(row["elements"] for row in every):
        how += ". No element could be computed exactly: each reads too much"
    return Check(claim, passed, how, tuple(at), facts)


def _every_element(
    member: Program, built: Built, signed: bool, numbers: Numbers, seed: int
) -> dict[str, Any] | None:
    """All results of machine code of a small program, by the kernel's schedule where that is legal
    there; None when they are too many."""
    made: Built | None = None
    for schedule in (built.schedule or None, None):
        try:
            made = build_apart(member, built.target, schedule, built.layouts or None)
            break
        except (ScheduleError, ShapeError):
            continue
    if made is None:
        return None
    given = random_arrays(member, signed, seed)
    arrays = run_built(made, given, 1)
    samples = _Samples(member, given, numbers, 4 * _READS)
    rows: dict[str, Any] = {}
    for argument, name in results_of(member, made).items():
        shape = arrays[argument].shape
        places = itertools.product(*map(range, shape))
        rows[argument] = row = samples.compare(arrays[argument], name, places)
        if row["elements"] < row["of"]:
            return None
    return rows


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

    def __init__(
        self, program: Program, given: Mapping[str, Array], numbers: Numbers, reads: int
    ) -> None:
        inputs: dict[str, Any] = {n: _Flat(a) for n, a in given.items()}
        count = max(1, len(program.outputs) + len(program.saved) + len(program.updates))
        self.share = reads // count
        self.values = Elements(program, inputs, numbers, limit=self.share)
        self.sizes = Elements(program, inputs, "float", magnitude=True, limit=self.share)

    def compare(self, array: Array, name: str, places: Iterable[tuple[int, ...]]) -> dict[str, Any]:
        """{elements compared, of how many, largest error, its bound}."""
        self.values.left = self.sizes.left = self.share
        far = scale = 0.0
        count = 0
        for place in places:
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
        bound = BOUNDS.get(str(array.dtype), 0.0)
        return {"elements": count, "of": int(array.size), "error": error, "bound": bound}


def _distance(got: Any, want: Any) -> float:
    """|got - want| without rounding before the subtraction."""
    return float(abs((Fraction(got) if isinstance(want, (int, Fraction)) else got) - want))


def _places(program: Program, name: str) -> Iterator[tuple[int, ...]]:
    """Corners (some of many), an element of every piece (of some, where there are many), then
    random places; each once."""
    tensor = program.tensors()[name]
    shape = [fixed(e) for e in tensor.shape]
    if 0 in shape:
        return
    chance = random.Random(0)
    corners = list(itertools.product(*({0, e - 1} for e in shape[:10])))
    rest = tuple(0 for _ in shape[10:])
    chance.shuffle(corners)
    seen: dict[tuple[int, ...], None] = {}
    for corner in corners[: _SAMPLES // 2]:
        seen.setdefault((*corner, *rest))
    inner = list(_piece_places(program, name, chance))
    for place in chance.sample(inner, min(len(inner), _SAMPLES)):
        seen.setdefault(place)
    wanted = max(_SAMPLES, len(seen))
    for _ in range(4 * _SAMPLES):
        if len(seen) >= wanted:
            break
        seen.setdefault(tuple(chance.randrange(e) for e in shape))
    yield from seen


def _piece_places(program: Program, name: str, chance: random.Random) -> Iterator[tuple[int, ...]]:
    """A place that each piece of a tensor writes, somewhere in its ranges."""
    for piece in (p for stage in program.stages for p in stage.pieces):
        for out in (o for o in piece.outs if o.tensor.name == name):
            spans = [(r.axis, r.lo, fixed(r.hi)) for r in piece.domain.ranges]
            if any(high <= low for _, low, high in spans):
                continue
            point = {axis: chance.randrange(low, high) for axis, low, high in spans}
            if all(c.holds(point) for c in piece.domain.constraints):
                yield tuple(i.evaluate(point) for i in out.index)
