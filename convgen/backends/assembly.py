"""Reading assembly, of x86-64 as LLVM prints it (AT&T) and of AArch64: the hot loop of a function,
what it loads, and whether it keeps vectors on the stack."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_LABEL = re.compile(r"^([.\w$]+):")
_JUMP = re.compile(r"^\s+(?:j\w+|b(?:\.\w+)?|cb\w+|tb\w+)\s+(?:\w+,\s*)*([.\w$]+)")
_FMA = re.compile(r"^\s+(?:vfn?m(?:add|sub)\w*|fml[as]\b|fn?madd\b)")
_VECTOR = re.compile(r"%[xyz]mm\d+|\bv\d+\.\d*[bhsd]\b|\bq\d+\b|\bz\d+\.[bhsd]\b")
_X86_STORE = re.compile(r"^\s+v?mov\w*\s+%[xyz]mm\d+(?:\s*\{\S+\})?, .*\)")
_WHOLE_STORE = re.compile(
    r"^\s+v?mov(?:a|u|dq|nt)\w*\s+%([xyz])mm\d+(?:\s*\{\S+\})?, .*\(|^\s+st\w+\s+(q)\d+.*\["
)
_WHOLE = re.compile(r"%([xyz])mm\d+|\b(q)\d+")
_BYTES = {"x": 16, "y": 32, "z": 64, "q": 16}
_ARM_LOAD = re.compile(r"^\s+(?:ld\w+)\b.*\[")
_STACK = re.compile(r"\(%rsp|\[sp\b")


@dataclass(frozen=True)
class HotLoop:
    """The innermost loop with most multiply-adds: its lines and which of them are such. Without
    one that repeats, the block with most; without any multiply-add, by instructions on vectors."""

    label: str
    lines: tuple[str, ...]
    fused: frozenset[int]

    @property
    def instructions(self) -> int:
        """Instructions of all kinds."""
        return len(code_of(self.lines))

    @property
    def share(self) -> float:
        """Multiply-adds among the instructions."""
        return len(self.fused) / max(1, self.instructions)

    @property
    def loads(self) -> int:
        """Vectors read from memory, operands of other instructions included."""
        return sum(is_load(line) for line in self.lines)

    @property
    def spills(self) -> int:
        """Vectors written to the stack or read from there."""
        return sum(bool(_STACK.search(x) and _VECTOR.search(x)) for x in self.lines)

    @property
    def stores(self) -> tuple[int, ...]:
        """The bytes of each whole vector that is written to memory."""
        found = (m for line in self.lines if (m := _WHOLE_STORE.match(line)))
        return tuple(_BYTES[m.group(1) or m.group(2)] for m in found)

    @property
    def width(self) -> int:
        """Bytes of the widest vector."""
        names = (a or b for line in self.lines for a, b in _WHOLE.findall(line))
        return max((_BYTES[name] for name in names), default=16)


def hot_loop(asm: str) -> HotLoop | None:
    """The hot loop of some assembly; None without an instruction on vectors.

    >>> text = "f:\\n.L1:\\n\\tvfmadd231ps (%rax), %zmm1, %zmm2\\n\\tjne .L1\\n\\tretq\\n"
    >>> found = hot_loop(text)
    >>> found.label, found.loads, found.instructions, found.width
    ('.L1', 1, 2, 64)
    """
    lines = asm.splitlines()
    places = {m.group(1): i for i, line in enumerate(lines) if (m := _LABEL.match(line))}
    found = [(True, label, body) for label, body in _loops(lines, places)]
    starts = [*sorted(places.values()), len(lines)]
    names = {place: label for label, place in places.items()}
    found += [(False, names[a], lines[a + 1 : b]) for a, b in zip(starts, starts[1:], strict=False)]
    best: tuple[tuple[bool, bool, int, int], HotLoop] | None = None
    for repeats, label, body in found:
        fused = frozenset(i for i, line in enumerate(body) if _FMA.match(line))
        vectors = sum(bool(_VECTOR.search(line)) for line in body)
        rank = (repeats and bool(fused), bool(fused), len(fused), vectors)
        if vectors and (best is None or rank > best[0]):
            best = (rank, HotLoop(label, tuple(body), fused))
    return best[1] if best else None


def functions(asm: str) -> dict[str, str]:
    """The text of each function by its symbol, parts of it that got a name with a dot behind the
    symbol included; labels inside functions begin with a dot or an L."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in asm.splitlines():
        match = _LABEL.match(line)
        if match and not match.group(1).startswith((".", "L")):
            name = match.group(1).split(".")[0]
        found.setdefault(name, []).append(line)
    return {symbol: "\n".join(lines) for symbol, lines in found.items() if symbol}


def _loops(lines: Sequence[str], places: dict[str, int]) -> list[tuple[str, list[str]]]:
    """(label, lines after it up to the jump back) of the loops that hold no other."""
    jumps = [
        (places[m.group(1)], i, m.group(1))
        for i, line in enumerate(lines)
        if (m := _JUMP.match(line)) and places.get(m.group(1), i) < i
    ]
    return [
        (label, list(lines[begin + 1 : end + 1]))
        for begin, end, label in jumps
        if not any(begin < a and b < end for a, b, _ in jumps)
    ]


def code_of(lines: Sequence[str]) -> list[str]:
    """The lines that are instructions."""
    marks = (".", "#", "//")
    return [
        x for x in lines if x.strip() and not x.strip().startswith(marks) and not _LABEL.match(x)
    ]


def is_vector(line: str) -> bool:
    """An instruction on vectors."""
    return bool(_VECTOR.search(line))


def whole_store(line: str) -> bool:
    """An instruction that writes a whole vector to memory."""
    return bool(_WHOLE_STORE.match(line))


def is_load(line: str) -> bool:
    """An instruction that reads vectors, or elements of them, from memory."""
    if not _VECTOR.search(line):
        return False
    if "(" in line:
        return not _X86_STORE.match(line)
    return bool(_ARM_LOAD.match(line))
