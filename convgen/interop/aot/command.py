"""What `convgen build` does with its arguments."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convgen.errors import DataError
from convgen.interop.aot.export import Exported, export
from convgen.layers import loss as losses
from convgen.layers import update
from convgen.layers.base import Layer
from convgen.layers.loss import Loss
from convgen.layers.update import Optimizer
from convgen.runtime import api
from convgen.runtime.module import Module
from convgen.runtime.subject import Subject


def build(
    found: Subject,
    text: str,
    output: Path,
    *,
    name: str | None = None,
    targets: Sequence[str] = (),
    weights: str | None = None,
    backward: bool = True,
    loss: str | None = None,
    optimizer: str | None = None,
) -> Exported:
    """Export a subject of the command line; a saved network keeps its weights."""
    step = {
        "loss": parse_call(loss, _kinds(losses, Loss)) if loss else None,
        "optimizer": parse_call(optimizer, _kinds(update, Optimizer)) if optimizer else None,
    }
    target = list(targets) or None
    name = name or default_name(text)
    if found.program is not None:
        return export(
            found.program,
            output,
            name=name,
            backward=backward,
            weights=weights,
            target=target,
            **step,
        )
    saved = Path(text)
    if saved.is_file() and saved.suffix != ".py":
        network = api.load(saved, batch=found.shape[0] if found.shape else None)
    else:
        assert isinstance(found.module, (Layer, Module))
        network = api.compile(found.module, input=found.shape)
    return export(
        network,
        output,
        name=name,
        backward=backward,
        weights=weights,
        target=target,
        **step,
    )


def default_name(text: str) -> str | None:
    """The name of a bundle from that of its subject; None for a formula, which has its own.

    >>> default_name("zoo:lenet5,classes=7"), default_name("Conv2d(3, 8, 3)")
    ('lenet5', 'conv2d')
    >>> default_name("nets/mine.py:net"), default_name("nets/best-2.convgen")
    ('net', 'best_2')
    """
    if "]" in text and "=" in text or text.lstrip().startswith("program "):
        return None
    whole = text.removeprefix("zoo:").split(",")[0] if text.startswith("zoo:") else text
    if "(" in whole:
        whole = whole.split("(")[0].strip().lower()
    elif ".py:" in whole:
        whole = whole.rpartition(":")[2]
    else:
        whole = Path(whole).stem
    return re.sub(r"\W", "_", whole, flags=re.ASCII)


def _kinds(room: Any, base: type) -> dict[str, type]:
    """The public classes of a room by name."""
    return {
        n: k
        for n, k in vars(room).items()
        if inspect.isclass(k) and issubclass(k, base) and k is not base and not n.startswith("_")
    }


def parse_call(text: str, known: Mapping[str, type]) -> Any:
    """An object from its constructor call, through an allow-list; nothing else is run.

    >>> parse_call("SGD(momentum=0.9)", {"SGD": update.SGD}).momentum
    0.9
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            tree = ast.Call(tree, [], [])
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
            raise ValueError("no call")
        arguments = [ast.literal_eval(a) for a in tree.args]
        options = {k.arg: ast.literal_eval(k.value) for k in tree.keywords if k.arg}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise DataError("not a constructor call", expected="NAME(...)", got=text[:80]) from None
    kind = known.get(tree.func.id)
    if kind is None:
        raise DataError(f"unknown {tree.func.id!r}", expected="one of " + ", ".join(known))
    try:
        return kind(*arguments, **options)
    except TypeError as error:
        raise DataError(
            f"{tree.func.id}: {error}", expected=f"{tree.func.id}{inspect.signature(kind)}"
        ) from None
