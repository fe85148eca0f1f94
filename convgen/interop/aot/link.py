"""Shared libraries, through whatever linker there is: the system's, else the `ziglang` package."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from convgen.target import Target, target

_TRIPLES = {"x86-64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}


def linkers(machine: Target) -> list[list[str]]:
    """Commands that may link for a target, the system's compilers first."""
    triple = _TRIPLES[machine.isa]
    found: list[list[str]] = []
    if machine.isa == target("native").isa:
        found += [[path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
    cross = shutil.which(f"{triple}-gcc")
    if cross:
        found.append([cross])
    if importlib.util.find_spec("ziglang") is not None:
        found.append([sys.executable, "-m", "ziglang", "cc", "-target", triple])
    return found


def link_shared(name: str, machine: Target, objects: dict[str, bytes], out: Path) -> str:
    """Write a shared library; "" on success, else why there is none."""
    commands = linkers(machine)
    problem = (
        f"lib{name}.so was not made: no linker for {machine.isa}; expected cc on the path, or "
        "the package ziglang (pip install 'convgen[link]')"
    )
    with tempfile.TemporaryDirectory() as folder:
        for file, data in objects.items():
            (Path(folder) / file).write_bytes(data)
        result = Path(folder) / out.name
        for command in commands:
            full = [
                *command,
                "-shared",
                "-o",
                str(result),
                f"-Wl,-soname,{out.name}",
                "-Wl,-z,noexecstack",
                *objects,
                "-lpthread",
            ]
            done = subprocess.run(full, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode == 0 and result.exists():
                shutil.copyfile(result, out)
                return ""
            problem = f"lib{name}.so was not made: {command[0]} failed: {done.stderr.strip()[:300]}"
    return problem
