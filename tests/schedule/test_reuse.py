"""What a tile finds of its operands in a cache: what slides, what overlaps, what does neither."""

from __future__ import annotations

from convgen.ir.nodes import Kernel
from convgen.passes.lower import lower
from convgen.schedule.choice import choose
from convgen.schedule.facts import Facts, Operand, facts_of
from convgen.schedule.reuse import fresh_vectors, is_read_once, share_distinct
from convgen.symbolic.parse import parse
from convgen.target import target

V3 = target("x86-64-v3")


def displaced(channels: int = 64) -> Kernel:
    """Products of two maps under displacements."""
    return lower(
        parse(f"""program displaced
tensor A: f32[2, {channels}, 32, 48]
tensor B: f32[2, {channels}, 32, 48]
Y[n, i, j, y, x] = sum(c: A[n, c, y, x] * B{{., ., zero, zero}}[n, c, y + i - 4, x + j - 4])   for i < 9, j < 9, y < 32, x < 48
""")  # noqa: E501
    )


def moved_twice(channels: int = 64) -> Kernel:
    """Its gradient to the second map: a displacement moves dY in a dimension of its own too."""
    return lower(
        parse(f"""program moved_twice
tensor A: f32[2, {channels}, 32, 48]
tensor dY: f32[2, 11, 11, 32, 48]
dB[n, c, h, w] = sum(i, j: dY{{., ., ., zero, zero}}[n, i, j, h + 5 - i, w + 5 - j] * A{{., ., zero, zero}}[n, c, h + 5 - i, w + 5 - j])   for h < 32, w < 48
""")  # noqa: E501
    )


def _operand(kernel: Kernel, name: str) -> tuple[Facts, Operand]:
    (nest,) = kernel.nests()
    facts = facts_of(nest, kernel, V3)
    return facts, next(o for o in facts.operands if o.load.buffer == name)


def test_displacements_along_the_vector_share_its_elements() -> None:
    """Nine displacements by one element of a vector of eight read sixteen elements; nine rows are
    nine vectors, and two positions of three rows are four rows."""
    facts, other = _operand(displaced(), "B")
    assert sorted(map(sorted, other.overlaps)) == [["i", "y"], ["j", "x"]]
    assert not other.windows
    assert share_distinct(other, {"x": 8, "j": 9}) == 16 / (8 * 9)
    assert share_distinct(other, {"x": 8, "i": 9}) == 1.0
    assert share_distinct(other, {"x": 8, "i": 3, "y": 2}) == 4 / (3 * 2)
    assert share_distinct(other, {"x": 8, "j": 1}) == 1.0
    chosen = choose(facts.nest, displaced(), V3)
    assert chosen.packs == {"A", "B"} and [name for name, _ in chosen.tile] == ["j"]


def test_what_a_tap_moves_in_two_dimensions_does_not_slide() -> None:
    """Each displacement reads other elements of dY, wherever its window lies: none is left from the
    iteration before. The map slides, and channels together read dY once for all of them."""
    facts, moved = _operand(moved_twice(), "dY")
    assert not moved.windows and not moved.overlaps
    assert fresh_vectors(facts, moved, "w", 8, {"h": 6.0}) == 6.0
    assert not is_read_once(facts, moved)
    _, slid = _operand(moved_twice(), "A")
    assert sorted(map(sorted, slid.windows)) == [["h", "i"], ["j", "w"]]
    assert fresh_vectors(facts, slid, "w", 8, {"h": 6.0}) < 6.0
    chosen = choose(facts.nest, moved_twice(), V3)
    assert "c" in {chosen.vector, *(name for name, _ in chosen.tile)}
