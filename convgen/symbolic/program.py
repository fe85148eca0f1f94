"""Program: stages in order, from inputs to outputs. What a user holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from sympy import Expr, Integer

from convgen.errors import FormulaError, ShapeError
from convgen.symbolic import printer
from convgen.symbolic.boundary import Boundary
from convgen.symbolic.build import canonical, map_definition, retarget
from convgen.symbolic.expr import Extent, Padded, Size, Stage, Tensor
from convgen.symbolic.proofs import Proof, check_program
from convgen.symbolic.unindexed import Unindexed


@dataclass(frozen=True)
class Origin:
    """What a derived program was derived from: `kind` of derivation of `program` to `wrt`."""

    kind: Literal["grad", "adjoint", "forward", "backward"]
    program: Program
    wrt: tuple[str, ...]
    flip: bool = False


@dataclass(frozen=True, repr=False)
class Program(Unindexed):
    """A layer: stages in order, from inputs to outputs.

    inputs    parameters, states and inputs alike, in the user's order
    outputs   tensors written by stages, in the order returned
    saved     names of further tensors that backward needs (set by split)
    updates   (state name, tensor name): the state takes that tensor's value after the run
    origin    what it was derived from, if it was; no part of its value
    reductions declared by the user are found in the stages.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    stages: tuple[Stage, ...]
    saved: tuple[str, ...] = ()
    updates: tuple[tuple[str, str], ...] = ()
    origin: Origin | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Whoever made them: definitions are kept in the order of the text form."""
        stages = tuple(
            stage
            if all(a is b for a, b in zip(pieces, stage.pieces, strict=True))
            else replace(stage, pieces=pieces)
            for stage in self.stages
            for pieces in (tuple(canonical(p) for p in stage.pieces),)
        )
        object.__setattr__(self, "stages", stages)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name: inputs, constants, then what the stages write."""
        found = {t.name: t for t in self.inputs}
        for t in self.constants():
            found.setdefault(t.name, t)
        for stage in self.stages:
            found.update({t.name: t for t in stage.tensors})
        return found

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name; FormulaError lists the names there are."""
        found = self.tensors()
        if name not in found:
            raise FormulaError(
                f"program {self.name} has no tensor {name!r}", expected="one of " + ", ".join(found)
            )
        return found[name]

    def constants(self) -> tuple[Tensor, ...]:
        """Constant tensors that are read, in the order of first use."""
        found: dict[Tensor, None] = {}
        for stage in self.stages:
            for piece in stage.pieces:
                for access in piece.reads():
                    if access.tensor.role == "constant":
                        found.setdefault(access.tensor)
        return tuple(found)

    def sizes(self) -> tuple[str, ...]:
        """Names of the extents that are not bound yet."""
        found: dict[str, None] = {}
        for t in self.tensors().values():
            for extent in t.shape:
                if isinstance(extent, Size):
                    found.setdefault(extent.name)
        return tuple(found)

    @property
    def output(self) -> Tensor:
        """The only output; FormulaError when there are several."""
        if len(self.outputs) != 1:
            raise FormulaError(
                f"program {self.name} has several outputs",
                hint="program['NAME'] with one of " + ", ".join(t.name for t in self.outputs),
            )
        return self.outputs[0]

    def __getitem__(self, index: Any) -> Any:
        """program["Y"]: an output as a tensor for further formulas; program[n, k]: an access to
        the only output. Reading it in another body makes this program's stages part of that one.
        """
        if isinstance(index, str):
            found = next((t for t in self.outputs if t.name == index), None)
            if found is None:
                raise FormulaError(
                    f"program {self.name} has no output {index!r}",
                    expected="one of " + ", ".join(t.name for t in self.outputs),
                )
            return replace(found, source=self)
        return replace(self.output, source=self)[index]

    def pad(self, *modes: Boundary | str | int | float | Expr) -> Padded:
        """The only output with a boundary, for further formulas."""
        return replace(self.output, source=self).pad(*modes)

    def bind(self, **sizes: int) -> Program:
        """The program with named extents bound: ``program.bind(N=8)``. Others stay open.

        Raises ShapeError for a name that is no size of this program and for negative extents.
        """
        for name, value in sizes.items():
            if name not in self.sizes():
                raise ShapeError(
                    f"program {self.name} has no size {name}",
                    expected="one of " + ", ".join(self.sizes()) if self.sizes() else "no sizes",
                )
            if isinstance(value, bool) or int(value) != value or value < 0:
                raise ShapeError(f"size {name}", expected="an integer >= 0", got=repr(value))
        if not sizes:
            return self

        def extent(e: Extent) -> Extent:
            return int(sizes[e.name]) if isinstance(e, Size) and e.name in sizes else e

        def tensor(t: Tensor) -> Tensor:
            return replace(t, shape=tuple(extent(e) for e in t.shape), source=None)

        numbers = {Size(name): Integer(value) for name, value in sizes.items()}

        def number(body: Expr) -> Any:
            return body.xreplace(numbers)

        tensors = {name: tensor(t) for name, t in self.tensors().items()}
        stages: list[Stage] = []
        for stage in self.stages:
            moved = retarget(stage, tensors)
            bound = [map_definition(p, number, lambda o: o, extent) for p in moved.pieces]
            behind = stage.backward
            if behind is not None:
                known = {n: v for n, v in sizes.items() if n in behind.sizes()}
                behind = behind.bind(**known)
            stages.append(Stage(moved.tensors, tuple(bound), behind))
        origin = self.origin
        if origin is not None:
            known = {n: v for n, v in sizes.items() if n in origin.program.sizes()}
            origin = replace(origin, program=origin.program.bind(**known))
        return replace(
            self,
            inputs=tuple(tensor(t) for t in self.inputs),
            outputs=tuple(tensors[t.name] for t in self.outputs),
            stages=tuple(stages),
            origin=origin,
        )

    def check(self) -> Proof:
        """Prove that every element is written once and every access served: `check_program`."""
        return check_program(self)

    def unicode(self) -> str:
        """Unicode mathematics, one line for each definition."""
        return printer.unicode(self)

    def latex(self) -> str:
        """LaTeX, an ``aligned`` block without dollar signs."""
        return printer.latex(self)

    def _repr_latex_(self) -> str:
        """What a notebook shows."""
        return f"$$\n{printer.latex(self)}\n$$"

    def _repr_html_(self) -> str:
        """What a notebook shows where it renders MathML; wide formulas scroll."""
        return f'<div style="overflow-x:auto">{printer.mathml(self)}</div>'

    def mathml(self) -> str:
        """MathML, one ``<math>`` element: what a page shows without loading anything."""
        return printer.mathml(self)

    def to_numpy(self) -> str:
        """Python source of one function on NumPy arrays that computes this program: for reading
        and checking. It returns the outputs, then what is saved, then the new states."""
        return printer.to_numpy(self)

    def to_torch(self) -> str:
        """As `to_numpy`, on torch tensors and differentiable by autograd."""
        return printer.to_torch(self)

    def __str__(self) -> str:
        """The text form; ``parse(str(program))`` gives the same program."""
        return self._text

    @cached_property
    def _text(self) -> str:
        return printer.text(self)

    def __repr__(self) -> str:
        return str(self)


def require_program(value: Any, where: str) -> Program:
    """The value, when it is a Program; FormulaError otherwise."""
    if isinstance(value, Program):
        return value
    hint = "cg.parse(text)" if isinstance(value, str) else None
    if hasattr(value, "program"):
        hint = ".program(shape of its input)"
    got = repr(value) if isinstance(value, str) else type(value).__name__
    raise FormulaError(f"{where} is no program", expected="a Program", got=got, hint=hint)
