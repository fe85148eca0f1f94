"""Every lesson runs and its own assertions hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LESSONS = sorted((Path(__file__).parent.parent / "examples").glob("[0-9]*.py"))


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda p: p.stem)
def test_lesson(lesson, tmp_path):
    root = str(lesson.parent.parent)
    env = dict(os.environ, CONVGEN_CACHE_DIR=str(tmp_path), PYTHONPATH=root)
    done = subprocess.run(
        [sys.executable, str(lesson)], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
