"""Register discipline, read from the assembly: the hot loops keep their states in registers and
load no more than the tile needs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from convgen.backends import assembly, llvm
from convgen.bench.cases import CASES, PASSES, Case
from convgen.ir.nodes import Kernel, LoopKind, Nest
from convgen.ir.regions import loop_extent
from convgen.ir.visit import loads
from convgen.passes import pipeline
from convgen.schedule.access import in_loops, tile_loops, vector_dtype
from convgen.schedule.directives.base import all_nests, is_packing
from convgen.symbolic.program import Program
from convgen.target import Target, target
from convgen.types import DType, f32, f64

VECTOR = re.compile(r"%[yz]mm\d+")


@dataclass(frozen=True)
class Hot:
    """The innermost loop with the most multiply-adds: their number, loads of memory (operands of
    multiply-adds too), vectors on the stack (stored and loaded), stores elsewhere."""

    fma: int
    loads: int
    spills: int
    stores: int = 0


def hot_loop(assembly: str) -> Hot:
    """The backward jump whose body has the most multiply-adds and no backward jump inside."""
    lines = [line.strip() for line in assembly.splitlines()]
    places = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    best = Hot(0, 0, 0)
    for end, line in enumerate(lines):
        jump = re.match(r"j\w+\s+(\.\w+)", line)
        begin = places.get(jump.group(1), end) if jump else end
        body = lines[begin:end]
        inner = any(
            (m := re.match(r"j\w+\s+(\.\w+)", one))
            and begin < places.get(m.group(1), 0) <= begin + i
            for i, one in enumerate(body)
        )
        if begin >= end or inner:
            continue
        found = counted(body)
        best = max(best, found, key=lambda h: h.fma)
    return best


def counted(body: list[str]) -> Hot:
    vectors = [line for line in body if VECTOR.search(line)]
    stores = [line for line in vectors if re.match(r"vmov\w+\s+%[yz]mm\d+, .*\(", line)]
    loads = [line for line in vectors if "(" in line and line not in stores]
    stack = [line for line in loads + stores if "(%rsp" in line]
    kept = [line for line in stores if line not in stack]
    fma = sum(line.startswith("vf") for line in vectors)
    return Hot(fma, len(loads), len(stack), len(kept))


@dataclass(frozen=True)
class Sum:
    """A nest that sums in a tile: its hot loop; how many vectors of states the tile has, and vectors
    and elements of operands that each of its reduce iterations needs; stores of results, which a
    loop around a sum that is written out holds too."""

    nest: str
    hot: Hot
    states: int
    operands: int
    results: int

    @property
    def keeps(self) -> bool:
        """States stay in registers, and no more is loaded than the tile needs."""
        stores = self.hot.stores in (0, self.results)
        return self.hot.spills == 0 and stores and self.loads_enough

    @property
    def loads_enough(self) -> bool:
        """At most (M + N) / (M * N) loads for each multiply-add of a tile of M elements by N
        vectors."""
        return self.hot.loads * self.states <= self.operands * self.hot.fma


def sums_of(case: str, which: str, dtype: DType, where: str, layout: str = "nhwc") -> Iterator[Sum]:
    """Every nest of a kernel whose hot loop holds multiply-adds of its tile."""
    return sums_in(CASES[case].program(which, layout, dtype), where)


def sums_in(program: Program, where: str) -> Iterator[Sum]:
    machine = target(where)
    stages = pipeline.build_stages(program, None, machine)
    artifact = llvm.compile_kernel(stages.flat, machine)
    texts = assembly.functions(artifact.asm)
    symbols = {e.phase: e.symbol for e in artifact.entries}
    for nest in all_nests(stages.scheduled):
        reduced = any(o.kind is LoopKind.VECTOR and o.reduce is not None for o in nest.loops)
        if is_packing(nest, stages.scheduled) or not nest.reduces or reduced:
            continue
        hot = hot_loop(texts[symbols[nest.name]])
        states, operands = tile_of(nest, stages.scheduled, machine)
        turns = [o for o in nest.loops if o.reduce is not None and o.kind is not LoopKind.UNROLL]
        results = states * len(nest.stores) if all(o.extent == 1 for o in turns) else 0
        if hot.fma:
            yield Sum(nest.name, hot, states, operands, results)


def tile_of(nest: Nest, kernel: Kernel, machine: Target) -> tuple[int, int]:
    """(vectors of the tile's states, vectors or elements of all operands along it), counted on the
    loops of the schedule."""
    lanes = machine.lanes(vector_dtype(nest, kernel))
    sizes = {
        o.name: -(-loop_extent(nest, o) // lanes)
        if o.kind is LoopKind.VECTOR
        else loop_extent(nest, o)
        for o in tile_loops(nest)
    }
    operands = 0
    for load in {o for reduce in nest.reduces for o in loads(reduce.body)}:
        names = {n for index in load.index for n in in_loops(nest, index).names()}
        operands += math.prod(size for name, size in sizes.items() if name in names)
    return math.prod(sizes.values()), operands


def wrong_with(case: str, which: str, dtype: DType, where: str) -> list[Sum]:
    """The sums of a kernel that keep vectors on the stack, or load more than their tile needs."""
    return [one for one in sums_of(case, which, dtype, where) if not one.keeps]


# What falls short, and why.
FULL = "the states and what the tile keeps take every register; LLVM loads one more ahead"
SLID = "rows that neighbouring taps share are kept beside the states of a tall tile"
SHORT = {
    ("dil2", "weights", "x86-64-v4", f32): SLID,
    ("dil2", "weights", "x86-64-v4", f64): SLID,
    ("alex1", "input", "x86-64-v3", f32): FULL,
    ("alex1", "input", "x86-64-v3", f64): FULL,
}
LEVELS = [("x86-64-v4", f32), ("x86-64-v4", f64), ("x86-64-v3", f32), ("x86-64-v3", f64)]
COVERING = [
    ("vgg3_2", "forward"),
    ("go3", "forward"),
    ("go3", "input"),
    ("res4_3x3", "weights"),
    ("res2_1x1", "forward"),
    ("res3_s2", "input"),
    ("b16_res3", "weights"),
    ("grp", "forward"),
    ("lenet2", "input"),
    ("dil2", "forward"),
]


@pytest.mark.parametrize(("where", "dtype"), LEVELS)
@pytest.mark.parametrize(("case", "which"), COVERING)
def test_no_spills_and_few_loads(case: str, which: str, where: str, dtype: DType) -> None:
    found = list(sums_of(case, which, dtype, where))
    assert found
    for one in found:
        assert one.hot.fma >= min(12, one.states), one
        assert one.keeps, one


@pytest.mark.parametrize("dtype", [f32, f64])
def test_tiles_in_two_dimensions_keep_the_taps_that_meet(dtype: DType) -> None:
    """A depthwise layer in tiles of rows and columns: of nine taps the six of two rows that meet wait
    in registers beside the sums; 16 hold both."""
    case = Case("small", 1, 32, 26, 32, 3, 1, 0, 32)
    (found,) = sums_in(case.program("forward", "nhwc", dtype), "x86-64-v3")
    assert found.states == 8 and found.hot.fma == 72 and found.hot.spills == 0, found
    assert found.hot.loads <= 6 * 4 + 2 * 9, found


@pytest.mark.parametrize(("where", "dtype"), LEVELS)
def test_masks_leave_room_for_the_states(where: str, dtype: DType) -> None:
    """Seven taps side by side fill no vector."""
    found = list(sums_of("res1", "weights", dtype, where, "nchw"))
    assert found and all(one.hot.spills == 0 for one in found), found


def test_many_points_of_one_vector_keep_their_registers() -> None:
    """Twelve states and a value of the filters: written out twice, one would not fit."""
    few = Case("few", 1, 64, 26, 8, 3, 1, 0)
    (one,) = sums_in(few.program("forward", "nhwc"), "x86-64-v3")
    assert one.hot.fma >= one.states == 12, one
    assert one.keeps, one


@pytest.mark.full
@pytest.mark.parametrize(("where", "dtype"), LEVELS)
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("case", CASES)
def test_every_case_keeps_its_registers(case: str, which: str, where: str, dtype: DType) -> None:
    found = wrong_with(case, which, dtype, where)
    reason = SHORT.get((case, which, where, dtype))
    if found and reason:
        pytest.xfail(reason)
    assert not found, found
    assert not reason, f"keeps its registers now: take it off the list ({reason})"


def test_the_report_reads_the_same_loops() -> None:
    """Two readers of assembly, the report's and this one, agree."""
    machine = target("x86-64-v4")
    flat = pipeline.build(CASES["go3"].program("input", "nhwc"), None, machine)
    text = llvm.compile_kernel(flat, machine).asm
    found, mine = assembly.hot_loop(text), hot_loop(text)
    assert found is not None
    assert (len(found.fused), found.loads, found.spills) == (mine.fma, mine.loads, mine.spills)


@pytest.mark.parametrize(("where", "most"), [("x86-64-v4", 0.33), ("x86-64-v3", 0.66)])
@pytest.mark.parametrize("which", ["forward", "input"])
def test_windows_that_slide_are_read_once(which: str, where: str, most: float) -> None:
    """Nine multiply-adds and one store for each result; neighbours share what they load."""
    (one,) = sums_of("dw3", which, f32, where)
    assert one.keeps and one.hot.stores == one.states, one
    assert one.hot.fma == 9 * one.states >= 36, one
    assert one.hot.loads <= most * one.hot.fma, one


def test_a_tile_too_large_is_seen() -> None:
    """A loop that keeps a state on the stack fails."""
    text = ".L:\n vmovups 64(%rsp), %zmm1\n vfmadd231ps (%rax), %zmm1, %zmm2\n jne .L\n"
    assert hot_loop(text) == Hot(1, 2, 1)
