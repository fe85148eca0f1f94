"""What the network learned to see, against torch's hooks and autograd; pictures are written."""

import numpy as np
import pytest
from torch_graph import RUN, TorchGraph

import convgen as cg
from convgen.errors import DataError, ShapeError
from convgen.inspect import overlays, seeing
from convgen.runtime.network import Network

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
nn = cg.nn


@pytest.fixture(scope="module")
def network():
    layers = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )
    found = Network(layers, [(2, 2, 10, 10)], dtype="f64", seed=2)
    rng = np.random.default_rng(0)
    found.weights["1.running_mean"][...] = rng.standard_normal(4) / 4
    found.weights["1.running_var"][...] = rng.uniform(0.5, 2, 4)
    found.weights_changed()
    return found


X = np.random.default_rng(1).standard_normal((3, 2, 10, 10))  # not a multiple of the batch
CLASSES = np.array([2, 0, 1])


class _Rectify(torch.autograd.Function):
    """ReLU with a backward pass that is no derivative."""

    @staticmethod
    def forward(context, x, guided):
        context.save_for_backward(x)
        context.guided = guided
        return torch.relu(x)

    @staticmethod
    def backward(context, dy):
        (x,) = context.saved_tensors
        return torch.relu(dy) * ((x > 0) if context.guided else 1), None


def theirs(network, guided=None):
    """(input, values by node path, scores) of torch, every value with its gradient kept."""
    values = {}
    graph = TorchGraph(network.graph, network.state_dict())
    run = dict(RUN)
    if guided is not None:
        run["ReLU"] = lambda m, p, t, x: _Rectify.apply(x, guided)
    x = torch.tensor(X, requires_grad=True)
    value = x
    for node in network.graph.nodes:
        shapes = [network.graph.values[i].shape for i in node.inputs]
        specs = node.layer.parameters(*shapes)
        own = {s.name: graph.tensors[f"{node.path}.{s.name}"] for s in specs}
        value = run[type(node.layer).__name__](node.layer, own, False, value)
        value.retain_grad()
        values[node.path] = value
    return x, values, value


def close(ours, expected, tolerance=1e-12):
    expected = expected.detach().numpy() if hasattr(expected, "detach") else expected
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= tolerance * max(np.abs(expected).max(), 1)


def test_first_filters_and_feature_maps(network):
    assert np.array_equal(seeing.first_filters(network), network.state_dict()["0.weight"])
    _, values, _ = theirs(network)
    for name, maps in seeing.feature_maps(network, X, ["0", "2", "4", "8"]).items():
        close(maps, values[name])


def test_saliency(network):
    x, _, scores = theirs(network)
    scores[np.arange(3), CLASSES].sum().backward()
    close(seeing.input_gradient(network, X, CLASSES), x.grad)
    close(seeing.saliency(network, X, CLASSES), x.grad.abs().amax(1))
    own = scores.detach().argmax(1).numpy()
    assert np.array_equal(seeing.saliency(network, X), seeing.saliency(network, X, own))


@pytest.mark.parametrize("maps", ["2", "4", "3"])
def test_grad_cam(network, maps):
    _, values, scores = theirs(network)
    scores[np.arange(3), CLASSES].sum().backward()
    weight = values[maps].grad.mean((2, 3), keepdim=True)
    close(seeing.grad_cam(network, X, maps, CLASSES), torch.relu((weight * values[maps]).sum(1)))


def test_class_activation_map(network):
    _, values, scores = theirs(network)
    weight = torch.tensor(network.state_dict()["8.weight"])[CLASSES]
    cam = seeing.class_activation_map(network, X, CLASSES)
    close(cam, torch.einsum("nk,nkyx->nyx", weight, values["5"]))
    # Its mean is the score without the bias.
    bias = network.state_dict()["8.bias"][CLASSES]
    close(cam.mean((1, 2)) + bias, scores[np.arange(3), CLASSES])


def test_guided_backpropagation(network):
    x, _, scores = theirs(network, guided=True)
    scores[np.arange(3), CLASSES].sum().backward()
    guided = seeing.guided_backpropagation(network, X, CLASSES)
    close(guided, x.grad)
    assert np.abs(guided - seeing.input_gradient(network, X, CLASSES)).max() > 1e-3


def test_projection(network):
    for maps, channel in (("4", 3), ("2", 1)):
        x, values, _ = theirs(network, guided=False)
        flat = values[maps][:, channel].flatten(1)
        # The cotangent is the value itself, so the score is half its square.
        (flat.amax(1) ** 2 / 2).sum().backward()
        close(seeing.projection(network, X, maps, channel), x.grad)


def test_branches_and_layers_used_twice():
    class Net(nn.Module):
        def __init__(self):
            self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
            self.head = nn.Linear(3 * 16, 2)
            self.flat = nn.Flatten()

        def forward(self, x):
            a = self.conv(x)
            return self.head(self.flat(self.conv(a) + a))

    network = Network(Net(), [(2, 3, 4, 4)], dtype="f64")
    x = np.random.default_rng(3).standard_normal((2, 3, 4, 4))
    pull = network.pullback(wrt=["input0", "conv:0"], keep=["conv:1"], weights=True)
    scores = pull(x)
    start = np.random.default_rng(4).standard_normal(scores.shape)
    found = pull.back(start)
    graph = TorchGraph(network.graph, network.state_dict())
    given = torch.tensor(x, requires_grad=True)
    w = graph.tensors["conv.weight"]
    a = torch.nn.functional.conv2d(given, w, padding=1)
    a.retain_grad()
    b = torch.nn.functional.conv2d(a, w, padding=1)
    flat = (a + b).flatten(1)
    head = graph.tensors["head.weight"], graph.tensors["head.bias"]
    out = torch.nn.functional.linear(flat, *head)
    out.backward(torch.tensor(start))
    close(scores, out)
    close(pull.value("conv:1"), b)
    close(found["input0"], given.grad)
    close(found["conv:0"], a.grad)
    close(found["conv.weight"], w.grad)
    close(found["head.bias"], head[1].grad)
    with pytest.raises(ShapeError, match="used 2 times"):
        network.pullback(wrt=["conv"])


def test_gradient_of_a_value_the_source_does_not_reach_is_zero(network):
    pull = network.pullback(sources=["2"], wrt=["4", "2"])
    pull(X[:2])
    found = pull.back(np.ones((2, 4, 10, 10)))
    assert not found["4"].any() and (found["2"] == 1).all()


def test_memory_is_that_of_what_is_asked_for():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 300))
    network = Network(layers, [(1, 1, 8, 8)])
    bare = network.pullback(wrt=["input0"])
    assert bare.plan.bytes < network.weights.vector.nbytes  # no gradient of the weights
    assert network.pullback(weights=True).plan.bytes > network.weights.vector.nbytes
    near = network.pullback(sources=["1"], wrt=["input0"])
    assert {call.title for call in near.plan.calls} == {"1", "d.1"}  # nothing behind the source
    for wrong in ((), (np.zeros((1, 1, 8, 8)),) * 2):
        with pytest.raises(DataError, match="inputs"):
            bare(*wrong)
    with pytest.raises(DataError, match="cotangents"):
        bare.back()
    with pytest.raises(DataError, match="cotangent of output0"):
        bare.back(np.zeros((1, 2)))


def test_steps_by_hand_equal_fit():
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((4, 6)), rng.integers(0, 3, 4)

    def make():
        layers = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        return Network(layers, [(4, 6)], dtype="f64")

    fitted, stepped = make(), make()
    loss = nn.CrossEntropyLoss()
    fitted.fit(x, y, loss=loss, optimizer=cg.optim.Adam(0.01), epochs=3, show=False)
    pull, step = stepped.pullback(training=True, weights=True), stepped.stepper(cg.optim.Adam(0.01))
    slope = stepped.loss(loss)
    stream = cg.data.Stream(4, 4, 0)
    for number in range(3):
        chosen = stream.indices(number)
        value, back = slope(pull(x[chosen]), y[chosen])
        step(pull.back(back))
    assert abs(value - fitted.history[-1].loss) < 1e-12
    for name, array in fitted.state_dict().items():
        close(stepped.state_dict()[name], array)


def test_refusals(network):
    with pytest.raises(ShapeError, match="no value 'nothing'"):
        seeing.grad_cam(network, X, "nothing")
    with pytest.raises(ShapeError, match="maps"):
        seeing.grad_cam(network, X, "7")
    with pytest.raises(DataError, match="classes"):
        seeing.saliency(network, X, 3)
    with pytest.raises(ShapeError, match="map 9"):
        seeing.projection(network, X, "4", 9)
    plain = Network(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), [(1, 1, 2, 2)])
    with pytest.raises(ShapeError, match="class activation map"):
        seeing.class_activation_map(plain, np.zeros((1, 1, 2, 2)))
    with pytest.raises(ShapeError, match="no layer with filters"):
        seeing.first_filters(plain)
    with pytest.raises(DataError, match="no samples"):
        seeing.saliency(network, X[:0])


def test_pictures_are_written(network, tmp_path):
    pytest.importorskip("matplotlib")
    cam = seeing.class_activation_map(network, X)
    a = overlays.overlay(X, cam, tmp_path / "cam.png", titles=["one"])
    b = overlays.rows({"image": X, "saliency": seeing.saliency(network, X)}, tmp_path / "rows.png")
    for path in (a, b):
        assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(DataError, match="one an image"):
        overlays.overlay(X, cam[:1], tmp_path / "no.png")
