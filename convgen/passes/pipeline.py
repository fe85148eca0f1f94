"""Program -> kernel ready for a backend, one line for each change of language.

CONVGEN_DEBUG prints, CONVGEN_DUMP writes and CONVGEN_VERIFY checks every stage.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from convgen import knobs
from convgen.errors import InternalError, ScheduleError, UserError
from convgen.ir.interpret import difference, work
from convgen.ir.interpret.compare import WORK_LIMIT
from convgen.ir.nodes import Form, Kernel, Layout
from convgen.ir.printer import kernel_text
from convgen.ir.verify import verify
from convgen.passes.flatten import flatten
from convgen.passes.interleave import interleave
from convgen.passes.lower import lower
from convgen.passes.math import expand, legalize
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.schedule import Schedule, parse_schedule
from convgen.symbolic.program import Program
from convgen.target import Target
from convgen.target import target as target_of

Pass: TypeAlias = Callable[[Kernel, Target], Kernel]


@dataclass(frozen=True)
class Built:
    """A kernel at every stage, with the schedule that was applied."""

    nest: Kernel
    schedule: Schedule
    scheduled: Kernel
    flat: Kernel


def build(
    subject: Program | Kernel,
    schedule: Schedule | str | None = None,
    target: Target | str = "native",
    layouts: Mapping[str, Layout] | None = None,
    legalizing: Sequence[Pass] = (),
) -> Kernel:
    """The FLAT kernel of a program (or of a kernel in form NEST), ready for the backend.

    schedule: a Schedule, its text, or None for the recipes' choice; legalizing: the backend's own
    last passes. Raises ShapeError for unbound sizes, ScheduleError where a directive is not legal.
    """
    return build_stages(subject, schedule, target, layouts, legalizing).flat


def build_stages(
    subject: Program | Kernel,
    schedule: Schedule | str | None = None,
    target: Target | str = "native",
    layouts: Mapping[str, Layout] | None = None,
    legalizing: Sequence[Pass] = (),
    label: str | None = None,
) -> Built:
    """As `build`, with every stage kept for reports. label: the folder under CONVGEN_DUMP, by
    default the kernel's name."""
    machine = target_of(target)
    nest = lower(subject, layouts) if isinstance(subject, Program) else subject
    watch = _Watch(nest, label or nest.name)
    if isinstance(subject, Program):
        watch.write("program", str(subject))
    watch.see("lower", nest)
    chosen = _schedule_of(schedule, nest, machine)
    watch.tell(2, f"schedule of {nest.name}:\n{chosen}")
    scheduled = watch.see("schedule", chosen.apply(nest, machine))
    flat = watch.see("flatten", flatten(scheduled, machine))
    flat = watch.see("math", expand(flat, machine))
    for step in (legalize, interleave, *legalizing):
        flat = watch.see(step.__name__, step(flat, machine))
    watch.tell(1, f"{nest.name}: {len(flat.phases)} phases for {machine.name}")
    return Built(nest, chosen, scheduled, flat)


def scheduled(nest: Kernel, schedule: Schedule | str | None, target: Target) -> Kernel:
    """A kernel in form NEST after its schedule, as `build_stages` makes it, watched by nobody."""
    return _schedule_of(schedule, nest, target).apply(nest, target)


def _schedule_of(schedule: Schedule | str | None, nest: Kernel, target: Target) -> Schedule:
    if schedule is None:
        return default_schedule(nest, target)
    if isinstance(schedule, str):
        return parse_schedule(schedule)
    if not isinstance(schedule, Schedule):
        raise ScheduleError("schedule=", expected="a Schedule or its text", got=repr(schedule))
    return schedule


def write_dump(folder: Path, name: str, text: str) -> None:
    """A file under CONVGEN_DUMP; UserError where that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.rstrip("\n") + "\n")
    except OSError as error:
        raise UserError(
            "CONVGEN_DUMP", expected="a folder that can be written", got=str(error)
        ) from None


def watched() -> bool:
    """True when a knob asks to see or check the stages: they must be made, not taken from disk."""
    return knobs.DEBUG.value >= 2 or knobs.DUMP.value is not None or knobs.VERIFY.value >= 1


@dataclass
class _Watch:
    """Prints, writes and checks stages as the knobs ask."""

    before: Kernel
    label: str
    shown: str = ""
    count: int = field(default=0)

    def see(self, stage: str, kernel: Kernel) -> Kernel:
        """Look at what a pass made; hands it on."""
        if knobs.VERIFY.value >= 1:
            verify(kernel, stage)
        if knobs.VERIFY.value >= 2 and kernel is not self.before:
            self._compare(stage, kernel)
        if knobs.DEBUG.value >= 3 or knobs.DUMP.value is not None:
            text = kernel_text(kernel)
            if text != self.shown:
                self.tell(3, f"after {stage}:\n{text}")
            self.shown = text
            self.write(stage, text)
        self.before = kernel
        return kernel

    def _compare(self, stage: str, kernel: Kernel) -> None:
        if self.before.form is Form.NEST and work(self.before) > WORK_LIMIT:
            self.tell(1, f"{stage}: too large to interpret, not compared")
            return
        found = difference(self.before, kernel)
        if found:
            raise InternalError(
                f"the pass changed the answer: {found}", stage=stage, dump=kernel_text(kernel)
            )

    def tell(self, level: int, text: str) -> None:
        """Print where CONVGEN_DEBUG is at least `level`."""
        if knobs.DEBUG.value >= level:
            print(text, file=sys.stderr)

    def write(self, stage: str, text: str) -> None:
        """One numbered file under CONVGEN_DUMP."""
        folder = knobs.DUMP.value
        if folder is not None:
            write_dump(folder / self.label, f"{self.count:02}-{stage}.txt", text)
            self.count += 1
