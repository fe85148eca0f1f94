"""Lesson 21: what a small network sees in handwritten digits: filters, feature maps, class
activation, Grad-CAM, saliency, guided backpropagation and deconvnet projections.

Needs scikit-learn (for the digits) and matplotlib (extra ``demo``). Pictures go to the folder named
on the command line, or to one that is removed. --small trains for four epochs.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import convgen as cg
from convgen.inspect import overlays, seeing
from convgen.inspect.learning import filters

small = "--small" in sys.argv
folders = [a for a in sys.argv[1:] if not a.startswith("-")]

bunch = load_digits()
images = np.kron(bunch.images / 16, np.ones((2, 2)))[:, None].astype(np.float32)  # 16x16
order = np.random.default_rng(0).permutation(len(images))
x, y = images[order], bunch.target[order]

net = cg.nn.Sequential(
    cg.nn.Conv2d(1, 12, 5, padding=2),
    cg.nn.ReLU(),
    cg.nn.MaxPool2d(2),
    cg.nn.Conv2d(12, 24, 3, padding=1),
    cg.nn.ReLU(),
    cg.nn.Conv2d(24, 24, 3, padding=1),
    cg.nn.ReLU(),
    cg.nn.AdaptiveAvgPool2d(1),
    cg.nn.Flatten(),
    cg.nn.Linear(24, 10),
)
model = cg.compile(net, input=(32, 1, 16, 16))
model.fit(
    x[:1437],
    y[:1437],
    loss=cg.nn.CrossEntropyLoss(),
    optimizer=cg.optim.Adam(0.01),
    epochs=4 if small else 20,
    show=False,
)
accuracy = model.evaluate(x[1437:], y[1437:])
print(f"accuracy on 360 digits not seen in training: {100 * accuracy:.1f} %")
assert accuracy > (0.25 if small else 0.93)

# One digit of each kind, each asked about its own class.
shown = np.array([np.flatnonzero(y[1437:] == digit)[0] for digit in range(10)]) + 1437
samples, digits = x[shown], y[shown]
names = [str(d) for d in digits]

weights = seeing.first_filters(model)
maps = seeing.feature_maps(model, samples, ["1", "6"])
cam = seeing.class_activation_map(model, samples, digits)
gradcam = seeing.grad_cam(model, samples, "6", digits)
gradcam_early = seeing.grad_cam(model, samples, "4", digits)
salient = seeing.saliency(model, samples, digits)
guided = seeing.guided_backpropagation(model, samples, digits)
strongest = int(maps["6"].mean(axis=(0, 2, 3)).argmax())
projected = seeing.projection(model, samples, "6", strongest)
print("filters", weights.shape, "maps", maps["1"].shape, maps["6"].shape)
print("class activation", cam.shape, "saliency", salient.shape, "projection", projected.shape)

# Behind the mean over positions stands only a linear layer, so there Grad-CAM is the positive part
# of the class activation map over the number of positions, and the map's mean is the score.
assert np.allclose(gradcam, np.maximum(cam, 0) / cam[0].size, atol=1e-5)
scores = model.predict(samples)[np.arange(10), digits]
assert np.allclose(cam.mean(axis=(1, 2)) + model.weights["9.bias"][digits], scores, atol=1e-4)
# Guided backpropagation is no derivative.
assert not np.allclose(guided, seeing.input_gradient(model, samples, digits), atol=1e-4)

with tempfile.TemporaryDirectory() as temporary:
    folder = Path(folders[0] if folders else temporary)
    found = [
        filters(weights, folder / "filters.png", "filters of the first layer"),
        overlays.rows(
            {f"map {k}": maps["1"][:, k] for k in range(4)}, folder / "maps.png", columns=names
        ),
        overlays.overlay(samples, cam, folder / "cam.png", names, "class activation maps"),
        overlays.overlay(
            samples, gradcam_early, folder / "gradcam.png", names, "Grad-CAM, layer 4"
        ),
        overlays.rows(
            {
                "digit": samples,
                "saliency": salient,
                "guided": guided,
                f"map {strongest}": projected,
            },
            folder / "gradients.png",
            columns=names,
        ),
    ]
    for path in found:
        print("wrote", path.name, path.stat().st_size, "bytes")
