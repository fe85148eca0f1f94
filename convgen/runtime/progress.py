"""The progress of training on a terminal: loss, accuracy, images per second."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training was: mean loss, training accuracy (None without labels), images
    per second, validation accuracy and metrics where asked."""

    number: int
    loss: float
    accuracy: float | None
    images_per_second: float
    validation: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start


class Meter:
    """Running means over one epoch."""

    def __init__(self) -> None:
        self._watch = Stopwatch()
        self._loss = 0.0
        self._hits: float | None = None
        self._count = 0
        self._sums: dict[str, float] = {}

    def add(self, loss: float, accuracy: float | None, count: int, extra: dict[str, float]) -> None:
        """Record a batch of `count` samples: its mean loss, its share of hits, other metrics."""
        self._loss += loss * count
        self._count += count
        if accuracy is not None:
            self._hits = (self._hits or 0.0) + accuracy * count
        for name, value in extra.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * count

    @property
    def loss(self) -> float:
        return self._loss / max(self._count, 1)

    @property
    def accuracy(self) -> float | None:
        return None if self._hits is None else self._hits / self._count

    @property
    def metrics(self) -> dict[str, float]:
        return {name: total / self._count for name, total in self._sums.items()}

    @property
    def images_per_second(self) -> float:
        return self._count / max(self._watch.seconds, 1e-9)


class Bar:
    """A progress bar on standard error; silent when `show` is False."""

    def __init__(self, steps: int, done: int, show: bool) -> None:
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not show,
            transient=True,
            refresh_per_second=8,
        )
        self._task = self._progress.add_task("", total=steps, completed=done, epoch=0, facts="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, step: int, epoch: int, meter: Meter) -> None:
        """Show the state after a step."""
        if self._progress.disable:
            return
        facts = f"loss {meter.loss:.4f}  "
        if meter.accuracy is not None:
            facts += f"accuracy {100 * meter.accuracy:.1f} %  "
        facts += f"{meter.images_per_second:,.0f} images/s"
        self._progress.update(self._task, completed=step, epoch=epoch + 1, facts=facts)
