"""Whole gradient programs as text, and the gradients of the sixteen programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from derive_oracle import check_gradients, same_formulas, wrong_gradients

from convgen.symbolic import derive
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.parse import parse
from convgen.symbolic.program import Program

PROGRAMS = Path(__file__).parent.parent / "golden" / "programs"
PLANE = "Y[n,k,y,x] = sum(c,r,s: X{m}[n,c,{a}*y+r-1,{a}*x+s-1]*W[k,c,r,s]) for y < {o}, x < {o}"
SHAPES = {"X": (2, 3, 8, 8), "W": (4, 3, 3, 3)}
FOLDED = PLANE.format(m="{{., ., {}, {}}}", a=1, o=8)

TEXTS: dict[str, Callable[[], Program]] = {
    "stride1": lambda: parse(PLANE.format(m="", a=1, o=8), **SHAPES),
    "stride2": lambda: parse(PLANE.format(m="", a=2, o=4), **SHAPES),
    "reflect": lambda: parse(FOLDED.format("reflect", "reflect"), **SHAPES),
    "mixed": lambda: parse(FOLDED.format("circular", "replicate"), **SHAPES),
    "transposed": lambda: derive.adjoint(parse(PLANE.format(m="", a=2, o=4), **SHAPES), "X"),
    "groups": lambda: parse(
        "Y[n,3*g+k,y] = relu(sum(c<2,r: X[n,2*g+c,y+r-1]*W[3*g+k,c,r]) + b[3*g+k])"
        " for g < 2, k < 3, y < 4",
        X=(1, 4, 4),
        W=(6, 2, 3),
        b=(6,),
    ),
    "product": lambda: parse("Y[y] = prod(r < 3: X[y+r-1]) for y < 4", X=(4,)),
    "diagonal": lambda: parse("Y[i] = X[i,i]*W[i]", X=(3, 3), W=(3,)),
    "batch_norm": lambda: parse((PROGRAMS / "batch_norm.txt").read_text()),
    "cross_entropy": lambda: parse((PROGRAMS / "softmax_cross_entropy.txt").read_text()),
    "pool": lambda: parse(
        "Y[c,y,x] = max(r < 3, s < 3: X{omit}[c,2*y+r-1,2*x+s-1]) for y < 4, x < 4", X=(3, 7, 7)
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text(name: str, golden: Callable[[str, str], None]) -> None:
    program = TEXTS[name]()
    ahead, behind = derive.split(program)
    parts = (str(derive.grad(program)), str(ahead), str(behind))
    golden(f"derive/{name}.txt", "\n".join(p.rstrip("\n") for p in parts))
    for text in parts:
        assert str(parse(text)).rstrip() == text.rstrip()


def test_the_backward_of_a_transposed_layer_is_ordinary() -> None:
    """Four residue classes of sums and of pieces are one formula each."""
    found = derive.grad(TEXTS["transposed"]())
    same_formulas(
        found,
        "dW[k, c, r, s] = sum(n, y, x: dY[n, k, y, x] * ddX[n, c, 2*y + r - 1, 2*x + s - 1])",
        "ddY[n, k, y, x] = sum(c, r, s: W[k, c, r, s] * ddX[n, c, 2*y + r - 1, 2*x + s - 1])",
    )


SMALL: dict[str, dict[str, str]] = {
    "conv_bias_relu": {},
    "conv_stride2_dX": {},
    "conv_reflect_dX": {},
    "max_pool_index": {"[2, 3, 7, 7]": "[1, 2, 5, 5]", "< 4": "< 3"},
    "max_unpool": {"4, 4]": "2, 2]", "< 8": "< 4"},
    "batch_norm": {"[N, 3, 4, 4]": "[N, 3, 2, 2]", "16": "4"},
    "batch_norm_backward": {},
    "lcn": {"[2, 3, 6, 6]": "[1, 2, 4, 4]", "< 6": "< 4", "/ 36": "/ 16"},
    "softmax_cross_entropy": {},
    "dropout": {},
    "group_norm": {},
    "bilinear_upsample": {},
    "tiled_conv": {"[2, 3, 7, 7]": "[1, 2, 5, 5]", "[2, 2, 4, 3, 3, 3]": "[2, 2, 1, 2, 3, 3]"},
    "sgd_momentum": {},
    "adam": {},
}


@pytest.mark.parametrize("name", SMALL)
def test_gradients_of_the_programs(name: str) -> None:
    text = (PROGRAMS / f"{name}.txt").read_text()
    for old, new in SMALL[name].items():
        text = text.replace(old, new)
    program = parse(text)
    program = program.bind(**dict.fromkeys(program.sizes(), 2))
    values: dict[str, Any] = {}
    for t in program.inputs:
        if not t.dtype.is_float:
            values[t.name] = [i % 3 for i in range(t.elements)]
        elif t.name in ("v", "var", "second", "running_var"):
            values[t.name] = [1 + i % 3 for i in range(t.elements)]
    check_gradients(program, values=values, tolerance=1e-9, bound=3)


def test_batch_norm_agrees_with_the_hand_written_backward() -> None:
    forward = parse((PROGRAMS / "batch_norm.txt").read_text()).bind(N=4)
    written = parse((PROGRAMS / "batch_norm_backward.txt").read_text())
    names = ["X", "gamma", "beta"]
    _, behind = derive.split(forward, names)
    draw = {"X": 192, "gamma": 3, "dY": 192, "mean": 3, "var": 3, "beta": 3}
    values: dict[str, list[Any]] = {
        n: [(7 * i) % 11 - 5 for i in range(c)] for n, c in draw.items()
    }
    stats = evaluate(
        forward,
        {
            "X": values["X"],
            "gamma": values["gamma"],
            "beta": values["beta"],
            "running_mean": [0, 0, 0],
            "running_var": [1, 1, 1],
        },
        exact=False,
    )
    values |= {"mean": stats["mean"].data, "var": stats["var"].data}
    given = {t.name: values[t.name] for t in written.inputs}
    wanted = evaluate(written, given, exact=False)
    zero = [0.0] * 3
    have = values | {"Y": stats["Y"].data, "dnew_mean": zero, "dnew_var": zero}
    have |= {n: a.data for n, a in stats.items() if n not in have}
    got = evaluate(behind, {t.name: have[t.name] for t in behind.inputs}, exact=False)
    for t, name in zip(behind.outputs, ("dX", "dgamma", "dbeta"), strict=True):
        pairs = zip(got[t.name].data, wanted[name].data, strict=True)
        assert all(abs(float(a) - float(b)) < 1e-9 for a, b in pairs), name


def test_wrong_boundaries_are_caught() -> None:
    """The gradient of one boundary mode is not that of another."""
    programs = [
        parse(f"Y[y] = sum(r: X{{{m}}}[y+r-2]*W[r]) for y < 6", X=(6,), W=(5,))
        for m in (".", "reflect", "replicate", "circular")
    ]
    for a in programs:
        for b in programs:
            assert bool(wrong_gradients(a, derive.grad(b))) == (a is not b)
