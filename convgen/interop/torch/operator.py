"""Operators of torch.library made from families of programs.

One operator serves every shape; the kernels of each shape are made at its first use:

    convgen::NAME(Tensor ..., int save) -> (Tensor ..., Tensor saved)
    convgen::NAME_infer(Tensor ...) -> (Tensor ...)
    convgen::NAME_backward(Tensor?[] given, Tensor[] cotangents, SymInt[] shapes, int save)
        -> Tensor[]
    convgen::NAME_gradS(Tensor ..., Tensor cotangent ..., int save) -> (Tensor ..., Tensor saved)

`save` has a bit for each argument whose gradient will be asked for; where no argument has one,
calls take the operator without gradients, which saves the way through autograd. The backward
operator reads what the forward saved; NAME_gradS is the derived gradient program from the arguments
alone, an operator like the first one, so that it has derivatives of its own.
"""

from __future__ import annotations

import hashlib
import keyword
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from convgen.errors import DerivationError, UserError
from convgen.interop.torch.recipe import (
    Family,
    GradientFamily,
    Options,
    Recipe,
    Spec,
    network_dtype,
    storage,
    torch_dtype,
)
from convgen.layers.base import Shape
from convgen.types import DType, f32, f64

_LIBRARY = torch.library.Library("convgen", "FRAGMENT")
_OPERATORS: dict[str, Operator] = {}
# Sizes that stand for an unknown one when shapes are asked for, and one to check the answer with.
_PROBES = (4, 5, 9)


def operator(family: Family, options: Options) -> Operator:
    """The operator of a family; the same one for the same formula and options, whose name depends
    on nothing else, so that exported programs find it again in another process."""
    words = (family.key, options.target.key(), options.threads, options.schedule)
    digest = hashlib.sha256(repr(words).encode()).hexdigest()[:12]
    title = "".join(c if c.isascii() and c.isalnum() else "_" for c in family.title)
    name = f"{title}_{digest}"
    if name not in _OPERATORS:
        _OPERATORS[name] = Operator(name, family, options)
    return _OPERATORS[name]


class Operator:
    """An operator on CPU tensors with derived gradients. Calls return results, then the states'
    new values; what is saved for the backward is left out."""

    def __init__(self, name: str, family: Family, options: Options) -> None:
        self.name, self.family, self.options = name, family, options
        self._recipes: dict[Any, Recipe] = {}
        self._calls: dict[Any, Any] = {}
        self._gradients: dict[tuple[int, ...], Operator] = {}
        self._count = family.results + len(family.states)
        arguments = ", ".join(f"Tensor {a}" for a in _argument_names(family.inputs))
        results = ", ".join(["Tensor"] * (self._count + 1))
        self._define(name, f"({arguments}, int save) -> ({results})", self._run, self._shapes)
        plain = results[len("Tensor, ") :]
        plain = plain if self._count == 1 else f"({plain})"
        self._define(f"{name}_infer", f"({arguments}) -> {plain}", self._infer, self._shapes_infer)
        self._define(
            f"{name}_backward",
            "(Tensor?[] given, Tensor[] cotangents, SymInt[] shapes, int save) -> Tensor[]",
            self._run_backward,
            self._shapes_backward,
        )
        torch.library.register_autograd(
            f"convgen::{name}", self._backward, setup_context=self._set_up, lib=_LIBRARY
        )
        self.op: Any = getattr(torch.ops.convgen, name).default
        self.infer_op: Any = getattr(torch.ops.convgen, f"{name}_infer").default
        self.backward_op: Any = getattr(torch.ops.convgen, f"{name}_backward").default

    def _define(self, name: str, schema: str, run: Any, shapes: Any) -> None:
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, run, "CPU")
        torch.library.register_fake(f"convgen::{name}", shapes, lib=_LIBRARY)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        save = 0
        if torch.is_grad_enabled():
            for i, tensor in enumerate(tensors):
                if tensor.requires_grad:
                    save |= 1 << i
        if save:
            if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
                return _Transformed.apply(self, save, *tensors)[: self._count]
            return self.op(*tensors, save)[: self._count]
        if forward_ad._current_level >= 0 and not torch.compiler.is_compiling():
            self._refuse_tangents(tensors)
        found = self.infer_op(*tensors)
        return (found,) if self._count == 1 else tuple(found)

    def _refuse_tangents(self, tensors: Sequence[Tensor]) -> None:
        """An operator without a forward-mode rule would drop tangents without a word."""
        if any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
            raise DerivationError(
                f"{self.family.title} has no forward-mode derivative",
                expected="reverse mode: torch.autograd.grad, or .backward()",
                got="an input with a tangent",
            )

    def __deepcopy__(self, memo: Any) -> Operator:
        """Copies of a module share its operators, which keep no values."""
        return self

    def __reduce__(self) -> Any:
        """In another process the operator is made again."""
        return operator, (self.family, self.options)

    # ------------------------------------------------------------------------------- kernels

    def _recipe(self, shapes: Sequence[Shape], dtype: DType, save: int) -> Recipe:
        key = (save, dtype, *shapes)
        found = self._recipes.get(key)
        if found is None:
            found = Recipe(self.family, shapes, dtype, save, self.options)
            self._recipes[key] = found
        return found

    def _run(self, *arguments: Any) -> tuple[Tensor, ...]:
        *tensors, save = arguments
        key = (save, *[t.shape for t in tensors], *[t.dtype for t in tensors])
        forward = self._calls.get(key)
        if forward is None:
            forward = self._calls[key] = self._recipe_of(tensors, save).forward
        return forward.run(tensors)

    def _infer(self, *tensors: Tensor) -> Any:
        key = (*[t.shape for t in tensors], *[t.dtype for t in tensors])
        forward = self._calls.get(key)
        if forward is None:
            forward = self._calls[key] = self._recipe_of(tensors, 0).infer
        results = forward.run(tensors)
        return results[0] if self._count == 1 else results

    def _recipe_of(self, tensors: Sequence[Tensor], save: int) -> Recipe:
        dtype = network_dtype(self.family, tensors)
        recipe = self._recipe(tuple(tuple(t.shape) for t in tensors), dtype, save)
        recipe.check(tensors, self.family.title)
        return recipe

    def _run_backward(
        self,
        given: Sequence[Tensor | None],
        cotangents: Sequence[Tensor],
        shapes: Sequence[int],
        save: int,
    ) -> list[Tensor]:
        recipe = self._recipe(_unflatten(shapes), self._dtype_like(cotangents), save)
        return recipe.backward.run(given, cotangents)

    def _dtype_like(self, cotangents: Sequence[Tensor]) -> DType:
        """The network's dtype: that of the cotangents, where the family leaves it open."""
        closed = all(self.family.input_dtype(i) for i in range(len(self.family.inputs)))
        return f64 if not closed and cotangents[0].dtype == torch.float64 else f32

    # ------------------------------------------------------------------------------- shapes

    def _shapes(self, *arguments: Any) -> tuple[Tensor, ...]:
        *tensors, save = arguments
        dtype = network_dtype(self.family, tensors)
        results, saved = self._specs([t.shape for t in tensors], dtype, save, tensors)
        like = tensors[0]
        made = [like.new_empty(s.shape, dtype=s.dtype) for s in results]
        return (*made, like.new_empty((storage(saved)[1],), dtype=torch.uint8))

    def _shapes_infer(self, *tensors: Tensor) -> Any:
        results = self._shapes(*tensors, 0)
        return results[0] if self._count == 1 else results[: self._count]

    def _specs(
        self, shapes: Sequence[Any], dtype: DType, save: int, tensors: Sequence[Tensor]
    ) -> tuple[list[Spec], list[Spec]]:
        """(results, saved) for shapes that may contain unknown sizes.

        One unknown size: found from what three sizes give, where that is a straight line. Else
        the sizes are taken as the numbers they stand for now.
        """
        unknown = {str(e.node.expr): e for s in shapes for e in s if isinstance(e, torch.SymInt)}
        if len(unknown) == 1:
            (size,) = unknown.values()
            probes = self._probe(shapes, dtype, save)
            results = _along([p.results for p in probes], size)
            saved = _along([p.saved for p in probes], size)
            if results is not None and saved is not None:
                return results, saved
        known = tuple(tuple(int(e) for e in s) for s in shapes)
        recipe = self._recipe(known, dtype, save)
        recipe.check(tensors, self.family.title)
        return recipe.results, recipe.saved

    def _probe(self, shapes: Sequence[Any], dtype: DType, save: int) -> list[Recipe]:
        """The recipes at a few values of the unknown size; none where one of them cannot be."""

        def at(size: int) -> tuple[Shape, ...]:
            return tuple(
                tuple(size if isinstance(e, torch.SymInt) else int(e) for e in s) for s in shapes
            )

        try:
            return [self._recipe(at(size), dtype, save) for size in _PROBES]
        except UserError:
            return []

    def _shapes_backward(
        self,
        given: Sequence[Tensor | None],
        cotangents: Sequence[Tensor],
        shapes: Sequence[Any],
        save: int,
    ) -> list[Tensor]:
        like = cotangents[0]
        made: list[Tensor] = []
        for i, shape in enumerate(_unflatten(shapes)):
            if save >> i & 1:
                kind = self.family.input_dtype(i)
                dtype = like.dtype if kind is None else torch_dtype(kind)
                made.append(like.new_empty(shape, dtype=dtype))
        return made

    # ------------------------------------------------------------------------------- gradients

    def _set_up(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, save = inputs
        floats = self.family.floats
        ctx.mark_non_differentiable(*[o for i, o in enumerate(output) if i not in floats])
        ctx.save = save
        # A result that is not read may change in place: relu_ after a convolution.
        reads = self._reads(tensors, save) if save else None
        made = output if save else ()
        if reads is not None:
            made = (*_where(reads[len(tensors) :], output[:-1]), output[-1])
        # States change in place after the call.
        for i in self.family.states:
            tensors[i] = tensors[i].clone()
        ctx.save_for_backward(*tensors, *made)

    def _backward(self, ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return self._gradients_to(ctx.needs_input_grad, ctx, cotangents)

    def _gradients_to(
        self, needed: Sequence[bool], ctx: Any, cotangents: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...]:
        """The gradients to the arguments that need one, None for the others and for `save`."""
        count = len(self.family.inputs)
        held = ctx.saved_tensors
        tensors, made = held[:count], held[count:]
        wanted = tuple(i for i in range(count) if needed[i])
        given = [cotangents[i] for i in self.family.floats]
        grads: list[Tensor | None] = [None] * (count + 1)
        if not wanted:
            return tuple(grads)
        covered = all(ctx.save >> i & 1 for i in wanted)
        if covered and not torch.is_grad_enabled():
            shapes = [n for t in tensors for n in (t.dim(), *t.shape)]
            found = self.backward_op(self._read(tensors, made, ctx.save), given, shapes, ctx.save)
            order = [i for i in range(count) if ctx.save >> i & 1]
        else:
            found, order = self.gradient(wanted)(*tensors, *given), list(wanted)
        for i, gradient in zip(order, found, strict=True):
            grads[i] = gradient if i in wanted else None
        return tuple(grads)

    def _read(
        self, tensors: Sequence[Tensor], made: Sequence[Tensor], save: int
    ) -> list[Tensor | None]:
        """Arguments, results and saved block, with None for what the backward does not read."""
        held: list[Tensor | None] = [*tensors, *made]
        reads = self._reads(tensors, save)
        return held if reads is None else [*_where(reads, held[:-1]), held[-1]]

    def _reads(self, tensors: Sequence[Tensor], save: int) -> list[bool] | None:
        """Whether the backward reads each argument and result; None where a size is unknown."""
        if any(isinstance(e, torch.SymInt) for t in tensors for e in t.shape):
            return None
        dtype = network_dtype(self.family, tensors)
        return self._recipe(tuple(tuple(t.shape) for t in tensors), dtype, save).reads

    def gradient(self, wrt: tuple[int, ...]) -> Operator:
        """The operator of the gradients to some arguments: arguments, then cotangents."""
        if wrt not in self._gradients:
            made = GradientFamily(self.family, wrt)
            self._gradients[wrt] = operator(made, self.options)
        return self._gradients[wrt]


class _Transformed(torch.autograd.Function):
    """A call under torch.func (grad, jacrev, vmap), which does not look into registered
    operators."""

    generate_vmap_rule = True

    @staticmethod
    def forward(maker: Operator, save: int, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore
        return maker.op(*tensors, save)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        maker, save, *tensors = inputs
        ctx.maker = maker
        maker._set_up(ctx, (*tensors, save), output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        found = ctx.maker._gradients_to(ctx.needs_input_grad[2:], ctx, cotangents)
        return None, None, *found[:-1]


def _where(wanted: Sequence[bool], tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    return [t if w else None for w, t in zip(wanted, tensors, strict=True)]


def _argument_names(names: Sequence[str]) -> list[str]:
    """Names that a schema may use: the formula's own where they can be."""
    found: list[str] = []
    for i, name in enumerate(names):
        usable = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
        fresh = name not in (*found, *names[:i], "save", "self", "out")
        found.append(name if usable and fresh else f"argument{i}")
    return found


def _unflatten(numbers: Sequence[Any]) -> tuple[tuple[Any, ...], ...]:
    """Shapes from one list: the rank, then the extents, of each."""
    shapes: list[tuple[Any, ...]] = []
    at = 0
    while at < len(numbers):
        rank = int(numbers[at])
        shapes.append(tuple(numbers[at + 1 : at + 1 + rank]))
        at += 1 + rank
    return tuple(shapes)


def _along(probes: Sequence[Sequence[Spec]], size: Any) -> list[Spec] | None:
    """The tensors at an unknown size, from what they are at the probes; None where an extent does
    not grow by the same amount for each."""
    if not probes or len({tuple(s.name for s in p) for p in probes}) != 1:
        return None
    found: list[Spec] = []
    for versions in zip(*probes, strict=True):
        if len({len(v.shape) for v in versions}) != 1:
            return None
        shape: list[Any] = []
        for low, next_, high in zip(*(v.shape for v in versions), strict=True):
            slope = next_ - low
            if high != low + slope * (_PROBES[2] - _PROBES[0]):
                return None
            start = low - slope * _PROBES[0]
            shape.append(size * slope + start if slope else low)
        found.append(Spec(versions[0].name, tuple(shape), versions[0].dtype))
    return found
