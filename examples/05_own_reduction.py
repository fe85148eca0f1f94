"""Lesson 5: a reduction of one's own: the root of the sum of squares over each window."""

import numpy as np

import convgen as cg

# lift: element -> state; combine: two states; project: state -> result; adjoint: the cotangent of
# an element v when the result is y and its cotangent g.
norm = cg.reduction(
    "norm",
    lift=lambda v: v * v,
    combine=lambda a, b: a + b,
    identity=0,
    project=lambda a: cg.sqrt(a),
    adjoint=lambda v, y, g: g * v / y,
)
c, y, x, r, s = cg.axes("c y x r s")
X = cg.tensor("X", (3, 8, 8))
pool = cg.define(
    "Y", [c, y, x], norm.over([r, s], X[c, 2 * y + r, 2 * x + s]), extents={r: 2, s: 2}
)
print(pool)
grad = cg.grad(pool, ["X"])
print()
print(grad)

values = np.random.default_rng(2).standard_normal((3, 8, 8)).astype(np.float32)
out = cg.compile(pool)(values)
windows = values.reshape(3, 4, 2, 4, 2)
expected = np.sqrt((windows**2).sum(axis=(2, 4)))
print("\nlargest difference to NumPy:", abs(out - expected).max())
assert np.allclose(out, expected, atol=1e-5)

dx = cg.compile(grad)(values, np.ones_like(out))
dx = dx[0] if isinstance(dx, tuple) else dx
assert np.allclose(dx, values / np.repeat(np.repeat(expected, 2, 1), 2, 2), atol=1e-5)
