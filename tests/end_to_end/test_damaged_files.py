"""Files that are cut, damaged, foreign or half written: a clear error, and nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import convgen as cg
from convgen import knobs


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    with knobs.override(CACHE_DIR=tmp_path_factory.mktemp("cache")):
        yield


SAVER = """
import numpy as np, sys, convgen as cg
net = cg.compile(cg.nn.Sequential(cg.nn.Linear(300, 300)), input=(4, 300), mode="infer")
state = net.state_dict()
print("ready", flush=True)
for step in range(100000):
    net.load_state_dict({k: np.full_like(v, step) for k, v in state.items()})
    net.save(sys.argv[1])
"""


def environment() -> dict[str, str]:
    paths = os.pathsep.join(p for p in sys.path if p)
    return {**os.environ, "PYTHONPATH": paths, "CONVGEN_CACHE": "0"}


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_kill_during_saving_loses_nothing(tmp_path: Path) -> None:
    """Whenever the writer dies, the file is one of those it wrote, whole."""
    path = tmp_path / "net.convgen"
    whole = 0
    for number in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(path)], env=environment(), stdout=subprocess.PIPE
        )
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        limit = time.monotonic() + 20
        while not path.exists() and time.monotonic() < limit:
            time.sleep(0.005)
        time.sleep(0.03 + 0.017 * number)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        arrays = cg.load(path, mode="infer").state_dict().values()
        values = {v for a in arrays for v in np.unique(a).tolist()}
        assert len(values) == 1
        whole += 1
    assert whole == 3


def test_damaged_and_foreign_networks(tmp_path: Path) -> None:
    net = cg.compile(cg.nn.Sequential(cg.nn.Linear(4, 3)), input=(2, 4), mode="infer")
    path = tmp_path / "net.convgen"
    net.save(path)
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    cases = {
        "empty": b"",
        "half": good[: len(good) // 2],
        "short": good[:-1],
        "header": good[:7],
        "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "noise": rng.bytes(500),
        "huge header": b"\xff" * 8 + good[8:],
        "other": good.replace(b"convgen", b"konvgen"),
    }
    for name, data in cases.items():
        bad = tmp_path / name
        bad.write_bytes(data)
        with pytest.raises(cg.DataError) as caught:
            cg.load(bad)
        assert str(bad) in str(caught.value)
    with pytest.raises(cg.DataError):
        cg.load(tmp_path / "missing")
    with pytest.raises(cg.DataError):
        cg.load(tmp_path)
    # a header that says other things than the program wrote
    for old, new in [(b"Linear", b"Lineal"), (b'\\"version\\": 1', b'\\"version\\": 9')]:
        assert old in good
        (tmp_path / "changed").write_bytes(good.replace(old, new))
        with pytest.raises(cg.UserError):
            cg.load(tmp_path / "changed")


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    """One byte changed anywhere: the same network, other weights, or a DataError."""
    net = cg.compile(cg.nn.Sequential(cg.nn.Linear(2, 2)), input=(1, 2), mode="infer")
    path = tmp_path / "net.convgen"
    net.save(path)
    good = path.read_bytes()
    rng = np.random.default_rng(2)
    for place in rng.integers(0, len(good), 40):
        data = bytearray(good)
        data[place] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(data))
        try:
            cg.load(path, mode="infer")
        except cg.UserError:
            continue


IDX = b"\0\0\x08\x02\0\0\0\x03\0\0\0\x02" + bytes(6)


@pytest.mark.parametrize("cut", range(len(IDX)))
def test_truncated_idx(cut: int, tmp_path: Path) -> None:
    from convgen.runtime.data.files import load_idx

    path = tmp_path / "file"
    path.write_bytes(IDX)
    assert load_idx(path).shape == (3, 2)
    path.write_bytes(IDX[:cut])
    with pytest.raises(cg.DataError, match="IDX"):
        load_idx(path)


def test_idx_headers_that_ask_for_everything(tmp_path: Path) -> None:
    """Extents of 2**32 each in a file of 100 bytes are refused without any memory."""
    from convgen.runtime.data.files import load_idx

    path = tmp_path / "file"
    path.write_bytes(b"\0\0\x0e\xff" + b"\xff" * 1020)
    with pytest.raises(cg.DataError, match="does not fit its header"):
        load_idx(path)
