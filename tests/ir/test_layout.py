"""Flat offsets against numpy's own reordering, bounds and footprints against brute force."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from convgen.affine import Affine, Constraint
from convgen.errors import InternalError, ShapeError
from convgen.ir.interpret.memory import pack, unpack
from convgen.ir.layout import (
    flat_offset,
    layout_tag,
    parse_layout,
    physical_shape,
    scratch_offsets,
    size_in_bytes,
    size_in_elements,
    strides,
)
from convgen.ir.nodes import Buffer, Layout
from convgen.ir.regions import footprint, inside, join, tighten
from convgen.ir.simplify import decide, simplify_affine, simplify_guards
from convgen.types import f32, f64

LAYOUTS = [
    Layout((0, 1, 2)),
    Layout((2, 0, 1)),
    Layout((0, 1, 2), ((1, 4),)),
    Layout((0, 2, 1), ((1, 4), (2, 2))),
    Layout((0, 1, 2), ((1, 2), (1, 4))),
    Layout((0, 1, 2), (), ((0, 0), (1, 1), (2, 0))),
    Layout((1, 0, 2), ((2, 4),), ((0, 0), (0, 0), (1, 2))),
]


def by_hand(layout: Layout, array: np.ndarray) -> np.ndarray:
    """Pad, cut into blocks, transpose: the same memory by numpy's reshape."""
    halo = layout.halo or ((0, 0),) * array.ndim
    array = np.pad(array, halo)
    blocks = {d: [s for e, s in layout.blocks if e == d] for d in range(array.ndim)}
    for d, sizes in blocks.items():
        whole = int(np.prod(sizes))
        array = np.pad(array, [(0, -array.shape[d] % whole if e == d else 0) for e in range(3)])
    shape: list[int] = []
    outer: dict[int, int] = {}
    inner: dict[tuple[int, int], int] = {}
    for d, sizes in blocks.items():
        outer[d] = len(shape)
        shape.append(array.shape[d] // int(np.prod(sizes)))
        for i, size in enumerate(sizes):
            inner[d, i] = len(shape)
            shape.append(size)
    order = [outer[d] for d in layout.order]
    seen = dict.fromkeys(range(array.ndim), 0)
    for d, _ in layout.blocks:
        order.append(inner[d, seen[d]])
        seen[d] += 1
    return array.reshape(shape).transpose(order)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_offsets_are_those_of_reshape_and_transpose(layout: Layout) -> None:
    shape = (2, 9, 5)
    buffer = Buffer("B", f32, shape, layout, "packed")
    array = np.arange(1, 91, dtype=np.float32).reshape(shape)
    memory = by_hand(layout, array)
    assert physical_shape(buffer) == memory.shape
    assert size_in_elements(buffer) == memory.size
    assert np.array_equal(pack(buffer, array), memory.ravel())
    assert np.array_equal(unpack(buffer, memory.ravel()), array)
    names = ("a", "b", "c")
    ranges = {n: (0, e) for n, e in zip(names, shape, strict=True)}
    offset = flat_offset(buffer, [Affine.of(n) for n in names], ranges)
    for point in itertools.product(*map(range, shape)):
        place = offset.evaluate(dict(zip(names, point, strict=True)))
        assert memory.ravel()[place] == array[point]


def test_halo_is_addressed_outside_the_extents() -> None:
    buffer = Buffer("B", f32, (4,), Layout((0,), (), ((2, 1),)), "packed")
    assert size_in_elements(buffer) == 7
    assert [flat_offset(buffer, (Affine.of(i),)).constant for i in (-2, 0, 4)] == [0, 2, 6]


def test_blocked_indices_of_split_loops_need_no_division() -> None:
    buffer = Buffer("W", f32, (64, 3), Layout((0, 1), ((0, 16),)), "packed")
    index = (32 * Affine.of("o") + Affine.of("i"), Affine.of("c"))
    offset = flat_offset(buffer, index, {"o": (0, 2), "i": (0, 16), "c": (0, 3)})
    assert str(offset) == "16*c + i + 96*o" and offset.is_plain


def test_strides_and_scratch() -> None:
    one = Buffer("A", f32, (3, 20), Layout((1, 0), ((1, 4),)), "scratch")
    two = Buffer("B", f64, (5,), Layout((0,)), "scratch")
    assert strides(one) == (4, 1)
    assert size_in_bytes(one) == 240
    assert scratch_offsets([one, two]) == ({"A": 0, "B": 256}, 320)


def test_wrong_layouts_and_ranks_are_refused() -> None:
    bad = Buffer("B", f32, (2, 3), Layout((0, 0)), "packed")
    with pytest.raises(InternalError, match=r"wanted a permutation of \(0, 1\)"):
        size_in_elements(bad)
    good = Buffer("B", f32, (2, 3), Layout((0, 1)), "packed")
    with pytest.raises(InternalError, match="wanted 2 indices, saw 1"):
        flat_offset(good, (Affine.of("i"),))


def random_affine(chance: random.Random, depth: int = 2) -> Affine:
    terms = [(n, chance.choice([-8, -3, -1, 0, 1, 2, 4, 16])) for n in "ij"]
    value = Affine.build(terms, chance.randrange(-9, 10))
    if depth and chance.random() < 0.7:
        inner = random_affine(chance, depth - 1)
        divisor = chance.choice([2, 3, 4, 8])
        digit = inner // divisor if chance.random() < 0.5 else inner % divisor
        value = value + digit * chance.choice([-4, -1, 1, 3])
        if chance.random() < 0.4:
            value = value + (inner // divisor) * divisor + inner % divisor
    return value


def test_simplification_keeps_every_value_and_bounds_hold() -> None:
    chance = random.Random(5)
    shorter = 0
    for _ in range(400):
        value = random_affine(chance)
        ranges = {n: (lo := chance.randrange(-3, 3), lo + chance.randrange(1, 6)) for n in "ij"}
        new = simplify_affine(value, ranges)
        shorter += len(new.text()) < len(value.text())
        seen = []
        for i, j in itertools.product(range(*ranges["i"]), range(*ranges["j"])):
            assert new.evaluate({"i": i, "j": j}) == value.evaluate({"i": i, "j": j})
            seen.append(value.evaluate({"i": i, "j": j}))
        low, high = new.bounds(ranges)
        assert low <= min(seen) and max(seen) <= high
        for kind in ("==", "<=", "%"):
            guard = Constraint(kind, value, 3)
            holds = {
                guard.holds({"i": i, "j": j})
                for i in range(*ranges["i"])
                for j in range(*ranges["j"])
            }
            verdict = decide(guard, ranges)
            assert verdict is None or holds == {verdict}
        assert inside(value, 5, ranges) <= (min(seen) >= 0 and max(seen) < 5)
    assert shorter > 50


def test_guards_are_proved_refuted_or_kept() -> None:
    i = Affine.of("i")
    proved, open_, refuted = (Constraint("<=", i - n) for n in (9, 3, -1))
    ranges = {"i": (0, 8)}
    assert simplify_guards((proved, open_), ranges) == (open_,)
    assert simplify_guards((open_, refuted), ranges) is None
    assert simplify_guards((Constraint("%", 2 * i + 1, 2),), ranges) is None
    assert simplify_guards((Constraint("==", 4 * i - 6),), ranges) is None


def test_footprints_enclose_what_is_touched() -> None:
    chance = random.Random(6)
    exact = 0
    for _ in range(300):
        value = random_affine(chance)
        inner = {"j": (1, 4)}
        (span,) = footprint((value,), inner)
        assert "j" not in span.base.names()
        for i in range(-2, 6):
            base = span.base.evaluate({"i": i})
            seen = [value.evaluate({"i": i, "j": j}) - base for j in range(1, 4)]
            assert 0 <= min(seen) and max(seen) < span.extent
            exact += min(seen) == 0 and max(seen) == span.extent - 1
    assert exact > 500
    y = Affine.of("y")
    a, b = footprint((y - 1, y), {}), footprint((y + 2, y - 1), {})
    assert [(str(s.base), s.extent) for s in join(a, b) or ()] == [("y - 1", 4), ("y - 1", 2)]
    assert join(a, footprint((2 * y, y), {})) is None


def test_tightening_keeps_every_point() -> None:
    chance = random.Random(7)
    for _ in range(200):
        guards = [
            Constraint(
                chance.choice(["==", "<="]),
                Affine.build(
                    [("i", chance.randrange(-2, 3)), ("j", chance.randrange(-2, 3))],
                    chance.randrange(-4, 5),
                ),
            )
            for _ in range(2)
        ]
        box = {"i": (0, 6), "j": (-2, 5)}
        small = tighten(box, guards)
        for i, j in itertools.product(range(6), range(-2, 5)):
            if all(g.holds({"i": i, "j": j}) for g in guards):
                assert small["i"][0] <= i < small["i"][1] and small["j"][0] <= j < small["j"][1]


def test_layouts_as_text() -> None:
    for layout in LAYOUTS:
        bare = Layout(layout.order, layout.blocks)
        assert parse_layout(layout_tag(bare), 3, "X") == bare
    assert layout_tag(LAYOUTS[3]) == "aCB4b2c"
    assert parse_layout("acb4b2c", 3, "X") == LAYOUTS[3]
    for wrong in ("ab", "abcd", "aab", "abc0b", "abc4", "abc4d", "a b c", ""):
        with pytest.raises(ShapeError, match="each of the letters abc once"):
            parse_layout(wrong, 3, "X")
