"""What a candidate costs, in cycles of one core: closed form, no clocks.

score = max(multiply-add cycles, load cycles, latency, bytes from the caches) per tile and reduce
iteration, times their number, plus stores and packing. The constants are tabled per CPU model; a
model without a row gets the default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from convgen.schedule.facts import Facts, Operand
from convgen.schedule.reuse import (
    LINE,
    PAGE,
    brought_with,
    bytes_of_part,
    crowd,
    distance,
    distinct_rows,
    fresh_vectors,
    is_read_once,
)
from convgen.schedule.tiles import Tile, mean_height, run_of, tile_count
from convgen.target import Target


@dataclass(frozen=True, slots=True)
class Machine:
    """Constants of a CPU, for one core.

    fma_bits    bits of multiply-adds per cycle     load_bits  bits loaded per cycle
    fma_rate, load_rate   the same in vectors of the target, two at most per cycle
    latency     cycles of a dependent multiply-add  gather     cycles per gathered element
    l2, l3, memory   bytes per cycle from each level
    scatter     cycles per element stored or copied with a step
    clock       billions of cycles a second, for times that are predicted
    copy        cycles per element copied in order
    """

    fma_bits: int = 1024
    load_bits: int = 1024
    fma_rate: float = 2.0
    load_rate: float = 2.0
    latency: float = 4.0
    gather: float = 1.5
    l2: float = 32.0
    l3: float = 14.0
    memory: float = 6.0
    scatter: float = 1.5
    copy: float = 0.3
    clock: float = 4.0


# Weights that no machine differs in.
OVERLAP = 0.08  # share of the hidden work that still shows
WORTH_SHARING = 50_000  # cycles below which one worker is enough
UNROLLED = 160  # statements that the unrolled reduce loops of one tile may have
TURN = 0.1  # cycles of a turn of a loop, which hides behind the tile
MISSED = 4.0  # cycles of the end of a short loop, the jump now and then guessed wrong
CROWDED = 0.75  # loads, as a share of the operations' time, from which sharing them pays
SLIDING = 7  # iterations of a reduce loop that are unrolled to share what they slide along
FAR = 4.0  # cycles of a store to a page of its own; half of it to a line
FILLED = 0.75  # share of the third cache that one nest may use
REUSED = 16  # uses of an element in a call from which its copy is taken to serve many calls
CODE = 5e-4  # what a statement of the tile adds: equal candidates are told apart by size
L1_WAYS = 8

# The first row whose text occurs in the model's own name for itself.
MACHINES: dict[str, Machine] = {
    "EPYC (family 26": Machine(l3=24.0, memory=10.0),
    "EPYC (family 25": Machine(fma_bits=512, load_bits=512, l3=10.0, memory=4.0, clock=3.6),
    "Ryzen (family 25": Machine(fma_bits=512, load_bits=512, l3=12.0, memory=5.0),
    "EPYC": Machine(fma_bits=512, load_bits=512, l3=20.0),
    "Xeon": Machine(l2=48.0, l3=10.0, memory=5.0),
    "0xd": Machine(fma_bits=512, load_bits=384),
}
DEFAULT_MACHINE = Machine()


def machine_of(target: Target) -> Machine:
    """The row of the table for a target, or the default row; rates for its vectors."""
    rows = (machine for word, machine in MACHINES.items() if word in target.cpu_model)
    machine = next(rows, DEFAULT_MACHINE)
    return replace(
        machine,
        fma_rate=min(2.0, machine.fma_bits / target.vector_bits),
        load_rate=min(2.0, machine.load_bits / target.vector_bits),
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A choice: the vector loop ("" for none) and how much of it a tile takes; the other loops of
    the tile with the sizes that cover them; the buffers to pack."""

    vector: str = ""
    width: int = 1
    tile: Tile = ()
    packs: frozenset[str] = frozenset()
    cycles: float = math.inf


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


def chunks_of(extent: int, width: int) -> dict[int, int]:
    """The sizes of the tiles along the vector loop, with how many there are of each."""
    whole, rest = divmod(extent, width)
    return {size: count for size, count in ((width, whole), (rest, 1)) if size and count}


def score(facts: Facts, candidate: Candidate, machine: Machine) -> Candidate:
    """The candidate with its packs chosen and its cycles."""
    lanes = facts.lanes if candidate.vector else 1
    sizes = dict(candidate.tile)
    tiles = 1
    height = 1.0
    for name, cover in candidate.tile:
        tiles *= tile_count(facts.outputs[name], cover)
        height *= mean_height(facts, name, cover)
    if candidate.vector:
        chunks = chunks_of(facts.outputs[candidate.vector], candidate.width)
    else:
        chunks = {1: 1}
    rest = math.prod(
        e for n, e in facts.outputs.items() if n != candidate.vector and n not in sizes
    )
    iterations = math.prod(facts.reduces.values())
    outer = tiles * rest
    kept: frozenset[str] = frozenset()
    cycles = math.inf
    for packs in _pack_choices(facts, candidate):
        total = sum(pack_cycles(facts, o, candidate, machine) for o in _first_of(facts, packs))
        for width, count in chunks.items():
            vectors = -(-width // lanes)
            rates = rates_for(machine, width, lanes)
            inner = tile_cycles(facts, candidate, height, vectors, packs, rates).total
            once = store_cycles(facts, candidate, height, width, vectors, rates)
            total += outer * count * (iterations * inner + once + 8)
        total *= idle_share(outer * sum(chunks.values()), total)
        total *= 1 + CODE * height * -(-candidate.width // lanes) * weight(facts, candidate, packs)
        if total < cycles:
            cycles, kept = total, packs
    return Candidate(candidate.vector, candidate.width, candidate.tile, kept, cycles)


def rates_for(machine: Machine, width: int, lanes: int) -> Machine:
    """The rates for vectors of so many lanes: whole ones may take two turns, short ones do not."""
    short = 1
    while short < min(width, lanes):
        short *= 2
    if short == lanes:
        return machine
    return replace(
        machine,
        fma_rate=min(2.0, machine.fma_rate * lanes / short),
        load_rate=min(2.0, machine.load_rate * lanes / short),
    )


def weight(facts: Facts, candidate: Candidate, packs: frozenset[str]) -> float:
    """About how many instructions one point of the tile takes: a gathered vector is many."""
    total = facts.operations
    for operand in facts.operands:
        strided = operand.strides.get(candidate.vector, 0) not in (0, 1)
        if strided and not (operand.body and operand.load.buffer in packs):
            total += 2 * facts.lanes
    for strides in facts.store_strides:
        if not facts.reduces and strides.get(candidate.vector, 0) not in (0, 1):
            total += 2 * facts.lanes
    return total


def idle_share(tasks: int, cycles: float) -> float:
    """What few tasks cost where several workers could share them; small kernels need one only."""
    return 1 + 0.5 / max(1, tasks) if cycles > WORTH_SHARING else 1.0


def _first_of(facts: Facts, packs: frozenset[str]) -> list[Operand]:
    """One operand for each packed buffer."""
    found: dict[str, Operand] = {}
    for operand in facts.operands:
        if operand.load.buffer in packs:
            found.setdefault(operand.load.buffer, operand)
    return list(found.values())


def _pack_choices(facts: Facts, candidate: Candidate) -> list[frozenset[str]]:
    """Nothing; the buffers that are strided along the vector loop; those that meet edges too; those
    whose lines a tile uses in part too."""
    partial: set[str] = set()
    strided: set[str] = set()
    edged: set[str] = set()
    for operand in facts.operands:
        stride = operand.strides.get(candidate.vector, 0)
        helps = stride not in (0, 1) and operand.steps[candidate.vector] != stride
        tested = operand.edged & {candidate.vector, *(name for name, _ in candidate.tile)}
        if not operand.body:
            continue
        if operand.packable and (helps or tested):
            strided |= {operand.load.buffer} if helps else set()
            edged |= {operand.load.buffer} if tested else set()
        elif operand.packable and _is_partial(facts, operand, candidate):
            partial.add(operand.load.buffer)
    choices = [set[str](), strided, strided | edged, strided | edged | partial]
    return list(dict.fromkeys(map(frozenset, choices)))


def _is_partial(facts: Facts, operand: Operand, candidate: Candidate) -> bool:
    """True for an operand of which tiles need equal parts of a line each."""
    if candidate.vector in operand.strides:
        return False
    return any(
        operand.strides.get(name) == 1
        and 1 < max(sizes) < facts.outputs[name]
        and max(sizes) * operand.bytes < LINE
        and facts.outputs[name] % max(sizes) == 0
        for name, sizes in candidate.tile
    )


def pack_cycles(facts: Facts, operand: Operand, candidate: Candidate, machine: Machine) -> float:
    """A nest's part of the packing: the pieces of a gradient share one copy of the weights."""
    nests = operand.readers if operand.hoistable else 1
    used = math.prod(facts.outputs.values()) * math.prod(facts.reduces.values()) * nests
    share = 0.1 if operand.hoistable and used >= REUSED * operand.elements else 1.0
    return copy_cycles(facts, operand, candidate, machine) * share / nests + 200


def copy_cycles(facts: Facts, operand: Operand, candidate: Candidate, machine: Machine) -> float:
    """Cycles of packing an operand: read; the lines of the copy are fetched, then written."""
    rate = machine.copy
    if operand.strides.get(candidate.vector, 0) not in (0, 1):
        rate = 2 * machine.copy if operand.near >= facts.lanes // 2 else machine.scatter
    size = operand.elements * operand.bytes
    moved = 3 * size / (machine.l3 if 2 * size <= FILLED * facts.l3 else machine.memory)
    return max(operand.elements * rate, moved)


def tile_cycles(
    facts: Facts,
    candidate: Candidate,
    height: float,
    vectors: int,
    packs: frozenset[str],
    machine: Machine,
) -> TileCycles:
    """Cycles of one reduce iteration of one tile."""
    if not facts.reduces:
        return TileCycles()
    work = height * vectors * facts.operations
    fetched = streamed = 0.0
    turn = _turn(facts, work)
    tile = {name: mean_height(facts, name, cover) for name, cover in candidate.tile}
    crowded = is_crowded(facts, {**tile, candidate.vector: vectors}, machine)
    for operand in facts.operands:
        if not operand.body:
            continue
        packed = operand.load.buffer in packs
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
        stride = operand.strides.get(candidate.vector, 0)
        if candidate.vector in operand.strides:
            differ = distinct_rows(operand, tile)
            times *= vectors * differ
            sharing = _shared(facts, operand, candidate, tile, vectors)
            shared, kept = sharing if crowded else (1.0, 0.0)
            turn = 0.0 if shared < 1.0 else max(turn, kept)
            if candidate.vector in operand.shifted:
                times *= 1.0 + facts.lanes * operand.bytes / 128  # most cross a line
            step = operand.steps[candidate.vector] or None if packed else stride
            fetched += times * shared * gather_cost(facts, step, machine)
            rate = _bandwidth(facts, operand, candidate, machine)
            step = operand.strides.get(facts.order[0], 0)
            if not packed and rate < machine.l2:
                rate /= brought_with(step, candidate.width, operand.bytes)
            fresh = fresh_vectors(facts, operand, candidate.vector, candidate.width, tile)
            if is_read_once(facts, operand):
                fresh = shared * math.prod(tile[name] for name in along)
            streamed += vectors * facts.lanes * operand.bytes * fresh * differ / rate
        fetched += times * shared
        if operand.edged and not packed:
            masked = any(candidate.vector in loops for loops, _ in operand.overhangs)
            share = _outside(facts, operand, candidate, tile, shared < 1.0)
            work += (3.0 if masked else 1.5 if shared == 1.0 else 1.0) * times * shared * share
        tested = operand.edged and not packed and facts.order[0] in operand.edged
        if shared == 1.0 and (tested or operand.omits):
            work += times if tested else 1.0  # other edges are tested outside the fastest loop
    latency = machine.latency * facts.states if facts.states else 0.0
    done, loaded = work / machine.fma_rate, fetched / machine.load_rate
    return TileCycles(done, loaded, latency, streamed, turn)


def is_crowded(facts: Facts, tile: Mapping[str, float], machine: Machine) -> bool:
    """True where a tile of so many points (vectors, along the vector loop) has so many loads that
    they hardly hide behind its operations."""
    loads = sum(
        math.prod(size for name, size in tile.items() if name in operand.strides)
        for operand in facts.operands
        if operand.body
    )
    work = math.prod(tile.values()) * facts.operations
    return loads / machine.load_rate > CROWDED * work / machine.fma_rate


def _turn(facts: Facts, statements: float) -> float:
    """What an iteration adds as a turn of a loop: short loops that stay loops are left by a jump
    that is guessed wrong."""
    done = 1.0
    for name in facts.order:
        extent = facts.reduces[name]
        if extent > 1 and (extent > 16 or statements * done * extent > UNROLLED):
            return (TURN + MISSED / extent) / done
        done *= extent
    return 0.0


def _shared(
    facts: Facts, operand: Operand, candidate: Candidate, tile: dict[str, float], vectors: int
) -> tuple[float, float]:
    """The share of a vector operand's loads that is left when the reduce loops that slide it
    through the tile are unrolled: 1 where they are too long or the registers too few. Then also
    what the turns of those that stay loops cost, else 0."""
    height = math.prod(tile.values())
    copies = height * vectors * facts.operations
    rows, share, windows, taps = 0.0, 1.0, 0, 1
    slid: set[str] = set()
    for window in operand.windows:
        outs = [n for n in window if n in tile]
        inner = [n for n in window if n in facts.reduces]
        if len(outs) != 1 or len(inner) != 1:
            continue
        extent = facts.reduces[inner[0]]
        if extent < 1 or (extent > SLIDING and inner[0] != facts.order[0]):
            continue
        steps = min(extent, SLIDING)
        one, two = window[outs[0]], window[inner[0]]
        size = tile[outs[0]]
        distinct = ((size - 1) * one + (steps - 1) * two) / math.gcd(one, two) + 1
        distinct = min(distinct, size * steps)
        copies *= steps
        share *= distinct / (size * steps)
        rows, windows = (rows or vectors) * distinct, max(windows, steps)
        taps *= steps
        slid.add(inner[0])
    if not slid:
        return 1.0, 0.0
    if any(facts.reduces[n] <= SLIDING for n in slid):
        copies *= math.prod(e for n, e in facts.reduces.items() if n not in slid)
    live = rows + windows
    if all(candidate.vector in o.strides for o in facts.operands if o.body):
        live = min(live, (taps + 1) * vectors + 2)  # points in the order of the operand
    live += height * vectors * facts.states
    if copies <= UNROLLED and live <= facts.registers + 2:
        return share, 0.0
    short = facts.order[0]
    return 1.0, TURN + MISSED / facts.reduces[short] if short in slid else 0.0


def _outside(
    facts: Facts,
    operand: Operand,
    candidate: Candidate,
    tile: dict[str, float],
    unrolled: bool,
) -> float:
    """The share of the tiles that meet an edge of an operand, so that they test it."""
    inside = 1.0
    for loops, places in operand.overhangs:
        positions = 1.0
        for name in loops:
            if name in tile:
                positions *= facts.outputs[name] / tile[name]
            elif name == candidate.vector:
                positions *= max(1.0, facts.outputs[name] / candidate.width)
            elif name in facts.outputs:
                positions *= facts.outputs[name]
            elif not unrolled or facts.reduces[name] > SLIDING:
                positions *= facts.reduces[name]
        inside *= max(0.0, 1 - places / positions)
    return 1 - inside


def gather_cost(facts: Facts, stride: int | None, machine: Machine) -> float:
    """What a vector costs beyond one load: small steps are loads and shuffles."""
    if stride in (0, 1, -1):
        return 0.0
    full = facts.lanes * machine.gather
    return full if stride is None else min(2.0 * abs(stride), full)


def _bandwidth(facts: Facts, operand: Operand, candidate: Candidate, machine: Machine) -> float:
    """Bytes per cycle at which a tile reads its part of the vector operand, from where that stays
    between the tiles that share it."""
    part = {candidate.vector: candidate.width, **{n: max(c) for n, c in candidate.tile}}
    if is_read_once(facts, operand):
        return bandwidth_of(facts, min(operand.elements * operand.bytes, facts.l2 / 2), machine)
    return bandwidth_of(facts, bytes_of_part(facts, operand, part), machine)


def bandwidth_of(facts: Facts, size: float, machine: Machine) -> float:
    """Bytes per cycle of what is read again and again, by its size."""
    if size <= facts.l1 / 2:
        return 2 * machine.l2
    if size <= 0.6 * facts.l2:
        return machine.l2
    return machine.l3 if size <= 0.3 * facts.l3 else machine.memory


def _lines(
    facts: Facts, operand: Operand, tile: dict[str, float], packed: bool, machine: Machine
) -> float:
    """Cycles of fetching what an iteration reads of a broadcast operand: whole lines, of which a
    tile may need a part only, unless a copy holds that part alone."""
    step = operand.strides.get(facts.order[0], 0)
    if step == 0:
        return 0.0
    far = LINE if step is None else min(LINE, abs(step) * operand.bytes)
    near = math.prod(tile[n] for n in tile if operand.strides.get(n) == 1)
    rows = math.prod(
        min(tile[n], 1 + (tile[n] - 1) * abs(stride) * operand.bytes / LINE)
        for n, stride in ((n, operand.strides.get(n)) for n in tile)
        if stride not in (None, 0, 1)
    )
    used = near * operand.bytes
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
        total += height * vectors * (1 + gather_cost(facts, stride, machine))
        if operand.edged or operand.omits:
            total += 3 * height * vectors
    return total
