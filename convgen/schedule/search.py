"""Search: the cost model's best candidates, measured. What measures is handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convgen.errors import ScheduleError
from convgen.ir.nodes import Kernel
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.schedule import Schedule
from convgen.target import Target


@dataclass(frozen=True, slots=True)
class Trial:
    """A schedule that was measured: seconds of one run."""

    schedule: Schedule
    seconds: float


def search(
    kernel: Kernel, target: Target, count: int, measure: Callable[[Schedule], float]
) -> list[Trial]:
    """What was tried for a kernel (form NEST), the fastest first.

    The first trial is the cost model's own choice. Then, nest after nest, the next `count` - 1
    candidates of that nest, the others as they did best. Raises ScheduleError for count < 1.
    """
    if count < 1:
        raise ScheduleError("a search of nothing", expected="at least 1", got=str(count))
    ranks: dict[str, int] = {}
    trials: dict[str, Trial] = {}

    def run(wanted: dict[str, int]) -> Trial:
        schedule = default_schedule(kernel, target, wanted)
        text = str(schedule)
        if text not in trials:
            trials[text] = Trial(schedule, measure(schedule))
        return trials[text]

    best = run(ranks)
    for nest in [n for n in kernel.nests() if n.reduces]:
        for rank in range(1, count):
            wanted = {**ranks, nest.name: rank}
            found = run(wanted)
            if found.seconds < best.seconds:
                best, ranks = found, wanted
    return sorted(trials.values(), key=lambda t: t.seconds)
