"""Lesson 23: a DCGAN. Two networks are trained in turns: the critic to tell real pictures from made
ones, the generator by the gradient that comes back through the critic to its pictures.

The pictures are made here: one bright disc on dark ground, 16x16. --small: two steps. Pictures go
to the folder named on the command line, or nowhere (matplotlib, extra ``demo``).
"""

import sys
from pathlib import Path

import numpy as np

import convgen as cg
from convgen.inspect import overlays

small = "--small" in sys.argv
folders = [a for a in sys.argv[1:] if not a.startswith("-")]
BATCH, LATENT, STEPS = (8, 4, 2) if small else (32, 16, 600)
rng = np.random.default_rng(0)


def discs(count):
    """Pictures (count, 1, 16, 16) from -1 to 1 of a disc of any radius from 3 to 5 anywhere."""
    h, w = np.mgrid[:16, :16]
    radius = rng.uniform(3, 5, (count, 1, 1))
    row, column = rng.uniform(5, 11, (2, count, 1, 1))
    distance = np.hypot(h - row, w - column)
    return np.tanh(2 * (radius - distance))[:, None].astype(np.float32)


width = 4 if small else 16
generator = cg.compile(
    cg.nn.Sequential(
        cg.nn.ConvTranspose2d(LATENT, 2 * width, 4, bias=False),
        cg.nn.BatchNorm2d(2 * width),
        cg.nn.ReLU(),
        cg.nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),
        cg.nn.BatchNorm2d(width),
        cg.nn.ReLU(),
        cg.nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1, bias=False),
        cg.nn.Tanh(),
    ),
    input=(BATCH, LATENT, 1, 1),
    seed=1,
)
critic = cg.compile(
    cg.nn.Sequential(
        cg.nn.Conv2d(1, width, 4, stride=2, padding=1, bias=False),
        cg.nn.LeakyReLU(0.2),
        cg.nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
        cg.nn.BatchNorm2d(2 * width),
        cg.nn.LeakyReLU(0.2),
        cg.nn.Conv2d(2 * width, 1, 4, bias=False),
        cg.nn.Flatten(),
    ),
    input=(BATCH, 1, 16, 16),
    seed=2,
)
for network in (generator, critic):  # DCGAN starts all weights at N(0, 0.02)
    for name in network.weights.places:
        array = network.weights[name]
        if array.ndim == 4:
            array[...] = np.random.default_rng(array.size).normal(0, 0.02, array.shape)

make = generator.pullback(training=True, weights=True)
judge = critic.pullback(training=True, weights=True, wrt=["input0"])
loss = critic.loss(cg.nn.BCEWithLogitsLoss())
improve_generator = generator.stepper(cg.optim.Adam(0.002, betas=(0.5, 0.999)))
improve_critic = critic.stepper(cg.optim.Adam(0.001, betas=(0.5, 0.999)))


def noise(count=BATCH):
    return rng.standard_normal((count, LATENT, 1, 1)).astype(np.float32)


real = discs(256)


def distance_to_real():
    """The mean over made pictures of the mean squared difference to the most similar real one."""
    made = generator.predict(noise(64))
    apart = ((made[:, None] - real[None]) ** 2).mean(axis=(2, 3, 4))
    return float(apart.min(axis=1).mean())


before = distance_to_real()
for step in range(STEPS):
    made = make(noise())
    on_real, back = loss(judge(discs(BATCH)), 0.9)  # one-sided label smoothing
    from_real = judge.back(back)
    on_made, back = loss(judge(made), 0)
    from_made = judge.back(back)
    improve_critic({n: from_real[n] + from_made[n] for n in critic.weights.places})
    fooled, back = loss(judge(made), 1)
    improve_generator(make.back(judge.back(back)["input0"]))
    if step % 100 == 0 or step == STEPS - 1:
        print(f"step {step:4}: critic {on_real + on_made:.3f}, generator {fooled:.3f}")

after = distance_to_real()
print(f"distance of made pictures to the most similar real one: {before:.3f} -> {after:.3f}")
pictures = generator.predict(noise(64))
assert pictures.shape == (64, 1, 16, 16) and np.abs(pictures).max() <= 1
variety = pictures.std(axis=0).mean() / real.std(axis=0).mean()
print(f"variety of made pictures, in that of real ones: {variety:.2f}")
assert small or (after < 0.4 * before and variety > 0.4)
if folders:
    path = overlays.rows({"made": pictures[:8], "real": real[:8]}, Path(folders[0]) / "dcgan.png")
    print("wrote", path.name)
