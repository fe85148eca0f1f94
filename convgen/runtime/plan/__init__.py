"""A network as a table of kernel calls over one block of memory: predictions, training steps, and
gradients of anything with respect to anything."""

from convgen.runtime.plan.memory import (
    Call,
    Plan,
    PlanBuilder,
    Region,
    aligned,
)
from convgen.runtime.plan.pullback import PullbackTape
from convgen.runtime.plan.tape import NetworkTape, inference_plan
from convgen.runtime.plan.training import BackwardTape, TrainingTape, step_plan, training_plan
from convgen.runtime.plan.weights import Weights, part

__all__ = [
    "BackwardTape",
    "Call",
    "NetworkTape",
    "Plan",
    "PlanBuilder",
    "PullbackTape",
    "Region",
    "TrainingTape",
    "Weights",
    "aligned",
    "inference_plan",
    "part",
    "step_plan",
    "training_plan",
]
