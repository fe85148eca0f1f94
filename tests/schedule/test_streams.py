"""The recipe for reductions that are bound by bytes."""

import re

import numpy as np
import pytest

from convgen.passes.lower import lower
from convgen.runtime import kernel as kernels
from convgen.schedule.recipes.default import default_schedule
from convgen.symbolic.derive import split
from convgen.symbolic.parse import parse
from convgen.target import target

STATISTICS = """program statistics
tensor X: f32[8, 40, 40, 64]
parameter gamma: f32[64]
mean[c] = sum(n, h, w: X[n, h, w, c]) / 12800
var[c] = sum(n, h, w: (X[n, h, w, c] - mean[c])**2) / 12800
Y[n, h, w, c] = (X[n, h, w, c] - mean[c]) * gamma[c] / sqrt(var[c] + 1e-5)
"""


@pytest.mark.parametrize("where", ["x86-64-v3", "x86-64-v4", "aarch64"])
def test_long_sums_side_by_side_read_whole_lines(where: str) -> None:
    """Else another pass over the arrays reads the rest of each line."""
    _, backward = split(parse(STATISTICS), ["X", "gamma"])
    text = str(default_schedule(lower(backward), target(where)))
    (part,) = re.findall(r"_part: (.*)", text)
    (first,) = re.findall(r"split\(c, (\d+)\)", part) or ["64"]  # or all channels at once
    assert int(first) * 4 % 64 == 0, text


def pool(size: int, stride: int, rows: int, columns: int, channels: int = 64) -> str:
    at = [f"{stride}*{a} + {b} - {size // 2}" for a, b in (("y", "r"), ("x", "s"))]
    return f"""program pool
tensor X: f32[2, {rows * stride}, {columns * stride}, {channels}]
Y[n, y, x, c] = max(r < {size}, s < {size}: X{{omit}}[n, {at[0]}, {at[1]}, c]) for y < {rows}, x < {columns}
"""


@pytest.mark.parametrize("where", ["x86-64-v3", "x86-64-v4", "aarch64"])
def test_rows_that_share_long_rows_are_made_side_by_side(where: str) -> None:
    def directives(*shape: int) -> str:
        return str(default_schedule(lower(parse(pool(*shape))), target(where)))

    assert re.search(
        r"split\(y, 4\).*reorder\(n, y_out, x, (c_out, )?y_in,", directives(3, 2, 28, 28)
    )
    assert re.search(r"split\(y, 3\)", directives(3, 1, 27, 40))
    assert "y_in" not in directives(2, 2, 28, 28)  # nothing is shared
    assert "y_in" not in directives(3, 2, 28, 4)  # the first cache holds all
    assert "y_in" not in directives(3, 2, 29, 29)  # no rows go together evenly


@pytest.mark.parametrize(("size", "stride"), [(3, 2), (3, 1), (5, 3)])
def test_rows_side_by_side_at_every_border(size: int, stride: int) -> None:
    program = parse(pool(size, stride, 8, 20, 72))
    data = np.random.default_rng(size).standard_normal((2, 8 * stride, 20 * stride, 72))
    data = data.astype(np.float32)
    data[0, ::3, ::5, ::7] = np.nan
    kernel = kernels.compile(program, threads=1)
    assert "y_in" in str(kernel.schedule)
    want = np.full((2, 8, 20, 72), -np.inf, np.float32)
    for i in range(8):
        for j in range(20):
            low = [max(0, stride * k - size // 2) for k in (i, j)]
            high = [stride * k - size // 2 + size for k in (i, j)]
            want[:, i, j] = data[:, low[0] : high[0], low[1] : high[1]].max(axis=(1, 2))
    found = kernel(data)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(found, kernels.compile(program, threads=2)(data))
