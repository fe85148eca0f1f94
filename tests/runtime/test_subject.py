"""What the texts of the command line name, and what is said of those that name nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from convgen.errors import ConvgenError, DataError, ShapeError
from convgen.runtime.subject import parse_shape, parse_shapes, resolve


def test_shapes() -> None:
    assert parse_shape("8, 64,56") == (8, 64, 56) and parse_shape("3,") == (3,)
    assert parse_shapes(["X=N,3", "b="]) == {"X": ("N", 3), "b": ()}


@pytest.mark.parametrize("text", ["8,,3", ",3", "a", "-3", "1.5", "3;4"])
def test_shapes_that_are_none(text: str) -> None:
    with pytest.raises(ShapeError, match="expected integers such as"):
        parse_shape(text)
    if text != "a":
        with pytest.raises(ShapeError, match="expected NAME=EXTENT"):
            parse_shapes([f"X={text}"])


@pytest.mark.parametrize(
    "source, message",
    [
        ("raise ValueError('so')", "the file raised ValueError: so"),
        ("import sys; sys.exit(3)", "the file raised SystemExit: 3"),
        ("def (", "the file raised SyntaxError"),
        ("Y = 3", "is a int; expected a Program"),
        ("Z = 3", "has no 'Y'; expected one of -"),
    ],
)
def test_python_files(source: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "layer.py"
    path.write_text(source)
    with pytest.raises(ConvgenError) as caught:
        resolve(f"{path}:Y")
    assert message in str(caught.value)


def test_a_python_file_needs_a_name(tmp_path: Path) -> None:
    path = tmp_path / "layer.py"
    path.write_text("")
    with pytest.raises(DataError, match="which object of .*expected .*layer.py:NAME"):
        resolve(str(path))
    with pytest.raises(DataError, match="no such file"):
        resolve(f"{tmp_path}/none.py:Y")
