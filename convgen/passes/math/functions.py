"""The elementary functions over `Value`s. Errors are counted in units in the last place (ulp).

No step needs an exact fma: products that must be exact have factors with enough trailing zeros,
so the functions keep their accuracy on targets without FMA.
"""

from __future__ import annotations

from math import inf, nan

from convgen.passes.math import coefficients as table
from convgen.passes.math.values import Value
from convgen.types import f32, f64, i32

_LOG2_E = 1.4426950408889634
_POLYNOMIALS = {
    f32: (table.EXP_32, table.LOG_32, table.TANH_32, table.ERF_32, table.ERF_TAIL_32),
    f64: (table.EXP_64, table.LOG_64, table.TANH_64, table.ERF_64, table.ERF_TAIL_64),
}
_EXP, _LOG, _TANH, _ERF, _ERF_TAIL = range(5)
_HALF_ROOT_BITS = {f32: 0x3F3504F3, f64: 0x3FE6A09E667F3BCD}  # of sqrt(1/2)


def _polynomial(x: Value, which: int) -> Value:
    return x.polynomial(_POLYNOMIALS[x.dtype][which].coefficients)


def _copy_sign(magnitude: Value, sign: Value) -> Value:
    """The magnitude with the sign bit of the other; magnitude >= 0 or NaN."""
    form = magnitude.format
    top = -1 << (form.mantissa + (8 if form.mantissa == 23 else 11))
    return (magnitude.bits() | (sign.bits() & top)).as_float(magnitude.dtype)


def _exp_bounded(high: Value, low: Value | None = None) -> Value:
    """e**(high + low) for arguments within `Format.underflow` - 1 .. `overflow` + 1, or NaN.

    high + low = n log 2 + r, |r| <= log(2)/2; e**r = 1 + r + r^2 P(r), scaled by 2**n in two steps
    so that subnormal results are rounded once and overflow gives infinity. The low bits of what is
    rounded to n are n + 2 bias: half of them is the first exponent, the rest the second.
    """
    form = high.format
    magic = form.magic + 2 * form.bias
    scaled = high.times_plus(_LOG2_E, magic)
    n = scaled - magic
    r = n.times_plus(-form.log2_low, n.times_plus(-form.log2_high, high))
    if low is not None:
        r = r + low
    square = r * r
    coefficients = _POLYNOMIALS[r.dtype][_EXP].coefficients
    grown = square.times_plus(r.polynomial_by_pairs(coefficients, square), r)
    shifted = scaled.bits() << (form.mantissa - 1)
    half = shifted & (-1 << form.mantissa)
    first, second = (part.as_float(high.dtype) for part in (half, shifted + shifted - half))
    return grown.times_plus(first, first) * second


def exp(x: Value) -> Value:
    """e**x."""
    return _exp_bounded(x.at_least(x.format.underflow).at_most(x.format.overflow))


def _exponent_and_fraction(x: Value) -> tuple[Value, Value]:
    """(e, f) with x = 2**e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), for finite x > 0, e a float."""
    form = x.format
    shift = form.mantissa + 1
    tiny = x < form.smallest_normal
    bits = tiny.where(x * 2.0**shift, x).bits() - _HALF_ROOT_BITS[x.dtype]
    exponent = (bits >> form.mantissa).cast(i32).cast(x.dtype)
    fraction = ((bits & ((1 << form.mantissa) - 1)) + _HALF_ROOT_BITS[x.dtype]).as_float(x.dtype)
    return tiny.where(exponent - float(shift), exponent), fraction - 1


def _log_positive(x: Value) -> Value:
    """log x for finite x > 0: with s = f / (2 + f), log(1 + f) = 2 s + s^3 L(s^2), arranged so that
    f, the largest term, is added last (as in Sun's fdlibm)."""
    form = x.format
    e, f = _exponent_and_fraction(x)
    s = f / (f + 2)
    z = s * s
    half_square = f * f * 0.5
    rest = s * (half_square + z * _polynomial(z, _LOG))
    return e * form.log2_high - ((half_square - (rest + e * form.log2_low)) - f)


def log(x: Value) -> Value:
    """log x; -inf at 0, NaN below."""
    outside = x.equals(0).where(x.constant(-inf), nan)
    finite = x.equals(inf).where(x, _log_positive(x))
    return (x.constant(0) < x).where(finite, outside)


def tanh(x: Value) -> Value:
    """tanh x = x + x^3 T(x^2) near 0, else 1 - 2 / (e**2|x| + 1)."""
    size, square = abs(x), x * x
    near = (size * square).times_plus(_polynomial(square, _TANH), size)
    grown = _exp_bounded(size.at_most(22.0) * 2.0)
    return _copy_sign((size < 0.625).where(near, 1 - 2 / (grown + 1)), x)


def sigmoid(x: Value) -> Value:
    """1 / (1 + e**-x), as e**x / (1 + e**x) below 0; neither form overflows or cancels.

    The sum 1 + e is rounded; what it lost is given back to the quotient.
    """
    e = _exp_bounded((-abs(x)).at_least(x.format.underflow))
    total = e + 1
    lost = e - (total - 1)
    above = (x < 0).where(e, 1)
    quotient = above / total
    inverse = (x < 0).where(1 - quotient, quotient)
    return quotient - quotient * lost * inverse


def erf(x: Value) -> Value:
    """erf x = x + x E(x^2) for |x| < 1, else 1 - e**(-x^2 + h(x)) with h = log(erfc x) + x^2."""
    tail = _POLYNOMIALS[x.dtype][_ERF_TAIL]
    end = 4.0 if x.dtype == f32 else 6.0
    near = x.times_plus(_polynomial(x * x, _ERF), x)
    size = abs(x).at_most(end).at_least(1.0)
    middle, half = (1 + end) / 2, (end - 1) / 2
    position = size.times_plus(1 / half, -middle / half)
    height = position.polynomial_by_pairs(tail.coefficients, position * position)
    exponent = (-size).times_plus(size, height)
    far = _copy_sign(1 - _exp_bounded(exponent), x)
    return (abs(x) < 1.0).where(near, far)


def _upper_half(x: Value) -> Value:
    """x with the lower half of its fraction cleared: products of two such numbers are exact."""
    return (x.bits() & -(1 << 27)).as_float(x.dtype)


def _log_pair(x: Value) -> tuple[Value, Value]:
    """log x for finite x > 0 in f64 as high + low with 2**-64 relative error; high has 26 bits.

    log(1 + f) = (2 s / 3)(3 + z + z^2 Q(z)) with z = s^2, s = f / (2 + f); s and the bracket are
    kept as pairs of numbers.
    """
    form = x.format
    e, f = _exponent_and_fraction(x)
    inverse = 1 / (f + 2)
    s = f * inverse
    s_high = _upper_half(s)
    d_high = _upper_half(f + 2)
    d_low = f - (d_high - 2)
    s_low = inverse * ((f - s_high * d_high) - s_high * d_low)
    z = s * s
    rest = z * z * z.polynomial(table.POW_LOG_64.coefficients) + s_low * (s_high + s)
    square = s_high * s_high
    b_high = _upper_half(square + 3 + rest)
    b_low = rest - ((b_high - 3) - square)
    u, v = s_high * b_high, s_low * b_high + b_low * s
    p_high = _upper_half(u + v)
    p_low = v - (p_high - u)
    # times 2/3 as a pair, then plus e log 2 as a pair
    third_high, third_low = 0.6666666567325592, 9.934107462565104e-09
    m_high = p_high * third_high
    m_low = p_low * (third_high + third_low) + p_high * third_low
    n_high = e * form.log2_high
    total = n_high + m_high
    lost = _lost_in_sum(n_high, m_high, total)
    low = e * form.log2_low + m_low + lost
    high = _upper_half(total + low)
    return high, low - (high - total)


def _lost_in_sum(a: Value, b: Value, total: Value) -> Value:
    """(a + b) - total exactly, for total = a + b rounded (Knuth)."""
    shadow = total - a
    return (a - (total - shadow)) + (b - shadow)


def _power_of_size(size: Value, y: Value) -> Value:
    """size**y in f64, for finite size > 0: e**(y log size) with the logarithm as a pair."""
    form = size.format
    log_high, log_low = _log_pair(size)
    # Beyond 2**65 every size but 1 has overflowed; the bound keeps the products finite.
    bounded = y.at_most(2.0**65).at_least(-(2.0**65))
    y_high = _upper_half(bounded)
    high = y_high * log_high
    low = (bounded - y_high) * log_high + bounded * log_low
    total = high + low
    limited = total.at_most(form.overflow + 1).at_least(form.underflow - 1)
    rest = limited.equals(total).where(low - (total - high), 0)
    return _exp_bounded(limited, rest)


def power(x: Value, y: Value) -> Value:
    """x**y with C99's special values: 1 where y is 0 or x is 1, NaN for x < 0 unless y is an
    integer, and the sign of x where y is odd. f32 is computed in f64."""
    if x.dtype == f32:
        return power(x.cast(f64), y.cast(f64)).cast(f32)
    size = abs(x)
    whole = y.floor().equals(y)
    half = y * 0.5
    odd = whole & half.floor().equals(half).invert()
    grows = x.constant(0) < y
    result = _power_of_size(size, y)
    result = size.equals(0).where(grows.where(x.constant(0), inf), result)
    result = size.equals(inf).where(grows.where(x.constant(inf), 0), result)
    result = odd.where(_copy_sign(result, x), result)
    negative = (x < 0) & (size < inf)
    result = (negative & whole.invert()).where(x.constant(nan), result)
    result = (x.is_nan() | y.is_nan()).where(x.constant(nan), result)
    return (y.equals(0) | x.equals(1)).where(x.constant(1), result)
