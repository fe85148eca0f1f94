"""Layers and networks as torch modules: state dicts, training, compile, export."""

import copy

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402

import convgen as cg  # noqa: E402

torch.set_num_threads(1)
nn, tn = cg.nn, torch.nn


def nets():
    """The same network twice."""
    ours = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3 * 16, 5),
    )  # fmt: skip
    theirs = tn.Sequential(
        tn.Conv2d(1, 3, 3, padding=1), tn.BatchNorm2d(3), tn.ReLU(), tn.MaxPool2d(2),
        tn.Flatten(), tn.Linear(3 * 16, 5),
    )  # fmt: skip
    module = cg.torch.Module(ours, threads=1)
    module.load_state_dict(theirs.state_dict())
    return module, theirs


X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1, 4])


def close(a, b, atol=1e-5):
    return torch.allclose(a, b, rtol=1e-4, atol=atol)


def test_training_is_torchs():
    ours, theirs = nets()
    steps = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (ours, theirs)]
    for _ in range(5):
        losses = []
        for module, step in zip((ours, theirs), steps, strict=True):
            step.zero_grad()
            loss = tn.functional.cross_entropy(module(X), LABELS)
            loss.backward()
            step.step()
            losses.append(loss)
        assert close(*losses)
    left, right = ours.state_dict(), theirs.state_dict()
    assert set(right) - set(left) == {"1.num_batches_tracked"}
    assert all(close(left[n], right[n], 1e-4) for n in left)
    assert close(ours.eval()(X), theirs.eval()(X), 1e-4)
    theirs.load_state_dict(left, strict=False)
    assert close(ours(X[:3]), theirs(X[:3]))


def test_inside_of_a_torch_model():
    model = tn.Sequential(tn.Conv2d(1, 2, 3), cg.torch.Module(nn.Conv2d(2, 2, 3)), tn.Flatten(),
                          tn.Linear(32, 5))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = tn.functional.cross_entropy(model(X), LABELS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert {"1.weight", "1.bias"} <= set(model.state_dict())


def test_every_batch_size():
    ours, theirs = nets()
    for batch in (1, 4, 7):
        x = torch.randn(batch, 1, 8, 8)
        assert close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_graph_breaks(dynamic):
    ours, _ = nets()
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    state = copy.deepcopy(ours.state_dict())
    want = torch.autograd.grad(ours(X).square().sum(), list(ours.parameters()))
    after = copy.deepcopy(ours.state_dict())
    ours.load_state_dict(state)
    got = torch.autograd.grad(compiled(X).square().sum(), list(ours.parameters()))
    assert all(close(a, b) for a, b in zip(got, want, strict=True))
    assert all(torch.equal(after[n], t) for n, t in ours.state_dict().items())
    if dynamic:
        ours.eval()
        assert close(compiled(torch.cat([X, X])), ours(torch.cat([X, X])))


def test_export_with_an_open_batch():
    ours, _ = nets()
    ours.eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(ours, (X,), dynamic_shapes={"inputs": ({0: batch},)})
    names = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert any("convgen.Conv2d" in n for n in names)
    for x in (X, torch.cat([X, X])):
        assert close(program.module()(x), ours(x))


def test_copies_and_other_dtypes():
    ours, theirs = nets()
    twin = copy.deepcopy(ours)
    with torch.no_grad():
        twin.get_submodule("0").weight.zero_()
    assert not close(twin.eval()(X), ours.eval()(X))
    assert close(ours.double()(X.double()), theirs.eval().double()(X.double()))
    layer = cg.torch.Module(nn.Conv2d(2, 3, 3), dtype="f64")
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_random_layers_draw_from_torchs_generator():
    layer = cg.torch.Module(nn.Dropout(0.5))
    x = torch.ones(1000, requires_grad=True)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)
    first.sum().backward()
    assert torch.equal(x.grad, first.detach())
    assert torch.equal(layer.eval()(x), x)


class Residual(cg.nn.Module):
    def __init__(self):
        self.first = nn.Conv2d(2, 2, 3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)

    def forward(self, x):
        values, places = self.pool(nn.concat([self.first(x) + x, x]))
        return values, places


def test_branches_and_several_outputs():
    module = cg.torch.Module(Residual())
    x = torch.randn(2, 2, 4, 4, requires_grad=True)
    values, places = module(x)
    conv = tn.functional.conv2d(x, module.first.weight, module.first.bias, padding=1)
    want, where = tn.functional.max_pool2d(torch.cat([conv + x, x], 1), 2, return_indices=True)
    assert close(values, want) and torch.equal(places, where)
    (got,) = torch.autograd.grad(values.square().sum(), x, retain_graph=True)
    (expected,) = torch.autograd.grad(want.square().sum(), x)
    assert close(got, expected)


def test_a_compiled_network_brings_its_weights():
    network = cg.compile(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), input=(4, 1, 8, 8), seed=5)
    module = cg.torch.Module(network)
    assert np.allclose(module(X).detach().numpy(), network.predict(X.numpy()), atol=1e-5)
    network.load_state_dict({n: 2 * t for n, t in module.state_dict().items()})
    assert np.allclose(network.weights["0.weight"], 2 * module.state_dict()["0.weight"])


def test_parameters_that_depend_on_the_input():
    layer = nn.LocallyConnected2d(1, 2, 3)
    with pytest.raises(cg.ShapeError, match="depend on the shape.*try Module.*input="):
        cg.torch.Module(layer)
    module = cg.torch.Module(layer, input=(4, 1, 8, 8))
    assert module(X).shape == module(X[:2]).shape[:0] + (4, 2, 6, 6)


def test_refusals():
    ours, _ = nets()
    cases = [
        ("wrong number of inputs; expected 1, got 2", (X, X)),
        ("the input is no tensor; expected a torch.Tensor, got ndarray", (X.numpy(),)),
        ("wrong dtype; expected torch.float32 or torch.float64", (X.half(),)),
        ("input channels", (X.expand(4, 2, 8, 8),)),
        ("wrong dtype", (X.double(),)),
    ]
    for message, given in cases:
        with pytest.raises(cg.UserError, match=message):
            ours(*given)
    with pytest.raises(cg.ShapeError, match="nothing that a module can be made of"):
        cg.torch.Module(tn.ReLU())
    with pytest.raises(RuntimeError, match="size mismatch"):
        ours.load_state_dict({**ours.state_dict(), "0.bias": torch.zeros(7)})


def test_an_empty_batch():
    ours, _ = nets()
    ours.eval()
    x = torch.randn(0, 1, 8, 8, requires_grad=True)
    y = ours(x)
    assert y.shape == (0, 5)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(not p.grad.any() for p in ours.parameters())


def test_losses_and_optimizer_steps_are_functions_too():
    loss = cg.torch.function(nn.CrossEntropyLoss().program((4, 5)))
    scores = torch.randn(4, 5, requires_grad=True)
    got, want = loss(scores, LABELS), tn.functional.cross_entropy(scores, LABELS)
    assert close(got, want)
    for a, b in zip(
        torch.autograd.grad(got, scores), torch.autograd.grad(want, scores), strict=True
    ):
        assert close(a, b)
    with pytest.raises(cg.DataError, match="T has the wrong dtype; expected torch.int64"):
        loss(scores, LABELS.int())
    step = cg.torch.function(cg.optim.SGD(0.5).program(4))
    values, gradient = torch.ones(4), torch.full((4,), 0.25)
    step(values, gradient, 0.5)
    assert torch.equal(values, torch.full((4,), 0.875))


def test_results_that_the_backward_does_not_read_may_change_in_place():
    """A convolution before ReLU(inplace=True) or += was refused by autograd."""
    layer = cg.torch.Module(cg.nn.Conv2d(3, 4, 3))
    own = torch.nn.Conv2d(3, 4, 3)
    own.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 6, 6)
    for module in (layer, own):
        (torch.nn.ReLU(inplace=True)(module(x).mul_(2)) ** 2).sum().backward()
    torch.testing.assert_close(layer.weight.grad, own.weight.grad, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="inplace"):  # exp is read again: exp' = exp
        f = cg.torch.function(cg.parse("Y[i] = exp(X[i])", X=(3,)))
        f(torch.ones(3, requires_grad=True)).mul_(2).sum().backward()
