"""Assembly with a counter in front of each basic block."""

from convgen.backends import blocks

ASM = """
\t.text
f:
\tmovq %rdi, %rax
\t.p2align 4
.LBB0_1:
\taddq $2, %rax
\ttestq %rax, %rax
\tje .LBB0_3
\tvmulps %ymm1, %ymm2, %ymm3
.LBB0_3:
\tdecq %rcx
\tjne .LBB0_1
\tretq
\t.section\t.rodata.cst4,"aM",@progbits,4
.LCPI1_0:
\t.long 0
\t.text
f.body:
\tretq
"""


def test_blocks_begin_at_labels_and_behind_jumps():
    found, text = blocks.split(ASM)
    assert [b.symbol for b in found] == ["f"] * 6
    assert [len(b.lines) for b in found] == [1, 3, 1, 2, 1, 1]
    assert text.count("leaq 1(%rax), %rax") == 6
    rodata = text[text.index(".rodata") : text.index("\t.text\nf.body")]
    assert "%rax" not in rodata
    kept = iter(text.splitlines())
    assert all(line in kept for line in ASM.splitlines())  # in the same order


def test_the_same_instruction_in_two_blocks_adds_up():
    found, _ = blocks.split(ASM)
    counts = blocks.executed(found, [1, 5, 3, 5, 1, 2])
    assert counts["f"]["\tretq"] == 3 and counts["f"]["\tvmulps %ymm1, %ymm2, %ymm3"] == 3
    assert sum(counts["f"].values()) == 1 + 15 + 3 + 10 + 1 + 2
