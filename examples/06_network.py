"""Lesson 6: layers joined into a network with a branch; one native call runs it all."""

import numpy as np

import convgen as cg


class Block(cg.nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width):
        self.first = cg.nn.Conv2d(width, width, 3, padding=1)
        self.second = cg.nn.Conv2d(width, width, 3, padding=1)
        self.relu = cg.nn.ReLU()

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))) + x)


net = cg.nn.Sequential(
    cg.nn.Conv2d(1, 8, 3, padding=1),
    cg.nn.ReLU(),
    Block(8),
    cg.nn.AdaptiveAvgPool2d(1),
    cg.nn.Flatten(),
    cg.nn.Linear(8, 10),
)
model = cg.compile(net, input=(4, 1, 16, 16), mode="infer")
for row in model.table():
    print(f"{row['path']:12} {row['layer']:40} {row['shape']!s:18} {row['parameters']:6}")
print("parameters:", model.parameters)

images = np.random.default_rng(3).standard_normal((6, 1, 16, 16)).astype(np.float32)
scores = model.predict(images)
print("scores:", scores.shape)
assert scores.shape == (6, 10) and np.isfinite(scores).all()
