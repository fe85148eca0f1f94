"""convgen: write a layer as a formula over indices; get its gradients and native CPU kernels.

>>> import convgen as cg
>>> n, k, c = cg.axes("n k c")
>>> X, W = cg.tensor("X", (8, 3)), cg.tensor("W", (4, 3))
>>> layer = cg.define("Y", [n, k], cg.sum_over(c, X[n, c] * W[k, c]))
>>> print(cg.grad(layer, ["X"]))
program Y_grad
tensor X: f32[8, 3]
tensor W: f32[4, 3]
tensor dY: f32[8, 4]
dX[n, c] = sum(k: dY[n, k] * W[k, c])

Everything is imported at first use, so ``import convgen`` is cheap.
"""

from __future__ import annotations

import importlib
from typing import Any

# Imported here, since a later import of the module of that name would hide the function.
from convgen.target import Target as Target
from convgen.target import target as target
from convgen.version import __version__ as __version__

_DSL = (
    "argmax_over argmin_over axes combine define logsumexp_over max_over min_over pieces prod_over "
    "reduction size sum_over tensor"
)
_FUNCTIONS = (
    "abs_ cast equal is_nan less less_equal logical_and logical_not logical_or maximum minimum "
    "relu round_down select sigmoid sign step stop_gradient uniform"
)
_ERRORS = (
    "ConvgenError DataError DerivationError FormulaError InternalError ScheduleError ShapeError "
    "TargetError UserError"
)
_PLACES: dict[str, str] = {
    **dict.fromkeys(_DSL.split(), "convgen.symbolic.dsl"),
    **dict.fromkeys(_FUNCTIONS.split(), "convgen.symbolic.functions"),
    **dict.fromkeys(_ERRORS.split(), "convgen.errors"),
    **dict.fromkeys("grad split custom_gradient".split(), "convgen.symbolic.derive"),
    **dict.fromkeys("closed_form".split(), "convgen.symbolic.rewrite"),
    **dict.fromkeys("steps".split(), "convgen.symbolic.derive"),
    **dict.fromkeys("exp log tanh erf sqrt".split(), "sympy"),
    **dict.fromkeys("compile load".split(), "convgen.runtime.api"),
    **dict.fromkeys("set_num_threads get_num_threads".split(), "convgen.runtime.threads"),
    "audit": "convgen.inspect.audit",
    "Program": "convgen.symbolic.program",
    "evaluate": "convgen.symbolic.evaluate",
    "parse": "convgen.symbolic.parse",
    "Target": "convgen.target",
    "export": "convgen.interop.aot.export",
}
# Names that are whole modules: cg.nn.Conv2d, cg.optim.SGD, cg.data.load_mnist, cg.zoo.lenet5,
# cg.torch.function (cg.torch needs PyTorch, cg.jax JAX).
_ROOMS: dict[str, str] = {
    "nn": "convgen.runtime.nn",
    "optim": "convgen.runtime.optim",
    "data": "convgen.runtime.data",
    "zoo": "convgen.zoo",
    "torch": "convgen.interop.torch",
    "jax": "convgen.interop.jax",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        value: Any = importlib.import_module(_ROOMS[name])
    elif name in _PLACES:
        value = getattr(importlib.import_module(_PLACES[name]), name)
    else:
        raise AttributeError(f"module 'convgen' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES, *_ROOMS})
