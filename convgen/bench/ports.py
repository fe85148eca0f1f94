"""Where instructions on vectors execute, and how many cycles a core needs for them at least.

Every unit takes some kinds of instructions, so many a cycle; all units work side by side. Counted
instructions therefore take as long as the unit that has most to do, however well they overlap.
What shares a unit was measured by timing single instructions and pairs of them, twelve of each in
independent registers, beside a chain of `lea`: a pair that takes the sum of both shares all ports.
Where a pair was not measured, nothing is shared, which can only lower the bound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from convgen.backends.assembly import is_load, is_vector, whole_store

_KINDS: tuple[tuple[str, str], ...] = (
    ("divide", r"v?(?:div[ps][sd]|f?div)"),
    ("root", r"v?f?sqrt"),
    ("scale", r"vscalef"),
    ("multiply", r"v?fn?m(?:add|sub|la|ls|ul)|v?mul[ps][sd]|vpmul|vpmadd"),
    ("compare", r"v?(?:max|min|cmp|u?comi)\w*[ps][sd]|fcm|fmaxn?m?|fminn?m?"),
    ("add", r"v?(?:add|sub|hadd)[ps][sd]|fadd|fsub"),
    ("shift", r"vps(?:ll|ra|rl)"),
    ("convert", r"v?cvt|vround|vrndscale"),
    ("select", r"vp?blendv|vp?blendm"),
    ("across", r"vextract|vinsert[fi]|vperm|vpmov[sz]x|vpack|vpshufb|vpmov(?:[dqw][bwd]|m)"),
    ("shuffle", r"vshuf|vmovs[hl]dup|vunpck|vpunpck|vpshufd|vinsertps|vpermilp"),
    ("mask", r"k(?:or|and|xor|xnor|not|unpck|shift|add|ortest|test)"),
    ("", r"v?mov|vp?broadcast|vlddqu|vmaskmov|vzero|prefetch|kmov|ld\w|st\w"),
)
_KIND = tuple((kind, re.compile(rf"^\s+(?:{pattern})")) for kind, pattern in _KINDS)
_NOTHING = re.compile(r"^\s+vp?xor\w*\s+(%[xyz]mm\d+), \1,")  # a zero: done when renamed
_MASKED = re.compile(r"\{%k\d")
_SIMPLE = "simple"  # logic, whole numbers: on every port
_ALL = (
    *("divide", "root", "scale", "multiply", "compare", "add", "shift", "convert"),
    *("select", "across", "shuffle", _SIMPLE),
)
_WIDTH = {"x": 128, "y": 256, "z": 512}
_WIDEST = re.compile(r"%([xyz])mm\d")


@dataclass(frozen=True, slots=True)
class Unit:
    """Some ports: the kinds that need one of them, and how many of those start in a cycle."""

    name: str
    kinds: tuple[str, ...]
    rate: float


@dataclass(frozen=True, slots=True)
class Core:
    """The units of a core; an instruction on vectors of more than `bits` counts twice. issue:
    instructions of all sorts a cycle."""

    bits: int
    issue: float
    units: tuple[Unit, ...]


def _common(loads: float, stores: float, divide: float, root: float) -> tuple[Unit, ...]:
    return (
        Unit("loads", ("load",), loads),
        Unit("stores", ("store",), stores),
        Unit("divider", ("divide",), 1 / divide),
        Unit("roots", ("root",), 1 / root),
        Unit("vector ports", _ALL, 4.0),
    )


_ADDING = ("add", "compare", "shift", "convert")
_MULTIPLYING = ("multiply", "select")
# Measured on 256-bit vectors of a Zen 4. Of its ports 0 to 3, products and selects by a vector use
# 0 and 1; sums, extremes, compares, shifts and conversions 2 and 3; shuffles across lanes 1 and 2,
# others 1 to 3. A division takes 3 cycles, a root 5.
_ZEN4 = Core(
    256,
    6.0,
    (
        *_common(2.0, 1.0, 3.0, 5.0),
        Unit("multipliers", _MULTIPLYING, 2.0),
        Unit("adders", _ADDING, 2.0),
        Unit("lane crossing", ("across",), 2.0),
        Unit("shuffles and adders", ("across", "shuffle", *_ADDING), 3.0),
        Unit("lane crossing and multipliers", ("across", *_MULTIPLYING), 3.0),
    ),
)
# Measured on 512-bit vectors of a Zen 5, one kind at a time: fma, add and maximum 0.5 cycles each,
# compare to mask 0.55, logic on masks 0.5, masked moves 0.5, whole numbers 0.25, scale 1, division
# 2.5.
_ZEN5 = Core(
    512,
    8.0,
    (
        *_common(2.0, 1.0, 2.5, 4.0),
        Unit("multipliers", ("multiply",), 2.0),
        Unit("adders", ("add",), 2.0),
        Unit("compares", ("compare",), 2.0),
        Unit("selects", ("select",), 2.0),
        Unit("mask logic", ("mask",), 2.0),
        Unit("scaling", ("scale",), 1.0),
    ),
)
# Of a core without a row: two multiply-adds, and elsewhere no less than any core has.
_DEFAULT = Core(
    512, 8.0, (*_common(3.0, 2.0, 2.0, 2.0), Unit("multipliers", ("multiply",), 2.0))
)  # fmt: skip
CORES: dict[str, Core] = {"EPYC (family 26": _ZEN5, "(family 25": _ZEN4}


def core_of(cpu_model: str) -> Core:
    """The row of the table whose text occurs in a model's name for itself, or the default row."""
    return next((core for word, core in CORES.items() if word in cpu_model), _DEFAULT)


def kinds_of(line: str) -> tuple[str, ...]:
    """What an instruction asks for: a port that computes, a load, a store.

    >>> kinds_of("\\tvmaxps (%rax), %ymm1, %ymm2"), kinds_of("\\tvmovups %ymm1, (%rax)")
    (('compare', 'load'), ('store',))
    >>> kinds_of("\\tvpaddd %ymm1, %ymm2, %ymm2"), kinds_of("\\tvmovaps %ymm1, %ymm2")
    (('simple',), ())
    """
    kind = next((name for name, pattern in _KIND if pattern.match(line)), _SIMPLE)
    found = [kind] if kind == "mask" else []
    if not is_vector(line) or _NOTHING.match(line):
        return tuple(found)
    load, store = is_load(line), whole_store(line)
    if kind == "" and _MASKED.search(line) and not load and not store:
        kind = "select"
    if kind and kind != "mask" and not (store and kind == "across"):
        found.append(kind)
    return (*found, *(["load"] if load else []), *(["store"] if store else []))


def cycles_of(counts: Mapping[str, int], core: Core) -> tuple[float, str]:
    """(cycles for instructions that run so often, at least; the unit that needs them)."""
    asked: dict[str, float] = {}
    for line, times in counts.items():
        found = _WIDEST.findall(line)
        bits = max((_WIDTH[w] for w in found), default=0)
        turns = 2 if bits > core.bits else 1
        for kind in kinds_of(line):
            asked[kind] = asked.get(kind, 0.0) + times * turns
    every = [(sum(counts.values()) / core.issue, "issue")]
    every += [(sum(asked.get(k, 0.0) for k in u.kinds) / u.rate, u.name) for u in core.units]
    return max(every)
