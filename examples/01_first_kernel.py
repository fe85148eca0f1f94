"""Lesson 1: a layer is a formula. Write it, read it, run it as native code."""

import numpy as np

import convgen as cg

# Axes are the letters of the formula; tensors have a name and a shape.
n, k, y, x, c, r, s = cg.axes("n k y x c r s")
X = cg.tensor("X", (2, 3, 12, 12))
W = cg.tensor("W", (4, 3, 3, 3))
b = cg.tensor("b", (4,))

# Y[n,k,y,x] = sum over c, r, s of X * W, plus b. Stride 2, one row of zeros around the image.
conv = cg.define(
    "Y",
    [n, k, y, x],
    cg.sum_over([c, r, s], X[n, c, 2 * y + r - 1, 2 * x + s - 1] * W[k, c, r, s]) + b[k],
    extents={y: 6, x: 6},
)
print(conv)

# The text says all that the objects say.
assert cg.parse(str(conv)) == conv

# compile: formula -> loops -> schedule -> LLVM -> a function on NumPy arrays.
kernel = cg.compile(conv)
print("\nschedule:", kernel.schedule)

rng = np.random.default_rng(0)
x_in = rng.standard_normal((2, 3, 12, 12)).astype(np.float32)
w_in = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
b_in = rng.standard_normal(4).astype(np.float32)
out = kernel(x_in, w_in, b_in)

# The same in NumPy, element by element.
padded = np.pad(x_in, ((0, 0), (0, 0), (1, 1), (1, 1)))
expected = np.empty_like(out)
for i in range(6):
    for j in range(6):
        window = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        expected[:, :, i, j] = np.einsum("ncrs,kcrs->nk", window, w_in) + b_in
print("largest difference:", abs(out - expected).max())
assert np.allclose(out, expected, atol=1e-4)
