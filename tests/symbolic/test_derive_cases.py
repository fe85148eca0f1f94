"""Gradients of chosen formulas, exactly, first and second order; their text; refusals; mutants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from derive_oracle import (
    check_gradients,
    check_second_order,
    same_formulas,
    wrong_gradients,
)

from convgen.affine import Affine
from convgen.errors import DerivationError, FormulaError, ShapeError
from convgen.symbolic import derive
from convgen.symbolic.expr import Access, Definition, Stage
from convgen.symbolic.parse import parse
from convgen.symbolic.program import Program

CASES: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "stride1": (
        "Y[n,k,y] = sum(c,r: X[n,c,y+r-1]*W[k,c,r]) + b[k] for y < 5",
        {"X": (2, 2, 5), "W": (2, 2, 3), "b": (2,)},
    ),
    "relu": (
        "Y[n,k,y] = relu(sum(c,r: X[n,c,2*y+r-1]*W[k,c,r]) + b[k]) for y < 3",
        {"X": (2, 2, 6), "W": (2, 2, 3), "b": (2,)},
    ),
    "stride3_dilation2": (
        "Y[n,k,y] = sum(c,r: X[n,c,3*y+2*r-4]*W[k,c,r]) for y < 4",
        {"X": (1, 2, 7), "W": (2, 2, 4)},
    ),
    "stride4_dilation2": (
        "Y[n,k,y] = sum(c,r: X[n,c,4*y+2*r-3]*W[k,c,r]) for y < 3",
        {"X": (1, 1, 9), "W": (1, 1, 4)},
    ),
    "single_tap": ("Y[y] = sum(r: X[2*y+r]*W[r]) for y < 4", {"X": (8,), "W": (1,)}),
    "blocks_by_stride": ("Y[y] = sum(r: X[3*y+r]*W[r]) for y < 2", {"X": (8,), "W": (3,)}),
    "correlation": ("Y[d] = sum(i: X[i]*W[i+d-1]) for d < 3", {"X": (4,), "W": (4,)}),
    "true_convolution": ("Y[y] = sum(i: X[i]*W[y-i]) for y < 6", {"X": (4,), "W": (3,)}),
    "diagonal": ("Y[i] = X[i,i]", {"X": (3, 3)}),
    "diagonal_in_sum": ("Y[j] = sum(i: X[i,i]*W[i,j])", {"X": (3, 3), "W": (3, 2)}),
    "tiled": ("Y[y] = sum(r: X[y+r]*W[y % 2, r]) for y < 5", {"X": (7,), "W": (2, 3)}),
    "repeated": ("Y[y] = X[y // 2] * 3 for y < 7", {"X": (4,)}),
    "local": ("Y[k,y] = sum(c,r: X[c,y+r]*W[y,k,c,r])", {"X": (2, 5), "W": (3, 2, 2, 3)}),
    "several_accesses": ("Y[i] = X[i]*X[i+1]*X[i] for i < 4", {"X": (4,)}),
    "max": ("Y[y] = max(r < 3: X{omit}[2*y+r-1]) for y < 4", {"X": (7,)}),
    "max_overlap": (
        "Y[y,x] = max(r < 3, s < 2: X{omit}[y+r-1,2*x+s-1]) for y < 4, x < 3",
        {"X": (4, 5)},
    ),
    "min_of_products": (
        "Y[i] = min(r < 3: X{replicate}[i+r-1]*W[r]) for i < 5",
        {"X": (5,), "W": (3,)},
    ),
    "prod": ("Y[y] = prod(r < 3: X[y+r-1]*W[r]) for y < 4", {"X": (4,), "W": (3,)}),
    "prod_plane": ("Y[y] = 2*prod(r < 2, s < 2: X[y+r,s]) + X[y,0] for y < 3", {"X": (4, 2)}),
    "average": ("Y[y] = sum(r < 3: X[y+r-1])/3 for y < 4", {"X": (4,)}),
    "reflect": ("Y[y] = sum(r: X{reflect}[y+r-2]*W[r]) for y < 5", {"X": (4,), "W": (4,)}),
    "replicate": (
        "Y[y,x] = sum(r,s: X{replicate}[2*y+r-4,x+s-1]*W[r,s]) for y < 5, x<4",
        {"X": (4, 3), "W": (4, 3)},
    ),
    "circular": (
        "Y[y,x] = sum(r,s: X{circular}[2*y+r-3,x-s+1]*W[r,s]) for y < 5, x<4",
        {"X": (4, 4), "W": (2, 3)},
    ),
    "constant": ("Y[y] = sum(r: X{3/2}[y+r-2]*W[r]) for y < 5", {"X": (4,), "W": (4,)}),
    "omit_two": (
        "Y[i] = sum(r < 3: X{omit}[i+r-1] + Z{omit}[i+r]) for i < 5",
        {"X": (5,), "Z": (4,)},
    ),
    "normalized": (
        "M[] = sum(i: X[i])/4\nV[] = sum(i: (X[i]-M[])**2)/4\nY[i] = (X[i]-M[])/(V[]+1)*G[i]",
        {"X": (4,), "G": (4,)},
    ),
    "broadcast_sum": ("Y[i] = X[i]/(1 + sum(j: X[j]*X[j]))", {"X": (4,)}),
    "groups": (
        "Y[n,3*g+k,y] = sum(c<2,r: X[n,2*g+c,y+r-1]*W[3*g+k,c,r]) for g < 2, k < 3, y < 4",
        {"X": (1, 4, 4), "W": (6, 2, 3)},
    ),
    "groups_by_division": (
        "Y[n,k,y] = sum(c<2,r: X[n,2*(k // 3)+c,y+r-1]*W[k,c,r]) for y < 4",
        {"X": (1, 4, 4), "W": (6, 2, 3)},
    ),
    "transposed": (
        "Y[n,k,o] = sum(c,y,r where 2*y+r-1 == o: X[n,c,y]*W[c,k,r]) for o < 6",
        {"X": (1, 2, 3), "W": (2, 2, 3)},
    ),
    "two_axes_two_indices": ("Y[y,x] = X[y+x, y-x+1]*2 for y < 3, x < 3", {"X": (5, 4)}),
    "skew": ("Y[y,x] = X[2*y, 3*y+2*x-1]*2 for y < 3, x < 3", {"X": (5, 11)}),
    "two_strides": ("Y[y,x] = X[2*y+3*x]*2 for y < 3, x < 3", {"X": (13,)}),
    "two_taps": (
        "Y[y] = sum(r, q: X[4*y+2*r+3*q-3]*W[r,q]) for y < 3",
        {"X": (13,), "W": (3, 3)},
    ),
    "triangle": ("Y[i] = sum(j where j <= i: X[j]*W[i])", {"X": (4,), "W": (4,)}),
    "crop": ("Y[y] = X[y + 2]*X[1] for y < 3", {"X": (8,)}),
    "unused": ("Y[i] = X[i] * 2 + 0 * W[i]", {"X": (4,), "W": (4,)}),
}


def case(name: str) -> Program:
    text, shapes = CASES[name]
    return parse(text, **shapes)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_exact(name: str) -> None:
    check_gradients(case(name))
    check_gradients(case(name), seed=1, flip=True)


@pytest.mark.parametrize("name", CASES)
def test_second_order_is_exact(name: str) -> None:
    check_second_order(case(name))


def test_max_sends_a_tie_to_the_first() -> None:
    program = parse("Y[y] = max(r < 3: X{omit}[2*y+r-1]) for y < 3", X=(5,))
    check_gradients(program, values={"X": [7, 7, 7, 7, 7]})
    check_gradients(program, values={"X": [1, 2, 2, 1, 2]})


def test_products_are_right_at_zeros() -> None:
    program = parse("Y[y] = prod(r < 3: X[y+r]) for y < 3", X=(5,))
    for values in ([0, 2, 0, 3, 5], [0, 0, 0, 0, 0], [1, 0, 2, 3, 0]):
        check_gradients(program, values={"X": values})


FLOATING: dict[str, str] = {
    "cross_entropy": """program cross_entropy
tensor X: f32[3, 4]
tensor label: i64[3]
nll[n] = logsumexp(k: X[n, k]) - sum(k: select(label[n] == k, X[n, k], 0))
loss[] = sum(n: nll[n]) / 3
""",
    "softmax": """program softmax
tensor X: f32[3, 4]
M[n] = max(k: X[n,k])
S[n] = sum(k: exp(X[n,k]-M[n]))
Y[n,k] = exp(X[n,k]-M[n])/S[n]
""",
    "softmax_in_one": """program softmax
tensor X: f32[3, 4]
Y[n,k] = exp(X[n,k])/sum(j: exp(X[n,j]))
""",
    "activations": """program activations
tensor X: f32[3, 4]
tensor W: f32[2, 4]
Y[n,k] = tanh(sum(j: X[n,j]*W[k,j]))
Z[n,k] = sigmoid(Y[n,k])*relu(Y[n,k]) + abs(Y[n,k])
""",
    "mean_padding": """program mean_padding
tensor X: f32[2, 4]
tensor W: f32[3]
M[n] = sum(y: X[n, y]) / 4
Y[n, y] = sum(r: X{., M[n]}[n, y + r - 1] * W[r]) for y < 4
""",
    "logsumexp_omit": """program lse
tensor X: f32[5]
Y[i] = logsumexp(r < 3: X{omit}[2*i+r-1]*2) for i < 3
""",
    "silu": """program silu
tensor X: f32[4]
tensor W: f32[3, 4]
Y[i] = sum(j: X[j]*W[i,j])*sigmoid(sum(j: X[j]*W[i,j])) for i < 3
""",
    "unpool": """program unpool
tensor X: f32[1, 2, 2, 2]
tensor I: u8[1, 2, 2, 2]
Y[n, c, h, w] = sum(y, x where 2*y <= h, h <= 2*y + 1, 2*x <= w, w <= 2*x+1: select(equal(I[n, c, y, x], 2*(h - 2*y) + w - 2*x), X[n, c, y, x], 0)) for h < 4, w < 4
""",
}
LABELS: dict[str, Any] = {"label": [1, 0, 3], "I": [0, 3, 2, 1, 1, 2, 3, 0]}


@pytest.mark.parametrize("name", FLOATING)
def test_gradients_of_real_functions(name: str) -> None:
    program = parse(FLOATING[name])
    values = {n: v for n, v in LABELS.items() if any(t.name == n for t in program.inputs)}
    check_gradients(program, values=values, tolerance=1e-9)


# ---------------------------------------------------------------------------------------------
# Text


PROGRAMS = Path(__file__).parent.parent / "golden" / "programs"
PLANE = "Y[n,k,y,x] = sum(c,r,s: X[n,c,{s}*y+r-{p},{s}*x+s-{p}]*W[k,c,r,s]) for y < {o}, x < {o}"


def plane(stride: int, pad: int, extent: int) -> Program:
    out = (extent + 2 * pad - 3) // stride + 1
    text = PLANE.format(s=stride, p=pad, o=out)
    return parse(text, X=(2, 3, extent, extent), W=(4, 3, 3, 3))


def test_text_of_stride_one() -> None:
    same_formulas(
        derive.grad(plane(1, 1, 8), ["X"]),
        "dX[n, c, h, w] = sum(k, r, s: dY[n, k, h + 1 - r, w + 1 - s] * W[k, c, r, s])",
    )
    same_formulas(
        derive.grad(plane(1, 1, 8), ["X"], flip=True),
        "dX[n, c, h, w] = sum(k, r < 3, s < 3: "
        "dY[n, k, h - 1 + r, w - 1 + s] * W[k, c, 3 - 1 - r, 3 - 1 - s])",
    )
    same_formulas(
        derive.grad(plane(1, 1, 8), ["W"]),
        "dW[k, c, r, s] = sum(n, y, x: dY[n, k, y, x] * X[n, c, y + r - 1, x + s - 1])",
    )


def test_text_of_stride_two() -> None:
    written = (PROGRAMS / "conv_stride2_dX.txt").read_text()
    found = derive.adjoint(plane(2, 1, 8), "X")
    assert found.stages == parse(written.replace("parameter", "tensor")).stages


@pytest.mark.parametrize(("out", "terms"), [(3, 3), (4, 3), (6, 6), (7, 6), (8, 6), (9, 6)])
def test_one_formula_adds_up_little_more_than_its_classes(out: int, terms: int) -> None:
    """Few outputs are added up for all elements at once, more of them than taps are not."""
    taps = 6 if out == 3 or terms == 3 else 12
    text = "Y[n, k, y] = sum(c, r < {r}: X[n, c, 2*y + r] * W[k, c, r]) for y < {y}"
    size = 2 * (out - 1) + taps
    program = parse(text.format(r=taps, y=out), X=(1, 2, size), W=(3, 2, taps))
    pieces = derive.adjoint(program, "X").stages[-1].pieces
    added = [r.domain["t"].extent for p in pieces for r in p.reduces]
    assert max(added) <= 1.2 * terms
    assert (len(pieces) == 1) == (out <= 1.2 * terms)


def test_reflect_equals_the_hand_written_program() -> None:
    program = parse(
        "Y[n, k, y] = sum(c, r: X{., ., reflect}[n, c, y + r - 1]*W[k, c, r]) for y < 6",
        X=(2, 2, 6),
        W=(3, 2, 3),
    )
    written = (PROGRAMS / "conv_reflect_dX.txt").read_text()
    assert (
        derive.adjoint(program, "X").stages == parse(written.replace("parameter", "tensor")).stages
    )


def test_symbolic_batch_passes_through() -> None:
    program = parse(
        "program layer\ntensor X: f32[N, 2, 5]\ntensor W: f32[3, 2, 3]\n"
        "Y[n, k, y] = relu(sum(c, r: X[n, c, 2*y + r - 1] * W[k, c, r])) for y < 3\n"
    )
    gradient = derive.grad(program)
    assert gradient.sizes() == ("N",)
    ahead, behind = derive.split(program)
    assert ahead.saved == () and ahead.stages == program.stages  # relu' reads the output
    assert "Y" in {t.name for t in behind.inputs}
    check_gradients(program.bind(N=2))


def test_steps_tell_the_derivation() -> None:
    found = derive.steps(plane(2, 1, 8), ["X"])
    titles = [s.title for s in found]
    assert titles[:2] == ["chain rule", "index equation"]
    assert {"solution", "domain", "simplification"} <= set(titles)
    assert any("y = u + 1 - t" in s.formula for s in found)


# ---------------------------------------------------------------------------------------------
# stop_gradient, custom gradients, refusals


def test_stop_gradient_is_a_constant() -> None:
    program = parse("Y[i] = stop_gradient(X[i])*X[i] + stop_gradient(X[i]*X[i])", X=(4,))
    same_formulas(check_gradients(program), "dX[i] = dY[i] * stop_gradient(X[i])")


def test_custom_gradient_takes_the_place_of_the_derivative() -> None:
    layer = parse("Y[i] = relu(X[i])", X=(4,))
    guided = parse("dX[i] = relu(dY[i]) * step(Y[i])", Y=(4,), dY=(4,))
    program = derive.custom_gradient(layer, guided)
    gradient = derive.grad(program, ["X"])
    assert "dX[i] = relu(dY[i]) * step(Y[i])" in str(gradient).splitlines()
    assert parse(str(gradient)) == gradient
    _, behind = derive.split(program, ["X"])
    assert [t.name for t in behind.inputs] == ["Y", "dY"]
    with pytest.raises(FormulaError, match="dZ"):
        derive.custom_gradient(layer, parse("dZ[i] = dY[i]", dY=(4,)))
    with pytest.raises(ShapeError, match="dY"):
        derive.custom_gradient(layer, parse("dX[i] = dY[i] for i < 4", dY=(5,)))


def test_refusals() -> None:
    program = parse(
        "program chosen\ntensor X: f32[4]\ntensor label: i64[4]\n"
        "Y[i] = select(label[i] == 1, X[i], 0)"
    )
    with pytest.raises(DerivationError, match="no input 'Z'"):
        derive.grad(program, ["Z"])
    with pytest.raises(DerivationError, match="twice"):
        derive.grad(program, ["X", "X"])
    with pytest.raises(DerivationError, match="i64"):
        derive.grad(program, ["label"])


# ---------------------------------------------------------------------------------------------
# Mutants: a gradient that is slightly wrong must be noticed


def change_accesses(program: Program, change: Any) -> list[Program]:
    """Programs with one access of one piece changed."""
    found: list[Program] = []
    for i, stage in enumerate(program.stages):
        for j, piece in enumerate(stage.pieces):
            for k, reduce in enumerate(piece.reduces):
                for access in reduce.body.atoms(Access):
                    other = change(access)
                    if other is None:
                        continue
                    reduces = list(piece.reduces)
                    reduces[k] = replace(reduce, body=reduce.body.xreplace({access: other}))
                    new = Definition(piece.outs, piece.domain, tuple(reduces), piece.values)
                    pieces = (*stage.pieces[:j], new, *stage.pieces[j + 1 :])
                    stages = list(program.stages)
                    stages[i] = Stage(stage.tensors, pieces)
                    found.append(replace(program, stages=tuple(stages)))
    return found


def test_mutants_are_caught() -> None:
    program = plane(2, 1, 5)
    gradient = derive.grad(program)
    assert not wrong_gradients(program, gradient)

    def shifted(a: Access) -> Access | None:
        return Access(a.tensor, (*a.index[:-1], a.index[-1] + 1)) if a.tensor.rank > 1 else None

    def stretched(a: Access) -> Access | None:
        index = [i + Affine.of(t) for i in a.index[2:3] for t in i.names() if t in ("u", "t")]
        return Access(a.tensor, (*a.index[:2], *index[:1], a.index[3])) if index else None

    def padded(a: Access) -> Access | None:
        return a.tensor.pad("replicate")[a.index] if a.tensor.name == "X" else None

    for change in (shifted, stretched, padded):
        mutants = change_accesses(gradient, change)
        assert mutants
        for mutant in mutants:
            assert wrong_gradients(program, mutant), str(mutant)
