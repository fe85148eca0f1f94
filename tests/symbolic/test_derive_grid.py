"""Gradients of drawn formulas, exactly: rank, stride, dilation, groups, kernels, pads, boundaries."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from derive_oracle import check_gradients, check_second_order
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convgen.errors import ShapeError
from convgen.symbolic import derive
from convgen.symbolic.parse import parse
from convgen.symbolic.program import Program

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
FEW = settings(QUICK, max_examples=15)


@dataclass(frozen=True)
class Dim:
    """One spatial dimension: sizes, and the boundary outside."""

    extent: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    mode: str

    @property
    def out(self) -> int:
        whole = self.extent + self.before + self.after - self.dilation * (self.kernel - 1) - 1
        return whole // self.stride + 1


@st.composite
def dims(draw: st.DrawFn, modes: tuple[str, ...], largest: int) -> Dim:
    mode = draw(st.sampled_from(modes))
    extent, kernel = draw(st.integers(1, largest)), draw(st.integers(1, 4))
    stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    widest = {"reflect": extent - 1, "circular": extent}.get(mode, 5)
    pads = st.integers(0, min(widest, 5))
    return Dim(extent, kernel, stride, dilation, draw(pads), draw(pads), mode)


MODES = (".", "reflect", "replicate", "circular", "3/2")
AXES = (("y", "r"), ("x", "s"), ("z", "q"))


def index_of(d: Dim, position: str, tap: str) -> str:
    return f"{d.stride}*{position} + {d.dilation}*{tap} - {d.before}"


def layer(spatial: list[Dim], groups: int, kind: str) -> Program | None:
    """The layer, or None where nothing fits."""
    if any(d.out < 1 for d in spatial):
        return None
    axes = AXES[: len(spatial)]
    positions = ", ".join(p for p, _ in axes)
    taps = ", ".join(t for _, t in axes)
    reads = ", ".join(index_of(d, *a) for d, a in zip(spatial, axes, strict=True))
    modes = "{., ., " + ", ".join(d.mode for d in spatial) + "}"
    ranges = ", ".join(f"{p} < {d.out}" for d, (p, _) in zip(spatial, axes, strict=True))
    shapes: dict[str, tuple[int, ...]] = {"X": (1, 2 * groups, *(d.extent for d in spatial))}
    kernel = tuple(d.kernel for d in spatial)
    if kind == "sum":
        shapes["W"] = (2 * groups, 2, *kernel)
        text = (
            f"Y[n, 2*g + k, {positions}] = sum(c < 2, {taps}: X{modes}[n, 2*g + c, {reads}]"
            f" * W[2*g + k, c, {taps}]) for g < {groups}, k < 2, {ranges}"
        )
    elif kind == "local":
        shapes["W"] = (*(d.out for d in spatial), 2 * groups, *kernel)
        text = (
            f"Y[n, {positions}] = sum(c, {taps}: X{modes}[n, c, {reads}]"
            f" * W[{positions}, c, {taps}]) for {ranges}"
        )
    elif kind == "tiled":
        tiles = ", ".join(f"{p} % 2" for p, _ in axes)
        shapes["W"] = (*(2 for _ in spatial), 2 * groups, *kernel)
        text = (
            f"Y[n, {positions}] = sum(c, {taps}: X{modes}[n, c, {reads}]"
            f" * W[{tiles}, c, {taps}]) for {ranges}"
        )
    else:
        spans = ", ".join(f"{t} < {d.kernel}" for d, (_, t) in zip(spatial, axes, strict=True))
        modes = modes if kind == "max" else modes.replace("3/2", "omit")
        text = f"Y[n, c, {positions}] = {kind}({spans}: X{modes}[n, c, {reads}]) for {ranges}"
    return parse(text, **shapes)


@QUICK
@given(st.lists(dims(MODES, 6), min_size=1, max_size=1), st.integers(1, 2), st.data())
def test_one_dimension(spatial: list[Dim], groups: int, data: st.DataObject) -> None:
    program = layer(spatial, groups, data.draw(st.sampled_from(("sum", "local", "tiled"))))
    if program is not None:
        check_gradients(program, flip=data.draw(st.booleans()), bound=3)


@settings(QUICK, max_examples=25)
@given(st.lists(dims(MODES, 4), min_size=2, max_size=2), st.integers(1, 2))
def test_two_dimensions(spatial: list[Dim], groups: int) -> None:
    program = layer(spatial, groups, "sum")
    if program is not None:
        check_gradients(program, bound=3)


@settings(QUICK, max_examples=6)
@given(st.lists(dims(MODES, 3), min_size=3, max_size=3))
def test_three_dimensions(spatial: list[Dim]) -> None:
    program = layer(spatial, 1, "sum")
    if program is not None:
        check_gradients(program, bound=3)


@QUICK
@given(
    st.lists(dims((".", "omit", "replicate", "reflect", "3/2"), 6), min_size=1, max_size=1),
    st.sampled_from(("max", "min", "prod")),
    st.integers(0, 9),
)
def test_extrema_and_products(spatial: list[Dim], kind: str, seed: int) -> None:
    program = layer(spatial, 1, kind)
    if program is None:
        return
    try:
        program.check()
    except ShapeError:
        return
    check_gradients(program, seed=seed, bound=2)  # small numbers: many ties and zeros


@settings(QUICK, max_examples=20)
@given(dims((".",), 5), st.integers(1, 2), st.integers(0, 2))
def test_transposed(d: Dim, groups: int, extra: int) -> None:
    """The adjoint of a layer as a layer, and its own gradients."""
    program = layer([d], groups, "sum")
    if program is None:
        return
    transposed = derive.adjoint(program, "X")
    check_gradients(transposed, bound=3)


@FEW
@given(dims(MODES, 4))
def test_second_order(d: Dim) -> None:
    program = layer([d], 1, "sum")
    if program is not None:
        check_second_order(program)


@settings(QUICK, max_examples=40)
@given(
    st.lists(st.integers(-3, 3), min_size=6, max_size=6),
    st.integers(-4, 4),
    st.integers(-4, 4),
    st.sampled_from(("", " % 3", " // 2")),
)
def test_any_two_indices_of_three_axes(
    slopes: list[int], first: int, second: int, digit: str
) -> None:

    def affine(coefficients: list[int], constant: int) -> str:
        terms = [f"{c}*{a}" for c, a in zip(coefficients, "yxr", strict=True) if c]
        return " + ".join([*terms, str(constant)])

    one, two = f"({affine(slopes[:3], first)}){digit}", affine(slopes[3:], second)
    program = parse(
        f"Y[y, x] = sum(r: X[{one}, {two}] * W[r, x]) for y < 3, x < 2", X=(5, 6), W=(3, 2)
    )
    check_gradients(program, bound=3)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_no_tap_is_wasted(stride: int, dilation: int) -> None:
    """The taps of the residue pieces partition the kernel: as many multiplications as forward."""
    kernel, pad, extent = 5, 2, 12 * 4
    out = (extent + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    program = parse(
        f"Y[y] = sum(r: X[{stride}*y + {dilation}*r - {pad}] * W[r]) for y < {out}",
        X=(extent,),
        W=(kernel,),
    )
    stage = derive.grad(program, ["X"]).stages[-1]
    taps = 0
    for piece in stage.pieces:
        if piece.values[0] == 0:
            continue
        assert all(i.is_plain for r in piece.reads() for i in r.index)
        taps += sum(r.domain.ranges[0].hi for r in piece.reduces) or 1  # type: ignore[misc]
    # Each class of positions modulo the stride holds its share of the kernel.
    assert taps == kernel
