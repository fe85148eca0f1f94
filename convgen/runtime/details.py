"""What a kernel's report says beyond its build: predictions of the cost model, hot loops read from
the assembly, layouts. Found when first asked for, then kept beside the cached kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from convgen.backends.assembly import functions, hot_loop
from convgen.ir.layout import digits, halo_of
from convgen.ir.nodes import Buffer, Kernel
from convgen.ir.visit import loads
from convgen.passes import pipeline
from convgen.runtime import cache
from convgen.runtime.build import Built, lowered
from convgen.runtime.layouts import arranged
from convgen.schedule.directives.base import all_nests, is_packing
from convgen.schedule.machine import machine_of
from convgen.schedule.predict import packed_from, predict
from convgen.symbolic.program import Program


@dataclass(frozen=True, slots=True)
class NestRow:
    """What the cost model says of a nest, or of a copy that is packed (`operations` 0): seconds on
    one core, share of the FMA peak, the part of the core that bounds it, and how many seconds each
    part takes by itself; bytes that are read and written, each element once."""

    nest: str
    seconds: float
    share_of_peak: float
    bound: str
    parts: Mapping[str, float]
    operations: float
    bytes: int


@dataclass(frozen=True, slots=True)
class LoopRow:
    """The hot loop of a phase, from its assembly: multiply-adds, instructions, vectors loaded,
    vectors moved to or from the stack."""

    phase: str
    multiply_adds: int
    instructions: int
    loads: int
    spills: int


@dataclass(frozen=True, slots=True)
class Details:
    """layouts: buffer to its physical dimensions, outermost first, named by the axes that move
    along them: ``[k/32][c][r][s][32]``; of those that are read or written."""

    nests: tuple[NestRow, ...]
    loops: tuple[LoopRow, ...]
    layouts: Mapping[str, str]


def details_of(program: Program, built: Built) -> Details:
    """The details of a kernel, from disk where they were found before.

    program: with its sizes bound, as it was built."""
    if built.details is None:
        record = cache.load(built.key, cache.DETAILS) if built.key else None
        if record is None:
            built.details = _find(program, built)
            if built.key:
                cache.store(built.key, cache.Record(asdict(built.details), {}), cache.DETAILS)
        else:
            facts = record.facts
            built.details = Details(
                tuple(NestRow(**row) for row in facts["nests"]),
                tuple(LoopRow(**row) for row in facts["loops"]),
                facts["layouts"],
            )
    return built.details


def _find(program: Program, built: Built) -> Details:
    kernel = arranged(lowered(program, built.made_from["in_place"]), built.layouts)
    scheduled = pipeline.scheduled(kernel, built.made_from["schedule"], built.target)
    second = machine_of(built.target).clock * 1e9
    nests = tuple(
        NestRow(
            p.nest,
            p.cycles / second,
            p.share_of_peak,
            p.bound,
            {name: cycles / second for name, cycles in p.parts.items()},
            p.operations,
            p.bytes,
        )
        for p in predict(scheduled, built.target)
    )
    return Details(nests, _loops(built), _layouts(scheduled))


def _loops(built: Built) -> tuple[LoopRow, ...]:
    texts = functions(built.text("asm"))
    rows: list[LoopRow] = []
    for entry in built.entries:
        hot = hot_loop(texts.get(entry.symbol, ""))
        if hot is not None:
            counts = (len(hot.fused), hot.instructions, hot.loads, hot.spills)
            rows.append(LoopRow(entry.phase, *counts))
    return tuple(rows)


def _layouts(kernel: Kernel) -> dict[str, str]:
    named: dict[str, list[str]] = {}
    sources = packed_from(kernel)
    for nest in all_nests(kernel):
        if is_packing(nest, kernel):
            continue
        places = [(o.buffer, o.index) for o in loads(nest)]
        for buffer, index in [*places, *((s.buffer, s.index) for s in nest.stores)]:
            names = ["+".join(sorted(i.names())) or "1" for i in index]
            for name in {buffer, sources.get(buffer, buffer)}:
                known = named.setdefault(name, names)
                named[name] = [
                    new if old == "1" else old for old, new in zip(known, names, strict=True)
                ]
    return {b.name: layout_text(b, named[b.name]) for b in kernel.buffers if b.name in named}


def layout_text(buffer: Buffer, names: list[str]) -> str:
    """The physical dimensions of a buffer, outermost first; halos with their places.

    >>> from convgen.ir.nodes import Layout
    >>> from convgen.types import f32
    >>> blocked = Layout((1, 0), ((0, 32),), ((0, 0), (1, 2)))
    >>> layout_text(Buffer("W", f32, (64, 9), blocked, "packed"), ["k", "x"])
    '[1+x+2][k/32][32]'
    """
    text = ""
    for digit in digits(buffer.shape, buffer.layout):
        low, high = halo_of(buffer.layout, digit.dimension)
        name = names[digit.dimension]
        if low or high:
            name = f"{low}+{name}+{high}"
        if digit.outermost:
            text += f"[{name}/{digit.divisor}]" if digit.divisor > 1 else f"[{name}]"
        else:
            text += f"[{digit.extent}]"
    return text
