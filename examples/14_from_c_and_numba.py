"""Lesson 14: a kernel is a C function. Call it by address from ctypes, cffi, numba, C and C++."""

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import convgen as cg

blur = cg.parse(
    "program blur\n"
    "tensor X: f32[64, 64]\n"
    "tensor W: f32[3, 3]\n"
    "Y[y, x] = sum(r, s: X[y + r - 1, x + s - 1] * W[r, s]) for y < 64, x < 64\n"
)
kernel = cg.compile(blur)
rng = np.random.default_rng(0)
image = rng.random((64, 64), np.float32)
taps = np.full((3, 3), 1 / 9, np.float32)
want = kernel(image, taps)

# The function takes the arrays in order, then a workspace of its caller, zero at first.
print(kernel.cffi_declaration)
print("workspace:", kernel.workspace_bytes, "bytes")
work = np.zeros(kernel.workspace_bytes, np.uint8)
out = np.empty_like(want)

# ctypes: addresses.
kernel.ctypes(*(a.ctypes.data for a in (image, taps, out, work)))
assert np.array_equal(out, want)
print("ctypes: same bits")

# cffi: the declaration is C.
try:
    import cffi
except ImportError:
    print("cffi: not installed")
else:
    ffi = cffi.FFI()
    ffi.cdef(kernel.cffi_declaration)
    function = ffi.cast("blur_kernel", kernel.address)
    out[:] = 0
    floats = [ffi.from_buffer("float[]", a) for a in (image, taps, out)]
    function(*floats, ffi.from_buffer(work))
    assert np.array_equal(out, want)
    print("cffi: same bits")

# numba: from inside a compiled loop, without Python.
try:
    import numba
except ImportError:
    print("numba: not installed")
else:
    call = kernel.ctypes

    @numba.njit
    def blur_often(image, taps, out, work, times):
        for _ in range(times):
            call(image.ctypes.data, taps.ctypes.data, out.ctypes.data, work.ctypes.data)
            image[:] = out
        return out

    repeated = image
    for _ in range(3):
        repeated = kernel(repeated, taps)
    assert np.array_equal(blur_often(image.copy(), taps, out, work, 3), repeated)
    print("numba: same bits, three times")

# C and C++: any code in this process takes the pointer. (For programs without Python there is
# cg.export, which writes an object file, a library and a header.)
SOURCE = """
%s
#ifdef __cplusplus
extern "C"
#endif
void twice(blur_kernel kernel, float *image, const float *taps, float *out, void *work) {
  kernel(image, taps, out, work);
  kernel(out, taps, image, work);
}
"""
for name, suffix, compiler in (("C", "c", "cc"), ("C++", "cpp", "c++")):
    if shutil.which(compiler) is None:
        print(f"{name}: there is no {compiler} here")
        continue
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"twice.{suffix}"
        source.write_text(SOURCE % kernel.cffi_declaration)
        library = source.with_suffix(".so")
        subprocess.run(
            [compiler, "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", source, "-o", library],
            check=True,
        )
        twice = ctypes.CDLL(str(library)).twice
        picture = image.copy()
        arrays = [a.ctypes.data_as(ctypes.c_void_p) for a in (picture, taps, out, work)]
        twice(ctypes.c_void_p(kernel.address), *arrays)
        assert np.array_equal(picture, kernel(want, taps))
        print(f"{name}: same bits")
