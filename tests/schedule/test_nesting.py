"""The order of a tile's loops keeps few values in registers."""

from __future__ import annotations

import pytest

import convgen as cg
from convgen.passes.lower import lower
from convgen.schedule.facts import facts_of
from convgen.schedule.recipes.nesting import nested
from convgen.schedule.tiles import Candidate
from convgen.target import target


def facts():
    """A moves with y and the vector loop n, B with k; three by four of them make a tile."""
    program = cg.parse("Y[n, y, k] = sum(c: A[c, y, n] * B[c, k])", A=(8, 12, 64), B=(8, 12))
    kernel = lower(program)
    return facts_of(list(kernel.nests())[0], kernel, target("x86-64-v3"))


@pytest.mark.parametrize(
    ("first", "second", "outermost"),
    [
        # y outside keeps one vector and k broadcasts; k outside y vectors and one broadcast.
        (("k", 2), ("y", 6), "y"),
        (("y", 3), ("k", 4), "k"),
        (("y", 4), ("k", 4), "y"),  # equal: as they stand
        (("k", 4), ("y", 4), "k"),
    ],
)
def test_the_shorter_loop_is_inside(first, second, outermost) -> None:
    tile = tuple((name, (size,)) for name, size in (first, second))
    found = nested(facts(), Candidate("n", 8, tile))
    assert found[0][0] == outermost and set(found) == set(tile)


def test_two_vectors_of_each_count_twice() -> None:
    """With two vectors along n, y outside keeps 2 + 6, k outside 8 + 1."""
    tile = (("k", (6,)), ("y", (4,)))
    assert nested(facts(), Candidate("n", 16, tile))[0][0] == "y"
    assert nested(facts(), Candidate("n", 8, tile))[0][0] == "k"


def test_one_loop_stays() -> None:
    assert nested(facts(), Candidate("n", 8, (("y", (4,)),))) == (("y", (4,)),)
