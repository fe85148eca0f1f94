"""Program -> naive Kernel: one phase for each piece, one loop for each axis. The one bridge from
formulas to loops; after it sympy is gone."""

from __future__ import annotations

from collections.abc import Mapping

from convgen.errors import InternalError
from convgen.ir.nodes import Buffer, Form, Kernel, Layout, Nest, Phase
from convgen.ir.rounding import number_of
from convgen.passes.lower.nests import lower_piece
from convgen.symbolic.expr import Tensor, fixed
from convgen.symbolic.program import Program

__all__ = ["lower"]


def lower(program: Program, layouts: Mapping[str, Layout] | None = None) -> Kernel:
    """The kernel of a program in form NEST, every extent bound.

    Buffers: the program's inputs in their order, its outputs, what it saves for backward and
    what its states become (as outputs), then temporaries and constants. Phases and nests are named
    after the first tensor they write; several pieces are numbered ``dX.0``, ``dX.1``. Pieces
    without points are left out. `layouts` binds tensors to layouts; the others are row-major.

    Nothing is lowered that `Program.check` does not prove: kernels stay inside their arguments
    because formulas stay inside their tensors.

    Raises ShapeError for a size that is not bound and for a boundary out of reach, FormulaError for
    elements written twice, never or outside, and for an omitted element outside a reduction.
    """
    program.check()
    order = _tensor_order(program)
    known = layouts or {}
    for name in known:
        if name not in order:
            raise InternalError(
                f"layout for {name!r}: wanted one of {', '.join(order)}", stage="lower"
            )
    buffers = _buffers(program, order, known)
    places = {name: place for place, name in enumerate(order)}
    phases: list[Phase] = []
    for stage in program.stages:
        for number, piece in enumerate(stage.pieces):
            name = piece.outs[0].tensor.name
            if len(stage.pieces) > 1:
                name += f".{number}"
            nest = lower_piece(name, piece, places)
            if nest is not None:
                phases.append(_phase(nest))
    return Kernel(program.name, buffers, tuple(phases), Form.NEST)


def _phase(nest: Nest) -> Phase:
    return Phase(nest.name, (nest,))


def _tensor_order(program: Program) -> dict[str, Tensor]:
    """Tensors by name in the user's order: inputs, what the stages write, constants."""
    found: dict[str, Tensor] = {t.name: t for t in program.inputs}
    for stage in program.stages:
        for tensor in stage.tensors:
            found.setdefault(tensor.name, tensor)
    for tensor in program.constants():
        found.setdefault(tensor.name, tensor)
    return found


def _buffers(
    program: Program, order: Mapping[str, Tensor], layouts: Mapping[str, Layout]
) -> tuple[Buffer, ...]:
    made: dict[str, Buffer] = {}

    def add(name: str, role: str) -> None:
        tensor = order[name]
        shape = tuple(fixed(e, name) for e in tensor.shape)
        values = tuple(number_of(v, tensor.dtype) for v in tensor.values or ())
        layout = layouts.get(name) or Layout.rowmajor(len(shape))
        made.setdefault(name, Buffer(name, tensor.dtype, shape, layout, role, values))  # type: ignore[arg-type]

    for tensor in program.inputs:
        add(tensor.name, "constant" if tensor.role == "constant" else "input")
    for tensor in program.outputs:
        add(tensor.name, "output")
    for name in (*program.saved, *(source for _, source in program.updates)):
        if order[name] not in program.inputs:
            add(name, "output")
    for name, tensor in order.items():
        add(name, "constant" if tensor.role == "constant" else "temporary")
    return tuple(made.values())
