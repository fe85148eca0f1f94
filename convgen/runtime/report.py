"""What a kernel tells about itself: schedule, predictions, hot loops, layouts, phases, fall-offs,
copies, preparation; and times, when it is asked to measure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from convgen.runtime.build import Built
from convgen.runtime.details import Details, LoopRow, NestRow


@dataclass(frozen=True)
class PhaseRow:
    """One phase: its tasks, how many a worker takes at least, scratch of a worker, when it runs."""

    name: str
    extent: int
    grain: int
    scratch_bytes: int
    when: str


@dataclass(frozen=True)
class ArgumentRow:
    """An array that a caller hands over, or a packed copy of one: where its elements lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    layout: str
    bytes: int


@dataclass(frozen=True)
class Report:
    """A kernel's report; ``print(report)`` for people, `as_json` for programs.

    nests            what the cost model says, nest by nest, on one core; packs too
    loops            the hot loop of each phase, from the assembly
    bytes_read, bytes_written   of the caller's arrays, each element once; bytes_packed: of copies
    workspace_bytes  temporaries and packed inputs of one call
    notes            where a fast road was left, with the reason
    copied           input name, why, how often: what had to be copied before calls
    calls, packed_in_call, prepared_calls
                     calls so far; those that packed their weights themselves; those with a
                     prepared handle
    measured_seconds, measured_share, peak_gflops   None unless asked for: seconds of the quickest
                     call, packing included; its share of the FMA peak measured beside it
    """

    name: str
    target: str
    threads: int
    accuracy: float
    schedule: str
    phases: tuple[PhaseRow, ...]
    nests: tuple[NestRow, ...]
    loops: tuple[LoopRow, ...]
    arguments: tuple[ArgumentRow, ...]
    object_bytes: int
    workspace_bytes: int
    build_seconds: float
    from_cache: bool
    notes: tuple[str, ...]
    packs: tuple[str, ...]
    copied: tuple[tuple[str, str, int], ...] = ()
    calls: int = 0
    packed_in_call: int = 0
    prepared_calls: int = 0
    measured_seconds: float | None = None
    measured_share: float | None = None
    peak_gflops: float | None = None

    @property
    def bytes_read(self) -> int:
        return sum(a.bytes for a in self.arguments if a.role == "input" and a.layout)

    @property
    def bytes_written(self) -> int:
        return sum(a.bytes for a in self.arguments if a.role in ("output", "state"))

    @property
    def bytes_packed(self) -> int:
        return sum(a.bytes for a in self.arguments if a.role == "packed")

    @property
    def operations(self) -> float:
        """Operations of all nests, a multiply-add being one."""
        return sum(row.operations for row in self.nests)

    @property
    def predicted_seconds(self) -> float:
        """What the cost model says of a call on one core, copies that prepare() makes left out."""
        return sum(row.seconds for row in self.nests if row.nest not in self._ahead())

    @property
    def predicted_share(self) -> float:
        """The share of one core's FMA peak that goes with it."""
        least = sum(row.seconds * row.share_of_peak for row in self.nests)
        return least / self.predicted_seconds if self.predicted_seconds else 0.0

    def _ahead(self) -> set[str]:
        return {phase.name for phase in self.phases if phase.when == "prepare"}

    def measured(self, seconds: float, peak_gflops: float) -> Report:
        """The report with a measured time."""
        share = 2e-9 * self.operations / seconds / peak_gflops
        return replace(
            self, measured_seconds=seconds, measured_share=share, peak_gflops=peak_gflops
        )

    def as_json(self) -> dict[str, object]:
        """Everything as plain values."""
        copied = [{"input": n, "why": w, "times": t} for n, w, t in self.copied]
        return {
            **asdict(self),
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "bytes_packed": self.bytes_packed,
            "predicted_seconds": self.predicted_seconds,
            "predicted_share": self.predicted_share,
            "copied": copied,
        }

    def __str__(self) -> str:
        origin = "read from the cache" if self.from_cache else "compiled"
        lines = [
            f"kernel {self.name} for {self.target}, {_count(self.threads, 'thread')}",
            f"  {origin} in {self.build_seconds * 1e3:.1f} ms, {self.object_bytes} bytes of code, "
            f"{self.workspace_bytes} bytes of workspace",
            "schedule:",
            *(f"  {line}" for line in self.schedule.splitlines() or ["(none)"]),
            "phases:",
            *map(_phase_line, self.phases),
            f"predicted on one core: {_time(self.predicted_seconds)}, "
            f"{self.predicted_share:.0%} of the peak",
            *map(_nest_line, self.nests),
            *(["hot loops:"] if self.loops else []),
            *map(_loop_line, self.loops),
            f"arrays: {self.bytes_read} bytes read, {self.bytes_written} written, "
            f"{self.bytes_packed} packed",
            *(
                f"  {a.name} {a.dtype}{list(a.shape)}: {a.role} {a.layout or '(not read)'}"
                for a in self.arguments
            ),
            *self._usage_lines(),
        ]
        return "\n".join(lines)

    def _usage_lines(self) -> Iterator[str]:
        if self.measured_seconds is not None:
            yield (
                f"measured: {_time(self.measured_seconds)}, packing included, "
                f"{self.measured_share:.0%} of {self.peak_gflops:.0f} GFLOP/s"
            )
        yield from (f"note: {note}" for note in self.notes)
        for name, why, times in self.copied:
            yield f"copied: {name}, {why}, {_count(times, 'time')}"
        if self.packs and not self.calls:
            yield f"packing: {', '.join(self.packs)} in each call, or ahead with prepare()"
        elif self.packs:
            inside = _count(self.packed_in_call, "call")
            yield (
                f"packing: {', '.join(self.packs)} packed inside {inside} of {self.calls}, "
                f"prepared ahead for {self.prepared_calls}"
            )


def report_of(built: Built, details: Details, threads: int, accuracy: float) -> Report:
    """The report of a built kernel."""
    return Report(
        name=built.name,
        target=built.target.name,
        threads=threads,
        accuracy=accuracy,
        schedule=built.schedule,
        phases=tuple(
            PhaseRow(e.phase, e.extent, e.grain, e.scratch_bytes, e.when) for e in built.entries
        ),
        nests=details.nests,
        loops=details.loops,
        arguments=tuple(
            ArgumentRow(a.name, a.dtype, a.shape, a.role, details.layouts.get(a.name, ""), a.bytes)
            for a in built.arguments
        ),
        object_bytes=len(built.object),
        workspace_bytes=built.workspace_bytes,
        build_seconds=built.seconds,
        from_cache=built.from_cache,
        notes=built.notes,
        packs=built.prepared,
    )


def _phase_line(phase: PhaseRow) -> str:
    extra = f", {phase.scratch_bytes} bytes of scratch" if phase.scratch_bytes else ""
    ahead = " (prepare)" if phase.when == "prepare" else ""
    tasks = _count(phase.extent, "task")
    return f"  {phase.name}{ahead}: {tasks}, {phase.grain} at a time{extra}"


def _nest_line(row: NestRow) -> str:
    if not row.operations:
        return f"  {row.nest}: {_time(row.seconds)}, {row.bytes} bytes moved"
    parts = sorted(row.parts.items(), key=lambda part: -part[1])
    others = ", ".join(
        f"{name} {value / row.seconds:.0%}" for name, value in parts if value >= row.seconds / 20
    )
    return (
        f"  {row.nest}: {_time(row.seconds)}, {row.share_of_peak:.0%} of the peak, bound by "
        f"{row.bound} ({others}), {row.bytes} bytes"
    )


def _loop_line(row: LoopRow) -> str:
    spills = f"{row.spills} spills" if row.spills else "no spills"
    if not row.multiply_adds:
        return f"  {row.phase}: {row.instructions} instructions, {row.loads} loads, {spills}"
    return (
        f"  {row.phase}: {row.multiply_adds} multiply-adds in {row.instructions} instructions, "
        f"{row.loads / row.multiply_adds:.2f} loads each, {spills}"
    )


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.2f} ms"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
