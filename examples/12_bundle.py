"""Lesson 12: a formula as files for C, C++ and Python, forward and backward."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np

import convgen as cg

layer = cg.parse(
    "Y[n,k,y,x] = sum(c, r, s: X[n,c,y+r,x+s] * W[k,c,r,s]) + b[k]",
    X=(4, 3, 10, 10),
    W=(8, 3, 3, 3),
    b=(8,),
)
made = cg.export(layer, "bundle", name="layer")
print(made)
print((Path("bundle") / "layer.h").read_text()[:600])

# The loader needs NumPy and the shared library, and nothing of convgen.
if (Path("bundle") / "liblayer.so").exists():
    spec = importlib.util.spec_from_file_location("layer", "bundle/layer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    draw = np.random.default_rng(0)
    weights = {"W": draw.normal(size=(8, 3, 3, 3)), "b": draw.normal(size=8)}
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    bundle = module.Bundle(weights, threads=2)
    x = draw.normal(size=(4, 3, 10, 10)).astype(np.float32)
    y = bundle.forward(x, save=True)
    assert np.array_equal(y, cg.compile(layer)(x, weights["W"], weights["b"]))
    (dx,), (dw, db) = bundle.backward(np.ones_like(y))
    print("in Python, for", bundle.target, [a.shape for a in (y, dx, dw, db)])
    # The batch is an argument: eleven samples are two nominal batches and three single ones.
    print(bundle.forward(np.zeros((11, 3, 10, 10), np.float32)).shape)
    bundle.close()

# The example fills an input, runs both passes and prints a sum over the bits of each array.
compiler = shutil.which("cc")
if compiler:
    command = [compiler, "-std=c99", "main.c", "liblayer.a", "-lpthread", "-o", "example"]
    subprocess.run(command, cwd="bundle", check=True)
    print(
        subprocess.run(
            ["./example"], cwd="bundle", check=True, capture_output=True, text=True
        ).stdout
    )
