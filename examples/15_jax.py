"""Lesson 15: JAX and other arrays. Kernels read what others hold; formulas differentiate in JAX."""

import sys

import numpy as np

import convgen as cg

layer = cg.parse(
    "program layer\n"
    "tensor X: f32[N, 3, 8]\n"
    "tensor W: f32[4, 3, 3]\n"
    "Y[n, k, x] = sum(c, r: X[n, c, x + r - 1] * W[k, c, r]) for x < 8\n"
)
kernel = cg.compile(layer)
rng = np.random.default_rng(0)
x = rng.standard_normal((2, 3, 8)).astype(np.float32)
w = rng.standard_normal((4, 3, 3)).astype(np.float32)
want = kernel(x, w)

# Any object with DLPack or __array_interface__ is read where it is, and written with out=.
try:
    import pyarrow as pa
except ImportError:
    print("pyarrow: not installed")
else:
    out = np.empty_like(want)
    kernel(pa.Tensor.from_numpy(x), pa.Tensor.from_numpy(w), out=pa.Tensor.from_numpy(out))
    assert np.array_equal(out, want)
    print("pyarrow: same bits; copies:", kernel.report().copied)

try:
    import jax
    import jax.numpy as jnp
except ImportError:
    print("this part needs JAX: pip install 'convgen[jax]'")
    sys.exit()

assert np.array_equal(kernel(jnp.asarray(x), jnp.asarray(w)), want)
print("jax arrays: same bits; copies:", kernel.report().copied)

# function: a callback into the kernel, with the derived gradients as custom_vjp.
function = cg.jax.function(layer)


def loss(x, w):
    return (jnp.tanh(function(x, w)) ** 2).mean()


value, (dx, dw) = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, w)
print(f"loss {value:.4f}, gradients {dx.shape} and {dw.shape}")


def reference(x, w):
    y = jax.lax.conv_general_dilated(x, w, (1,), ((1, 1),))
    return (jnp.tanh(y) ** 2).mean()


expected = jax.grad(reference, (0, 1))(x, w)
difference = max(float(abs(a - b).max()) for a, b in zip((dx, dw), expected, strict=True))
print("largest difference to JAX's own:", difference)
assert difference < 1e-5

# Batches by vmap; the gradient of the gradient.
many = jax.vmap(function, in_axes=(0, None))(jnp.stack([x, 2 * x]), w)
assert np.allclose(many[1], 2 * many[0], atol=1e-5)
curvature = jax.grad(lambda w: (jax.grad(loss, 1)(x, w) ** 2).sum())(w)
wanted = jax.grad(lambda w: (jax.grad(reference, 1)(x, w) ** 2).sum())(w)
assert np.allclose(curvature, wanted, atol=1e-5)
print("second derivative: as JAX's own")
