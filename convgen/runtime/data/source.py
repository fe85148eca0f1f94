"""Where training samples come from: arrays, folders of images, or a function."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from convgen.errors import DataError

Array = NDArray[Any]
Change = Callable[[Array, np.random.Generator], Array]
T = TypeVar("T")


class Source(Protocol):
    """`count` samples, any of which can be asked for together.

    `batch(indices, generator)` gives (inputs (N, ...), targets (N, ...)); all its chance comes from
    the generator, so that a batch is the same whenever it is made.
    """

    @property
    def count(self) -> int: ...

    def batch(self, indices: Array, generator: np.random.Generator) -> tuple[Array, Array]: ...


class Arrays:
    """Samples in memory; `augment` changes each batch of inputs."""

    def __init__(self, x: Array, y: Array, augment: Change | None = None) -> None:
        if len(x) != len(y):
            raise DataError("inputs and targets differ in number", got=f"{len(x)} and {len(y)}")
        self.x, self.y, self.augment = x, y, augment

    @property
    def count(self) -> int:
        return len(self.x)

    def batch(self, indices: Array, generator: np.random.Generator) -> tuple[Array, Array]:
        x = self.x[indices]
        return (x if self.augment is None else self.augment(x, generator)), self.y[indices]


class Generated:
    """Samples made when they are needed: make(indices, generator) -> (inputs, targets)."""

    def __init__(
        self, count: int, make: Callable[[Array, np.random.Generator], tuple[Array, Array]]
    ) -> None:
        if count < 1:
            raise DataError(f"count {count}", expected="at least 1")
        self.count, self.batch = count, make


class ImageFolder:
    """Images in one folder for each class (Pillow; extra ``plot`` or ``demo`` brings it).

    `classes` are the folders' names in order. Images are scaled so that they cover `size`, the
    middle is cut out, channels first, 0..1. Files are opened when a batch needs them.
    """

    ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")

    def __init__(
        self,
        root: str | Path,
        size: tuple[int, int],
        *,
        grey: bool = False,
        augment: Change | None = None,
    ) -> None:
        self.root, self.size, self.grey, self.augment = Path(root), size, grey, augment
        if not self.root.is_dir():
            raise DataError("no such folder", where=str(root))
        self.classes = sorted(p.name for p in self.root.iterdir() if p.is_dir())
        self.files: list[tuple[Path, int]] = []
        for label, name in enumerate(self.classes):
            for path in sorted((self.root / name).iterdir()):
                if path.suffix.lower() in self.ENDINGS:
                    self.files.append((path, label))
        if not self.files:
            raise DataError(
                "no images", where=str(root), expected="folders of classes with image files"
            )

    @property
    def count(self) -> int:
        return len(self.files)

    def load(self, path: Path) -> Array:
        """One image (C, H, W), float32 in 0..1; DataError names a file that is no image."""
        try:
            from PIL import Image, ImageOps, UnidentifiedImageError
        except ImportError:
            raise DataError("image folders need Pillow", hint="pip install pillow") from None
        height, width = self.size
        try:
            with Image.open(path) as image:
                flat = ImageOps.fit(image.convert("L" if self.grey else "RGB"), (width, height))
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise DataError(
                "not a readable image", where=str(path), got=type(error).__name__
            ) from None
        pixels = np.asarray(flat, np.float32) / np.float32(255)
        return pixels[None] if self.grey else pixels.transpose(2, 0, 1)

    def batch(self, indices: Array, generator: np.random.Generator) -> tuple[Array, Array]:
        chosen = [self.files[int(i)] for i in indices]
        images = np.stack([self.load(path) for path, _ in chosen])
        if self.augment is not None:
            images = self.augment(images, generator)
        return images, np.array([label for _, label in chosen], np.int64)


class Prefetch(Generic[T]):
    """make(start), make(start + 1), ... make(stop - 1), computed ahead by a thread of its own.

    At most `depth` results wait. What make raises is raised to the reader at its place.
    """

    def __init__(self, make: Callable[[int], T], start: int, stop: int, depth: int = 2) -> None:
        self._make, self._start, self._stop = make, start, stop
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="convgen-prefetch", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        for number in range(self._start, self._stop):
            try:
                item: tuple[T | None, BaseException | None] = (self._make(number), None)
            except BaseException as error:  # handed to the reader
                item = (None, error)
            while not self._closed.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self._closed.is_set() or item[1] is not None:
                return

    def __iter__(self) -> Iterator[T]:
        for _ in range(self._start, self._stop):
            value, error = self._queue.get()
            if error is not None:
                raise error
            yield value  # type: ignore[misc]

    def close(self) -> None:
        """Stop the thread; results not read are dropped."""
        self._closed.set()
        self._thread.join()


def compose(*changes: Change) -> Change:
    """One augmentation after another."""

    def apply(batch: Array, generator: np.random.Generator) -> Array:
        for change in changes:
            batch = change(batch, generator)
        return batch

    return apply


def one_hot(labels: Sequence[int] | Array, classes: int) -> Array:
    """Rows of zeros with a one at the label.

    >>> one_hot([2, 0], 3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    return np.eye(classes, dtype=np.float32)[np.asarray(labels)]
