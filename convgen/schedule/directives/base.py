"""What all directives share: finding the nest, refusing with a reason, rewriting, the text form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NoReturn

from convgen.affine import Affine
from convgen.errors import ScheduleError
from convgen.ir.nodes import Form, Kernel, Load, Loop, LoopKind, Nest
from convgen.ir.regions import loop_ranges
from convgen.ir.simplify import simplify_affine
from convgen.schedule.access import loads_of
from convgen.target import Target

Value = str | int | bool


class Text(str):
    """An argument that is printed in quotes: 'peel'."""


@dataclass(frozen=True)
class Directive(ABC):
    """One rewrite of one nest.

    `nest` names the nest; "" means the only one that is not a packing nest. `check` raises
    ScheduleError with what was expected, what was found and what to try; `apply` checks and gives
    the rewritten kernel. ``str`` gives the text that `parse_schedule` reads back, without the nest.
    """

    nest: str = field(default="", kw_only=True)
    keyword: ClassVar[str] = ""

    @abstractmethod
    def arguments(self) -> tuple[Sequence[Value], dict[str, Value]]:
        """Positional and keyword arguments of the text form."""

    @abstractmethod
    def check_nest(self, nest: Nest, kernel: Kernel, target: Target) -> None:
        """Raise ScheduleError where this is not legal."""

    @abstractmethod
    def rewrite(self, nest: Nest, kernel: Kernel, target: Target) -> Kernel:
        """The kernel after the directive; `check_nest` has passed."""

    def check(self, kernel: Kernel, target: Target) -> None:
        """Raise ScheduleError where this is not legal on the kernel."""
        self.check_nest(find_nest(self, kernel), kernel, target)

    def apply(self, kernel: Kernel, target: Target) -> Kernel:
        """The kernel after the directive. Raises ScheduleError where it is not legal."""
        nest = find_nest(self, kernel)
        self.check_nest(nest, kernel, target)
        after = self.rewrite(nest, kernel, target)
        entry = f"{nest.name}: {self}"
        return replace(after, form=Form.SCHEDULED, trace=(*after.trace, entry))

    def refuse(
        self,
        nest: Nest,
        message: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        hint: str | None = None,
    ) -> NoReturn:
        """Raise the ScheduleError of this directive; the loops of the nest are listed."""
        names = ", ".join(loop.name for loop in nest.loops) or "none"
        raise ScheduleError(
            f"{message}; loops are {names}",
            expected=expected,
            got=got,
            where=str(self),
            hint=hint,
        )

    def loop(self, nest: Nest, name: str) -> Loop:
        """The loop of that name, or a refusal."""
        found = [loop for loop in nest.loops if loop.name == name]
        if not found:
            self.refuse(nest, f"there is no loop {name}", expected="a loop of the nest", got=name)
        return found[0]

    def reads(self, nest: Nest, buffer: str) -> list[Load]:
        """The loads of a buffer in a nest, or a refusal where there are none."""
        found = [o for o in loads_of(nest) if o.buffer == buffer]
        if not found:
            read = ", ".join(sorted({o.buffer for o in loads_of(nest)}))
            self.refuse(
                nest,
                f"{nest.name} does not read {buffer}",
                expected=f"one of {read}" if read else "a nest that reads",
                got=buffer,
            )
        return found

    def require_unscheduled(self, nest: Nest, kernel: Kernel) -> None:
        """Refuse a nest whose loops are not its axes any more, and copies."""
        marked = [o.name for o in nest.loops if o.kind is not LoopKind.SERIAL or o.segments]
        whole = all(value.without(axis).is_constant for axis, value in nest.axes)
        if marked or not whole or nest.attached or is_packing(nest, kernel):
            self.refuse(
                nest,
                f"{nest.name} is scheduled already, or a copy",
                expected=f"{self.keyword} before all other directives",
                got=", ".join(marked) or nest.name,
            )

    def __str__(self) -> str:
        positional, named = self.arguments()
        parts = [_argument(v) for v in positional]
        parts += [f"{k}={_argument(v)}" for k, v in named.items()]
        return f"{self.keyword}({', '.join(parts)})"


def _argument(value: Value) -> str:
    return f"'{value}'" if isinstance(value, Text) else str(value)


def is_packing(nest: Nest, kernel: Kernel) -> bool:
    """True for a nest that a pack directive made."""
    return all(kernel.buffer(s.buffer).role == "packed" for s in nest.stores)


def find_nest(directive: Directive, kernel: Kernel) -> Nest:
    """The nest a directive is meant for."""
    nests = all_nests(kernel)
    if not directive.nest:
        nests = [n for n in nests if not is_packing(n, kernel)]
        nests = [n for n in nests if n in list(kernel.nests())]
        if len(nests) == 1:
            return nests[0]
    found = [n for n in nests if n.name == directive.nest]
    if len(found) == 1:
        return found[0]
    names = ", ".join(n.name for n in all_nests(kernel))
    first = nests[0].name if nests else ""
    raise ScheduleError(
        f"the kernel has the nests {names}",
        expected="the name of one",
        got=directive.nest or "none",
        where=str(directive),
        hint=f"{first}: {directive}",
    )


def all_nests(kernel: Kernel) -> list[Nest]:
    """The nests of the phases and those attached inside them."""
    found: list[Nest] = []
    todo = list(kernel.nests())
    while todo:
        nest = todo.pop(0)
        found.append(nest)
        todo = [a.nest for a in nest.attached] + todo
    return found


def _replace_in(nest: Nest, old: str, new: Nest | None) -> Nest | None:
    if nest.name == old:
        return new
    if not nest.attached:
        return nest
    attached = [(a, _replace_in(a.nest, old, new)) for a in nest.attached]
    kept = tuple(replace(a, nest=n) for a, n in attached if n is not None)
    return nest if kept == nest.attached else replace(nest, attached=kept)


def replace_nest(kernel: Kernel, old: str, new: Nest | None) -> Kernel:
    """The kernel with one nest replaced, or taken out (and its phase too when that is empty)."""
    phases = []
    for phase in kernel.phases:
        if not isinstance(phase.body, tuple):
            phases.append(phase)
            continue
        body = [_replace_in(n, old, new) for n in phase.body]
        kept = tuple(n for n in body if n is not None)
        if kept == phase.body:
            phases.append(phase)
        elif kept:
            phases.append(replace(phase, body=kept))
    return replace(kernel, phases=tuple(phases))


def replace_loops(nest: Nest, name: str, new: Sequence[Loop], value: Affine) -> Nest:
    """Put loops in the place of one, its variable being `value` from now on."""
    loops: list[Loop] = []
    for loop in nest.loops:
        loops += new if loop.name == name else [loop]
    after = replace(nest, loops=tuple(loops))
    ranges = loop_ranges(after)
    axes = tuple(
        (a, simplify_affine(v.substitute({name: value}), ranges) if name in v.names() else v)
        for a, v in nest.axes
    )
    return replace(after, axes=axes)


def change_loop(nest: Nest, name: str, change: Callable[[Loop], Loop]) -> Nest:
    """One loop replaced by change(loop)."""
    return replace(nest, loops=tuple(change(o) if o.name == name else o for o in nest.loops))


def segment_owner(nest: Nest, name: str) -> Loop | None:
    """The segmented loop whose `inner` is the loop of that name."""
    for loop in nest.loops:
        if loop.segments and loop.inner == name:
            return loop
    return None


def check_fresh(directive: Directive, nest: Nest, *names: str) -> None:
    """Refuse where a new loop would take a name that is in use."""
    used = {o.name for o in nest.loops} | {o.base for o in nest.loops} | {a for a, _ in nest.axes}
    for name in names:
        if name in used:
            directive.refuse(nest, f"the name {name} is taken", expected="a fresh name", got=name)


def check_serial(directive: Directive, nest: Nest, loop: Loop) -> None:
    """Refuse a loop that is marked, segmented or the inside of segments: its shape is settled."""
    if loop.segments or segment_owner(nest, loop.name):
        directive.refuse(
            nest,
            f"{loop.name} belongs to a cover or peel, its extent differs between segments",
            expected="a plain loop",
            got=loop.name,
            hint="the directive before cover or peel",
        )
    if loop.kind.value != "serial" or loop.steps > 1:
        kind = loop.kind.value if loop.kind.value != "serial" else f"unrolled by {loop.steps}"
        directive.refuse(
            nest,
            f"{loop.name} is marked already",
            expected="a serial loop",
            got=f"{loop.name} ({kind})",
            hint="the marks last",
        )
    for producer in nest.attached:
        if loop.name in outside(nest, producer.at):
            directive.refuse(
                nest,
                f"{producer.nest.name} is computed inside {loop.name}",
                expected="a loop further in",
                got=loop.name,
                hint=f"{directive} before compute_at",
            )
    if any(loop.name in r.factored for r in nest.reduces):
        directive.refuse(nest, f"{loop.name} is factored already", expected="an unmarked loop")


def outside(nest: Nest, name: str) -> set[str]:
    """A loop and those around it."""
    names = [loop.name for loop in nest.loops]
    return set(names[: names.index(name) + 1])


def fresh_name(name: str, used: Sequence[str]) -> str:
    """The name, numbered where it is in use."""
    if name not in used:
        return name
    number = 2
    while f"{name}_{number}" in used:
        number += 1
    return f"{name}_{number}"
