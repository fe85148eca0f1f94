"""The recipe for reductions that are bound by bytes."""

import re

import pytest

from convgen.passes.lower import lower
from convgen.schedule.recipes import default_schedule
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
