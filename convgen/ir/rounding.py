"""Numbers as a dtype holds them: rounding of rationals, wrapping of integers, limits."""

from __future__ import annotations

import math
from fractions import Fraction

from convgen.types import DType

_FORMATS = {32: (24, -149, 128), 64: (53, -1074, 1024)}  # precision, smallest exponent, overflow


def round_float(value: Fraction | float, bits: int) -> float:
    """The nearest IEEE number of that width (ties to even, overflow to infinity), as a float.

    >>> round_float(Fraction(1, 10), 32), round_float(Fraction(1, 10), 64)
    (0.10000000149011612, 0.1)
    >>> round_float(Fraction(-(10**600)), 64)
    -inf
    """
    if isinstance(value, float):
        if bits == 64 or not math.isfinite(value) or not value:
            return value
        value = Fraction(value)
    if value == 0:
        return 0.0
    precision, smallest, overflow = _FORMATS[bits]
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length() - precision
    while magnitude / Fraction(2) ** exponent >= 1 << precision:
        exponent += 1
    exponent = max(exponent, smallest)
    digits = round(magnitude / Fraction(2) ** exponent)
    if digits.bit_length() + exponent > overflow:
        return math.inf if value > 0 else -math.inf
    return math.copysign(math.ldexp(digits, exponent), 1 if value > 0 else -1)


def limits(dtype: DType) -> tuple[int, int]:
    """(smallest, largest) of an integer dtype; bool is 0..1."""
    if dtype.kind == "bool":
        return 0, 1
    if dtype.kind == "uint":
        return 0, (1 << dtype.bits) - 1
    return -(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1


def wrap(value: int, dtype: DType) -> int:
    """The value modulo 2**bits in the dtype's range; bool: 1 unless 0.

    >>> from convgen.types import u8, i32
    >>> wrap(256 + 3, u8), wrap(2**31, i32)
    (3, -2147483648)
    """
    if dtype.kind == "bool":
        return int(value != 0)
    low, high = limits(dtype)
    return (value - low) % (high - low + 1) + low


def number_of(value: Fraction | int | float, dtype: DType) -> int | float:
    """The number that the dtype holds for `value`: floats rounded to nearest, fractions toward
    zero for integers, integers wrapped, infinities of integer types their limits."""
    if dtype.is_float:
        return round_float(value if isinstance(value, float) else Fraction(value), dtype.bits)
    if isinstance(value, float) and math.isinf(value):
        return limits(dtype)[value > 0]
    if dtype.kind == "bool":
        return int(value != 0)
    return wrap(math.trunc(value), dtype)
