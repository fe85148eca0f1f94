"""Whole layers, forward and as a training step needs them, against torch and the machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from convgen.bench.arrays import random_array
from convgen.bench.bounds import Work, work_of
from convgen.bench.peak import clock
from convgen.bench.subjects import Subject
from convgen.bench.timing import Timing, interleave
from convgen.bench.written import WRITTEN
from convgen.errors import InternalError, UserError
from convgen.ir.nodes import Expr, Op
from convgen.ir.visit import walk
from convgen.passes.lower import lower
from convgen.runtime import kernel as kernels
from convgen.runtime.arrays import new_array
from convgen.runtime.build import Built
from convgen.symbolic import dsl
from convgen.symbolic.derive import split
from convgen.symbolic.program import Program
from convgen.types import f32

Array = NDArray[Any]
WHICH = ("forward", "backward", "both")
_TOLERANCE = 2e-4  # of the largest element


@dataclass(frozen=True, slots=True)
class Row:
    """One measured layer: milliseconds (median, smallest, largest), bytes that its stages read and
    write, operations as the formula counts them, the time in which as many bytes are copied divided
    by this one's (medians), the best peer's time and its ratio to this one's.
    instruction_milliseconds: what all its instructions take at least; bound: the copy or, if it
    needs longer, the unit of the core that has most to do; share_of_bound: its time divided by this
    one's."""

    case: str
    which: str
    threads: int
    milliseconds: float
    milliseconds_min: float
    milliseconds_max: float
    megabytes: float
    gigaflop: float
    share_of_copy: float
    instruction_milliseconds: float
    bound: str
    share_of_bound: float
    error: float | None = None
    peer: str | None = None
    peer_milliseconds: float | None = None
    ratio: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The row with its pass under the name ``pass``."""
        facts = asdict(self)
        return {"pass" if key == "which" else key: value for key, value in facts.items()}


class Compiled:
    """A layer's kernels with random arrays: inference alone, and the two passes of training."""

    def __init__(self, subject: Subject, threads: int) -> None:
        self.subject = subject
        program = subject.program()
        ahead, behind = split(program, list(subject.wrt))
        rng = np.random.default_rng(0)
        inputs = {t.name: t for t in program.inputs}
        inputs |= {f"d{t.name}": t for t in program.outputs}
        self.arrays: dict[str, Array] = {
            name: random_array(rng, cast("tuple[int, ...]", t.shape), t.dtype)
            for name, t in inputs.items()
        }
        self._programs = {"forward": program, "ahead": ahead, "backward": behind}
        self._kernels: dict[str, Any] = {}
        self._out: dict[str, list[Array]] = {}
        for which, one in self._programs.items():
            self._kernels[which] = kernels.compile(one, threads=threads)
            self._allot(which, one)

    def _allot(self, which: str, program: Program) -> None:
        """Results of a program, made by running it once."""
        found = self._kernels[which](*self._inputs(program))
        results = list(found) if isinstance(found, tuple) else [found]
        names = [t.name for t in program.outputs] + [
            name for name in program.saved if name not in {t.name for t in program.outputs}
        ]
        self._out[which] = results
        self.arrays.update(zip(names, results, strict=True))

    def _inputs(self, program: Program) -> list[Array]:
        return [self.arrays[t.name] for t in program.inputs]

    def call(self, which: str) -> Callable[[], object]:
        """What is timed: one kernel, or the two of a training step."""
        if which == "both":
            first, second = self.call("ahead"), self.call("backward")
            return lambda: (first(), second())
        kernel, inputs = self._kernels[which], self._inputs(self._programs[which])
        out = self._out[which] if len(self._out[which]) > 1 else self._out[which][0]
        return lambda: kernel(*inputs, out=out)

    def results(self, which: str) -> list[Array]:
        """What the last call of a pass gave."""
        return self._out["backward" if which == "both" else which]

    def _parts(self, which: str) -> tuple[str, ...]:
        return ("ahead", "backward") if which == "both" else (which,)

    def _built(self, one: str) -> Built:
        return kernels.build_program(self._programs[one], self._kernels[one].target)

    def work(self, which: str) -> Work:
        """Bytes that move and cycles of instructions, of all kernels of a pass."""
        found = [
            work_of(self._programs[one], self._built(one), self.arrays)
            for one in self._parts(which)
        ]
        most = max(found, key=lambda work: work.cycles)
        return Work(sum(w.bytes for w in found), sum(w.cycles for w in found), most.unit)

    def footprint(self, which: str) -> int:
        """Bytes of all arrays that a pass reads or writes."""
        built = [self._built(one) for one in self._parts(which)]
        names = {a.name for b in built for a in b.arguments if a.name not in b.offsets}
        return sum(a.nbytes for name, a in self.arrays.items() if name in names)

    def operations(self, which: str) -> int:
        """Floating-point operations as the formulas have them."""
        return sum(operations(self._programs[one]) for one in self._parts(which))


def operations(program: Program) -> int:
    """Operations of all stages as they are written, borders included."""
    total = 0
    for nest in lower(program).nests():
        points = math.prod(o.extent for o in nest.loops if o.reduce is None)
        for number, reduce in enumerate(nest.reduces):
            inner = math.prod(o.extent for o in nest.loops if o.reduce == number)
            each = _count(reduce.body) + sum(map(_count, reduce.combiner.combine))
            total += points * inner * each
        total += points * sum(_count(store.value) for store in nest.stores)
    return total


def _count(expr: Expr) -> int:
    return sum(isinstance(e, Op) and e.dtype.is_float for e in walk(expr))


class Copying:
    """A copy between arrays that take as many bytes together as another kernel's arrays, so that
    the same level of memory holds both; made by the compiler too."""

    def __init__(self, size: int, threads: int) -> None:
        program = _copy_program(max(1, size // 8))
        self._kernel: Any = kernels.compile(program, threads=threads)
        self._x = random_array(np.random.default_rng(1), (max(1, size // 8),), f32)
        self._y = new_array(self._x.shape, self._x.dtype)

    def run(self) -> None:
        self._kernel(self._x, out=self._y)


def _copy_program(size: int) -> Program:
    (i,) = dsl.axes("i")
    return dsl.define("Y", [i], dsl.tensor("X", (size,))[i], name="copy")


def torch_calls(
    subject: Subject, which: str, compiled: Compiled, threads: int, compile_too: bool
) -> dict[str, Callable[[], list[Array]]]:
    """torch eager, and torch.compile where it works."""
    try:
        import torch
        from torch.nn import functional
    except ImportError:
        raise UserError("torch is not installed", hint="pip install 'convgen[torch]'") from None
    torch.set_num_threads(threads)
    names = [t.name for t in subject.program().inputs]
    values = [_tensor(torch, compiled.arrays[name], subject) for name in names]
    cotangent = _tensor(torch, compiled.arrays["dY"], subject)
    written = partial(WRITTEN[subject.name], torch, functional)
    wanted = [v for name, v in zip(names, values, strict=True) if name in subject.wrt]
    if which != "forward":
        for value in wanted:
            value.requires_grad_()

    def call_of(layer: Any) -> Callable[[], list[Array]]:
        if which == "forward":
            return lambda: [layer(*values)]
        if which == "both":
            return lambda: list(torch.autograd.grad(layer(*values), wanted, cotangent))
        made = layer(*values)
        return lambda: list(torch.autograd.grad(made, wanted, cotangent, retain_graph=True))

    found = {"torch": call_of(written)}
    if compile_too:
        try:
            call = call_of(torch.compile(written))
            call()
            found["torch.compile"] = call
        except Exception:  # noqa: BLE001  what works is measured, the rest is left out
            pass
    return found


def _tensor(torch: Any, array: Array, subject: Subject) -> Any:
    if subject.last and array.ndim == 4:
        return torch.from_numpy(array).permute(0, 3, 1, 2)
    return torch.from_numpy(array)


def measure(
    subjects: Sequence[Subject],
    passes: Sequence[str] = WHICH,
    *,
    threads: int = 1,
    against: Sequence[str] = (),
    seconds: float = 1.0,
) -> Iterator[Row]:
    """Rows as they are measured."""
    for subject in subjects:
        compiled = Compiled(subject, threads)
        for which in passes:
            yield _measure_one(subject, which, compiled, threads, against, seconds)


def _measure_one(
    subject: Subject,
    which: str,
    compiled: Compiled,
    threads: int,
    against: Sequence[str],
    seconds: float,
) -> Row:
    peers: dict[str, Callable[[], list[Array]]] = {}
    if against:
        every = torch_calls(subject, which, compiled, threads, "torch.compile" in against)
        peers = {name: call for name, call in every.items() if name in against}
    call = compiled.call(which)
    call()
    error: float | None = None
    for peer in peers.values():
        worst = _error(subject, compiled.results(which), peer())
        error = worst if error is None else max(error, worst)
    if error is not None and not error <= _TOLERANCE:
        raise InternalError(
            f"{which} of {subject.name} differs from its peer by {error:.1e}", stage="bench.layers"
        )
    work = compiled.work(which)
    footprint = compiled.footprint(which)
    copying = Copying(footprint, threads)
    times = interleave({"": call, **peers, "copy": copying.run}, seconds, threads=threads)
    best = min(peers, key=lambda name: times[name].median, default=None)
    copy = times["copy"].median * work.bytes / footprint
    row = _row(compiled, which, threads, times[""], work, copy)
    if best is None:
        return row
    peer = times[best].median
    return replace(
        row,
        error=error,
        peer=best,
        peer_milliseconds=peer * 1e3,
        ratio=peer / times[""].median,
    )


def _row(
    compiled: Compiled, which: str, threads: int, timing: Timing, work: Work, copy: float
) -> Row:
    instructions = work.cycles / clock() / threads
    limit = max(copy, instructions)
    return Row(
        case=compiled.subject.name,
        which=which,
        threads=threads,
        milliseconds=timing.median * 1e3,
        milliseconds_min=timing.smallest * 1e3,
        milliseconds_max=timing.largest * 1e3,
        megabytes=work.bytes / 1e6,
        gigaflop=compiled.operations(which) / 1e9,
        share_of_copy=copy / timing.median,
        instruction_milliseconds=instructions * 1e3,
        bound="copy" if limit == copy else work.unit,
        share_of_bound=limit / timing.median,
    )


def _error(subject: Subject, results: Sequence[Array], reference: Sequence[Any]) -> float:
    """The largest difference to the peer's results, relative to their largest elements."""
    worst = 0.0
    for ours, theirs in zip(results, reference, strict=False):
        wide = theirs.detach().numpy().astype(np.float64)
        if subject.last and wide.ndim == 4:
            wide = wide.transpose(0, 2, 3, 1)
        worst = max(worst, float(np.abs(wide - ours).max() / max(np.abs(wide).max(), 1e-30)))
    return worst


def geometric_means(rows: Iterable[Row]) -> dict[str, float]:
    """Geometric mean of the ratio to the best peer for each pass."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.ratio:
            found.setdefault(row.which, []).append(row.ratio)
    return {
        name: math.exp(sum(map(math.log, ratios)) / len(ratios)) for name, ratios in found.items()
    }
