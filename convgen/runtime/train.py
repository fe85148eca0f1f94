"""Training: batches ahead of time, the step, schedules, early stopping, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convgen.errors import DataError
from convgen.layers.loss import Loss
from convgen.layers.update import Optimizer
from convgen.runtime import checkpoint, progress
from convgen.runtime.data.source import Arrays, Change, Prefetch, Source
from convgen.runtime.data.stream import Stream
from convgen.runtime.progress import Epoch
from convgen.runtime.schedules import Schedule

if TYPE_CHECKING:
    from convgen.runtime.network import Network

Array = NDArray[Any]
# scores (N, ...) and targets (N, ...) of one batch -> a number, averaged over the epoch
Metric = Callable[[Array, Array], float]


def fit(
    network: Network,
    x: Any,
    y: Any = None,
    *,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int = 1,
    batch: int | None = None,
    seed: int = 0,
    schedule: Schedule | Callable[[int, int], float] | None = None,
    augment: Change | None = None,
    validation: tuple[Any, Any] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    patience: int | None = None,
    checkpoints: str | Path | None = None,
    resume: str | Path | None = None,
    show: bool = True,
) -> list[Epoch]:
    """Train for a number of epochs and return what each was.

    x, y         arrays; or x a `Source` (image folder, generated samples) and y left out
    batch        the compiled batch size; anything else is refused
    schedule     (step, steps) -> factor on the learning rate; see `convgen.runtime.schedules`
    augment      (batch, generator) -> batch, for arrays
    validation   (x, y) scored after every epoch
    metrics      name -> (scores, targets) -> number, averaged over the batches of an epoch
    patience     stop when the validation accuracy has not risen for that many epochs, and take the
                 best epoch's weights
    checkpoints  a file written after every epoch; resume: one to continue from, exactly as if
                 never interrupted

    Every step is a native call; the next batches are made meanwhile. Raises DataError for wrong
    shapes and labels out of range (for arrays before anything is changed).
    """
    size = network.shapes[0][0]
    if batch not in (None, size):
        raise DataError(f"batch={batch}", expected=f"the compiled batch size {size}")
    for what, value, kind in (("loss", loss, Loss), ("optimizer", optimizer, Optimizer)):
        if not isinstance(value, kind):
            raise DataError(f"{what}=", expected=f"a {what} made by its class", got=repr(value))
    if not isinstance(epochs, (int, np.integer)) or epochs < 0:
        raise DataError("epochs=", expected="an integer >= 0", got=repr(epochs))
    if patience is not None and validation is None:
        raise DataError("patience needs validation=(x, y)")
    source = _source(network, x, y, loss, augment)
    trainer = _Trainer(network, source, loss, optimizer, seed, schedule, metrics or {})
    if resume is not None:
        trainer.resume(Path(resume))
    keep = None if checkpoints is None else Path(checkpoints)
    _run(trainer, trainer.stream.steps(epochs), validation, patience, keep, show)
    return network.history


def _run(
    trainer: _Trainer,
    steps: int,
    validation: tuple[Any, Any] | None,
    patience: int | None,
    keep: Path | None,
    show: bool,
) -> None:
    """All steps that are left, with what follows each epoch."""
    network = trainer.network
    ahead = Prefetch(trainer.make, network.step, steps)
    try:
        with progress.Bar(steps, network.step, show) as bar:
            for x_batch, y_batch in ahead:
                trainer.step(x_batch, y_batch, steps)
                bar.update(network.step, trainer.epoch, trainer.meter)
                if not trainer.epoch_ends(steps):
                    continue
                trainer.finish_epoch(validation)
                if keep is not None:
                    trainer.save(keep)
                if patience is not None and trainer.is_stuck(patience):
                    break
    finally:
        ahead.close()
    if patience is not None:
        trainer.take_best()


def _source(network: Network, x: Any, y: Any, loss: Loss, augment: Change | None) -> Source:
    """Arrays as a source, checked; a source as it is."""
    if y is None:
        if not hasattr(x, "batch") or not hasattr(x, "count"):
            raise DataError("no targets", expected="fit(x, y), or a Source", got=type(x).__name__)
        if augment is not None:
            raise DataError("augment= is for arrays", hint="give it to the source")
        return x
    data = network.checked(x, network.shapes[0])
    return Arrays(data, network.targets(y, loss, len(data)), augment)


class _Trainer:
    """The state of one training."""

    def __init__(
        self,
        network: Network,
        source: Source,
        loss: Loss,
        optimizer: Optimizer,
        seed: int,
        schedule: Schedule | Callable[[int, int], float] | None,
        metrics: Mapping[str, Metric],
    ) -> None:
        self.network, self.source, self.seed = network, source, seed
        self.loss, self.optimizer, self.schedule, self.metrics = loss, optimizer, schedule, metrics
        self.stream = Stream(source.count, network.shapes[0][0], seed)
        self.plan, (self.output,) = network.training(loss, optimizer)
        self.meter = progress.Meter()
        self.best: tuple[float, int, dict[str, Array]] | None = None
        network.step, network.history = 0, []
        for name in optimizer.states:
            self.plan.view(f"optimizer.{name}")[...] = 0

    @property
    def epoch(self) -> int:
        """The epoch of the step taken last."""
        return self.stream.epoch_of(max(self.network.step - 1, 0))

    def make(self, step: int) -> tuple[Array, Array]:
        """The batch of a step; runs in the thread that works ahead."""
        return self.source.batch(self.stream.indices(step), self.stream.generator(step))

    def step(self, x: Array, y: Array, steps: int) -> None:
        """One step of the optimizer."""
        network, plan = self.network, self.plan
        images = network.checked(x, network.shapes[0])
        labels = network.targets(y, self.loss, self.stream.batch)
        network.fill(plan, images, labels, self.seed, network.step)
        factor = self.schedule(network.step, steps) if self.schedule is not None else 1.0
        for name, value in self.optimizer.values(network.step + 1).items():
            plan.view(f"hyper.{name}")[...] = value * factor if name == "lr" else value
        plan.run(network.thread_count)
        network.step += 1
        scores = plan.view(self.output)
        hits = scores.argmax(axis=1) == labels if self.loss.labels else None
        extra = {name: float(metric(scores, labels)) for name, metric in self.metrics.items()}
        self.meter.add(
            float(plan.view("loss")),
            None if hits is None else float(hits.mean()),
            self.stream.batch,
            extra,
        )

    def epoch_ends(self, steps: int) -> bool:
        """Whether the next step begins another epoch, or none is left."""
        now = self.network.step
        return now == steps or self.stream.epoch_of(now) != self.stream.epoch_of(now - 1)

    def finish_epoch(self, validation: tuple[Any, Any] | None) -> None:
        """Record the epoch, ask for its score, tell the schedule."""
        meter, network = self.meter, self.network
        score = network.evaluate(*validation) if validation is not None else None
        record = Epoch(
            self.epoch, meter.loss, meter.accuracy, meter.images_per_second, score, meter.metrics
        )
        network.history.append(record)
        if isinstance(self.schedule, Schedule):
            self.schedule.observe(meter.loss if score is None else 1 - score)
        if score is not None and (self.best is None or score > self.best[0]):
            self.best = (score, self.epoch, network.state_dict())
        self.meter = progress.Meter()

    def is_stuck(self, patience: int) -> bool:
        """Whether the best epoch lies more than `patience` epochs back."""
        return self.best is not None and self.epoch - self.best[1] >= patience

    def take_best(self) -> None:
        """The best epoch's weights become the network's."""
        if self.best is not None:
            self.network.load_state_dict(self.best[2])

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = self.schedule.state if isinstance(self.schedule, Schedule) else {}
        checkpoint.write(path, self.network, self.plan, self.optimizer, self.seed, state, self.best)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint."""
        state, self.best = checkpoint.restore(
            path, self.network, self.plan, self.optimizer, self.seed
        )
        if isinstance(self.schedule, Schedule) and state:
            self.schedule.state = state


def ensemble(networks: Sequence[Network], *inputs: Any) -> Array:
    """The mean of several networks' predictions. Raises DataError when there are none or their
    outputs differ in shape."""
    if not networks:
        raise DataError("an ensemble of no networks", expected="at least one")
    outputs = [np.asarray(network.predict(*inputs)) for network in networks]
    if len({o.shape for o in outputs}) != 1:
        raise DataError(
            "the networks' outputs differ in shape", got=", ".join(str(o.shape) for o in outputs)
        )
    return np.mean(np.stack(outputs), axis=0)
