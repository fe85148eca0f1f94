"""Kernels of the named cases against the peak and against peers, in the same run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.bench.arrays import random_array
from convgen.bench.cases import PASSES, Measured
from convgen.bench.peak import Peak, PeakLoop, measure_peak
from convgen.bench.peers import PEERS, Calls
from convgen.bench.timing import Timing, interleave
from convgen.errors import InternalError
from convgen.runtime import kernel as kernels
from convgen.runtime.arrays import new_array
from convgen.runtime.layouts import PREFERRED
from convgen.schedule.machine import level_of
from convgen.symbolic.program import Program
from convgen.target import target
from convgen.types import DType, f32, f64

Array = NDArray[Any]
# Of the largest element; a sum of thousands of products in another order differs by less.
_TOLERANCE = {f32: 1e-4, f64: 1e-11}
_RESULT = {"forward": "Y", "input": "X", "weights": "W"}


@dataclass(frozen=True, slots=True)
class Row:
    """One measured kernel. Rates are GFLOP/s at the median time.

    share_of_peak       of the FMA loop's best round between this kernel's, on as many threads
    share_of_bandwidth  of the rate at which the level that holds all arguments is read, or, where
                        an eighth of the bytes or more is written, copied; every argument counts
                        once
    peer, ratio         the best of the peers that pack weights when this row does: ahead, or in
                        each call
    ratio_to_torch      to the better torch layout, also for a prepared row
    peers               GFLOP/s of all peers
    """

    case: str
    which: str
    layout: str
    dtype: str
    threads: int
    prepared: bool
    gflops: float
    share_of_peak: float
    peak_gflops: float
    milliseconds: float
    milliseconds_min: float
    milliseconds_max: float
    megabytes: float = 0.0
    level: str = "memory"
    share_of_bandwidth: float | None = None
    error: float | None = None
    peer: str | None = None
    peer_gflops: float | None = None
    ratio: float | None = None
    ratio_to_torch: float | None = None
    peers: Mapping[str, float] = field(default_factory=dict[str, float])

    def as_json(self) -> dict[str, Any]:
        """The row with its pass under the name ``pass``."""
        facts = asdict(self)
        return {"pass" if key == "which" else key: value for key, value in facts.items()}


def arrays_of(case: Measured, layout: str, dtype: DType, seed: int = 0) -> dict[str, Array]:
    """Random X, W and dY."""
    rng = np.random.default_rng(seed)
    shapes = {name: case.shape(name.removeprefix("d"), layout) for name in ("X", "W", "dY")}
    return {name: random_array(rng, shape, dtype) for name, shape in shapes.items()}


class Subject:
    """A compiled pass of a case with its arrays, ready to be timed."""

    def __init__(self, case: Measured, which: str, layout: str, dtype: DType, threads: int):
        self.case, self.which, self.layout, self.dtype = case, which, layout, dtype
        preferred = layout == PREFERRED
        self.order = "nchw" if preferred else layout  # of the dimensions in the formula
        self.program: Program = case.program(which, self.order, dtype)
        self.kernel: Any = kernels.compile(
            self.program, threads=threads, layouts=PREFERRED if preferred else None
        )
        self.arrays = arrays_of(case, self.order, dtype)
        self._given: dict[str, Any] = {
            t.name: self.kernel.to_layout(t.name, self.arrays[t.name]) for t in self.program.inputs
        }
        self._inputs: list[Any] = list(self._given.values())
        self._result = self.program.output.name
        plain = new_array(case.shape(_RESULT[which], self.order), np.dtype(dtype.numpy_name))
        self.out = self.kernel.to_layout(self._result, plain) if preferred else plain

    def call(self) -> object:
        """Packing included, as for a caller who changes everything each time."""
        return self.kernel(*self._inputs, out=self.out)

    def prepared(self) -> Callable[[], object] | None:
        """A call with the weights packed ahead, where the pass has weights; the plain call where
        the schedule packs nothing; None where it packs more than the weights."""
        packs = tuple(self.kernel.packs)
        if self.which == "weights" or packs not in ((), ("W",)):
            return None
        if not packs:
            return self.call
        packed = self.kernel.prepare(W=self._given["W"])
        inputs = [packed if n == "W" else array for n, array in self._given.items()]
        return lambda: self.kernel(*inputs, out=self.out)

    def result(self) -> Array:
        """What the last call gave, with the formula's order of the dimensions."""
        return self.kernel.from_layout(self._result, self.out)

    @property
    def read_bytes(self) -> int:
        """Bytes of all inputs."""
        return sum(a.nbytes for a in self._inputs)


@dataclass(frozen=True)
class Limits:
    """What the machine gives, measured in this run."""

    loop: PeakLoop
    peak: Peak

    @classmethod
    def measured(cls, threads: int, dtype: DType) -> Limits:
        best = measure_peak(threads, dtype)
        return cls(PeakLoop(best.chains, best.lanes, dtype, target("native"), threads), best)

    def bandwidth_for(self, read: int, written: int) -> tuple[str, float]:
        """(level that holds so many bytes, GB/s of reading it, or of copying within it)."""
        machine = target("native")
        own = self.peak.threads  # each core has a first and a second cache
        caches = (own * machine.l1, own * machine.l2, machine.l3)
        level = level_of(read + written, caches)
        kind = "copy" if 8 * written >= read + written else "read"
        rate = next(
            b.gigabytes_per_second
            for b in self.peak.bandwidth
            if (b.level, b.kind) == (level, kind)
        )
        return level, rate


def measure(
    cases: Sequence[Measured],
    passes: Sequence[str] = PASSES,
    layouts: Sequence[str] = ("nhwc",),
    *,
    threads: int = 1,
    dtype: DType = f32,
    against: Sequence[str] = (),
    seconds: float = 1.0,
    limits: Limits | None = None,
) -> Iterator[Row]:
    """Rows as they are measured: for each case, pass and layout one with packing included and,
    where there are weights that can be packed ahead, one prepared."""
    limits = limits or Limits.measured(threads, dtype)
    for case in cases:
        for which in passes:
            for layout in case.layouts(layouts):
                subject = Subject(case, which, layout, dtype, threads)
                yield from measure_pass(subject, limits, against, seconds)


def measure_pass(
    subject: Subject, limits: Limits, against: Sequence[str], seconds: float, ahead: bool = True
) -> Iterator[Row]:
    """One row with packing included and, if wanted and where there is one, a prepared one."""
    threads = limits.peak.threads
    calls: dict[str, Callable[[], object]] = {"": subject.call}
    prepared_call = subject.prepared() if ahead else None
    if prepared_call not in (None, subject.call):
        calls["prepared"] = prepared_call
    theirs = {name: _calls_of(name, subject, threads) for name in against}
    every = {name: call for found in theirs.values() for name, call in found.items()}
    error = _checked(subject, every)
    fastest = [math.inf]

    def spin() -> None:
        fastest[0] = min(fastest[0], limits.loop.run())

    times = interleave({**calls, **every, "the peak": spin}, seconds, threads=threads)
    peak = limits.loop.flops / fastest[0] / 1e9
    rate = {name: subject.case.flops / times[name].median / 1e9 for name in every}
    for prepared in [False] if prepared_call is None else [False, True]:
        timing = times["prepared" if prepared and "prepared" in calls else ""]
        row = _row(subject, limits, prepared, timing, peak)
        yield _with_peers(row, theirs, rate, error)


def _calls_of(name: str, subject: Subject, threads: int) -> Calls:
    return PEERS[name].calls(subject.case, subject.which, subject.order, threads, subject.arrays)


def _checked(subject: Subject, peers: Calls) -> float | None:
    """The largest difference to any peer; too large a one is an error, and nothing is timed."""
    subject.call()
    error = max((_error(subject, call()) for call in peers.values()), default=None)
    if error is not None and not error <= _TOLERANCE[subject.dtype]:
        raise InternalError(
            f"{subject.which} of {subject.case.name} differs from its peer by {error:.1e}",
            stage="bench.conv",
            dump=f"{subject.program}\nschedule {subject.kernel.schedule}",
        )
    return error


def _row(subject: Subject, limits: Limits, prepared: bool, timing: Timing, peak: float) -> Row:
    rate = subject.case.flops / timing.median / 1e9
    size = subject.read_bytes + subject.out.nbytes
    level, most = limits.bandwidth_for(subject.read_bytes, subject.out.nbytes)
    return Row(
        case=subject.case.name,
        which=subject.which,
        layout=subject.layout,
        dtype=subject.dtype.name,
        threads=limits.peak.threads,
        prepared=prepared,
        gflops=rate,
        share_of_peak=rate / peak,
        peak_gflops=peak,
        milliseconds=timing.median * 1e3,
        milliseconds_min=timing.smallest * 1e3,
        milliseconds_max=timing.largest * 1e3,
        megabytes=size / 1e6,
        level=level,
        share_of_bandwidth=size / timing.median / 1e9 / most,
    )


def _with_peers(
    row: Row, theirs: Mapping[str, Calls], rate: Mapping[str, float], error: float | None
) -> Row:
    """The row beside the peers that do what it does, and beside torch."""

    def best_of(library: Callable[[str], bool]) -> str | None:
        names = [n for one, calls in theirs.items() if library(one) for n in calls]
        return max(names, key=lambda name: rate[name], default=None)

    torch = best_of(lambda one: one == "torch")
    peer = best_of(lambda one: PEERS[one].ahead == row.prepared) or (
        torch if row.prepared else None
    )
    return replace(
        row,
        error=error,
        peer=peer,
        peer_gflops=None if peer is None else rate[peer],
        ratio=None if peer is None else row.gflops / rate[peer],
        ratio_to_torch=None if torch is None else row.gflops / rate[torch],
        peers=dict(rate),
    )


def _error(subject: Subject, reference: Any) -> float:
    """Largest difference to the peer's result, relative to its largest element."""
    wide = np.asarray(reference, np.float64)
    tensor = _RESULT[subject.which]
    ours = subject.case.as_peers_have(subject.result(), tensor, subject.order)
    return float(np.abs(wide - ours).max() / max(np.abs(wide).max(), 1e-30))


def geometric_means(rows: Sequence[Row]) -> dict[str, float]:
    """Geometric means of the ratios for each pass and layout, in each fair view: packing included
    against what packs in each call (torch), prepared against what packs ahead, and prepared
    against torch; the last also over the rows where torch is below 88 % of the peak."""
    found: dict[str, list[float]] = {}
    for row in rows:
        name = f"{row.which}, {row.layout}, {'prepared' if row.prepared else 'packing included'}"
        torch = max((v for n, v in row.peers.items() if n.startswith("torch")), default=None)
        views = {f"{name}, to torch": row.ratio_to_torch}
        if torch is not None and torch < 0.88 * row.peak_gflops:
            views[f"{name}, to torch where below 88 % of peak"] = row.ratio_to_torch
        if row.layout == "nchw" and "torch nchw" in row.peers:
            views[f"{name}, to torch nchw"] = row.gflops / row.peers["torch nchw"]
        if row.prepared and row.peer is not None and not row.peer.startswith("torch"):
            views[f"{name}, to those that pack ahead"] = row.ratio
        for view, ratio in views.items():
            if ratio:
                found.setdefault(view, []).append(ratio)
    return {
        f"{name} ({len(ratios)} rows)": math.exp(sum(map(math.log, ratios)) / len(ratios))
        for name, ratios in found.items()
    }
