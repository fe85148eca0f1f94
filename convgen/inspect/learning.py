"""Pictures of a training: the learning curve, what the first layer learned, who was mistaken for
whom. PNG files through matplotlib (extra ``plot`` or ``demo``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.errors import DataError


def new_figure(width: float, height: float) -> Any:
    """A figure that needs no screen."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError("pictures need matplotlib", hint="pip install 'convgen[plot]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=144, metadata={"Software": "convgen"})
    return path


def learning_curve(history: Sequence[Any], path: Path, title: str = "") -> Path:
    """Loss and accuracy over epochs (`Epoch` records), side by side."""
    figure = new_figure(8, 3.2)
    left, right = figure.subplots(1, 2)
    numbers = [e.number + 1 for e in history]
    left.semilogy(numbers, [e.loss for e in history], color="#1f5fa8")
    left.set(xlabel="epoch", ylabel="training loss")
    accuracy = [np.nan if e.accuracy is None else 100 * e.accuracy for e in history]
    right.plot(numbers, accuracy, color="#1f5fa8", label="training (augmented)")
    if any(e.validation is not None for e in history):
        tested = [np.nan if e.validation is None else 100 * e.validation for e in history]
        right.plot(numbers, tested, color="#c4511d", label="test")
    right.set(xlabel="epoch", ylabel="accuracy, %")
    right.legend(loc="lower right", frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    return save_figure(figure, path)


def filters(weights: NDArray[Any], path: Path, title: str = "") -> Path:
    """The filters of a first layer, weights (K, C, R, S): one picture a filter, C of 1 in grey with
    one scale for all, C of 3 in colour."""
    count = weights.shape[0]
    columns = min(count, 8)
    rows = -(-count // columns)
    figure = new_figure(1.3 * columns, 1.3 * rows + 0.5)
    limit = float(np.abs(weights).max()) or 1.0
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if place >= count:
            continue
        if weights.shape[1] == 3:
            axes.imshow(weights[place].transpose(1, 2, 0) / (2 * limit) + 0.5)
        else:
            axes.imshow(weights[place].mean(axis=0), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_title(str(place), fontsize=8)
    figure.suptitle(title)
    return save_figure(figure, path)


def confusion(labels: NDArray[Any], guesses: NDArray[Any], path: Path, title: str = "") -> Path:
    """How often each true class (row) was taken for each class (column)."""
    classes = int(max(labels.max(initial=0), guesses.max(initial=0))) + 1
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (labels, guesses), 1)
    figure = new_figure(5, 4.6)
    axes = figure.subplots()
    axes.imshow(np.log1p(table), cmap="Blues")
    for true in range(classes):
        for guess in range(classes):
            number = int(table[true, guess])
            if number:
                dark = number > table.max() / 3
                axes.text(
                    guess, true, str(number), ha="center", va="center", fontsize=8,
                    color="white" if dark else "black",
                )  # fmt: skip
    axes.set(xlabel="network says", ylabel="digit is", xticks=range(classes), yticks=range(classes))
    axes.set_title(title)
    return save_figure(figure, path)
