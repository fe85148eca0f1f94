"""Search with a measure that needs no clock."""

from __future__ import annotations

import pytest
from schedule_nests import window

from convgen.errors import ScheduleError
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.schedule import Schedule
from convgen.schedule.search import search
from convgen.target import target

V4 = target("x86-64-v4")


def test_the_fastest_comes_first_and_the_own_choice_is_tried() -> None:
    subject = window(1, 16, 32, 14)
    seen: list[str] = []

    def measure(schedule: Schedule) -> float:
        schedule.apply(subject, V4)
        seen.append(str(schedule))
        return 1.0 / len(seen)

    trials = search(subject, V4, 5, measure)
    assert seen[0] == str(default_schedule(subject, V4))
    assert len(set(seen)) == len(seen) == len(trials) > 1
    assert [t.seconds for t in trials] == sorted(t.seconds for t in trials)
    assert str(trials[0].schedule) == seen[-1]


def test_one_candidate_is_the_default() -> None:
    subject = window(1, 16, 32, 14)
    (trial,) = search(subject, V4, 1, lambda schedule: 1.0)
    assert trial.schedule == default_schedule(subject, V4)


def test_a_search_of_nothing_is_refused() -> None:
    with pytest.raises(ScheduleError, match="expected at least 1, got 0"):
        search(window(1, 16, 32, 14), V4, 0, lambda schedule: 1.0)
