"""A kernel for one binding of its sizes, and what its calls must bring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from convgen.runtime.build import Built
from convgen.runtime.call import Caller, Prepared
from convgen.runtime.layouts import arguments, as_laid_out, is_padded
from convgen.symbolic.program import Program

# What numpy says in one number: C-contiguous and aligned; and writeable.
_READ = 0x101
_WRITE = 0x501


@dataclass
class Special:
    """The kernel for one binding of the sizes.

    program  sizes bound; results: name, dtype and shape of each result
    wanted   dtype and flags of each input and result, as a call that needs no copy has them
    apart    (i, bytes of i, j, bytes of j): arrays whose memory must not meet
    padded   results with places that belong to no element
    packed   (place, name) of the inputs that the kernel packs
    handles  (place, name) of the inputs for which a call brings a prepared handle
    """

    program: Program
    built: Built
    results: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]
    wanted: tuple[tuple[np.dtype[Any], int], ...]
    apart: tuple[tuple[int, int, int, int], ...]
    caller: Caller
    padded: frozenset[str]
    packed: tuple[tuple[int, str], ...] = ()
    handles: tuple[tuple[int, str], ...] = ()

    def ahead(self, handles: Sequence[Prepared], inputs: Sequence[object]) -> Prepared | None:
        """The handle that holds the packed copies of just the arrays that a call brings."""
        for handle in handles:
            own = handle.arrays
            if handle.serves(self.built) and all(own.get(n) is inputs[i] for i, n in self.packed):
                return handle
        return None

    @staticmethod
    def of(program: Program, built: Built) -> Special:
        names = [*dict.fromkeys([*(t.name for t in program.outputs), *program.saved])]
        facts = {
            t.name: (np.dtype(t.dtype.numpy_name), cast("tuple[int, ...]", t.shape))
            for t in (as_laid_out(t, built.layouts) for t in arguments(program))
        }
        inputs = [t.name for t in program.inputs]
        written = {state for state, _ in program.updates} | set(names)
        arrays = [*inputs, *names]
        sizes = [facts[n][0].itemsize * math.prod(facts[n][1]) for n in arrays]
        return Special(
            program,
            built,
            tuple((n, *facts[n]) for n in names),
            tuple((facts[n][0], _WRITE if n in written else _READ) for n in arrays),
            tuple(
                (i, sizes[i], j, sizes[j])
                for i, name in enumerate(arrays)
                for j, other in enumerate(arrays)
                if name in written and (j < i or (j > i and other not in written))
            ),
            Caller(built, arrays),
            frozenset(n for n in names if is_padded(program.tensor(n), built.layouts)),
            tuple((inputs.index(n), n) for n in built.prepared),
        )
