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
import stat
import struct
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any

import platformdirs

from convgen import knobs
from convgen.errors import DataError

try:
    import fcntl
except ImportError:  # no advisory locks there; renaming alone keeps records whole
    fcntl = None  # type: ignore[assignment]

_MAGIC = b"convgen record 1\n"
_SUFFIX = ".record"
CERTIFICATE = ".certificate"  # what was checked of the kernel of that key
DETAILS = ".details"  # what its report says of it
TUNED = ".tuned"  # what a search measured; it stands by itself
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
    for folder in (str(package), str(package.parent / "templates" / "native")):
        for path in _sources(folder):
            total.update(path.removeprefix(folder).encode() + b"\0")
            with open(path, "rb", buffering=0) as file:
                total.update(hashlib.sha256(file.read()).digest())
    return total.hexdigest()


def _sources(folder: str) -> list[str]:
    """Paths of the sources under a folder, sorted."""
    return sorted(
        os.path.join(inside, name)
        for inside, _, names in os.walk(folder)
        for name in names
        if name.endswith((".py", ".ll"))
    )


def folder() -> Path | None:
    """The cache folder, made if need be; None when the cache is off or the folder cannot be
    trusted: not a folder, not the user's own, or open to others and not to be closed. Where the
    user chose that folder, a warning says so, once. A folder that others may enter has other uses
    (/tmp): the cache is a closed folder in it.
    """
    try:
        return require_folder()
    except DataError as error:
        if knobs.CACHE.value and knobs.CACHE_DIR.value is not None:
            _warn(f"compiled kernels are not kept: {error}")
        return None


@once
def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)


def require_folder() -> Path:
    """The cache folder, or a DataError that says why there is none."""
    if not knobs.CACHE.value:
        raise DataError("the cache is off", got="CONVGEN_CACHE=0")
    chosen = knobs.CACHE_DIR.value or Path(platformdirs.user_cache_dir("convgen"))
    try:
        chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = _closed(chosen) if hasattr(os, "getuid") else chosen
        reason = "it is not your own"
    except OSError as error:
        place, reason = None, error.strerror or str(error)
    if place is None:
        raise DataError(
            f"the cache folder {chosen} cannot be used: {reason}",
            expected="a folder of your own",
            hint="CONVGEN_CACHE_DIR=FOLDER",
        )
    return place


def _closed(place: Path) -> Path | None:
    """The folder, or one in it where others may enter the folder itself; None where that is not the
    user's own."""
    facts = place.stat()
    if facts.st_mode & 0o077:
        place = place / "convgen"
        place.mkdir(mode=0o700, exist_ok=True)
        facts = place.lstat()  # a link could lead anywhere
    if facts.st_uid != os.getuid() or not stat.S_ISDIR(facts.st_mode):
        return None
    if facts.st_mode & 0o077:
        place.chmod(0o700)
    return place


def load(key: str, suffix: str = _SUFFIX) -> Record | None:
    """The record of that key, or None when there is none that verifies."""
    place = folder()
    if place is None:
        return None
    try:
        path = place / (key + suffix)
        if hasattr(os, "getuid") and path.lstat().st_uid != os.getuid():
            return None
        return _decode(path.read_bytes(), key)
    except OSError:
        return None


def keys() -> list[str]:
    """The keys of all records and certificates, whether they verify or not."""
    place = folder()
    if place is None:
        return []
    found = {p.stem for p in place.iterdir() if p.suffix in (_SUFFIX, CERTIFICATE)}
    return sorted(found)


def has(key: str, suffix: str = _SUFFIX) -> bool:
    """True when there is a file for that key, whether it verifies or not."""
    place = folder()
    return place is not None and (place / (key + suffix)).exists()


def remove(key: str, suffix: str = _SUFFIX) -> None:
    """Forget the file of that key."""
    place = folder()
    if place is not None:
        with contextlib.suppress(OSError), _locked(place):
            (place / (key + suffix)).unlink()


def unverified_facts(key: str) -> Mapping[str, Any] | None:
    """The facts of a record whose digest fails, if they can still be read. Nothing in them is to be
    believed that does not prove itself."""
    place = folder()
    try:
        body = (place / (key + _SUFFIX)).read_bytes()[len(_MAGIC) + 32 :] if place else b""
        (length,) = struct.unpack_from("<Q", body)
        header = json.loads(body[8 : 8 + length])
        return dict(header["facts"]) if header["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


def store(key: str, record: Record, suffix: str = _SUFFIX) -> bool:
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
                os.replace(name, place / (key + suffix))
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
            elif path.suffix in (_SUFFIX, TUNED):
                records.append((path.stat().st_mtime, path))
    for _, path in sorted(records)[: max(0, len(records) - _MOST + 1)]:
        with contextlib.suppress(OSError):
            path.unlink()
            for other in (CERTIFICATE, DETAILS):
                path.with_suffix(other).unlink(missing_ok=True)
