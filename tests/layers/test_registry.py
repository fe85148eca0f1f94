"""Every registered layer: made from its text, run as a formula, and named like PyTorch's."""

import inspect

import pytest
import torch

from convgen.errors import DataError
from convgen.layers import LAYERS, LOSSES
from convgen.runtime.structure import parse_layer
from convgen.symbolic.derive import grad

IMAGE, SIGNAL, VIDEO = (2, 4, 5, 6), (2, 4, 6), (1, 4, 5, 6, 4)
BY_RANK = {"1d": SIGNAL, "2d": IMAGE, "3d": VIDEO}
# Arguments and input shapes of layers that need others than the rules below give.
CALLS = {
    "Linear": ("Linear(6, 3)", IMAGE),
    "Upsample": ("Upsample(scale_factor=2.0, mode='bilinear', align_corners=True)", IMAGE),
    "Threshold": ("Threshold(0.5, -1.0)", IMAGE),
    "GroupNorm": ("GroupNorm(2, 4)", IMAGE),
    "LayerNorm": ("LayerNorm((5, 6))", IMAGE),
    "LocalResponseNorm": ("LocalResponseNorm(3, k=2.0)", IMAGE),
    "PositionBias": ("PositionBias(4, 5, 6)", IMAGE),
    "SpaceTimeConv3d": ("SpaceTimeConv3d(4, 3, 3, 2, padding=(0, 1, 1))", VIDEO),
    "Correlation": ("Correlation(1)", IMAGE, IMAGE),
    "Involution2d": ("Involution2d(3, padding=1)", IMAGE, (2, 9, 5, 6)),
    "CapsuleConv2d": ("CapsuleConv2d(4, 2, 6, 2)", (2, 4, 5, 6, 3, 4)),
    "Add": ("Add()", IMAGE, IMAGE),
    "Concat": ("Concat(-1)", IMAGE, (2, 4, 5, 1)),
    "PReLU": ("PReLU(4)", IMAGE),
}


def call(name):
    """(text of a constructor call, input shapes)."""
    if name in CALLS:
        text, *shapes = CALLS[name]
        return text, shapes
    shape = BY_RANK.get(name[-2:], IMAGE)
    if "Unpool" in name:
        return f"{name}(2)", [shape, shape]
    for part, arguments in (
        ("Tiled", "4, 3, 2, 2"), ("Conv", "4, 4, 3, padding=1"), ("Locally", "4, 3, 2"),
        ("Norm", "4"), ("Adaptive", "2"), ("Pool", "2"), ("Constant", "1, 0.5"), ("Pad", "1"),
    ):  # fmt: skip
        if part in name and not name.startswith("Local"):
            return f"{name}({arguments})", [shape]
    return (f"{name}(4, 3, 2)" if name.startswith("Locally") else f"{name}()"), [shape]


@pytest.mark.parametrize("name", LAYERS)
def test_layer_from_text(name):
    text, shapes = call(name)
    layer = parse_layer(text)
    assert repr(parse_layer(repr(layer))) == repr(layer)
    program = layer.program(*shapes, training=True)
    program.check()
    assert tuple(program.outputs[0].shape) == layer.output_shape(*shapes)
    specs = layer.parameters(*shapes)
    declared = {t.name: tuple(t.shape) for t in program.inputs}
    assert {s.tensor: s.shape for s in specs}.items() <= declared.items()
    data = [n for n in declared if n not in {s.tensor for s in specs} and n != layer.seed]
    assert data == list(layer.inputs(*shapes))
    wrt = [t.name for t in program.inputs if t.dtype.is_float and t.role != "state"]
    assert [t.name for t in grad(program, wrt).outputs] == ["d" + n for n in wrt]


@pytest.mark.parametrize("name", [n for n in LAYERS | LOSSES if hasattr(torch.nn, n)])
def test_arguments_are_named_and_ordered_as_torchs(name):
    ours = list(inspect.signature((LAYERS | LOSSES)[name]).parameters.values())
    theirs = inspect.signature(getattr(torch.nn, name)).parameters
    own = {"output_size"}  # an argument of MaxUnpool's call in torch
    names = [p.name for p in ours if p.name not in own or p.name in theirs]
    known = [n for n in theirs if n in names]
    assert sorted(names) == sorted(known)
    if name in LAYERS:
        assert names == known
    for p in ours:
        # torch warns of a softmax without a dimension; here it is the last one
        if p.name in theirs and theirs[p.name].default not in (inspect.Parameter.empty, None):
            assert p.default == theirs[p.name].default, p.name


def test_unknown_layers_and_arguments_are_refused():
    with pytest.raises(DataError, match="unknown layer 'Conv4d'"):
        parse_layer("Conv4d(1, 2, 3)")
    with pytest.raises(DataError, match="GELU.*unexpected keyword"):
        parse_layer("GELU(fast=True)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Conv2D(3, 8, 3)", "try Conv2d"),
        ("Bogus()", "expected one of Conv1d"),
        ("Conv2d(3, 8, 3, strid=2)", "kernel_size, stride=1, padding=0"),
        ("Conv2d(3, 8, 3, **{'stride': 2})", "Conv2d: "),
    ],
)
def test_misspelt_layers_say_what_there_is(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_layer(text)
    assert message in str(caught.value)
