"""What a candidate costs, in cycles of one core: closed form, no clocks.

score = max(multiply-add cycles, load cycles, latency, bytes from the caches) per tile and reduce
iteration, times their number, plus stores and packing. The constants are tabled per CPU model; a
model without a row gets the default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from convgen.ir.layout import size_in_elements
from convgen.ir.nodes import Kernel, Load, Nest, Op
from convgen.ir.visit import loads, walk
from convgen.schedule.access import in_loops, loads_of, stride_of, vector_dtype
from convgen.schedule.directives.pack import halo_of_reads, merged_edges
from convgen.schedule.directives.split import best_cover
from convgen.target import Target


@dataclass(frozen=True, slots=True)
class Machine:
    """Constants of a CPU, for one core.

    fma_bits    bits of multiply-adds per cycle     load_bits  bits loaded per cycle
    fma_rate, load_rate   the same in vectors of the target, two at most per cycle
    latency     cycles of a dependent multiply-add  gather     cycles per gathered element
    l2, l3, memory   bytes per cycle from each level
    scatter     cycles per element stored or copied with a step
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


# Weights that no machine differs in.
OVERLAP = 0.05  # share of the hidden work that still shows
WORTH_SHARING = 50_000  # cycles below which one worker is enough
CODE = 5e-4  # what a statement of the tile adds: equal candidates are told apart by size

LINE, PAGE = 64, 4096  # bytes of a cache line, of a page (and of one way of the first cache)
L1_WAYS = 8

# The first row whose text occurs in the model's own name for itself.
MACHINES: dict[str, Machine] = {
    "EPYC (family 26": Machine(l3=24.0, memory=10.0),
    "EPYC (family 25": Machine(fma_bits=512, load_bits=512, l3=24.0, memory=8.0),
    "Ryzen (family 25": Machine(fma_bits=512, load_bits=512, l3=24.0, memory=8.0),
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
class Operand:
    """A load of a nest. strides: elements along each loop that it depends on (None: not constant);
    steps: what a copy with that loop's dimension innermost would leave of them (0: not constant);
    pitches: strides in a copy that keeps the order of the dimensions and adds a halo;
    edged: loops that move it in a dimension with an edge; shifted: loops that share an index with
    a reduce loop; body: it stands in a reduce."""

    load: Load
    strides: dict[str, int | None]
    steps: dict[str, int]
    pitches: dict[str, int | None]
    edged: frozenset[str]
    shifted: frozenset[str]
    omits: bool
    elements: int
    bytes: int
    body: bool
    packable: bool
    hoistable: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What the score of a candidate needs to know of a nest."""

    nest: Nest
    operands: tuple[Operand, ...]
    lanes: int
    registers: int
    states: int
    operations: float
    epilogue: float
    store_strides: tuple[dict[str, int | None], ...]
    outputs: dict[str, int]
    reduces: dict[str, int]
    l1: int
    l2: int
    l3: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A choice: the vector loop ("" for none) and how much of it a tile takes; the other loops of
    the tile with the sizes that cover them; the buffers to pack."""

    vector: str = ""
    width: int = 1
    tile: tuple[tuple[str, tuple[int, ...]], ...] = ()
    packs: frozenset[str] = frozenset()
    cycles: float = math.inf


def facts_of(nest: Nest, kernel: Kernel, target: Target) -> Facts:
    """Read the facts off a nest whose loops are whole axes (or fused ones)."""
    lanes = max(1, target.lanes(vector_dtype(nest, kernel)))
    inside = {load for r in nest.reduces for load in loads(r.body)}
    written = {s.buffer for s in nest.stores}
    outputs = {o.name: o.extent for o in nest.loops if o.reduce is None}
    reduces = {o.name: o.extent for o in nest.loops if o.reduce is not None}
    operands = tuple(
        _operand(load, nest, kernel, load in inside, written) for load in loads_of(nest)
    )
    operations = sum(
        max(1, sum(isinstance(e, Op) for e in walk(r.body)))
        + 2 * (len(r.combiner.dtypes) - 1)
        + 4
        * sum(e.name in ("exp", "log", "tanh", "pow") for e in walk(r.body) if isinstance(e, Op))
        for r in nest.reduces
    )
    epilogue = sum(isinstance(e, Op) for s in nest.stores for e in walk(s.value))
    return Facts(
        nest=nest,
        operands=operands,
        lanes=lanes,
        registers=target.vector_registers - 2,
        states=_states(nest),
        operations=float(operations),
        epilogue=float(epilogue),
        store_strides=tuple(
            {o: stride_of(kernel.buffer(s.buffer), s.index, nest, o) for o in outputs}
            for s in nest.stores
        ),
        outputs=outputs,
        reduces=reduces,
        l1=target.l1,
        l2=target.l2,
        l3=target.l3,
    )


def _states(nest: Nest) -> int:
    """State components that are live together at one point of the tile."""
    found: dict[int, int] = {}
    for number, reduce in enumerate(nest.reduces):
        leader = nest.leader(number)
        found[leader] = found.get(leader, 0) + len(reduce.combiner.dtypes)
    return max(found.values(), default=0)


def _operand(load: Load, nest: Nest, kernel: Kernel, body: bool, written: set[str]) -> Operand:
    buffer = kernel.buffer(load.buffer)
    strides: dict[str, int | None] = {}
    steps: dict[str, int] = {}
    edged: set[str] = set()
    shifted: set[str] = set()
    inner = {o.name for o in nest.loops if o.reduce is not None}
    for index, edge in zip(load.index, load.edges, strict=True):
        place = in_loops(nest, index)
        names = place.names()
        for name in names:
            hidden = name in place.hidden_names()
            steps[name] = 0 if hidden else place.coefficient(name)
            strides[name] = stride_of(buffer, load.index, nest, name)
        if edge is not None and edge.kind != "omit":
            edged |= names
        if names & inner:
            shifted |= names - inner
    same = [o for o in loads_of(nest) if o.buffer == load.buffer]
    halo = halo_of_reads(nest, buffer, same)
    wide = replace(buffer, layout=replace(buffer.layout, halo=halo))
    pitches = {n: stride_of(wide, load.index, nest, n) for n in steps} if any(halo) else strides
    packable = (
        load.buffer not in written
        and buffer.role not in ("packed", "scratch", "constant")
        and merged_edges(same) is not None
        and not any(e and e.value is not None for o in same for e in o.edges)
    )
    return Operand(
        load=load,
        strides=strides,
        steps=steps,
        pitches=pitches,
        edged=frozenset(edged),
        shifted=frozenset(shifted),
        omits=any(e is not None and e.kind == "omit" for e in load.edges),
        elements=size_in_elements(buffer),
        bytes=buffer.dtype.bytes,
        body=body,
        packable=packable,
        hoistable=buffer.role == "input" and not edged and _is_shared(nest, strides),
    )


def _is_shared(nest: Nest, strides: dict[str, int | None]) -> bool:
    """True for an operand that all items of a batch share, as weights are: the first output axis
    is the first index of what is stored and of another operand, and not one of its own."""
    first = next((o.name for o in nest.loops if o.reduce is None), "")
    if not first or first in strides:
        return False
    stored = all(in_loops(nest, s.index[0]).single == first for s in nest.stores if s.index)
    others = (in_loops(nest, o.index[0]).single == first for o in loads_of(nest) if o.index)
    return stored and any(others)


def chunks_of(extent: int, width: int) -> dict[int, int]:
    """The sizes of the tiles along the vector loop, with how many there are of each."""
    whole, rest = divmod(extent, width)
    return {size: count for size, count in ((width, whole), (rest, 1)) if size and count}


def score(facts: Facts, candidate: Candidate, machine: Machine) -> Candidate:
    """The candidate with its packs chosen and its cycles."""
    if candidate.vector in facts.reduces:
        return _score_reduce(facts, candidate, machine)
    lanes = facts.lanes if candidate.vector else 1
    sizes = dict(candidate.tile)
    tiles = 1
    height = 1.0
    for name, cover in candidate.tile:
        tiles *= _tile_count(facts.outputs[name], cover)
        height *= _height(facts, name, cover)
    if candidate.vector:
        chunks = chunks_of(facts.outputs[candidate.vector], candidate.width)
    else:
        chunks = {1: 1}
    rest = math.prod(
        e for n, e in facts.outputs.items() if n != candidate.vector and n not in sizes
    )
    iterations = math.prod(facts.reduces.values())
    outer = tiles * rest
    packs: set[str] = set()
    kept: frozenset[str] = frozenset()
    cycles = math.inf
    for pack in (False, True):
        packs = _wanted_packs(facts, candidate) if pack else set()
        if pack and not packs:
            break
        packing = sum(_pack_cycles(o, candidate, machine) for o in _first_of(facts, packs))
        total = packing
        for width in sorted(set(chunks)):
            vectors = -(-width // lanes)
            inner = _tile_cycles(facts, candidate, height, vectors, packs, machine)
            once = _store_cycles(facts, candidate, height, width, vectors, machine)
            total += outer * chunks[width] * (iterations * inner + once + 12)
        total *= _idle(outer * sum(chunks.values()), total)
        total *= 1 + CODE * height * -(-candidate.width // lanes) * weight(facts, candidate, packs)
        if total < cycles:
            cycles, kept = total, frozenset(packs)
    return Candidate(candidate.vector, candidate.width, candidate.tile, kept, cycles)


def weight(facts: Facts, candidate: Candidate, packs: frozenset[str] | set[str]) -> float:
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


def _idle(tasks: int, cycles: float) -> float:
    """What few tasks cost where several workers could share them; small kernels need one only."""
    return 1 + 0.5 / max(1, tasks) if cycles > WORTH_SHARING else 1.0


def _height(facts: Facts, name: str, cover: tuple[int, ...]) -> float:
    """The average size of the tiles that cover a loop."""
    return facts.outputs[name] / _tile_count(facts.outputs[name], cover)


def _tile_count(extent: int, cover: tuple[int, ...]) -> int:
    return max(1, -(-extent // max(cover)))


def _first_of(facts: Facts, packs: set[str]) -> list[Operand]:
    """One operand for each packed buffer."""
    found: dict[str, Operand] = {}
    for operand in facts.operands:
        if operand.load.buffer in packs:
            found.setdefault(operand.load.buffer, operand)
    return list(found.values())


def _wanted_packs(facts: Facts, candidate: Candidate) -> set[str]:
    """Buffers whose loads meet edges or are strided along the vector loop."""
    found: set[str] = set()
    for operand in facts.operands:
        stride = operand.strides.get(candidate.vector, 0)
        helps = stride not in (0, 1) and operand.steps[candidate.vector] != stride
        tested = operand.edged & {candidate.vector, *(name for name, _ in candidate.tile)}
        if operand.body and operand.packable and (helps or tested):
            found.add(operand.load.buffer)
    return found


def _pack_cycles(operand: Operand, candidate: Candidate, machine: Machine) -> float:
    strided = operand.strides.get(candidate.vector, 0) not in (0, 1)
    rate = machine.scatter if strided else machine.copy
    share = 0.1 if operand.hoistable else 1.0
    return operand.elements * rate * share + 200


def _tile_cycles(
    facts: Facts,
    candidate: Candidate,
    height: float,
    vectors: int,
    packs: set[str],
    machine: Machine,
) -> float:
    """Cycles of one reduce iteration of one tile."""
    if not facts.reduces:
        return 0.0
    work = height * vectors * facts.operations
    fetched = 0.0
    streamed = 0.0
    tile = {name: _height(facts, name, cover) for name, cover in candidate.tile}
    for operand in facts.operands:
        if not operand.body:
            continue
        packed = operand.load.buffer in packs
        along = tile.keys() & operand.strides.keys()
        times = math.prod(tile[name] for name in along)
        moved = packed and candidate.vector in operand.strides
        reach = operand.strides if moved or not packed else operand.pitches
        times *= 1 + sum(_distance(reach[name], operand.bytes) for name in along)
        if candidate.vector not in operand.strides:
            crowd = max((_crowd(reach[n], tile[n], operand.bytes) for n in along), default=0.0)
            if crowd > L1_WAYS - 1:  # lines of one set push one another out of the first cache
                streamed += LINE * times * min(1.0, crowd / L1_WAYS) / machine.l2
        stride = operand.strides.get(candidate.vector, 0)
        if candidate.vector in operand.strides:
            times *= vectors
            if candidate.vector in operand.shifted:
                times *= 1.0 + facts.lanes * operand.bytes / 128  # most cross a line
            step = operand.steps[candidate.vector] or None if packed else stride
            fetched += times * _gather(facts, step, machine)
            rate = _bandwidth(facts, operand, candidate, machine)
            streamed += vectors * facts.lanes * operand.bytes / rate
        fetched += times
        if operand.edged & {candidate.vector, *tile} and not packed:
            work += 3 * times
        elif (operand.edged and not packed) or operand.omits:
            work += 1.0  # tested once for the tile
    latency = machine.latency * facts.states if facts.states else 0.0
    parts = (work / machine.fma_rate, fetched / machine.load_rate, latency, streamed)
    return max(parts) + OVERLAP * sum(parts) + 0.5  # what is hidden is not quite free


def _distance(stride: int | None, size: int) -> float:
    """What elements some way apart add to the cost of reading them: lines, pages of their own."""
    reach = PAGE if stride is None else abs(stride) * size
    return 0.0 if reach <= size else 0.02 if reach < LINE else 0.05 if reach < PAGE else 0.08


def _crowd(stride: int | None, count: float, size: int) -> float:
    """Lines that share a set of the first cache, of `count` elements so far apart."""
    reach = abs(stride or 0) * size
    if reach < LINE:
        return 1.0
    return count / min(count, PAGE // math.gcd(PAGE, reach))


def _gather(facts: Facts, stride: int | None, machine: Machine) -> float:
    """What a vector costs beyond one load: small steps are loads and shuffles."""
    if stride in (0, 1, -1):
        return 0.0
    full = facts.lanes * machine.gather
    return full if stride is None else min(2.0 * abs(stride), full)


def _bandwidth(facts: Facts, operand: Operand, candidate: Candidate, machine: Machine) -> float:
    """Bytes per cycle at which a tile reads its part of the vector operand, from where that stays
    between the tiles that share it."""
    share = candidate.width / max(facts.outputs[candidate.vector], candidate.width)
    size = operand.elements * operand.bytes * share
    if size <= facts.l1 / 2:
        return 2 * machine.l2
    return machine.l2 if size <= 0.6 * facts.l2 else machine.l3


def _store_cycles(
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
        total += height * (vectors if along == 1 else width * machine.scatter)
    for operand in facts.operands:
        if operand.body:
            continue
        stride = operand.strides.get(candidate.vector, 0)
        total += height * vectors * (1 + _gather(facts, stride, machine))
        if operand.edged or operand.omits:
            total += 3 * height * vectors
    return total


def _score_reduce(facts: Facts, candidate: Candidate, machine: Machine) -> Candidate:
    """A vector loop that is reduced: lanes are partial results, joined at the end."""
    extent = facts.reduces[candidate.vector]
    chunks = chunks_of(extent, candidate.width).items()
    vectors = sum(-(-size // facts.lanes) * count for size, count in chunks)
    rest = math.prod(facts.reduces.values()) // max(1, extent)
    fetched = work = 0.0
    for operand in facts.operands:
        if operand.body:
            fetched += 1 + _gather(facts, operand.strides.get(candidate.vector, 0), machine)
            work += 3.0 * bool(operand.edged or operand.omits)
    each = max((facts.operations + work) / machine.fma_rate, fetched / machine.load_rate)
    waiting = machine.latency * facts.states * -(-vectors // -(-candidate.width // facts.lanes))
    joined = 3.0 * facts.lanes * facts.states + 10
    outputs = math.prod(facts.outputs.values())
    cycles = outputs * (rest * max(vectors * each, waiting) + joined + facts.epilogue + 2)
    cycles *= _idle(outputs, cycles)
    return Candidate(candidate.vector, candidate.width, (), frozenset(), cycles)


def heights(extent: int, largest: int) -> list[tuple[int, ...]]:
    """Covers of an extent by tiles of at most `largest`, the largest first.

    >>> heights(19, 14)
    [(10, 9), (7, 6)]
    """
    found: dict[tuple[int, ...], None] = {}
    for limit in (largest, largest // 2):
        if limit >= 1:
            found[best_cover(extent, limit)] = None
    return list(found)
