"""Schedules as text: what is written is read back, what is none is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convgen.errors import ScheduleError
from convgen.schedule import directives as d
from convgen.schedule.schedule import Schedule, parse_schedule

names = st.from_regex(r"[a-z][a-z_0-9]{0,5}'?(_in)?", fullmatch=True)
sizes = st.integers(1, 99)
nests = st.sampled_from(["", "Y", "dXp'.1", "T_2"])
directive = st.one_of(
    st.builds(d.split, names, sizes, st.sampled_from(["exact", "peel", "guard"]), nest=nests),
    st.builds(lambda a, s, n: d.cover(a, *s, nest=n), names, st.lists(sizes, min_size=1), nests),
    st.builds(d.peel, names, sizes, sizes, nest=nests),
    st.builds(lambda a, n: d.reorder(*a, nest=n), st.lists(names, min_size=1), nests),
    st.builds(d.fuse, names, names, nest=nests),
    st.builds(d.reverse, names, nest=nests),
    st.builds(d.unroll, names, st.integers(0, 9), nest=nests),
    st.builds(d.vectorize, names, st.booleans(), nest=nests),
    st.builds(lambda a, n: d.parallel(*a, nest=n), st.lists(names, min_size=1), nests),
    st.builds(d.carry, nest=nests),
    st.builds(lambda f, n: d.carry(follow=f, nest=n), names, nests),
    st.builds(d.rfactor, names, nest=nests),
    st.builds(
        lambda b, a, h, n: d.pack(b, *a, hoist=h, nest=n),
        names,
        st.lists(names, max_size=3),
        st.booleans(),
        nests,
    ),
    st.builds(lambda b, a, n: d.unfold(b, *a, nest=n), names, st.lists(names, max_size=3), nests),
    st.builds(lambda a, n: d.fold(*a, nest=n), st.lists(names, max_size=3), nests),
    st.builds(lambda a, n: d.collect(*a, nest=n), st.lists(names, max_size=3), nests),
    st.builds(d.compute_at, names, names, nest=nests),
    st.builds(d.inline, names, nest=nests),
)


@given(st.lists(directive, max_size=6))
def test_text_round_trips(parts: list[d.Directive]) -> None:
    schedule = Schedule(tuple(parts))
    assert parse_schedule(str(schedule)) == schedule


def test_the_example_of_the_manual() -> None:
    text = (
        "cover(x, 10, 9); split(k, 32); reorder(n, k_out, y, x_out, r, s, c, x_in, k_in); "
        "pack(W, k_in); vectorize(k_in)"
    )
    assert str(parse_schedule(text)) == text
    assert parse_schedule(text.replace(" ", "")) == parse_schedule(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "spilt(x, 4)",
            "spilt(x, 4): this is not a schedule; expected one of split cover peel reorder fuse "
            "reverse unroll vectorize parallel carry rfactor pack unfold fold collect compute_at "
            "inline join partial, "
            "got 'spilt'; try split(...)",
        ),
        ("Vectorise(x)", "got 'Vectorise'; try vectorize(...)"),
        ("tile(x, 4)", "got 'tile'; try split(x, 4); vectorize(x_in)"),
        ("split(x, 4", "expected ',', got the end"),
        ("split(x, 4) unroll(x)", "expected ';', got 'unroll'"),
        ("split(x, four)", "expected split(axis, factor, tail) with factor a int, got 'four'"),
        ("split(x)", "expected split(axis, factor, tail)"),
        ("split(x, 4, nest=Y)", "expected split(axis, factor, tail) with nest a str, got 'Y'"),
        ("split(x, -4)", "expected a name or a number, got '-'"),
        ("__import__('os')", "got '__import__'"),
        ("split(x, 1 + 1)", "got '+'"),
    ],
)
def test_what_is_no_schedule_is_refused(text: str, message: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        parse_schedule(text)
    assert message in str(caught.value)
