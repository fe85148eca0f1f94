"""Extremes of floats: a state watches for NaN in place of a test at every element."""

import numpy as np
import pytest

from convgen.backends import llvm
from convgen.backends.assembly import functions, hot_loop
from convgen.passes import pipeline
from convgen.passes.flatten.extremes import is_choice, watched
from convgen.passes.lower import lower
from convgen.runtime import kernel as kernels
from convgen.symbolic import dsl
from convgen.target import target

n, y, x, c, r, s = dsl.axes("n y x c r s")


def pooled(over, channels=24, dtype="f32"):
    read = dsl.tensor("X", (2, 9, 9, channels), dtype).pad("omit")[
        n, 2 * y + r - 1, 2 * x + s - 1, c
    ]
    extents = {y: 5, x: 5, r: 3, s: 3}
    return dsl.define("Y", [n, y, x, c], over([r, s], read), extents=extents, name="pooled")


def combiner_of(program):
    (nest,) = lower(program).nests()
    return nest.reduces[0].combiner


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize(
    ("over", "best"), [(dsl.max_over, np.max), (dsl.min_over, np.min)], ids=["max", "min"]
)
def test_not_a_number_and_infinities_come_through(over, best, dtype):
    """Windows with NaN of both signs, with infinities of both signs, with huge and tiny numbers."""
    rng = np.random.default_rng(3)
    data = rng.standard_normal((2, 9, 9, 24)).astype(np.float32 if dtype == "f32" else np.float64)
    for value in (np.nan, -np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, 0.0):
        data[rng.random(data.shape) < 0.06] = value
    data[0, :3, :3] = np.inf
    data[0, 1, 1, ::2] = -np.inf
    data[1, :3, :3] = -np.inf
    found = kernels.compile(pooled(over, dtype=dtype), threads=1)(data)
    want = np.empty_like(found)
    for i in range(5):
        for j in range(5):
            part = data[:, max(0, 2 * i - 1) : 2 * i + 2, max(0, 2 * j - 1) : 2 * j + 2]
            want[:, i, j] = best(part, axis=(1, 2))
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(
        kernels.compile(pooled(over, dtype=dtype), threads=2)(data).view(np.uint8),
        found.view(np.uint8),
    )


@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_along_the_vectors(size):
    """The lanes joined: a NaN in any of them is seen."""
    program = dsl.define("Y", [n], dsl.max_over([c], dsl.tensor("X", (size + 1, size))[n, c]))
    data = np.random.default_rng(size).standard_normal((size + 1, size)).astype(np.float32)
    data[np.arange(size), np.arange(size)] = np.nan  # and a row without
    np.testing.assert_array_equal(kernels.compile(program)(data), data.max(axis=1))


def test_who_is_watched():
    machine = target("x86-64-v3")
    plain = combiner_of(pooled(dsl.max_over))
    assert len(watched(plain, machine).dtypes) == 2
    assert watched(plain, target("aarch64")) is plain  # an instruction that keeps NaN
    assert watched(plain, target("x86-64-v2")) is plain  # no multiply-add
    total = combiner_of(pooled(dsl.sum_over))
    assert watched(total, machine) is total
    whole = combiner_of(pooled(dsl.max_over, dtype="i32"))
    assert watched(whole, machine) is whole


@pytest.mark.parametrize("where", ["x86-64-v3", "x86-64-v4"])
def test_compares_in_the_assembly(where):
    """One test for NaN at each store, none at the nine elements."""
    flat = pipeline.build(pooled(dsl.max_over, 64), None, target(where))
    text = functions(llvm.compile_kernel(flat, target(where)).asm)["pooled_Y"]
    lines = text.splitlines()
    tests = sum("vcmp" in line for line in lines)
    best = sum("vmaxps" in line for line in lines)
    assert 0 < tests * 6 <= best


def places(over, channels=64):
    """The position of an extreme and the extreme."""
    read = dsl.tensor("X", (2, 9, 9, channels)).pad("omit")[n, 2 * y + r - 1, 2 * x + s - 1, c]
    extents = {y: 5, x: 5, r: 3, s: 3}
    return dsl.define("Y", [n, y, x, c], over([r, s], read), extents=extents, name="places")


@pytest.mark.parametrize("channels", [8, 40, 64])
@pytest.mark.parametrize(("over", "sign"), [(dsl.argmax_over, 1), (dsl.argmin_over, -1)])
def test_first_extreme_and_last_nan_win(over, sign, channels):
    """Ties, NaN of both signs, infinities: the elements of a row are combined first."""
    rng = np.random.default_rng(5)
    data = rng.integers(-2, 3, (2, 9, 9, channels)).astype(np.float32)
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        data[rng.random(data.shape) < 0.05] = value
    data[0, :3, :3] = -sign * np.inf  # a window of nothing better than the start
    found = kernels.compile(places(over, channels), threads=1)(data)
    wide = np.full((2, 11, 11, channels), -sign * np.inf, np.float32)
    wide[:, 1:10, 1:10] = data
    inside = np.zeros((11, 11), bool)
    inside[1:10, 1:10] = True
    want = np.zeros(found.shape, found.dtype)
    best = np.full(found.shape, -sign * np.inf, np.float32)
    for i, j in np.ndindex(3, 3):
        new = wide[:, i : i + 9 : 2, j : j + 9 : 2]
        better = (sign * new > sign * best) | np.isnan(new)
        better &= inside[i : i + 9 : 2, j : j + 9 : 2][None, :, :, None]
        best, want = np.where(better, new, best), np.where(better, 3 * i + j, want)
    np.testing.assert_array_equal(found, want)


def test_what_is_chosen_whole():
    assert is_choice(combiner_of(places(dsl.argmax_over)))
    assert not is_choice(combiner_of(pooled(dsl.max_over)))
    assert not is_choice(combiner_of(pooled(dsl.logsumexp_over)))
    assert not is_choice(watched(combiner_of(pooled(dsl.max_over)), target("x86-64-v3")))


@pytest.mark.parametrize("where", ["x86-64-v3", "x86-64-v4"])
def test_one_compare_for_each_element(where):
    """Not two, "less" and NaN: the loop that holds nine elements compares each once."""
    flat = pipeline.build(places(dsl.argmax_over), None, target(where))
    loop = hot_loop(functions(llvm.compile_kernel(flat, target(where)).asm)["places_Y"])
    assert loop is not None
    compares = sum("vcmp" in line for line in loop.lines)
    least = sum("vminps" in line for line in loop.lines)
    assert 0 < compares <= loop.loads and least > 0
