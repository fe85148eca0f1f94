"""What a network needs in memory, and less of it on request."""

import numpy as np
import pytest

import convgen as cg
from convgen.errors import ShapeError
from convgen.runtime.module import trace
from convgen.runtime.network import Network
from convgen.runtime.table import memory_of

nn = cg.nn


def small():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Flatten(),
        nn.Linear(32 * 64, 16),
    )


def bound(network):
    """1.05 times the weights and 1.5 times the two largest values."""
    sizes = sorted(
        int(np.prod(v.shape)) * network.dtype.bytes for v in network.graph.values
    )  # fmt: skip
    return 1.05 * network.weights.vector.nbytes + 1.5 * sum(sizes[-2:])


def test_small_memory_keeps_no_packed_weights():
    layers = nn.Sequential(nn.Linear(256, 192), nn.ReLU(), nn.Linear(192, 256), nn.Linear(256, 64))
    fast = Network(layers, [(32, 256)])
    lean = Network(layers, [(32, 256)], memory="small")
    x = np.random.default_rng(0).standard_normal((40, 256)).astype(np.float32)
    assert np.array_equal(fast.predict(x), lean.predict(x))
    usage, less = fast.memory(), lean.memory()
    assert less["prepared"] == 0 < usage["prepared"]
    assert sum(less.values()) < sum(usage.values())
    assert less["weights"] == usage["weights"] >= 4 * lean.parameters
    lean.weights["3.weight"][...] = 0  # nothing is kept, so there is nothing to make anew
    assert np.array_equal(lean.predict(x), np.broadcast_to(lean.weights["3.bias"], (40, 64)))
    with pytest.raises(ShapeError, match="memory 'tiny'"):
        Network(layers, [(32, 256)], memory="tiny")


def test_a_large_linear_layer_is_not_packed_at_batch_1():
    network = Network(nn.Linear(4096, 1000), [(1, 4096)], memory="small")
    assert sum(network.memory().values()) <= bound(network)


def test_counted_memory_is_what_the_plan_says():
    network = Network(small(), [(2, 3, 8, 8)])
    counted, real = memory_of(network.graph), network.memory()
    assert counted["activations"] == real["activations"]
    # States and parameters start at multiples of 64 bytes.
    assert counted["weights"] <= real["weights"] < counted["weights"] + 64 * 6


def test_views_and_branches_are_counted_once():
    class Net(nn.Module):
        def __init__(self):
            self.relu, self.flat = nn.ReLU(), nn.Flatten()

        def forward(self, x):
            return self.flat(self.relu(x)) + self.flat(x)

    # Input, relu and sum exist together; the flattened ones are the same memory.
    assert memory_of(trace(Net(), [(1, 4, 4)]))["activations"] == 3 * 64


@pytest.mark.full
def test_vgg16_at_batch_1():
    network = Network(cg.zoo.vgg16(), [(1, 3, 224, 224)], mode="infer", memory="small")
    assert sum(network.memory().values()) <= bound(network)
