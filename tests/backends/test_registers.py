"""Register discipline, read from the assembly: the hot loops keep their states in registers and
load no more than the tile needs."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from convgen.backends import llvm
from convgen.bench.cases import CASES
from convgen.passes import pipeline
from convgen.target import target

VECTOR = re.compile(r"%[yz]mm\d+")


@dataclass(frozen=True)
class Hot:
    """The innermost loop with the most multiply-adds: their number, loads of memory (operands of
    multiply-adds too), vectors kept in memory: stores (a sum has none in its loops) and loads from
    the stack."""

    fma: int
    loads: int
    spills: int


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
    stack = [line for line in loads if "(%rsp" in line]
    return Hot(sum(line.startswith("vf") for line in vectors), len(loads), len(stores) + len(stack))


def assembly_of(case: str, which: str, where: str) -> str:
    machine = target(where)
    flat = pipeline.build(CASES[case].program(which, "nhwc"), None, machine)
    return llvm.LlvmBackend().assembly(llvm.compile_kernel(flat, machine).ir, machine)


DENSE = [
    ("vgg3_2", "forward"),
    ("go3", "forward"),
    ("go3", "input"),
    ("res4_3x3", "weights"),
    ("res2_1x1", "forward"),
    ("res3_s2", "input"),
    ("b16_res3", "weights"),
]


@pytest.mark.parametrize("where", ["x86-64-v4", "x86-64-v3"])
@pytest.mark.parametrize(("case", "which"), DENSE)
def test_no_spills_and_few_loads(case: str, which: str, where: str) -> None:
    hot = hot_loop(assembly_of(case, which, where))
    most = 0.67 if where == "x86-64-v4" else 1.0  # (M + N) / (M*N) of the tiles, slack for pointers
    assert hot.fma > 8, hot  # as many as are under way: two a cycle, four cycles each
    assert hot.spills == 0, hot
    assert hot.loads <= most * hot.fma, hot


def test_a_tile_too_large_is_seen() -> None:
    """A loop that keeps a state on the stack fails."""
    text = ".L:\n vmovups 64(%rsp), %zmm1\n vfmadd231ps (%rax), %zmm1, %zmm2\n jne .L\n"
    assert hot_loop(text) == Hot(1, 2, 1)
