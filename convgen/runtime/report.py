"""What a kernel tells about itself: schedule, phases, fall-offs, copies, preparation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PhaseRow:
    """One phase: its tasks, how many a worker takes at least, scratch of a worker, when it runs."""

    name: str
    extent: int
    grain: int
    scratch_bytes: int
    when: str


@dataclass(frozen=True)
class Report:
    """A kernel's report; ``print(report)`` for people, `as_json` for programs.

    workspace_bytes  temporaries and packed inputs of one call
    notes            where a fast road was left, with the reason
    copied           input name -> (why, how often): what had to be copied before calls
    calls, packed_in_call, prepared_calls
                     calls so far; those that packed their weights themselves; those with a
                     prepared handle
    """

    name: str
    target: str
    threads: int
    accuracy: float
    schedule: str
    phases: tuple[PhaseRow, ...]
    object_bytes: int
    workspace_bytes: int
    build_seconds: float
    from_cache: bool
    notes: tuple[str, ...]
    packs: tuple[str, ...]
    copied: tuple[tuple[str, str, int], ...]
    calls: int
    packed_in_call: int
    prepared_calls: int

    def as_json(self) -> dict[str, object]:
        """Everything as plain values."""
        return {
            **{k: v for k, v in vars(self).items() if k not in ("phases", "copied")},
            "phases": [vars(p) for p in self.phases],
            "copied": [{"input": n, "why": w, "times": t} for n, w, t in self.copied],
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
        ]
        for p in self.phases:
            extra = f", {p.scratch_bytes} bytes of scratch" if p.scratch_bytes else ""
            ahead = " (prepare)" if p.when == "prepare" else ""
            lines.append(
                f"  {p.name}{ahead}: {_count(p.extent, 'task')}, {p.grain} at a time{extra}"
            )
        lines += [f"note: {note}" for note in self.notes]
        lines += [
            f"copied: {name}, {why}, {_count(times, 'time')}" for name, why, times in self.copied
        ]
        if self.packs:
            inside = _count(self.packed_in_call, "call")
            lines.append(
                f"packing: {', '.join(self.packs)} packed inside {inside} of {self.calls}, "
                f"prepared ahead for {self.prepared_calls}"
            )
        return "\n".join(lines)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
