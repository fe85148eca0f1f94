"""Compiled kernels on disk, so that a warm start compiles nothing.

A record is one file: a magic line, the SHA-256 of the rest, then a JSON header and named blobs
(object code, texts). Files lie in a folder of the user's own (mode 0700, ownership checked), are
written under a lock to a temporary name and renamed into place, and are verified on every load.
What does not verify counts as absent and is built and written again. Nothing is ever executed or
unpickled from a record before it has verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any

import platformdirs

from convgen import knobs

try:
    import fcntl
except ImportError:  # no advisory locks there; renaming alone keeps records whole
    fcntl = None  # type: ignore[assignment]

_MAGIC = b"convgen record 1\n"
_SUFFIX = ".record"
_STALE = 3600.0  # seconds after which a temporary file of a killed process is removed
_MOST = 2048  # records kept; the oldest go first


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of a kernel: facts as JSON, and blobs by name."""

    facts: Mapping[str, Any]
    blobs: Mapping[str, bytes]


def key_of(*parts: object) -> str:
    """A key from everything a kernel depends on.

    >>> key_of("program", 1) == key_of("program", 1) != key_of("program", 2)
    True
    """
    text = json.dumps([*parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@once
def sources_digest() -> str:
    """SHA-256 of convgen's own sources: another version finds no old kernels."""
    package = Path(__file__).parents[1]
    total = hashlib.sha256()
    folders = [package, package.parent / "templates" / "native"]
    for folder in folders:
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.ll")]):
            total.update(str(path.relative_to(folder)).encode() + b"\0")
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def folder() -> Path | None:
    """The cache folder, made if need be; None when the cache is off or the folder cannot be
    trusted: not a folder, not the user's own, or open to others and not to be closed.
    """
    if not knobs.CACHE.value:
        return None
    chosen = knobs.CACHE_DIR.value or Path(platformdirs.user_cache_dir("convgen"))
    try:
        chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = chosen.stat()
        if hasattr(os, "getuid"):
            if facts.st_uid != os.getuid():
                return None
            if facts.st_mode & 0o077:
                chosen.chmod(0o700)
    except OSError:
        return None
    return chosen if chosen.is_dir() else None


def load(key: str) -> Record | None:
    """The record of that key, or None when there is none that verifies."""
    place = folder()
    if place is None:
        return None
    try:
        path = place / (key + _SUFFIX)
        if hasattr(os, "getuid") and path.lstat().st_uid != os.getuid():
            return None
        return _decode(path.read_bytes(), key)
    except OSError:
        return None


def store(key: str, record: Record) -> bool:
    """Keep a record; False when that is not possible (cache off, disk full): never an error."""
    place = folder()
    if place is None:
        return False
    data = _encode(record, key)
    try:
        with _locked(place):
            _tidy(place)
            handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=place)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, place / (key + _SUFFIX))
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
    except OSError:
        return False
    return True


def _encode(record: Record, key: str) -> bytes:
    sizes = [[name, len(blob)] for name, blob in record.blobs.items()]
    facts = {"key": key, "facts": record.facts, "blobs": sizes}
    header = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    body = struct.pack("<Q", len(header)) + header + b"".join(record.blobs.values())
    return _MAGIC + hashlib.sha256(body).digest() + body


def _decode(data: bytes, key: str) -> Record | None:
    start = len(_MAGIC) + 32
    body = data[start:]
    if not data.startswith(_MAGIC) or hashlib.sha256(body).digest() != data[len(_MAGIC) : start]:
        return None
    (length,) = struct.unpack_from("<Q", body)
    header = json.loads(body[8 : 8 + length])
    if header["key"] != key:
        return None
    blobs: dict[str, bytes] = {}
    position = 8 + length
    for name, size in header["blobs"]:
        blobs[name] = body[position : position + size]
        position += size
    return Record(header["facts"], blobs)


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One writer at a time; the lock goes with the process that holds it, however it ends."""
    with open(place / ".lock", "a+b") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tidy(place: Path) -> None:
    """Remove what killed writers left, and the oldest records beyond the limit."""
    now = time.time()
    records: list[tuple[float, Path]] = []
    for path in place.iterdir():
        with contextlib.suppress(OSError):
            if path.suffix == ".tmp" and now - path.stat().st_mtime > _STALE:
                path.unlink()
            elif path.suffix == _SUFFIX:
                records.append((path.stat().st_mtime, path))
    for _, path in sorted(records)[: max(0, len(records) - _MOST + 1)]:
        with contextlib.suppress(OSError):
            path.unlink()
