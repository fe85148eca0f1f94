"""Every kind of program as a bundle: forward has the bits of the kernel, backward those of split."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import convgen as cg
from convgen.errors import DataError, ShapeError
from convgen.interop.aot.export import export
from convgen.layers.update import Adam
from convgen.runtime.build import build_program
from convgen.runtime.native import NativeFunction
from convgen.symbolic.derive import split
from convgen.target import runs_here, target

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import small_programs  # noqa: E402
from bundles import load  # noqa: E402


def arrays_of(tensors, draw):
    found = []
    for tensor in tensors:
        shape = tuple(int(e) for e in tensor.shape)
        values = draw.standard_normal(shape)
        dtype = tensor.dtype.numpy_name
        found.append((values if tensor.dtype.is_float else abs(values) * 2).astype(dtype))
    return found


def check(program, folder, name="one"):
    """Forward and, where there is a gradient, backward against the Python kernels."""
    underivable = any(
        r.reduction.name == "second" for st in program.stages for p in st.pieces for r in p.reduces
    )
    backward = (
        not underivable
        and any(t.dtype.is_float for t in program.inputs if t.role != "state")
        and any(t.dtype.is_float for t in program.outputs)
    )
    export(program, folder, name=name, backward=backward)
    module = load(folder, name)
    draw = np.random.default_rng(2)
    values = dict(
        zip((t.name for t in program.inputs), arrays_of(program.inputs, draw), strict=True)
    )
    facts = module._read_json(folder / "MANIFEST.json")["arrays"]
    bundle = module.Bundle([values[p["name"]] for p in facts["weights"]])
    x = [values[p["name"]] for p in facts["x"]]
    for state, port in zip(bundle.states, facts["states"], strict=True):
        state[...] = values[port["name"]]
    wanted = cg.compile(program)(*(values[t.name].copy() for t in program.inputs))
    got = bundle.forward(*x)
    for a, b in zip(_several(got), _several(wanted), strict=False):
        assert np.array_equal(a, b, equal_nan=True)
    if not backward:
        return facts
    bundle.forward(*x, save=True)
    dy = arrays_of([t for t in program.outputs if t.dtype.is_float], draw)
    inputs, grads = bundle.backward(*dy)
    names = [p["name"] for p in (*facts["grads"], *facts["dx"])]
    ahead, behind = split(program, [n[1:] for n in names])
    kept = _several(cg.compile(ahead)(*(values[t.name].copy() for t in ahead.inputs)))
    known = dict(values)
    known.update(zip([t.name for t in ahead.outputs] + list(ahead.saved), kept, strict=True))
    known.update(
        ("d" + t.name, d)
        for t, d in zip([t for t in program.outputs if t.dtype.is_float], dy, strict=True)
    )
    expected = _several(cg.compile(behind)(*(known[t.name] for t in behind.inputs)))
    for name, a, b in zip(names, [*grads, *inputs], expected, strict=True):
        scale = max(float(np.abs(b).max(initial=0)), 1)
        assert np.abs(a - b).max(initial=0) <= 1e-5 * scale, name
    return facts


def _several(value):
    return value if isinstance(value, tuple) else () if value is None else (value,)


SIMPLE = (
    "extremum_with_place two_stages residue_pieces triangle tiled blocks constants "
    "padded_by_a_stage scalar chosen own_reduction same_axes_twice truths"
).split()


@pytest.mark.parametrize("name", SIMPLE)
def test_small_programs(name, tmp_path):
    check(getattr(small_programs, name)(), tmp_path)


@pytest.mark.parametrize("mode", ["zero", "reflect", "circular"])
def test_windows(mode, tmp_path):
    facts = check(small_programs.window(mode), tmp_path)
    assert [p["name"] for p in facts["x"]] == ["X"]
    assert [p["name"] for p in facts["weights"]] == ["W", "b"]


def test_normalized_rows_in_parts(tmp_path):
    """Several stages in one sample; saved tensors of a batch cut in parts."""
    text = (
        "program rows\ntensor X: f32[N, 7]\ntensor g: f32[7]\n"
        "M[n] = max(k: X[n, k])\nE[n, k] = exp(X[n, k] - M[n])\n"
        "S[n] = sum(k: E[n, k])\nY[n, k] = E[n, k] / S[n] * g[k]\n"
    )
    program = cg.parse(text)
    export(program, tmp_path, name="rows", batch=4)
    draw = np.random.default_rng(0)
    x, g, dy = (draw.standard_normal(s).astype(np.float32) for s in ((11, 7), (7,), (11, 7)))
    bundle = load(tmp_path, "rows").Bundle([g])
    y = bundle.forward(x, save=True)
    (dx,), (dg,) = bundle.backward(dy)
    wanted = cg.compile(program)(x, g)
    assert np.allclose(y, wanted, atol=1e-6)
    for got, want in zip((dx, dg), cg.compile(cg.grad(program, ["X", "g"]))(x, g, dy), strict=True):
        assert np.abs(got - want).max() <= 1e-5 * max(np.abs(want).max(), 1)


def test_mixed_samples_keep_the_nominal_batch(tmp_path):
    program = cg.parse("Y[n, k] = X[n, k] - sum(m < 4: X[m, k]) / 4", X=(4, 3))
    export(program, tmp_path, name="centered")
    module = load(tmp_path, "centered")
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert np.allclose(module.Bundle().forward(x).sum(0), 0)
    with pytest.raises(module.BundleError):
        module.Bundle().forward(x[:2])
    assert "nominal batch alone" in (tmp_path / "centered.h").read_text()


def test_updates_happen_in_the_state(tmp_path):
    """An optimizer's step as a bundle: no outputs, states that change."""
    program = Adam(0.1).program(37)
    export(program, tmp_path, name="adam", backward=False)
    bundle = load(tmp_path, "adam").Bundle()
    draw = np.random.default_rng(0)
    values = {
        t.name: abs(a) for t, a in zip(program.inputs, arrays_of(program.inputs, draw), strict=True)
    }
    facts = bundle.manifest["arrays"]
    for state, port in zip(bundle.states, facts["states"], strict=True):
        state[...] = values[port["name"]]
    bundle.forward(*(values[p["name"]] for p in facts["x"]))
    cg.compile(program)(*values.values())
    for state, port in zip(bundle.states, facts["states"], strict=True):
        assert np.array_equal(state, values[port["name"]])


def test_a_kernel_keeps_its_schedule(tmp_path):
    program = small_programs.window("zero")
    kernel = cg.compile(program, schedule="parallel(n)")
    export(kernel, tmp_path, name="plain", backward=False)
    facts = load(tmp_path, "plain")._read_json(tmp_path / "MANIFEST.json")
    assert "parallel(n)" in facts["targets"][0]["kernels"][0]["schedule"]


@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("padding", [1, 2])
def test_copies_are_filled_to_the_last_byte(level, padding):
    """Bundles hand kernels memory that others used before: what a kernel packs is written whole,
    padding and halo too."""
    if not runs_here(target(level)):
        pytest.skip(f"this machine does not run {level}")
    seen = 0
    for shape, layer in (
        ((2, 6, 14, 13), cg.nn.Conv2d(6, 20, 5, padding=padding)),
        ((4, 8, 28, 28), cg.nn.Conv2d(8, 8, 3, padding=padding, padding_mode="reflect")),
        ((2, 16, 13, 17), cg.nn.Conv2d(16, 33, 3, stride=2, padding=padding)),
        ((3, 33), cg.nn.Linear(33, 17)),
    ):
        program = layer.program(shape)
        for part in (program, *split(program, [t.name for t in program.inputs])):
            built = build_program(part, target(level), None)
            names = [a.name for a in built.arguments if a.name not in built.offsets]
            known = {a.name: np.zeros(a.bytes, np.uint8) for a in built.arguments}
            function = NativeFunction(built, tuple(names))
            work = np.full(function.workspace_bytes, 0xFF, np.uint8)
            function.ctypes(*(known[n].ctypes.data for n in names), work.ctypes.data)
            start = -work.ctypes.data % 64
            for a in built.arguments:
                if a.name in built.packed or a.role == "packed":
                    seen += 1
                    begin = start + built.offsets[a.name]
                    left = work[begin : begin + a.bytes].view(np.uint32) == 0xFFFFFFFF
                    assert not left.any(), f"{a.name} of {part.name}"
    assert seen > 6


def test_refusals():
    rows = cg.parse("program p\ntensor X: f32[N, K]\nY[n, k] = 2*X[n, k]")
    with pytest.raises(ShapeError, match="open sizes"):
        export(rows, "nowhere")
    whole = cg.parse("program p\ntensor X: i32[3]\nY[i] = 2*X[i]")
    with pytest.raises(DataError, match="backward=False"):
        export(whole, "nowhere")
