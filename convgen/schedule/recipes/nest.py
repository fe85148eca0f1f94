"""The recipe of one nest.

One recipe serves everything that reduces, from matrix products to window maxima: pick a vector
loop, a register tile and the operands to pack by the cost model; cover the tile's loops exactly;
order the loops; hold the states in registers; parallelize outer loops. Nests without reduces are
maps: fuse what is contiguous, vectorize, parallelize. Nothing here knows a layer by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from convgen.errors import ScheduleError
from convgen.ir.nodes import Kernel, Loop, LoopKind, Nest
from convgen.schedule.access import around_tiles, outer_loops, tile_loops, tile_sizes, trips
from convgen.schedule.cost.blocks import blocks_of, edges_along
from convgen.schedule.cost.copies import copies_of
from convgen.schedule.cost.locality import best_order, stored_order
from convgen.schedule.cost.passing import bytes_passed
from convgen.schedule.cost.score import is_long, weight
from convgen.schedule.cost.sharing import SHORT, SLIDING, UNROLLED, is_crowded
from convgen.schedule.directives import (
    Directive,
    carry,
    cover,
    fuse,
    pack,
    parallel,
    peel,
    reorder,
    reverse,
    rfactor,
    split,
    unroll,
    vectorize,
)
from convgen.schedule.directives.base import find_nest
from convgen.schedule.directives.mark import registers_needed
from convgen.schedule.directives.split import best_cover
from convgen.schedule.facts import Facts, facts_of, windows_of
from convgen.schedule.machine import machine_of
from convgen.schedule.recipes.across import good_divisor, in_memory_order, rows_of
from convgen.schedule.recipes.choice import cheapest
from convgen.schedule.recipes.dots import by_rows, is_dot
from convgen.schedule.recipes.folding import folded_sum, whole_cycles
from convgen.schedule.recipes.following import (
    ahead,
    follow_of,
    live_when_unrolled,
    slides_along,
    tests_when_unrolled,
)
from convgen.schedule.recipes.fusion import finish_consumer
from convgen.schedule.recipes.groups import through_groups
from convgen.schedule.recipes.nesting import nested
from convgen.schedule.recipes.normalize import backward_windows, contiguous_pair
from convgen.schedule.recipes.panels import Panels, cuts_of, order_of, panels_of
from convgen.schedule.recipes.peeling import peels
from convgen.schedule.recipes.streams import stream
from convgen.schedule.recipes.unfolding import unfolded
from convgen.schedule.tiles import Candidate
from convgen.target import Target

# Chunks of a sum that are written out.
TURNS = 2
# Tasks beyond which no further loop is made parallel.
TASKS = 128


@dataclass
class Recipe:
    """Builds the schedule of one nest, applying each directive as it is chosen."""

    kernel: Kernel
    target: Target
    name: str
    rank: int = 0
    title: str = ""
    cycles: float = 0.0
    directives: list[Directive] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def nest(self) -> Nest:
        return find_nest(carry(nest=self.name), self.kernel)

    def add(self, directive: Directive) -> None:
        directive = replace(directive, nest=self.name)
        self.kernel = directive.apply(self.kernel, self.target)
        self.directives.append(directive)

    def note(self, text: str) -> None:
        self.notes.append(f"{self.nest.name}: {text}")

    def run(self) -> None:
        if self.nest.attached:
            for directive in finish_consumer(self.nest, self.kernel, self.target):
                self.add(directive)
            return
        self.normalize()
        streamed = stream(self.nest, self.kernel, self.target)
        if streamed:
            for directive in streamed:
                self.add(directive)
            return
        folded = folded_sum(self.nest, self.kernel, self.target)
        if folded:
            for directive in folded:
                self.add(directive)
            self.parallelize()
            return
        facts = facts_of(self.nest, self.kernel, self.target)
        chosen = cheapest(facts, machine_of(self.target), self.rank)
        wide = None if self.rank else through_groups(self.nest, self.kernel, self.target, chosen)
        if wide is not None:
            directive, chosen = wide
            self.add(directive)
            facts = facts_of(self.nest, self.kernel, self.target)
        instead = unfolded(facts, self.kernel, self.target, chosen)
        if instead is not None and not self.rank:
            directives, chosen = instead
            for directive in directives:
                self.add(directive)
            facts = facts_of(self.nest, self.kernel, self.target)
        self.cycles = whole_cycles(facts, chosen, machine_of(self.target))
        if chosen.vector in facts.reduces:
            self.run_across(chosen, facts)
        else:
            self.run_along(chosen, facts)
        if self.nest in list(self.kernel.nests()):
            self.parallelize()

    # -- before the choice -----------------------------------------------------------------------

    def normalize(self) -> None:
        """Contiguous loops as one, windows walked forwards."""
        while (pair := contiguous_pair(self.nest, self.kernel)) is not None:
            self.add(fuse(*pair))
        for name in backward_windows(self.nest, self.kernel):
            self.add(reverse(name))

    # -- a vector loop that is an output ---------------------------------------------------------

    def run_along(self, chosen: Candidate, facts: Facts) -> None:
        panels = panels_of(facts, chosen)
        if panels is not None and self.can_guard(chosen.vector):
            self.run_panels(chosen, facts, panels)
            return
        vector = self.cut_vector(chosen, facts)
        tile = self.cut_tile(chosen, facts)
        if chosen.block:
            self.order_blocks(chosen, facts, tile, vector)
        else:
            self.order(tile, vector, chosen, facts)
            self.pack_operands(chosen, facts, tile, vector)
        if facts.reduces:
            for name in tile:
                self.add(unroll(name))
        if vector:
            self.add(vectorize(vector, strided=self.is_strided(vector)))
        elif facts.outputs:
            self.note("runs without vectors, which the cost model finds cheapest")
        if facts.reduces:
            self.unroll_reduces(weight(facts, chosen, chosen.packs))
            for directive in peels(self.nest, self.kernel):
                self.add(directive)
            self.carry_states()

    def run_panels(self, chosen: Candidate, facts: Facts, panels: Panels) -> None:
        """Strips of the vector loop are shared out; in each, panel after panel, its tiles."""
        for directive in cuts_of(facts, chosen, panels):
            self.add(directive)
        tile = self.cut_tile(chosen, facts)
        order = order_of(self.nest, chosen, panels, tile)
        self.add(reorder(*order))
        for one in tile:
            self.add(unroll(one))
        self.add(vectorize(order[-1]))
        self.carry_states()

    def cut_tile(self, chosen: Candidate, facts: Facts) -> list[str]:
        """The loops of the tile beside the vector loop, cut from their axes."""
        tile: list[str] = []
        for name, sizes in nested(facts, chosen):
            whole = max(sizes) == facts.outputs[name]
            if not whole:
                self.add(split(name, sizes[0]) if len(sizes) == 1 else cover(name, *sizes))
            tile.append(name if whole else f"{name}_in")
        return tile

    def cut_vector(self, chosen: Candidate, facts: Facts) -> str:
        """The loop to vectorize, cut from its axis."""
        name = chosen.vector
        if not name:
            return ""
        extent = facts.outputs[name]
        if chosen.width == extent:
            return name
        self.add(split(name, chosen.width, "peel" if extent % chosen.width else "exact"))
        return f"{name}_in"

    def can_guard(self, name: str) -> bool:
        try:
            split(name, 2, "guard", nest=self.name).check(self.kernel, self.target)
        except ScheduleError:
            return False
        return True

    def order(self, tile: list[str], vector: str, chosen: Candidate, facts: Facts) -> None:
        """Plain outer loops, segmented outer loops, reduce loops, the tile."""
        nest = self.nest
        inner = [*tile, *([vector] if vector else [])]
        owners = {o.inner for o in nest.loops if o.segments}
        outer = [o for o in nest.loops if o.reduce is None and o.name not in inner]
        plain = [o.name for o in outer if not o.segments and o.name not in owners]
        starts = [o.name for o in outer if o.segments]
        cut = [*starts, *(o.name for o in outer if o.name not in plain and o.name not in starts)]
        if nest.reduces and not any(o.inner in cut for o in outer):
            names, machine = [o.name for o in outer], machine_of(self.target)
            copies = copies_of(nest, facts, chosen, tile, vector)
            passed = bytes_passed(nest, self.kernel, copies)
            turned = {c.operand.load.buffer for c in copies if c.is_turned(nest)}
            plain = best_order(nest, names, self.kernel, self.target, machine, turned, passed)
            cut = []
        elif not nest.reduces and not cut:
            plain = stored_order(nest, plain, self.kernel)
        reduces: list[str] = []
        for number in range(len(nest.reduces)):
            reduces += self.reduce_order(number)
        wanted = [*plain, *cut, *reduces, *inner]
        if wanted != [o.name for o in nest.loops]:
            self.add(reorder(*wanted))

    def order_blocks(self, chosen: Candidate, facts: Facts, tile: list[str], vector: str) -> None:
        """What is shared out, the reduce loops around the tiles, tile after tile, the reduce loop
        inside (its edges apart), the tile."""
        blocks = blocks_of(facts, chosen)
        assert blocks is not None
        inside = [blocks.inside]
        around = [n for n in facts.reduces if n != blocks.inside]
        low, high = edges_along(self.nest, blocks.inside, self.kernel)
        if blocks.part < facts.reduces[blocks.inside]:
            self.add(split(blocks.inside, blocks.part))
            around, inside = [*around, f"{blocks.inside}_out"], [f"{blocks.inside}_in"]
        elif 0 < low + high < facts.reduces[blocks.inside]:
            self.add(peel(blocks.inside, low, high))
            inside = [f"{blocks.inside}_out", f"{blocks.inside}_in"]
        outer = [o.name for o in self.nest.loops if o.reduce is None]
        owners = {axis: axis if axis in outer else f"{axis}_out" for axis in facts.outputs}
        shared = owners[blocks.shared]
        near = [owners[axis] for axis in blocks.near]
        if trips(self.nest.loop(shared)) > blocks.tasks:
            self.add(split(shared, trips(self.nest.loop(shared)) // blocks.tasks))
            near = [f"{name}_in" if name == shared else name for name in near]
            shared = f"{shared}_out"
        else:
            near.remove(shared)
        named = [shared, *around, *(owners[axis] for axis in blocks.far), *near, *inside]
        named += [*tile, vector]
        rest = [o.name for o in self.nest.loops if o.name not in named]
        self.add(reorder(*rest, *named))

    def reduce_order(self, number: int) -> list[str]:
        """Windows first, plain loops last: a window loop shares an index with an output loop that
        is at least as long. Neighbouring iterations of an innermost plain loop share no operands,
        so a few of them can be unrolled without filling the registers."""
        nest = self.nest
        names = [o.name for o in nest.loops if o.reduce == number]
        if not nest.reduces[number].combiner.commutative:
            return names
        windows = windows_of(nest, self.kernel)
        return sorted(names, key=lambda name: name not in windows)

    def pack_operands(self, chosen: Candidate, facts: Facts, tile: list[str], vector: str) -> None:
        for copy in copies_of(self.nest, facts, chosen, tile, vector):
            load = copy.operand.load
            skip = is_long(facts) and any(e and e.kind == "zero" for e in load.edges)
            hoist = copy.operand.hoistable
            self.add(pack(load.buffer, *copy.loops, hoist=hoist, skip=skip))

    def is_strided(self, vector: str) -> bool:
        try:
            vectorize(vector, nest=self.name).check(self.kernel, self.target)
        except ScheduleError:
            return True
        return False

    # -- a vector loop that is reduced -----------------------------------------------------------

    def run_across(self, chosen: Candidate, facts: Facts) -> None:
        """Lanes are partial results."""
        name, extent = chosen.vector, facts.reduces[chosen.vector]
        vector = name
        if chosen.width < extent:
            tail = "exact" if extent % chosen.width == 0 else "guard"
            if is_dot(facts, name) and chosen.tile:
                tail = "peel"
            if tail == "guard":
                near = good_divisor(extent, chosen.width, facts)
                if near:
                    self.add(split(name, near))
                elif self.can_guard(name):
                    self.add(split(name, chosen.width, "guard"))
                else:
                    self.run_along(Candidate(), facts)
                    return
            else:
                self.add(split(name, chosen.width, tail if extent % chosen.width else "exact"))
            vector = f"{name}_in"
        tile = self.cut_tile(chosen, facts)
        rows = rows_of(facts, chosen) if tile else []
        rest = [o.name for o in self.nest.loops if o.name not in (*tile, *rows, vector)]
        if tile:
            outer = [o.name for o in self.nest.loops if o.reduce is None and o.name in rest]
            far = [name for name in rest if name not in outer]
            if is_dot(facts, name):
                outer = by_rows(facts, outer)
            else:
                outer = in_memory_order(facts, name, outer)
            rest = [*outer, *far]
        wanted = [*rest, *rows, *tile, vector]
        if wanted != [o.name for o in self.nest.loops]:
            self.add(reorder(*wanted))
        self.pack_operands(chosen, facts, tile, vector)
        chunks = [o for o in self.nest.loops[-2:-1] if o.name == f"{name}_out" and not tile]
        rows += [o.name for o in chunks if o.extent <= TURNS and not o.segments]
        for one in (*tile, *reversed(rows)):
            self.add(unroll(one))
        self.add(rfactor(vector))
        self.add(vectorize(vector, strided=self.is_strided(vector)))
        self.carry_states()

    # -- both ------------------------------------------------------------------------------------

    def unroll_reduces(self, statements: float) -> None:
        """Unroll the innermost reduce loops while the code stays short and what neighbouring
        iterations share fits the registers."""
        nest = self.nest
        facts = facts_of(nest, self.kernel, self.target)
        size = math.prod(tile_sizes(nest, facts.lanes).values())
        for number in range(len(nest.reduces)):
            copies = size * statements
            moving = around_tiles(nest)
            inside = nest.loops[nest.loops.index(moving[-1]) + 1 :] if moving else nest.loops
            for loop in reversed([o for o in inside if o.reduce == number and not o.segments]):
                if loop.extent < 2:
                    continue
                room = facts.registers - size * facts.states - live_when_unrolled(nest, loop, facts)
                code = copies * loop.extent * (1 + tests_when_unrolled(nest, loop, facts))
                short = loop.extent <= 16 and code <= UNROLLED
                if short and room >= 0:
                    copies *= loop.extent
                    self.add(unroll(loop.name))
                    continue
                if self.slide(loop, copies, facts):
                    break
                steps = self.steps(loop, copies, facts.registers - size * facts.states, facts)
                if steps > 1:
                    name = loop.name
                    for directive in peels(nest, self.kernel, name):
                        self.add(directive)
                        name = f"{loop.name}_in"
                    self.add(unroll(name, steps))
                break

    def steps(self, loop: Loop, copies: float, room: int, facts: Facts) -> int:
        """How many iterations a turn of a loop runs: as many as divide it, stay short and have
        registers for what they share."""
        for steps in (4, 3, 2):
            whole = loop.extent % steps == 0 and steps < loop.extent
            shared = live_when_unrolled(self.nest, replace(loop, extent=steps), facts)
            if (
                whole
                and copies * steps <= UNROLLED
                and room - shared >= ahead(self.nest, facts, self.target)
            ):
                return steps
        return 2 if copies <= SHORT and slides_along(self.nest, loop, room, facts) else 1

    def slide(self, loop: Loop, copies: float, facts: Facts) -> bool:
        """Cut a long reduce loop into short runs, written out, where the tile slides along an
        operand with it: neighbouring iterations share most of what they load."""
        nest = self.nest
        size = math.prod(tile_sizes(nest, facts.lanes).values())
        if not self.is_crowded(facts) or any(o.inner == loop.name for o in nest.loops):
            return False
        fits = [
            n
            for n in range(min(SLIDING, loop.extent - 1), 2, -1)
            if copies * n <= UNROLLED
            and 0
            < live_when_unrolled(nest, replace(loop, extent=n), facts)
            <= facts.registers - size * facts.states
        ]
        if not fits:
            return False
        exact = [n for n in fits if loop.extent % n == 0]
        if exact:
            self.add(split(loop.name, exact[0]))
        else:
            self.add(cover(loop.name, *best_cover(loop.extent, fits[0])))
        self.add(unroll(f"{loop.name}_in"))
        return True

    def is_crowded(self, facts: Facts) -> bool:
        sizes = tile_sizes(self.nest, facts.lanes)
        return is_crowded(facts, sizes, machine_of(self.target))

    def carry_states(self) -> None:
        nest = self.nest
        serial = [o.name for o in tile_loops(nest) if o.kind is LoopKind.SERIAL and o.extent > 1]
        need, have = registers_needed(nest, self.target), self.target.vector_registers - 2
        if serial or need > have:
            reason = (
                f"{', '.join(serial)} stay loops"
                if serial
                else f"{need} vectors of {have} are needed"
            )
            self.note(f"the states of the tile are not held in registers, {reason}")
            return
        self.add(carry(follow=follow_of(nest, self.kernel, self.target)))

    def parallelize(self) -> None:
        nest = self.nest
        inner = {o.inner for o in nest.loops if o.segments}
        names: list[str] = []
        tasks = 1
        for loop in outer_loops(nest):
            plain = loop.kind is LoopKind.SERIAL and loop.name not in inner
            if not plain or tasks >= TASKS:
                break
            names.append(loop.name)
            tasks *= trips(loop)
        if tasks > 1:
            self.add(parallel(*names))
        else:
            work = math.prod(o.extent for o in nest.loops)
            if work > 1 << 16:
                self.note("runs on one worker, no output loop is outermost")
