"""Everything a user holds shows itself in a notebook."""

from __future__ import annotations

import numpy as np
import pytest

import convgen as cg
from convgen.layers import activation, convolution, normalization, pooling
from convgen.layers.dense import Linear


@pytest.mark.parametrize(
    "layer",
    [
        convolution.Conv1d(2, 3, 3), convolution.Conv2d(3, 4, 3, stride=2, padding=1),
        convolution.Conv3d(2, 2, 3), pooling.MaxPool2d(2), normalization.BatchNorm2d(3),
        Linear(5, 2), activation.ReLU(),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_layers_show_their_formula(layer):
    assert layer._repr_html_().startswith(f"<code>{type(layer).__name__}(")
    assert "<math" in layer._repr_html_()
    assert layer._repr_latex_().startswith("$$\n\\begin{aligned}")


def test_programs_and_kernels_show_formula_and_report():
    program = cg.parse("Y[i] = sum(j: A[i, j] * x[j])", A=(2, 3), x=3)
    assert "<math" in program._repr_html_() and r"\sum" in program._repr_latex_()
    kernel = cg.compile(program)
    assert "phases:" in kernel._repr_html_() and "<math" in kernel._repr_html_()
    assert kernel.latex() == program.latex() and kernel.unicode() == program.unicode()
    assert kernel(np.ones((2, 3), np.float32), np.ones(3, np.float32)).tolist() == [3, 3]


def test_networks_show_their_table():
    net = cg.compile(cg.nn.Sequential(cg.nn.Linear(4, 8), cg.nn.ReLU()), input=(2, 4))
    assert "Linear(4, 8)" in str(net) and "total" in str(net)
    assert net._repr_html_().count("<tr>") == 4


def test_networks_show_every_formula():
    net = cg.compile(cg.nn.Sequential(cg.nn.Linear(4, 8), cg.nn.ReLU()), input=(2, 4))
    assert list(net.formulas()) == ["0", "1"]
    assert "relu(" in net.unicode() and net.latex().count(r"\begin{aligned}") == 2
    assert net._repr_latex_().startswith("$$")
