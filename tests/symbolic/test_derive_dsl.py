"""Gradients of formulas made in the DSL: own reductions, several outputs, pieces, compositions."""

from __future__ import annotations

import math

import pytest
import sympy
from derive_oracle import check_gradients, same_formulas, wrong_gradients

from convgen.errors import DerivationError
from convgen.symbolic import derive, dsl
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.functions import stop_gradient
from convgen.symbolic.parse import parse
from convgen.symbolic.program import Program

n, y, r, i, j, k = dsl.axes("n y r i j k")


def norm_program() -> Program:
    norm = dsl.reduction(
        "norm",
        lift=lambda v: v * v,
        combine=lambda a, b: a + b,
        identity=0,
        project=lambda a: sympy.sqrt(a),
        adjoint=lambda v, y, g: g * v / y,
    )
    x = dsl.tensor("X", (2, 6))
    return dsl.define(
        "Y", [n, y], 2 * norm.over([r], x[n, 2 * y + r - 1] * 3), extents={y: 3, r: 3}
    )


def test_own_reduction_keeps_its_conditions_where_it_divides() -> None:
    gradient = check_gradients(norm_program(), tolerance=1e-9)
    odd = gradient.stages[-1].pieces[1]
    assert odd.reduces[0].domain.constraints  # reading 0 outside would divide by 0


def test_own_reduction_without_adjoint_is_refused() -> None:
    plain = dsl.reduction("plain", combine=lambda a, b: a + b, identity=0)
    x = dsl.tensor("X", (4,))
    with pytest.raises(DerivationError, match="plain has no adjoint"):
        derive.grad(dsl.define("Y", [], plain.over([i], x[i])))


def test_several_outputs_of_one_definition() -> None:
    x = dsl.tensor("X", (2, 6))
    both = dsl.define(
        [("Y", [n]), ("Z", [n])], (dsl.sum_over([y], x[n, y]), dsl.max_over([y], x[n, y]))
    )
    gradient = check_gradients(both)
    assert [t.name for t in gradient.inputs] == ["X", "dY", "dZ"]


def test_the_position_that_is_already_stored_is_used() -> None:
    x = dsl.tensor("X", (2, 6))
    pool = dsl.define(
        [("Y", [n]), ("I", [n])], (dsl.max_over([y], x[n, y]), dsl.argmax_over([y], x[n, y]))
    )
    ahead, behind = derive.split(pool)
    assert ahead.saved == ()
    assert [t.name for t in behind.inputs] == ["I", "dY"]


def test_concatenation_is_taken_apart() -> None:
    a, b = dsl.tensor("A", (2, 3)), dsl.tensor("B", (2, 4))
    joined = dsl.pieces(
        dsl.define("Y", [i, j], a[i, j] * a[i, j], shape=(2, 7), extents={j: 3}),
        dsl.define("Y", [i, j + 3], b[i, j] * 2, shape=(2, 7), extents={j: 4}),
    )
    same_formulas(
        check_gradients(joined),
        "dA[i, j] = 2 * dY[i, j] * A[i, j] for j < 3",
        "dB[i, j] = 2 * dY[i, j + 3]",
    )


def test_programs_read_in_programs() -> None:
    x = dsl.tensor("X", (2, 6))
    mean = dsl.define("M", [n], dsl.sum_over([y], x[n, y]) / 6)
    gained = dsl.define("Y", [n, y], (x[n, y] - mean[n]) * (x[n, y] - stop_gradient(mean[n])))
    check_gradients(gained)


def test_unpooling_searches_the_windows_that_cover_the_output() -> None:
    program = parse(
        "program unpool\ntensor X: f32[2, 2]\ntensor I: u8[2, 2]\n"
        "Y[h, w] = sum(y, x where 2*y <= h, h <= 2*y + 1, 2*x <= w, w <= 2*x + 1: "
        "select(I[y, x] == 2*(h - 2*y) + w - 2*x, X[y, x], 0)) for h < 4, w < 4\n"
    )
    gradient = check_gradients(program, values={"I": [0, 3, 2, 1]})
    (piece,) = gradient.stages[-1].pieces
    assert [(r.lo, r.hi) for r in piece.reduces[0].domain.ranges] == [(0, 2), (0, 2)]
    assert not piece.reduces[0].domain.constraints


def test_mutants_of_positions_are_caught() -> None:
    """The gradient of a window shifted by one, or one larger, is not that of the window."""
    texts = [f"Y[y] = max(r < {a}: X{{omit}}[{s}*y+r-{p}]) for y < 3" for a, s, p in WINDOWS]
    programs = [parse(t, X=(6,)) for t in texts]
    for a in programs:
        for b in programs:
            wrong = any(wrong_gradients(a, derive.grad(b), seed=s) for s in range(4))
            assert wrong == (a is not b), f"{a}\n{b}"


WINDOWS = ((3, 2, 1), (2, 2, 1), (3, 2, 0), (3, 1, 1))


def test_powers_of_tensors_have_a_derivative_at_zero() -> None:
    """torch's values: 0 along the base where the exponent is 0, 0 along the exponent at base 0."""
    gradient = derive.grad(parse("Y[i] = X[i]**W[i]", X=(5,), W=(5,)))
    given = {"X": [0, 0, 0, 2, -1], "W": [2, 1, 0, 3, 3], "dY": [1] * 5}
    found = evaluate(gradient, given, numbers="float")
    assert found["dX"].data == [0, 1, 0, 12, 3]
    assert found["dW"].data[:3] == [0, 0, 0]
    assert found["dW"].data[3] == pytest.approx(8 * math.log(2))
    features = derive.grad(parse("Y[i] = X[]**i for i < 3", X=()))  # 1, x, x^2
    assert evaluate(features, {"X": [0], "dY": [5, 7, 9]}, numbers="float")["dX"].data == [7]
    positive = derive.grad(parse("Y[i] = (X[i]**2 + 1)**W[i]", X=(4,), W=(4,)), "W")
    assert "select" not in str(positive)


def test_gradients_are_asked_for_by_name_or_tensor() -> None:
    x, w = dsl.tensor("X", (4,)), dsl.tensor("W", (4,))
    program = dsl.define("Y", [i], x[i] * w[i])
    assert derive.grad(program, w) == derive.grad(program, "W")
    assert derive.grad(program, [w, "X"]) == derive.grad(program, ["W", "X"])
    with pytest.raises(DerivationError, match="no input 'Q'; expected one of X, W"):
        derive.grad(program, dsl.tensor("Q", (4,)))


def test_results_of_integers_have_no_gradient() -> None:
    """As in torch, where the result of argmax requires no gradient; it was a gradient of zeros."""
    position = parse("Y[n] = argmax(k: X[n, k])", X=(2, 3))
    for make in (derive.grad, derive.split, derive.steps):
        with pytest.raises(DerivationError, match="a result of integers, .* try max"):
            make(position, ["X"])


def test_a_position_cast_to_floats_has_a_gradient_of_zeros() -> None:
    """It was an AssertionError."""
    check_gradients(parse("Y[n] = cast(argmax(k: X[n, k]), f32)", X=(2, 3)))
    gradient = derive.grad(parse("Y[n] = argmax(k: X[n, k]) * V[n]", X=(2, 3), V=(2,)))
    values = {"X": [[1, 3, 2], [4, 5, 6]], "V": [7, 8], "dY": [9, 10]}
    found = evaluate(gradient, values)
    assert found["dX"].tolist() == [[0, 0, 0]] * 2 and found["dV"].tolist() == [9, 20]


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("Y[] = sum(i: X[i, i])", "select(i == i', dY[], 0)", "ddY[] = sum(i': ddX[i', i'])"),
        ("Y[i] = sum(j where j <= i: X[i, j])", "select(j <= i, dY[i], 0)", "j where j <= i: ddX"),
        ("Y[i] = 3 * X[i, 2 - i]", "select(i + h == 2, 3 * dY[i], 0)", "3 * ddX[i, 2 - i]"),
    ],
)
def test_a_term_that_is_there_or_not_is_a_choice(text: str, first: str, second: str) -> None:
    """It was sum(t < 1 where i == i': dY[]), over an axis that meant nothing; the conditions of the
    choice are equations again when it is derived."""
    program = parse(text, X=(3, 3))
    gradient = check_gradients(program)
    assert first in str(gradient)
    assert second in str(check_gradients(gradient))


def test_a_choice_on_axes_is_solved() -> None:
    """dV[i] was a sum of a choice over j; a stage that is read again stays as it was written."""
    program = parse("D[i, j] = select(i == j, V[i], 0) for j < 3\nY[i, j] = D[i, j]**2", V=(3,))
    gradient = check_gradients(program)
    assert "D[i, j] = select(i == j, V[i], 0)" in str(gradient)
    assert "dV[i] = dD[i, i]" in str(gradient)


def test_remainders_of_values_have_the_slope_of_their_dividend() -> None:
    """The gradient held sympy's Derivative(Mod(...)), which nothing compiles."""
    program = parse("Y[i] = (X[i] * W[i] % 3)**2", X=(4,), W=(4,))
    gradient = derive.grad(program, ["X"])
    values = {"X": [1, 2, -5, 7], "W": [2, 2, 1, 3], "dY": [1, 1, 1, 1]}
    rests = [2, 1, 1, 0]
    assert evaluate(gradient, values)["dX"].tolist() == [
        2 * rest * w for rest, w in zip(rests, values["W"], strict=True)
    ]
