"""Run a bundle with every buffer at the edge of a page that nobody may touch.

    python guarded.py FOLDER NAME end|begin BATCH...

A read or write outside a buffer ends the process with a signal. Buffers are full of NaN bytes at
first, so that what is read before it is written shows in the checksums.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import sys
from pathlib import Path

import numpy as np

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(size: int, edge: str) -> np.ndarray:
    """`size` bytes of 0xFF that end (or begin) at a page of no access."""
    pages = -(-max(size, 1) // PAGE) * PAGE
    base = _libc.mmap(None, pages + 2 * PAGE, 3, 0x22, -1, 0)
    assert base not in (None, 2**64 - 1)
    for forbidden in (base, base + PAGE + pages):
        assert _libc.mprotect(forbidden, PAGE, 0) == 0
    start = base + PAGE + (pages - size if edge == "end" else 0)
    memory = np.frombuffer((ctypes.c_char * size).from_address(start), np.uint8)
    memory[...] = 0xFF
    return memory


def main(folder: str, name: str, edge: str, *batches: str) -> None:
    spec = importlib.util.spec_from_file_location(name, Path(folder) / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plain_own, plain_checked = module.Bundle._own, module.Bundle._checked

    def own(self, group, batch):
        found = []
        for like in plain_own(self, group, batch):
            array = guarded(like.nbytes, edge).view(like.dtype).reshape(like.shape)
            if group == "states":
                array[...] = 1
            found.append(array)
        return found

    def checked(self, group, arrays, batch):
        found = []
        for array in plain_checked(self, group, arrays, batch):
            copy = guarded(array.nbytes, edge).view(array.dtype).reshape(array.shape)
            copy[...] = array
            found.append(copy)
        return found

    module._memory = lambda size: guarded(max(int(size), 64), edge)
    module.Bundle._own, module.Bundle._checked = own, checked
    facts = module._read_json(Path(folder) / "MANIFEST.json")
    draw = np.random.default_rng(5)

    def arrays(group, batch):
        return [
            draw.standard_normal(module._shape(p, batch)).astype(module._DTYPES[p["dtype"]])
            for p in facts["arrays"][group]
        ]

    weights = [a * a.dtype.type(0.1) for a in arrays("weights", 1)]
    for level in range(len(facts["targets"])):
        try:
            bundle = module.Bundle(weights, level=level)
        except module.BundleError:
            continue  # an instruction set that this machine has not
        for batch in map(int, batches):
            x = arrays("x", batch)
            results = [bundle.forward(*x)]
            if facts["backward"]:
                results.append(bundle.forward(*x, save=True))
                inputs, grads = bundle.backward(*arrays("dy", batch))
                results += [*inputs, *grads]
            if facts["step"] and batch == facts["batch"]:
                results.append(bundle.forward(*x))
                bundle._optimizer[0][...] = 0
                (labels,) = facts["arrays"]["labels"]
                chosen = np.arange(batch) % facts["arrays"]["y"][0]["shape"][1]
                chosen = chosen.astype(module._DTYPES[labels["dtype"]])
                hyper = [0.01] * len(facts["hyper"])
                losses = [bundle.step(*x, labels=chosen, hyper=hyper) for _ in range(3)]
                results.append(np.array(losses))
            for result in results:
                flat = result if isinstance(result, tuple) else (result,)
                for array in flat:
                    assert not np.isnan(array).any(), f"level {level}, batch {batch}: NaN"
                    print(array.shape, float(np.abs(array).sum(dtype=np.float64)))


if __name__ == "__main__":
    main(*sys.argv[1:])
