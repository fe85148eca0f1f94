"""Elementary functions along the whole road: a formula compiled by `compile`, against mpmath."""

import mpmath
import numpy as np
import pytest
import sympy

from convgen.runtime.kernel import compile
from convgen.symbolic import functions
from convgen.symbolic.dsl import axes, define, tensor
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.parse import parse

FUNCTIONS = {
    "exp": (sympy.exp, mpmath.exp, (-80, 80)),
    "log": (sympy.log, mpmath.log, (1e-30, 9)),
    "tanh": (sympy.tanh, mpmath.tanh, (-9, 9)),
    "sigmoid": (functions.sigmoid, lambda x: 1 / (1 + mpmath.exp(-x)), (-30, 30)),
    "erf": (sympy.erf, mpmath.erf, (-4, 4)),
    "sqrt": (sympy.sqrt, mpmath.sqrt, (0, 9)),
}
COUNT = 203  # no multiple of a vector


def ulps(got, want):
    with mpmath.workdps(40):
        exact = np.array([float(w) for w in want]).astype(got.dtype)
        error = [abs(mpmath.mpf(float(g)) - w) for g, w in zip(got, want, strict=True)]
        return max(float(e / s) for e, s in zip(error, np.spacing(np.abs(exact)), strict=True))


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_function_is_within_two_ulp(name, dtype):
    written, exact, reach = FUNCTIONS[name]
    (i,) = axes("i")
    x = tensor("X", (COUNT,), dtype)
    values = np.random.default_rng(0).uniform(*reach, COUNT).astype(x.dtype.numpy_name)
    got = compile(define("Y", [i], written(x[i])), threads=1)(values)
    with mpmath.workdps(40):
        want = [exact(mpmath.mpf(float(v))) for v in values]
    assert ulps(got, want) <= (0.5 if name == "sqrt" else 2)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_compiled_power(dtype):
    (i,) = axes("i")
    x, y = tensor("X", (COUNT,), dtype), tensor("Z", (COUNT,), dtype)
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(*r, COUNT).astype(x.dtype.numpy_name) for r in ((0.01, 9), (-9, 9)))
    got = compile(define("Y", [i], x[i] ** y[i]), threads=1)(a, b)
    with mpmath.workdps(40):
        want = [mpmath.power(float(u), float(v)) for u, v in zip(a, b, strict=True)]
    assert ulps(got, want) <= 2


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_special_values_survive_the_road(dtype):
    (i,) = axes("i")
    x = tensor("X", (6,), dtype)
    values = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, -1.0], x.dtype.numpy_name)
    want = {
        "exp": [np.nan, np.inf, 0, 1, 1, np.exp(-1.0)],
        "log": [np.nan, np.inf, np.nan, -np.inf, -np.inf, np.nan],
        "tanh": [np.nan, 1, -1, -0.0, 0, np.tanh(-1.0)],
        "sigmoid": [np.nan, 1, 0, 0.5, 0.5, 1 / (1 + np.e)],
    }
    for name, expected in want.items():
        got = compile(define("Y", [i], FUNCTIONS[name][0](x[i])), threads=1)(values)
        np.testing.assert_allclose(got, expected, rtol=1e-6, err_msg=name)
    # tanh keeps the sign of zero
    got = compile(define("Y", [i], sympy.tanh(x[i])), threads=1)(values)
    assert np.signbit(got[3]) and not np.signbit(got[4])


def test_uniform_is_the_same_for_any_threads():
    n, i = axes("n i")
    seed = tensor("seed", (1,), "u64")
    body = functions.uniform(seed[0], 50 * n + i)
    program = define("Y", [n, i], body, extents={n: 40, i: 50})
    key = np.array([12345], np.uint64)
    one, two = (compile(program, threads=t)(key) for t in (1, 2))
    assert np.array_equal(one, two)
    assert len(np.unique(one)) > 1990 and 0 <= one.min() and one.max() < 1


@pytest.mark.parametrize("dtype", ["i32", "i64", "u8", "u32", "u64"])
def test_integers_are_divided_exactly(dtype):
    """a // q of integers rounds down and stays an integer, also beyond what floats hold."""
    x = tensor("X", (5,), dtype)
    kind = np.dtype(x.dtype.numpy_name)
    top = np.iinfo(kind).max
    values = np.array([top, top - 1, 0, 1, 7], kind)
    if kind.kind == "i":
        values[2:4] = [-7, np.iinfo(kind).min]
    for text, want in [
        ("X[i] // 3", values // 3),
        ("(X[i] // 2 + 5) // 2", (values // 2 + kind.type(5)) // 2),
        ("X[i] - 3 * (X[i] // 3)", values % 3),
    ]:
        program = parse(f"Y[i] = {text}", X=x)
        assert program.output.dtype == x.dtype
        np.testing.assert_array_equal(compile(program, threads=1)(values), want)
        assert evaluate(program, {"X": [int(v) for v in values]})["Y"].data == [
            int(v) for v in want
        ]
    half = parse("Y[i] = X[i] / 2", X=x)
    assert half.output.dtype.is_float
