"""Factors that are added up first over what they alone depend on: when, what is left, the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from convgen.errors import ScheduleError
from convgen.ir.interpret import difference
from convgen.ir.nodes import Kernel
from convgen.ir.verify import verify
from convgen.passes.lower import lower
from convgen.runtime import kernel as kernels
from convgen.schedule.access import loads_of
from convgen.schedule.recipes.default import default_schedule
from convgen.schedule.schedule import parse_schedule
from convgen.symbolic.derive import grad
from convgen.symbolic.parse import parse
from convgen.target import target

TARGETS = ("x86-64-v3", "x86-64-v4")


def smoothed(size: int, channels: int, power: str = "", boundary: str = "zero") -> str:
    """One window of weights for all channels."""
    return f"""program smoothed
tensor X: f32[2, {channels}, {size}, {size}]
tensor w: f32[5, 5]
Y[n, y, x] = sum(i, p, q: w[p, q] * X{{., ., {boundary}, {boundary}}}[n, i, y + p - 2, x + q - 2]{power})   for y < {size}, x < {size}
"""  # noqa: E501


def checked(subject: Kernel, text: str) -> Kernel:
    """The scheduled kernel, legal and with the same numbers."""
    after = parse_schedule(text).apply(subject, target("x86-64-v3"))
    verify(after)
    assert not difference(subject, after)
    return after


@pytest.mark.parametrize("boundary", ["zero", "reflect", "replicate", "circular", "omit"])
@pytest.mark.parametrize("power", ["", "**2"])
def test_channels_are_added_up_before_the_window(power: str, boundary: str) -> None:
    after = checked(lower(parse(smoothed(7, 3, power, boundary))), "collect(i)")
    first, second = after.nests()
    assert [o.name for o in first.loops] == ["i0", "i2", "i3", "i"]
    assert {o.buffer for o in loads_of(first)} == {"X"} and len(list(loads_of(first))) <= 2
    assert [o.name for o in second.loops] == ["n", "y", "x", "p", "q"]
    assert {o.buffer for o in loads_of(second)} == {"X_sum", "w"}


def test_two_dimensions_of_one_operand() -> None:
    text = "Y[y] = sum(i, j, p: X{., ., zero}[i, j, y + p - 1] * w[p])"
    subject = lower(parse(text, X=(3, 4, 9), w=(3,), Y=(9,)))
    after = checked(subject, "collect(i, j)")
    assert after.buffer("X_sum").shape == (9,)


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("Y[y] = sum(i, p: X[i, y + p] * w[i, p])", "i"),  # w depends on it too
        ("Y[y] = sum(i, p: X[i, y + p] * w[p])", "p"),  # a window, and all factors
        ("Y[y] = sum(i, p: X[i, y + p] * w[p])", "y"),  # an output
        ("Y[y] = sum(i, p: X[i, y + p] + w[p])", "i"),  # no product
        ("Y[y] = sum(i: X[i, y] * X[i, 0] * w[0])", "i"),  # no sum is left
        ("Y[y] = max(i, p: X[i, y + p] * w[p])", "i"),  # no sum
        ("Y[y] = sum(i, p: X[i, y + p] * w[p])", ""),
    ],
)
def test_what_cannot_be_collected(text: str, loops: str) -> None:
    shapes = {"X": (3, 10), "w": (3, 2) if "w[i" in text else (2,)}
    with pytest.raises(ScheduleError, match="summed over first|expected a sum of products"):
        parse_schedule(f"collect({loops})").apply(lower(parse(text, **shapes)), target("x86-64-v3"))


def test_before_all_other_directives() -> None:
    with pytest.raises(ScheduleError, match="scheduled already"):
        checked(lower(parse(smoothed(8, 4))), "split(i, 2); collect(i_out)")


@pytest.mark.parametrize("where", TARGETS)
def test_long_sums_under_a_window_are_collected(where: str) -> None:
    """Sixteen channels take as many times fewer products; few elements are not worth a phase, nor
    is a sum that reads each element once, nor one whose filters differ between channels."""
    machine = target(where)
    schedule = default_schedule(lower(parse(smoothed(64, 16, "**2"))), machine)
    assert "Y: collect(i)" in str(schedule)
    assert parse_schedule(str(schedule)).directives == schedule.directives
    assert "collect" not in str(default_schedule(lower(parse(smoothed(8, 4))), machine))
    once = "Y[k] = sum(n, y, x: X[n, y, x, k] * w[y, x])"
    subject = lower(parse(once, X=(32, 64, 64, 32), w=(64, 64)))
    assert "collect" not in str(default_schedule(subject, machine))


@pytest.mark.parametrize("power", ["", "**2"])
def test_the_numbers_of_a_compiled_kernel(power: str) -> None:
    program = parse(smoothed(40, 24, power))
    kernel = kernels.compile(program)
    assert "collect(i)" in str(kernel.schedule)
    rng = np.random.default_rng(1)
    given = {t.name: rng.uniform(-1, 1, t.shape).astype("float32") for t in program.inputs}
    wide = np.pad(given["X"].astype("float64"), ((0, 0), (0, 0), (2, 2), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (5, 5), (2, 3))
    want = np.einsum("niyxpq,pq->nyx", windows**2 if power else windows, given["w"])
    got = kernel(*(given[t.name] for t in program.inputs))
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


PRODUCTS = {
    "three matrices": (
        "Y[i, j] = sum(a, b: A[i, a] * M[a, b] * B[j, b])",
        {"A": (5, 4), "M": (4, 3), "B": (6, 3)},
        "collect(a)",
        {"A_M_sum": (5, 3)},
    ),
    "functions of elements": (
        "Y[i, j] = sum(a, b: exp(A[i, a]) * A[i, a]**2 * M[a, b] * B[j, b])",
        {"A": (5, 4), "M": (4, 3), "B": (6, 3)},
        "collect(a)",
        {"A_M_sum": (5, 3)},
    ),
    "four factors, one after another": (
        "Y[i, l] = sum(a, b, c: A[i, a] * M[a, b] * N[b, c] * B[c, l])",
        {"A": (5, 4), "M": (4, 3), "N": (3, 2), "B": (2, 6)},
        "collect(a)\nY: collect(b)",
        {"A_M_sum": (5, 3), "N_A_M_sum": (5, 2)},
    ),
    "two loops at once": (
        "Y[i] = sum(a, b, c: A[i, a, b] * M[a, b, c] * B[i, c])",
        {"A": (5, 4, 3), "M": (4, 3, 2), "B": (5, 2)},
        "collect(a, b)",
        {"A_M_sum": (5, 2)},
    ),
    "a factor without loops": (
        "Y[i, j] = sum(a, b: A[a] * B[a] * M[i, b] * N[j, b])",
        {"A": (4,), "B": (4,), "M": (5, 3), "N": (6, 3)},
        "collect(a)",
        {"A_B_sum": ()},
    ),
    "windows that start inside": (
        "Y[y] = sum(c, p: X{., zero}[c, y + p - 1] * v[c] * w[p])   for y < 6",
        {"X": (3, 6), "v": (3,), "w": (3,)},
        "collect(c)",
        {"X_v_sum": (6, 3)},
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_taken_apart(name: str) -> None:
    """The temporaries have the loops that are left, and the numbers are the same."""
    text, shapes, schedule, made = PRODUCTS[name]
    subject = lower(parse(text, **shapes))
    after = checked(subject, schedule if "\n" not in schedule else f"Y: {schedule}")
    found = {b.name: b.shape for b in after.buffers if b.role == "temporary"}
    assert found == made


def test_what_tests_its_points_is_not_taken_apart() -> None:
    text = "Y[i, j] = sum(a, b where a + b > 2: A[i, a] * M[a, b] * B[j, b])"
    with pytest.raises(ScheduleError, match="summed over first"):
        subject = lower(parse(text, A=(5, 4), M=(4, 3), B=(6, 3)))
        parse_schedule("collect(a)").apply(subject, target("x86-64-v3"))


@pytest.mark.parametrize("where", [*TARGETS, "aarch64"])
def test_products_of_many_factors_take_the_cheaper_way(where: str) -> None:
    """Three matrices are two products, in the gradients too; four factors are three; a product of
    two is left alone, and so are sums too small for a phase."""
    machine = target(where)
    chain = "Y[i, j] = sum(a, b: A[i, a] * M[a, b] * B[j, b])"
    large = parse(chain, A=(150, 64), M=(64, 64), B=(100, 64))
    assert "collect(" in str(default_schedule(lower(large), machine))
    backward = str(default_schedule(lower(grad(large)), machine))
    assert all(f"{name}: collect(" in backward for name in ("dA", "dM", "dB"))
    longer = "Y[i, l] = sum(a, b, c: A[i, a] * M[a, b] * N[b, c] * B[c, l])"
    shapes = {"A": (64, 32), "M": (32, 48), "N": (48, 32), "B": (32, 64)}
    assert str(default_schedule(lower(parse(longer, **shapes)), machine)).count("collect(") == 2
    plain = parse("Y[i, j] = sum(a: A[i, a] * B[a, j])", A=(150, 64), B=(64, 100))
    assert "collect" not in str(default_schedule(lower(plain), machine))
    small = parse(chain, A=(8, 4), M=(4, 4), B=(8, 4))
    assert "collect" not in str(default_schedule(lower(small), machine))


def test_the_numbers_of_compiled_products() -> None:
    """In float64 against einsum, the gradients against its own."""
    program = parse("""program chain
tensor A: f64[70, 33]
tensor M: f64[33, 50]
tensor B: f64[41, 50]
Y[i, j] = sum(a, b: A[i, a] * M[a, b] * B[j, b])
""")
    rng = np.random.default_rng(2)
    A, M, B, dY = (rng.uniform(-1, 1, s) for s in ((70, 33), (33, 50), (41, 50), (70, 41)))
    given = {"A": A, "M": M, "B": B, "dY": dY}
    want = {"dA": dY @ B @ M.T, "dM": A.T @ dY @ B, "dB": dY.T @ A @ M}
    derived = grad(program)
    kernel = kernels.compile(derived)
    assert str(kernel.schedule).count("collect") == 3
    got = kernel(*(given[t.name] for t in derived.inputs))
    for tensor, value in zip(derived.outputs, got, strict=True):
        assert np.abs(value - want[tensor.name]).max() < 1e-12 * np.abs(want[tensor.name]).max()
