"""Lesson 24: an encoder and a decoder say for every pixel what it belongs to, as in SegNet: the
winners of the max pools say where the decoder puts its values.

The pictures are made here: discs and squares on noisy ground. --small: a few steps. Pictures go to
the folder named on the command line, or nowhere (matplotlib, extra ``demo``).
"""

import sys
from pathlib import Path

import numpy as np

import convgen as cg
from convgen.inspect import overlays
from convgen.zoo.parts import conv_norm

small = "--small" in sys.argv
folders = [a for a in sys.argv[1:] if not a.startswith("-")]
COUNT, EPOCHS = (48, 1) if small else (512, 10)
rng = np.random.default_rng(0)


def scenes(count):
    """Pictures (count, 1, 32, 32) and labels (count, 32, 32): 0 ground, 1 disc, 2 square."""
    h, w = np.mgrid[:32, :32]
    pictures = rng.normal(0, 0.3, (count, 1, 32, 32))
    labels = np.zeros((count, 32, 32), np.int64)
    for picture, label in zip(pictures, labels, strict=True):
        for kind in rng.permutation([1, 2]):
            row, column = rng.uniform(7, 25, 2)
            size = rng.uniform(4, 7)
            down, across = abs(h - row), abs(w - column)
            inside = np.hypot(down, across) < size if kind == 1 else np.maximum(down, across) < size
            label[inside] = kind
            picture[0][inside] = rng.uniform(0.7, 1.3) + rng.normal(0, 0.3, int(inside.sum()))
    return pictures.astype(np.float32), labels


class EncoderDecoder(cg.nn.Module):
    """Two stages down, two stages up."""

    def __init__(self, width, classes):
        def block(inputs, outputs):
            return conv_norm(inputs, outputs, 5, padding=2, activation=cg.nn.ReLU())

        self.down = [block(1, width), block(width, 2 * width)]
        self.middle = block(2 * width, 2 * width)
        self.up = [block(2 * width, width), block(width, width)]
        self.last = cg.nn.Conv2d(width, classes, 1)
        self.pools = [cg.nn.MaxPool2d(2, return_indices=True) for _ in self.down]
        self.unpools = [cg.nn.MaxUnpool2d(2) for _ in self.up]

    def forward(self, x):
        winners = []
        for block, pool in zip(self.down, self.pools, strict=True):
            x, places = pool(block(x))
            winners.append(places)
        x = self.middle(x)
        for block, unpool in zip(self.up, self.unpools, strict=True):
            x = block(unpool(x, winners.pop()))
        return self.last(x)


model = cg.compile(EncoderDecoder(4 if small else 12, 3), input=(16, 1, 32, 32))
x, y = scenes(COUNT)
x_test, y_test = scenes(64)
history = model.fit(
    x,
    y,
    loss=cg.nn.CrossEntropyLoss(),
    optimizer=cg.optim.Adam(0.005),
    schedule=cg.optim.Cosine(),
    epochs=EPOCHS,
    show=False,
)
guesses = model.predict(x_test).argmax(axis=1)
print(f"{model.parameters} parameters; loss {history[0].loss:.3f} -> {history[-1].loss:.3f}")
print(f"pixels right: {100 * (guesses == y_test).mean():.1f} %")
unions = []
for kind, name in enumerate(("ground", "disc", "square")):
    mine, true = guesses == kind, y_test == kind
    unions.append((mine & true).sum() / max((mine | true).sum(), 1))
    print(f"{name:7} intersection over union {unions[-1]:.3f}")
assert small or np.mean(unions) > 0.75
if folders:
    rows = {"picture": x_test[:8], "label": y_test[:8], "network": guesses[:8]}
    print("wrote", overlays.rows(rows, Path(folders[0]) / "segmentation.png").name)
