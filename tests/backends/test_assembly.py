"""Reading assembly: hot loops, loads, spills; x86-64 and AArch64."""

from __future__ import annotations

import pytest

from convgen.backends import llvm
from convgen.backends.assembly import functions, hot_loop
from convgen.bench.cases import CASES
from convgen.passes import pipeline
from convgen.target import target

X86 = """
f:
\tvmovups (%rdi), %zmm0
.LBB0_1:
\tmovq $4, %rcx
.LBB0_2:
\tvmovups 64(%rsi,%rax), %zmm1
\tvfmadd231ps (%rdi){1to16}, %zmm1, %zmm2
\ttestq %rdx, %rdx
\tje .LBB0_4
\tvfmadd231ps %zmm3, %zmm1, %zmm4
.LBB0_4:
\tvmovups 128(%rsp), %zmm5
\tvfnmadd213ps 64(%rsp), %zmm1, %zmm5
\tvmovaps %zmm5, 128(%rsp)
\tvmovups %zmm6, (%r8)
\tprefetcht0 (%rsi)
\tdecq %rcx
\tjne .LBB0_2
\tjne .LBB0_1
\tretq
.Lfunc_end0:
f.body:
\tvaddps %ymm1, %ymm2, %ymm3
\tretq
g:
\tretq
"""

ARM = """
f:
.LBB0_1:
\tld1 { v0.4s }, [x1], #16
\tldr q1, [x2]
\tldr q2, [sp, #32]
\tfmla v3.4s, v0.4s, v1.s[0]
\tfmla v4.4s, v0.4s, v2.s[0]
\tstr q4, [x3]
\tadd x4, x4, #1
\tcbnz x4, .LBB0_1
\tret
"""


def test_innermost_loop_with_branches_inside() -> None:
    found = hot_loop(X86)
    assert found is not None and found.label == ".LBB0_2"
    assert len(found.fused) == 3 and found.instructions == 12
    assert found.loads == 4  # the stores and the prefetch are none
    assert found.spills == 3
    assert (found.stores, found.width) == ((64, 64), 64)


def test_arm() -> None:
    found = hot_loop(ARM)
    assert found is not None and (len(found.fused), found.instructions) == (2, 8)
    assert (found.loads, found.spills) == (3, 1)
    assert (found.stores, found.width) == ((16,), 16)


def test_functions_with_their_parts() -> None:
    found = functions(X86)
    assert found.keys() == {"f", "g"}
    assert "vaddps" in found["f"] and hot_loop(found["g"]) is None
    straight = hot_loop("f.body:\n\tvaddps %ymm1, %ymm2, %ymm3\n\tretq\n")
    assert straight is not None and straight.instructions == 2 and not straight.fused


@pytest.mark.parametrize("where", ["x86-64-v4", "x86-64-v3", "aarch64"])
def test_the_hot_loop_of_a_kernel_holds_its_tile(where: str) -> None:
    """Multiply-adds of a tile of M x N vectors, with M + N loads, as the schedule says."""
    machine = target(where)
    flat = pipeline.build(
        CASES["go3"].program("forward", "nhwc"),
        f"split(k, {2 * machine.vector_bits // 32}); cover(x, 4, 3); "
        "reorder(n, y, x_out, k_out, r, s, c, x_in, k_in); pack(X); pack(W, k_in); unroll(x_in); "
        "vectorize(k_in); carry()",
        machine,
    )
    artifact = llvm.compile_kernel(flat, machine)
    found = hot_loop(functions(artifact.asm)["go3_Y"])
    assert found is not None
    rows = len(found.fused) / 2
    assert rows in (3, 4)  # the two heights of the cover
    assert found.loads <= 2 + rows and found.spills == 0
