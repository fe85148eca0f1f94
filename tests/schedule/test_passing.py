"""What workers read of copies that others have written, counted element by element."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from convgen.affine import Affine
from convgen.bench.cases import Case
from convgen.ir.nodes import Kernel, Loop, LoopKind, Nest
from convgen.ir.visit import loads
from convgen.passes.lower import lower
from convgen.schedule.access import trips
from convgen.schedule.cost.copies import AHEAD, Copy
from convgen.schedule.cost.locality import best_order
from convgen.schedule.cost.passing import bytes_passed
from convgen.schedule.facts import facts_of
from convgen.schedule.machine import FILLED, machine_of
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.text import parse_directives
from convgen.target import target
from convgen.types import f32

MACHINE = replace(target("x86-64-v3"), l2=1 << 20, l3=1 << 25)


def subject(which: str) -> Kernel:
    return lower(Case("small", 1, 32, 6, 64, 3, 1, 1).program(which, "nhwc", f32))


def steps(loop: Loop) -> Iterator[dict[str, int]]:
    """The values that a loop gives to its name, or to its base with the length of the inner one."""
    if not loop.segments:
        yield from ({loop.name: i} for i in range(loop.extent))
        return
    for part in loop.segments:
        for i in range(part.count):
            yield {loop.base: part.start + i * part.size, f"{loop.inner} size": part.size}


def points(loops: tuple[Loop, ...], known: dict[str, int]) -> Iterator[dict[str, int]]:
    if not loops:
        yield known
        return
    for step in steps(loops[0]):
        size = known.get(f"{loops[0].name} size")
        if size is None or step[loops[0].name] < size:
            yield from points(loops[1:], known | step)


def of_worker(nest: Nest, worker: int, places: list[tuple[Affine, ...]]) -> set[tuple[int, ...]]:
    """The elements at these places that the tasks of one worker of two meet."""
    shared = [loop for loop in nest.loops if loop.kind is LoopKind.PARALLEL]
    tasks = math.prod(trips(loop) for loop in shared)
    written = [[index.substitute(dict(nest.axes)) for index in place] for place in places]
    moving = {name for place in written for index in place for name in index.names()}
    inner = tuple(o for o in nest.loops[len(shared) :] if moving & {o.name, o.base})
    found: set[tuple[int, ...]] = set()
    for number, task in enumerate(points(tuple(shared), {})):
        if number * 2 // tasks != worker:
            continue
        for point in points(inner, task):
            for place in written:
                found.add(tuple(index.substitute(point).constant for index in place))
    return found


def foreign(kernel: Kernel, buffer: str) -> int:
    """How many elements of a copy two workers read that the other one has written."""
    nests = {nest.name: nest for nest in kernel.nests()}
    maker = next(n for n in nests.values() if any(s.buffer == buffer for s in n.stores))
    made = [s.index for s in maker.stores]
    total = 0
    for nest in nests.values():
        bodies = [r.body for r in nest.reduces]
        read = list({o.index for body in bodies for o in loads(body) if o.buffer == buffer})
        for worker in range(2 if read else 0):
            total += len(of_worker(nest, worker, read) - of_worker(maker, worker, made))
    return total


@pytest.mark.parametrize(
    ("which", "order", "passed"),
    [
        ("forward", "k_out, n, y", 0.0),
        ("forward", "y, n, k_out", 1.0),
        ("input", "c_out, n, h", 0.0),
        ("input", "h, n, c_out", 1.0),
    ],
)
def test_what_passes_is_counted(which: str, order: str, passed: float) -> None:
    """By blocks of its outermost dimension each worker reads what it wrote, by rows of the map all
    that the other one did."""
    vector, *sums = ("k", "r", "s", "c", "x") if which == "forward" else ("c", "r", "s", "k", "w")
    kernel = subject(which)
    cut = f"split({vector}, 8); reorder({order}, {', '.join(sums)}, {vector}_in)"
    for directive in parse_directives(cut):
        kernel = directive.apply(kernel, MACHINE)
    (nest,) = kernel.nests()
    facts = facts_of(nest, kernel, MACHINE)
    operand = next(o for o in facts.operands if o.load.buffer == "W")
    counted = bytes_passed(nest, kernel, [Copy(operand, (f"{vector}_in",))])
    share = passed * (AHEAD if operand.hoistable else 1)
    assert abs(counted(order.split(",")[0]) - share * operand.elements * 4) < 1e-6
    rest = f"pack(W, {vector}_in, hoist=True); parallel({order})"
    for directive in parse_directives(rest):
        kernel = directive.apply(kernel, MACHINE)
    assert foreign(kernel, "W_packed") == passed * operand.elements


@pytest.mark.parametrize("which", ["forward", "input"])
def test_workers_find_large_copies_where_they_wrote_them(which: str) -> None:
    """The filters here are larger than the map: no worker reads what another one has copied."""
    kernel = subject(which)
    kernel = default_schedule(kernel, MACHINE).apply(kernel, MACHINE)
    assert foreign(kernel, "W_packed") == 0


def test_a_window_is_no_part_of_its_own() -> None:
    """Taps of the gradient to the weights move over nearly all rows of the map, each of them."""
    kernel = subject("weights")
    (nest,) = kernel.nests()
    operand = next(o for o in facts_of(nest, kernel, MACHINE).operands if o.load.buffer == "X")
    counted = bytes_passed(nest, kernel, [Copy(operand, ())])
    assert counted("r") == counted("k") == operand.elements * 4 > counted("r") / 2


def test_taps_between_those_of_a_piece_are_not_fetched() -> None:
    """A piece of a strided gradient reads a fourth of its filters: of a copy the part that one
    chunk of channels reads stays in the second cache, with all taps it does not."""
    kernel = lower(Case("small", 1, 96, 16, 96, 6, 2, 2).program("input", "nhwc", f32))
    for directive in parse_directives("dX.0: split(c, 16)"):
        kernel = directive.apply(kernel, MACHINE)
    nest = next(kernel.nests())
    machine = replace(MACHINE, l2=200_000)
    assert 16 * 96 * 9 * 4 < FILLED * machine.l2 < 16 * 96 * 25 * 4

    def order(turned: set[str]) -> list[str]:
        names = ["n", "u", "u'", "c_out"]
        constants = machine_of(machine)
        return best_order(nest, names, kernel, machine, constants, turned, lambda _: 0.0)

    assert order({"W"})[1] == "c_out"
    assert order(set()) == ["n", "u", "u'", "c_out"]
