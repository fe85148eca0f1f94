"""Every lesson runs and its own assertions hold; long ones in a small version, and whole under
`pytest -m full`."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

LESSONS = sorted((Path(__file__).parent.parent / "examples").glob("[0-9]*.py"))
# Lessons that take more than a few seconds know --small. Each is done in two minutes on two cores.
LONG = {"21_seeing", "22_four_networks", "23_dcgan", "24_segmentation", "25_go_policy"}


def run(lesson, folder, *arguments):
    root = str(lesson.parent.parent)
    env = dict(os.environ, CONVGEN_CACHE_DIR=str(folder), PYTHONPATH=root)
    command = [sys.executable, str(lesson), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda p: p.stem)
def test_lesson(lesson, tmp_path):
    run(lesson, tmp_path, *(["--small"] if lesson.stem in LONG else []))


@pytest.mark.full
@pytest.mark.parametrize("lesson", [p for p in LESSONS if p.stem in LONG], ids=lambda p: p.stem)
def test_whole_lesson(lesson, tmp_path):
    start = time.monotonic()
    run(lesson, tmp_path)
    assert time.monotonic() - start < 240  # two minutes on two cores that do nothing else


def test_long_lessons_exist():
    assert {p.stem for p in LESSONS} >= LONG
