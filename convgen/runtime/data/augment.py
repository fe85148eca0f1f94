"""Random changes of image batches (N, C, H, W): shift, flip, crop, colour jitter.

Each is called with a batch and a generator and returns a new batch; the generator decides all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.errors import DataError

Array = NDArray[Any]


def _window(batch: Array, corners: Array, height: int, width: int) -> Array:
    """Windows of one size whose corners differ from image to image."""
    rows = corners[:, :1] + np.arange(height)
    columns = corners[:, 1:] + np.arange(width)
    images = np.arange(len(batch))[:, None, None]
    picked = batch.transpose(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]]
    return picked.transpose(0, 3, 1, 2)


class RandomShift:
    """Each image is moved by up to `pixels` in each direction; what comes in is `fill`."""

    def __init__(self, pixels: int, fill: float = 0.0) -> None:
        if pixels < 0:
            raise DataError(f"shift by {pixels}", expected="at least 0")
        self.pixels, self.fill = pixels, fill

    def __call__(self, batch: Array, generator: np.random.Generator) -> Array:
        p = self.pixels
        moves = generator.integers(-p, p + 1, (len(batch), 2))
        padded = np.pad(batch, ((0, 0), (0, 0), (p, p), (p, p)), constant_values=self.fill)
        return _window(padded, p - moves, *batch.shape[2:])


class RandomFlip:
    """Each image is mirrored left to right with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, batch: Array, generator: np.random.Generator) -> Array:
        chosen = generator.random(len(batch)) < self.p
        out = batch.copy()
        out[chosen] = out[chosen, :, :, ::-1]
        return out


class RandomCrop:
    """A window of `size` (height, width) at a random place of each image, after `padding` zeros
    were put around it."""

    def __init__(self, size: tuple[int, int], padding: int = 0) -> None:
        self.size, self.padding = size, padding

    def __call__(self, batch: Array, generator: np.random.Generator) -> Array:
        p = self.padding
        padded = np.pad(batch, ((0, 0), (0, 0), (p, p), (p, p)))
        room = [have - want for have, want in zip(padded.shape[2:], self.size, strict=True)]
        if min(room) < 0:
            raise DataError(
                f"crop of {self.size} from padded images",
                expected=f"at most {padded.shape[2:]}",
            )
        corners = np.stack([generator.integers(0, r + 1, len(batch)) for r in room], axis=1)
        return _window(padded, corners, *self.size)


class ColourJitter:
    """Brightness, contrast and saturation of each image times a factor within 1 ± the given
    amount; values stay within 0..1."""

    def __init__(
        self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0
    ) -> None:
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation

    def __call__(self, batch: Array, generator: np.random.Generator) -> Array:
        def factors(amount: float) -> Array:
            drawn = generator.uniform(1 - amount, 1 + amount, (len(batch), 1, 1, 1))
            return drawn.astype(batch.dtype)

        out = batch * factors(self.brightness)
        middle = out.mean(axis=(1, 2, 3), keepdims=True)
        out = middle + (out - middle) * factors(self.contrast)
        grey = out.mean(axis=1, keepdims=True)
        out = grey + (out - grey) * factors(self.saturation)
        return np.clip(out, 0, 1).astype(batch.dtype)
