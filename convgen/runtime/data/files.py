"""Readers of data set files. Every file is checked before a single number is used."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.errors import DataError

# IDX type codes (yann.lecun.com/exdb/mnist): big-endian items.
_IDX_TYPES: dict[int, str] = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MNIST = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_CIFAR_RECORD = 1 + 3 * 32 * 32


def _read(path: Path) -> bytes:
    """The bytes of a file, unpacked if it is gzip (by its content, not its name)."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            "the gzip data is damaged or truncated", where=str(path), got=str(error)
        ) from None
    except OSError as error:
        raise DataError("the file cannot be read", where=str(path), got=str(error)) from None


def load_idx(path: str | Path) -> NDArray[Any]:
    """An array from an IDX file (also gzip), in native byte order.

    Raises DataError for what is not IDX, and for files shorter or longer than their header says.
    """
    path = Path(path)
    raw = _read(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES:
        raise DataError(
            "not an IDX file", where=str(path), expected="bytes 0 0 TYPE RANK", got=raw[:4].hex(" ")
        )
    rank = raw[3]
    if len(raw) < 4 + 4 * rank:
        raise DataError("the IDX header is truncated", where=str(path), got=f"{len(raw)} bytes")
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    dtype = np.dtype(_IDX_TYPES[raw[2]])
    expected = dtype.itemsize
    for extent in shape:
        expected *= extent
    body = raw[4 + 4 * rank :]
    if len(body) != expected:
        raise DataError(
            "the IDX data does not fit its header",
            where=str(path),
            expected=f"{expected} bytes for shape {list(shape)}",
            got=f"{len(body)} bytes",
        )
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _mnist_file(folder: Path, stem: str) -> Path:
    names = [stem, stem.replace("-idx", ".idx")]
    for name in [n + end for n in names for end in ("", ".gz")]:
        if (folder / name).exists():
            return folder / name
    raise DataError(f"MNIST file {stem}[.gz] not found", where=str(folder))


def load_mnist(folder: str | Path, part: str = "train") -> tuple[NDArray[Any], NDArray[Any]]:
    """(images float32 (N, 1, 28, 28) in 0..1, labels int64 (N,)) from MNIST's IDX files.

    part: "train" or "test". Raises DataError when files are missing, damaged or do not match.
    """
    if part not in _MNIST:
        raise DataError(f"part {part!r}", expected="'train' or 'test'")
    root = Path(folder)
    image_file, label_file = (_mnist_file(root, stem) for stem in _MNIST[part])
    images, labels = load_idx(image_file), load_idx(label_file)
    if images.ndim != 3 or images.dtype != np.uint8:
        raise DataError(
            "not MNIST images",
            where=str(image_file),
            expected="uint8 of rank 3",
            got=str(images.shape),
        )
    if labels.shape != images.shape[:1]:
        raise DataError(
            "images and labels differ in number",
            where=str(label_file),
            expected=str(images.shape[0]),
            got=str(labels.shape),
        )
    scaled = images[:, None].astype(np.float32) / np.float32(255)
    return scaled, labels.astype(np.int64)


def load_cifar10(folder: str | Path, part: str = "train") -> tuple[NDArray[Any], NDArray[Any]]:
    """(images float32 (N, 3, 32, 32) in 0..1, labels int64 (N,)) from CIFAR-10's binary version:
    records of one label byte and 3072 bytes red, green, blue, row by row.

    Reads data_batch_*.bin ("train") or test_batch.bin ("test"). Raises DataError for missing files,
    sizes that are no multiple of a record, labels above 9.
    """
    root = Path(folder)
    pattern = {"train": "data_batch_*.bin", "test": "test_batch.bin"}.get(part)
    if pattern is None:
        raise DataError(f"part {part!r}", expected="'train' or 'test'")
    files = sorted(root.glob(pattern))
    if not files:
        raise DataError(f"no file {pattern}", where=str(root))
    parts: list[NDArray[Any]] = []
    for path in files:
        raw = _read(path)
        if not raw or len(raw) % _CIFAR_RECORD:
            raise DataError(
                "not a CIFAR-10 binary file",
                where=str(path),
                expected=f"a multiple of {_CIFAR_RECORD} bytes",
                got=str(len(raw)),
            )
        records = np.frombuffer(raw, np.uint8).reshape(-1, _CIFAR_RECORD)
        if records[:, 0].max() > 9:
            raise DataError("label above 9", where=str(path), got=str(int(records[:, 0].max())))
        parts.append(records)
    records = np.concatenate(parts)
    images = records[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / np.float32(255)
    return images, records[:, 0].astype(np.int64)
