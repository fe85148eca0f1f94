"""Every step of a derivation runs, and computes what the last one of its contribution computes."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from convgen.layers import activation, contrast, convolution, normalization, pooling
from convgen.symbolic.derive import grad, steps
from convgen.symbolic.derive import steps as derivation
from convgen.symbolic.evaluate import evaluate, is_rational
from convgen.symbolic.parse import parse

LAYERS = {
    "stride2": ("Y[y] = sum(r: X[2*y + r - 1] * W[r]) for y < 4", {"X": 8, "W": 3}),
    "stride3_dilation2": ("Y[y] = sum(r: X[3*y + 2*r - 2] * W[r]) for y < 3", {"X": 9, "W": 3}),
    "plane": (
        "Y[n, k, y, x] = sum(c, r, s: X[n, c, 2*y + r - 1, x + 2*s - 2] * W[k, c, r, s]) + b[k]"
        " for y < 2, x < 4",
        {"X": (1, 2, 4, 4), "W": (2, 2, 3, 3), "b": 2},
    ),
    "reflect": ("Y[y] = sum(r: X{reflect}[y + r - 1] * W[r]) for y < 5", {"X": 5, "W": 3}),
    "groups": (
        "Y[g*2 + k, y] = sum(c < 2, r: X[g*2 + c, y + r - 1] * W[g*2 + k, c, r])"
        " for y < 5, g < 2, k < 2",
        {"X": (4, 5), "W": (4, 2, 3)},
    ),
    "diagonal": ("Y[i] = 2 * X[i, i] + X[i, 1]", {"X": (3, 3)}),
    "tiled": ("Y[y] = sum(r: X[y + r] * W[y % 2, r])", {"X": 6, "W": (2, 3)}),
    "correlated": ("Y[j] = sum(i: X[i, j] * X[i, 0])", {"X": (3, 3)}),
    "oblique": (
        "Y[y, x] = sum(r, s: X[y + 2*x + r, x + s] * W[r, s])",
        {"X": (9, 5), "W": (2, 2)},
    ),
    "full_convolution": ("Y[t] = sum(i: X[i] * W[t - i]) for t < 6", {"X": 4, "W": 3}),
}


def numbers(shape, rng, low=-4):
    if not shape:
        return rng.randint(low, 4)
    return [numbers(shape[1:], rng, low) for _ in range(shape[0])]


def results(found):
    """Contribution -> what each of its steps computes on one set of random integers."""
    rng = random.Random(7)
    values: dict[str, object] = {}
    answers: dict[int, list[object]] = {}
    for step in found:
        for t in step.program.inputs:
            if t.name not in values:
                values[t.name] = numbers(t.shape, rng)
        given = {t.name: values[t.name] for t in step.program.inputs}
        out = evaluate(step.program, given)[step.program.output.name]
        answers.setdefault(step.number, []).append(out.tolist())
    return answers


@pytest.mark.parametrize("name", LAYERS)
def test_every_step_equals_the_last(name):
    text, shapes = LAYERS[name]
    found = steps(parse(text, **shapes))
    assert {s.title for s in found} >= {"chain rule", "index equation", "solution", "domain"}
    for answers in results(found).values():
        assert all(a == answers[-1] for a in answers)
        assert answers[-1] != [0] * len(answers[-1])


PROGRAMS = {
    "conv1d": lambda: convolution.Conv1d(2, 3, 3, padding=1).program((2, 2, 5)),
    "conv3d": lambda: convolution.Conv3d(1, 2, 2).program((1, 1, 3, 3, 3)),
    "dilation": lambda: convolution.Conv2d(1, 2, 2, dilation=2).program((1, 1, 4, 5)),
    "depthwise": lambda: convolution.Conv1d(2, 4, 3, groups=2, stride=2).program((1, 2, 7)),
    "transposed": lambda: convolution.ConvTranspose1d(2, 2, 4, stride=2, padding=1)
    .program((1, 2, 4)),
    "transposed_one_tap": lambda: convolution.ConvTranspose1d(
        1, 2, 3, stride=3, padding=1, dilation=2
    ).program((1, 1, 4)),
    "locally_connected": lambda: parse(
        "Y[k, y] = sum(c, r: X[c, y + r] * W[y, k, c, r])", X=(2, 5), W=(3, 2, 2, 3)
    ),
    "correlation": lambda: parse(
        "Y[i, y] = sum(c: A[c, y] * B[c, y + i - 1]) for i < 3", A=(2, 4), B=(2, 4)
    ),
    "average_pool": lambda: pooling.AvgPool2d(2).program((1, 1, 4, 4)),
    "max_pool": lambda: pooling.MaxPool1d(3, stride=2).program((1, 2, 7)),
    "batch_norm": lambda: normalization.BatchNorm1d(2, track_running_stats=False).program((3, 2)),
    "lcn": lambda: contrast.LocalContrastNorm(3, c=0.5).program((1, 1, 3, 3)),
    "softmax": lambda: activation.Softmax(1).program((2, 3)),
    "circular": lambda: parse("Y[y] = sum(r: X{circular}[y + r - 2] * W[r]) for y < 5", X=5, W=4),
    "replicate": lambda: parse("Y[y] = sum(r: X{replicate}[y + r - 2] * W[r]) for y < 5", X=5, W=4),
    "second_order": lambda: grad(
        parse("Y[y] = sum(r: X[2*y + r - 1] * W[r]) for y < 4", X=8, W=3), ["X"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_step_of_every_layer_equals_the_last(name):
    """Exactly where all is rational, in 50 digits elsewhere."""
    program = PROGRAMS[name]()
    rng = random.Random(3)
    known: dict[str, Any] = {}
    counts: dict[int, int] = {}
    last: dict[int, Any] = {}
    low = -4 if is_rational(program) else 1  # roots are of positive numbers
    for step in reversed(steps(program)):
        for t in step.program.inputs:
            if t.name not in known:
                floats = t.dtype.is_float
                known[t.name] = numbers(t.shape, rng, low) if floats else positive(t.shape)
        given = {t.name: known[t.name] for t in step.program.inputs}
        kind = "exact" if is_rational(step.program) else "mp"
        found = evaluate(step.program, given, numbers=kind)[step.program.output.name]
        wanted = last.setdefault(step.number, found)
        counts[step.number] = counts.get(step.number, 0) + 1
        if kind == "exact":
            assert found.tolist() == wanted.tolist(), step
        else:
            pairs = zip(found.data, wanted.data, strict=True)
            assert all(a == b or abs(a - b) <= 1e-40 * abs(b) for a, b in pairs), step
    assert max(counts.values()) == 5


def positive(shape):
    """Small numbers for what counts: 0 1 0 1."""
    return [positive(shape[1:]) if len(shape) > 1 else i % 2 for i in range(shape[0])]


def test_the_last_step_is_the_gradient():
    text, shapes = LAYERS["plane"]
    layer = parse(text, **shapes)
    last = {s.tensor: s.lines for s in steps(layer) if s.title == "simplification"}
    program = grad(layer)
    for name in ("X", "W", "b"):
        stage = next(s for s in program.stages if s.tensors[0].name == "d" + name)
        assert len(last[name]) == len(stage.pieces)
    assert last["W"][0].startswith(
        "dW[k, c, r, s] = sum(n < 1, y < 2, x < 4: dY[n, k, y, x] * X[n, c, 2*y + r - 1, x + 2*s - 2])"
    )


def test_each_step_says_what_it_did():
    text, shapes = LAYERS["stride2"]
    by_title = {s.title: s for s in steps(parse(text, **shapes), "X")}
    assert by_title["chain rule"].formula == "dX[2*y + r - 1] += dY[y] * W[r]   for y < 4, r < 3"
    assert by_title["index equation"].lines == [
        "dX[h] = sum(y < 4, r < 3 where 2*y + r == h + 1: dY[y] * W[r])   for h < 8"
    ]
    assert by_title["solution"].lines == [
        "dX[2*u] = dY[u] * W[1]   for u < 4",
        "dX[2*u + 1] = sum(t < 2 where u <= t + 2: dY[u + 1 - t] * W[2*t])   for u < 4",
    ]


def test_several_contributions_are_added_up():
    text, shapes = LAYERS["diagonal"]
    assert [s.title for s in steps(parse(text, **shapes))].count("sum") == 1


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_wrong_step_is_noticed(number):
    """Mutants: one constant of one step moved by one."""
    text, shapes = LAYERS["stride2"]
    found = derivation(parse(text, **shapes), "X")
    wrong = str(found[number].program).replace("u + 1 - t", "u + 2 - t").replace("h + 1", "h + 2")
    assert wrong != str(found[number].program)
    mutant = replace(found[number], make=lambda: parse(wrong))
    answers = results([*found[:number], mutant, *found[number + 1 :]])[found[0].number]
    assert answers[number] != answers[-1]
