"""Makes convgen/passes/math/coefficients.py: Chebyshev fits in 120 digits, rounded to the dtype.

Run it to print the file; the tests run it and compare, so the table cannot drift from its recipe.
Each fit approximates a function that is free of the leading terms, which the code adds exactly;
its error is measured on the rounded coefficients, relative to the function that is built from it.
"""

import struct
from pathlib import Path

import mpmath
from mpmath import mp, mpf

TARGET = Path(__file__).resolve().parents[2] / "convgen" / "passes" / "math" / "coefficients.py"
ERF_SPLIT = 1
ERF_END = {32: 4, 64: 6}

HEADER = '''"""Polynomials of the elementary functions. Made by tests/passes/make_coefficients.py; do not edit.

Each is a Chebyshev fit in 120 digits, its coefficients rounded to the dtype, lowest power first.
`error` bounds the relative error, in exact arithmetic, of the function built from it; half a unit
in the last place is 6.0e-08 for 32 bits and 1.1e-16 for 64.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Polynomial:
    """What it approximates, on which interval, how well, and its coefficients."""

    meaning: str
    low: float
    high: float
    error: float
    coefficients: tuple[float, ...]

'''


def tiny(x):
    """Removable singularities are evaluated beside the point; 120 digits leave room."""
    return x if abs(x) > mpf(10) ** -25 else mpf(10) ** -25


def exp_rest(r):
    r = tiny(r)
    return (mp.exp(r) - 1 - r) / r**2


def log_ratio(z):
    """log((1 + s) / (1 - s)) / s at s = sqrt(z)."""
    s = mp.sqrt(z)
    return (mp.log1p(s) - mp.log1p(-s)) / s


def log_rest(z):
    z = tiny(z)
    return (log_ratio(z) - 2) / z


def pow_log_rest(z):
    z = tiny(z)
    return (3 * log_ratio(z) / 2 - 3 - z) / z**2


def tanh_rest(z):
    x = mp.sqrt(tiny(z))
    return (mp.tanh(x) / x - 1) / x**2


def erf_rest(z):
    x = mp.sqrt(tiny(z))
    return mp.erf(x) / x - 1


def erf_tail(bits):
    middle, half = mpf(ERF_SPLIT + ERF_END[bits]) / 2, mpf(ERF_END[bits] - ERF_SPLIT) / 2
    return lambda t: mp.log(mp.erfc(middle + half * t)) + (middle + half * t) ** 2


def erf_weight(bits):
    middle, half = mpf(ERF_SPLIT + ERF_END[bits]) / 2, mpf(ERF_END[bits] - ERF_SPLIT) / 2
    return lambda t: mp.erfc(middle + half * t)


def specs(bits):
    """(name, meaning, function, low, high, terms, weight of an error in the built function)."""
    short = bits == 32
    half_log2 = mpf("0.3467")
    yield (
        "EXP", "(e^r - 1 - r) / r^2", exp_rest, -half_log2, half_log2, 6 if short else 12,
        lambda r: r**2 / mp.exp(r),
    )  # fmt: skip
    yield (
        "LOG", "(log((1+s) / (1-s)) / s - 2) / z, z = s^2", log_rest, mpf(0), mpf("0.02945"),
        4 if short else 8, lambda z: z / 2,
    )  # fmt: skip
    yield (
        "TANH", "(tanh(x) / x - 1) / z, z = x^2", tanh_rest, mpf(0), mpf("0.391"),
        6 if short else 13, lambda z: z,
    )  # fmt: skip
    yield (
        "ERF", "erf(x) / x - 1, z = x^2", erf_rest, mpf(0), mpf(ERF_SPLIT) ** 2,
        8 if short else 16, lambda z: mpf(1),
    )  # fmt: skip
    yield (
        "ERF_TAIL", "log(erfc(x)) + x^2, t = x mapped to -1..1", erf_tail(bits), mpf(-1), mpf(1),
        11 if short else 25, erf_weight(bits),
    )  # fmt: skip
    if not short:
        yield (
            "POW_LOG", "(3/2 log((1+s) / (1-s)) / s - 3 - z) / z^2, z = s^2", pow_log_rest,
            mpf(0), mpf("0.02945"), 9, lambda z: z**2 / 3,
        )  # fmt: skip


def rounded(value, bits):
    number = float(value)
    return number if bits == 64 else struct.unpack("f", struct.pack("f", number))[0]


def measure(function, coefficients, low, high, weight, points=97):
    worst = mpf(0)
    for i in range(points):
        x = low + (high - low) * i / (points - 1)
        fit = mpmath.polyval([mpf(c) for c in reversed(coefficients)], x)
        worst = max(worst, abs((fit - function(x)) * weight(x)))
    return worst


def table(bits):
    """name -> (meaning, low, high, error, coefficients)."""
    found = {}
    with mp.workdps(120):
        for name, meaning, function, low, high, terms, weight in specs(bits):
            fit = mpmath.chebyfit(function, [low, high], terms)
            coefficients = tuple(rounded(c, bits) for c in reversed(fit))
            error = measure(function, coefficients, low, high, weight)
            found[name] = (meaning, float(low), float(high), float(error), coefficients)
    return found


def text():
    out = HEADER
    for bits in (32, 64):
        for name, (meaning, low, high, error, coefficients) in table(bits).items():
            out += f"\n{name}_{bits} = Polynomial(\n    {meaning!r},\n    {low!r},\n    {high!r},\n"
            out += f"    {error:.1e},\n    (\n"
            out += "".join(f"        {c!r},\n" for c in coefficients) + "    ),\n)\n"
    return out.replace("'", '"')


if __name__ == "__main__":
    TARGET.write_text(text())
