"""Bundles made once for a test run, and C programs around them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

CONV = "Y[n,k,y,x] = sum(c,r,s: X[n,c,2*y+r-1,2*x+s-1]*W[k,c,r,s]) + b[k]   for y < 4, x < 5"
CONV_SHAPES = {"X": (3, 3, 8, 9), "W": (10, 3, 3, 3), "b": (10,)}
STRICT = ["-Wall", "-Wextra", "-Werror", "-O1"]


def draws(count: int, start: int = 1) -> tuple[np.ndarray, int]:
    """What `draw` of main.c gives, and where it stands afterwards."""
    values = np.empty(count)
    state = start
    for i in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        values[i] = (state >> 8) / 16777216.0 - 0.5
    return values, state


def checksum(array: np.ndarray) -> str:
    """What `show` of main.c prints."""
    total = 14695981039346656037
    for byte in np.ascontiguousarray(array).tobytes():
        total = (total ^ byte) * 1099511628211 % 2**64
    return f"{total:016x}"


def compiler(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(command: list[str], folder: Path, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done


def load(folder: Path, name: str):
    """The loader module of a bundle."""
    spec = importlib.util.spec_from_file_location(
        f"{name}_{abs(hash(folder))}", folder / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def sums(text: str) -> dict[str, str]:
    """name -> checksum of what main.c printed."""
    return dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
