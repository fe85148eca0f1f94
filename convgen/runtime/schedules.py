"""Learning-rate schedules: the factor on the optimizer's rate, step by step.

A schedule is called with (step, steps) and gives a factor. One that also has `observe(score)` hears
the score of each epoch (lower is better); its `state` goes into checkpoints.
"""

from __future__ import annotations

import math
from typing import Any

from convgen.errors import DataError


class Schedule:
    """Base: a constant factor 1."""

    def __call__(self, step: int, steps: int) -> float:
        return 1.0

    def observe(self, score: float) -> None:
        """Hear how an epoch went."""

    @property
    def state(self) -> dict[str, Any]:
        """What must be kept to continue exactly (JSON values)."""
        return {}

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        pass


class StepDecay(Schedule):
    """The factor falls to `factor` of itself after every `every` steps.

    >>> StepDecay(10, 0.1)(25, 100)
    0.010000000000000002
    """

    def __init__(self, every: int, factor: float = 0.1) -> None:
        if every < 1:
            raise DataError(f"StepDecay every {every} steps", expected="at least 1")
        self.every, self.factor = every, factor

    def __call__(self, step: int, steps: int) -> float:
        return self.factor ** (step // self.every)


class Cosine(Schedule):
    """After `warmup` steps of linear rise, half a cosine from 1 to `floor`.

    >>> Cosine()(0, 100), Cosine()(50, 100), Cosine(warmup=4)(1, 100)
    (1.0, 0.5, 0.5)
    """

    def __init__(self, warmup: int = 0, floor: float = 0.0) -> None:
        self.warmup, self.floor = warmup, floor

    def __call__(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        share = (step - self.warmup) / max(steps - self.warmup, 1)
        return self.floor + (1 - self.floor) * (0.5 + 0.5 * math.cos(math.pi * share))


class Warmup(Schedule):
    """Linear rise over `warmup` steps, then another schedule (counted from its own beginning)."""

    def __init__(self, warmup: int, then: Schedule | None = None) -> None:
        self.warmup, self.then = warmup, then or Schedule()

    def __call__(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self.then(step - self.warmup, max(steps - self.warmup, 1))

    def observe(self, score: float) -> None:
        self.then.observe(score)

    @property
    def state(self) -> dict[str, Any]:
        return self.then.state

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        self.then.state = value


class Plateau(Schedule):
    """The factor falls to `factor` of itself when the score has not fallen by at least the share
    `threshold` for more than `patience` epochs (AlexNet's rule, automated)."""

    def __init__(self, factor: float = 0.1, patience: int = 10, threshold: float = 1e-4) -> None:
        self.factor, self.patience, self.threshold = factor, patience, threshold
        self._now, self._best, self._bad = 1.0, math.inf, 0

    def __call__(self, step: int, steps: int) -> float:
        return self._now

    def observe(self, score: float) -> None:
        if score < self._best - abs(self._best) * self.threshold or math.isinf(self._best):
            self._best, self._bad = score, 0
            return
        self._bad += 1
        if self._bad > self.patience:
            self._now, self._bad = self._now * self.factor, 0

    @property
    def state(self) -> dict[str, Any]:
        best = None if math.isinf(self._best) else self._best
        return {"now": self._now, "best": best, "bad": self._bad}

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        best = value["best"]
        self._now, self._bad = float(value["now"]), int(value["bad"])
        self._best = math.inf if best is None else float(best)
