from pathlib import Path

import pytest

from convgen import knobs
from convgen.errors import UserError


def test_default_environment_override(monkeypatch):
    monkeypatch.delenv("CONVGEN_DEBUG", raising=False)
    assert (knobs.DEBUG.value, knobs.DEBUG.source) == (0, "default")
    monkeypatch.setenv("CONVGEN_DEBUG", " 3 ")
    assert (knobs.DEBUG.value, knobs.DEBUG.source) == (3, "environment")
    with knobs.override(DEBUG=1):
        assert (knobs.DEBUG.value, knobs.DEBUG.source) == (1, "override")
        with knobs.DEBUG.set(5):
            assert knobs.DEBUG.value == 5
        assert knobs.DEBUG.value == 1
    assert knobs.DEBUG.value == 3


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("DEBUG", "six", "expected 0 to 5, got 'six'"),
        ("VERIFY", "3", "expected 0 to 2"),
        ("NUM_THREADS", "-1", "expected 0 to 1024"),
        ("CACHE", "perhaps", "expected 0 or 1"),
    ],
)
def test_bad_values_are_refused(monkeypatch, variable, text, message):
    monkeypatch.setenv(f"CONVGEN_{variable}", text)
    with pytest.raises(UserError, match=message):
        _ = knobs.KNOBS[variable].value


def test_override_checks_and_restores():
    with pytest.raises(UserError, match="no knob 'SPEED'"), knobs.override(SPEED=1):
        pass
    with pytest.raises(RuntimeError), knobs.override(CACHE=False, DUMP="~/x"):
        assert knobs.CACHE.value is False
        assert knobs.DUMP.value == Path.home() / "x"
        raise RuntimeError
    assert knobs.CACHE.value is True


def test_rows_tell_every_knob(monkeypatch):
    monkeypatch.setenv("CONVGEN_NUM_THREADS", "2")
    rows = {row.variable: row for row in knobs.rows()}
    assert set(rows) == {k.variable for k in knobs.KNOBS.values()}
    assert rows["CONVGEN_NUM_THREADS"].value == "2"
    assert rows["CONVGEN_NUM_THREADS"].source == "environment"
    assert all(row.sentence.endswith(".") for row in rows.values())
