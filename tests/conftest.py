"""Shared by all tests: the path to tests/reference.py, and goldens that can be rewritten."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite the expected texts under tests/golden instead of comparing with them",
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden("room/name.txt", text): equal to that file under tests/golden, or rewrites it."""
    update = bool(request.config.getoption("--update-golden"))

    def check(name: str, text: str) -> None:
        path = TESTS / "golden" / name
        given = text.rstrip("\n") + "\n"
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(given, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"{path} does not exist; make it with --update-golden, then read it")
        assert given == path.read_text(encoding="utf-8")

    return check
