"""Pictures of a kernel: loops as nested boxes; and its hot loop."""

from __future__ import annotations

import re
from dataclasses import dataclass

from convgen.inspect.drawing import Drawing

KINDS = {"parallel": "c1", "vector": "c2", "unroll": "c4", "segments": "c6"}
LINE = 20
_LABEL = re.compile(r"^([.\w$]+):")
_JUMP = re.compile(r"^\s+(?:j\w+|b(?:\.\w+)?|cb\w+|tb\w+)\s+(?:\w+,\s*)*([.\w$]+)")
_FMA = re.compile(r"^\s+(?:vfn?m(?:add|sub)\w*|fml[as]\b|fn?madd\b)")


# ---------------------------------------------------------------------------------------------
# Loops


def phases_of(loops: str) -> list[tuple[str, list[str]]]:
    """(name, lines) of each phase in a kernel's text."""
    found: list[tuple[str, list[str]]] = []
    for line in loops.splitlines():
        if line.startswith("phase "):
            found.append((line[6:].rstrip(":"), []))
        elif found and line.startswith("  "):
            found[-1][1].append(line[2:])
    return found


def loop_nest(loops: str, phase: str | None = None) -> Drawing:
    """One phase as nested boxes, each loop in the colour of what becomes of it: parallel, vector,
    unrolled, cut into segments, or a plain loop. Default: the phase with the deepest sum."""
    phases = phases_of(loops)
    name, lines = next(
        (p for p in phases if p[0] == phase),
        max(phases, key=lambda p: max((_depth(x) for x in p[1]), default=0)),
    )
    longest = max((len(x) for x in lines), default=10)
    width = max(420.0, 40 + 7.0 * longest)
    drawing = Drawing(width, 62 + LINE * len(lines), f"loops of phase {name}")
    drawing.words(12, 20, f"phase {name}", 12, bold=True)
    for number, line in enumerate(lines):
        depth, y = _depth(line), 32 + LINE * number
        text = line.strip()
        if text.startswith("for "):
            last = number
            while last + 1 < len(lines) and _depth(lines[last + 1]) > depth:
                last += 1
            color = _kind(text)
            box = (
                12.0 + 12 * depth,
                float(y),
                width - 24 - 16 * depth,
                LINE * (last - number + 1.0) - 3,
            )
            drawing.rectangle(*box, "paper", None, radius=4)
            drawing.rectangle(
                12 + 12 * depth, y, width - 24 - 16 * depth, LINE * (last - number + 1) - 3,
                color or "wash", color or "faint", opacity=0.16 if color else 1, radius=4,
            )  # fmt: skip
        drawing.words(20 + 12 * depth, y + 14, text.replace("  # ", "   "), 11, mono=True)
    y = 44 + LINE * len(lines)
    x = 12.0
    for word, color in KINDS.items():
        drawing.rectangle(x, y, 11, 11, color, None, opacity=0.7, radius=2)
        drawing.words(x + 16, y + 10, word, 11, "muted")
        x += 96
    return drawing


def _depth(line: str) -> int:
    return (len(line) - len(line.lstrip())) // 2


def _kind(text: str) -> str | None:
    if "in segments(" in text:
        return KINDS["segments"]
    _, _, mark = text.partition("# ")
    return next((c for word, c in KINDS.items() if mark.startswith(word)), None)


# ---------------------------------------------------------------------------------------------
# Assembly


@dataclass(frozen=True)
class HotLoop:
    """The innermost block with most multiply-adds: its lines, which of them are such, and how many
    instructions there are beside them."""

    label: str
    lines: tuple[str, ...]
    fused: frozenset[int]
    instructions: int

    @property
    def share(self) -> float:
        """Multiply-adds among the instructions."""
        return len(self.fused) / max(1, self.instructions)


def hot_loop(asm: str) -> HotLoop | None:
    """The block that jumps back to its own label and holds most multiply-adds; where none jumps
    back, the one with most. None without any."""
    best: tuple[tuple[bool, int], HotLoop] | None = None
    for label, lines in _blocks(asm):
        fused = frozenset(i for i, line in enumerate(lines) if _FMA.match(line))
        if not fused:
            continue
        jumps = [m.group(1) for line in lines if (m := _JUMP.match(line))]
        if label in jumps:  # what follows the jump back is no part of the loop
            back = [i for i, x in enumerate(lines) if (m := _JUMP.match(x)) and m.group(1) == label]
            lines = lines[: back[-1] + 1]
            fused = frozenset(i for i in fused if i < len(lines))
        code = sum(bool(x.strip()) and not x.strip().startswith((".", "#", "//")) for x in lines)
        rank = (label in jumps, len(fused))
        if best is None or rank > best[0]:
            best = (rank, HotLoop(label, tuple(lines), fused, code))
    return best[1] if best else None


def _blocks(asm: str) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in asm.splitlines():
        match = _LABEL.match(line)
        if match:
            found.append((match.group(1), []))
        else:
            found[-1][1].append(line)
    return found
