"""From a subject and targets to one module: levels, tables, doors, object code."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from convgen.backends.llvm import LlvmBackend
from convgen.backends.protocol import Part
from convgen.errors import InternalError, TargetError
from convgen.interop.aot import tables
from convgen.interop.aot.render import render
from convgen.interop.aot.subject import Build, Ports, Subject
from convgen.interop.aot.tape import Level, Place, Row, copy_row, zero_row
from convgen.runtime.build import Built, build_program
from convgen.runtime.plan import aligned
from convgen.runtime.threads import POOL_SYMBOLS, pool_text
from convgen.schedule.schedule import Schedule
from convgen.symbolic import dsl
from convgen.symbolic.program import Program
from convgen.target import Target, plainest
from convgen.target import target as target_of
from convgen.types import DType

ABI = 1
_FAT = {"x86-64": ("x86-64-v3", "x86-64-v4")}


@dataclass(frozen=True)
class Bundle:
    """A subject as machine code.

    object, ir, asm     the doors, tables and kernels;  pool: the object of the thread pool
    magic               what an open context begins with; it depends on everything in the bundle
    """

    name: str
    subject: Subject
    backward: bool
    step: bool
    levels: tuple[Level, ...]
    magic: int
    object: bytes = field(repr=False)
    ir: str = field(repr=False)
    asm: str = field(repr=False)
    pool: bytes = field(repr=False)
    embedded: bytes | None = field(default=None, repr=False)

    @property
    def isa(self) -> str:
        return self.levels[0].target.isa


def targets_of(request: Target | str | Sequence[Target | str]) -> tuple[Target, ...]:
    """The targets of a bundle, lowest first: one, or several x86-64 levels. "x86-64" stands for
    AVX2 and AVX-512 in one bundle.

    >>> [t.name for t in targets_of("x86-64")]
    ['x86-64-v3', 'x86-64-v4']
    """
    items: list[Target | str] = [request] if isinstance(request, (str, Target)) else [*request]
    names = [
        n for item in items for n in (_FAT.get(item, (item,)) if isinstance(item, str) else (item,))
    ]
    found = sorted({target_of(n).name: target_of(n) for n in names}.values(), key=lambda t: t.name)
    if len({t.llvm_triple for t in found}) != 1 or "linux" not in found[0].llvm_triple:
        raise TargetError(
            "the targets of one bundle",
            expected="levels of one instruction set, on Linux",
            got=", ".join(f"{t.name} ({t.llvm_triple})" for t in found) or "none",
        )
    return tuple(found)


def make_bundle(
    name: str,
    subject: Subject,
    targets: Sequence[Target],
    *,
    backward: bool,
    step: bool,
    schedule: Schedule | str | None = None,
    embedded: bytes | None = None,
) -> Bundle:
    """Compile everything a bundle holds. Raises what compiling raises."""
    levels = tuple(_level(subject, t, backward, step, schedule) for t in targets)
    slots = tables.Slots(subject.ports)
    made = [tables.level_tables(i, level, slots) for i, level in enumerate(levels)]
    parts = [
        Part(
            built.text("llvm"),
            level.target,
            {e.symbol: tables.symbol(i, k, j) for j, e in enumerate(built.entries)},
        )
        for i, level in enumerate(levels)
        for k, built in enumerate(level.kernels)
    ]
    digest = hashlib.sha256()
    for text in (name, subject.formula, *(t for t, _ in made), *(p.ir for p in parts)):
        digest.update(text.encode() + b"\0")
    digest.update(embedded or b"")
    magic = int.from_bytes(digest.digest()[:7], "little") | 1
    text = _module_text(name, subject, levels, slots, made, magic, backward, step, embedded)
    backend = LlvmBackend()
    # The doors run on any machine, so that `open` can refuse one; kernels keep their own target.
    base = plainest(targets[0])
    ir, code = backend.join(text, parts, base)
    return Bundle(
        name,
        subject,
        backward,
        step,
        levels,
        magic,
        code,
        ir,
        backend.assembly(ir, base),
        _pool(name, base),
        embedded,
    )


def _module_text(
    name: str,
    subject: Subject,
    levels: Sequence[Level],
    slots: tables.Slots,
    made: Sequence[tuple[str, str]],
    magic: int,
    backward: bool,
    step: bool,
    embedded: bytes | None,
) -> str:
    ports, target = subject.ports, levels[0].target
    values = tables.door_values(
        name,
        ports,
        slots,
        levels,
        {
            "abi": ABI,
            "magic": magic,
            "nominal": subject.batch,
            "any_infer": int(subject.any_infer),
            "any_train": int(subject.any_train),
            "no_backward": "false" if backward else "true",
            "element": subject.dtype.bytes,
            "hyper_bytes": len(ports.hyper) * subject.dtype.bytes,
            **_embedded_values(embedded, slots.first["weight"], len(ports.weights)),
        },
    )
    doors = ["native/bundle.ll", f"native/cpu-{target.isa}.ll", "native/doors.ll"]
    doors += ["native/backward.ll"] * backward + ["native/step.ll"] * step
    declared = [
        f"declare void @{tables.symbol(i, k, j)}(ptr, ptr, i64, i64)\n"
        for i, level in enumerate(levels)
        for k, built in enumerate(level.kernels)
        for j, _ in enumerate(built.entries)
    ]
    rows = ", ".join(row for _, row in made)
    return "".join(
        [
            f'target triple = "{target.llvm_triple}"\n',
            *(render(door, values) for door in doors),
            *declared,
            *(text for text, _ in made),
            f"@levels = internal constant [{len(made)} x %level] [{rows}]\n",
            tables.numbers("strides", slots.strides(ports)),
            tables.constants(subject.dtype),
            *_port_tables(ports),
            _embedded_block(name, embedded, slots.first["weight"], len(ports.weights)),
        ]
    )


def _port_tables(ports: Ports) -> list[str]:
    """What the checked doors know of all arrays, and where gradients and weights lie in a block."""
    groups = {
        "x": ports.x,
        "y": ports.y,
        "dy": ports.dy,
        "dx": ports.dx,
        "grad": ports.grads,
        "weight": ports.weights,
        "state": ports.states,
        "labels": [ports.labels] if ports.labels else [],
    }
    offsets = [aligned(8 * ports.seeds)]
    for port in ports.grads:
        offsets.append(offsets[-1] + aligned(port.bytes))
    found = [tables.ports_table(stem, group) for stem, group in groups.items()]
    found.append(tables.numbers("grad.offsets", offsets[:-1]))
    found.append(tables.numbers("weight.offsets", [p.offset for p in ports.weights]))
    return found


def _embedded_values(embedded: bytes | None, slot: int, weights: int) -> dict[str, str]:
    """How pack takes weights: from the caller, or from the bundle where the caller gives none."""
    if embedded is None:
        return {
            "embedded_default": f"call void @bind(ptr %bases, i64 {slot}, i64 {weights}, "
            "ptr %weights)",
            "embedded_check": "%c = call i32 @check_ports(ptr %weights, ptr @ports.weight, "
            f"i64 {weights}, i64 0)",
        }
    return {
        "embedded_default": "call void @own_weights(ptr %bases, ptr %weights)",
        "embedded_check": "%none = icmp eq ptr %weights, null\n"
        f"  %some = select i1 %none, i64 0, i64 {weights}\n"
        "  %c = call i32 @check_ports(ptr %weights, ptr @ports.weight, i64 %some, i64 0)",
    }


def _embedded_block(name: str, embedded: bytes | None, slot: int, weights: int) -> str:
    if embedded is None:
        return ""
    size = max(len(embedded), 1)
    data = tables.escaped(embedded or b"\0")
    return (
        f'@weight.block = internal constant [{size} x i8] c"{data}", align 64\n'
        f"define ptr @{name}_weight_block() {{\n  ret ptr @weight.block\n}}\n"
        "define internal void @own_weights(ptr %bases, ptr %weights) {\n"
        "  %none = icmp eq ptr %weights, null\n"
        "  br i1 %none, label %own, label %given\nown:\n"
        f"  %slots = getelementptr ptr, ptr %bases, i64 {slot}\n"
        f"  call void @scatter(ptr @weight.block, ptr @weight.offsets, i64 {weights}, ptr %slots)\n"
        "  ret void\ngiven:\n"
        f"  call void @bind(ptr %bases, i64 {slot}, i64 {weights}, ptr %weights)\n"
        "  ret void\n}\n"
    )


def _level(
    subject: Subject, target: Target, backward: bool, step: bool, schedule: Schedule | str | None
) -> Level:
    """Every list of rows for one target."""
    ports = subject.ports
    level = Level(target, _builder(target, schedule, subject.formula), aligned(ports.weight_bytes))
    level.add("pack", [zero_row(Place("packed"), ports.weight_bytes)] * bool(ports.weight_bytes))
    level.add(
        "pack",
        [
            copy_row(Place("packed", p.offset), Place(f"weight{i}"), p.bytes)
            for i, p in enumerate(ports.weights)
            if p.bytes
        ],
    )
    base = aligned(8 * ports.seeds)
    parts = sum(aligned(p.bytes) for p in ports.grads)
    sizes = [(subject.batch, ""), (1, ".1")]
    for batch, tail in sizes[: 1 if subject.batch == 1 else 2]:
        if not tail or subject.any_infer:
            level.record(subject.infer(batch, level.build), "infer" + tail, None, base)
        if backward and (not tail or subject.any_train):
            section = subject.train(batch, level.build)
            level.record(section, "train" + tail, "back" + tail, base + parts)
    if backward:
        _sum_gradients(subject, level)
        level.add("clear", [zero_row(Place(f"sum{i}"), p.bytes) for i, p in enumerate(ports.grads)])
    if step:
        level.record(subject.step(level.build), "step", None, base)
        level.add(
            "step",
            [
                copy_row(Place(f"weight{i}"), Place("packed", p.offset), p.bytes)
                for i, p in enumerate(ports.weights)
            ],
        )
    return level


def _builder(target: Target, schedule: Schedule | str | None, formula: str) -> Build:
    """Compiles each program once; `schedule` is that of the formula alone."""
    known: dict[str, Built] = {}

    def build(program: Program) -> Built:
        key = str(program)
        if key not in known:
            known[key] = build_program(program, target, schedule if key == formula else None)
        return known[key]

    return build


def _sum_gradients(subject: Subject, level: Level) -> None:
    """The list that adds the gradients of a part of the batch to those of the parts before."""
    for i, port in enumerate(subject.ports.grads):
        if not port.bytes:
            continue
        built = level.build(_addition(port.bytes // port.dtype.bytes, port.dtype))
        places = {"G": Place(f"sum{i}"), "D": Place(f"grad{i}")}
        if any(a.name not in places for a in built.arguments):
            raise InternalError("the addition of gradients keeps arrays of its own", stage="export")
        arguments = tuple(places[a.name] for a in built.arguments)
        kernel = level.number(built)
        level.add(
            "add",
            [
                Row(kernel, n, e.extent, max(e.grain, 1), e.scratch_bytes, arguments)
                for n, e in enumerate(built.entries)
            ],
        )


def _addition(count: int, dtype: DType) -> Program:
    (i,) = dsl.axes("i")
    total = dsl.tensor("G", (count,), dtype, role="state")
    part = dsl.tensor("D", (count,), dtype)
    moved = dsl.define("G_new", [i], total[i] + part[i])
    return dsl.combine("add_gradient", [moved], outputs=[], updates={"G": "G_new"})


def _pool(name: str, target: Target) -> bytes:
    """The thread pool as an object of its own: the only part that needs pthread."""
    private = re.sub(r"^define (i64|void) @convgen_", r"define internal \1 @convgen_",
                     pool_text(target.isa), flags=re.MULTILINE)  # fmt: skip
    text = f'target triple = "{target.llvm_triple}"\n' + private
    text += render("native/pool-door.ll", {"name": name})
    return LlvmBackend().compile_text(text, target, POOL_SYMBOLS)[1]
