"""What a command works on, from its text: a formula, a layer, a Python file, a network, a file.

'Y[n,k] = sum(c: X[n,c] * W[k,c])'  with shapes X=8,3 and W=4,3
'Conv2d(64, 128, 3, stride=2)'      with an input shape
FILE.py:NAME                        runs that file and takes NAME
zoo:NAME[,key=value]                a network of the zoo
PATH                                a saved network
"""

from __future__ import annotations

import ast
import inspect
import re
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convgen.errors import ConvgenError, DataError, FormulaError, ShapeError
from convgen.layers.base import Layer, Shape
from convgen.runtime import checkpoint
from convgen.runtime.module import Module
from convgen.runtime.structure import Described, parse_layer
from convgen.symbolic.parse import parse
from convgen.symbolic.program import Program

# name -> (maker, shape of one input without the batch), handed in by the caller
Zoo = Mapping[str, tuple[Callable[..., Module], Shape]]


@dataclass(frozen=True)
class Subject:
    """What was named: a program, or a module with the shape of its input. `ran` is the file that
    was run to find it."""

    name: str
    program: Program | None = None
    module: Layer | Module | None = None
    shape: Shape | None = None
    ran: Path | None = None


def parse_shape(text: str) -> Shape:
    """A shape from text.

    >>> parse_shape("8,64,56,56")
    (8, 64, 56, 56)
    """
    words = _words(text)
    if not all(word.isdecimal() for word in words):
        raise ShapeError(f"shape {text!r}", expected="integers such as 8,64,56,56")
    return tuple(map(int, words))


def _words(text: str) -> list[str]:
    """What stands between commas; a last comma, as in (3,), ends the list."""
    words = [w.strip() for w in text.split(",")]
    return words[:-1] if words[-1] == "" else words


def parse_shapes(items: Sequence[str]) -> dict[str, tuple[int | str, ...]]:
    """Shapes by tensor name from "X=8,64,56,56"; a letter is a size bound later."""
    found: dict[str, tuple[int | str, ...]] = {}
    for item in items:
        name, sign, extents = item.partition("=")
        if not sign or not name.strip().isidentifier():
            raise ShapeError(f"--shape {item!r}", expected="NAME=EXTENT,EXTENT,...")
        words = _words(extents)
        if name.strip() in found:
            raise ShapeError(f"--shape {item!r}", expected="one shape for each tensor")
        if not all(w.isidentifier() or w.isdecimal() for w in words):
            raise ShapeError(f"--shape {item!r}", expected="NAME=EXTENT,EXTENT,...")
        found[name.strip()] = tuple(w if w.isidentifier() else int(w) for w in words)
    return found


def resolve(
    text: str, *, shapes: Sequence[str] = (), input: str | None = None, zoo: Zoo | None = None
) -> Subject:
    """The subject a text names. Raises UserErrors that list what a subject may be."""
    shape = parse_shape(input) if input else None
    formula = re.search(r"\]\s*=[^=]", text) or text.lstrip().startswith("program ")
    if shapes and not formula:
        raise ShapeError(f"--shape for {text}", expected="--input: --shape is for formulas")
    if text.startswith("zoo:"):
        return _from_zoo(text[4:], shape, zoo or {})
    if formula:
        if input:
            raise ShapeError("--input for a formula", expected="--shape NAME=EXTENT,EXTENT,...")
        return Subject("formula", program=parse(text, **parse_shapes(shapes)))
    file, colon, name = text.rpartition(":")
    if text.endswith(".py"):
        raise DataError(f"which object of {text}?", expected=f"{text}:NAME")
    if colon and file.endswith(".py"):
        return _from_python(Path(file), name, shape)
    if re.fullmatch(r"\s*[A-Za-z_]\w*\(.*\)\s*", text, re.DOTALL):
        layer = parse_layer(text)
        return _with_shape(Subject(repr(layer), module=layer, shape=shape))
    if re.match(r"\s*[A-Za-z_]\w*\(", text) and text.count("(") > text.count(")"):
        raise DataError(f"cannot read {text!r}", expected="as many ) as (")
    if Path(text).is_file():
        _, facts = checkpoint.read_network(Path(text))
        saved = tuple(facts["shapes"][0])
        return Subject(text, module=Described(facts["graph"]), shape=shape or saved)
    raise DataError(
        f"no subject {text!r}",
        expected="a formula 'Y[i] = ...' with --shape, a layer 'Conv2d(...)' with --input, "
        "FILE.py:NAME, zoo:NAME, or a saved network",
    )


def _with_shape(subject: Subject) -> Subject:
    if subject.shape is None:
        raise ShapeError(f"{subject.name} needs the shape of its input", hint="--input 32,64,28,28")
    return subject


def _from_zoo(text: str, shape: Shape | None, zoo: Zoo) -> Subject:
    name, *items = text.split(",")
    if name not in zoo:
        raise DataError(f"no network {name!r} in the zoo", expected="one of " + ", ".join(zoo))
    maker, single = zoo[name]
    options: dict[str, Any] = {}
    for item in items:
        key, sign, value = item.partition("=")
        try:
            options[key.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            sign = ""
        if not sign:
            raise DataError(f"option {item!r} of zoo:{name}", expected="key=number")
    known = inspect.signature(maker).parameters
    for key in options:
        if key not in known:
            raise DataError(f"zoo:{name} has no option {key!r}", expected=", ".join(known))
    return Subject(f"zoo:{text}", module=maker(**options), shape=shape or (1, *single))


def run_file(path: Path) -> dict[str, Any]:
    """What a Python file defines. DataError where there is none, or it raises."""
    if not path.exists():
        raise DataError("no such file", where=str(path))
    try:
        return runpy.run_path(str(path))
    except ConvgenError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(
            f"the file raised {type(error).__name__}: {error}", where=str(path)
        ) from error


def _from_python(path: Path, name: str, shape: Shape | None) -> Subject:
    values = run_file(path)
    if name not in values:
        found = [n for n, v in values.items() if isinstance(v, (Program, Layer, Module))]
        raise DataError(f"{path} has no {name!r}", expected="one of " + (", ".join(found) or "-"))
    value = values[name]
    if isinstance(value, Program):
        if shape is not None:
            raise ShapeError(f"--input for the formula {name}", expected="no shape: it has its own")
        return Subject(name, program=value, ran=path)
    if isinstance(value, (Layer, Module)):
        return _with_shape(Subject(name, module=value, shape=shape, ran=path))
    raise FormulaError(
        f"{path}:{name} is a {type(value).__name__}", expected="a Program, a layer or a module"
    )
