"""The roofline: what a machine can give at so many operations per byte, and where kernels stand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convgen.inspect.drawing import CLASSES, Drawing

_FEW = 8  # kernels that fit into a small picture


@dataclass(frozen=True)
class Spot:
    """A kernel: operations per byte of its arrays, and the GFLOP/s it reached (None: not run);
    kernels of one group have one colour."""

    name: str
    intensity: float
    gflops: float | None
    group: str | None = None


def roofline(peak: Mapping[str, object], spots: Sequence[Spot]) -> Drawing:
    """Attainable GFLOP/s over operations per byte, from the JSON of ``convgen bench peak``: its
    `gflops`, the `bandwidth` of each level, or `gigabytes_per_second` of the memory alone. Kernels
    that were run are dots, others a line where they stand."""
    chart = _Chart.of(peak, spots)
    _draw_axes(chart)
    _draw_roofs(chart, _bands(peak))
    _draw_spots(chart, spots, _bands(peak))
    return chart.drawing


@dataclass(frozen=True)
class _Chart:
    """Two logarithmic axes."""

    drawing: Drawing
    left: float
    right: float
    above: float
    below: float
    low: float
    high: float
    floor: float
    top: float

    @classmethod
    def of(cls, peak: Mapping[str, object], spots: Sequence[Spot]) -> _Chart:
        top = float(str(peak["gflops"]))
        wide, tall = (470.0, 270.0) if len(spots) <= _FEW else (900.0, 560.0)
        floor = min([top / 1000, *(s.gflops / 2 for s in spots if s.gflops)])
        high = max(1000.0, *(2 * s.intensity for s in spots)) if spots else 1000.0
        drawing = Drawing(wide, tall, "roofline")
        return cls(drawing, 58.0, wide - 30, 40.0, tall - 40, 0.05, high, floor, 2 * top)

    def x(self, value: float) -> float:
        part = math.log(min(self.high, max(self.low, value)) / self.low)
        return self.left + (self.right - self.left) * part / math.log(self.high / self.low)

    def y(self, value: float) -> float:
        part = math.log(max(value, self.floor) / self.floor) / math.log(self.top / self.floor)
        return self.below - (self.below - self.above) * part

    @property
    def peak(self) -> float:
        return self.top / 2


def _bands(peak: Mapping[str, object]) -> dict[str, float]:
    """Level to the GB/s at which it is read, the fastest level first."""
    found = peak.get("bandwidth")
    rows = found if isinstance(found, Sequence) else ()
    bands = {
        str(row["level"]): float(str(row["gigabytes_per_second"]))
        for row in rows
        if isinstance(row, Mapping) and row["kind"] == "read"
    }
    alone = peak.get("gigabytes_per_second")
    return bands or ({} if alone is None else {"": float(str(alone))})


def _draw_axes(chart: _Chart) -> None:
    drawing, left, below = chart.drawing, chart.left, chart.below
    drawing.words(12, 18, "attainable and reached GFLOP/s", 12, bold=True)
    drawing.line([(left, 30), (left, below), (chart.right, below)], "muted", 1)
    for power in range(-3, 6):
        value = 10.0**power
        if chart.low <= value <= chart.high:
            drawing.line([(chart.x(value), below), (chart.x(value), below + 4)], "muted", 1)
            drawing.words(chart.x(value), below + 16, f"{value:g}", 10, "muted", anchor="middle")
        if chart.floor <= value <= chart.top:
            drawing.line([(left - 4, chart.y(value)), (left, chart.y(value))], "muted", 1)
            drawing.words(left - 7, chart.y(value) + 3, f"{value:g}", 10, "muted", anchor="end")
    drawing.words(
        chart.right, below + 32, "floating-point operations per byte", 10, "muted", anchor="end"
    )


def _draw_roofs(chart: _Chart, bands: Mapping[str, float]) -> None:
    drawing, top = chart.drawing, chart.peak
    knees = [top / band for band in bands.values()]
    start = max(chart.low, min(knees, default=chart.low))
    drawing.line([(chart.x(start), chart.y(top)), (chart.right, chart.y(top))], "accent", 1.8)
    drawing.words(chart.right, chart.y(top) - 6, f"peak {top:.0f}", 10, "accent", anchor="end")
    for number, (level, band) in enumerate(bands.items()):
        begin = max(chart.low, chart.floor / band)
        knee = max(begin, top / band)
        ends = [(chart.x(v), chart.y(min(top, band * v))) for v in (begin, knee)]
        drawing.line(ends, "accent", 1 if level in ("L1", "L2", "L3") else 1.8)
        # One step further down the line each, so that the names of close levels stay apart.
        at = begin * (knee / begin) ** (0.62 - 0.17 * number)
        drawing.words(
            chart.x(at) + 6,
            chart.y(band * at) + 10,
            f"{level} {band:.0f} GB/s".strip(),
            10,
            "accent",
        )


def _draw_spots(chart: _Chart, spots: Sequence[Spot], bands: Mapping[str, float]) -> None:
    """Dots with a dashed line up to their roof; names where no other name is in the way."""
    drawing = chart.drawing
    groups = list(dict.fromkeys(s.group for s in spots if s.group))
    for number, group in enumerate(groups):
        drawing.dot(chart.left + 16, 44 + 15 * number, 4, f"c{number % CLASSES}")
        drawing.words(chart.left + 26, 48 + 15 * number, group, 11)
    slowest = min(bands.values(), default=None)
    taken: list[tuple[float, float, float]] = []
    for number, spot in enumerate(spots):
        place = groups.index(spot.group) if spot.group else number
        color = f"c{place % CLASSES}"
        x = chart.x(spot.intensity)
        if spot.gflops is None:
            drawing.line([(x, chart.y(chart.peak)), (x, chart.below)], color, 1.4, dashed=True)
            drawing.words(x + 4, chart.below - 6 - 13 * number, spot.name, 10, color)
            continue
        y = chart.y(spot.gflops)
        if len(spots) <= _FEW:
            roof = chart.peak if slowest is None else min(chart.peak, slowest * spot.intensity)
            drawing.line([(x, chart.y(roof)), (x, y)], color, 1, dashed=True)
        drawing.dot(x, y, 4 if len(spots) <= _FEW else 3, color, label=_said(spot))
        _name_spot(chart, spot, (x, y), color, taken)


def _said(spot: Spot) -> str:
    return f"{spot.name}: {spot.gflops:.1f} GFLOP/s at {spot.intensity:.1f} operations per byte"


def _name_spot(
    chart: _Chart,
    spot: Spot,
    at: tuple[float, float],
    color: str,
    taken: list[tuple[float, float, float]],
) -> None:
    """The name beside its dot, left, right, below or above, if one of these places is free; the
    dot's own label has it anyway."""
    (x, y), width = at, 5.4 * len(spot.name)
    places = [
        (x - 8 - width, y + 4),
        (x + 8, y + 4),
        (x - width / 2, y + 15),
        (x - width / 2, y - 8),
    ]
    for begin, base in places:
        free = all(begin + width < a or b < begin or abs(base - c) >= 10 for a, b, c in taken)
        if free and begin >= chart.left and begin + width <= chart.right + 24:
            taken.append((begin, begin + width, base))
            chart.drawing.words(begin, base, spot.name, 10, color)
            return
