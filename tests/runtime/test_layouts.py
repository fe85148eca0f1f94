"""Arrays of callers in layouts of their own: what kernels take, give, say and refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convgen as cg
from convgen.errors import DataError, ScheduleError, ShapeError
from convgen.runtime.build import build_program
from convgen.runtime.verify import verify_cache

TEXT = "Y[n, k, y, x] = sum(c, r, s: X{zero}[n, c, y + r - 1, x + s - 1] * W[k, c, r, s])"


def layer(batch: int = 2, channels: int = 5, filters: int = 19, size: int = 7) -> cg.Program:
    return cg.parse(
        f"{TEXT}   for y < {size}, x < {size}",
        X=(batch, channels, size, size),
        W=(filters, channels, 3, 3),
    )


def numbers(*shape: int, seed: int = 0) -> Any:
    """Small integers, so that sums are exact in any order."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


def by_hand(array: Any, tag: str) -> Any:
    """The array in memory as the text of a layout has it, by numpy's pad, reshape and transpose."""
    letters = "abcdefgh"
    order, blocks = tag, []
    for place, letter in enumerate(tag):
        if letter.isdigit():
            order, rest = tag[:place].lower(), tag[place:]
            digits = ""
            for one in rest:
                if one.isdigit():
                    digits += one
                else:
                    blocks.append((letters.index(one), int(digits)))
                    digits = ""
            break
    parts: dict[int, list[int]] = {d: [] for d in range(array.ndim)}
    for dimension, size in blocks:
        parts[dimension].append(size)
    pads, shape, axes = [], [], {}
    for dimension, extent in enumerate(array.shape):
        unit = int(np.prod(parts[dimension], dtype=int))
        pads.append((0, -extent % unit))
        axes[dimension] = len(shape)
        shape += [-(-extent // unit), *parts[dimension]]
    wide = np.pad(array, pads).reshape(shape)
    seen = dict.fromkeys(parts, 0)
    turned = [axes[letters.index(letter)] for letter in order]
    for dimension, _ in blocks:
        seen[dimension] += 1
        turned.append(axes[dimension] + seen[dimension])
    return np.ascontiguousarray(wide.transpose(turned))


LAYOUTS = [
    {"X": "acdb", "Y": "acdb"},
    {"X": "bcda", "Y": "dcba", "W": "cdab"},
    {"Y": "aBcd16b"},
    {"X": "aBcd4b", "Y": "acdB8b2b", "W": "ABcd16a4b"},
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layouts", LAYOUTS)
def test_a_kernel_takes_and_gives_what_its_layouts_say(
    layouts: dict[str, str], threads: int
) -> None:
    x, w = numbers(2, 5, 7, 7), numbers(19, 5, 3, 3, seed=1)
    wanted = cg.compile(layer())(x, w)
    kernel = cg.compile(layer(), layouts=layouts, threads=threads)
    assert kernel.layouts == layouts
    given = [by_hand(x, layouts.get("X", "abcd")), by_hand(w, layouts.get("W", "abcd"))]
    assert np.array_equal(kernel.to_layout("X", x), given[0])
    assert np.array_equal(kernel.to_layout("W", w), given[1])
    for _ in range(2):  # the second call may take the short way
        found = kernel(*given)
        assert np.array_equal(found, by_hand(wanted, layouts.get("Y", "abcd")))
    assert np.array_equal(kernel.from_layout("Y", found), wanted)
    out = np.zeros_like(found)
    assert kernel(given[0], kernel.prepare(W=given[1]), out=out) is out
    assert np.array_equal(out, found)


@pytest.mark.parametrize("isa", ["x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"])
def test_layouts_compile_for_every_target(isa: str) -> None:
    for layouts in [*LAYOUTS, "preferred"]:
        assert build_program(layer(), isa, layout=layouts).entries


def test_gradients_and_states_have_layouts_too() -> None:
    x, w, dy = numbers(2, 5, 7, 7), numbers(19, 5, 3, 3, seed=1), numbers(2, 19, 7, 7, seed=2)
    wanted = cg.compile(layer(), wrt=["X", "W"])(x, w, dy)
    kernel = cg.compile(layer(), wrt=["X", "W"], layouts={"X": "acdb", "dY": "acdb", "dX": "acdb"})
    arrays = [kernel.to_layout(n, a) for n, a in (("X", x), ("W", w), ("dY", dy))]
    for name, one, other in zip(("dX", "dW"), wanted, kernel(*arrays), strict=True):
        assert np.array_equal(one, kernel.from_layout(name, other))


def test_preferred_has_what_is_read_together_side_by_side() -> None:
    """Depthwise products and windows run along the channels, which lie last then."""
    pool = cg.parse(
        "Y[n, c, y, x] = max(r, s: X[n, c, 2*y + r, 2*x + s])   for r < 2, s < 2",
        X=(2, 64, 28, 28),
    )
    each = cg.parse(
        "Y[n, c, y, x] = sum(r, s: X[n, c, y + r, x + s] * W[c, r, s])",
        X=(1, 96, 30, 30),
        W=(96, 3, 3),
    )
    for program in (pool, each):
        kernel = cg.compile(program, layouts="preferred", target="x86-64-v4")
        assert kernel.layouts == {"X": "acdb", "Y": "acdb"}


def test_preferred_leaves_weights_to_prepare_and_what_is_good_as_it_is() -> None:
    kernel = cg.compile(layer(1, 64, 64, 28), layouts="preferred", target="x86-64-v4")
    assert "W" not in kernel.layouts
    copy = cg.compile(cg.parse("Y[n, c, y] = relu(X[n, c, y])", X=(4, 6, 50)), layouts="preferred")
    assert copy.layouts == {}


def test_the_choice_is_kept_on_disk_and_certified() -> None:
    program = layer(1, 12, 33, 8)
    first = build_program(program, layout="preferred")
    again = build_program(program, layout="preferred")
    plain = build_program(program)
    assert again.from_cache and again.layouts == first.layouts and again.layouts
    assert plain.key != first.key and not plain.layouts
    kernel = cg.compile(program, layouts="preferred")
    certificate = kernel.certificate()
    assert certificate.passed, str(certificate)
    assert {c.claim for c in certificate.checks if c.passed} >= {"machine code", "loops", "bounds"}
    found = [f for f in verify_cache() if f.key == first.key]
    assert [f.state for f in found] == ["sound"]


def test_the_report_names_the_layouts() -> None:
    kernel = cg.compile(layer(), layouts={"X": "acdb", "Y": "aBcd16b"})
    rows = {a.name: a.layout for a in kernel.report(measure=True).arguments}
    assert rows["X"] == "[n][r+y][s+x][c]"
    assert rows["Y"] == "[n][k/16][y][x][16]"
    assert rows["W"] == "[k][c][r][s]"


def test_refusals() -> None:
    kernel = cg.compile(layer(), layouts={"X": "acdb"})
    x, w = numbers(2, 5, 7, 7), numbers(19, 5, 3, 3)
    with pytest.raises(DataError, match=r"layouts: X acdb; to_layout.*\(2, 7, 7, 5\), got \(2, 5"):
        kernel(x, w)
    with pytest.raises(DataError, match="no argument 'Z'; expected X, W, Y"):
        kernel.to_layout("Z", x)
    with pytest.raises(DataError, match="to_layout of X: X has the wrong shape"):
        kernel.to_layout("X", x[:1])
    with pytest.raises(ShapeError, match="each of the letters abcd once, outermost first"):
        cg.compile(layer(), layouts={"X": "abbd"})
    with pytest.raises(ShapeError, match="layout 'abcd16e' of X"):
        cg.compile(layer(), layouts={"X": "abcd16e"})
    with pytest.raises(ShapeError, match="layout of 'Q'; expected one of X, W, Y"):
        cg.compile(layer(), layouts={"Q": "ab"})
    with pytest.raises(ShapeError, match='expected "preferred" or {name: layout}'):
        cg.compile(layer(), layouts="channels last")
    with pytest.raises(ScheduleError, match="a search with layouts"):
        cg.compile(layer(), layouts="preferred", search=2)
    with pytest.raises(ShapeError, match="whose sizes N are open; expected all sizes bound"):
        cg.compile(cg.parse("Y[n, c] = X[n, c] + 1", X=("N", 3)), layouts={"X": "ba"})


def test_a_bundle_has_rowmajor_arrays(tmp_path: Path) -> None:
    kernel = cg.compile(layer(), layouts={"X": "acdb"})
    with pytest.raises(DataError, match=r"row-major arrays.*X acdb.*export\(kernel.program"):
        cg.export(kernel, tmp_path / "out")
