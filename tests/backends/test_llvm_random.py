"""Random loops of many programs: machine code gives what the interpreter gives, bit for bit, for
any cut of the tasks into calls, in any order."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Mapping

import numpy as np
import pytest
import small_programs
from loose_schedules import scheduled

from convgen.backends import llvm
from convgen.ir.interpret import interpret
from convgen.ir.nodes import Buffer, Form, Kernel, Store
from convgen.ir.visit import map_stmt
from convgen.passes.flatten import flatten
from convgen.passes.lower import lower
from convgen.passes.math import expand, legalize
from convgen.symbolic.program import Program
from convgen.target import Target, runs_here, target

LEVELS = [t for t in map(target, ("x86-64-v2", "x86-64-v3", "x86-64-v4")) if runs_here(t)] or [
    target()
]
PROGRAMS: dict[str, Program] = {
    "strided_window": small_programs.window("zero"),
    "reflected_window": small_programs.window("reflect", 1),
    "extremum_with_place": small_programs.extremum_with_place(),
    "two_stages": small_programs.two_stages(),
    "residue_pieces": small_programs.residue_pieces(),
    "triangle": small_programs.triangle(),
    "tiled": small_programs.tiled(),
    "blocks": small_programs.blocks(),
    "constants": small_programs.constants(),
    "padded_by_a_stage": small_programs.padded_by_a_stage(),
    "scalar": small_programs.scalar(),
    "chosen": small_programs.chosen(),
    "own_reduction": small_programs.own_reduction(),
    "same_axes_twice": small_programs.same_axes_twice(),
    "truths": small_programs.truths(),
}


def sample(kernel: Kernel, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def values(buffer: Buffer) -> np.ndarray:
        if buffer.dtype.is_float:
            return rng.normal(size=buffer.shape).astype(buffer.dtype.numpy_name)
        return rng.integers(0, 2 if buffer.dtype.kind == "bool" else 9, buffer.shape).astype(
            buffer.dtype.numpy_name
        )

    return {b.name: values(b) for b in kernel.buffers if b.role == "input"}


def native(
    kernel: Kernel, given: Mapping[str, np.ndarray], machine: Target, chance: random.Random
) -> dict[str, np.ndarray]:
    """Run every phase in a few calls that share its tasks, in random order."""
    artifact = llvm.compile_kernel(kernel, machine)
    library = llvm.load(artifact.object, machine)
    dtypes = {b.name: b.dtype.numpy_name for b in kernel.buffers}
    memory: dict[str, np.ndarray] = {}
    for argument in artifact.signature:
        raw = np.full(argument.bytes + 64, 0xAB if argument.role == "output" else 0, np.uint8)
        start = -raw.ctypes.data % 64
        memory[argument.name] = raw[start : start + argument.bytes].view(dtypes[argument.name])
        if argument.role == "input":
            memory[argument.name][:] = given[argument.name].ravel()
    pointers = (ctypes.c_void_p * len(memory))(*(a.ctypes.data for a in memory.values()))
    scratch = np.zeros(artifact.scratch_bytes + 64, np.uint8)
    own = scratch.ctypes.data + -scratch.ctypes.data % 64
    for entry in artifact.entries:
        call = ctypes.CFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
        )(library.address(entry.symbol))
        cuts = sorted({0, entry.extent, *(chance.randint(0, entry.extent) for _ in range(3))})
        spans = list(zip(cuts, cuts[1:], strict=False))
        chance.shuffle(spans)
        for begin, end in spans:
            call(pointers, own, begin, end)
    return {
        a.name: memory[a.name].reshape(a.shape) for a in artifact.signature if a.role == "output"
    }


def made(name: str, seed: int, machine: Target) -> Kernel:
    kernel = flatten(scheduled(lower(PROGRAMS[name]), seed), machine)
    return legalize(expand(kernel, machine), machine)


def differences(name: str, kernel: Kernel, given: dict[str, np.ndarray], seed: int) -> list[str]:
    machine = LEVELS[seed % len(LEVELS)]
    want = interpret(made(name, seed, machine), given)
    got = native(kernel, given, machine, random.Random(seed))
    return [n for n, a in got.items() if not np.array_equal(a, want[n].reshape(a.shape))]


@pytest.mark.parametrize("name", PROGRAMS)
def test_machine_code_gives_what_the_interpreter_gives(name: str) -> None:
    for seed in range(4):
        kernel = made(name, seed, LEVELS[seed % len(LEVELS)])
        assert not differences(name, kernel, sample(kernel, seed), seed), seed


def test_a_wrong_stride_would_be_seen() -> None:
    """The same comparison finds a kernel whose stores go elsewhere."""
    kernel = made("strided_window", 0, LEVELS[0])

    def spoil(stmt):
        if isinstance(stmt, Store):
            return Store(stmt.buffer, stmt.offset, 0, stmt.value, min(stmt.valid, 1))
        return stmt

    phases = tuple(
        type(p)(p.name, map_stmt(p.body, spoil), p.extent, p.grain, p.scratch_bytes, p.when)  # type: ignore[arg-type]
        for p in kernel.phases
    )
    spoiled = Kernel(kernel.name, kernel.buffers, phases, Form.FLAT)
    found = [
        differences("strided_window", spoiled, sample(kernel, seed), seed) for seed in range(3)
    ]
    assert any(found)
