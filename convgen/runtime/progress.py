"""The progress of training on a terminal: loss, accuracy, images per second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training was: mean loss, training accuracy (None without labels), images
    per second, validation accuracy where asked."""

    number: int
    loss: float
    accuracy: float | None
    images_per_second: float
    validation: float | None = None


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
        self._correct = 0.0
        self._labelled = 0
        self._count = 0

    def add(self, loss: float, correct: float | None, count: int) -> None:
        """Record a batch: its mean loss and how many of `count` samples were right (a sample with
        many labels counts by its share of right ones)."""
        self._loss += loss * count
        self._count += count
        if correct is not None:
            self._correct += correct
            self._labelled += count

    @property
    def loss(self) -> float:
        return self._loss / max(self._count, 1)

    @property
    def accuracy(self) -> float | None:
        return self._correct / self._labelled if self._labelled else None

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
