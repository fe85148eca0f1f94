"""Philox4x32-10 in integer operations (Salmon et al., "Parallel random numbers: as easy as 1, 2,
3", 2011): a pseudo-random number that is a pure function of a key and a counter."""

from __future__ import annotations

from convgen.passes.math.values import Value
from convgen.types import f32, i32, i64, u64

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_ROUNDS = 10


def uniform(seed: Value, index: Value) -> Value:
    """The upper 24 bits of the first output word, times 2**-24, in f32: a number in [0, 1).

    Key: the seed's low and high word. Counter: the index's low and high word, 0, 0. Words live in
    u64 lanes below 2**32, so that a product of two is one multiplication.
    """
    key = _words(seed.cast(u64))
    a, b = _words(index.cast(i64).cast(u64))
    c = d = a.constant(0)
    for round_number in range(_ROUNDS):
        if round_number:
            key = tuple((k + w) & _WORD for k, w in zip(key, _WEYL, strict=True))
        p, q = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (q >> 32) ^ b ^ key[0], q & _WORD, (p >> 32) ^ d ^ key[1], p & _WORD
    return (a >> 8).cast(i32).cast(f32) * 2.0**-24


def _words(value: Value) -> tuple[Value, ...]:
    return value & _WORD, value >> 32
