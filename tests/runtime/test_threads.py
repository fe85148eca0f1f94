"""The pool: every task once, for any number of threads, callers and forks."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest

from convgen import knobs
from convgen.affine import ZERO, Affine
from convgen.backends import llvm
from convgen.backends.llvm.elf import undefined_symbols
from convgen.backends.protocol import Loaded
from convgen.errors import DataError
from convgen.ir.nodes import (
    Block,
    Buffer,
    Const,
    For,
    Form,
    Index,
    Kernel,
    Layout,
    Op,
    Phase,
    Store,
    VectorLoad,
)
from convgen.runtime import threads
from convgen.runtime.threads import Range, Table, set_num_threads, thread_count
from convgen.target import target
from convgen.types import i64


@dataclass
class Compiled:
    ranges: tuple[Range, ...]
    library: Loaded


def counting_kernel(extent: int, grain: int = 1, passes: int = 3) -> Compiled:
    """Each pass p does Y[i] = Y[i]*3 + i + S where scratch S is written first: a task run twice,
    never, or before the pass ahead of it has ended shows in the result."""
    out = Buffer("Y", i64, (extent,), Layout.rowmajor(1), "output")
    scratch = Buffer("S", i64, (4,), Layout.rowmajor(1), "scratch")
    i = Index(Affine.of("i"))
    mirrored = Index(Affine.of("i") * -1 + (extent - 1))
    phases = []
    for p in range(passes):
        at = mirrored if p % 2 else i
        once = Op("mul", (VectorLoad("Y", at, 1, i64, 1, 1), Const(3, i64)), i64)
        kept = VectorLoad("S", Index(ZERO), 1, i64, 1, 1)
        body = Block(
            (
                Store("S", Index(ZERO), 1, at, 1),
                Store("Y", at, 1, Op("add", (once, kept), i64), 1),
            )
        )
        phases.append(
            Phase(
                f"p{p}", For("i", Affine.of("begin"), Affine.of("end"), 1, body), extent, grain, 32
            )
        )
    kernel = Kernel("count", (out, scratch), tuple(phases), Form.FLAT)
    made = target()
    artifact = llvm.compile_kernel(kernel, made)
    library = llvm.load(artifact.object, made)
    ranges = tuple(
        Range(library.address(e.symbol), e.extent, e.grain, e.scratch_bytes, e.when)
        for e in artifact.entries
    )
    return Compiled(ranges, library)


def expected(extent: int, passes: int = 3) -> np.ndarray:
    y = np.zeros(extent, np.int64)
    for _ in range(passes):
        y = y * 3 + np.arange(extent)
    return y


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_task_runs_once_and_phases_wait_for_each_other(count: int) -> None:
    for extent, grain in ((1, 1), (7, 1), (1000, 16), (100_000, 1)):
        kernel = counting_kernel(extent, grain)
        y = np.zeros(extent, np.int64)
        table = Table([(kernel, [y.ctypes.data])])
        for _ in range(20):
            y[:] = 0
            table.run(count)
            np.testing.assert_array_equal(y, expected(extent))


def signing_kernel(extent: int) -> Compiled:
    """Two passes of Y[p, i] = S, where S is what the scratch of the worker holds."""
    out = Buffer("Y", i64, (2 * extent,), Layout.rowmajor(1), "output")
    scratch = Buffer("S", i64, (4,), Layout.rowmajor(1), "scratch")
    phases = []
    for p in range(2):
        kept = VectorLoad("S", Index(ZERO), 1, i64, 1, 1)
        place = Index(Affine.of("i") + p * extent)
        body = For("i", Affine.of("begin"), Affine.of("end"), 1, Store("Y", place, 1, kept, 1))
        phases.append(Phase(f"p{p}", body, extent, 1, 32))
    kernel = Kernel("sign", (out, scratch), tuple(phases), Form.FLAT)
    artifact = llvm.compile_kernel(kernel, target())
    library = llvm.load(artifact.object, target())
    ranges = tuple(
        Range(library.address(e.symbol), e.extent, e.grain, e.scratch_bytes, e.when)
        for e in artifact.entries
    )
    return Compiled(ranges, library)


@pytest.mark.parametrize("count", [2, 3])
def test_a_worker_comes_back_to_its_part_of_every_phase(count: int) -> None:
    extent = 240_000
    y = np.zeros((2, extent), np.int64)
    table = Table([(signing_kernel(extent), [y.ctypes.data])])
    table.run(count)
    pool = threads._shared.get()  # pyright: ignore[reportPrivateUsage]
    for v in range(count):
        ctypes.c_int64.from_address(pool._scratch[v].address).value = v  # pyright: ignore[reportPrivateUsage]
    seen: set[int] = set()
    for _ in range(50):
        y[:] = -1
        table.run(count)
        for v, part in enumerate(np.split(y, count, axis=1)):
            own = part == v
            # Others have taken nothing, or chunks from the end.
            assert (own[:, :-1] >= own[:, 1:]).all()
            seen |= set(part[own].tolist())
    assert seen == set(range(count))


def test_calls_of_a_table_run_in_order_and_can_be_bound_again() -> None:
    kernel = counting_kernel(5000)
    y, z = np.zeros(5000, np.int64), np.zeros(5000, np.int64)
    table = Table([(kernel, [y.ctypes.data]), (kernel, [y.ctypes.data])])
    table.run(2)
    np.testing.assert_array_equal(y, expected(5000, 6))
    table.bind(0, [z.ctypes.data])
    table.bind(1, [z.ctypes.data])
    table.run(2)
    np.testing.assert_array_equal(z, y)


def test_several_python_threads_at_once() -> None:
    kernel = counting_kernel(20_000)
    wrong: list[int] = []

    def work() -> None:
        y = np.zeros(20_000, np.int64)
        table = Table([(kernel, [y.ctypes.data])])
        for _ in range(30):
            y[:] = 0
            table.run(2)
            if not np.array_equal(y, expected(20_000)):
                wrong.append(1)

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_workers_wake_up_after_they_slept() -> None:
    kernel = counting_kernel(2000)
    y = np.zeros(2000, np.int64)
    table = Table([(kernel, [y.ctypes.data])])
    for _ in range(3):
        y[:] = 0
        table.run(2)
        np.testing.assert_array_equal(y, expected(2000))
        threading.Event().wait(0.02)


def processor_seconds() -> float:
    """Processor time of all threads of this process."""
    used = os.times()
    return used.user + used.system


def test_idle_workers_use_no_processor() -> None:
    kernel = counting_kernel(2000)
    y = np.zeros(2000, np.int64)
    table = Table([(kernel, [y.ctypes.data])])
    table.run(3)
    threading.Event().wait(0.1)  # some hundred microseconds of waiting loops, then sleep
    before = processor_seconds()
    threading.Event().wait(0.5)
    assert processor_seconds() - before < 0.1  # two spinning workers would use a second
    y[:] = 0
    table.run(3)
    np.testing.assert_array_equal(y, expected(2000))


def test_the_interpreter_runs_while_kernels_do() -> None:
    kernel = counting_kernel(1 << 22)
    y = np.zeros(1 << 22, np.int64)
    table = Table([(kernel, [y.ctypes.data])] * 40)
    inside, finished = threading.Event(), threading.Event()

    def work() -> None:
        inside.set()
        table.run(1)
        finished.set()

    caller = threading.Thread(target=work)
    caller.start()
    inside.wait()
    steps = 0
    while not finished.is_set():
        steps += 1
    caller.join()
    assert steps > 100  # with the interpreter locked there would be a few


def test_a_pool_that_is_in_use_makes_nobody_wait() -> None:
    kernel = counting_kernel(3000)
    y = np.zeros(3000, np.int64)
    table = Table([(kernel, [y.ctypes.data])])
    table.run(2)
    pool = threads._shared.get()  # pyright: ignore[reportPrivateUsage]
    with pool.lock:  # another thread's table is running
        y[:] = 0
        table.run(2)
    np.testing.assert_array_equal(y, expected(3000))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_while_the_pool_is_in_use() -> None:
    kernel = counting_kernel(3000)
    y = np.zeros(3000, np.int64)
    table = Table([(kernel, [y.ctypes.data])])
    table.run(2)
    with threads._shared.get().lock:  # pyright: ignore[reportPrivateUsage]
        child = os.fork()
        if child == 0:
            fresh = Table([(kernel, [y.ctypes.data])])
            y[:] = 0
            fresh.run(2)
            os._exit(0 if np.array_equal(y, expected(3000)) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_makes_its_own_workers() -> None:
    kernel = counting_kernel(3000)
    y = np.zeros(3000, np.int64)
    table = Table([(kernel, [y.ctypes.data])])
    table.run(2)
    child = os.fork()
    if child == 0:
        y[:] = 0
        table.run(2)
        os._exit(0 if np.array_equal(y, expected(3000)) else 1)
    assert os.waitpid(child, 0)[1] == 0
    y[:] = 0
    table.run(2)
    np.testing.assert_array_equal(y, expected(3000))


def test_one_thread_starts_no_worker() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import threading, os\n"
        "import numpy as np\n"
        "from test_threads import counting_kernel, Table\n"
        "y = np.zeros(100, np.int64)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "t = Table([(counting_kernel(100), [y.ctypes.data])])\n"
        "t.run(1); assert len(os.listdir('/proc/self/task')) == before\n"
        "t.run(3); assert len(os.listdir('/proc/self/task')) == before + 2\n"
    )
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("threads are counted in /proc")
    folders = [os.path.dirname(__file__), *(p for p in sys.path if p)]
    subprocess.run([sys.executable, "-c", code, *folders], check=True, timeout=60)


def test_sleeping_workers_wake_up_away_from_the_caller() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import os, time\n"
        "import numpy as np\n"
        "from test_threads import counting_kernel, Table\n"
        "tasks = lambda: set(map(int, os.listdir('/proc/self/task')))\n"
        "y = np.zeros(100, np.int64)\n"
        "t = Table([(counting_kernel(100), [y.ctypes.data])])\n"
        "before = tasks()\n"
        "t.run(2)\n"
        "worker, = tasks() - before\n"
        "everywhere = os.sched_getaffinity(0)\n"
        "for home in sorted(everywhere)[:2]:\n"
        "    os.sched_setaffinity(0, {home}); time.sleep(0.05); os.sched_setaffinity(0, everywhere)\n"
        "    t.run(2)\n"
        "    left, = everywhere - os.sched_getaffinity(worker)\n"
        "    seen = open(f'/proc/self/task/{os.getpid()}/stat').read().rsplit(')', 1)[1].split()[36]\n"
        "    assert left in (home, int(seen)), (left, home, seen)\n"
        "os.sched_setaffinity(0, {0} & everywhere or everywhere); time.sleep(0.05); t.run(2)\n"
    )
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors and their masks")
    folders = [os.path.dirname(__file__), *(p for p in sys.path if p)]
    subprocess.run([sys.executable, "-c", code, *folders], check=True, timeout=60)


def test_how_many_threads() -> None:
    assert thread_count(3) == 3
    set_num_threads(2)
    try:
        assert thread_count() == 2
    finally:
        set_num_threads(None)
    with knobs.override(NUM_THREADS=5):
        assert thread_count() == 5
    assert thread_count() >= 1
    for bad in (0, -1, 5000, 1.5, True):
        with pytest.raises(DataError, match="expected 1 to 1024"):
            thread_count(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["x86-64-v2", "aarch64"])
def test_the_pool_needs_threads_and_nothing_else(name: str) -> None:
    data = threads.build_pool(llvm.LlvmBackend(), name)
    assert all(s.startswith(("pthread_", "sched_")) for s in undefined_symbols(data))
