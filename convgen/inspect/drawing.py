"""Line drawings: rectangles, lines and words, written as SVG or painted as PNG (extra ``plot``).

In a page the colours follow its style sheet, so a drawing is light in light and dark in dark; a
file of its own carries both.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from convgen.errors import DataError

# name -> (light, dark)
COLORS: dict[str, tuple[str, str]] = {
    "ink": ("#1c2430", "#e8ecf2"),
    "muted": ("#5d6878", "#9aa6b8"),
    "faint": ("#c9d0da", "#3d4757"),
    "paper": ("#ffffff", "#161b24"),
    "wash": ("#eef1f5", "#222a36"),
    "accent": ("#0b63c5", "#6cb2ff"),
    "c0": ("#3b7dd8", "#4f8fe6"),
    "c1": ("#e2803a", "#e08a4a"),
    "c2": ("#3a9f6a", "#46b37b"),
    "c3": ("#c94f7c", "#d8638f"),
    "c4": ("#8a63c9", "#9d78da"),
    "c5": ("#b39b1f", "#c2ab3a"),
    "c6": ("#2f9fb3", "#41b0c4"),
    "c7": ("#a0674a", "#b57b5e"),
    "c8": ("#78808f", "#8b93a3"),
}
CLASSES = 9  # c0 to c8

Anchor: TypeAlias = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Rectangle:
    x: float
    y: float
    width: float
    height: float
    fill: str | None
    stroke: str | None
    opacity: float
    radius: float
    dashed: bool


@dataclass(frozen=True)
class Polyline:
    points: tuple[tuple[float, float], ...]
    color: str
    width: float
    dashed: bool


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    radius: float
    color: str
    label: str


@dataclass(frozen=True)
class Words:
    x: float
    y: float
    text: str
    size: float
    color: str
    anchor: Anchor
    bold: bool
    mono: bool


@dataclass
class Drawing:
    """Shapes on a canvas whose y grows downwards; `title` is read out instead of the picture."""

    width: float
    height: float
    title: str = ""
    shapes: list[Rectangle | Polyline | Dot | Words] = field(default_factory=list)

    def rectangle(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str | None = None,
        stroke: str | None = None,
        *,
        opacity: float = 1.0,
        radius: float = 0,
        dashed: bool = False,
    ) -> None:
        self.shapes.append(Rectangle(x, y, width, height, fill, stroke, opacity, radius, dashed))

    def line(
        self,
        points: Sequence[tuple[float, float]],
        color: str = "ink",
        width: float = 1.2,
        *,
        dashed: bool = False,
    ) -> None:
        self.shapes.append(Polyline(tuple(points), color, width, dashed))

    def dot(
        self, x: float, y: float, radius: float, color: str = "accent", *, label: str = ""
    ) -> None:
        """A dot; a viewer that points at it sees the label."""
        self.shapes.append(Dot(x, y, radius, color, label))

    def words(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12,
        color: str = "ink",
        *,
        anchor: Anchor = "start",
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        self.shapes.append(Words(x, y, text, size, color, anchor, bold, mono))

    # ---------------------------------------------------------------------------------- SVG

    def svg(self, *, inline: bool = False) -> str:
        """The drawing as an ``<svg>`` element; inline ones take their colours from the page."""
        body = "".join(_svg(s) for s in self.shapes)
        label = html.escape(self.title, quote=True)
        size = f'viewBox="0 0 {self.width:g} {self.height:g}"'
        style = "" if inline else f"<style>{style_sheet('')}</style>"
        outer = (
            f'class="drawing" style="max-width:{self.width:g}px"'
            if inline
            else f'width="{self.width:g}" height="{self.height:g}"'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} {outer} role="img" '
            f'aria-label="{label}">{style}<title>{label}</title>{body}</svg>'
        )

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        return self.svg()

    def save(self, path: str | Path) -> Path:
        """Write .svg or .png (the latter through matplotlib). DataError for another ending."""
        path = Path(path)
        if path.suffix == ".svg":
            path.write_text(self.svg(), encoding="utf-8")
        elif path.suffix == ".png":
            self._paint(path)
        else:
            raise DataError(f"picture {path.name}", expected=".svg or .png", got=path.suffix)
        return path

    # ---------------------------------------------------------------------------------- PNG

    def _paint(self, path: Path) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise DataError("PNG needs matplotlib", hint="pip install 'convgen[plot]'") from None
        figure = Figure(figsize=(self.width / 72, self.height / 72))
        FigureCanvasAgg(figure)
        axes: Any = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        axes.axis("off")
        for shape in self.shapes:
            _paint_shape(axes, shape)
        figure.savefig(path, dpi=144, metadata={"Software": "convgen"})


def style_sheet(where: str) -> str:
    """The colours as CSS classes below a selector, light and dark."""

    def rules(which: int, root: str) -> str:
        return "".join(
            f"{root} .f-{name}{{fill:{pair[which]}}}{root} .s-{name}{{stroke:{pair[which]}}}"
            for name, pair in COLORS.items()
        )

    base = (
        f"{where} .t{{font-family:system-ui,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}}"
        f"{where} .m{{font-family:ui-monospace,'DejaVu Sans Mono',Menlo,monospace}}"
    )
    return base + rules(0, where) + f"@media (prefers-color-scheme:dark){{{rules(1, where)}}}"


def _svg(shape: Rectangle | Polyline | Dot | Words) -> str:
    match shape:
        case Rectangle():
            fill = f'class="f-{shape.fill}' if shape.fill else 'fill="none" class="'
            stroke = f' s-{shape.stroke}"' if shape.stroke else '"'
            extra = f' fill-opacity="{shape.opacity:g}"' if shape.opacity < 1 else ""
            extra += f' rx="{shape.radius:g}"' if shape.radius else ""
            extra += ' stroke-dasharray="3 2"' if shape.dashed else ""
            return (
                f'<rect x="{shape.x:g}" y="{shape.y:g}" width="{shape.width:g}" '
                f'height="{shape.height:g}" {fill}{stroke}{extra}/>'
            )
        case Polyline():
            points = " ".join(f"{x:g},{y:g}" for x, y in shape.points)
            dash = ' stroke-dasharray="4 3"' if shape.dashed else ""
            return (
                f'<polyline points="{points}" fill="none" class="s-{shape.color}" '
                f'stroke-width="{shape.width:g}"{dash}/>'
            )
        case Dot():
            inside = f"<title>{html.escape(shape.label)}</title></circle>" if shape.label else ""
            return (
                f'<circle cx="{shape.x:g}" cy="{shape.y:g}" r="{shape.radius:g}" '
                f'class="f-{shape.color}"{">" + inside if inside else "/>"}'
            )
        case Words():
            weight = ' font-weight="600"' if shape.bold else ""
            anchor = "" if shape.anchor == "start" else f' text-anchor="{shape.anchor}"'
            kind = "m" if shape.mono else "t"
            return (
                f'<text x="{shape.x:g}" y="{shape.y:g}" font-size="{shape.size:g}" '
                f'class="{kind} f-{shape.color}"{weight}{anchor} xml:space="preserve">'
                f"{html.escape(shape.text)}</text>"
            )


def _paint_shape(axes: Any, shape: Rectangle | Polyline | Dot | Words) -> None:
    try:
        from matplotlib.patches import Circle, FancyBboxPatch
        from matplotlib.patches import Rectangle as Box
    except ImportError:
        raise DataError("PNG needs matplotlib", hint="pip install 'convgen[plot]'") from None
    match shape:
        case Rectangle():
            style = {
                "facecolor": COLORS[shape.fill][0] if shape.fill else "none",
                "edgecolor": COLORS[shape.stroke][0] if shape.stroke else "none",
                "linewidth": 0.8,
                "linestyle": "--" if shape.dashed else "-",
                "alpha": shape.opacity if shape.fill else None,
            }
            if shape.radius:
                rounded = f"round,pad=0,rounding_size={shape.radius}"
                patch: Any = FancyBboxPatch(
                    (shape.x, shape.y), shape.width, shape.height, boxstyle=rounded, **style
                )
            else:
                patch = Box((shape.x, shape.y), shape.width, shape.height, **style)
            axes.add_patch(patch)
        case Polyline():
            xs, ys = [p[0] for p in shape.points], [p[1] for p in shape.points]
            dash = "--" if shape.dashed else "-"
            axes.plot(xs, ys, dash, color=COLORS[shape.color][0], linewidth=shape.width)
        case Dot():
            color = COLORS[shape.color][0]
            axes.add_patch(Circle((shape.x, shape.y), shape.radius, color=color))
        case Words():
            side = {"start": "left", "middle": "center", "end": "right"}[shape.anchor]
            axes.text(
                shape.x,
                shape.y,
                shape.text.replace("$", r"\$"),
                fontsize=shape.size * 0.93,
                color=COLORS[shape.color][0],
                ha=side,
                va="baseline",
                weight="semibold" if shape.bold else "normal",
                family="monospace" if shape.mono else "sans-serif",
            )
