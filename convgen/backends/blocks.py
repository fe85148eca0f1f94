"""Basic blocks of x86-64 assembly as LLVM prints it, and the same assembly with a counter in front
of each: run once, it tells how often every instruction of a kernel is executed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convgen.backends.assembly import code_of

COUNTERS = "convgen_counters"  # the function that says where the counters lie

_LABEL = re.compile(r"^([.\w$]+):")
_JUMP = re.compile(r"^\s+j\w+\s")
_SECTION = re.compile(r"^\s+\.(text\b|section\s+\.text|section\b|data\b|bss\b)")
# Keeps the flags and every register; two threads at once would disturb one another.
_COUNT = """\tmovq %rax, .Lconvgen_saved(%rip)
\tmovq .Lconvgen_counts+{place}(%rip), %rax
\tleaq 1(%rax), %rax
\tmovq %rax, .Lconvgen_counts+{place}(%rip)
\tmovq .Lconvgen_saved(%rip), %rax"""


@dataclass(frozen=True, slots=True)
class Block:
    """Instructions that run one after another. symbol: the function that holds them, parts of it
    with a dot behind the name included."""

    symbol: str
    lines: tuple[str, ...]


def split(asm: str) -> tuple[tuple[Block, ...], str]:
    """(the blocks in order, the assembly with counters in front of them).

    >>> found, text = split("f:\\n\\tdecq %rcx\\n\\tjne f\\n\\tretq\\n")
    >>> [len(block.lines) for block in found], text.count("leaq 1(%rax)")
    ([2, 1], 2)
    """
    blocks: list[tuple[str, list[str]]] = []
    written: list[str] = []
    symbol, code, fresh = "", True, True
    for line in asm.splitlines():
        section, label = _SECTION.match(line), _LABEL.match(line)
        if section:
            code, fresh = section.group(1).endswith("text"), True
        if label and code:
            name = label.group(1)
            symbol, fresh = symbol if name.startswith(".") else name.split(".")[0], True
        if code and code_of([line]):
            if fresh:
                written.append(_COUNT.format(place=8 * len(blocks)))
                blocks.append((symbol, []))
            blocks[-1][1].append(line)
            fresh = bool(_JUMP.match(line))
        written.append(line)
    written += [
        "\t.text",
        f"\t.globl {COUNTERS}",
        f"{COUNTERS}:",
        "\tleaq .Lconvgen_counts(%rip), %rax",
        "\tretq",
        "\t.data",
        "\t.p2align 3",
        f".Lconvgen_counts:\n\t.zero {8 * max(len(blocks), 1)}",
        ".Lconvgen_saved:\n\t.zero 8",
    ]
    return tuple(Block(s, tuple(lines)) for s, lines in blocks), "\n".join(written) + "\n"


def executed(blocks: Sequence[Block], counts: Sequence[int]) -> Mapping[str, dict[str, int]]:
    """Function -> instruction (a line) -> how often it ran."""
    found: dict[str, dict[str, int]] = {}
    for block, count in zip(blocks, counts, strict=True):
        own = found.setdefault(block.symbol, {})
        for line in block.lines:
            own[line] = own.get(line, 0) + count
    return found
