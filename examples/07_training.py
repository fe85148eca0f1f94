"""Lesson 7: training: loss, optimizer step and gradients are formulas; a file keeps the result."""

import tempfile
from pathlib import Path

import numpy as np

import convgen as cg

# Two interleaved spirals.
rng = np.random.default_rng(4)
labels = np.arange(512) % 2
angle = np.sqrt(rng.uniform(0, 1, 512)) * 3 * np.pi
radius = angle / 10 * np.where(labels, 1, -1)
points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
points = (points + rng.normal(0, 0.02, points.shape)).astype(np.float32)

net = cg.nn.Sequential(
    cg.nn.Linear(2, 64),
    cg.nn.Tanh(),
    cg.nn.Linear(64, 64),
    cg.nn.Tanh(),
    cg.nn.Linear(64, 2),
)
model = cg.compile(net, input=(32, 2))
history = model.fit(
    points,
    labels,
    loss=cg.nn.CrossEntropyLoss(),
    optimizer=cg.optim.Adam(0.01),
    epochs=60,
    seed=0,
    show=False,
)
print(f"loss {history[0].loss:.3f} -> {history[-1].loss:.3f}")
accuracy = model.evaluate(points, labels)
print(f"accuracy {100 * accuracy:.1f} %")
assert accuracy > 0.95

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "spirals.convgen"
    model.save(path)
    again = cg.load(path, mode="infer")
    assert np.array_equal(again.predict(points), model.predict(points))
    print("saved, loaded, same bits")
