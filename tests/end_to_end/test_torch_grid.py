"""Convolutions of every kind and their gradients, compiled, against torch's forward and autograd.

Cases are drawn from fixed seeds; `pytest -m full` draws many more. The reference is torch in
float64; errors are relative to the sum of the absolute values of the terms (design §1.3), which is
the same layer on absolute values.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import error

import convgen as cg
from convgen import knobs
from convgen.layers.convolution import convolution_program
from convgen.symbolic.program import Program
from convgen.types import dtype_of

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

MODES = ("zeros", "reflect", "replicate", "circular")
TORCH_MODES = {"zeros": "constant"}
TOLERANCE = {"f32": 1e-5, "f64": 1e-12}


@pytest.fixture(autouse=True, scope="module")
def no_cache():
    with knobs.override(CACHE=False):
        yield


@dataclass(frozen=True)
class Case:
    """A layer: per spatial dimension its extent, kernel, stride, dilation and two-sided padding."""

    extents: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    channels: tuple[int, int]
    groups: int = 1
    batch: int = 1
    mode: str = "zeros"
    dtype: str = "f32"
    bias: bool = True

    @property
    def outs(self) -> tuple[int, ...]:
        return tuple(
            (i + sum(p) - d * (k - 1) - 1) // s + 1
            for i, k, s, d, p in zip(
                self.extents, self.kernel, self.stride, self.dilation, self.pads, strict=True
            )
        )

    @property
    def weights(self) -> tuple[int, ...]:
        return (self.channels[1], self.channels[0] // self.groups, *self.kernel)

    def program(self) -> Program:
        return convolution_program(
            (self.batch, self.channels[0], *self.extents),
            self.weights,
            stride=self.stride,
            padding=self.pads,
            dilation=self.dilation,
            groups=self.groups,
            mode=self.mode,
            bias=self.bias,
            dtype=dtype_of(self.dtype),
        )

    def torch(self, x: Any, w: Any, b: Any = None) -> Any:
        sides = [side for pair in reversed(self.pads) for side in pair]
        padded = torch.nn.functional.pad(x, sides, mode=TORCH_MODES.get(self.mode, self.mode))
        function = getattr(torch.nn.functional, f"conv{len(self.extents)}d")
        return function(padded, w, b, self.stride, 0, self.dilation, self.groups)


def draw(chance: random.Random, rank: int, stride: int) -> Case:
    """A legal case of that rank, with that stride in one dimension; all else drawn."""
    largest = {1: 23, 2: 11, 3: 6}[rank]
    mode = chance.choice(MODES)
    while True:
        extents = tuple(chance.randint(1, largest) for _ in range(rank))
        kernel = tuple(chance.randint(1, 5 if rank < 3 else 3) for _ in range(rank))
        strides = [chance.randint(1, 4) for _ in range(rank)]
        strides[chance.randrange(rank)] = stride
        widest = [{"reflect": e - 1, "circular": e}.get(mode, 6) for e in extents]
        pads = tuple((chance.randint(0, min(w, 5)), chance.randint(0, min(w, 5))) for w in widest)
        groups = chance.choice([1, 1, 2, 3])
        inner, outer = chance.choice([(1, 1), (1, 2), (2, 1), (3, 4), (5, 3), (2, 9)])
        case = Case(
            extents,
            kernel,
            tuple(strides),
            tuple(chance.randint(1, 3) for _ in range(rank)),
            pads,
            (inner * groups, outer * groups),
            groups,
            chance.randint(1, 3),
            mode,
            chance.choice(["f32", "f64"]),
            chance.random() < 0.5,
        )
        if min(case.outs) >= 1:
            return case


def arrays_of(program: Program, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=t.shape).astype(t.dtype.numpy_name) for t in program.inputs]


def autograd(function: Any, arrays: list[np.ndarray], cotangent: np.ndarray | None) -> list[Any]:
    """[y, *gradients] in float64; the cotangent is ones where None."""
    leaves = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays]
    y = function(*leaves)
    seed = torch.ones_like(y) if cotangent is None else torch.tensor(cotangent.astype(np.float64))
    y.backward(seed)
    return [y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]


def errors(program: Program, function: Any, seed: int = 0) -> dict[str, float]:
    """Error of the compiled forward and of each compiled gradient against torch."""
    arrays = arrays_of(program, seed)
    (y,) = program.outputs
    dy = np.random.default_rng(seed + 1).normal(size=y.shape).astype(y.dtype.numpy_name)
    gradient = cg.grad(program)
    got = [cg.compile(program)(*arrays), *cg.compile(gradient)(*arrays, dy)]
    want = autograd(function, arrays, dy)
    scale = autograd(function, [np.abs(a) for a in arrays], np.abs(dy))
    names = [y.name, *(t.name for t in gradient.outputs)]
    return {n: error(*triple) for n, *triple in zip(names, got, want, scale, strict=True)}


def check(case: Case, seed: int = 0) -> None:
    found = errors(case.program(), case.torch, seed)
    assert max(found.values()) <= TOLERANCE[case.dtype], (case, found)


def cases(per_stride: dict[int, int], seed: int) -> list[Case]:
    chance = random.Random(seed)
    return [
        draw(chance, rank, stride)
        for rank, count in per_stride.items()
        for stride in (1, 2, 3, 4)
        for _ in range(count)
    ]


# What drawing may miss: depthwise, with and without a multiplier; padding beyond k/2; strides
# beyond k; asymmetric everything; a kernel as large as the input; reflect as wide as it may be.
NAMED = {
    "depthwise": Case((9, 8), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), (5, 5), 5),
    "multiplier": Case((7, 8), (3, 2), (2, 1), (1, 2), ((1, 2), (0, 3)), (4, 8), 4, 2, "reflect"),
    "wide pad": Case((4, 5), (3, 1), (1, 2), (1, 1), ((5, 4), (3, 6)), (2, 3)),
    "wide stride": Case((11, 10), (2, 1), (4, 3), (1, 1), ((0, 1), (2, 0)), (3, 2)),
    "whole": Case((6, 5), (6, 5), (1, 1), (1, 1), ((0, 0), (0, 0)), (3, 17), 1, 3),
    "full": Case((5,), (4,), (1,), (2,), ((6, 6),), (3, 2)),
    "widest reflect": Case((4,), (3,), (2,), (1,), ((3, 3),), (2, 2), 1, 2, "reflect"),
    "widest circular": Case((4,), (3,), (3,), (1,), ((4, 4),), (2, 2), 1, 2, "circular"),
    "one element": Case((1, 1), (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    "many taps": Case((40,), (17,), (1,), (1,), ((8, 8),), (2, 3), dtype="f64"),
    "prime channels": Case((5, 7), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), (13, 37)),
    "1x1": Case((6, 6), (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)), (16, 32), 1, 2),
}


@pytest.mark.parametrize("name", NAMED)
def test_named(name: str) -> None:
    check(NAMED[name])


@pytest.mark.parametrize("case", cases({1: 4, 2: 3, 3: 1}, seed=1), ids=lambda c: str(c.extents))
def test_drawn(case: Case) -> None:
    check(case)


@pytest.mark.full
@pytest.mark.parametrize("case", cases({1: 40, 2: 30, 3: 12}, seed=2), ids=lambda c: str(c.extents))
def test_many(case: Case) -> None:
    check(case, seed=3)


@pytest.mark.full
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 40), st.integers(1, 3), st.integers(1, 4))
def test_any(seed: int, rank: int, stride: int) -> None:
    """New draws at every run."""
    check(draw(random.Random(seed), rank, stride), seed % 1000)


# --------------------------------------------------------------------------------- transposed


@dataclass(frozen=True)
class Transposed:
    rank: int
    arguments: tuple[Any, ...]  # in channels, out channels, kernel, stride, padding, output padding
    groups: int
    dilation: tuple[int, ...]
    extents: tuple[int, ...]
    batch: int = 2
    dtype: str = "f32"

    def check(self) -> None:
        layer = getattr(cg.nn, f"ConvTranspose{self.rank}d")(
            *self.arguments, groups=self.groups, dilation=self.dilation
        )
        shape = (self.batch, self.arguments[0], *self.extents)
        program = layer.program(shape, dtype=dtype_of(self.dtype))
        _, _, _, stride, padding, extra = self.arguments

        def function(x: Any, w: Any, b: Any) -> Any:
            apply = getattr(torch.nn.functional, f"conv_transpose{self.rank}d")
            return apply(x, w, b, stride, padding, extra, self.groups, self.dilation)

        found = errors(program, function)
        assert max(found.values()) <= TOLERANCE[self.dtype], (self, found)


def draw_transposed(chance: random.Random, rank: int) -> Transposed:
    while True:
        extents = tuple(chance.randint(1, {1: 9, 2: 6, 3: 3}[rank]) for _ in range(rank))
        kernel = tuple(chance.randint(1, 5 if rank < 3 else 3) for _ in range(rank))
        stride = tuple(chance.randint(1, 4) for _ in range(rank))
        dilation = tuple(chance.randint(1, 3) for _ in range(rank))
        padding = tuple(chance.randint(0, 3) for _ in range(rank))
        extra = tuple(
            chance.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)
        )
        outs = [
            s * (i - 1) + d * (k - 1) + 1 - 2 * p + e
            for i, k, s, d, p, e in zip(
                extents, kernel, stride, dilation, padding, extra, strict=True
            )
        ]
        if min(outs) < 1:
            continue
        groups = chance.choice([1, 1, 2, 3])
        inner, outer = chance.choice([(1, 1), (2, 3), (4, 1), (1, 2)])
        arguments = (inner * groups, outer * groups, kernel, stride, padding, extra)
        dtype = chance.choice(["f32", "f64"])
        return Transposed(rank, arguments, groups, dilation, extents, chance.randint(1, 2), dtype)


def transposed_cases(counts: dict[int, int], seed: int) -> list[Transposed]:
    chance = random.Random(seed)
    return [draw_transposed(chance, rank) for rank, count in counts.items() for _ in range(count)]


@pytest.mark.parametrize(
    "case", transposed_cases({1: 10, 2: 8, 3: 2}, seed=4), ids=lambda c: str(c.extents)
)
def test_transposed(case: Transposed) -> None:
    case.check()


@pytest.mark.full
@pytest.mark.parametrize(
    "case", transposed_cases({1: 80, 2: 60, 3: 20}, seed=5), ids=lambda c: str(c.extents)
)
def test_many_transposed(case: Transposed) -> None:
    case.check()


# --------------------------------------------------------------------------------- mutants

MUTANTS = {
    "stride": lambda c: replace(c, stride=(c.stride[0], c.stride[1] + 1)),
    "dilation": lambda c: replace(c, dilation=(c.dilation[0] + 1, c.dilation[1])),
    "tap": lambda c: replace(c, pads=((c.pads[0][0] - 1, c.pads[0][1] + 1), c.pads[1])),
    "boundary": lambda c: replace(c, mode="replicate"),
    "groups": lambda c: replace(c, channels=(c.channels[0], c.channels[1]), groups=1),
}


@pytest.mark.parametrize("wrong", MUTANTS)
def test_mutants_are_seen(wrong: str) -> None:
    """A layer with one attribute wrong is far from torch, or has another shape."""
    case = Case((9, 8), (3, 3), (2, 1), (1, 1), ((1, 0), (1, 2)), (4, 4), 2, 1, "reflect")
    mutant = MUTANTS[wrong](case)
    if mutant.outs != case.outs or mutant.weights != case.weights:
        with pytest.raises((AssertionError, RuntimeError, ValueError)):
            assert_same(mutant, case)
        return
    assert assert_same(mutant, case) > 1e-2


def assert_same(mutant: Case, case: Case) -> float:
    return max(errors(mutant.program(), case.torch).values())
