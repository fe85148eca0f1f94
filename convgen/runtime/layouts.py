"""Layouts of the arrays that callers hand over: asked for, chosen, converted.

A layout is written as `convgen.ir.layout.layout_tag` writes it: ``acdb`` is an array of four
dimensions of which the second lies innermost (NCHW with channels last), ``aBcd16b`` has that one
cut into blocks of 16. The array of such a layout is an ndarray of the physical shape, C-contiguous.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from convgen.errors import DataError, ShapeError
from convgen.ir.layout import (
    is_rowmajor,
    layout_tag,
    parse_layout,
    physical_shape,
    size_in_elements,
)
from convgen.ir.nodes import Buffer, Kernel
from convgen.runtime.arrays import Array, as_array, bind_sizes, plain
from convgen.schedule.preferred import preferred_layouts
from convgen.symbolic import dsl
from convgen.symbolic.expr import Tensor, fixed
from convgen.symbolic.program import Program
from convgen.target import Target

Request: TypeAlias = "Mapping[str, str] | str | None"
PREFERRED = "preferred"


def checked(program: Program, layouts: Request) -> dict[str, str] | str | None:
    """A request as plain values: "preferred", or a layout for some arguments, row-major ones left
    out; ShapeError for anything else, for names of no argument, and for open sizes."""
    if not layouts:
        return None
    if program.sizes():
        raise ShapeError(
            f"layouts of {program.name}, whose sizes {', '.join(program.sizes())} are open",
            expected="all sizes bound",
            hint="compile(program.bind(...), layouts=...)",
        )
    if layouts == PREFERRED:
        return PREFERRED
    if isinstance(layouts, str) or not isinstance(layouts, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ShapeError("layouts=", expected='"preferred" or {name: layout}', got=repr(layouts))
    known = {t.name: t for t in arguments(program)}
    found: dict[str, str] = {}
    for name, tag in layouts.items():
        if name not in known:
            raise ShapeError(
                f"layout of {name!r}", expected="one of " + ", ".join(known), got=repr(name)
            )
        found[name] = layout_tag(parse_layout(str(tag), len(known[name].shape), name))
    return {n: t for n, t in found.items() if not _is_plain(known[n], t)} or None


def arguments(program: Program) -> list[Tensor]:
    """Inputs, then results, in the order of a call."""
    names = [*(t.name for t in program.outputs), *program.saved]
    return [*program.inputs, *(program.tensor(n) for n in dict.fromkeys(names))]


def movable(program: Program) -> list[str]:
    """Arguments whose layout may be chosen: weights and what belongs to them keep the caller's
    order, they are prepared once."""
    origin = program.origin
    still = set(program.saved)
    if origin is not None:
        roles = {t.name: t.role for t in origin.program.inputs}
        still |= {f"d{name}" for name in origin.wrt if roles.get(name) != "input"}
    return [
        t.name
        for t in arguments(program)
        if t.role in ("input", "output") and len(t.shape) > 1 and t.name not in still
    ]


def chosen(
    program: Program, kernel: Kernel, request: dict[str, str] | str | None, target: Target
) -> dict[str, str]:
    """The layouts of a request, by name, row-major ones left out. kernel: of the program, with
    row-major arrays."""
    if request == PREFERRED:
        found = preferred_layouts(kernel, target, movable(program))
        return {name: layout_tag(layout) for name, layout in found.items()}
    return dict(request) if isinstance(request, dict) else {}


def arranged(kernel: Kernel, layouts: Mapping[str, str]) -> Kernel:
    """The kernel (form NEST) with its arguments laid out so."""
    if not layouts:
        return kernel
    buffers = (
        replace(b, layout=parse_layout(layouts[b.name], len(b.shape), b.name))
        if b.name in layouts
        else b
        for b in kernel.buffers
    )
    return replace(kernel, buffers=tuple(buffers))


def buffer_of(tensor: Tensor, tag: str) -> Buffer:
    """The memory of an argument."""
    shape = tuple(fixed(e, tensor.name) for e in tensor.shape)
    layout = parse_layout(tag, len(shape), tensor.name)
    return Buffer(tensor.name, tensor.dtype, shape, layout, "input")


def as_laid_out(tensor: Tensor, layouts: Mapping[str, str]) -> Tensor:
    """The tensor with the shape that its array has in memory."""
    tag = layouts.get(tensor.name)
    return tensor if tag is None else replace(tensor, shape=physical_shape(buffer_of(tensor, tag)))


def is_padded(tensor: Tensor, layouts: Mapping[str, str]) -> bool:
    """True where blocks leave places that belong to no element: they hold zeros."""
    tag = layouts.get(tensor.name)
    if tag is None:
        return False
    buffer = buffer_of(tensor, tag)
    return size_in_elements(buffer) != int(np.prod(buffer.shape))


def _is_plain(tensor: Tensor, tag: str) -> bool:
    return is_rowmajor(buffer_of(tensor, tag))


def copy_program(tensor: Tensor) -> Program:
    """P = X, elementwise, for arrays like the tensor."""
    axes = dsl.axes(" ".join(f"i{d}" for d in range(len(tensor.shape))))
    axes = axes if isinstance(axes, tuple) else (axes,)
    source = dsl.tensor("X", tensor.shape, tensor.dtype)
    return dsl.define("P", list(axes), source[axes], name=f"copy_{tensor.name}")


class Arranged:
    """What a compiled kernel offers about the layouts of its arrays."""

    program: Program
    threads: int | None
    layouts: Mapping[str, str]

    @abstractmethod
    def _compiled(self, program: Program, layouts: Mapping[str, str]) -> Callable[..., Any]:
        """A kernel of another program, with those layouts."""
        ...

    def to_layout(self, name: str, array: Any) -> Array:
        """An array of the formula's shape as the kernel takes or gives that argument."""
        tensor = self._argument(name)
        given, _ = plain(as_array(array, tensor, f"to_layout of {name}"))
        bind_sizes([tensor], {name: given.shape}, f"to_layout of {name}")
        return self._copied(tensor, given, "P")

    def from_layout(self, name: str, array: Any) -> Array:
        """An argument of the kernel as an array of the formula's shape."""
        tensor = self._argument(name)
        laid = as_laid_out(tensor, self.layouts)
        given, _ = plain(as_array(array, laid, f"from_layout of {name}"))
        bind_sizes([laid], {name: given.shape}, f"from_layout of {name}")
        return self._copied(tensor, given, "X")

    def _copied(self, tensor: Tensor, given: Array, side: str) -> Array:
        tag = self.layouts.get(tensor.name)
        if tag is None:
            return given
        return self._compiled(copy_program(tensor), {side: tag})(given)

    def _argument(self, name: str) -> Tensor:
        known = {t.name: t for t in arguments(self.program)}
        if name not in known:
            raise DataError(f"there is no argument {name!r}", expected=", ".join(known))
        return known[name]
