"""JAX: programs as differentiable functions on JAX arrays, inside and outside of jit."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import numpy as np

from convgen.errors import DataError, DerivationError, ShapeError
from convgen.runtime.arrays import bind_sizes, shape_text
from convgen.runtime.kernel import compile as compile_kernel
from convgen.symbolic.derive import grad
from convgen.symbolic.expr import Tensor
from convgen.symbolic.program import Program
from convgen.target import Target


class Function:
    """A program as a function on JAX arrays; made by `function`."""

    def __init__(self, program: Program, **options: Any) -> None:
        self.program = program
        self._options = options
        self._kernel = compile_kernel(program, **options)
        self._floats = [i for i, t in enumerate(program.inputs) if t.dtype.is_float]
        self._call = jax.custom_vjp(self._run)
        self._call.defvjp(self._forward, self._backward)

    def __call__(self, *inputs: Any) -> Any:
        """The outputs: one array, or a tuple of several. DataError for a wrong number of inputs,
        wrong dtypes or shapes."""
        names = ", ".join(t.name for t in self.program.inputs)
        if len(inputs) != len(self.program.inputs):
            raise DataError(
                "wrong number of inputs",
                expected=f"{len(self.program.inputs)}: {names}",
                got=str(len(inputs)),
                where=self.program.name,
            )
        arrays = [
            self._checked(value, tensor)
            for value, tensor in zip(inputs, self.program.inputs, strict=True)
        ]
        try:
            results = self._call(*arrays)
        except TypeError as error:
            if "forward-mode" not in str(error):
                raise
            raise DerivationError(
                "jax.jvp, jacfwd and hessian ask for forward mode",
                expected="reverse mode: jax.grad, vjp, jacrev",
                where=self.program.name,
                hint="jacrev(jacrev(f)) for hessian(f); cg.grad(cg.grad(program)) holds the jvp",
            ) from None
        return results[0] if len(results) == 1 else results

    def _checked(self, value: Any, tensor: Tensor) -> Any:
        if isinstance(value, (int, float)) and not tensor.shape:
            value = jax.numpy.asarray(value, tensor.dtype.numpy_name)
        if not isinstance(value, (jax.Array, np.ndarray)):
            raise DataError(
                f"{tensor.name} is no array",
                expected="a JAX array",
                got=type(value).__name__,
                where=self.program.name,
            )
        if str(value.dtype) != tensor.dtype.numpy_name or value.ndim != len(tensor.shape):
            raise DataError(
                f"{tensor.name} has the wrong dtype or rank",
                expected=f"{tensor.dtype.numpy_name} {shape_text(tensor)}",
                got=f"{value.dtype} {value.shape}",
                where=self.program.name,
                hint="jax_enable_x64" if tensor.dtype.bits == 64 else None,
            )
        return value

    def _run(self, *arrays: Any) -> tuple[Any, ...]:
        shapes = {t.name: tuple(a.shape) for t, a in zip(self.program.inputs, arrays, strict=True)}
        sizes = bind_sizes(self.program.inputs, shapes, self.program.name)
        results = [
            jax.ShapeDtypeStruct(
                tuple(sizes.get(str(e), e) for e in t.shape), np.dtype(t.dtype.numpy_name)
            )
            for t in self.program.outputs
        ]
        return jax.pure_callback(self._native, tuple(results), *arrays, vmap_method="sequential")

    def _native(self, *arrays: Any) -> tuple[Any, ...]:
        made = self._kernel(*arrays)
        return made if isinstance(made, tuple) else (made,)

    def _forward(self, *arrays: Any) -> tuple[Any, Any]:
        return self._call(*arrays), arrays

    @cached_property
    def gradient(self) -> Function:
        """The derived gradients to all inputs of floats, a function of its own: differentiable."""
        made = grad(self.program, [self.program.inputs[i].name for i in self._floats])
        return Function(made, **self._options)

    def _backward(self, arrays: Any, cotangents: Any) -> tuple[Any, ...]:
        kinds = [t.dtype.is_float for t in self.program.outputs]
        given = [c for c, real in zip(cotangents, kinds, strict=True) if real]
        found = iter(self.gradient._call(*arrays, *given))
        return tuple(
            next(found) if i in self._floats else np.zeros(a.shape, jax.dtypes.float0)
            for i, a in enumerate(arrays)
        )


def function(
    program: Program, *, target: Target | str = "native", threads: int | None = None
) -> Function:
    """A program as a function on JAX arrays: under jit by a callback into the native kernel, with
    derived gradients of every order by custom_vjp (backward computes again what it needs). JAX has
    no forward mode for such functions: jacrev(jacrev(f)) instead of hessian(f).

    Raises DataError for programs that update states: JAX arrays never change.
    """
    if not isinstance(program, Program):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ShapeError("function() takes a program", got=repr(program))
    if program.updates:
        raise DataError(f"{program.name} updates states", expected="a program without updates")
    return Function(program, target=target, threads=threads)
