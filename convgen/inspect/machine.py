"""Pictures of a kernel: loops as nested boxes."""

from __future__ import annotations

from convgen.inspect.drawing import Drawing

KINDS = {"parallel": "c1", "vector": "c2", "unroll": "c4", "segments": "c6"}
LINE = 20


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
    unrolled, cut into segments, or a plain loop. Default: the phase with the deepest sum; nothing
    where there are no phases (nothing to compute)."""
    phases = phases_of(loops) or [("", [])]
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
        drawing.words(20 + 12 * depth, y + 12.5, text.replace("  # ", "   "), 11, mono=True)
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
