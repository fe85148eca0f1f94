"""A Schedule: directives in the order in which they are applied, with a text both ways."""

from __future__ import annotations

from dataclasses import dataclass, replace

from convgen.ir.nodes import Form, Kernel
from convgen.schedule.directives import Directive
from convgen.schedule.text import parse_directives
from convgen.target import Target


@dataclass(frozen=True)
class Schedule:
    """Directives in order. ``str`` writes one line for each run of directives on one nest.

    >>> print(parse_schedule("Y: split(k, 32); vectorize(k_in)\\nT: unroll(r)"))
    Y: split(k, 32); vectorize(k_in)
    T: unroll(r)
    """

    directives: tuple[Directive, ...] = ()
    notes: tuple[str, ...] = ()

    def apply(self, kernel: Kernel, target: Target) -> Kernel:
        """The kernel (form SCHEDULED) after all directives. Raises ScheduleError at the first that
        is not legal; the notes of the schedule are added to the kernel's."""
        for directive in self.directives:
            kernel = directive.apply(kernel, target)
        notes = tuple(dict.fromkeys((*kernel.notes, *self.notes)))
        return replace(kernel, form=Form.SCHEDULED, notes=notes)

    def __add__(self, other: Schedule) -> Schedule:
        notes = tuple(dict.fromkeys((*self.notes, *other.notes)))
        return Schedule((*self.directives, *other.directives), notes)

    def __str__(self) -> str:
        lines: list[tuple[str, list[str]]] = []
        for directive in self.directives:
            if not lines or lines[-1][0] != directive.nest:
                lines.append((directive.nest, []))
            lines[-1][1].append(str(directive))
        return "\n".join(
            f"{nest}: {'; '.join(texts)}" if nest else "; ".join(texts) for nest, texts in lines
        )


def parse_schedule(text: str) -> Schedule:
    """The schedule that a text means. Raises ScheduleError for what is none.

    >>> schedule = parse_schedule("cover(x, 10, 9); reorder(r, x_in); vectorize(k, strided=True)")
    >>> parse_schedule(str(schedule)) == schedule
    True
    """
    return Schedule(parse_directives(text))
