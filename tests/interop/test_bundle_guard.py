"""No kernel touches a byte outside its buffers: each buffer ends, then begins, at a forbidden page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import convgen as cg
from convgen.interop.aot.export import export
from convgen.target import runs_here, target

GUARDED = Path(__file__).parent / "guarded.py"
PROGRAMS = {
    "strided": (
        "Y[n,k,y,x] = sum(c,r,s: X[n,c,2*y+r-1,2*x+s-1]*W[k,c,r,s]) + b[k]   for y < 4, x < 5",
        {"X": (3, 3, 8, 9), "W": (10, 3, 3, 3), "b": (10,)},
    ),
    "odd": (
        "Y[n,k,y,x] = relu(sum(c,r,s: X{reflect}[n,c,y+r-2,x+s-2]*W[k,c,r,s]))   for y < 7, x < 11",
        {"X": (2, 5, 7, 11), "W": (7, 5, 5, 5)},
    ),
    "depthwise": (
        "Y[n,c,y,x] = sum(r,s: X[n,c,y+r,x+s]*W[c,r,s])",
        {"X": (2, 19, 6, 7), "W": (19, 3, 3)},
    ),
    "dense": ("Y[n,k] = sum(c: X[n,c]*W[k,c]) + b[k]", {"X": (5, 33), "W": (17, 33), "b": (17,)}),
    "pool": (
        "Y[n,c,y,x] = max(r < 3, s < 3: X{omit}[n,c,2*y+r-1,2*x+s-1])   for y < 5, x < 4",
        {"X": (2, 6, 9, 8)},
    ),
    "one": ("Y[n,i] = exp(X[n,i]) * w[i]", {"X": (4, 1), "w": (1,)}),
}


def check(folder: Path, name: str, batches: list[int]) -> None:
    outputs = []
    for edge in ("end", "begin"):
        command = [sys.executable, str(GUARDED), str(folder), name, edge, *map(str, batches)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{edge}: signal {-done.returncode}\n{done.stderr[-800:]}"
        assert done.stdout
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_stay_inside(name, tmp_path):
    text, shapes = PROGRAMS[name]
    export(cg.parse(text, **shapes), tmp_path, name=name)
    check(tmp_path, name, [next(iter(shapes.values()))[0], 1, 7])


def test_normalized_network_stays_inside(tmp_path):
    net = cg.nn.Sequential(
        cg.nn.Conv2d(2, 5, 3, padding=1), cg.nn.BatchNorm2d(5), cg.nn.ReLU(), cg.nn.MaxPool2d(2),
        cg.nn.Flatten(), cg.nn.Linear(5 * 9, 3),
    )  # fmt: skip
    export(cg.compile(net, input=(4, 2, 6, 6)), tmp_path, name="small")
    check(tmp_path, "small", [4])


LAYERS = {
    "conv1d": (cg.nn.Conv1d(3, 7, 3, padding=1), (3, 3, 11)),
    "strided": (cg.nn.Conv2d(3, 9, 3, stride=2, padding=1), (3, 3, 11, 9)),
    "dilated": (cg.nn.Conv2d(5, 17, 3, dilation=2, padding=2), (2, 5, 9, 13)),
    "grouped": (cg.nn.Conv2d(6, 8, 3, groups=2, padding=1), (3, 6, 7, 7)),
    "depthwise": (cg.nn.Conv2d(19, 19, 3, groups=19, padding=1, stride=2), (2, 19, 9, 7)),
    "pointwise": (cg.nn.Conv2d(33, 17, 1), (2, 33, 5, 7)),
    "wide": (cg.nn.Conv2d(2, 3, 15, padding=9), (2, 2, 17, 16)),
    "circular": (cg.nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), (2, 3, 6, 7)),
    "conv3d": (cg.nn.Conv3d(2, 5, 3, padding=1), (2, 2, 5, 6, 7)),
    "transposed": (cg.nn.ConvTranspose2d(5, 3, 3, stride=2, padding=1), (2, 5, 6, 7)),
    "local": (cg.nn.LocallyConnected2d(3, 4, 3), (2, 3, 6, 7)),
    "dense": (cg.nn.Linear(70, 33), (5, 70)),
    "average": (cg.nn.AvgPool2d(3, stride=2, padding=1), (3, 5, 9, 8)),
    "adaptive": (cg.nn.AdaptiveAvgPool2d((3, 2)), (3, 5, 8, 7)),
    "maximum": (cg.nn.MaxPool2d(3, stride=2, padding=1), (3, 5, 9, 8)),
    "layernorm": (cg.nn.LayerNorm((5, 7)), (3, 4, 5, 7)),
    "groupnorm": (cg.nn.GroupNorm(2, 6), (3, 6, 5, 7)),
    "softmax": (cg.nn.Softmax(1), (3, 17)),
    "gelu": (cg.nn.GELU(), (3, 17)),
    "prelu": (cg.nn.PReLU(5), (3, 5, 7)),
    "upsample": (cg.nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 5, 6)),
    "reflected": (cg.nn.ReflectionPad2d(2), (2, 3, 5, 6)),
}


@pytest.mark.full
@pytest.mark.parametrize("name", LAYERS)
def test_layers_stay_inside(name, tmp_path):
    """Forward and backward of each layer, at every x86-64 level that runs here, at three batches."""
    layer, shape = LAYERS[name]
    levels = [t for t in ("x86-64-v2", "x86-64-v3", "x86-64-v4") if runs_here(target(t))]
    export(cg.compile(layer, input=shape), tmp_path, name=name, target=levels or None)
    check(tmp_path, name, [shape[0], 1, 7])


@pytest.mark.full
def test_lenet_stays_inside(tmp_path):
    model = cg.compile(cg.zoo.lenet5(), input=(8, 1, 28, 28))
    setup = {"loss": cg.nn.CrossEntropyLoss(), "optimizer": cg.optim.SGD(0.01, momentum=0.9)}
    levels = ["x86-64-v2", "x86-64-v3", "x86-64-v4"]
    export(model, tmp_path, name="lenet5", target=levels, **setup)
    check(tmp_path, "lenet5", [8, 1, 11])


def test_a_buffer_too_small_is_found(tmp_path):
    """The mutant: a bundle told of a smaller output writes onto the forbidden page."""
    export(cg.parse("Y[n,k] = sum(c: X[n,c]*W[k,c])", X=(4, 8), W=(16, 8)), tmp_path, name="m")
    source = (tmp_path / "m.py").read_text()
    cut = "return [np.zeros(_shape(p, batch)"
    assert cut in source
    source = source.replace(cut, "return [np.zeros((*_shape(p, batch)[:-1], 8)")
    source = source.replace("a.nbytes) for a in arrays", "1 << 40) for a in arrays")
    (tmp_path / "m.py").write_text(source)
    command = [sys.executable, str(GUARDED), str(tmp_path), "m", "end", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode < 0
