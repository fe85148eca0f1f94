"""Generated source gives the numbers of the oracle; mathematics reads as mathematics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.parse import parse

FOLDER = Path(__file__).parent.parent / "golden" / "programs"
GOLDENS = sorted(p.stem for p in FOLDER.glob("*.txt"))
OTHERS = {
    "constraints": "Y[i] = sum(j < 3, k < 4 where j <= i, (i + k) % 2 == 0: T[i, j] * k) + i",
    "argmin": "Y[n], I[n] = min(k: T[n, k]), argmin(k: T[n, k])",
    "boundary": "Y[y, x] = T{-1/2, circular}[y - 1, x - 2] + T{M[x], reflect}[y, x + 1]   for y < 6, x < 6",
    "diagonal": "Y[i] = T[i, i] + T[i // 2, i % 3] * T[i, 4 - i]   for i < 5",
    "functions": "Y[i] = sigmoid(M[i]) + erf(M[i]) * tanh(M[i]) - step(M[i]) + sign(-M[i]) * floor(3*M[i])",
    "conditions": "Y[i] = select(logical_or(M[i] < 0, i == 2), abs(M[i]), 7) + logical_not(M[i] <= 0)",
    "empty": "Y[i] = max(j < 3 where j + 9 <= i: M[j]) + prod(j < 3 where j + 9 <= i: M[j])   for i < 2",
    "cast": "Y[i] = cast(9 * M[i], i32)   for i < 6",
    "names": "Y[lambda, read'] = T[lambda, read'] + sum(math: T[lambda, math])",
    "primes": "program primes\nY[u'] = M[u']\nread[u'] = Y[u'] + 1",
    "logsumexp": "Y[i] = logsumexp(j: 1000 * T[i, j])",
}


def load(name):
    if name in OTHERS:
        text = OTHERS[name]
        shapes = {"T": (5, 6), "M": (6,)}
        return parse(
            text, **{k: v for k, v in shapes.items() if f"{k}[" in text or f"{k}{{" in text}
        )
    return parse((FOLDER / f"{name}.txt").read_text())


def arrays(program):
    rng = np.random.default_rng(3)
    found = []
    for t in program.inputs:
        shape = tuple(e if isinstance(e, int) else 3 for e in t.shape)
        x = rng.normal(size=shape) if t.dtype.is_float else rng.integers(0, 4, size=shape)
        found.append(np.abs(x) + 0.5 if t.name in ("v", "t", "var", "running_var") else x)
    return found


def run(source, name, values):
    space: dict[str, object] = {}
    exec(compile(source, name, "exec"), space)  # our own output, not the user's text
    with np.errstate(all="ignore"):
        out = space[name](*values)
    return list(out) if isinstance(out, tuple) else [out]


def wanted(program, values):
    named = {t.name: v.tolist() for t, v in zip(program.inputs, values, strict=True)}
    results = evaluate(program, named, exact=False, temporaries=True)
    names = [t.name for t in program.outputs] + list(program.saved)
    names += [new for _, new in program.updates if new not in names]
    return [np.array(results[n].tolist(), dtype=float) for n in names]


@pytest.mark.parametrize("name", [*GOLDENS, *OTHERS])
def test_numpy_source_agrees_with_the_oracle(name):
    program = load(name)
    values = arrays(program)
    got = run(program.to_numpy(), program.name, values)
    for a, b in zip(got, wanted(program, values), strict=True):
        np.testing.assert_allclose(np.asarray(a, float), b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*GOLDENS, *OTHERS])
def test_torch_source_agrees_with_the_oracle(name):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    program = load(name)
    values = arrays(program)
    got = run(program.to_torch(), program.name, [torch.as_tensor(v) for v in values])
    for a, b in zip(got, wanted(program, values), strict=True):
        np.testing.assert_allclose(a.double().numpy(), b, rtol=1e-9, atol=1e-9)


def test_torch_source_is_differentiable():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    program = load("conv_bias_relu")
    x, w, b = (torch.as_tensor(v).requires_grad_() for v in arrays(program))
    (mine,) = run(program.to_torch(), program.name, (x, w, b))
    theirs = torch.relu(torch.nn.functional.conv2d(x, w, b, stride=2, padding=1))
    dy = torch.randn_like(mine)
    for ours, other in zip(
        torch.autograd.grad(mine, (x, w, b), dy),
        torch.autograd.grad(theirs, (x, w, b), dy),
        strict=True,
    ):
        torch.testing.assert_close(ours, other)


def test_source_holds_only_the_helpers_it_uses():
    source = load("sgd_momentum").to_numpy()
    assert "def read" in source and "philox" not in source and "fold_over" not in source
