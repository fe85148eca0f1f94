"""Running tables of phases: alone in the calling thread, or with the pool of templates/native.

One pool serves the process. It is made when a run first asks for more than one thread, grows to
the largest number asked for, and ends with the process; a forked child starts without one. A run
that finds the pool busy with another Python thread's table runs alone: same bits, no waiting.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache as once
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Protocol

from convgen import knobs
from convgen.backends.llvm import LlvmBackend
from convgen.backends.protocol import Backend, Loaded
from convgen.errors import DataError, InternalError
from convgen.ir.layout import ALIGNMENT
from convgen.runtime import cache
from convgen.target import target

_MOST = 1024
POOL_SYMBOLS = frozenset(
    "pthread_create pthread_join pthread_mutex_init pthread_mutex_lock pthread_mutex_unlock "
    "pthread_cond_init pthread_cond_wait pthread_cond_broadcast pthread_setaffinity_np "
    "sched_getcpu sched_getaffinity sched_yield memcpy memset".split()
)
_PAUSE = {
    "x86-64": "declare void @llvm.x86.sse2.pause()\n"
    "define internal void @convgen_pause() alwaysinline {\n"
    "  call void @llvm.x86.sse2.pause()\n  ret void\n}\n",
    "aarch64": "declare void @llvm.aarch64.hint(i32)\n"
    "define internal void @convgen_pause() alwaysinline {\n"
    "  call void @llvm.aarch64.hint(i32 1)\n  ret void\n}\n",
}
_TOGETHER = "define internal void @convgen_apart(ptr %pool) {\n  ret void\n}\n"


@dataclass(frozen=True, slots=True)
class Range:
    """A phase ready to run: the tasks 0..extent-1 of the function at `address`."""

    address: int
    extent: int
    grain: int
    scratch_bytes: int
    when: str


class Ranged(Protocol):
    """Something with phases in order; a compiled kernel."""

    @property
    def ranges(self) -> tuple[Range, ...]: ...


class _Row(ctypes.Structure):
    """%convgen_row of pool.ll."""

    _fields_ = [
        ("fn", ctypes.c_void_p),
        ("args", ctypes.c_void_p),
        ("extent", ctypes.c_int64),
        ("grain", ctypes.c_int64),
        ("pad", ctypes.c_int64 * 4),
        ("done", ctypes.c_int64),
        ("chunk", ctypes.c_int64),
        ("tail", ctypes.c_int64 * 6),
    ]


_requested: int | None = None


def set_num_threads(count: int | None) -> None:
    """Threads for kernels that do not say their own; None: as CONVGEN_NUM_THREADS or the cores say.

    >>> set_num_threads(1)
    >>> thread_count()
    1
    >>> set_num_threads(None)
    """
    global _requested
    _requested = None if count is None else _checked(count)


def thread_count(threads: int | None = None) -> int:
    """The number of threads a run gets: `threads`, else what set_num_threads said, else
    CONVGEN_NUM_THREADS, else the cores this process may use. DataError unless 1 to 1024.
    """
    if threads is not None:
        return _checked(threads)
    if _requested is not None:
        return _requested
    return knobs.NUM_THREADS.value or min(target("native").cores, _MOST)


def get_num_threads() -> int:
    """The number of threads of kernels that do not say their own."""
    return thread_count()


def _checked(count: object) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _MOST:
        raise DataError(f"threads={count!r}", expected=f"1 to {_MOST}", got=repr(count))
    return count


def template(name: str) -> str:
    """A text of templates/: inside the package when installed, beside it in a checkout."""
    inside = resources.files("convgen") / "templates" / name
    if inside.is_file():
        return inside.read_text(encoding="utf-8")
    return (Path(__file__).parents[2] / "templates" / name).read_text(encoding="utf-8")


def pool_text(isa: str, system: str = "linux") -> str:
    """The pool as an LLVM module for an instruction set and a system (as in sys.platform)."""
    apart = template("native/apart.ll") if system == "linux" else _TOGETHER
    return "\n".join((template("native/pool.ll"), _PAUSE[isa], apart))


def build_pool(backend: Backend, target_name: str = "native") -> bytes:
    """The pool's object code for a target."""
    made = target(target_name)
    system = sys.platform if target_name == "native" else "linux"
    return backend.compile_text(pool_text(made.isa, system), made, POOL_SYMBOLS)[1]


def _pool_object(backend: Backend) -> bytes:
    """The pool for this machine, from the cache where it is there."""
    key = cache.key_of("pool", target("native").key(), backend.version(), cache.sources_digest())
    record = cache.load(key)
    if record is None:
        record = cache.Record({"name": "pool"}, {"object": build_pool(backend)})
        cache.store(key, record)
    return record.blobs["object"]


@dataclass(frozen=True)
class _Native:
    """The functions of pool.ll in this process. Calls release the interpreter lock."""

    library: Loaded
    pool_bytes: int
    init: ctypes._CFunctionType  # pyright: ignore[reportPrivateUsage]
    grow: ctypes._CFunctionType  # pyright: ignore[reportPrivateUsage]
    stop: ctypes._CFunctionType  # pyright: ignore[reportPrivateUsage]
    run: ctypes._CFunctionType  # pyright: ignore[reportPrivateUsage]
    alone: ctypes._CFunctionType  # pyright: ignore[reportPrivateUsage]


@once
def _native() -> _Native:
    backend = LlvmBackend()
    library = backend.load(_pool_object(backend), target("native"))
    pointer, number = ctypes.c_void_p, ctypes.c_int64

    def function(name: str, result: type | None, *args: type) -> ctypes._CFunctionType:  # pyright: ignore[reportPrivateUsage]
        return ctypes.CFUNCTYPE(result, *args)(library.address(name))

    return _Native(
        library,
        function("convgen_pool_bytes", number)(),
        function("convgen_pool_init", None, pointer),
        function("convgen_pool_grow", number, pointer, number),
        function("convgen_pool_stop", None, pointer),
        function("convgen_pool_run", None, pointer, pointer, number, pointer, number),
        function("convgen_run_alone", None, pointer, number, pointer),
    )


class _Memory:
    """Zeroed bytes that start at a multiple of 64."""

    def __init__(self, size: int) -> None:
        self._raw = (ctypes.c_char * (size + ALIGNMENT))()
        base = ctypes.addressof(self._raw)
        self.address = base + -base % ALIGNMENT
        self.size = size


class Pool:
    """Worker threads and their scratch memory."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._native = _native()
        self._memory = _Memory(self._native.pool_bytes)
        self._native.init(self._memory.address)
        self._scratch: list[_Memory] = []
        self._pointers = (ctypes.c_void_p * _MOST)()
        self.workers = 0

    def run(self, rows: int, count: int, scratch_bytes: int, threads: int) -> None:
        """Run a table; the caller holds `lock`."""
        if threads - 1 > self.workers:
            self.workers = self._native.grow(self._memory.address, threads - 1)
        threads = min(threads, self.workers + 1)
        for i in range(threads):
            if i == len(self._scratch):
                self._scratch.append(_Memory(0))
            if self._scratch[i].size < scratch_bytes:
                self._scratch[i] = _Memory(scratch_bytes)
            self._pointers[i] = self._scratch[i].address
        self._native.run(
            self._memory.address, rows, count, ctypes.addressof(self._pointers), threads
        )

    def stop(self) -> None:
        """End the workers; a later run starts them again."""
        with self.lock:
            self._native.stop(self._memory.address)
            self.workers = 0


class _Shared:
    """The pool of this process, made at first use."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a forked child the workers do not exist; their memory is left as it is."""
        self.lock = threading.Lock()
        self.pool: Pool | None = None

    def get(self) -> Pool:
        with self.lock:
            if self.pool is None:
                self.pool = Pool()
            return self.pool

    def close(self) -> None:
        if self.pool is not None:
            self.pool.stop()


_shared = _Shared()
_own = threading.local()
atexit.register(_shared.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shared.forget)


def _own_scratch(size: int) -> int:
    """Scratch of the calling thread, for runs alone."""
    memory: _Memory | None = getattr(_own, "memory", None)
    if memory is None or memory.size < size:
        memory = _own.memory = _Memory(size)
    return memory.address


class Table:
    """Kernels with their argument addresses, run in order by one native call.

    calls   (kernel, addresses of its arguments in the order of its signature), ...
    when    only phases of that time ("prepare" or "run"); None: all

    A table is used by one run at a time; concurrent runs of the same table wait for each other.
    """

    def __init__(
        self, calls: Sequence[tuple[Ranged, Sequence[int]]], when: str | None = None
    ) -> None:
        self._calls = tuple(kernel for kernel, _ in calls)  # keeps the machine code loaded
        self._args = [(ctypes.c_void_p * max(len(a), 1))(*a) for _, a in calls]
        picked = [
            (r, args)
            for (kernel, _), args in zip(calls, self._args, strict=True)
            for r in kernel.ranges
            if (when is None or r.when == when) and r.extent > 0
        ]
        self.count = len(picked)
        self._memory = _Memory(ctypes.sizeof(_Row) * max(self.count, 1))
        self._rows = (_Row * max(self.count, 1)).from_address(self._memory.address)
        for row, (r, args) in zip(self._rows, picked, strict=False):
            row.fn, row.args = r.address, ctypes.addressof(args)
            row.extent, row.grain = r.extent, max(r.grain, 1)
        self.scratch_bytes = max((r.scratch_bytes for r, _ in picked), default=0)
        self.parallel = any(r.extent > max(r.grain, 1) for r, _ in picked)
        self._lock = threading.Lock()

    def arguments(self, call: int) -> ctypes.Array[ctypes.c_void_p]:
        """The addresses of a call's arguments, as memory that may be written between runs."""
        return self._args[call]

    def bind(self, call: int, addresses: Sequence[int]) -> None:
        """Give a call other argument addresses; not while the table runs."""
        if len(addresses) != len(self._args[call]) and addresses:
            raise InternalError(
                f"call {call}: expected {len(self._args[call])} addresses, got {len(addresses)}"
            )
        for i, address in enumerate(addresses):
            self._args[call][i] = address

    def alone(self) -> Callable[[], object]:
        """A call that runs all rows in the calling thread, with scratch of its own. Neither locked
        nor checked: for one caller at a time, who has no time to lose."""
        scratch = _Memory(self.scratch_bytes)
        rows = ctypes.c_void_p(self._memory.address)
        run = partial(
            _native().alone, rows, ctypes.c_int64(self.count), ctypes.c_void_p(scratch.address)
        )
        self._alone = scratch, run  # kept as long as the table
        return run

    def run(self, threads: int | None = None) -> None:
        """Run all rows; `threads` as for `thread_count`."""
        if self.count == 0:
            return
        with self._lock:
            # Asking for the number of threads takes as long as a small kernel.
            count = thread_count(threads) if self.parallel and threads != 1 else 1
            if count > 1:
                pool = _shared.get()
                if pool.lock.acquire(blocking=False):
                    try:
                        pool.run(self._memory.address, self.count, self.scratch_bytes, count)
                    finally:
                        pool.lock.release()
                    return
            scratch = _own_scratch(self.scratch_bytes)
            _native().alone(self._memory.address, self.count, scratch)
