"""Wrong types handed to the public functions: a UserError that says what was expected."""

import numpy as np
import pytest

import convgen as cg
from convgen.errors import FormulaError, UserError

i, j = cg.axes("i j")
X = cg.tensor("X", (4, 4))
LAYER = cg.define("Y", [i, j], cg.relu(X[i, j]))

CALLS = {
    "grad of a number": (lambda: cg.grad(3), "expected a Program, got int"),
    "grad of text": (lambda: cg.grad("Y[i] = X[i]"), "try cg.parse(text)"),
    "grad of a layer": (lambda: cg.grad(cg.nn.ReLU()), "try .program(shape of its input)"),
    "grad to a number": (lambda: cg.grad(LAYER, 3), "expected names of inputs, got 3"),
    "split": (lambda: cg.split(3), "expected a Program, got int"),
    "steps": (lambda: cg.steps(None, "X"), "expected a Program, got NoneType"),
    "closed form": (lambda: cg.closed_form(3), "expected a Program, got int"),
    "custom gradient": (lambda: cg.custom_gradient(LAYER, 3), "expected a Program, got int"),
    "pieces": (lambda: cg.pieces(LAYER, 3), "expected a Program, got int"),
    "evaluate": (lambda: cg.evaluate("Y", {}), "expected a Program, got 'Y'"),
    "schedule": (lambda: cg.compile(LAYER, schedule=3), "expected a Schedule or its text, got 3"),
    "accuracy": (lambda: cg.compile(LAYER, accuracy="x"), "expected a number above 0, got 'x'"),
    "mode": (lambda: cg.compile(LAYER, mode="infer"), "no option 'mode'; expected one of schedule"),
    "no option": (lambda: cg.compile(LAYER, fast=True), "a program has no option 'fast'"),
    "network option": (
        lambda: cg.compile(cg.nn.ReLU(), input=(1, 2), schedule="x"),
        "a network has no option 'schedule'; expected one of mode, dtype, target, threads, seed",
    ),
    "text": (lambda: cg.compile("Y[i] = X[i]"), "try cg.parse(text)"),
    "input": (lambda: cg.compile(cg.nn.ReLU(), input=3), "expected the shape, batch first"),
    "batch": (lambda: cg.compile(cg.nn.ReLU(), input=(-1, 2)), "expected integers >= 1"),
    "fraction": (lambda: cg.compile(cg.nn.ReLU(), input=(1.5, 2)), "expected integers >= 1"),
    "axes": (lambda: cg.axes(3), "expected text such as 'n k y x'"),
    "size": (lambda: cg.size(3), "expected an identifier, got 3"),
    "name": (lambda: cg.tensor(3, (1,)), "expected an identifier, got 3"),
    "shape": (lambda: cg.tensor("X", None), "expected integers or sizes, got None"),
    "output": (lambda: cg.define(3, [i], X[i, 0]), "expected a name or a list of (name, index)"),
    "extents": (lambda: cg.define("Y", [i], X[i, 0], extents=[3]), "{axis: extent}, got [3]"),
    "channels": (lambda: cg.nn.Conv2d("a", 8, 3), "(in_channels, out_channels, groups)"),
    "features": (lambda: cg.nn.Linear(-1, 3), "expected integers >= 1"),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_types_are_refused(name: str) -> None:
    call, message = CALLS[name]
    with pytest.raises(UserError) as caught:
        call()
    assert message in str(caught.value)


def test_products_of_axes_are_no_index() -> None:
    with pytest.raises(FormulaError, match="not affine"):
        X[i * j, 0]
    with pytest.raises(FormulaError, match="not affine"):
        X[2 * i * j + 1, 0]


def test_networks_refuse_what_is_no_setting() -> None:
    net = cg.nn.Sequential(cg.nn.Linear(2, 3))
    for options in ({"seed": "a"}, {"seed": -1}, {"dtype": "i32"}, {"threads": "a"}):
        with pytest.raises(UserError, match=next(iter(options))):
            cg.compile(net, input=(4, 2), **options)
    network = cg.compile(net, input=(4, 2))
    x, y = np.zeros((4, 2), np.float32), np.zeros(4, np.int64)
    good = {"loss": cg.nn.CrossEntropyLoss(), "optimizer": cg.optim.SGD(0.1), "epochs": 1}
    for name, value in (("loss", "ce"), ("optimizer", "sgd"), ("epochs", "x"), ("epochs", -1)):
        with pytest.raises(UserError, match=f"{name}="):
            network.fit(x, y, **{**good, name: value}, show=False)
