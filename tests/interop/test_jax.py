"""Programs as JAX functions."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import convgen as cg  # noqa: E402

TEXT = (
    "Y[n, k, y, x] = sum(c, r, s: X[n, c, 2*y + r - 1, 2*x + s - 1] * W[k, c, r, s]) + b[k]"
    " for y < 3, x < 3"
)


@pytest.fixture(scope="module")
def function():
    return cg.jax.function(cg.parse(TEXT, X=(2, 3, 6, 6), W=(4, 3, 3, 3), b=(4,)), threads=1)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    shapes = ((2, 3, 6, 6), (4, 3, 3, 3), (4,))
    return [jax.numpy.asarray(rng.standard_normal(s).astype(np.float32)) for s in shapes]


def reference(x, w, b):
    y = jax.lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (1, 1)))
    return y[:, :, :3, :3] + b[None, :, None, None]


def close(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() <= 2e-5 * max(np.abs(b).max(), 1)


def test_forward_inside_and_outside_of_jit(function, arrays):
    want = reference(*arrays)
    assert close(function(*arrays), want) and close(jax.jit(function)(*arrays), want)


def test_gradients_of_first_and_second_order(function, arrays):
    def loss(f):
        return lambda *given: (f(*given) ** 2).sum()

    got = jax.jit(jax.grad(loss(function), (0, 1, 2)))(*arrays)
    want = jax.grad(loss(reference), (0, 1, 2))(*arrays)
    assert all(close(a, b) for a, b in zip(got, want, strict=True))

    def second(f):
        x, w, b = arrays
        return jax.grad(lambda v: (jax.grad(loss(f), 1)(x, v, b) ** 2).sum())(w)

    assert close(second(function), second(reference))


def test_open_sizes_and_batches():
    program = cg.parse("program f\ntensor X: f32[N, 3]\nY[n] = sum(c: X[n, c] * X[n, c])")
    f = cg.jax.function(program, threads=1)
    for size in (2, 5):
        x = jax.numpy.arange(3.0 * size, dtype="float32").reshape(size, 3)
        assert close(jax.jit(f)(x), (x**2).sum(1))
    x = jax.numpy.ones((4, 2, 3), "float32")
    assert close(jax.vmap(f)(x), np.full((4, 2), 3.0))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, w, b: (x, w), "wrong number of inputs; expected 3: X, W, b, got 2"),
        (lambda x, w, b: (x, w, "b"), "b is no array; expected a JAX array, got str"),
        (lambda x, w, b: (x.astype("int32"), w, b), "X has the wrong dtype or rank"),
        (lambda x, w, b: (x[:, :2], w, b), "X has the wrong shape"),
        (lambda x, w, b: (x, w[0], b), "W has the wrong dtype or rank"),
    ],
)
def test_refusals(function, arrays, spoil, message):
    with pytest.raises(cg.DataError, match=message):
        function(*spoil(*arrays))


def test_programs_with_states_are_refused():
    text = "program s\nstate P: f32[4]\ntensor G: f32[4]\nP2[i] = P[i] - G[i]\nupdate P <- P2"
    with pytest.raises(cg.DataError, match="updates states"):
        cg.jax.function(cg.parse(text))


def test_forward_mode_is_refused_with_the_way_round_it(function, arrays):
    x, w, b = arrays

    def of(v):
        return function(v, w, b).sum()

    for ask in (jax.hessian(of), jax.jacfwd(of), lambda v: jax.jvp(of, (v,), (v,))):
        with pytest.raises(cg.DerivationError, match=r"reverse mode: .*; try jacrev\(jacrev\(f\)"):
            ask(x)
    assert jax.jacrev(jax.jacrev(of))(x).shape == x.shape * 2
