"""Lesson 4: a layer that no library ships: involution, a kernel for every pixel, with gradients."""

import numpy as np

import convgen as cg

n, g, i, y, x, r, s = cg.axes("n g i y x r s")
groups, width, size = 2, 4, 10
X = cg.tensor("X", (2, groups * width, size, size))
K = cg.tensor("K", (2, groups, 3, 3, size, size))

# Channel 4*g + i of group g is filtered by the kernel K[n, g, :, :, y, x] of the pixel.
involution = cg.define(
    "Y",
    [n, width * g + i, y, x],
    cg.sum_over([r, s], X[n, width * g + i, y + r - 1, x + s - 1] * K[n, g, r, s, y, x]),
    extents={g: groups, i: width, y: size, x: size},
    shape=(2, groups * width, size, size),
)
print(involution)
grad = cg.grad(involution, ["X", "K"])
print()
print(grad)

rng = np.random.default_rng(1)
x_in = rng.standard_normal(X.shape).astype(np.float32)
k_in = rng.standard_normal(K.shape).astype(np.float32)
out = cg.compile(involution)(x_in, k_in)
padded = np.pad(x_in, ((0, 0), (0, 0), (1, 1), (1, 1)))
expected = np.zeros_like(out)
for a in range(3):
    for b in range(3):
        kernel = np.repeat(k_in[:, :, a, b], width, axis=1)
        expected += padded[:, :, a : a + size, b : b + size] * kernel
print("\nlargest difference to NumPy:", abs(out - expected).max())
assert np.allclose(out, expected, atol=1e-5)

dx, dk = cg.compile(grad)(x_in, k_in, np.ones_like(out))
print("gradients:", dx.shape, dk.shape)
assert np.isclose((dx * x_in).sum(), out.sum(), rtol=1e-3)
