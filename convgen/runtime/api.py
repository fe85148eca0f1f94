"""`compile` and `load`: from what a user holds to what runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convgen.errors import ScheduleError, ShapeError
from convgen.layers.base import Layer
from convgen.runtime import checkpoint, kernel
from convgen.runtime.module import Module
from convgen.runtime.network import Network
from convgen.runtime.structure import Described
from convgen.runtime.tune import tune
from convgen.symbolic.derive import grad
from convgen.symbolic.program import Program


def compile(
    subject: Program | Layer | Module,
    *,
    input: Any = None,
    search: int = 0,
    **options: Any,
) -> Any:
    """Native code for a Program (a kernel to call on arrays) or a network (to run and train).

    For a layer or module: input is the shape (batch included), or a list of shapes for several
    inputs; options mode ("train" or "infer"), dtype, target, threads, seed, memory as in `Network`.
    For a Program the options are those of `convgen.runtime.kernel.compile`: schedule, target,
    threads, accuracy, layouts; wrt=["X"] compiles its gradients instead. With search=8, instead of
    a schedule, the eight best of the cost model are measured and the fastest is kept, on disk too.
    Raises UserErrors for shapes, options, schedules and targets that do not fit.
    """
    if isinstance(subject, Program):
        if input is not None:
            raise ShapeError("input= is for layers and networks; a program has its own shapes")
        _check_options("a program", _OF_PROGRAMS, options)
        wrt = options.pop("wrt", None)
        subject = subject if wrt is None else grad(subject, wrt)
        if search:
            if options.get("layouts") is not None:
                raise ScheduleError("a search with layouts", expected="row-major arrays")
            if options.get("schedule") is not None:
                raise ScheduleError("a schedule and a search for one", expected="one of them")
            where = {k: options[k] for k in ("target", "threads") if k in options}
            options["schedule"] = tune(subject, search, **where).schedule
        return kernel.compile(subject, **options)
    if search:
        raise ScheduleError(
            "a search is for a program", expected="a Program", got=type(subject).__name__
        )
    if not isinstance(subject, (Layer, Module)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ShapeError(
            "nothing that compiles",
            expected="a Program, a layer or a module",
            got=repr(subject),
            hint="cg.parse(text)" if isinstance(subject, str) else None,
        )
    if not isinstance(input, (Sequence, type(None))) or isinstance(input, str):
        raise ShapeError("input=", expected="the shape, batch first", got=repr(input))
    if input is None:
        raise ShapeError(
            f"{type(subject).__name__} needs the shape of its input", hint="input=(32, 1, 28, 28)"
        )
    _check_options("a network", _OF_NETWORKS, options)
    several = bool(input) and isinstance(input[0], Sequence)
    shapes = [tuple(s) for s in input] if several else [tuple(input)]
    return Network(subject, shapes, **options)


_OF_PROGRAMS = ("schedule", "target", "threads", "accuracy", "layouts", "wrt", "search")
_OF_NETWORKS = ("mode", "dtype", "target", "threads", "seed", "memory")
_INSTEAD = {
    ("a program", "dtype"): "tensors declared with that dtype",
    ("a program", "memory"): "without: it is for networks; a kernel reports its workspace",
    ("a program", "mode"): "wrt=[...] for the gradients; modes are for networks",
    **dict.fromkeys(
        [("a network", name) for name in ("schedule", "layouts", "accuracy")],
        "cg.compile(program), for one layer: these are chosen for each kernel of a network",
    ),
    ("a network", "wrt"): "model.pullback(wrt=[...])",
}


def _check_options(what: str, known: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse options that what is compiled does not have."""
    for name in options:
        if name not in known:
            raise ShapeError(
                f"compile of {what} has no option {name!r}",
                expected="one of " + ", ".join(known),
                hint=_INSTEAD.get((what, name)),
            )


def load(path: str | Path, *, batch: int | None = None, mode: str = "train", **options: Any) -> Any:
    """A network from a file written by `Network.save`, ready to predict or train further.

    batch: another batch size than the saved one. Raises DataError for files that are foreign,
    damaged, or written by a newer convgen.
    """
    arrays, facts = checkpoint.read_network(Path(path))
    shapes = [tuple(s) for s in facts["shapes"]]
    if batch is not None:
        shapes = [(batch, *s[1:]) for s in shapes]
    _check_options("a network", _OF_NETWORKS, {**options, "mode": mode})
    network = Network(Described(facts["graph"]), shapes, mode=mode, dtype=facts["dtype"], **options)
    network.load_state_dict(arrays)
    return network
