"""Kernels of the named cases against the peak and against peers, in the same run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.bench.cases import PASSES, Case
from convgen.bench.peak import PeakLoop, measure_peak
from convgen.bench.peers import PEERS
from convgen.bench.timing import Timing, interleave
from convgen.errors import InternalError
from convgen.runtime import kernel as kernels
from convgen.symbolic.program import Program
from convgen.target import target
from convgen.types import DType, f32, f64

Array = NDArray[Any]
# Of the largest element; a sum of thousands of products in another order differs by less.
_TOLERANCE = {f32: 1e-4, f64: 1e-11}
_RESULT = {"forward": "Y", "input": "X", "weights": "W"}


@dataclass(frozen=True, slots=True)
class Row:
    """One measured kernel. Rates are GFLOP/s at the median time; `share_of_peak` is of the FMA
    loop's best round between this kernel's rounds, on as many threads; `ratio` is to the best peer.
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
    error: float | None = None
    peer: str | None = None
    peer_gflops: float | None = None
    ratio: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The row with its pass under the name ``pass``."""
        facts = asdict(self)
        return {"pass" if key == "which" else key: value for key, value in facts.items()}


def arrays_of(case: Case, layout: str, dtype: DType, seed: int = 0) -> dict[str, Array]:
    """Random X, W and dY; never zeros, whose products a machine may do faster."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(-1, 1, case.shape(name.removeprefix("d"), layout)).astype(
            dtype.numpy_name
        )
        for name in ("X", "W", "dY")
    }


class Subject:
    """A compiled pass of a case with its arrays, ready to be timed."""

    def __init__(self, case: Case, which: str, layout: str, dtype: DType, threads: int):
        self.case, self.which, self.layout, self.dtype = case, which, layout, dtype
        self.program: Program = case.program(which, layout, dtype)
        self.kernel: Any = kernels.compile(self.program, threads=threads)
        self.arrays = arrays_of(case, layout, dtype)
        self.out = np.empty(case.shape(_RESULT[which], layout), dtype.numpy_name)
        self._inputs: list[Any] = [self.arrays[t.name] for t in self.program.inputs]

    def call(self) -> object:
        """Packing included, as for a caller who changes everything each time."""
        return self.kernel(*self._inputs, out=self.out)

    def prepared(self) -> Callable[[], object] | None:
        """A call with the weights packed ahead; None where the schedule packs
        nothing, or more than the weights."""
        if tuple(self.kernel.report().packs) != ("W",):
            return None
        packed = self.kernel.prepare(W=self.arrays["W"])
        inputs = [packed if t.name == "W" else self.arrays[t.name] for t in self.program.inputs]
        return lambda: self.kernel(*inputs, out=self.out)


def measure(
    cases: Sequence[Case],
    passes: Sequence[str] = PASSES,
    layouts: Sequence[str] = ("nhwc",),
    *,
    threads: int = 1,
    dtype: DType = f32,
    against: Sequence[str] = (),
    seconds: float = 1.0,
) -> Iterator[Row]:
    """Rows as they are measured: for each case, pass and layout one with packing included and,
    where weights can be packed ahead, one prepared."""
    best = measure_peak(threads, dtype)
    loop = PeakLoop(best.chains, best.lanes, dtype, target("native"), threads)
    for case in cases:
        for which in passes:
            for layout in layouts:
                yield from _measure_one(
                    Subject(case, which, layout, dtype, threads), loop, threads, against, seconds
                )


def _measure_one(
    subject: Subject, loop: PeakLoop, threads: int, against: Sequence[str], seconds: float
) -> Iterator[Row]:
    calls: dict[str, Callable[[], object]] = {"": subject.call}
    ahead = subject.prepared()
    if ahead is not None:
        calls["prepared"] = ahead
    error: float | None = None
    with_peers: dict[str, Callable[[], object]] = {}
    for name in against:
        found = PEERS[name](subject.case, subject.which, subject.layout, threads, subject.arrays)
        with_peers.update(found)
    subject.call()
    for call in with_peers.values():
        worst = _error(subject, call())
        error = worst if error is None else max(error, worst)
    if error is not None and not error <= _TOLERANCE[subject.dtype]:
        raise InternalError(
            f"{subject.which} of {subject.case.name} differs from its peer by {error:.1e}",
            stage="bench.conv",
            dump=f"{subject.program}\nschedule {subject.kernel.schedule}",
        )
    fastest = [math.inf]

    def spin() -> None:
        fastest[0] = min(fastest[0], loop.run())

    times = interleave({**calls, **with_peers, "the peak": spin}, seconds, threads=threads)
    peak = loop.flops / fastest[0] / 1e9
    rate = {name: subject.case.flops / t.median / 1e9 for name, t in times.items()}
    peer = max(with_peers, key=lambda name: rate[name], default=None)
    for name in calls:
        row = _row(subject, threads, name == "prepared", times[name], peak)
        if peer is not None:
            row = replace(
                row,
                error=error,
                peer=peer,
                peer_gflops=rate[peer],
                ratio=row.gflops / rate[peer],
            )
        yield row


def _row(subject: Subject, threads: int, prepared: bool, timing: Timing, peak: float) -> Row:
    rate = subject.case.flops / timing.median / 1e9
    return Row(
        case=subject.case.name,
        which=subject.which,
        layout=subject.layout,
        dtype=subject.dtype.name,
        threads=threads,
        prepared=prepared,
        gflops=rate,
        share_of_peak=rate / peak,
        peak_gflops=peak,
        milliseconds=timing.median * 1e3,
        milliseconds_min=timing.smallest * 1e3,
        milliseconds_max=timing.largest * 1e3,
    )


def _error(subject: Subject, reference: Any) -> float:
    """Largest difference to the peer's result, relative to its largest element."""
    wide = np.asarray(reference, np.float64)
    if subject.layout == "nhwc" and subject.which != "weights":
        wide = wide.transpose(0, 2, 3, 1)
    return float(np.abs(wide - subject.out).max() / max(np.abs(wide).max(), 1e-30))


def geometric_means(rows: Iterable[Row]) -> dict[str, float]:
    """Geometric mean of the ratio to the best peer for each pass, prepared or not."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.ratio:
            name = f"{row.which}{' prepared' if row.prepared else ''}"
            found.setdefault(name, []).append(row.ratio)
    return {
        name: math.exp(sum(map(math.log, ratios)) / len(ratios)) for name, ratios in found.items()
    }
