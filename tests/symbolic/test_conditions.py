"""Comparisons in formulas are conditions; Python's if, and, not, ==, != and chains are refused."""

from __future__ import annotations

from typing import Any

import pytest
from sympy import exp

from convgen.errors import FormulaError
from convgen.symbolic.dsl import axes, define, sum_over, tensor
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.functions import equal, less, relu, select
from convgen.symbolic.parse import parse

_ASKED = {
    "a chain": lambda i, j, V: select(0 < j < i, V[i], 0),
    "if": lambda i, j, V: V[i] if V[i] > 0 else 0,
    "and": lambda i, j, V: select(equal(i, j) and V[i] > 0, V[i], 0),
    "not": lambda i, j, V: select(not less(i, j), V[i], 0),
    "an exponential": lambda i, j, V: 0 < exp(i) if relu(V[i]) > 0 else 0,
    "a sum": lambda i, j, V: 1 if sum_over(j, V[j]) > 0 else 0,
}


@pytest.mark.parametrize("name", _ASKED)
def test_conditions_have_no_truth_for_python(name: str) -> None:
    """Python's if, and, not and chains were sympy's bare TypeError, or dropped a condition."""
    i, j = axes("i j")
    with pytest.raises(FormulaError, match="expected conditions inside .* got one that Python"):
        _ASKED[name](i, j, tensor("V", (5,)))


@pytest.mark.parametrize("make", [lambda v: select(v, 1, 2), lambda v: v, lambda v: relu(v)])
def test_truths_of_python_are_no_bodies(make: Any) -> None:
    """V[i] != 0 is Python's True: a body of it was the number 1."""
    i, v = axes("i")[0], tensor("V", (5,))
    for value in (v[i] != 0, v[i] == 0):
        with pytest.raises(FormulaError, match=r"== and != compare .* try cg.equal\(a, b\)"):
            define("Y", [i], make(value))


def test_conditions_join_whatever_made_them() -> None:
    i, j = axes("i j")
    v = tensor("V", (5,))
    made = define(
        "Y", [i, j], select((v[i] > 0) & ~equal(i, j) | (2 * j < i), v[i], 0), extents={j: 5}
    )
    text = (
        "Y[i, j] = select(logical_or(2*j < i, logical_and(logical_not(i == j), 0 < V[i])), "
        "V[i], 0) for j < 5"
    )
    assert evaluate(made, {"V": [1, -1, 2, 0, 3]}) == evaluate(
        parse(text, V=(5,)), {"V": [1, -1, 2, 0, 3]}
    )
    with pytest.raises(FormulaError, match="stands in arithmetic; try cg.select"):
        v[i] * (v[i] > 0)


@pytest.mark.parametrize("text", ["0 < j < i", "i == j != 3"])
def test_chains_of_comparisons_in_text_are_refused(text: str) -> None:
    """0 < j < i meant (0 < j) < i: the truth 0 or 1 compared with i."""
    with pytest.raises(FormulaError, match=r"column \d+: a chain .* try logical_and\(a < b"):
        parse(f"Y[i, j] = select({text}, X[i, j], 0)", X=(5, 6))
    parse("Y[i, j] = sum(k where 0 < k < i: X[i, j])  for k < 4", X=(5, 6))
