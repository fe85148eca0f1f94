"""From a program to machine code in this process, through the cache."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from convgen import knobs
from convgen.backends.llvm import LlvmBackend
from convgen.backends.protocol import Argument, Backend, Entry, Loaded
from convgen.errors import TargetError
from convgen.ir.nodes import Gather, Kernel, Store, VectorLoad
from convgen.ir.printer import kernel_text
from convgen.ir.visit import walk
from convgen.passes import pipeline
from convgen.passes.in_place import copy_updates, update_in_place
from convgen.passes.lower import lower
from convgen.passes.storage import place_temporaries
from convgen.runtime import cache, layouts
from convgen.runtime.threads import Range
from convgen.schedule.schedule import Schedule
from convgen.symbolic.program import Origin, Program
from convgen.symbolic.rewrite import one_pass
from convgen.target import Target, runs_here
from convgen.target import target as target_of


@dataclass
class Built:
    """A kernel as machine code, with what there is to say about it.

    arguments   what the phases' argument table points to, in order
    prepared    inputs that the prepare phases read; packed: what those phases write
    offsets     of temporary and packed buffers in a workspace of `workspace_bytes`, zero at first
    seconds     what making or loading it took; from_cache: it came from disk
    key         its name in the cache; made_from: what it was made from, as plain values
    layouts     of the arguments that are not row-major, as text
    details     what `runtime.details` found of it, None before it was asked
    """

    name: str
    target: Target
    entries: tuple[Entry, ...]
    arguments: tuple[Argument, ...]
    object: bytes = field(repr=False)
    texts: Mapping[str, bytes] = field(repr=False)
    schedule: str
    notes: tuple[str, ...]
    prepared: tuple[str, ...]
    packed: tuple[str, ...]
    offsets: Mapping[str, int] = field(repr=False)
    workspace_bytes: int = 0
    seconds: float = 0.0
    from_cache: bool = False
    key: str = ""
    made_from: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    layouts: Mapping[str, str] = field(default_factory=dict[str, str])
    details: Any = field(default=None, repr=False)
    _library: Loaded | None = field(default=None, repr=False)
    _ranges: tuple[Range, ...] = field(default=(), repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def text(self, kind: str) -> str:
        """The scheduled loops, the optimized llvm, or the asm (made when asked for)."""
        if kind == "asm":
            return _backend().assembly(self.text("llvm"), self.target)
        return zlib.decompress(self.texts[kind]).decode()

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The phases, loaded into this process at first use; TargetError if it cannot run them."""
        with self._lock:
            if self._library is None:
                if not runs_here(self.target):
                    raise TargetError(
                        f"kernel {self.name} was made for another machine",
                        expected=target_of("native").name,
                        got=self.target.name,
                        hint="target='native' to run it here",
                    )
                library = _backend().load(self.object, self.target)
                self._ranges = tuple(
                    Range(library.address(e.symbol), e.extent, e.grain, e.scratch_bytes, e.when)
                    for e in self.entries
                )
                self._library = library
            return self._ranges

    def bytes_of(self, argument: Argument) -> int:
        """Bytes that an argument occupies, padding and halo included."""
        return argument.bytes


def _backend() -> Backend:
    return LlvmBackend()


def build_apart(
    program: Program,
    target: Target,
    schedule: str | None = None,
    layout: layouts.Request = None,
) -> Built:
    """Machine code that the cache neither has nor gets: for checks. Raises as `build_program`."""
    return _compile(program, target, schedule, _facts(program, target, schedule, True, layout))


def build_program(
    program: Program,
    target: Target | str = "native",
    schedule: Schedule | str | None = None,
    *,
    in_place: bool = True,
    layout: layouts.Request = None,
) -> Built:
    """Machine code for a program whose sizes are all bound, from the cache where it is there.

    schedule    None: chosen by the cost model
    in_place    updates are carried out by the kernel: the argument of a state is read and written.
                Otherwise the new values are results of their own and states are only read.
    layout      of the arguments that are not row-major, or "preferred"; see runtime/layouts

    Raises ShapeError, ScheduleError, TargetError.
    """
    start = time.perf_counter()
    machine = target_of(target)
    made_from = _facts(program, machine, schedule, in_place, layout)
    key = key_of(made_from, machine)
    record = None if pipeline.watched() else cache.load(key)
    if record is None:
        built = _compile(program, machine, schedule, made_from)
        cache.store(key, _record_of(built))
    else:
        built = _from_record(record, machine)
        built.from_cache = True
    built.key = key
    built.seconds = time.perf_counter() - start
    _announce(built)
    return built


def _facts(
    program: Program,
    machine: Target,
    schedule: Schedule | str | None,
    in_place: bool,
    layout: layouts.Request,
) -> dict[str, Any]:
    """What a kernel is made from, as plain values."""
    return {
        "program": str(program),
        "origin": origin_facts(program.origin),
        "schedule": None if schedule is None else str(schedule),
        "target": asdict(machine),
        "in_place": in_place,
        "layouts": layouts.checked(program, layout),
    }


def key_of(made_from: Mapping[str, Any], machine: Target) -> str:
    """The cache key of what is made from this, by this version."""
    return cache.key_of(
        made_from["program"],
        made_from["schedule"],
        machine.key(),
        made_from["in_place"],
        made_from["layouts"],
        _backend().version(),
        cache.sources_digest(),
    )


def origin_facts(origin: Origin | None) -> dict[str, Any] | None:
    """An origin as plain values."""
    if origin is None:
        return None
    return {
        "kind": origin.kind,
        "program": str(origin.program),
        "origin": origin_facts(origin.program.origin),
        "wrt": list(origin.wrt),
        "flip": origin.flip,
    }


def _label(name: str, made_from: Mapping[str, Any]) -> str:
    """A folder's name for the dumped stages: kernels of one name do not overwrite each other."""
    parts = [made_from[k] for k in ("program", "schedule", "target", "in_place", "layouts")]
    return f"{name}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:6]}"


def _compile(
    program: Program,
    machine: Target,
    schedule: Schedule | str | None,
    made_from: Mapping[str, Any],
) -> Built:
    """The road: formula, loops, schedule, statements, machine code."""
    kernel = lowered(program, made_from["in_place"])
    found = layouts.chosen(program, kernel, made_from["layouts"], machine)
    kernel = layouts.arranged(kernel, found)
    label = _label(program.name, made_from)
    stages = pipeline.build_stages(kernel, schedule, machine, label=label)
    artifact = _backend().compile_kernel(stages.flat, machine)
    texts = {"loops": kernel_text(stages.scheduled), "llvm": artifact.ir}
    reads, writes = _prepared(stages.flat)
    workspace = place_temporaries(stages.flat)
    return Built(
        name=artifact.name,
        target=machine,
        entries=artifact.entries,
        arguments=artifact.signature,
        object=artifact.object,
        texts={kind: zlib.compress(text.encode(), 1) for kind, text in texts.items()},
        schedule=str(stages.schedule),
        notes=stages.flat.notes,
        prepared=reads,
        packed=writes,
        offsets=workspace.offsets,
        workspace_bytes=workspace.total_bytes,
        made_from=made_from,
        layouts=found,
    )


def lowered(program: Program, in_place: bool) -> Kernel:
    """The loops of a program, updates carried out in place where that is asked for."""
    kernel = lower(one_pass(program))
    return _with_updates(kernel, program) if in_place else kernel


def _with_updates(kernel: Kernel, program: Program) -> Kernel:
    """The kernel with the program's updates carried out, straight into the states where that is
    safe; new values that are no results of the program become temporaries."""
    results = {t.name for t in program.outputs} | set(program.saved)
    kernel, left = update_in_place(kernel, [u for u in program.updates if u[1] not in results])
    kernel = copy_updates(kernel, [*left, *(u for u in program.updates if u[1] in results)])
    inner = {new for _, new in program.updates} - results
    return replace(
        kernel,
        buffers=tuple(
            replace(b, role="temporary") if b.name in inner else b for b in kernel.buffers
        ),
    )


def _prepared(kernel: Kernel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(inputs that prepare phases read, packed buffers they write)."""
    reads: set[str] = set()
    for phase in kernel.phases:
        if phase.when == "prepare" and not isinstance(phase.body, tuple):
            nodes = walk(phase.body)
            reads |= {n.buffer for n in nodes if isinstance(n, (VectorLoad, Gather))}
    roles = {b.name: b.role for b in kernel.buffers}
    writes = set(_written(kernel))
    return (
        tuple(b.name for b in kernel.buffers if b.name in reads and roles[b.name] == "input"),
        tuple(b.name for b in kernel.buffers if b.name in writes and roles[b.name] != "scratch"),
    )


def _written(kernel: Kernel) -> Iterator[str]:
    for phase in kernel.phases:
        if phase.when == "prepare" and not isinstance(phase.body, tuple):
            for node in walk(phase.body):
                if isinstance(node, Store):
                    yield node.buffer


def _record_of(built: Built) -> cache.Record:
    facts: dict[str, Any] = {
        "name": built.name,
        "entries": [asdict(e) for e in built.entries],
        "arguments": [asdict(a) for a in built.arguments],
        "schedule": built.schedule,
        "notes": list(built.notes),
        "prepared": list(built.prepared),
        "packed": list(built.packed),
        "offsets": dict(built.offsets),
        "workspace_bytes": built.workspace_bytes,
        "made_from": dict(built.made_from),
        "layouts": dict(built.layouts),
    }
    return cache.Record(facts, {"object": built.object, **built.texts})


def _from_record(record: cache.Record, machine: Target) -> Built:
    facts = record.facts
    return Built(
        facts["name"],
        machine,
        tuple(Entry(**e) for e in facts["entries"]),
        tuple(
            Argument(a["name"], a["dtype"], tuple(a["shape"]), a["role"], a["bytes"])
            for a in facts["arguments"]
        ),
        record.blobs["object"],
        {k: v for k, v in record.blobs.items() if k != "object"},
        facts["schedule"],
        tuple(facts["notes"]),
        tuple(facts["prepared"]),
        tuple(facts["packed"]),
        facts["offsets"],
        facts["workspace_bytes"],
        made_from=facts["made_from"],
        layouts=facts["layouts"],
    )


def _announce(built: Built) -> None:
    """What CONVGEN_DEBUG and CONVGEN_DUMP ask for at this end of the road."""
    level = knobs.DEBUG.value
    origin = "from disk" if built.from_cache else "compiled"
    if level >= 1:
        print(
            f"kernel {built.name}: {origin} in {built.seconds * 1e3:.1f} ms for "
            f"{built.target.name}, {len(built.entries)} phases, {len(built.object)} bytes",
            file=sys.stderr,
        )
    if level >= 4:
        print(built.text("llvm"), file=sys.stderr)
    if level >= 5:
        print(built.text("asm"), file=sys.stderr)
    if knobs.DUMP.value is not None:
        place = knobs.DUMP.value / _label(built.name, built.made_from)
        pipeline.write_dump(place, "90-optimized.ll", built.text("llvm"))
        pipeline.write_dump(place, "91-assembly.s", built.text("asm"))
