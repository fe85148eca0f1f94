"""Every network of the zoo: published counts, and a training step equal to torch's."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

import convgen as cg
from convgen.__main__ import cli
from convgen.runtime.module import trace
from convgen.runtime.network import Network
from convgen.zoo import NETWORKS

# Published parameter counts (with biases as built), and multiply-adds at batch 1.
PARAMETERS = {
    "lenet5": 61_706,
    "alexnet": 62_378_344,
    "vgg11": 132_863_336,
    "vgg11_lrn": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16_1x1": 133_638_952,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "googlenet": 6_998_552,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "densenet121": 7_978_856,
    "alphago": 3_882_793,
    "dcgan_generator": 3_576_704,
    "dcgan_discriminator": 2_765_568,
    "unet": 31_030_658,
    "mobilenetv2": 3_504_872,
    "mlp": 669_706,
}
MULTIPLY_ADDS = {
    "lenet5": 416_520,
    "alexnet": 1_135_256_096,
    "vgg16": 15_470_264_320,
    "googlenet": 1_582_671_872,
    "resnet50": 4_089_184_256,
    "densenet121": 2_834_161_664,
    "mobilenetv2": 300_774_272,
    "alphago": 1_400_726_208,
}


def graph_of(name, **options):
    maker, shape = NETWORKS[name]
    return trace(maker(**options), [(1, *shape)])


@pytest.mark.parametrize("name", NETWORKS)
def test_counts(name):
    graph = graph_of(name)
    assert graph.parameter_count() == PARAMETERS.get(name, graph.parameter_count())
    assert graph.multiply_adds() == MULTIPLY_ADDS.get(name, graph.multiply_adds())
    assert all(math.prod(v.shape) for v in graph.outputs)


def test_rows_of_googlenet():
    graph = graph_of("googlenet")
    rows = {}
    for name, _, spec in graph.specs:
        group = name.split(".")[0]
        rows[group] = rows.get(group, 0) + math.prod(spec.shape)
    assert list(rows.values()) == [
        9_472, 4_160, 110_784, 163_696, 388_736, 376_176, 449_160, 510_104, 605_376, 868_352,
        1_043_456, 1_444_080, 1_025_000,
    ]  # fmt: skip


def test_show_prints_the_counts():
    done = CliRunner().invoke(cli, ["show", "zoo:googlenet", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["parameters"] == 6_998_552 and found["multiply_adds"] == 1_582_671_872
    done = CliRunner().invoke(cli, ["show", "zoo:resnet18,classes=10,width=0.5"])
    assert done.exit_code == 0 and "Linear(256, 10)" in done.stdout


# Small enough for a step in float64: width, input shape without the batch, other options.
SMALL = {
    "lenet5": (0.5, None, {}),
    "alexnet": (0.02, None, {}),
    "zfnet": (0.02, None, {}),
    "overfeat": (0.02, None, {}),
    "vgg11_lrn": (0.03, None, {}),
    "vgg11": (0.03, None, {}),
    "vgg13": (0.03, None, {}),
    "vgg16_1x1": (0.03, None, {}),
    "vgg16": (0.03, None, {}),
    "vgg19": (0.03, None, {}),
    "googlenet": (0.05, (3, 64, 64), {}),
    "inception_factorised": (0.05, (3, 64, 64), {}),
    "nin": (0.05, None, {}),
    "plain34": (0.05, (3, 64, 64), {}),
    "resnet18": (0.1, (3, 64, 64), {}),
    "resnet34": (0.05, (3, 64, 64), {}),
    "resnet50": (0.05, (3, 64, 64), {}),
    "resnet101": (0.05, (3, 64, 64), {}),
    "resnet152": (0.05, (3, 64, 64), {}),
    "densenet121": (0.1, (3, 64, 64), {}),
    "alphago": (0.04, None, {}),
    "jarrett": (0.2, None, {}),
    "tiled_cnn": (0.4, None, {}),
    "segnet": (0.05, (3, 32, 32), {}),
    "dcgan_generator": (0.03, None, {}),
    "dcgan_discriminator": (0.05, None, {}),
    "unet": (0.05, (1, 32, 32), {}),
    "stunet": (0.1, (3, 4, 8, 8), {}),
    "mobilenetv2": (0.2, (3, 64, 64), {}),
    "mlp": (0.05, None, {}),
}
QUICK = ("lenet5", "resnet18", "unet", "segnet", "tiled_cnn", "mlp")
assert SMALL.keys() == NETWORKS.keys()
# Two steps, so that momentum counts; but 152 layers amplify rounding: torch's own second step moves
# by 1.3e-9 when the input changes in its last bit.
STEPS = {"resnet152": 1}
CLASSED = {"alphago", "dcgan_generator", "dcgan_discriminator"}


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in SMALL],
)
def test_a_training_step_equals_torch(name):
    torch = pytest.importorskip("torch")
    from torch_graph import TorchGraph

    torch.set_num_threads(1)
    width, shape, options = SMALL[name]
    maker, full = NETWORKS[name]
    if name not in CLASSED:
        options = {"classes": 4, **options}
    module = without_dropout(maker(width=width, **options))
    network = Network(module, [(2, *(shape or full))], dtype="f64", seed=1)
    theirs = TorchGraph(network.graph, network.state_dict())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *(shape or full)))
    out = network.graph.outputs[0].shape
    flat = len(out) == 2
    target = rng.integers(0, out[1], 2) if flat else rng.standard_normal(out)
    loss = cg.nn.CrossEntropyLoss() if flat else cg.nn.MSELoss()
    optimizer = torch.optim.SGD(theirs.trained, 0.01, momentum=0.9)
    stream = cg.data.Stream(2, 2, 0)
    steps = STEPS.get(name, 2)
    network.fit(
        x, target, loss=loss, optimizer=cg.optim.SGD(0.01, momentum=0.9), epochs=steps, show=False
    )
    for step in range(steps):
        chosen = stream.indices(step)
        optimizer.zero_grad()
        scores = theirs(torch.tensor(x[chosen]), training=True)
        goal = torch.tensor(target[chosen])
        measure = torch.nn.functional.cross_entropy if flat else torch.nn.functional.mse_loss
        measure(scores, goal).backward()
        optimizer.step()
    for key, array in network.state_dict().items():
        expected = theirs.tensors[key].detach().numpy()
        scale = max(np.abs(expected).max(), 1e-3)
        assert np.abs(array - expected).max() < 1e-9 * scale, key


def without_dropout(module):
    for _, child in module.children():
        if isinstance(child, cg.nn.Dropout):
            child.p = 0.0
        elif isinstance(child, cg.nn.Module):
            without_dropout(child)
    return module


@pytest.mark.full
@pytest.mark.parametrize(
    "name",
    ["alexnet", "vgg16", "googlenet", "resnet50", "densenet121", "alphago", "mobilenetv2"],
)
def test_full_size_forward_equals_torch(name):
    torch = pytest.importorskip("torch")
    from torch_graph import TorchGraph

    maker, shape = NETWORKS[name]
    network = Network(maker(), [(1, *shape)], mode="infer", seed=2)
    x = np.random.default_rng(1).standard_normal((1, *shape)).astype(np.float32)
    with torch.no_grad():
        theirs = TorchGraph(network.graph, network.state_dict(), torch.float32)
        expected = theirs(torch.tensor(x)).numpy()
    found = network.predict(x)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
