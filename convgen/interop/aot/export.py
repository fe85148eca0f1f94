"""`export`: a program, kernel or network as files that need nothing of convgen."""

from __future__ import annotations

import hashlib
import json
import keyword
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convgen.errors import DataError
from convgen.interop.aot import files
from convgen.interop.aot.archive import archive
from convgen.interop.aot.bundle import Bundle, make_bundle, targets_of
from convgen.interop.aot.link import link_shared
from convgen.interop.aot.networks import NetworkSubject
from convgen.interop.aot.programs import ProgramSubject
from convgen.interop.aot.subject import Subject
from convgen.layers.loss import Loss
from convgen.layers.update import Optimizer
from convgen.runtime.kernel import CompiledKernel
from convgen.runtime.network import Network
from convgen.schedule.schedule import Schedule
from convgen.symbolic.program import Program
from convgen.target import Target

WEIGHTS = ("file", "embedded", "argument")
_MOST_EMBEDDED = 1 << 26  # bytes


@dataclass(frozen=True)
class Exported:
    """What was written: `files` by path in `folder`; `notes` say what could not be."""

    folder: Path
    name: str
    files: tuple[str, ...]
    object_bytes: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.name} in {self.folder}: {', '.join(self.files)}"]
        return "\n".join([*lines, *self.notes])


def export(
    subject: Program | CompiledKernel | Network,
    out: str | Path,
    *,
    name: str | None = None,
    backward: bool = True,
    weights: str | None = None,
    target: Target | str | Sequence[str] | None = None,
    batch: int | None = None,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
) -> Exported:
    """Write a bundle: object, static and shared library, C header, CMake and pkg-config packages,
    Python loader, example, LLVM IR, assembly and MANIFEST.json.

    name       prefix of every symbol and file; default: the program's name
    backward   with gradients to inputs and weights
    weights    "file" (NAME.weights), "embedded" in the object, or "argument" (the caller's);
               default: "file" for a network, "argument" for a program
    target     as in `compile`, "x86-64" for one bundle with AVX2 and AVX-512, or several levels;
               default: the kernel's or network's own
    batch      value of a program's open batch size
    loss, optimizer    add NAME_step, a step of training; default: those the network was fit with

    Raises DataError for names and weights that cannot be, and what compiling raises.
    """
    made, schedule, machine = _subject(subject, backward, batch, loss, optimizer)
    prefix = name or _default_name(subject)
    _check_name(prefix)
    kind = weights or ("file" if isinstance(subject, Network) else "argument")
    block = _weight_block(subject, kind)
    step = made.ports.loss is not None
    bundle = make_bundle(
        prefix,
        made,
        targets_of(target if target is not None else machine),
        backward=backward,
        step=step,
        schedule=schedule,
        embedded=block if kind == "embedded" else None,
    )
    described = {}
    if isinstance(made, NetworkSubject) and step:
        described = {"optimizer": repr_of(made.optimizer), "loss": repr(made.loss)}
    return _write(bundle, Path(out), kind, block, described)


def repr_of(optimizer: Optimizer | None) -> str:
    """An optimizer as its constructor call, the learning rate left out: it is an argument."""
    options = {k: v for k, v in vars(optimizer).items() if k not in ("lr", "states", "hyper")}
    return f"{type(optimizer).__name__}({', '.join(f'{k}={v!r}' for k, v in options.items())})"


def _subject(
    subject: Program | CompiledKernel | Network,
    backward: bool,
    batch: int | None,
    loss: Loss | None,
    optimizer: Optimizer | None,
) -> tuple[Subject, Schedule | str | None, Target | str]:
    """(what is exported, its schedule, its own target)."""
    if isinstance(subject, Network):
        if batch is not None:
            raise DataError("batch= of a network", expected="input=(batch, ...) in compile")
        if (loss is None) != (optimizer is None):
            raise DataError(
                "half of a training step",
                expected="a loss and an optimizer, or neither",
                got=f"{repr(loss) if optimizer is None else repr_of(optimizer)} alone",
            )
        setup = subject.setup if loss is None and optimizer is None and backward else None
        if setup is not None:
            loss, optimizer = setup.loss, setup.optimizer
        return NetworkSubject(subject, backward, loss, optimizer), None, subject.target
    if loss is not None or optimizer is not None:
        raise DataError("a training step of a program", expected="a network")
    if isinstance(subject, CompiledKernel):
        if subject.layouts:
            raise DataError(
                f"a bundle of kernel {subject.program.name}, whose arrays have other layouts",
                expected="row-major arrays: a kernel compiled without layouts=",
                got=", ".join(f"{n} {tag}" for n, tag in subject.layouts.items()),
                hint="export(kernel.program, ...)",
            )
        program = ProgramSubject(subject.program, batch, backward)
        return program, subject.requested_schedule, subject.target
    if isinstance(subject, Program):  # pyright: ignore[reportUnnecessaryIsInstance]
        return ProgramSubject(subject, batch, backward), None, "native"
    raise DataError(
        "nothing that can be exported",
        expected="a Program, a compiled kernel or a compiled network",
        got=type(subject).__name__,
    )


def _default_name(subject: Program | CompiledKernel | Network) -> str:
    if isinstance(subject, Network):
        name = type(subject.module).__name__.lower()
    else:
        name = subject.name if isinstance(subject, Program) else subject.program.name
    name = re.sub(r"\W", "_", name)
    return f"{name}_kernel" if _shadows(name) else name


def _shadows(name: str) -> bool:
    """True when NAME.py would stand in the place of a module that Python or the loader imports."""
    return name in sys.stdlib_module_names or name == "numpy"


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z]\w{0,63}", name, re.ASCII) or keyword.iskeyword(name):
        raise DataError(f"name {name!r}", expected="a C identifier of at most 64 letters")
    if _shadows(name):
        raise DataError(
            f"name {name!r}",
            expected=f"a name that is no module of Python: {name}.py would stand in its place",
            hint=f"name='{name}_kernel'",
        )


def _weight_block(subject: Any, kind: str) -> bytes | None:
    """The bytes of all weights, as `pack` takes them from a file or from the object."""
    if kind not in WEIGHTS:
        raise DataError(f"weights={kind!r}", expected="one of " + ", ".join(WEIGHTS))
    if kind == "argument":
        return None
    if not isinstance(subject, Network):
        raise DataError(f"weights={kind!r} of a program", expected="'argument'", got="no weights")
    block = subject.weights.vector.tobytes()
    if kind == "embedded" and len(block) > _MOST_EMBEDDED:
        raise DataError(
            f"{len(block)} bytes of weights in the object", expected=f"at most {_MOST_EMBEDDED}",
            hint="weights='file'",
        )  # fmt: skip
    return block


def _write(
    bundle: Bundle, folder: Path, kind: str, block: bytes | None, described: dict[str, str]
) -> Exported:
    name = bundle.name
    contents = {p: t.encode() for p, t in files.texts(bundle, kind, described).items()}
    contents[f"{name}.o"] = bundle.object
    contents[f"lib{name}.a"] = archive({f"{name}.o": bundle.object, f"{name}_pool.o": bundle.pool})
    if kind == "file" and block is not None:
        contents[f"{name}.weights"] = block
    contents["MANIFEST.json"] = files.manifest(bundle, kind, contents, described).encode()
    try:
        for path, data in contents.items():
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        shared = folder / f"lib{name}.so"
        facts = folder / f"lib{name}.so.json"
        for stale in (shared, facts):
            stale.unlink(missing_ok=True)
        objects = {f"{name}.o": bundle.object, f"{name}_pool.o": bundle.pool}
        problem = link_shared(name, bundle.levels[0].target, objects, shared)
        if not problem:
            data = shared.read_bytes()
            digest = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            facts.write_text(json.dumps(digest) + "\n")
            contents |= {shared.name: data, facts.name: b""}
    except OSError as error:
        raise DataError("the bundle cannot be written", where=str(folder), got=str(error)) from None
    notes = (problem,) if problem else ()
    return Exported(folder, name, tuple(sorted(contents)), len(bundle.object), notes)
