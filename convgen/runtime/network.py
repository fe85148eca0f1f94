"""A compiled network: weights, predictions, training, files."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.errors import DataError, ShapeError
from convgen.layers.base import Layer, Shape
from convgen.layers.loss import Loss
from convgen.layers.update import Optimizer
from convgen.runtime import checkpoint, train
from convgen.runtime.build import Built, build_program
from convgen.runtime.data.stream import run_seed
from convgen.runtime.module import Graph, Module, trace
from convgen.runtime.plan import Plan, Weights, inference_plan, part, training_plan
from convgen.runtime.progress import Epoch
from convgen.runtime.pullback import LossSlope, Pullback, Stepper
from convgen.runtime.shown import ShowsNetwork
from convgen.runtime.table import rows_of
from convgen.runtime.threads import thread_count
from convgen.symbolic.program import Program
from convgen.target import target as target_of
from convgen.types import DType, dtype_of

Array = NDArray[Any]
_DRAWN = 1 << 20  # numbers drawn at a time: they are float64 until they are stored


@dataclass(frozen=True)
class Setup:
    """What a training plan was made for."""

    loss: Loss
    optimizer: Optimizer


def _input_shape(shape: Sequence[int]) -> Shape:
    try:
        extents = tuple(operator.index(e) for e in shape)
    except TypeError:
        extents = ()
    if not extents or min(extents) < 1:
        raise ShapeError(
            "shape of the input", expected="integers >= 1, batch first", got=repr(shape)
        )
    return extents


class Network(ShowsNetwork):
    """A module compiled for one input shape. Made by `convgen.compile(module, input=...)`.

    `weights` holds parameters and running statistics; `graph` the traced layers. Plans are built
    at first use: prediction and training share the weights. `memory` "small": predictions pack
    weights anew at every run where a kernel wants them packed, instead of keeping copies.
    """

    def __init__(
        self,
        module: Layer | Module,
        shapes: Sequence[Shape],
        *,
        mode: str = "train",
        dtype: DType | str = "f32",
        target: str = "native",
        threads: int | None = None,
        seed: int = 0,
        memory: str = "fast",
    ) -> None:
        if mode not in ("train", "infer"):
            raise ShapeError(f"mode {mode!r}", expected="'train' or 'infer'")
        if memory not in ("fast", "small"):
            raise ShapeError(f"memory {memory!r}", expected="'fast' or 'small'")
        if not isinstance(seed, (int, np.integer)) or seed < 0:
            raise DataError("seed=", expected="an integer >= 0", got=repr(seed))
        if not dtype_of(dtype).is_float:
            raise DataError("dtype= of a network", expected="f32 or f64", got=str(dtype))
        thread_count(threads)
        self.module, self.mode = module, mode
        self.shapes = [_input_shape(s) for s in shapes]
        self.dtype = dtype_of(dtype)
        self.target, self.threads = target_of(target), threads
        self.packs = memory == "fast"
        self.graph: Graph = trace(module, self.shapes)
        self.weights = Weights.allocate(self.graph.specs, self.dtype)
        self.step = 0
        self.history: list[Epoch] = []
        self.compile_seconds = 0.0
        self._built: dict[str, Built] = {}
        self._inference: tuple[Plan, list[str]] | None = None
        self._gradients: dict[str, Plan] = {}
        self._training: tuple[Setup, Plan, list[str]] | None = None
        self.initialize(seed)

    # -- weights ---------------------------------------------------------------------------------

    def initialize(self, seed: int) -> None:
        """Draw all parameters anew from PyTorch's distributions, each from a generator of its own
        (so a layer's start does not depend on the layers before it)."""
        self.weights_changed()
        for number, (name, _, spec) in enumerate(self.graph.specs):
            generator = np.random.Generator(np.random.PCG64([seed, 2, number]))
            start = spec.initializer
            array = self.weights[name]
            if start.kind == "constant":
                array[...] = start.a
                continue
            draw = generator.uniform if start.kind == "uniform" else generator.normal
            flat = array.reshape(-1)
            for begin in range(0, flat.size, _DRAWN):
                stretch = flat[begin : begin + _DRAWN]
                stretch[...] = draw(start.a, start.b, stretch.size)

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and states by PyTorch's names ("0.weight")."""
        return {name: np.array(self.weights[name]) for name, _, _ in self.graph.specs}

    def load_state_dict(self, arrays: Mapping[str, Any]) -> None:
        """Take parameters and states by name. Refuses missing, unknown or misshapen arrays before
        anything is changed; PyTorch's num_batches_tracked is passed over."""
        given = {n: a for n, a in arrays.items() if not n.endswith("num_batches_tracked")}
        wanted = {name: spec.shape for name, _, spec in self.graph.specs}
        for label, names in (
            ("missing", wanted.keys() - given.keys()),
            ("unknown", given.keys() - wanted.keys()),
        ):
            if names:
                raise DataError(f"{label} in the state dict: {', '.join(sorted(names))}")
        ready = {n: np.asarray(a) for n, a in given.items()}
        for name, array in ready.items():
            if array.shape != tuple(wanted[name]):
                raise DataError(
                    f"{name} has another shape", expected=str(wanted[name]), got=str(array.shape)
                )
        for name, array in ready.items():
            self.weights[name][...] = array
        self.weights_changed()

    @property
    def setup(self) -> Setup | None:
        """The loss and optimizer of the last training; None when there was none."""
        return self._training[0] if self._training is not None else None

    def weights_changed(self) -> None:
        """To be called after writing into `weights` by hand: predictions use copies of the weights
        packed for the kernels, made anew at the next one."""
        self._packed = False

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return self.graph.parameter_count()

    # -- plans -----------------------------------------------------------------------------------

    def build(self, program: Program) -> Built:
        """The machine code of a formula, made once."""
        key = str(program)
        if key not in self._built:
            self._built[key] = build_program(program, self.target, in_place=True)
        return self._built[key]

    def _timed(self, make: Callable[[], tuple[Plan, list[str]]]) -> tuple[Plan, list[str]]:
        start = time.perf_counter()
        result = make()
        self.compile_seconds += time.perf_counter() - start
        return result

    def inference(self) -> tuple[Plan, list[str]]:
        """(plan, output regions) of the forward pass."""
        if self._inference is None:
            self._inference = self._timed(
                lambda: inference_plan(self.graph, self.weights, self.build, self.packs)
            )
        return self._inference

    def training(self, loss: Loss, optimizer: Optimizer) -> tuple[Plan, list[str]]:
        """(plan, output regions) of a training step; kept while loss and optimizer are the same."""
        if self.mode != "train":
            raise ShapeError("this network was compiled for inference", hint="mode='train'")
        if len(self.graph.outputs) != 1:
            raise ShapeError("training needs a network with one output")
        setup = Setup(loss, optimizer)
        if self._training is not None and _same(self._training[0], setup):
            return self._training[1:]
        plan = self._timed(
            lambda: training_plan(self.graph, self.weights, self.build, loss, optimizer)
        )
        self._training = (setup, *plan)
        return plan

    @property
    def thread_count(self) -> int:
        """Threads that a run uses."""
        return thread_count(self.threads)

    # -- running ---------------------------------------------------------------------------------

    def predict(self, *inputs: Any) -> Any:
        """The network's outputs for any number of samples, in inference mode.

        Samples are run in batches of the compiled size; a last smaller batch is filled with zeros
        and cut off. Raises DataError for wrong shapes, or other than the network's dtype kind.
        """
        plan, outputs = self.inference()
        if not self._packed:
            plan.prepare(self.thread_count)
            self._packed = True
        arrays = [self.checked(a, s) for a, s in zip(inputs, self.shapes, strict=True)]
        count = len(arrays[0])
        if any(len(a) != count for a in arrays):
            raise DataError("inputs differ in number of samples")
        batch = self.shapes[0][0]
        results = [np.empty((count, *plan.view(o).shape[1:]), plan.view(o).dtype) for o in outputs]
        for start in range(0, count, batch):
            stop = min(start + batch, count)
            for i, array in enumerate(arrays):
                view = plan.view(f"input{i}")
                view[: stop - start] = array[start:stop]
                view[stop - start :] = 0
            plan.run(self.thread_count)
            for result, name in zip(results, outputs, strict=True):
                result[start:stop] = plan.view(name)[: stop - start]
        return results[0] if len(results) == 1 else tuple(results)

    __call__ = predict

    def checked(self, array: Any, shape: Shape) -> Array:
        """Samples as an array of numbers; DataError for another shape than the compiled one."""
        data = np.asarray(array)
        if data.ndim != len(shape) or data.shape[1:] != shape[1:]:
            raise DataError(
                "samples of another shape",
                expected=f"(N, {', '.join(map(str, shape[1:]))})",
                got=str(data.shape),
            )
        if data.dtype.kind not in "fiub":
            raise DataError("samples are not numbers", got=str(data.dtype))
        return data

    def evaluate(self, x: Any, y: Any) -> float:
        """Share of labels at whose place the largest output is: one label for each sample, or for
        each position of a map of scores."""
        labels = np.asarray(y)
        scores = self.predict(x)
        wanted = (*scores.shape[:1], *scores.shape[2:])
        if labels.shape != wanted:
            raise DataError("labels", expected=str(wanted), got=str(labels.shape))
        return float(np.mean(scores.argmax(axis=1) == labels)) if labels.size else 0.0

    def gradients(
        self, x: Any, y: Any, loss: Loss, seed: int = 0
    ) -> tuple[float, dict[str, Array]]:
        """(loss, gradient of every parameter) for one batch of the compiled size; takes no step."""
        key = repr(loss)
        if key not in self._gradients:
            self._gradients[key] = self._timed(
                lambda: training_plan(self.graph, self.weights, self.build, loss, None)
            )[0]
        plan = self._gradients[key]
        self.fill(plan, np.asarray(x), np.asarray(y), seed, 0)
        plan.run(self.thread_count)
        vector = plan.view("gradient")
        found = {n: np.array(part(vector, p)) for n, p in self.weights.places.items()}
        return float(plan.view("loss")), found

    def pullback(self, **options: Any) -> Pullback:
        """The network run forward and then back from a cotangent: values of any layer, gradients
        of any value and of the weights. Options: sources (default the outputs), wrt, keep: names
        as in `convgen.runtime.pullback.value_number`; training: as a training step computes it;
        weights: gradients of the parameters too; change: (layer, formula) -> formula that is
        derived in its place."""
        return Pullback(self, **options)

    def stepper(self, optimizer: Optimizer) -> Stepper:
        """Steps of an optimizer with gradients from outside: ``step(gradients)``."""
        return Stepper(self, optimizer)

    def loss(self, loss: Loss, output: int = 0) -> LossSlope:
        """(scores, targets) -> (loss, gradient to the scores)."""
        return LossSlope(self, loss, self.graph.outputs[output].shape)

    def memory(self) -> dict[str, int]:
        """Bytes that predictions need: weights, prepared (weights packed for the kernels, kept),
        activations (values that exist at the same time, where they are most) and workspace."""
        states = sum(a.nbytes for a in self.weights.states.values())
        usage = self.inference()[0].usage(self.thread_count)
        return {"weights": self.weights.vector.nbytes + states, **usage}

    def fill(self, plan: Plan, x: Array, y: Array, seed: int, step: int) -> None:
        """Put a batch and the step's random seeds where a training plan reads them."""
        self.weights_changed()
        plan.view("input0")[...] = x
        plan.view("target")[...] = y
        number = 0
        for node in self.graph.nodes:
            if node.layer.seed:
                plan.view(f"seed{number}")[...] = run_seed(seed, step, number)
                number += 1

    def targets(self, y: Any, loss: Loss, count: int) -> Array:
        """Targets checked against the loss: labels are integers within the classes."""
        shape = self.graph.outputs[0].shape
        wanted = (count, *loss.target_shape(shape)[1:])
        data = np.asarray(y)
        if data.shape != wanted:
            raise DataError("targets", expected=str(wanted), got=str(data.shape))
        if loss.labels:
            if data.dtype.kind not in "iu":
                raise DataError("labels are not integers", got=str(data.dtype))
            if data.size and (data.min() < 0 or data.max() >= shape[1]):
                bad = np.argwhere((data < 0) | (data >= shape[1]))[0]
                raise DataError(
                    f"label {data[tuple(bad)]} of sample {bad[0]} is out of range",
                    expected=f"0..{shape[1] - 1}",
                )
        return data

    def fit(self, x: Any, y: Any = None, **options: Any) -> list[Epoch]:
        """Train; see `convgen.runtime.train.fit` for the options: loss, optimizer, epochs, batch,
        seed, schedule, augment, validation, metrics, patience, checkpoints, resume, show."""
        return train.fit(self, x, y, **options)

    # -- files -----------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write weights and structure to one safetensors file; `convgen.load` reads it."""
        checkpoint.save_network(Path(path), self)

    def table(self) -> list[dict[str, Any]]:
        """One row a layer, see `convgen.runtime.table.rows_of`."""
        return rows_of(self.graph)


def _same(a: Setup, b: Setup) -> bool:
    """True when a plan made for one setup serves the other (the learning rate is an input)."""

    def key(s: Setup) -> tuple[str, dict[str, Any]]:
        return repr(s.loss), {k: v for k, v in vars(s.optimizer).items() if k != "lr"}

    return type(a.optimizer) is type(b.optimizer) and key(a) == key(b)
