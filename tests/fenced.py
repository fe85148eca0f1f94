"""Arrays whose neighbours in memory may not be touched."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np


def fenced(values: np.ndarray) -> np.ndarray:
    """The values right before a page that may not be touched."""
    page = mmap.PAGESIZE
    size = values.nbytes
    room = -(-size // page) * page
    area = mmap.mmap(-1, room + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + room), ctypes.c_size_t(page), 0) == 0
    found = np.frombuffer(area, values.dtype, len(values), room - size)
    found[:] = values
    return found
