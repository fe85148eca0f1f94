"""A C program around an exported bundle, for timing calls the way a C program makes them."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.errors import InternalError
from convgen.runtime.call import zeros_on_line
from convgen.runtime.threads import template
from convgen.symbolic.program import Program

Array = NDArray[Any]
Repeat = Callable[[int], None]
_P, _N = ctypes.c_void_p, ctypes.c_int64


def forward_in_c(
    export: Callable[..., object], program: Program, inputs: Sequence[Array], out: Array
) -> tuple[Repeat | None, str]:
    """(a function that calls NAME_forward so many times from C and writes `out`, ""); or (None, why
    there is none). The first input is the samples, the others are weights. `export` writes bundles.
    """
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None, "C call: left out, for there is no C compiler (cc, gcc or clang) on the path"
    with tempfile.TemporaryDirectory() as folder:
        export(program, folder, name="doors", backward=False)
        (Path(folder) / "repeat.c").write_text(template("c/repeat.c"))
        command = [compiler, "-O2", "-shared", "-fPIC", "repeat.c", "libdoors.a", "-lpthread"]
        done = subprocess.run(
            [*command, "-o", "repeat.so"], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            return None, f"C call: left out, for {compiler} failed: {done.stderr.strip()[:300]}"
        library = ctypes.CDLL(str(Path(folder) / "repeat.so"))
    return _repeat(library, inputs, out), ""


def _repeat(library: ctypes.CDLL, inputs: Sequence[Array], out: Array) -> Repeat:
    """The loop of the library with everything that the caller owns bound to it."""
    x, *weights = inputs
    batch = x.shape[0]
    for name in ("context", "packed", "workspace"):
        getattr(library, f"doors_{name}_bytes").restype = _N
    context = zeros_on_line(library.doors_context_bytes())
    place = _P(context.ctypes.data)
    _ok(library.doors_open(place))
    packed = zeros_on_line(library.doors_packed_bytes(place))
    workspace = zeros_on_line(library.doors_workspace_bytes(place, _N(batch), 1))
    pointers = (_P * len(weights))(*(w.ctypes.data for w in weights))
    _ok(library.doors_pack(place, pointers, _P(packed.ctypes.data)))
    arrays = [_P(a.ctypes.data) for a in (x, packed, out, workspace)]
    loop = library.repeat
    loop.restype = None

    def repeat(count: int) -> None:
        loop(_N(count), place, _N(batch), *arrays)

    wanted, out[...] = out.copy(), 0
    repeat(1)
    if not np.array_equal(out, wanted):
        raise InternalError("the bundle has other bits than the kernel", stage="bench embed")
    repeat.held = (library, context, packed, workspace, *inputs, out)  # type: ignore[attr-defined]
    return repeat


def _ok(code: int) -> None:
    if code:
        raise InternalError(f"a door of the bundle gave code {code}", stage="bench embed")
