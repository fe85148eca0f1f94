"""Losses and optimizer steps against torch."""

import numpy as np
import pytest
import torch
from layer_check import check, draw, errors_of

from convgen.errors import ShapeError
from convgen.layers import loss, update
from convgen.runtime.kernel import compile
from convgen.types import f64


def labels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, shape[1], (shape[0], *shape[2:]))


@pytest.mark.parametrize("shape", [(5, 7), (1, 3), (2, 2), (2, 3, 4), (2, 3, 2, 5)])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"reduction": "sum"}])
def test_cross_entropy(shape, options):
    theirs = torch.nn.CrossEntropyLoss(**options)
    check(loss.CrossEntropyLoss(**options), shape, lambda t: theirs(t["X"], t["T"]),
          given={"T": labels(shape)}, wrt=["X"], dtypes=["f64"] if options else ["f64", "f32"])  # fmt: skip


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 2, 5)])
def test_nll(shape):
    theirs = torch.nn.NLLLoss()
    check(
        loss.NLLLoss(),
        shape,
        lambda t: theirs(t["X"], t["T"]),
        given={"T": labels(shape)},
        wrt=["X"],
    )


PAIRS = [
    ("MSELoss", {}), ("L1Loss", {}), ("L1Loss", {"reduction": "sum"}), ("SmoothL1Loss", {"beta": 0.7}),
    ("HuberLoss", {"delta": 0.7}), ("BCEWithLogitsLoss", {}),
]  # fmt: skip


@pytest.mark.parametrize("name,options", PAIRS)
@pytest.mark.parametrize("shape", [(7, 3), (1,), (2, 3, 1, 5)])
def test_elementwise_losses(name, options, shape):
    theirs = getattr(torch.nn, name)(**options)
    check(getattr(loss, name)(**options), shape, lambda t: theirs(t["X"], t["T"]))


def test_binary_losses_at_the_ends():
    x = np.array([-800.0, -30.0, -1e-9, 0.0, 1e-9, 30.0, 800.0])
    logits = torch.nn.BCEWithLogitsLoss()
    for t in (np.zeros(7), np.ones(7), np.full(7, 0.25)):
        check(
            loss.BCEWithLogitsLoss(), (7,), lambda v: logits(v["X"], v["T"]), given={"X": x, "T": t}
        )
    x = np.array([0.001, 0.25, 0.5, 0.75, 0.999])
    theirs = torch.nn.BCELoss()
    check(loss.BCELoss(), (5,), lambda v: theirs(v["X"], v["T"]), given={"X": x, "T": x[::-1]},
          wrt=["X"])  # fmt: skip
    program = loss.BCELoss().program((2,), dtype=f64)
    got = compile(program, threads=1)(np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    assert got == 100


def test_another_smoothing_is_noticed():
    theirs = torch.nn.CrossEntropyLoss(label_smoothing=0.11)
    errors = errors_of(
        loss.CrossEntropyLoss(0.1), [(5, 7)], lambda t: theirs(t["X"], t["T"]),
        {"T": labels((5, 7))}, ["X"], True, "f64", 0,
    )  # fmt: skip
    assert min(errors.values()) > 1e-4


OPTIMIZERS = [
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.01}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    ("AdamW", {}),
]


@pytest.mark.parametrize("name,options", OPTIMIZERS)
def test_optimizer_steps(name, options):
    ours = getattr(update, name)(**options)
    p = torch.nn.Parameter(torch.tensor(np.random.default_rng(0).standard_normal(7)))
    theirs = getattr(torch.optim, name)([p], **options)
    program = ours.program(7, f64)
    kernel = compile(program, threads=1)
    arrays = draw(program, {"P": p.detach().numpy(), **dict.fromkeys(ours.states, np.zeros(7))}, 0)
    for step in range(1, 4):
        gradient = np.random.default_rng(step).standard_normal(7)
        p.grad = torch.tensor(gradient)
        theirs.step()
        scalars = {n: np.array(v) for n, v in ours.values(step).items()}
        run_into(kernel, arrays | {"G": gradient} | scalars)
        np.testing.assert_allclose(arrays["P"], p.detach().numpy(), rtol=1e-12)


def run_into(kernel, arrays):
    assert kernel(*(arrays[t.name] for t in kernel.program.inputs)) is None


def test_refusals():
    with pytest.raises(ShapeError, match="reduction='none'.*'mean' or 'sum'"):
        loss.MSELoss("none")
    with pytest.raises(ShapeError, match="label_smoothing=2"):
        loss.CrossEntropyLoss(2)
    with pytest.raises(ShapeError, match=r"NLLLoss: predictions.*\(N, classes\)"):
        loss.NLLLoss().target_shape((5,))
    with pytest.raises(ShapeError, match="Nesterov momentum"):
        update.SGD(0.1, nesterov=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: update.SGD(-0.1), "learning rate -0.1"),
        (lambda: update.Adam(float("nan")), "learning rate nan"),
        (lambda: update.SGD(0.1, momentum=-1), "momentum -1.*a number >= 0"),
        (lambda: update.SGD(0.1, weight_decay=-1e-4), "weight_decay -0.0001"),
        (lambda: update.Adam(betas=(0.9, 1.0)), "beta 1.0.*from 0 to below 1"),
        (lambda: update.Adam(eps=-1e-8), "eps -1e-08"),
        (lambda: update.AdamW(weight_decay=-1), "weight_decay -1"),
    ],
)
def test_optimizers_refuse_numbers_that_torch_refuses(make, message):
    with pytest.raises(ShapeError, match=message):
        make()
    update.SGD(0.0, momentum=0.0, weight_decay=0.0)
