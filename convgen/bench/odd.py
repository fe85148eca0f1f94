"""Shapes that nobody tuned for: drawn from a seed, each pass against the better torch layout."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convgen.bench.cases import PASSES, Case
from convgen.bench.conv import Limits, Row, Subject, measure_pass
from convgen.types import f32

COUNT = 200
SLOW = 0.8  # a ratio to torch below this is measured again, and reported
_AGAIN = 3
_LEAST = 1_000_000  # operations of a shape
_SECONDS = 0.08  # for a row; the rounds that timing asks for at least take longer anyway


@dataclass(frozen=True, slots=True)
class Odd:
    """A shape's pass with packing included: its row, and the schedule's text where it is slow."""

    case: Case
    row: Row
    schedule: str

    @property
    def slow(self) -> bool:
        """Below 0.8 of the better torch layout, also when measured again."""
        return self.row.ratio is not None and self.row.ratio < SLOW

    def as_json(self) -> dict[str, Any]:
        """The row with the shape's attributes and the schedule."""
        return {**self.row.as_json(), "shape": asdict(self.case), "schedule": self.schedule}


def shapes(count: int = COUNT, seed: int = 0) -> list[Case]:
    """Channels 1 to 300, sizes 5 to 60, kernels 1 to 15, strides 1 to 4, dilations 1 to 3, three in
    ten grouped; what fits and has at least a million operations. The first of more are the same.

    >>> shapes(200)[:3] == shapes(3) != shapes(3, seed=1)
    True
    """
    draw = random.Random(seed)
    found: list[Case] = []
    while len(found) < count:
        groups = draw.randint(2, 32) if draw.random() < 0.3 else 1
        channels, filters = (groups * draw.randint(1, 300 // groups) for _ in range(2))
        size, kernel = draw.randint(5, 60), draw.randint(1, 15)
        stride, dilation = draw.randint(1, 4), draw.randint(1, 3)
        padding = draw.randint(0, dilation * (kernel - 1) // 2)
        name = f"odd{len(found)}"
        attributes = (kernel, stride, padding, groups, dilation)
        case = Case(name, 1, channels, size, filters, *attributes)
        if case.out >= 1 and case.flops >= _LEAST:
            found.append(case)
    return found


def measure(
    cases: Sequence[Case],
    passes: Sequence[str] = PASSES,
    layout: str = "nhwc",
    *,
    threads: int = 1,
    limits: Limits,
) -> Iterator[Odd]:
    """Each pass of each shape, packing included."""
    for case in cases:
        for which in passes:
            subject = Subject(case, which, layout, f32, threads)
            row = _measured(subject, limits)
            if row.ratio is not None and row.ratio < SLOW:
                row = _again(subject, limits)
            yield Odd(case, row, subject.kernel.schedule)


def _measured(subject: Subject, limits: Limits) -> Row:
    return next(iter(measure_pass(subject, limits, ("torch",), _SECONDS, ahead=False)))


def _again(subject: Subject, limits: Limits) -> Row:
    """The middle one of three further measurements."""
    rows = [_measured(subject, limits) for _ in range(_AGAIN)]
    return sorted(rows, key=lambda row: row.ratio or 0.0)[_AGAIN // 2]


def summary(found: Sequence[Odd]) -> dict[str, dict[str, float]]:
    """For each pass: rows, rows below 0.8, the median and the smallest ratio."""
    ratios: dict[str, list[float]] = {}
    for one in found:
        if one.row.ratio is not None:
            ratios.setdefault(one.row.which, []).append(one.row.ratio)
            ratios.setdefault("all", []).append(one.row.ratio)
    return {
        which: {
            "rows": len(all_of),
            "below": sum(ratio < SLOW for ratio in all_of),
            "median": statistics.median(all_of),
            "smallest": min(all_of),
        }
        for which, all_of in ratios.items()
    }


def compile_all(cases: Sequence[Case], passes: Sequence[str], layout: str, threads: int) -> int:
    """Fill the cache of kernels, so that measuring does not wait for the compiler; how many."""
    for case in cases:
        for which in passes:
            Subject(case, which, layout, f32, threads)
    return len(cases) * len(passes)
