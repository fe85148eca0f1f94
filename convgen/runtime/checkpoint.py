"""Files of networks: weights and structure, and checkpoints from which training resumes exactly.

Both are safetensors with the structure as JSON in the metadata. A file is written beside its
place, flushed, and renamed: a crash leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as pack

from convgen.errors import DataError
from convgen.layers.update import Optimizer
from convgen.runtime import structure
from convgen.runtime.plan import Plan
from convgen.runtime.progress import Epoch
from convgen.version import __version__

if TYPE_CHECKING:
    from convgen.runtime.network import Network

VERSION = 1
# validation score, epoch, weights of the best epoch so far
Best: TypeAlias = "tuple[float, int, dict[str, Any]] | None"


def _write(path: Path, arrays: dict[str, Any], facts: dict[str, Any]) -> None:
    data = pack(arrays, metadata={"convgen": json.dumps(facts, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError("the file cannot be written", where=str(path), got=str(error)) from None


def _read(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays, facts) of a file written by `_write`; DataError for anything else."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get("convgen", "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            "not a readable convgen file (foreign, damaged or truncated)",
            where=str(path),
            got=str(error),
        ) from None
    if not isinstance(facts, dict) or "version" not in facts:
        raise DataError("a safetensors file that convgen did not write", where=str(path))
    if type(facts["version"]) is not int or facts["version"] < 1:
        raise DataError(
            "the file's format number is damaged", where=str(path), got=repr(facts["version"])
        )
    if facts["version"] > VERSION:
        raise DataError(
            "written by a newer convgen",
            where=str(path),
            expected=f"format {VERSION}",
            got=f"format {facts['version']}, by convgen {facts.get('convgen', 'of another age')}",
            hint="a newer convgen: pip install --upgrade convgen",
        )
    if facts.get("kind") != kind:
        raise DataError(
            "another kind of file", where=str(path), expected=kind, got=str(facts.get("kind"))
        )
    return arrays, facts


def _head(kind: str, network: Network) -> dict[str, Any]:
    return {
        "version": VERSION,
        "convgen": __version__,
        "kind": kind,
        "graph": structure.describe(network.graph),
        "shapes": [list(s) for s in network.shapes],
        "dtype": network.dtype.name,
    }


def save_network(path: Path, network: Network) -> None:
    """Write a network: every parameter and state by name, and the graph."""
    _write(path, network.state_dict(), _head("network", network))


def read_network(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays by name, facts: graph, shapes, dtype) of a saved network."""
    arrays, facts = _read(path, "network")
    shapes = facts.get("shapes")
    sound = (
        isinstance(facts.get("graph"), dict)
        and facts.get("dtype") in ("f32", "f64")
        and isinstance(shapes, list)
        and bool(shapes)
        and all(isinstance(s, list) and s and all(type(e) is int for e in s) for s in shapes)
    )
    if not sound:
        raise DataError(
            "the description of the network is damaged",
            expected="graph, shapes and dtype",
            where=str(path),
        )
    return arrays, facts


def write(
    path: Path,
    network: Network,
    plan: Plan,
    optimizer: Optimizer,
    seed: int,
    schedule: dict[str, Any],
    best: Best,
) -> None:
    """Write a checkpoint of a training in progress."""
    arrays = {f"weights/{n}": a for n, a in network.state_dict().items()}
    for name in optimizer.states:
        arrays[f"optimizer/{name}"] = np.array(plan.view(f"optimizer.{name}"))
    if best is not None:
        arrays |= {f"best/{n}": a for n, a in best[2].items()}
    facts = _head("checkpoint", network) | {
        "step": network.step,
        "seed": seed,
        "optimizer": type(optimizer).__name__,
        "history": [asdict(e) for e in network.history],
        "schedule": schedule,
        "best": None if best is None else [best[0], best[1]],
    }
    _write(path, arrays, facts)


def restore(
    path: Path, network: Network, plan: Plan, optimizer: Optimizer, seed: int
) -> tuple[dict[str, Any], Best]:
    """Continue from a checkpoint; returns the schedule's state and the best epoch so far.
    Everything is checked before anything is changed."""
    arrays, facts = _read(path, "checkpoint")
    mine = _head("checkpoint", network) | {"seed": seed, "optimizer": type(optimizer).__name__}
    for name in ("graph", "dtype", "shapes", "seed", "optimizer"):
        if facts.get(name) != mine[name]:
            raise DataError(
                f"the checkpoint is of a training with another {name}",
                where=str(path),
                expected=str(mine[name])[:80],
                got=str(facts.get(name))[:80],
            )
    kept = {n: plan.view(f"optimizer.{n}") for n in optimizer.states}
    for name, view in kept.items():
        array = arrays.get(f"optimizer/{name}")
        if array is None or array.shape != view.shape:
            raise DataError(f"optimizer state {name} is missing or misshapen", where=str(path))
    try:
        step, schedule = int(facts["step"]), dict(facts["schedule"])
        history = [Epoch(**e) for e in facts["history"]]
        best = facts["best"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("the checkpoint is damaged", where=str(path), got=repr(error)) from None
    network.load_state_dict(_under("weights/", arrays))
    for name, view in kept.items():
        view[...] = arrays[f"optimizer/{name}"]
    network.step, network.history = step, history
    return schedule, None if best is None else (best[0], best[1], _under("best/", arrays))


def _under(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    return {n[len(prefix) :]: a for n, a in arrays.items() if n.startswith(prefix)}
