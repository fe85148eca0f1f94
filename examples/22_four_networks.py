"""Lesson 22: a small ResNet, a tiled network, Jarrett's stack and an MLP on the same digits.

Needs scikit-learn (for the digits; extra ``demo``). --small: two of them, for one epoch.
"""

import sys
import time

import convgen as cg
from convgen.demo import load_digits
from convgen.zoo.parts import conv_norm
from convgen.zoo.resnet import basic

small = "--small" in sys.argv
digits = load_digits()  # 28x28
x, y = digits.train


def small_resnet():
    """Three residual blocks of 8, 16 and 32 maps."""
    return cg.nn.Sequential(
        conv_norm(1, 8, 3, padding=1, activation=cg.nn.ReLU()),
        basic(8, 8, 1),
        basic(8, 16, 2),
        basic(16, 32, 2),
        cg.nn.AdaptiveAvgPool2d(1),
        cg.nn.Flatten(),
        cg.nn.Linear(32, 10),
    )


networks = {
    "MLP 2 x 128": cg.zoo.mlp(width=0.25),
    "tiled CNN": cg.zoo.tiled_cnn(),
    "Jarrett stack": cg.zoo.jarrett(width=0.25),
    "small ResNet": small_resnet(),
}
if small:
    networks = {name: networks[name] for name in ("MLP 2 x 128", "tiled CNN")}
    x, y = x[:640], y[:640]

print(f"{'network':14} {'parameters':>10} {'multiply-adds':>13} {'seconds':>8} {'accuracy':>9}")
found = {}
for name, net in networks.items():
    model = cg.compile(net, input=(32, 1, 28, 28))
    loss, optimizer = cg.nn.CrossEntropyLoss(), cg.optim.Adam(0.002)
    model.training(loss, optimizer)  # compiled here, so that the seconds are those of training
    start = time.perf_counter()
    model.fit(
        x,
        y,
        loss=loss,
        optimizer=optimizer,
        epochs=1 if small else 8,
        schedule=cg.optim.Cosine(),
        augment=cg.data.RandomShift(2),
        show=False,
    )
    seconds = time.perf_counter() - start
    found[name] = model.evaluate(*digits.test)
    work = model.graph.multiply_adds() // 32
    print(
        f"{name:14} {model.parameters:10,} {work:13,} {seconds:8.1f} {100 * found[name]:8.1f}%",
        flush=True,
    )

assert all(accuracy > (0.2 if small else 0.9) for accuracy in found.values()), found
