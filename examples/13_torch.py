"""Lesson 13: PyTorch. A formula as an operator of torch, and networks both ways."""

import sys

import convgen as cg

try:
    import torch
except ImportError:
    print("this lesson needs PyTorch: pip install 'convgen[torch]'")
    sys.exit()

# A convolution that no library ships: every channel pair meets in a maximum instead of a sum.
n, k, y, x, c, r, s = cg.axes("n k y x c r s")
X = cg.tensor("X", (cg.size("N"), 3, 8, 8))
W = cg.tensor("W", (4, 3, 3, 3))
window = cg.max_over([c, r, s], X.pad("omit")[n, c, y + r - 1, x + s - 1] + W[k, c, r, s])
layer = cg.define("Y", [n, k, y, x], window, extents={y: 8, x: 8})
print(layer)

# function: zero-copy on tensors, the derived backward behind autograd, any batch size.
maxplus = cg.torch.function(layer)
image = torch.randn(2, 3, 8, 8, requires_grad=True)
weight = torch.randn(4, 3, 3, 3, requires_grad=True)
out = maxplus(image, weight)
out.sum().backward()
print("\n", maxplus, "->", tuple(out.shape))

# What arrives at the weights is one per output, whoever wins the maximum.
print("gradients:", float(weight.grad.sum()), "of", out.numel())
assert float(weight.grad.sum()) == out.numel()

# It compiles without a graph break.
compiled = torch.compile(
    lambda a, b: maxplus(a, b).relu().sum(), fullgraph=True, backend="aot_eager"
)
assert torch.allclose(compiled(image, weight), out.relu().sum())

# Module: a convgen network inside of a torch model, trained by torch.
features = cg.torch.Module(cg.nn.Sequential(cg.nn.Conv2d(1, 6, 3), cg.nn.ReLU()))
model = torch.nn.Sequential(features, torch.nn.Flatten(), torch.nn.Linear(6 * 36, 2))
optimizer = torch.optim.Adam(model.parameters(), 0.01)
torch.manual_seed(0)
pictures = torch.randn(64, 1, 8, 8)
labels = (pictures.mean((1, 2, 3)) > 0).long()
losses = []
for _ in range(60):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(pictures), labels)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"training: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
assert losses[-1] < 0.1
print("state dict:", list(model.state_dict()))

# from_module: the other way, a torch network as one native program.
source = torch.nn.Sequential(
    torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.MaxPool2d(2)
).eval()
network = cg.torch.from_module(source, (64, 1, 8, 8), mode="infer")
print(network)
difference = abs(network.predict(pictures.numpy()) - source(pictures).detach().numpy()).max()
print("largest difference:", difference)
assert difference < 1e-5
