"""Every access of the flat statements is proved inside its buffer, and no other is."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loose_schedules import scheduled
from random_programs import random_program, sample
from small_programs import PROGRAMS

from convgen.affine import Affine
from convgen.errors import InternalError
from convgen.ir.interpret import interpret
from convgen.ir.nodes import Const, If, Kernel, Register, Stmt
from convgen.layers import convolution, pooling, unpooling
from convgen.passes.flatten import flatten
from convgen.passes.flatten.proof import affine_bounds
from convgen.passes.flatten.reach import survey_memory
from convgen.passes.lower import lower
from convgen.passes.pipeline import build
from convgen.symbolic.derive import grad
from convgen.symbolic.parse import parse
from convgen.target import target

TARGETS = ["x86-64-v2", "x86-64-v4", "aarch64"]


def convolved(**options):
    return convolution.Conv2d(6, 8, 3, **options).program((2, 6, 13, 17))


LAYERS = {
    "strided": lambda: convolved(stride=2, padding=1, groups=2),
    "dilated": lambda: convolved(padding=2, dilation=2),
    "reflect": lambda: convolved(padding=2, padding_mode="reflect"),
    "replicate": lambda: convolved(padding=1, padding_mode="replicate"),
    "circular": lambda: convolved(padding=1, padding_mode="circular"),
    "transposed": lambda: convolution.ConvTranspose2d(5, 7, 3, stride=2).program((2, 5, 9, 9)),
    "max pool": lambda: pooling.MaxPool2d(3, stride=2, padding=1).program((2, 5, 13, 13)),
    "correlation": lambda: parse(
        "Y[n, i, j, y, x] = sum(c: A[n, c, y, x] * B[n, c, y + i - 2, x + j - 2]) for i < 5, j < 5",
        A=(2, 8, 12, 12), B=(2, 8, 12, 12),
    ),
    "triangle": lambda: parse("Y[i] = sum(j where j <= i: T[i, j])", T=(37, 37)),
    "blocks": lambda: parse("Y[i, j] = T[j, i] + T[i // 2, j % 3]", T=(37, 37)),
}  # fmt: skip


@pytest.mark.parametrize("wanted", TARGETS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_their_gradients(name, wanted):
    program = LAYERS[name]()
    for made in (program, grad(program)):
        found = survey_memory(build(lower(made), None, wanted))
        assert found.unproved == () and found.proved > 3


def test_unpooling_with_windows_that_overlap():
    for layer in (unpooling.MaxUnpool2d(2), unpooling.MaxUnpool2d(3, stride=2, padding=1)):
        program = layer.program((1, 3, 5, 5), (1, 3, 5, 5))
        assert survey_memory(build(lower(program), None, "x86-64-v4")).unproved == ()


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_use_every_part_of_the_language(name):
    for wanted in TARGETS:
        assert survey_memory(build(lower(PROGRAMS[name]()), None, wanted)).unproved == ()


def parts(kernel: Kernel) -> list[str]:
    return [b.name for b in kernel.buffers if b.role == "input"]


def leaves(kernel: Kernel, seed: int, given) -> bool:
    """True when running the kernel leaves a buffer."""
    try:
        interpret(kernel, given, seed=seed)
    except InternalError:
        return True
    return False


@pytest.mark.parametrize("block", range(4))
def test_random_programs_and_what_shrunken_buffers_do(block):
    """All is proved for right kernels; where a buffer is too small and a run leaves it, not."""
    missed = found = 0
    for seed in range(block * 12, block * 12 + 12):
        program = random_program(seed)
        kernel = lower(program)
        for flat in (
            build(kernel, None, random.Random(seed).choice(TARGETS)),
            flatten(scheduled(kernel, seed), target("x86-64-v3")),
        ):
            missed += len(survey_memory(flat).unproved)
            name = random.Random(seed).choice(parts(flat))
            shape = next(b.shape for b in flat.buffers if b.name == name)
            dim = min(range(len(shape)), key=lambda d: (shape[d] < 2, shape[d]))
            cut = tuple(max(1, e // 2) if d == dim else e for d, e in enumerate(shape))
            small = tuple(replace(b, shape=cut) if b.name == name else b for b in flat.buffers)
            broken = replace(flat, buffers=small)
            given = sample(program, seed)
            given[name] = given[name][tuple(map(slice, cut))].copy()
            if leaves(broken, seed, given):
                found += 1
                assert survey_memory(broken).unproved, (seed, name)
    assert missed == 0 and found > 2


def without_conditions(stmt: Stmt) -> Stmt:
    """Every If decided: true."""
    if isinstance(stmt, If):
        return replace(
            stmt, condition=Const(True, stmt.condition.dtype), then=without_conditions(stmt.then)
        )
    if hasattr(stmt, "body"):
        inner = stmt.body
        if isinstance(inner, tuple):
            return replace(stmt, body=tuple(map(without_conditions, inner)))
        return replace(stmt, body=without_conditions(inner))
    return stmt


def without_masks(stmt: Stmt) -> Stmt:
    """Every vector load reads all its lanes."""
    if isinstance(stmt, If):
        orelse = None if stmt.orelse is None else without_masks(stmt.orelse)
        return replace(stmt, then=without_masks(stmt.then), orelse=orelse)
    if hasattr(stmt, "body"):
        inner = stmt.body
        if isinstance(inner, tuple):
            return replace(stmt, body=tuple(map(without_masks, inner)))
        return replace(stmt, body=without_masks(inner))
    value = stmt.value
    if getattr(value, "mask", None) is not None and isinstance(value.mask, Register):
        return replace(stmt, value=replace(value, mask=None))
    return stmt


@pytest.mark.parametrize("mutate", [without_conditions, without_masks])
def test_mutants_are_not_proved(mutate):
    flat = build(lower(LAYERS["strided"]()), None, "x86-64-v4")
    broken = replace(flat, phases=tuple(replace(p, body=mutate(p.body)) for p in flat.phases))
    assert broken != flat
    found = survey_memory(broken).unproved
    assert found and "X[" in found[0] and "wanted 0.." in found[0]


@given(
    st.lists(
        st.tuples(st.integers(2, 5), st.integers(1, 4), st.integers(-40, 40), st.integers(-80, 80)),
        min_size=1,
        max_size=3,
    )
)
def test_digits_of_several_loops_are_told_apart(parts: list[tuple[int, int, int, int]]) -> None:
    """Loops that were fused run through digits of their own: the bounds are those of the digits."""
    value, ranges = Affine((), 3), dict[str, tuple[int, int]]()
    low = high = 3
    for number, (divisor, count, times, more) in enumerate(parts):
        name = f"v{number}"
        loop = Affine.of(name)
        value = value + times * loop + more * (loop // divisor)
        ranges[name] = (0, divisor * count)
        held = [times * v + more * (v // divisor) for v in range(divisor * count)]
        low, high = low + min(held), high + max(held)
    found = affine_bounds(value, ranges)
    assert found[0] <= low and high <= found[1]
    assert found == (low, high)
