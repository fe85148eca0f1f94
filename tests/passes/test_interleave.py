"""Chains of neighbouring vectors in turns: the same operations, side by side where they are long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from convgen.ir.interpret import difference
from convgen.ir.nodes import Kernel, Set, Stmt, Store
from convgen.ir.verify import verify
from convgen.ir.visit import map_stmt, walk
from convgen.passes.flatten import flatten
from convgen.passes.interleave import interleave
from convgen.passes.lower import lower
from convgen.passes.math import expand
from convgen.schedule.schedule import parse_schedule
from convgen.symbolic.parse import parse
from convgen.target import target

NATIVE = [target(name) for name in ("x86-64-v3", "x86-64-v4", "aarch64")]


def expanded(formula: str, where: object) -> Kernel:
    """A map over rows of eight vectors or so, its functions written out."""
    program = parse(formula, X=(3, 128), T=(3,))
    made = parse_schedule("vectorize(c)").apply(lower(program), where)  # type: ignore[arg-type]
    return expand(flatten(made, where), where)  # type: ignore[arg-type]


def stores_between(kernel: Kernel) -> list[int]:
    """For each store: how many registers are set since the one before it."""
    found, count = [], 0
    for phase in kernel.phases:
        assert not isinstance(phase.body, tuple)
        for part in walk(phase.body):
            if isinstance(part, Set):
                count += 1
            if isinstance(part, Store):
                found.append(count)
                count = 0
    return found


@pytest.mark.parametrize("where", NATIVE, ids=lambda t: t.name)
@pytest.mark.parametrize(
    "formula",
    [
        "Y[n, c] = exp(X[n, c] - T[n])",
        "Y[n, c] = tanh(X[n, c]) * T[n]",
        "Y[n, c] = sigmoid(X[n, c]) + T[n]",
    ],
)
def test_chains_take_turns(formula: str, where: object) -> None:
    before = expanded(formula, where)
    after = interleave(before, where)  # type: ignore[arg-type]
    verify(after, "interleave")
    assert not difference(before, after)
    assert 0 in stores_between(after) and 0 not in stores_between(before)


@pytest.mark.parametrize("where", NATIVE, ids=lambda t: t.name)
def test_the_longest_chains_take_turns_beyond_the_registers(where: object) -> None:
    before = expanded("Y[n, c] = X[n, c]*tanh(log(1 + exp(X[n, c]))) * T[n]", where)
    after = interleave(before, where)  # type: ignore[arg-type]
    verify(after, "interleave")
    assert not difference(before, after)
    assert [0, 0, 0] == stores_between(after)[1:4]


@pytest.mark.parametrize("where", NATIVE, ids=lambda t: t.name)
def test_short_chains_stay(where: object) -> None:
    before = expanded("Y[n, c] = 2*X[n, c] + T[n]", where)
    assert interleave(before, where) is before  # type: ignore[arg-type]


@pytest.mark.parametrize("where", NATIVE, ids=lambda t: t.name)
def test_what_is_stored_where_others_read_stays(where: object) -> None:
    made = expanded("Y[n, c] = exp(X[n, c] - T[n])", where)

    def onto(stmt: Stmt) -> Stmt:
        return replace(stmt, buffer="X") if isinstance(stmt, Store) else stmt

    (phase,) = made.phases
    assert not isinstance(phase.body, tuple)
    before = replace(made, phases=(replace(phase, body=map_stmt(phase.body, onto)),))
    assert interleave(before, where) is before  # type: ignore[arg-type]
