"""Pictures of maps over images, as PNG files through matplotlib (extra ``plot`` or ``demo``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.errors import DataError
from convgen.inspect.learning import new_figure, save_figure

Array = NDArray[Any]


def as_picture(image: Array) -> Array:
    """An image (C, H, W), or (H, W), as (H, W) grey or (H, W, 3) from 0 to 1; channels other than
    3 become their mean.

    >>> as_picture(np.array([[[2.0, 4.0]]])).tolist()
    [[0.0, 1.0]]
    """
    data = np.asarray(image, np.float64)
    if data.ndim == 3:
        data = data.transpose(1, 2, 0) if data.shape[0] == 3 else data.mean(axis=0)
    low, high = float(data.min()), float(data.max())
    return (data - low) / (high - low or 1.0)


def overlay(
    images: Array, maps: Array, path: Path, titles: Sequence[str] = (), title: str = ""
) -> Path:
    """Heat maps (N, y, x) of any size over images (N, C, H, W), side by side; each map has its own
    scale. DataError when their numbers differ."""
    if len(images) != len(maps):
        raise DataError("maps", expected=f"{len(images)}, one an image", got=str(len(maps)))
    figure = new_figure(1.6 * len(images), 2.1)
    for i, axes in enumerate(figure.subplots(1, len(images), squeeze=False).flat):
        picture = as_picture(images[i])
        height, width = picture.shape[:2]
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(picture, cmap="gray", extent=extent)
        axes.imshow(maps[i], cmap="jet", alpha=0.45, extent=extent, interpolation="bilinear")
        axes.axis("off")
        axes.set_title(titles[i] if i < len(titles) else "", fontsize=8)
    figure.suptitle(title, fontsize=9)
    return save_figure(figure, path)


def rows(
    pictures: dict[str, Array], path: Path, title: str = "", columns: Sequence[str] = ()
) -> Path:
    """Labelled rows of pictures: name -> (N, H, W) or (N, C, H, W); values with both signs in red
    and blue around zero, others in grey."""
    count = max(len(p) for p in pictures.values())
    figure = new_figure(1.2 * count + 1, 1.2 * len(pictures) + 0.4)
    grid = figure.subplots(len(pictures), count, squeeze=False)
    for line, (name, images) in zip(grid, pictures.items(), strict=True):
        for i, axes in enumerate(line):
            axes.set(xticks=[], yticks=[])
            if i >= len(images):
                axes.axis("off")
                continue
            data = np.asarray(images[i], np.float64)
            limit = float(np.abs(data).max()) or 1.0
            if data.min() < 0 < data.max() and not (data.ndim == 3 and data.shape[0] == 3):
                flat = data.mean(axis=0) if data.ndim == 3 else data
                axes.imshow(flat, cmap="RdBu_r", vmin=-limit, vmax=limit)
            else:
                axes.imshow(as_picture(data), cmap="gray")
            if line is grid[0] and i < len(columns):
                axes.set_title(columns[i], fontsize=8)
        line[0].set_ylabel(name, fontsize=8)
    figure.suptitle(title, fontsize=9)
    return save_figure(figure, path)
