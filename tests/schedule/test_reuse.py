"""What a tile finds of its operands in a cache: what slides, what overlaps, what does neither."""

from __future__ import annotations

from dataclasses import replace

from convgen.ir.nodes import Kernel
from convgen.passes.lower import lower
from convgen.schedule.cost.reuse import fresh_vectors, is_read_once, share_distinct
from convgen.schedule.directives import pack
from convgen.schedule.facts import Facts, Operand, facts_of
from convgen.schedule.recipes.choice import choose
from convgen.symbolic.parse import parse
from convgen.target import Target, target

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


def moved_twice(channels: int = 64, far: int = 5) -> Kernel:
    """Its gradient to the second map: a displacement moves dY in a dimension of its own too."""
    return lower(
        parse(f"""program moved_twice
tensor A: f32[2, {channels}, 32, 48]
tensor dY: f32[2, {2 * far + 1}, {2 * far + 1}, 32, 48]
dB[n, c, h, w] = sum(i, j: dY{{., ., ., zero, zero}}[n, i, j, h + {far} - i, w + {far} - j] * A{{., ., zero, zero}}[n, c, h + {far} - i, w + {far} - j])   for h < 32, w < 48
""")  # noqa: E501
    )


def _operand(kernel: Kernel, name: str, machine: Target = V3) -> tuple[Facts, Operand]:
    (nest,) = kernel.nests()
    facts = facts_of(nest, kernel, machine)
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


def test_a_copy_is_as_large_as_its_halo_makes_it() -> None:
    """81 maps stay in the second cache as they lie, not with a halo around each: what is read of
    them for one channel serves several then."""
    kernel, machine = moved_twice(far=4), replace(V3, l2=2**20, l3=2**25)
    facts, moved = _operand(kernel, "dY", machine)
    assert moved.elements == 2 * 9 * 9 * 32 * 48
    assert moved.copied == 2 * 9 * 9 * (32 + 8) * (48 + 8)
    assert moved.elements // 2 * 4 < 0.6 * machine.l2 < moved.copied // 2 * 4
    chosen = choose(facts.nest, kernel, machine)
    assert "dY" in chosen.packs
    assert "c" in {chosen.vector, *(name for name, _ in chosen.tile)}
    _, plain = _operand(displaced(), "A")
    assert plain.copied == plain.elements


def test_a_copy_without_the_halo_is_no_copy_for_who_needs_it() -> None:
    """A copy counts as made where its halo is as wide as the nest needs."""
    text = """program twice
tensor A: f32[8, 40]
Y[h, w] = sum(r: A[h, w + r])   for r < 3, h < 8, w < {inside}
Z[h, w] = sum(r: A{{., zero}}[h, w + r - 1])   for r < 3, h < 8, w < 40
"""
    kernel = lower(parse(text.format(inside=38)))
    first, second = [n.name for n in kernel.nests()]
    for name, other, there in ((first, second, False), (second, first, True)):
        packed = pack("A", "h", nest=name).apply(kernel, V3)
        nest = next(n for n in packed.nests() if n.name == other)
        (operand,) = facts_of(nest, packed, V3).operands
        assert bool(operand.copies) == there
