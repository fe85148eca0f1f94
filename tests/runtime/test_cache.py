"""The disk cache: what is found again, what is refused, what a kill leaves."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from convgen import knobs
from convgen.errors import DataError, UserError
from convgen.runtime import build, cache
from convgen.runtime.cache import Record
from convgen.runtime.kernel import compile
from convgen.runtime.verify import verify_cache
from convgen.symbolic import dsl
from convgen.symbolic.program import Program

RECORD = Record({"name": "a", "sizes": [1, 2]}, {"object": b"\0code", "asm": b""})


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path):
    with knobs.override(CACHE_DIR=tmp_path / "cache", CACHE=True):
        yield


def folder() -> Path:
    found = cache.folder()
    assert found is not None
    return found


def program(factor: int = 2) -> Program:
    y, x = dsl.axes("y x")
    a = dsl.tensor("A", (4, 6))
    return dsl.define("B", [y, x], factor * a[y, x] + 1)


def test_a_record_comes_back_as_it_was() -> None:
    key = cache.key_of("a")
    assert cache.load(key) is None
    assert cache.store(key, RECORD)
    assert cache.load(key) == RECORD
    assert cache.load(cache.key_of("b")) is None
    assert stat.S_IMODE(folder().stat().st_mode) == 0o700


def test_off_means_off() -> None:
    with knobs.override(CACHE=False):
        assert not cache.store(cache.key_of("a"), RECORD)
        assert cache.load(cache.key_of("a")) is None
        assert cache.folder() is None


@pytest.mark.parametrize("where", ["magic", "digest", "header", "end", "short", "empty", "foreign"])
def test_a_damaged_record_counts_as_absent(where: str) -> None:
    key = cache.key_of("a")
    cache.store(key, RECORD)
    path = folder() / f"{key}.record"
    data = bytearray(path.read_bytes())
    if where in ("magic", "digest", "header", "end"):
        data[{"magic": 0, "digest": 20, "header": 70, "end": -1}[where]] ^= 1
    elif where == "short":
        del data[len(data) // 2 :]
    else:
        data = bytearray(b"" if where == "empty" else b"\x80\x04cos\nsystem\n")
    path.write_bytes(bytes(data))
    assert cache.load(key) is None
    assert cache.store(key, RECORD)
    assert cache.load(key) == RECORD


def test_a_record_under_another_name_is_not_taken() -> None:
    key, other = cache.key_of("a"), cache.key_of("b")
    cache.store(key, RECORD)
    os.rename(folder() / f"{key}.record", folder() / f"{other}.record")
    assert cache.load(other) is None


def test_a_folder_open_to_others_is_left_as_it_is(tmp_path: Path) -> None:
    """It may be /tmp: the cache is a closed folder in it, never a link to somewhere else."""
    outer = folder()
    outer.chmod(0o777)
    assert folder() == outer / "convgen" and stat.S_IMODE(outer.stat().st_mode) == 0o777
    for _ in range(2):
        assert stat.S_IMODE(folder().stat().st_mode) == 0o700
        folder().chmod(0o755)
    assert cache.store("a", RECORD) and cache.load("a") == RECORD
    folder().rename(tmp_path / "elsewhere")
    (outer / "convgen").symlink_to(tmp_path / "elsewhere")
    assert cache.folder() is None


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs to change the owner")
def test_a_folder_or_record_of_somebody_else_is_not_used() -> None:
    key = cache.key_of("a")
    cache.store(key, RECORD)
    path = folder() / f"{key}.record"
    os.chown(path, 12345, 12345)
    assert cache.load(key) is None
    os.chown(path.parent, 12345, 12345)
    assert cache.folder() is None


def test_a_folder_that_cannot_be_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with knobs.override(CACHE_DIR=tmp_path / "file" / "below"):
        assert cache.folder() is None
        assert not cache.store(cache.key_of("a"), RECORD)
        np.testing.assert_array_equal(
            compile(program())(np.ones((4, 6), np.float32)), np.full((4, 6), 3)
        )


def test_leftovers_of_killed_writers_are_removed() -> None:
    old, fresh = folder() / ".old.tmp", folder() / ".fresh.tmp"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    cache.store(cache.key_of("a"), RECORD)
    assert not old.exists()
    assert fresh.exists()


@pytest.mark.parametrize("suffix", [".record", cache.TUNED])
def test_the_oldest_records_go_first(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MOST", 3)
    keys = [cache.key_of(i) for i in range(5)]
    for age, key in enumerate(keys):
        cache.store(key, RECORD, suffix)
        os.utime(folder() / f"{key}{suffix}", (1000 + age, 1000 + age))
    assert [cache.load(k, suffix) is not None for k in keys] == [False, False, True, True, True]


WRITER = """
import sys
from convgen.runtime import cache
from convgen.runtime.cache import Record
print("ready", flush=True)
n = 0
while True:
    n += 1
    cache.store(cache.key_of(n % 3), Record({"n": n}, {"object": bytes([n % 256]) * 200_000}))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_kill_during_writes_loses_nothing() -> None:
    environment = {
        **os.environ,
        "CONVGEN_CACHE_DIR": str(folder()),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    seen = 0
    for round_ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER], env=environment, stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.02 + 0.011 * round_)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        for path in folder().glob("*.record"):
            record = cache.load(path.stem)
            assert record is not None
            assert record.blobs["object"] == bytes([record.facts["n"] % 256]) * 200_000
            seen += 1
        assert cache.store(
            cache.key_of(1), Record({"n": 1}, {"object": b"\1" * 200_000})
        )  # the lock is free again
    assert seen


def test_a_warm_start_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cold = compile(program())
    assert not cold.report().from_cache

    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(build, "_compile", refuse)
    warm = compile(program())
    assert warm.report().from_cache
    assert (warm.schedule, warm.loops, warm.llvm, warm.asm) == (
        cold.schedule,
        cold.loops,
        cold.llvm,
        cold.asm,
    )
    a = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_array_equal(warm(a), cold(a))
    for other in (
        lambda: compile(program(3)),
        lambda: compile(program(), schedule="vectorize(x)"),
        lambda: compile(program(), target="x86-64-v2"),
    ):
        with pytest.raises(AssertionError, match="compiled again"):
            other()


def test_stages_that_are_asked_for_are_made_anew(tmp_path: Path) -> None:
    build.build_program(program())
    assert build.build_program(program()).from_cache
    with knobs.override(VERIFY=1):
        assert not build.build_program(program()).from_cache
    with knobs.override(DUMP=tmp_path / "stages"):
        build.build_program(program())
        build.build_program(program(5))
    place, other = (tmp_path / "stages").iterdir()
    assert place.name[:-6] == other.name[:-6]
    names = sorted(f.name.split("-")[1].split(".")[0] for f in place.iterdir())
    assert names == sorted(
        ["lower", "schedule", "flatten", "math", "legalize", "interleave", "optimized", "assembly"]
    )
    (tmp_path / "taken").write_text("")
    with knobs.override(DUMP=tmp_path / "taken"), pytest.raises(UserError, match="CONVGEN_DUMP"):
        build.build_program(program())


def test_a_changed_source_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    compile(program())
    monkeypatch.setattr(cache, "sources_digest", lambda: "other")
    assert not compile(program()).report().from_cache


def test_a_damaged_kernel_is_rebuilt() -> None:
    compile(program())
    for path in folder().glob("*.record"):
        path.write_bytes(path.read_bytes()[:-9])
    again = compile(program())
    assert not again.report().from_cache
    np.testing.assert_array_equal(again(np.ones((4, 6), np.float32)), np.full((4, 6), 3))
    assert compile(program()).report().from_cache


HASHED = """
import sys
from convgen.runtime.build import build_program
from convgen.symbolic import dsl
n, k, c, y, x, r, s = dsl.axes("n k c y x r s")
X, W = dsl.tensor("X", (2, 3, 9, 10)), dsl.tensor("W", (5, 3, 3, 3))
body = dsl.sum_over([c, r, s], X[n, c, y + r - 1, x + s - 1] * W[k, c, r, s])
built = build_program(dsl.define("Y", [n, k, y, x], body, extents={y: 9, x: 10}), "x86-64-v3")
sys.stdout.buffer.write(built.object + built.text("llvm").encode())
"""


def test_the_same_bytes_whatever_the_hash_seed() -> None:
    found: set[bytes] = set()
    for seed in ("0", "1", "4242"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "CONVGEN_CACHE": "0",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        found.add(
            subprocess.run(
                [sys.executable, "-c", HASHED], env=environment, check=True, capture_output=True
            ).stdout
        )
    assert len(found) == 1


def test_a_folder_that_is_a_file_is_said_once_and_does_without(tmp_path: Path) -> None:
    """Nothing was said, and `convgen verify` found a cache without records."""
    (tmp_path / "file").write_text("")
    with knobs.override(CACHE_DIR=tmp_path / "file"):
        with pytest.warns(UserWarning, match="not kept: the cache folder .*file cannot be used"):
            kernel = compile(program())
        assert kernel(np.ones((4, 6), np.float32))[0, 0] == 3
        with pytest.raises(DataError, match=r"cannot be used: File exists; .* try CONVGEN_CACHE"):
            next(verify_cache())
    with knobs.override(CACHE=False), pytest.raises(DataError, match="the cache is off"):
        next(verify_cache())
