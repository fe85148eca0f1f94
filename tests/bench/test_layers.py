"""Benchmarks of whole layers: the subjects, the bookkeeping, the bytes that move; no clocks."""

import ctypes

import numpy as np
import pytest
from click.testing import CliRunner

import convgen.__main__ as command_line
from convgen.backends import llvm
from convgen.bench import bounds, layers, subjects
from convgen.bench.bandwidth import KINDS, levels, moving_kernel
from convgen.bench.forkjoin import measure_fork_join, waiting_kernel
from convgen.bench.written import WRITTEN
from convgen.errors import UserError
from convgen.ir.interpret import interpret
from convgen.passes import pipeline
from convgen.runtime.build import lowered
from convgen.symbolic.derive import split
from convgen.target import target
from convgen.types import f32


def test_every_subject_has_its_peer_and_counts_its_work():
    every = (*subjects.MAPS, *subjects.EXOTIC)
    assert {one.name for one in every} == WRITTEN.keys() and len(subjects.EXOTIC) == 8
    for one in every:
        program = one.program()
        assert set(one.wrt) <= {t.name for t in program.inputs}
    assert layers.operations(subjects.relu()) == 16 * 56 * 56 * 64
    assert layers.operations(subjects.circular()) == 2 * 8 * 64 * 56 * 56 * 64 * 9


def test_unknown_cases_are_refused():
    with pytest.raises(UserError, match="no case 'bathnorm'; expected all or one of batch_norm"):
        subjects.chosen(subjects.MAPS, ("bathnorm",))


def test_a_row_agrees_with_its_peer(tmp_path):
    pytest.importorskip("torch")
    file, plot = tmp_path / "rows.json", tmp_path / "roof.svg"
    command = ["bench", "map", "--case", "average_pool", "--pass", "both", "--seconds", "0.05"]
    command += ["--against", "torch", "--json", str(file), "--plot", str(plot)]
    done = CliRunner().invoke(command_line.cli, command)
    assert done.exit_code == 0, done.output
    assert "average_pool      both" in done.output and "geometric mean" in done.output
    assert '"error"' in file.read_text() and plot.read_text().startswith("<")


@pytest.mark.parametrize("kind", KINDS)
def test_moving_kernels_move(kind):
    machine = target("native")
    lanes = machine.lanes(f32)
    x = np.arange(16 * lanes, dtype=np.float32)
    kernel = moving_kernel(kind, x.size, 3, lanes)
    want = interpret(kernel, {"X": x})["Y"]
    if kind == "copy":
        np.testing.assert_array_equal(want, x + 2)
    else:
        np.testing.assert_array_equal(want.sum(), 3 * x.sum())
    library = llvm.load(llvm.compile_kernel(kernel, machine).object, machine)
    out = np.zeros_like(want)
    entry = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2)(
        library.address(llvm.compile_kernel(kernel, machine).entries[0].symbol)
    )
    entry((ctypes.c_void_p * 2)(x.ctypes.data, out.ctypes.data), None, 0, 1)
    np.testing.assert_array_equal(out, want)


def test_levels_do_not_overlap():
    machine = target("native")
    sizes = list(levels(machine, 2).values())
    assert sizes == sorted(sizes) and sizes[0] < machine.l1 < sizes[1]


def test_fork_and_join_wait_for_every_task():
    kernel = waiting_kernel(3)
    y = interpret(kernel, {})["Y"]
    np.testing.assert_array_equal(y[::8], 8000.0)
    assert measure_fork_join(2, seconds=0.01) >= 0


def test_bytes_are_counted_once_a_stage():
    """Batch norm reads X twice and writes it once, its gradient reads two arrays twice."""
    image = 16 * 56 * 56 * 64 * 4
    machine = target("x86-64-v4")
    program = subjects.batch_norm()
    ahead, behind = split(program, ["X", "gamma", "beta"])

    def images(one):
        return bounds.moved(pipeline.scheduled(lowered(one, True), None, machine)) / image

    assert 3 <= images(program) < 3.1 and 3 <= images(ahead) < 3.1
    assert 5 <= images(behind) < 5.1
    assert 2 <= images(subjects.relu()) < 2.01
    assert 2 <= images(subjects.softmax()) < 6  # a stage inside another counts what it reads
    assert images(split(subjects.max_pool(), ["X"])[1]) == 1 + (1 + 1 / 4) / 4


def test_the_copy_takes_the_memory_of_the_arrays():
    """Batch norm reads X twice: more bytes move than there are."""
    compiled = layers.Compiled(subjects.chosen(subjects.MAPS, ("batch_norm",))[0], 1)
    image = 16 * 56 * 56 * 64 * 4
    assert compiled.footprint("forward") == 2 * image + 2 * 64 * 4
    assert 4 * image < compiled.footprint("both") < 4.01 * image
    work = compiled.work("forward")
    assert work.bytes > compiled.footprint("forward") and work.cycles > 0 and work.unit
