"""Pictures of a formula: which inputs an output reads, which outputs an input reaches, which
channels are connected, and the residue classes of a gradient."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convgen.affine import Affine
from convgen.inspect.drawing import CLASSES, Drawing
from convgen.symbolic.expr import Access, Definition, Domain, Size
from convgen.symbolic.matrix import small_case
from convgen.symbolic.printer.order import Order
from convgen.symbolic.program import Program

CELL, LARGEST = 24, 13
Cell = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """An access that moves over its tensor: `dims` (one or two) of the tensor move along with the
    dimensions `outs` of the output; `taps` are the axes summed over there."""

    piece: Definition
    access: Access
    dims: tuple[int, ...]
    outs: tuple[int, ...]
    taps: tuple[str, ...]


def find_window(program: Program, tensor: str | None = None) -> Window | None:
    """The first access of a definition with an index of several terms, in its last two such
    dimensions; None where no access moves."""
    for stage in program.stages:
        for piece in stage.pieces:
            for access in piece.reads():
                found = _window(piece, access)
                if found is not None and tensor in (None, access.tensor.name):
                    return found
    return None


def _window(piece: Definition, access: Access) -> Window | None:
    own = piece.domain.names
    summed = [r.axis for reduce in piece.reduces for r in reduce.domain.ranges]
    dims: list[int] = []
    outs: list[int] = []
    taps: list[str] = []
    for dim, index in enumerate(access.index):
        place = [n for n in own if index.coefficient(n)]
        inner = [n for n in summed if index.coefficient(n)]
        where = [d for d, i in enumerate(piece.outs[0].index) if i.single in place]
        if len(place) == 1 and inner and where and index.is_plain:
            dims.append(dim)
            outs.append(where[0])
            taps += inner
    if not dims:
        return None
    return Window(piece, access, tuple(dims[-2:]), tuple(outs[-2:]), tuple(taps[-2:]))


def _numbers(domain: Domain, axes: Sequence[str]) -> list[dict[str, int]]:
    """Values of some axes; the others of the domain at their first value."""
    first = {r.axis: r.lo for r in domain.ranges}
    spans = [range(r.lo, r.lo if isinstance(r.hi, Size) else r.hi) for r in domain.ranges]
    chosen = [s for s, r in zip(spans, domain.ranges, strict=True) if r.axis in axes]
    names = [r.axis for r in domain.ranges if r.axis in axes]
    return [{**first, **dict(zip(names, v, strict=True))} for v in itertools.product(*chosen)]


def _cell(index: Sequence[Affine], dims: Sequence[int], point: Mapping[str, int]) -> Cell:
    at = [index[d].evaluate(point) for d in dims]
    return (at[0], at[1]) if len(at) == 2 else (0, at[0])


def _shape(shape: Sequence[object], dims: Sequence[int]) -> Cell:
    extents = [e if isinstance(e, int) else 1 for e in (shape[d] for d in dims)]
    return (extents[0], extents[1]) if len(extents) == 2 else (1, extents[0])


def reads_and_reaches(program: Program, tensor: str | None = None) -> Drawing | None:
    """Two rows: the inputs that one output reads, and the outputs that one input reaches, each
    cell with its taps; padding is drawn dashed. Large layers are drawn at smaller extents, with
    stride, dilation and padding kept. None where no access moves."""
    small = small_case(program, 4, 5) or program.bind(**dict.fromkeys(program.sizes(), 1))
    window = find_window(small, tensor)
    if window is None:
        return None
    pairs = _pairs(window)
    inside = _shape(window.access.tensor.shape, window.dims)
    outer = _shape(window.piece.outs[0].tensor.shape, window.outs)
    cells = [c for c, _, _ in pairs]
    low = (min(0, *(c[0] for c in cells)), min(0, *(c[1] for c in cells)))
    high = (
        max(inside[0] - 1, *(c[0] for c in cells)),
        max(inside[1] - 1, *(c[1] for c in cells)),
    )
    if max(high[0] - low[0], high[1] - low[1], *outer) > LARGEST * 2:
        return None
    middle = (outer[0] // 2, outer[1] // 2)
    read = {c: taps for c, o, taps in pairs if o == middle}
    center = _central(inside, pairs)
    reached = {o: taps for c, o, taps in pairs if c == center}
    name, out = window.access.tensor.name, window.piece.outs[0].tensor.name
    right = 40 + CELL * (high[1] - low[1] + 1)
    last = f"{out}: reached from there"
    width = max(20 + right + CELL * outer[1], right + 12 + 8 * len(last))  # titles wider than grids
    rows = max(high[0] - low[0] + 1, outer[0])
    panel = 50 + CELL * rows
    drawing = Drawing(
        max(width, 430), 2 * panel, f"what {out} reads of {name}, and what it reaches"
    )
    draw = _Panels(drawing, low, high, inside, outer, right)
    draw.grid(0, f"{name}: read by {out}{_place(middle, window)}", read, "c0", input=True)
    draw.grid(0, f"{out}", {middle: ""}, "c1", input=False)
    draw.grid(panel, f"{name}{_place(center, window)}", {center: ""}, "c1", input=True)
    draw.grid(panel, last, reached, "c0", input=False)
    return drawing


def _place(cell: Cell, window: Window) -> str:
    inner = ", ".join(map(str, cell)) if len(window.dims) == 2 else str(cell[1])
    return f"[{inner}]"


def _pairs(window: Window) -> list[tuple[Cell, Cell, str]]:
    """(input cell, output cell, taps) of every product, other axes at their first value."""
    piece, found = window.piece, list[tuple[Cell, Cell, str]]()
    places = [n for d in window.outs for n in piece.outs[0].index[d].names()]
    reduce = next(r for r in piece.reduces if set(window.taps) & set(r.domain.names))
    for point in _numbers(piece.domain, places):
        for inner in _numbers(reduce.domain, window.taps):
            full = {**point, **inner}
            if all(c.holds(full) for c in reduce.domain.constraints):
                source = _cell(window.access.index, window.dims, full)
                target = _cell(piece.outs[0].index, window.outs, full)
                found.append((source, target, ",".join(str(inner[t]) for t in window.taps)))
    return found


def _central(inside: Cell, pairs: Sequence[tuple[Cell, Cell, str]]) -> Cell:
    """The cell near the middle that most outputs read."""
    counts: dict[Cell, int] = {}
    for cell, _, _ in pairs:
        if 0 <= cell[0] < inside[0] and 0 <= cell[1] < inside[1]:
            counts[cell] = counts.get(cell, 0) + 1
    middle = (inside[0] / 2, inside[1] / 2)

    def rank(cell: Cell) -> tuple[int, float, Cell]:
        far = abs(cell[0] + 0.5 - middle[0]) + abs(cell[1] + 0.5 - middle[1])
        return (-counts[cell], far, cell)

    return min(counts, key=rank) if counts else (0, 0)


@dataclass
class _Panels:
    drawing: Drawing
    low: Cell
    high: Cell
    inside: Cell
    outer: Cell
    right: float

    def grid(
        self, top: float, title: str, marked: Mapping[Cell, str], color: str, *, input: bool
    ) -> None:
        """A grid of input cells (padding dashed) or of output cells, some marked."""
        left = 12 if input else self.right
        low = self.low if input else (0, 0)
        high = self.high if input else (self.outer[0] - 1, self.outer[1] - 1)
        d = self.drawing
        d.words(left, top + 20, title, 12, "ink", bold=True)
        for i in range(low[0], high[0] + 1):
            for j in range(low[1], high[1] + 1):
                real = not input or (0 <= i < self.inside[0] and 0 <= j < self.inside[1])
                x, y = left + CELL * (j - low[1]), top + 30 + CELL * (i - low[0])
                mark = (i, j) in marked
                fill = color if mark else ("wash" if real else None)
                d.rectangle(
                    x + 1, y + 1, CELL - 2, CELL - 2, fill, "muted" if real else "faint",
                    opacity=0.85 if mark and real else 0.4 if mark else 1.0, radius=3,
                    dashed=not real,
                )  # fmt: skip
                if mark and marked[i, j]:
                    size = 9 if len(marked[i, j]) < 4 else 7.5
                    d.words(
                        x + CELL / 2, y + CELL / 2 + 3, marked[i, j], size,
                        "paper" if real else "ink", anchor="middle",
                    )  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Channels


def connections(program: Program, tensor: str | None = None) -> Drawing | None:
    """Which input channels (columns) each output channel (rows) reads: full, grouped or depthwise.
    None where no access moves or it has no channels."""
    program = program.bind(**dict.fromkeys(program.sizes(), 1))
    window = find_window(program, tensor)
    if window is None or window.access.tensor.rank < 2 or 1 in window.dims:
        return None
    if window.piece.outs[0].tensor.rank < 2 or 1 in window.outs:
        return None
    piece = window.piece
    source, target = window.access.index[1], piece.outs[0].index[1]
    names = source.names() | target.names()
    columns, rows = (
        _shape(window.access.tensor.shape, (1,))[1],
        _shape(piece.outs[0].tensor.shape, (1,))[1],
    )
    reduce = next(r for r in piece.reduces if set(window.taps) & set(r.domain.names))
    lines: dict[int, set[int]] = {}
    for point in _numbers(piece.domain, sorted(names)):
        for inner in _numbers(reduce.domain, sorted(names)):
            full = {**point, **inner}
            lines.setdefault(target.evaluate(full), set()).add(source.evaluate(full))
    side = min(18.0, 300 / max(rows, columns))
    title = (
        f"channels of {window.access.tensor.name} read by channels of {piece.outs[0].tensor.name}"
    )
    drawing = Drawing(max(340, 70 + side * columns), 60 + side * rows, title)
    drawing.words(12, 18, title, 12, bold=True)
    drawing.rectangle(50, 36, side * columns, side * rows, "wash", "faint")
    for first, last, read in _runs(lines):
        for a, b in _spans(sorted(read)):
            drawing.rectangle(
                50 + side * a, 36 + side * first, side * (b - a), side * (last - first), "c0",
                "paper" if side > 4 else None, opacity=0.85,
            )  # fmt: skip
    drawing.words(44, 36 + side * rows / 2 + 4, str(rows), 11, "muted", anchor="end")
    drawing.words(
        50 + side * columns / 2, 52 + side * rows, str(columns), 11, "muted", anchor="middle"
    )
    return drawing


def _runs(lines: Mapping[int, set[int]]) -> list[tuple[int, int, set[int]]]:
    """Neighbouring rows that read alike, as (first, last + 1, what they read)."""
    found: list[tuple[int, int, set[int]]] = []
    for row in sorted(lines):
        if found and found[-1][1] == row and found[-1][2] == lines[row]:
            found[-1] = (found[-1][0], row + 1, lines[row])
        else:
            found.append((row, row + 1, lines[row]))
    return found


def _spans(numbers: Sequence[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for n in numbers:
        if found and found[-1][1] == n:
            found[-1] = (found[-1][0], n + 1)
        else:
            found.append((n, n + 1))
    return found


# ---------------------------------------------------------------------------------------------
# Residue classes


def residue_classes(adjoint: Program) -> Drawing | None:
    """The elements of a gradient in the colours of the pieces that write them, with what each
    piece sums. None for a gradient that one piece writes."""
    adjoint = adjoint.bind(**dict.fromkeys(adjoint.sizes(), 1))
    stage = adjoint.stages[-1]
    pieces = stage.pieces
    if len(pieces) < 2 or len(stage.tensors) != 1:
        return None
    tensor = stage.tensors[0]
    dims = [d for d in range(tensor.rank) if len({str(p.outs[0].index[d]) for p in pieces}) > 1]
    if len(dims) == 1 and tensor.rank > 2 and dims[0] + 1 < tensor.rank:
        dims.append(dims[0] + 1)
    dims = dims[-2:] or [tensor.rank - 1]
    rows, columns = (min(LARGEST, e) for e in _shape(tensor.shape, dims))
    owner = _owners(pieces, dims, rows, columns)
    legend = 34 + 19 * len(pieces)
    drawing = Drawing(
        max(430.0, 40 + CELL * columns + 330), max(50 + CELL * rows, legend + 10),
        f"residue classes of {tensor.name}",
    )  # fmt: skip
    drawing.words(12, 20, f"{tensor.name} in residue classes", 12, bold=True)
    for (i, j), number in owner.items():
        x, y = 12 + CELL * j, 30 + CELL * i
        drawing.rectangle(
            x + 1, y + 1, CELL - 2, CELL - 2, f"c{number % CLASSES}", None, opacity=0.85, radius=3
        )
    left = 32 + CELL * columns
    for number, piece in enumerate(pieces):
        y = 30 + 19 * number
        drawing.rectangle(left, y, 12, 12, f"c{number % CLASSES}", None, opacity=0.85, radius=2)
        order = Order(adjoint, piece)
        place = ", ".join(order.affine(i) for i in piece.outs[0].index)
        drawing.words(left + 18, y + 10, f"[{place}]  {_taps(piece, dims)}", 11, mono=True)
    return drawing


def _owners(
    pieces: Sequence[Definition], dims: Sequence[int], rows: int, columns: int
) -> dict[Cell, int]:
    """Cell -> the piece that writes it (other dimensions anywhere)."""
    found: dict[Cell, int] = {}
    for number, piece in enumerate(pieces):
        index = piece.outs[0].index
        names = sorted({n for d in dims for n in index[d].names()})
        for point in _numbers(piece.domain, names):
            cell = _cell(index, dims, point)
            if cell[0] < rows and cell[1] < columns:
                found.setdefault(cell, number)
    return found


def _taps(piece: Definition, dims: Sequence[int]) -> str:
    """How many products per channel a piece adds up: the summed axes that share an index with the
    element's place."""
    if not piece.reduces:
        reads = piece.reads()
        return "1 tap" if reads else "no tap: zero"
    place = {n for d in dims for n in piece.outs[0].index[d].names()}
    mixed = {n for a in piece.reads() for i in a.index if i.names() & place for n in i.names()}
    count = 1
    for r in piece.reduces[0].domain.ranges:
        if r.axis in mixed and isinstance(r.hi, int):
            count *= r.hi - r.lo
    return f"{count} tap{'' if count == 1 else 's'}"
