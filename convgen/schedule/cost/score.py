"""What a candidate costs, in cycles of one core: closed form, no clocks.

score = max(multiply-add cycles, load cycles, latency, bytes from the caches) per tile and reduce
iteration, times their number, plus stores and packing. The constants are tabled per CPU model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from convgen.schedule.access import vector_count
from convgen.schedule.cost.blocks import all_packed, block_cycles, blocks_of, streamed_cycles
from convgen.schedule.cost.copies import first_of, pack_choices, pack_cycles
from convgen.schedule.cost.edges import share_at_edges
from convgen.schedule.cost.reuse import (
    L1_WAYS,
    LINE,
    PAGE,
    brought_with,
    bytes_of_part,
    came_along,
    crowd,
    distance,
    distinct_rows,
    fresh_vectors,
    is_read_once,
    new_of_line,
    share_distinct,
    share_of_sets,
    torn,
)
from convgen.schedule.cost.sharing import is_crowded, share_of_loads, share_outside, turn_cycles
from convgen.schedule.facts import Facts, Operand
from convgen.schedule.machine import STAYS, Machine, level_of, rates_for
from convgen.schedule.skipping import LONG, share_inside
from convgen.schedule.tiles import Candidate, chunks_of, is_masked, mean_height, run_of, tile_count

# Weights that no machine differs in.
ROWS_APART = 2.0  # times as long as rows one after another take what comes from far side by side
OVERLAP = 0.08  # share of the hidden work that still shows
WORTH_SHARING = 50_000  # cycles below which one worker is enough
FAR = 4.0  # cycles of a store to a page of its own; half of it to a line
CODE = 5e-4  # what a statement of the tile adds: equal candidates are told apart by size
SHUFFLED = 1 / 3  # of an operation: three ports take multiply-adds and shuffles, one of them both
DOUBT = 1.025  # blocks are taken where they are clearly better
STARTED = 8  # cycles of the loops around a tile, for each tile


@dataclass(frozen=True, slots=True)
class TileCycles:
    """What each part of the core takes for one reduce iteration of one tile: the operations, the
    loads, waiting for the iteration before, bytes from the caches; and the turn of the loop."""

    work: float = 0.0
    loads: float = 0.0
    latency: float = 0.0
    streamed: float = 0.0
    turn: float = 0.0

    @property
    def total(self) -> float:
        """The parts run side by side; what is hidden is not quite free, bytes least of all."""
        parts = (self.work, self.loads, self.latency, self.streamed)
        return max(parts) + OVERLAP * (sum(parts) + self.streamed) + self.turn


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a candidate runs through the outputs. height: points of a tile beside the vector loop;
    tiles: how many for each chunk of the vector loop; chunks: their sizes, with how many there are
    of each."""

    height: float
    tiles: int
    chunks: dict[int, int]


@dataclass(frozen=True, slots=True)
class NestCycles:
    """So many tiles with so many reduce iterations each: what one iteration takes, and the end of
    a tile (stores, and the turn of the loops around it)."""

    tiles: int
    iterations: float
    inner: TileCycles
    once: float

    @property
    def total(self) -> float:
        return self.tiles * (self.iterations * self.inner.total + self.once)


def tiling_of(facts: Facts, candidate: Candidate) -> Tiling:
    """The tiles of a candidate whose vector loop is an output."""
    tiles, height = 1, 1.0
    for name, cover in candidate.tile:
        tiles *= tile_count(facts.outputs[name], cover)
        height *= mean_height(facts, name, cover)
    taken = {candidate.vector, *(name for name, _ in candidate.tile)}
    tiles *= math.prod(e for n, e in facts.outputs.items() if n not in taken)
    extent = facts.outputs.get(candidate.vector, 1)
    return Tiling(height, tiles, chunks_of(extent, candidate.width))


def score(facts: Facts, candidate: Candidate, machine: Machine) -> Candidate:
    """The candidate with its packs chosen and its cycles."""
    tiling = tiling_of(facts, candidate)
    points = tiling.height * vector_count(candidate.width, lanes_of(facts, candidate))
    kept: frozenset[str] = frozenset()
    cycles = math.inf
    for packs in [frozenset[str]()] if candidate.block else pack_choices(facts, candidate):
        total = sum(pack_cycles(facts, o, candidate, machine) for o in first_of(facts, packs))
        for part in nest_cycles(facts, replace(candidate, packs=packs), tiling, machine):
            total += part.total
        total *= idle_share(tasks_of(facts, candidate, tiling), total)
        total *= DOUBT if candidate.block else 1.0
        total *= 1 + CODE * points * weight(facts, candidate, packs)
        if total < cycles:
            cycles, kept = total, packs
    return replace(candidate, packs=kept, cycles=cycles)


def nest_cycles(
    facts: Facts, candidate: Candidate, tiling: Tiling, machine: Machine
) -> Iterator[NestCycles]:
    """What all tiles take whose chunks have one size, for each size."""
    lanes = lanes_of(facts, candidate)
    whole = math.prod(facts.reduces.values())
    for width, count in tiling.chunks.items():
        vectors = vector_count(width, lanes)
        rates = rates_for(machine, width, lanes)
        once = store_cycles(facts, candidate, tiling.height, width, vectors, rates)
        iterations = whole * share_run(facts, candidate, width)
        if candidate.block:
            near = tile_cycles(facts, all_packed(facts, candidate), tiling.height, vectors, rates)
            inner = replace(near, streamed=streamed_cycles(facts, candidate, rates))
            once += block_cycles(facts, candidate, tiling.height * vectors, rates)
        else:
            inner = tile_cycles(facts, candidate, tiling.height, vectors, rates)
        yield NestCycles(tiling.tiles * count, iterations, inner, once + STARTED)


def share_run(facts: Facts, candidate: Candidate, width: int) -> float:
    """The share of the reduce iterations that tiles run, with chunks of so many: those that lie
    outside an operand, where it is 0, are left out. Of an operand that is not packed, that is told
    by dimensions that the tile does not move only. Tests in short loops gain about nothing."""
    if not is_long(facts):
        return 1.0
    sizes = {name: max(cover) for name, cover in candidate.tile}
    if candidate.vector:
        sizes[candidate.vector] = width
    share = 1.0
    for operand in facts.operands:
        packed = operand.load.buffer in candidate.packs
        for reach in operand.zeros:
            moved = tuple((n, sizes[n]) for n, _, _ in reach.outputs if n in sizes)
            inner = any(n == candidate.vector for n, _, _ in reach.inner)
            if not inner and (packed or not moved):
                share *= share_inside(reach, moved)
    return share


def is_long(facts: Facts) -> bool:
    """True where a test in front of the innermost reduce loop hides behind it."""
    return bool(facts.order) and facts.reduces[facts.order[0]] >= LONG


def lanes_of(facts: Facts, candidate: Candidate) -> int:
    return facts.lanes if candidate.vector else 1


def weight(facts: Facts, candidate: Candidate, packs: frozenset[str]) -> float:
    """About how many instructions one point of the tile takes: a gathered vector is many."""
    total = facts.operations
    for operand in facts.operands:
        strided = operand.strides.get(candidate.vector, 0) not in (0, 1)
        if operand.is_shuffled(candidate.vector, candidate.width):
            total += 1
        elif strided and not (operand.body and operand.load.buffer in packs):
            total += 2 * facts.lanes
    for strides in facts.store_strides:
        if not facts.reduces and strides.get(candidate.vector, 0) not in (0, 1):
            total += 2 * facts.lanes
    return total


def tasks_of(facts: Facts, candidate: Candidate, tiling: Tiling) -> int:
    """What is shared out among the workers: tiles, or parts of them."""
    blocks = blocks_of(facts, candidate) if candidate.block else None
    return blocks.tasks if blocks else tiling.tiles * sum(tiling.chunks.values())


def idle_share(tasks: int, cycles: float) -> float:
    """What few tasks cost where several workers could share them; small kernels need one only."""
    return 1 + 0.5 / max(1, tasks) if cycles > WORTH_SHARING else 1.0


def tile_cycles(
    facts: Facts, candidate: Candidate, height: float, vectors: int, machine: Machine
) -> TileCycles:
    """Cycles of one reduce iteration of one tile."""
    if not facts.reduces:
        return TileCycles()
    work = height * vectors * facts.operations
    fetched = streamed = 0.0
    turn, written_out = turn_cycles(facts, work), False
    tile = {name: mean_height(facts, name, cover) for name, cover in candidate.tile}
    crowded = is_crowded(facts, {**tile, candidate.vector: vectors}, machine)
    for operand in facts.operands:
        if not operand.body:
            continue
        packed = operand.load.buffer in candidate.packs
        along = tile.keys() & operand.strides.keys()
        times = math.prod(tile[name] for name in along)
        moved = packed and candidate.vector in operand.strides
        reach = operand.strides if moved or not packed else operand.pitches
        times *= 1 + sum(distance(reach[name], operand.bytes) for name in along)
        shared = 1.0
        if candidate.vector not in operand.strides:
            streamed += _lines(facts, operand, tile, packed, machine)
        together = max((crowd(reach[n], tile[n], operand.bytes) for n in along), default=0.0)
        if together > L1_WAYS - 1:  # lines of one set push one another out of the first cache
            streamed += LINE * times * min(1.0, together / L1_WAYS) / machine.l2
        if candidate.vector in operand.strides:
            differ = distinct_rows(operand, tile)
            times *= vectors * differ
            sharing = share_of_loads(facts, operand, candidate, tile, vectors)
            shared, kept = sharing if crowded else (1.0, 0.0)
            turn = max(turn, kept)
            written_out |= shared < 1.0
            if candidate.vector in operand.shifted:
                times *= 1.0 + facts.lanes * operand.bytes / 128  # most cross a line
                times *= 1 + is_masked(facts, candidate.vector)
            stride = operand.strides[candidate.vector]
            step = operand.steps[candidate.vector] or None if packed else stride
            if operand.is_shuffled(candidate.vector, candidate.width):
                work += SHUFFLED * times * shared
                times /= math.prod(tile[n] for n in along & operand.picking(candidate.vector))
            else:
                fetched += times * shared * gather_cost(facts, step, machine)
            rate = _rate(facts, operand, candidate, packed, machine)
            fresh = fresh_vectors(facts, operand, candidate.vector, candidate.width, tile)
            if is_read_once(facts, operand):
                fresh = shared * math.prod(tile[name] for name in along)
                fresh /= came_along(facts, operand, tile)
            if not packed:
                streamed += vectors * differ * lines_of_gather(facts, operand, candidate, machine)
                part = {candidate.vector: candidate.width, **{n: max(c) for n, c in candidate.tile}}
                fresh *= torn(facts, operand, part, candidate.vector)
            else:
                fresh *= share_distinct(operand, {**tile, candidate.vector: candidate.width})
            streamed += vectors * facts.lanes * operand.bytes * fresh * differ / rate
        fetched += times * shared
        work += _tests(facts, operand, candidate, tile, times, shared)
    latency = machine.latency * facts.states if facts.states else 0.0
    done, loaded = work / machine.fma_rate, fetched / machine.load_rate
    return TileCycles(done, loaded, latency, streamed, 0.0 if written_out else turn)


def is_apart(operand: Operand, vector: str) -> bool:
    """True for an operand whose neighbours along a loop are lines apart: nothing fetches them
    ahead."""
    stride = operand.strides.get(vector, 0)
    return stride is None or abs(stride) * operand.bytes >= LINE


def gather_cost(facts: Facts, stride: int | None, machine: Machine) -> float:
    """What a vector costs beyond one load: small steps are loads and shuffles."""
    if stride in (0, 1, -1):
        return 0.0
    full = facts.lanes * machine.gather
    return full if stride is None else min(2.0 * abs(stride), full)


def lines_of_gather(
    facts: Facts, operand: Operand, candidate: Candidate, machine: Machine
) -> float:
    """Cycles of the lines that a gathered vector takes, each of them for one element, from where
    they stay until the loop comes round that moves along them; the first cache costs nothing."""
    steps = {n: abs(operand.strides.get(n) or 0) * operand.bytes for n in facts.order}
    stride = operand.strides.get(candidate.vector, 0)
    if operand.readers > 1 or operand.is_shuffled(candidate.vector, candidate.width):
        return 0.0
    if stride in (0, 1, -1) or steps[facts.order[0]] < LINE:
        return 0.0
    if stride is not None and abs(stride) * operand.bytes < LINE:
        return 0.0
    between = candidate.width * LINE
    for name in facts.order:
        if 0 < steps[name] < LINE:
            break
        between *= facts.reduces[name] if steps[name] else 1
    level = level_of(between, facts.caches, STAYS)
    return 0.0 if level == "L1" else 2 * facts.lanes * LINE / machine.rate_from(level)


def _rate(
    facts: Facts, operand: Operand, candidate: Candidate, packed: bool, machine: Machine
) -> float:
    """Bytes per cycle of what is wanted of the vector operand: from far away more comes along."""
    rate = _bandwidth(facts, operand, candidate, machine)
    if packed or rate >= machine.l2:
        return rate
    step = operand.strides.get(facts.order[0], 0)
    rate /= brought_with(step, candidate.width, operand.bytes)
    return rate / (ROWS_APART if is_apart(operand, candidate.vector) else 1.0)


def _bandwidth(facts: Facts, operand: Operand, candidate: Candidate, machine: Machine) -> float:
    """Bytes per cycle at which a tile reads its part of the vector operand, from where that stays
    between the tiles that share it."""
    part = {candidate.vector: candidate.width, **{n: max(c) for n, c in candidate.tile}}
    if is_read_once(facts, operand):
        return bandwidth_of(facts, min(operand.elements * operand.bytes, facts.l2 / 2), machine)
    size = min(bytes_of_part(facts, operand, part), _bytes_until_shared(facts, operand, part))
    packed = operand.load.buffer in candidate.packs
    size *= operand.reached[packed]
    sets = 1.0
    if packed:
        size *= operand.copied / max(1, operand.elements)
    else:
        size *= torn(facts, operand, part, candidate.vector)
        sets = share_of_sets(facts, operand, candidate.width)
    return bandwidth_of(facts, size, machine, sets)


def _bytes_until_shared(facts: Facts, operand: Operand, part: Mapping[str, int]) -> float:
    """Bytes of an operand that are read until a loop that does not move it goes on, where the loops
    run in the order in which results lie: those outside of it stay."""
    shared = [n for n, e in facts.outputs.items() if n not in operand.strides and e > 1]
    if not shared:
        return math.inf
    least = [(s, min(s.get(n) or 0 for n in shared)) for s in facts.store_strides]
    outside = {
        name: part.get(name, 1)
        for name in facts.outputs
        if name in operand.strides and all((s.get(name) or 0) > step for s, step in least)
    }
    return bytes_of_part(facts, operand, outside)


def bandwidth_of(facts: Facts, size: float, machine: Machine, sets: float = 1.0) -> float:
    """Bytes per cycle of what is read again and again, by its size and the share of the sets of a
    core's own caches that it lies in."""
    caches = (sets * facts.l1, sets * facts.l2, facts.l3)
    level = level_of(size, caches, STAYS)
    swept = machine.swept if sets == 1.0 else 0.0  # rows far apart are not read in order
    return max(machine.rate_from(level), swept if level == "L3" else 0.0)


def _tests(
    facts: Facts,
    operand: Operand,
    candidate: Candidate,
    tile: dict[str, float],
    times: float,
    shared: float,
) -> float:
    """Operations by which so many loads, of which a share is left, tell what lies outside."""
    packed = operand.load.buffer in candidate.packs
    total = 0.0
    if operand.edged and not packed:
        masked = any(candidate.vector in loops for loops, _ in operand.overhangs)
        share = share_outside(facts, operand, candidate, tile, shared < 1.0)
        total += (3.0 if masked else 1.5 if shared == 1.0 else 1.0) * times * shared * share
    tested = operand.edged and not packed and facts.order[0] in operand.edged
    if shared == 1.0 and (tested or operand.omits):
        total += times if tested else 1.0  # other edges are tested outside the fastest loop
    if not total or operand.omits or candidate.block:
        return total
    return total * share_at_edges(facts, operand, {*tile, candidate.vector})


def _lines(
    facts: Facts, operand: Operand, tile: dict[str, float], packed: bool, machine: Machine
) -> float:
    """Cycles of fetching what an iteration reads of a broadcast operand: whole lines, of which a
    tile may need a part only, unless a copy holds that part alone."""
    step = operand.strides.get(facts.order[0], 0)
    if step == 0:
        return 0.0
    near = math.prod(tile[n] for n in tile if operand.strides.get(n) == 1)
    rows = math.prod(
        min(tile[n], 1 + (tile[n] - 1) * abs(stride) * operand.bytes / LINE)
        for n, stride in ((n, operand.strides.get(n)) for n in tile)
        if stride not in (None, 0, 1)
    )
    used, far = near * operand.bytes, new_of_line(facts, operand, rows)
    whole = packed and near > 1
    fetched = rows * (used if whole else max(used, far))
    times = math.prod(e for n, e in facts.reduces.items() if n in operand.strides)
    if not (whole or operand.windows) and step is not None and abs(step) * operand.bytes >= LINE:
        times *= math.gcd(PAGE, abs(step) * operand.bytes) / LINE  # far lines share a cache's sets
    rate = bandwidth_of(facts, fetched * times, machine)
    if not whole and rate < machine.l2:
        rate /= brought_with(step, near, operand.bytes)
    return fetched / rate


def store_cycles(
    facts: Facts,
    candidate: Candidate,
    height: float,
    width: int,
    vectors: int,
    machine: Machine,
) -> float:
    """Cycles of the stores of one tile, with what they read and compute."""
    total = height * vectors * facts.epilogue / machine.fma_rate
    for strides in facts.store_strides:
        along = strides.get(candidate.vector, 0) if candidate.vector else 1
        rows = run_of(candidate.tile, strides)
        far = along is None or abs(along) * facts.bytes >= PAGE
        if along == 1:
            total += height * vectors
            if candidate.vector and width < facts.outputs[candidate.vector]:
                total += FAR / 8 * height  # a row written in parts is fetched in parts
        elif rows > 1:  # transposed in registers
            together = rows == along  # whole lines, the vectors interleaved
            rows = min(rows, facts.lanes)
            turned = 4 + facts.lanes / rows
            total += height * vectors * (min(rows, turned) if together else turned)
            if not together:
                total += (FAR if far else FAR / 2) * height * width / rows
        else:
            total += height * width * machine.scatter * (3 if far else 1)
    for operand in facts.operands:
        if operand.body:
            continue
        stride = operand.strides.get(candidate.vector, 0)
        shuffled = operand.is_shuffled(candidate.vector, candidate.width)
        beyond = SHUFFLED if shuffled else gather_cost(facts, stride, machine)
        total += height * vectors * (1 + beyond)
        if operand.edged or operand.omits:
            total += 3 * height * vectors
    return total
