"""Measured schedules: the cost model's best candidates run on random arrays, the fastest kept."""

from __future__ import annotations

from dataclasses import dataclass

from convgen.errors import ShapeError
from convgen.runtime import cache, kernel
from convgen.runtime.build import lowered
from convgen.runtime.measure import quickest, random_inputs
from convgen.runtime.threads import thread_count
from convgen.schedule.schedule import Schedule
from convgen.schedule.search import search
from convgen.symbolic.program import Program
from convgen.target import Target
from convgen.target import target as target_of


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a search found. schedule: the fastest one's text, which `compile` takes; trials: every
    (schedule, seconds), the fastest first; recorded: it was found on disk."""

    schedule: str
    trials: tuple[tuple[str, float], ...]
    recorded: bool = False


def tune(
    program: Program,
    count: int = 8,
    target: Target | str = "native",
    threads: int | None = None,
    seconds: float = 0.05,
) -> Tuned:
    """Measure up to `count` candidates for each sum of a program, `seconds` each, and record the
    result with the kernel cache, so that the same search gives the same schedule again.

    Raises ShapeError for symbolic sizes, TargetError for machine code that cannot run here.
    """
    if program.sizes():
        raise ShapeError(
            "a search measures, so it needs every size",
            got=", ".join(program.sizes()),
            hint=f"program.bind({', '.join(f'{n}=...' for n in program.sizes())})",
        )
    machine, workers = target_of(target), thread_count(threads)
    key = cache.key_of(
        "search", str(program), machine.key(), workers, count, cache.sources_digest()
    )
    record = cache.load(key, cache.TUNED)
    if record is not None:
        trials = tuple((str(text), float(taken)) for text, taken in record.facts["trials"])
        return Tuned(trials[0][0], trials, True)
    arrays = random_inputs(program.inputs)

    def measure(schedule: Schedule) -> float:
        made = kernel.compile(program, str(schedule), machine, workers)
        return quickest(lambda: made(*arrays), seconds)

    found = search(lowered(program, in_place=True), machine, count, measure)
    trials = tuple((str(t.schedule), t.seconds) for t in found)
    cache.store(key, cache.Record({"trials": [list(t) for t in trials]}, {}), cache.TUNED)
    return Tuned(trials[0][0], trials)
