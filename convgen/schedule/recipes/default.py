"""Default schedules: from the structure of a kernel to directives.

First which stages run together, then a recipe for each nest, then what is better summed ahead of
one.
"""

from __future__ import annotations

from collections.abc import Mapping

from convgen.ir.nodes import Kernel
from convgen.schedule.directives import Directive
from convgen.schedule.directives.base import all_nests
from convgen.schedule.directives.collect import Collect
from convgen.schedule.recipes.choice import cheapest
from convgen.schedule.recipes.collecting import summed_first
from convgen.schedule.recipes.fusion import Fusion
from convgen.schedule.recipes.nest import Recipe
from convgen.schedule.recipes.parts import parts_instead
from convgen.schedule.schedule import Schedule
from convgen.target import Target


def default_schedule(
    kernel: Kernel, target: Target, ranks: Mapping[str, int] | None = None
) -> Schedule:
    """A legal schedule for every nest of a kernel (form NEST), by the cost model of the target.

    ranks: for nests that shall not take the best candidate, the place of the one they take.
    The choice depends on the kernel, the target and tabled constants only. Notes say where a fast
    road was left, with the reason.
    """
    fusion = Fusion(kernel, target)
    fusion.run()
    kernel, schedule = fusion.kernel, Schedule(tuple(fusion.directives))
    found = _run_recipes(kernel, target, ranks or {})
    if not ranks:
        first, found = _sums_ahead(kernel, target, found)
        schedule = schedule + Schedule(tuple(first))
    for recipe in found:
        schedule = schedule + Schedule(tuple(recipe.directives), tuple(recipe.notes))
    return schedule


def _sums_ahead(
    kernel: Kernel, target: Target, found: list[Recipe]
) -> tuple[list[Directive], list[Recipe]]:
    """Nests that go ahead of others as long as that takes fewer cycles, and recipes for all."""
    chosen: list[Directive] = []
    first: list[Directive] = []
    while found and all(isinstance(directive, Collect) for directive in first):
        cycles = {recipe.title: recipe.cycles for recipe in found}
        first = summed_first(kernel, target, cycles, cheapest)
        if not first and not chosen:
            first = parts_instead(
                kernel, target, found[-1].kernel, lambda k: _run_recipes(k, target, {})[-1].kernel
            )
        if not first:
            break
        for directive in first:
            kernel = directive.apply(kernel, target)
        chosen += first
        found = _run_recipes(kernel, target, {})
    return chosen, found


def _run_recipes(kernel: Kernel, target: Target, ranks: Mapping[str, int]) -> list[Recipe]:
    """A recipe for each nest, in their order, each applied before the next."""
    found: list[Recipe] = []
    nests = all_nests(kernel)
    for nest in nests:
        name = nest.name if len(nests) > 1 else ""
        recipe = Recipe(kernel, target, name, ranks.get(nest.name, 0), title=nest.name)
        recipe.run()
        kernel = recipe.kernel
        found.append(recipe)
    return found
