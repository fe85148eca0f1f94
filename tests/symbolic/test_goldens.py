"""The sixteen programs: they round-trip, are sound, and compute what NumPy computes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.parse import parse
from convgen.symbolic.proofs import check_program

FOLDER = Path(__file__).parent.parent / "golden" / "programs"
NAMES = sorted(p.stem for p in FOLDER.glob("*.txt"))
EPS = 1e-5


def load(name):
    return (FOLDER / f"{name}.txt").read_text()


def conv(x, w, stride=1, pad=0):
    """Cross-correlation by its definition, any rank of space."""
    x = np.pad(x, [(0, 0), (0, 0)] + [(pad, pad)] * (x.ndim - 2))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], tuple(range(2, x.ndim)))
    rank = x.ndim - 2
    windows = windows[(slice(None),) * 2 + (slice(None, None, stride),) * rank]
    axes = [1, *range(2 + rank, 2 + 2 * rank)]
    return np.moveaxis(np.tensordot(windows, w, (axes, [1, *range(2, 2 + rank)])), -1, 1)


def numerical_gradient(function, x, cotangent):
    """Exact for linear functions: the adjoint of function at x."""
    out = np.zeros_like(x)
    base = function(np.zeros_like(x))
    for i in np.ndindex(*x.shape):
        unit = np.zeros_like(x)
        unit[i] = 1
        out[i] = np.sum((function(unit) - base) * cotangent)
    return out


def ref_conv_bias_relu(a):
    y = conv(a["X"], a["W"], 2, 1) + a["b"][:, None, None]
    return {"Y": np.maximum(y, 0)}


def ref_conv_stride2_dX(a):
    x = np.zeros((2, 3, 8, 8))
    return {"dX": numerical_gradient(lambda v: conv(v, a["W"], 2, 1), x, a["dY"])}


def ref_conv_reflect_dX(a):
    def forward(v):
        return conv(np.pad(v, [(0, 0), (0, 0), (1, 1)], mode="reflect"), a["W"])

    return {"dX": numerical_gradient(forward, np.zeros((2, 2, 6)), a["dY"])}


def ref_max_pool_index(a):
    x = np.pad(a["X"], [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    w = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2]
    w = w.reshape(*w.shape[:4], 9)
    return {"Y": w.max(-1), "I": w.argmax(-1)}


def ref_max_unpool(a):
    out = np.zeros((2, 3, 8, 8))
    for n, c, y, x in np.ndindex(2, 3, 4, 4):
        r, s = divmod(int(a["I"][n, c, y, x]), 2)
        out[n, c, 2 * y + r, 2 * x + s] = a["X"][n, c, y, x]
    return {"Y": out}


def per_channel(v):
    return v[:, None, None]


def ref_batch_norm(a):
    x = a["X"]
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    y = (x - per_channel(mean)) / np.sqrt(per_channel(var) + EPS)
    unbiased = x.var((0, 2, 3), ddof=1)
    return {
        "Y": y * per_channel(a["gamma"]) + per_channel(a["beta"]),
        "mean": mean,
        "var": var,
        "running_mean": 0.9 * a["running_mean"] + 0.1 * mean,
        "running_var": 0.9 * a["running_var"] + 0.1 * unbiased,
    }


def ref_batch_norm_backward(a):
    x, dy = a["X"], a["dY"]
    scale = 1 / np.sqrt(per_channel(a["var"]) + EPS)
    hat = (x - per_channel(a["mean"])) * scale
    dbeta, dgamma = dy.sum((0, 2, 3)), (dy * hat).sum((0, 2, 3))
    inner = dy - per_channel(dbeta) / 64 - hat * per_channel(dgamma) / 64
    return {"dX": per_channel(a["gamma"]) * scale * inner, "dgamma": dgamma, "dbeta": dbeta}


def ref_lcn(a):
    g = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 48
    w = np.broadcast_to(g, (1, 3, 3, 3))
    v = a["X"] - conv(a["X"], w, 1, 1)
    sigma = np.sqrt(conv(v * v, w, 1, 1))
    level = sigma.mean((1, 2, 3), keepdims=True)
    return {"Y": v / np.maximum(level, sigma)}


def ref_softmax_cross_entropy(a):
    x = a["X"]
    nll = np.log(np.exp(x).sum(1)) - x[np.arange(8), a["label"].astype(int)]
    return {"loss": nll.mean()}


def ref_sgd_momentum(a):
    m = 0.9 * a["m"] + a["dW"] + 5e-4 * a["W"]
    return {"m": m, "W": a["W"] - a["rate"] * m}


def ref_adam(a):
    m = 0.9 * a["m"] + 0.1 * a["dW"]
    v = 0.999 * a["v"] + 0.001 * a["dW"] ** 2
    t = a["t"] + 1
    step = 1e-3 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return {"t": t, "m": m, "v": v, "W": a["W"] - step}


def ref_winograd_f2_3(a):
    return {"Y": conv(a["X"], a["W"], 1, 1)}


def ref_group_norm(a):
    x = a["X"].reshape(2, 2, 48)
    x = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + EPS)
    x = x.reshape(2, 6, 4, 4)
    return {"Y": x * per_channel(a["gamma"]) + per_channel(a["beta"])}


def ref_bilinear_upsample(a):
    def matrix(size):
        m = np.zeros((2 * size, size))
        for h in range(2 * size):
            source = max((h + 0.5) / 2 - 0.5, 0)
            low = int(source)
            m[h, low] += 1 - (source - low)
            m[h, min(low + 1, size - 1)] += source - low
        return m

    return {"Y": np.einsum("hi,ncij,wj->nchw", matrix(4), a["X"], matrix(5))}


def ref_tiled_conv(a):
    out = np.zeros((2, 4, 5, 5))
    for y, x in np.ndindex(5, 5):
        window = a["X"][:, :, y : y + 3, x : x + 3]
        out[:, :, y, x] = np.einsum("ncrs,kcrs->nk", window, a["W"][y % 2, x % 2])
    return {"Y": out}


def arrays(program, seed=0):
    """Random inputs of the right shapes: positive where a variance is meant, integers in range."""
    rng = np.random.default_rng(seed)
    found = {}
    for t in program.inputs:
        shape = tuple(e if isinstance(e, int) else 5 for e in t.shape)
        if t.dtype.is_float:
            x = rng.normal(size=shape)
            found[t.name] = np.abs(x) + 0.5 if re.fullmatch("v|t|rate|.*var", t.name) else x
        else:
            found[t.name] = rng.integers(0, 4, size=shape)
    return found


def run(program, inputs):
    results = evaluate(program, {k: v.tolist() for k, v in inputs.items()}, exact=False)
    return {k: np.array(v.tolist(), dtype=float) for k, v in results.items()}


def test_there_are_sixteen():
    assert len(NAMES) == 16


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name):
    program = parse(load(name))
    assert str(program) + "\n" == load(name)
    assert parse(str(program)) == program
    check_program(program)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "dropout"])
def test_value(name):
    program = parse(load(name))
    inputs = arrays(program)
    expected = globals()[f"ref_{name}"](inputs)
    got = run(program, inputs)
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-9, atol=1e-9, err_msg=key)


def test_dropout_keeps_three_of_four_scaled():
    program = parse(load("dropout").replace("4, 6", "40, 6"))
    inputs = {"X": np.ones((40, 6)), "seed": np.array(7)}
    y = run(program, inputs)["Y"]
    assert set(np.unique(y.round(6))) == {0, 1.333333}
    assert 0.1 < (y == 0).mean() < 0.4
    assert (run(program, {**inputs, "seed": np.array(8)})["Y"] != y).any()


MUTANTS = [
    ("conv_bias_relu", "2*y + r - 1", "2*y + r"),
    ("conv_stride2_dX", "W[k, c, 1, 2*t']", "W[k, c, 1, -2*t' + 2]"),
    ("conv_reflect_dX", "dXp[n, c, 7]", "dXp[n, c, 6]"),
    ("max_pool_index", "{omit}", ""),
    ("max_unpool", "2 * (h % 2) + w % 2", "2 * (w % 2) + h % 2"),
    ("bilinear_upsample", "{replicate}", ""),
    ("tiled_conv", "y % 2", "(y + 1) % 2"),
    ("winograd_f2_3", "0, 1, -1, -1", "0, 1, -1, 1"),
]


@pytest.mark.parametrize("name, old, new", MUTANTS)
def test_mutants_are_noticed(name, old, new):
    assert old in load(name)
    program = parse(load(name).replace(old, new))
    inputs = arrays(program)
    expected, got = globals()[f"ref_{name}"](inputs), run(program, inputs)
    assert any(not np.allclose(got[k], v) for k, v in expected.items())
