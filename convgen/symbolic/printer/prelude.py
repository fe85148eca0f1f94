"""The helper functions at the top of generated NumPy and torch source, as text."""

from __future__ import annotations

NUMPY = '''\
import math

import numpy as np


def grid(*spans):
    """One index array for each axis, shaped to broadcast against the others."""
    return [
        np.arange(lo, hi).reshape([-1 if i == d else 1 for i in range(len(spans))])
        for d, (lo, hi) in enumerate(spans)
    ]


def read(array, index, modes):
    """array[index]; outside, what each dimension's mode says (a number stands for itself)."""
    outside, fill, places = np.False_, 0, []
    for i, extent, mode in zip(index, array.shape, modes):
        i = np.asarray(i)
        if isinstance(mode, str) and mode == "reflect":
            i = np.where(i < 0, -i, np.where(i < extent, i, 2 * (extent - 1) - i))
        elif isinstance(mode, str) and mode == "circular":
            i = i % max(extent, 1)
        elif not (isinstance(mode, str) and mode == "replicate"):
            fill = np.where(outside, fill, 0 if isinstance(mode, str) else mode)
            outside = outside | (i < 0) | (i >= extent)
        places.append(np.clip(i, 0, max(extent - 1, 0)))
    if array.size == 0:
        return fill + np.zeros(np.broadcast_shapes(*(p.shape for p in places)), array.dtype)
    element = array[tuple(places)]
    return np.where(outside, fill, element) if np.any(outside) else element


def present(array, index, modes):
    """True where no dimension of mode "omit" is outside."""
    inside = np.True_
    for i, extent, mode in zip(index, array.shape, modes):
        if isinstance(mode, str) and mode == "omit":
            inside = inside & (np.asarray(i) >= 0) & (np.asarray(i) < extent)
    return inside


def points(term, keep, shape, count):
    """The last `count` axes of term and keep as one."""
    lead = tuple(shape[: len(shape) - count])
    size = math.prod(shape[len(shape) - count :])
    term, keep = np.broadcast_to(term, shape), np.broadcast_to(keep, shape)
    return term.reshape(lead + (size,)), keep.reshape(lead + (size,))


def sum_over(*term):
    term, keep = points(*term)
    return np.where(keep, term, 0).sum(-1)


def prod_over(*term):
    term, keep = points(*term)
    return np.where(keep, term, 1).prod(-1)


def max_over(*term):
    term, keep = points(*term)
    return np.where(keep, term, -math.inf).max(-1, initial=-math.inf)


def min_over(*term):
    term, keep = points(*term)
    return np.where(keep, term, math.inf).min(-1, initial=math.inf)


def fold_over(term, keep, shape, count, lift, combine, identity, project):
    """The states of the elements joined one after the other."""
    term, keep = points(term, keep, shape, count)
    state = [np.full(term.shape[:-1], i) for i in identity]
    for p in range(term.shape[-1]):
        joined = combine(state, lift(term[..., p], p))
        state = [np.where(keep[..., p], new, old) for new, old in zip(joined, state)]
    return project(state)


def write(array, index, keep, value, shape):
    """array[index] = value at the points that are kept; returns array."""
    if not index:
        return np.asarray(np.broadcast_to(value, shape)).astype(array.dtype)
    keep = np.broadcast_to(keep, shape)
    places = tuple(np.broadcast_to(i, shape)[keep] for i in index)
    array[places] = np.broadcast_to(value, shape)[keep]
    return array


def empty(shape, dtype):
    return np.zeros(shape, dtype)


def given(value, dtype):
    return np.asarray(value).astype(dtype)


def truth(condition):
    return np.asarray(condition).astype(np.int64)


def select(condition, a, b):
    return np.where(condition, a, b)


def cast(x, dtype):
    return np.asarray(x).astype(dtype)


exp, log, tanh, sqrt, floor, sign = np.exp, np.log, np.tanh, np.sqrt, np.floor, np.sign
maximum, minimum, is_nan, absolute = np.maximum, np.minimum, np.isnan, np.abs
erf = np.vectorize(math.erf, otypes=[float])


def relu(x):
    return np.maximum(x, 0)


def step(x):
    return truth(np.asarray(x) > 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, float)))


def stop_gradient(x):
    return x


def uniform(seed, index):
    """Philox4x32-10 of key seed and counter index: 24 bits in [0, 1)."""
    seed, index = np.broadcast_arrays(np.asarray(seed), np.asarray(index))
    out = np.empty(seed.shape)
    for place in np.ndindex(*seed.shape):
        out[place] = philox(int(seed[place]), int(index[place])) / 2**24
    return out


def philox(seed, index):
    word = 0xFFFFFFFF
    k0, k1 = seed & word, seed >> 32 & word
    c0, c1, c2, c3 = index & word, index >> 32 & word, 0, 0
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c2 = (second >> 32) ^ c1 ^ k0, (first >> 32) ^ c3 ^ k1
        c1, c3 = second & word, first & word
        k0, k1 = (k0 + 0x9E3779B9) & word, (k1 + 0xBB67AE85) & word
    return c0 >> 8
'''

TORCH = '''\
import math

import torch


def tensor(x):
    if isinstance(x, torch.Tensor):
        return x
    return torch.tensor(x, dtype=torch.float64 if isinstance(x, float) else None)


def grid(*spans):
    """One index tensor for each axis, shaped to broadcast against the others."""
    return [
        torch.arange(lo, max(lo, hi)).reshape([-1 if i == d else 1 for i in range(len(spans))])
        for d, (lo, hi) in enumerate(spans)
    ]


def read(array, index, modes):
    """array[index]; outside, what each dimension's mode says (a number stands for itself)."""
    outside, fill, places = torch.tensor(False), torch.zeros((), dtype=array.dtype), []
    for i, extent, mode in zip(index, array.shape, modes):
        i = tensor(i)
        if isinstance(mode, str) and mode == "reflect":
            i = torch.where(i < 0, -i, torch.where(i < extent, i, 2 * (extent - 1) - i))
        elif isinstance(mode, str) and mode == "circular":
            i = i % max(extent, 1)
        elif not (isinstance(mode, str) and mode == "replicate"):
            other = 0 if isinstance(mode, str) else mode
            fill = torch.where(outside, fill, tensor(other).to(array.dtype))
            outside = outside | (i < 0) | (i >= extent)
        places.append(i.clamp(0, max(extent - 1, 0)))
    if array.numel() == 0:
        return fill + torch.zeros(torch.broadcast_shapes(*(p.shape for p in places)))
    return torch.where(outside, fill, array[tuple(places)])


def present(array, index, modes):
    """True where no dimension of mode "omit" is outside."""
    inside = torch.tensor(True)
    for i, extent, mode in zip(index, array.shape, modes):
        if isinstance(mode, str) and mode == "omit":
            inside = inside & (tensor(i) >= 0) & (tensor(i) < extent)
    return inside


def points(term, keep, shape, count):
    """The last `count` axes of term and keep as one."""
    lead = tuple(shape[: len(shape) - count])
    size = math.prod(shape[len(shape) - count :])
    term, keep = tensor(term).expand(shape), tensor(keep).expand(shape)
    return term.reshape(lead + (size,)), keep.reshape(lead + (size,))


def sum_over(*term):
    term, keep = points(*term)
    return select(keep, term, 0).sum(-1)


def prod_over(*term):
    term, keep = points(*term)
    return select(keep, term, 1).prod(-1)


def max_over(*term):
    term, keep = points(*term)
    edge = torch.full((*term.shape[:-1], 1), -math.inf, dtype=torch.float64)
    return torch.cat([edge, select(keep, term, -math.inf)], -1).max(-1).values


def min_over(*term):
    term, keep = points(*term)
    edge = torch.full((*term.shape[:-1], 1), math.inf, dtype=torch.float64)
    return torch.cat([edge, select(keep, term, math.inf)], -1).min(-1).values


def fold_over(term, keep, shape, count, lift, combine, identity, project):
    """The states of the elements joined one after the other."""
    term, keep = points(term, keep, shape, count)
    state = [tensor(i).expand(term.shape[:-1]) for i in identity]
    for p in range(term.shape[-1]):
        joined = combine(state, lift(term[..., p], p))
        state = [select(keep[..., p], new, old) for new, old in zip(joined, state)]
    return project(state)


def write(array, index, keep, value, shape):
    """array[index] = value at the points that are kept; returns array."""
    value = tensor(value).to(array.dtype).expand(shape)
    if not index:
        return value
    keep = tensor(keep).expand(shape)
    places = tuple(tensor(i).expand(shape)[keep] for i in index)
    return array.index_put(places, value[keep])


def empty(shape, dtype):
    return torch.zeros(shape, dtype=dtype)


def given(value, dtype):
    return torch.as_tensor(value, dtype=dtype)


def truth(condition):
    return tensor(condition).to(torch.int64)


def select(condition, a, b):
    a, b = tensor(a), tensor(b)
    kind = torch.promote_types(a.dtype, b.dtype)
    return torch.where(tensor(condition), a.to(kind), b.to(kind))


def cast(x, dtype):
    return tensor(x).to(dtype)


def exp(x):
    return torch.exp(tensor(x))


def log(x):
    return torch.log(tensor(x))


def tanh(x):
    return torch.tanh(tensor(x))


def sqrt(x):
    return torch.sqrt(tensor(x))


def erf(x):
    return torch.erf(tensor(x))


def floor(x):
    return torch.floor(tensor(x))


def sign(x):
    return torch.sign(tensor(x))


def is_nan(x):
    return torch.isnan(tensor(x))


def absolute(x):
    return torch.abs(tensor(x))


def relu(x):
    return torch.relu(tensor(x))


def sigmoid(x):
    return torch.sigmoid(tensor(x))


def stop_gradient(x):
    return tensor(x).detach()


def maximum(a, b):
    return torch.maximum(*torch.broadcast_tensors(tensor(a), tensor(b)))


def minimum(a, b):
    return torch.minimum(*torch.broadcast_tensors(tensor(a), tensor(b)))


def step(x):
    return truth(tensor(x) > 0)


def uniform(seed, index):
    """Philox4x32-10 of key seed and counter index: 24 bits in [0, 1)."""
    seed, index = torch.broadcast_tensors(tensor(seed), tensor(index))
    pairs = zip(seed.reshape(-1).tolist(), index.reshape(-1).tolist())
    out = torch.tensor([philox(s, i) / 2**24 for s, i in pairs], dtype=torch.float64)
    return out.reshape(seed.shape)


def philox(seed, index):
    word = 0xFFFFFFFF
    k0, k1 = seed & word, seed >> 32 & word
    c0, c1, c2, c3 = index & word, index >> 32 & word, 0, 0
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c2 = (second >> 32) ^ c1 ^ k0, (first >> 32) ^ c3 ^ k1
        c1, c3 = second & word, first & word
        k0, k1 = (k0 + 0x9E3779B9) & word, (k1 + 0xBB67AE85) & word
    return c0 >> 8
'''
