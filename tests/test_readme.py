"""The README's Python blocks run, one after another, as a reader would type them."""

import re
from pathlib import Path

import convgen

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "X{reflect}[n, c, 2*y + r - 1, 2*x + s - 1]" in shown and "dX[n, c, " in shown
    assert names["dx"].shape == names["images"].shape
    assert names["dw"].shape == names["weights"].shape
    assert (tmp_path / "digits.convgen").exists()
    assert convgen.load("digits.convgen") is not None


def test_commands_are_those_of_ci():
    script = (Path(__file__).parent.parent / ".ci" / "run").read_text(encoding="utf-8")
    command = "pip install -e '.[test]' && pytest"
    assert command in README and command in script
    assert "pip install '.[demo]' && convgen demo" in README
