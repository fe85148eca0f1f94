"""Loaders of MNIST and CIFAR-10 on small files written here."""

import gzip
import struct

import numpy as np
import pytest

from convgen.errors import DataError
from convgen.runtime.data import load_cifar10, load_idx, load_mnist


def idx_bytes(array):
    codes = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
    head = bytes([0, 0, codes[array.dtype.name], array.ndim])
    return (
        head
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float32", "float64"])
def test_idx_round_trip(tmp_path, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    path = tmp_path / "a"
    path.write_bytes(idx_bytes(array))
    loaded = load_idx(path)
    assert loaded.dtype == array.dtype and np.array_equal(loaded, array)


@pytest.mark.parametrize("packed", [False, True])
def test_mnist(tmp_path, packed):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.uint8)
    labels = np.array([3, 1, 4, 1, 5], np.uint8)
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        data = idx_bytes(array)
        (tmp_path / (name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
    x, y = load_mnist(tmp_path)
    assert x.shape == (5, 1, 28, 28) and x.dtype == np.float32 and y.tolist() == labels.tolist()
    assert np.array_equal(x[:, 0], images.astype(np.float32) / np.float32(255))
    with pytest.raises(DataError, match="not found"):
        load_mnist(tmp_path, "test")


def test_idx_refusals(tmp_path):
    good = idx_bytes(np.zeros((3, 4), np.uint8))
    cases = {
        "truncated": (good[:-1], "does not fit its header"),
        "long": (good + b"x", "does not fit its header"),
        "foreign": (b"\x89PNG\r\n", "not an IDX file"),
        "header": (good[:6], "header is truncated"),
        "empty": (b"", "not an IDX file"),
        "gzip": (gzip.compress(good)[:-9], "damaged or truncated"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            load_idx(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        load_idx(tmp_path / "missing")


def test_cifar10(tmp_path):
    rng = np.random.default_rng(1)
    records = rng.integers(0, 256, (4, 3073)).astype(np.uint8)
    records[:, 0] = [0, 9, 5, 2]
    (tmp_path / "data_batch_1.bin").write_bytes(records[:3].tobytes())
    (tmp_path / "data_batch_2.bin").write_bytes(records[3:].tobytes())
    x, y = load_cifar10(tmp_path)
    assert x.shape == (4, 3, 32, 32) and y.tolist() == [0, 9, 5, 2]
    assert x[1, 2, 3, 4] == np.float32(records[1, 1 + 2 * 1024 + 3 * 32 + 4]) / np.float32(255)
    records[0, 0] = 10
    (tmp_path / "test_batch.bin").write_bytes(records.tobytes())
    with pytest.raises(DataError, match="label above 9"):
        load_cifar10(tmp_path, "test")
    (tmp_path / "test_batch.bin").write_bytes(records.tobytes()[:-1])
    with pytest.raises(DataError, match="not a CIFAR-10"):
        load_cifar10(tmp_path, "test")
