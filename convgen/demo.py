"""The main job: LeNet-5 from formulas, its gradients checked, trained on real digits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import convgen as cg
from convgen.errors import DataError
from convgen.inspect import learning
from convgen.layers.loss import CrossEntropyLoss
from convgen.layers.update import SGD
from convgen.runtime.data import RandomShift, load_mnist
from convgen.runtime.network import Network
from convgen.runtime.progress import Stopwatch
from convgen.runtime.schedules import Cosine
from convgen.symbolic.derive import grad
from convgen.zoo import lenet5

Array = NDArray[Any]

BATCH = 32
RATE = 0.03  # settings chosen on a validation part of the training set: 99.3 % over three seeds
MOMENTUM = 0.9
DECAY = 5e-4
SHIFT = 3  # pixels of random movement


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 28, 28) float32 and labels (N,) int64, for training and for the test."""

    name: str
    train: tuple[Array, Array]
    test: tuple[Array, Array]


def enlarge(images: Array, size: int) -> Array:
    """Square images (N, h, h) to (N, size, size), bilinear with pixel centres aligned.

    >>> enlarge(np.array([[[0.0, 1.0], [2.0, 3.0]]]), 4)[0, 0].tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    old = images.shape[1]
    place = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    low = np.minimum(place.astype(np.int64), old - 2)
    weight = np.zeros((size, old))
    weight[np.arange(size), low] = 1 - (place - low)
    weight[np.arange(size), low + 1] += place - low
    return np.einsum("yh,nhw,xw->nyx", weight, images, weight)


def load_digits() -> Digits:
    """The 1 797 handwritten digits that scikit-learn ships, scaled to 28×28: 360 for the test."""
    try:
        from sklearn import datasets, model_selection
    except ImportError:
        raise DataError(
            "the demo's digits come with scikit-learn", hint="pip install 'convgen[demo]'"
        ) from None
    bunch = datasets.load_digits()
    images = enlarge(bunch.images / 16, 28)[:, None].astype(np.float32)
    labels = bunch.target.astype(np.int64)
    parts = model_selection.train_test_split(
        images, labels, test_size=360, stratify=labels, random_state=0
    )
    x, x_test, y, y_test = (np.ascontiguousarray(p) for p in parts)
    return Digits("scikit-learn digits", (x, y), (x_test, y_test))


def load_mnist_digits(folder: Path) -> Digits:
    """MNIST from its four IDX files."""
    return Digits("MNIST", load_mnist(folder, "train"), load_mnist(folder, "test"))


def show_table(console: Console, network: Network) -> None:
    """Layers with shapes, parameters and multiply-adds."""
    table = Table(title="LeNet-5", title_justify="left", box=None, pad_edge=False)
    for name, side in (
        ("", "left"),
        ("layer", "left"),
        ("output", "left"),
        ("parameters", "right"),
        ("multiply-adds", "right"),
    ):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for row in network.table():
        shape = "×".join(map(str, row["shape"][1:]))
        numbers = [f"{row[k]:,}" if row[k] else "" for k in ("parameters", "multiply_adds")]
        table.add_row(row["path"], row["layer"], shape, *numbers)
    total = network.graph.multiply_adds() // network.shapes[0][0]
    table.add_row("", "total", "", f"{network.parameters:,}", f"{total:,}", style="bold")
    console.print(table)


def show_formulas(console: Console, network: Network) -> None:
    """The second convolution as it is compiled, and its two derived gradients."""
    node = network.graph.nodes[3]
    program = node.layer.program(network.graph.values[node.inputs[0]].shape)
    console.print("\n[bold]The second convolution[/bold]")
    console.print(str(program), markup=False, highlight=False, soft_wrap=True)
    console.print("\n[bold]Its gradients, derived[/bold]")
    console.print(str(grad(program, ["X", "W"])), markup=False, highlight=False, soft_wrap=True)


def gradient_error(x: Array, y: Array, seed: int = 0, directions: int = 4) -> float:
    """The largest relative difference between compiled gradients and central differences, float64.

    The directional derivative of the loss along random directions of all parameters, by five-point
    differences, against the inner product with the compiled gradient.
    """
    network = Network(lenet5(), [(4, 1, 28, 28)], dtype="f64", seed=seed)
    loss = CrossEntropyLoss()
    images, labels = x[:4].astype(np.float64), y[:4]
    start = network.state_dict()
    _, gradient = network.gradients(images, labels, loss)
    generator = np.random.default_rng(seed)
    worst = 0.0
    step = 1e-6

    def value(direction: dict[str, Array], size: float) -> float:
        network.load_state_dict({n: start[n] + size * direction[n] for n in start})
        return network.gradients(images, labels, loss)[0]

    for _ in range(directions):
        direction = {n: generator.standard_normal(a.shape) for n, a in start.items()}
        norm = math.sqrt(sum(float((d * d).sum()) for d in direction.values()))
        direction = {n: d / norm for n, d in direction.items()}
        slope = (
            8 * (value(direction, step) - value(direction, -step))
            - (value(direction, 2 * step) - value(direction, -2 * step))
        ) / (12 * step)
        exact = sum(float((gradient[n] * direction[n]).sum()) for n in start)
        scale = math.sqrt(sum(float((g * g).sum()) for g in gradient.values()))
        worst = max(worst, abs(slope - exact) / scale)
    return worst


def train(
    digits: Digits,
    *,
    epochs: int,
    seed: int,
    threads: int | None,
    folder: Path | None,
    show: bool,
    resume: Path | None = None,
) -> Network:
    """LeNet-5 trained on the digits; a checkpoint is written after every epoch if a folder is
    given."""
    network = Network(lenet5(), [(BATCH, 1, 28, 28)], threads=threads, seed=seed)
    network.fit(
        *digits.train,
        loss=CrossEntropyLoss(),
        optimizer=SGD(RATE, momentum=MOMENTUM, weight_decay=DECAY),
        epochs=epochs,
        seed=seed,
        schedule=Cosine(),
        augment=RandomShift(SHIFT),
        checkpoints=folder / "checkpoint.safetensors" if folder else None,
        resume=resume,
        show=show,
    )
    return network


def write_files(network: Network, digits: Digits, accuracy: float, folder: Path) -> list[Path]:
    """Pictures and weights; returns the paths."""
    guesses = network.predict(digits.test[0]).argmax(axis=1)
    caption = f"LeNet-5 on {digits.name}: {100 * accuracy:.1f} % on the test set"
    weights = folder / "lenet5.safetensors"
    network.save(weights)
    return [
        learning.learning_curve(network.history, folder / "learning_curve.png", caption),
        learning.filters(network.weights["0.weight"], folder / "filters.png", "first layer"),
        learning.confusion(digits.test[1], guesses, folder / "confusion.png", caption),
        weights,
        folder / "checkpoint.safetensors",
    ]


def run(
    *,
    mnist: Path | None = None,
    output: Path = Path("convgen-demo"),
    epochs: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    resume: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """The whole demonstration; returns what ``--json`` prints. Text goes to standard output unless
    quiet."""
    console = Console(quiet=quiet)
    whole = Stopwatch()
    digits = load_mnist_digits(mnist) if mnist is not None else load_digits()
    chosen = epochs if epochs is not None else (3 if mnist is not None else 30)
    if chosen < 1:
        raise DataError(f"epochs {chosen}", expected="at least 1")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError("the folder cannot be made", where=str(output), got=str(error)) from None
    outline = Network(lenet5(), [(BATCH, 1, 28, 28)])
    show_table(console, outline)
    show_formulas(console, outline)
    error = gradient_error(*digits.train)
    console.print(f"\ngradients against finite differences in float64: {error:.1e} (relative)")
    count = len(digits.train[0])
    plan = "1 epoch" if chosen == 1 else f"{chosen} epochs"
    console.print(f"training on {digits.name}: {count} images, {plan} of SGD")
    network = train(
        digits, epochs=chosen, seed=seed, threads=threads, folder=output, show=not quiet,
        resume=resume,
    )  # fmt: skip
    accuracy = network.evaluate(*digits.test)
    seconds = whole.seconds
    speed = harmonic_mean(e.images_per_second for e in network.history)
    files = write_files(network, digits, accuracy, output)
    console.print(
        f"[bold]test accuracy {100 * accuracy:.2f} %[/bold] ({len(digits.test[0])} images) "
        f"after {seconds:.1f} s, of which compiling {network.compile_seconds:.1f} s; "
        f"{speed:,.0f} images/s",
        soft_wrap=True,
    )
    for path in files:
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    return {
        "accuracy": accuracy,
        "seconds": seconds,
        "compile_seconds": network.compile_seconds,
        "images_per_second": speed,
        "parameters": network.parameters,
        "gradient_error": error,
        "files": [str(p) for p in files],
        "version": cg.__version__,
    }
