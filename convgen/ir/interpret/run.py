"""Runs kernels in any form, by the definitions in nodes.py, with numpy: slow and checked.

Nests run with the semantics of the Nest docstring; FLAT bodies run statement by statement, and a
load or store outside its buffer raises InternalError. Temporaries, scratch and outputs start as
NaN (integers: a large number), so that reading what was not written shows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from convgen.errors import InternalError
from convgen.ir.interpret.flat import FlatRun
from convgen.ir.interpret.memory import Memory
from convgen.ir.interpret.nests import NestRun
from convgen.ir.nodes import Form, Kernel, Phase

__all__ = ["interpret"]


def interpret(
    kernel: Kernel, arrays: Mapping[str, Any], *, seed: int | None = None, temporaries: bool = False
) -> dict[str, Any]:
    """The outputs of a kernel, as numpy arrays in their logical shapes.

    arrays: input name -> array in the logical shape (converted to the buffer's dtype); an output
    given here starts with that value (a state updated in place). seed: cut
    the tasks of FLAT phases into random runs of at least `grain` tasks, run in random order; None
    runs all of a phase in one call. temporaries=True returns every buffer that is not an input or
    a constant.

    Raises DataError for missing or ill-shaped inputs, InternalError where the kernel leaves its
    buffers or reads what has no value.
    """
    memory = Memory(kernel, arrays)
    chance = None if seed is None else random.Random(seed)
    for phase in kernel.phases:
        if kernel.form is Form.FLAT:
            _run_flat(memory, phase, chance)
        else:
            _run_nests(memory, phase)
    found = memory.outputs()
    if temporaries:
        found.update(memory.workspace())
    return found


def _run_nests(memory: Memory, phase: Phase) -> None:
    if not isinstance(phase.body, tuple):
        raise InternalError(f"phase {phase.name}: wanted nests", stage="interpret")
    for nest in phase.body:
        NestRun(memory).run(nest, {})


def _run_flat(memory: Memory, phase: Phase, chance: random.Random | None) -> None:
    if isinstance(phase.body, tuple):
        raise InternalError(f"phase {phase.name}: wanted statements", stage="interpret")
    body = FlatRun(memory, phase.body, phase.name)
    for begin, end in _calls(phase, chance):
        memory.renew_scratch()
        body.run(begin, end)


def _calls(phase: Phase, chance: random.Random | None) -> Iterator[tuple[int, int]]:
    """(begin, end) of each call of the entry."""
    if chance is None:
        yield 0, phase.extent
        return
    calls: list[tuple[int, int]] = []
    begin = 0
    while begin < phase.extent:
        end = min(phase.extent, begin + phase.grain + chance.randrange(3))
        calls.append((begin, end))
        begin = end
    chance.shuffle(calls)
    yield from calls
