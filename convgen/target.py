"""Targets: what a kernel is made for. The tables of this file are all that the compiler knows
about instruction sets; everything else asks a `Target`.

A name such as ``x86-64-v3`` means the same on every machine: same target, same bytes. ``native``
is the highest level that this machine runs, with its cache sizes and its model name.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from convgen.errors import TargetError
from convgen.types import DType

_KILO = 1024


@dataclass(frozen=True, slots=True)
class Target:
    """A machine level and the caches to plan for.

    name              x86-64-v2, x86-64-v3, x86-64-v4 or aarch64
    isa               x86-64 or aarch64
    vector_bits       width of one vector register
    vector_registers  how many there are: 16 or 32
    has_fma           a fused multiply-add instruction exists
    llvm_*            triple, cpu and feature string for LLVM
    l1, l2, l3        bytes of data cache: of a core, of a core, shared (0: there is none)
    cpu_model         the machine's own name for itself; "" for a target given by name
    cores             cores this process may use; never part of equality or of a cache key

    >>> from convgen.types import f32, f64
    >>> v4 = target("x86-64-v4")
    >>> v4.lanes(f32), v4.lanes(f64), v4.vector_registers, v4.has_fma
    (16, 8, 32, True)
    """

    name: str
    isa: str
    vector_bits: int
    vector_registers: int
    has_fma: bool
    llvm_triple: str
    llvm_cpu: str
    llvm_features: str
    l1: int = 32 * _KILO
    l2: int = 512 * _KILO
    l3: int = 8 * _KILO * _KILO
    cpu_model: str = ""
    cores: int = field(default=1, compare=False)

    def lanes(self, dtype: DType) -> int:
        """Elements of `dtype` in one vector register."""
        return self.vector_bits // dtype.bits

    def key(self) -> str:
        """One line that says everything equality compares; part of a kernel's cache key."""
        facts = (self.name, self.llvm_triple, self.llvm_cpu, self.llvm_features)
        return "|".join((*facts, f"{self.l1}/{self.l2}/{self.l3}", self.cpu_model))


@dataclass(frozen=True, slots=True)
class _Level:
    """One row of the table of instruction sets; `flags` as /proc/cpuinfo spells them."""

    isa: str
    vector_bits: int
    vector_registers: int
    has_fma: bool
    llvm_cpu: str
    llvm_features: str
    flags: frozenset[str] = frozenset()


_V2 = frozenset("cx16 lahf_lm popcnt ssse3 sse4_1 sse4_2".split())
_V3 = _V2 | frozenset("abm avx avx2 bmi1 bmi2 f16c fma movbe xsave".split())
_V4 = _V3 | frozenset("avx512f avx512bw avx512cd avx512dq avx512vl".split())

# What every machine of an instruction set executes, as LLVM calls it.
_PLAINEST = {"x86-64": "x86-64", "aarch64": "generic"}

# Highest level of an instruction set last.
_LEVELS: dict[str, _Level] = {
    "x86-64-v2": _Level("x86-64", 128, 16, False, "x86-64-v2", "", _V2),
    "x86-64-v3": _Level("x86-64", 256, 16, True, "x86-64-v3", "", _V3),
    "x86-64-v4": _Level("x86-64", 512, 32, True, "x86-64-v4", "-prefer-256-bit", _V4),
    "aarch64": _Level("aarch64", 128, 32, True, "generic", "+neon"),
}

_MACHINES = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "aarch64", "arm64": "aarch64"}
_TRIPLES = {
    "linux": "{}-unknown-linux-gnu",
    "darwin": "{}-apple-darwin",
    "win32": "{}-pc-windows-msvc",
}


def names() -> tuple[str, ...]:
    """What `target` accepts."""
    return ("native", *_LEVELS)


def target(name: Target | str = "native") -> Target:
    """The target of that name; a Target is handed back as it is.

    Raises TargetError for an unknown name, and for ``native`` on a machine of no known level.

    >>> target("aarch64").llvm_triple
    'aarch64-unknown-linux-gnu'
    >>> target("pentium")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    convgen.errors.TargetError: unknown target 'pentium'; expected one of native x86-64-v2 ...
    """
    if isinstance(name, Target):
        return name
    if name == "native":
        return _native()
    if name not in _LEVELS:
        raise TargetError(f"unknown target {name!r}", expected="one of " + " ".join(names()))
    return _of_level(name, "linux")


def plainest(machine: Target) -> Target:
    """The same target with nothing but the instructions that every machine of its kind has: for
    code that runs before it is known what there is.

    >>> plainest(target("x86-64-v4")).llvm_cpu
    'x86-64'
    """
    return replace(machine, llvm_cpu=_PLAINEST[machine.isa], llvm_features="")


def runs_here(wanted: Target) -> bool:
    """True when this machine executes code made for `wanted`.

    >>> runs_here(target("native"))
    True
    """
    here = _native()
    if here.isa != wanted.isa or here.llvm_triple != wanted.llvm_triple:
        return False
    order = list(_LEVELS)
    return order.index(wanted.name) <= order.index(here.name)


def level_of(isa: str, flags: Iterable[str]) -> str:
    """The highest level of an instruction set whose flags are all present.

    >>> level_of("x86-64", "cx16 lahf_lm popcnt ssse3 sse4_1 sse4_2 avx".split())
    'x86-64-v2'
    """
    present = frozenset(flags)
    found = [n for n, level in _LEVELS.items() if level.isa == isa and level.flags <= present]
    if not found:
        missing = sorted(_V2 - present) if isa == "x86-64" else []
        raise TargetError(
            "this machine is below every level convgen knows",
            expected="one of " + " ".join(_LEVELS),
            got=f"{isa} without {' '.join(missing)}" if missing else isa,
            hint="a target by name, to make code for another machine",
        )
    return found[-1]


def _of_level(name: str, system: str) -> Target:
    level = _LEVELS[name]
    architecture = "x86_64" if level.isa == "x86-64" else "aarch64"
    return Target(
        name=name,
        isa=level.isa,
        vector_bits=level.vector_bits,
        vector_registers=level.vector_registers,
        has_fma=level.has_fma,
        llvm_triple=_TRIPLES.get(system, _TRIPLES["linux"]).format(architecture),
        llvm_cpu=level.llvm_cpu,
        llvm_features=level.llvm_features,
    )


@cache
def _native() -> Target:
    """This machine, read once."""
    machine = platform.machine().lower()
    text = _read(Path("/proc/cpuinfo"))
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    # Where the system lists no flags (macOS, Windows) v2 is what every machine in use has.
    flags = found.group(1).split() if found else _V2
    base = _of_level(level_of(_MACHINES.get(machine, machine), flags), sys.platform)
    caches = _cache_sizes(Path("/sys/devices/system/cpu/cpu0/cache"))
    return replace(
        base,
        l1=caches.get(1, base.l1),
        l2=caches.get(2, base.l2),
        l3=caches.get(3, 0 if caches else base.l3),
        cpu_model=_cpu_model(text) or platform.processor() or machine,
        cores=_cores(),
    )


def _cpu_model(text: str) -> str:
    """The model as family and number too, since virtual machines shorten the name.

    >>> _cpu_model("cpu family : 26\\nmodel : 2\\nmodel name : AMD EPYC\\nstepping : 1\\n")
    'AMD EPYC (family 26, model 2)'
    """

    def value(key: str) -> str:
        found = re.search(rf"^{key}\s*:\s*(.*?)\s*$", text, re.MULTILINE)
        return found.group(1) if found else ""

    name = value("model name")
    if name and value("cpu family"):
        return f"{name} (family {value('cpu family')}, model {value('model')})"
    part = value("CPU part")
    return name or (f"{value('CPU implementer')} {part}" if part else "")


def _cache_sizes(folder: Path) -> dict[int, int]:
    """Bytes of the data or unified cache of each level, as Linux lists them; {} elsewhere."""
    sizes: dict[int, int] = {}
    for index in sorted(folder.glob("index*")):
        if _read(index / "type").strip() not in ("Data", "Unified"):
            continue
        found = re.fullmatch(r"(\d+)([KM]?)", _read(index / "size").strip())
        level = _read(index / "level").strip()
        if found and level.isdigit():
            unit = {"": 1, "K": _KILO, "M": _KILO * _KILO}[found.group(2)]
            sizes[int(level)] = int(found.group(1)) * unit
    return sizes


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
