"""The sixteen programs under proof and oracle: sound, and their hand-written gradients right."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference

from convgen.errors import FormulaError, UserError
from convgen.symbolic.duals import vjp
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.expr import Definition, Stage
from convgen.symbolic.parse import parse
from convgen.symbolic.proofs import check_program

FILES = sorted((Path(__file__).parent.parent / "golden" / "programs").glob("*.txt"))


def load(name):
    path = next(f for f in FILES if f.stem == name)
    return parse(path.read_text(encoding="utf-8"))


def draw(program, seed=0, **limits):
    """Small random integers for every input; limits: name -> exclusive bound of a label."""
    numbers = random.Random(seed)
    sizes = dict.fromkeys(program.sizes(), 2)
    bound = program.bind(**sizes) if sizes else program
    return bound, {
        t.name: [
            numbers.randrange(limits[t.name]) if t.name in limits else numbers.randrange(-4, 5)
            for _ in range(t.elements)
        ]
        for t in bound.inputs
    }


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_sound(file):
    program = parse(file.read_text(encoding="utf-8"))
    proof = check_program(program)
    assert [c.tensor for c in proof.covers] == [t.name for s in program.stages for t in s.tensors]
    assert all(c.method == "product" for c in proof.covers)


def mutants(program):
    """Programs with a piece left out, repeated, moved by one, or one element longer."""
    for number, stage in enumerate(program.stages):
        for at, piece in enumerate(stage.pieces):
            for changed in _changes(stage.pieces, at, piece):
                stages = list(program.stages)
                stages[number] = Stage(stage.tensors, tuple(changed))
                yield replace(program, stages=tuple(stages))


def _changes(pieces, at, piece):
    rest = [p for i, p in enumerate(pieces) if i != at]
    if rest:
        yield rest
    yield [*pieces, piece]
    for d in range(piece.outs[0].tensor.rank):
        if isinstance(piece.outs[0].tensor.shape[d], int):
            index = tuple(v + (k == d) for k, v in enumerate(piece.outs[0].index))
            moved = type(piece.outs[0])(piece.outs[0].tensor, index)
            yield [
                *rest,
                Definition((moved, *piece.outs[1:]), piece.domain, piece.reduces, piece.values),
            ]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_mutants_are_refused(file):
    count = 0
    for mutant in mutants(parse(file.read_text(encoding="utf-8"))):
        with pytest.raises(UserError):
            check_program(mutant)
        count += 1
    assert count


@pytest.mark.parametrize("name", ["conv_stride2_dX", "conv_reflect_dX", "winograd_f2_3"])
def test_mutants_fail_in_the_oracle_too(name):
    """Proof and evaluation refuse the same programs, though they share no code."""
    for mutant in mutants(load(name)):
        with pytest.raises(FormulaError):
            evaluate(mutant, draw(mutant)[1])


def test_strided_gradient_is_the_adjoint():
    forward = parse(
        "Y[n, k, y, x] = sum(c, r, s: X[n, c, 2*y + r - 1, 2*x + s - 1] * W[k, c, r, s]) for y < 4, x < 4",
        X=(2, 3, 8, 8),
        W=(4, 3, 3, 3),
    )
    program, given = draw(load("conv_stride2_dX"))
    inputs = {"X": [0] * 384, "W": given["W"]}
    want = vjp(forward, inputs, {"Y": given["dY"]}, ["X"])["X"]
    assert evaluate(program, given)["dX"] == want


def test_reflected_gradient_is_the_adjoint():
    forward = parse(
        "Y[n, k, y] = sum(c, r: X{., ., reflect}[n, c, y + r - 1] * W[k, c, r]) for y < 6",
        X=(2, 2, 6),
        W=(3, 2, 3),
    )
    program, given = draw(load("conv_reflect_dX"))
    inputs = {"X": [0] * 24, "W": given["W"]}
    want = vjp(forward, inputs, {"Y": given["dY"]}, ["X"])["X"]
    assert evaluate(program, given)["dX"] == want


def test_winograd_is_the_layer():
    direct = parse(
        "Y[n, k, y, x] = sum(c, r, s: X[n, c, y + r - 1, x + s - 1] * W[k, c, r, s]) for y < 8, x < 8",
        X=(2, 3, 8, 8),
        W=(4, 3, 3, 3),
    )
    program, given = draw(load("winograd_f2_3"))
    assert evaluate(program, given)["Y"] == evaluate(direct, given)["Y"]


def test_normalization_gradient_is_the_adjoint():
    forward = load("batch_norm").bind(N=4)
    _, given = draw(forward)
    given["running_mean"], given["running_var"] = [0] * 3, [1] * 3
    run = evaluate(forward, given)
    dY = draw(load("batch_norm_backward"), seed=1)[1]["dY"]
    want = vjp(forward, given, {"Y": dY}, ["X", "gamma", "beta"], numbers="float")
    backward = load("batch_norm_backward")
    saved = {
        "X": given["X"],
        "gamma": given["gamma"],
        "mean": run["mean"],
        "var": run["var"],
        "dY": dY,
    }
    got = evaluate(backward, saved, exact=False)
    scale = evaluate(backward, saved, exact=False, magnitude=True)
    for name in ("X", "gamma", "beta"):
        assert reference.error(got["d" + name], want[name], scale["d" + name]) < 1e-14


def test_cross_entropy_gradient_is_softmax_minus_one_hot():
    program, given = draw(load("softmax_cross_entropy"), label=10)
    got = vjp(program, given, {"loss": 1}, ["X"])["X"].floats().tolist()
    for row, label, grad in zip(rows(given["X"]), given["label"], got, strict=True):
        want = [(p - (k == label)) / 8 for k, p in enumerate(reference.softmax(row, axis=0))]
        assert reference.error(grad, want) < 1e-14


def rows(flat):
    return np.array(flat, dtype=float).reshape(8, 10)
