"""How often each instruction of a kernel runs: the kernel with counters in its assembly, run once
on the arrays that are measured."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from convgen.backends import llvm
from convgen.backends.blocks import COUNTERS, executed, split
from convgen.runtime.build import Built
from convgen.runtime.call import zeros_on_line

_PHASE = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2)


def count_instructions(
    built: Built, arrays: Mapping[str, NDArray[Any]]
) -> Sequence[Mapping[str, int]]:
    """For each phase: an instruction, as a line of assembly, and how often it ran. The arrays are
    inputs and results by name; results are written."""
    blocks, text = split(built.text("asm"))
    library = llvm.load(llvm.assemble(text, built.target), built.target)
    workspace = zeros_on_line(built.workspace_bytes)
    places = [
        workspace.ctypes.data + built.offsets[a.name]
        if a.name in built.offsets
        else arrays[a.name].ctypes.data
        for a in built.arguments
    ]
    table = (ctypes.c_void_p * max(len(places), 1))(*places)
    for entry in built.entries:
        scratch = zeros_on_line(entry.scratch_bytes)
        phase = _PHASE(library.address(entry.symbol))
        phase(table, scratch.ctypes.data, 0, entry.extent)
    where = ctypes.CFUNCTYPE(ctypes.c_void_p)(library.address(COUNTERS))()
    counts = (ctypes.c_int64 * max(len(blocks), 1)).from_address(where or 0)
    found = executed(blocks, list(counts)[: len(blocks)])
    return [found.get(entry.symbol, {}) for entry in built.entries]
