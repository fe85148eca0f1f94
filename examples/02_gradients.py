"""Lesson 2: the gradient of a formula is a formula, and a gather: each element is written once."""

import numpy as np

import convgen as cg

conv = cg.parse(
    "Y[n, k, y, x] = sum(c, r, s: X[n, c, y + r - 1, x + s - 1] * W[k, c, r, s]) for y < 8, x < 8",
    X=(2, 3, 8, 8),
    W=(4, 3, 3, 3),
)
grad = cg.grad(conv, ["X", "W"])
print(grad)

# With stride 2 the gradient to the input falls into residue classes, each with taps of its own.
strided = cg.parse(
    "Y[n, k, y] = sum(c, r: X[n, c, 2*y + r - 1] * W[k, c, r]) for y < 4", X=(1, 2, 8), W=(3, 2, 3)
)
print()
print(cg.grad(strided, ["X"]))

# Compiled, it takes the forward inputs and then the cotangent dY.
rng = np.random.default_rng(0)
x_in = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
w_in = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
dy = rng.standard_normal((2, 4, 8, 8)).astype(np.float32)
dx, dw = cg.compile(grad)(x_in, w_in, dy)

# <dY, conv(X, W)> is linear in X and in W: both inner products must agree with it.
total = float((cg.compile(conv)(x_in, w_in) * dy).sum())
print("\n<dY, Y> =", total, "  <dX, X> =", float((dx * x_in).sum()))
print("<dW, W> =", float((dw * w_in).sum()))
assert np.isclose(total, (dx * x_in).sum(), rtol=1e-4)
assert np.isclose(total, (dw * w_in).sum(), rtol=1e-4)
