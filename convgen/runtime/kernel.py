"""`compile`: a program as a function on NumPy arrays."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, cast

import numpy as np

from convgen.errors import DataError, ShapeError
from convgen.runtime.arrays import (
    Array,
    as_array,
    bind_sizes,
    check_apart,
    check_written,
    new_array,
    plain,
    shape_text,
)
from convgen.runtime.build import Built, build_program
from convgen.runtime.call import Prepared, addresses_of
from convgen.runtime.details import details_of
from convgen.runtime.layouts import Arranged, Request, as_laid_out, checked
from convgen.runtime.measure import measured_report
from convgen.runtime.native import Addressed
from convgen.runtime.report import Report, report_of
from convgen.runtime.shown import ShowsProgram
from convgen.runtime.special import Special
from convgen.runtime.threads import thread_count
from convgen.runtime.verify import Certificate, certify
from convgen.schedule.schedule import Schedule
from convgen.symbolic.expr import Tensor
from convgen.symbolic.program import Program
from convgen.target import Target
from convgen.target import target as target_of

__all__ = ["Built", "CompiledKernel", "Prepared", "build_program", "compile"]


def compile(
    program: Program,
    schedule: Schedule | str | None = None,
    target: Target | str = "native",
    threads: int | None = None,
    accuracy: float = 1e-4,
    layouts: Request = None,
) -> CompiledKernel:
    """Machine code for a program, called on arrays.

    schedule   None: chosen by the cost model; else a Schedule or its text
    target     native, x86-64-v2, x86-64-v3, x86-64-v4 or aarch64
    threads    None: as set_num_threads, CONVGEN_NUM_THREADS or the cores say
    accuracy   largest error allowed, relative to the largest output; direct kernels stay below
               1e-5 in float32, algorithms that round more are used only where this allows (so
               far every kernel is direct)

    layouts    None: arrays are row-major as the formula has them; {"X": "acdb"}: such an array lies
               in memory so (see `runtime.layouts`); "preferred": all but weights as the cost model
               likes them best. `kernel.layouts` says how, `to_layout` and `from_layout` convert

    Symbolic sizes are read off the arrays at each call; every combination is compiled once.

    Raises ShapeError, ScheduleError, TargetError; DataError for threads or accuracy out of range.

    >>> import numpy as np
    >>> from convgen.symbolic.dsl import axes, define, sum_over, tensor
    >>> i, j = axes("i j")
    >>> A, v = tensor("A", (2, 3)), tensor("v", (3,))
    >>> kernel = compile(define("y", [i], sum_over(j, A[i, j] * v[j])))
    >>> kernel(np.ones((2, 3), np.float32), np.array([1, 2, 3], np.float32))
    array([6., 6.], dtype=float32)
    """
    if not isinstance(accuracy, (int, float)) or not 0 < accuracy < float("inf"):
        raise DataError(f"accuracy={accuracy!r}", expected="a number above 0", got=repr(accuracy))
    thread_count(threads)
    return CompiledKernel(program, schedule, target_of(target), threads, accuracy, layouts)


_ndarray = np.ndarray
_shape = attrgetter("shape")
_SLOW = object()  # a call that needs a closer look


class CompiledKernel(Addressed, Arranged, ShowsProgram):
    """A program as a function: ``kernel(x, w, b)`` in the order of its inputs, or by name.

    Results are new arrays: one array, a tuple of several (outputs, then what is saved for
    backward), or None when there are only updates. ``out=`` takes arrays to write instead. A
    state that the program updates is changed in place. Calls from several threads are safe.
    """

    def __init__(
        self,
        program: Program,
        schedule: Schedule | str | None,
        target: Target,
        threads: int | None,
        accuracy: float,
        layouts: Request = None,
    ) -> None:
        self.program = program
        self.target = target
        self.threads = threads
        self.accuracy = accuracy
        self._request, self._wanted_layouts = schedule, layouts
        self._lock = threading.Lock()
        self._specials: dict[tuple[tuple[str, int], ...], Special] = {}
        self._updated = frozenset(state for state, _ in program.updates)
        self._copies: dict[tuple[str, str], int] = {}
        self._calls = self._packed = self._ahead = 0
        self._last: Special | None = None
        # By the shapes of the inputs; and by those of inputs and results.
        self._by_inputs: dict[tuple[tuple[object, ...], ...], Special] = {}
        self._by_arrays: dict[tuple[tuple[object, ...], ...], Special] = {}
        self._arity = len(program.inputs)
        self._inputs = program.inputs  # with the shapes of their arrays
        self._layout = checked(program, layouts)
        self._copiers: dict[str, CompiledKernel] = {}
        if not program.sizes():
            self._special({})

    def __reduce__(self) -> Any:
        """Copies, and kernels in another process, are made again (from the cache)."""
        made_from = (self.program, self._request, self.target, self.threads, self.accuracy)
        return CompiledKernel, (*made_from, self._wanted_layouts)

    # ------------------------------------------------------------------------------- calling

    def __call__(self, *inputs: Any, out: Any = None, **named: Any) -> Any:
        """Run on arrays. Inputs of another dtype, rank or shape are refused (DataError); strided
        or misaligned ones are copied, which the report counts."""
        if not named:
            found = self._quick(inputs, out)
            if found is not _SLOW:
                return found
        given, prepared = self._arrange(inputs, named)
        arrays = {n: as_array(a, self._input(n), self._where) for n, a in given.items()}
        sizes = bind_sizes(self._inputs, {n: a.shape for n, a in arrays.items()}, self._where)
        special = self._special(sizes)
        arrays = self._ready(special, arrays, prepared)
        results = self._outputs(special, out)
        written = [*results.items(), *((n, arrays[n]) for n in arrays if n in self._updated)]
        read = [(n, a) for n, a in arrays.items() if n not in self._updated]
        check_apart(written, read, self._where)
        shapes = tuple(map(_shape, arrays.values()))
        if not special.padded:
            self._by_inputs[shapes] = special
        self._by_arrays[shapes + tuple(map(_shape, results.values()))] = special
        if prepared and len(inputs) == self._arity:
            self._remember_handles(special, inputs, arrays, results)
        ahead = special.ahead(prepared, list(given.values()))
        self._run(special, addresses_of([*arrays.values(), *results.values()]), ahead)
        if out is None:
            made = tuple(results.values())
            return made[0] if len(made) == 1 else made or None
        return _as_given(out)

    def _quick(self, inputs: Sequence[Any], out: Any) -> Any:
        """The call when all is as it should be: every array an ndarray that needs no copy, of
        shapes that were called before; else _SLOW. Saves most of a small call's time."""
        if out is None:
            known, given = self._by_inputs, inputs
        else:
            known = self._by_arrays
            given = (*inputs, out) if out.__class__ is _ndarray else (*inputs, *_several(out))
        try:
            special = known.get(tuple(map(_shape, given)))
        except (AttributeError, TypeError):
            return _SLOW
        if special is None or len(inputs) != self._arity:
            return _SLOW
        ahead: Prepared | None = None
        if special.handles:
            handles = [given[i] for i, _ in special.handles]
            given = list(given)
            for (i, name), handle in zip(special.handles, handles, strict=True):
                if handle.kernel is not self:
                    return _SLOW
                given[i] = handle.arrays.get(name)
            ahead = special.ahead(handles, given)
        for array, (dtype, flags) in zip(given, special.wanted, strict=False):
            if (
                array.__class__ is not _ndarray
                or array.dtype is not dtype
                or array.flags.num & flags != flags
            ):
                return _SLOW
        if out is None:
            made = [new_array(shape, dtype) for _, dtype, shape in special.results]
            found = addresses_of([*given, *made])
        else:
            made = ()
            found = addresses_of(given)
        if out is not None or self._updated:
            for i, size, j, other in special.apart:
                if found[i] < found[j] + other and found[j] < found[i] + size:
                    return _SLOW
        self._run(special, found, ahead)
        if out is None:
            return made[0] if len(made) == 1 else tuple(made) or None
        return out if out.__class__ is _ndarray else _as_given(out)

    def _remember_handles(
        self,
        special: Special,
        inputs: Sequence[Any],
        arrays: Mapping[str, Array],
        results: Mapping[str, Array],
    ) -> None:
        """Let later calls with prepared handles in the same places be quick."""
        given = list(zip(arrays, inputs, strict=False))
        handles = tuple((i, n) for i, (n, a) in enumerate(given) if isinstance(a, Prepared))
        special = replace(special, handles=handles)
        shapes = tuple(a.shape if isinstance(a, Prepared) else arrays[n].shape for n, a in given)
        if not special.padded:
            self._by_inputs[shapes] = special
        self._by_arrays[shapes + tuple(map(_shape, results.values()))] = special

    def prepare(self, **inputs: Any) -> Prepared:
        """Pack inputs that change rarely: ``packed = kernel.prepare(W=w); kernel(x, packed, b)``.

        DataError when the kernel packs further inputs together with these, or for a state.
        """
        if not inputs:
            raise DataError("prepare() of nothing", expected=self._names(), where=self._where)
        for name in inputs:
            if name in self._updated:
                raise DataError(
                    f"{name} is updated by the kernel and cannot be prepared", where=self._where
                )
        arrays = {
            n: np.array(as_array(a, self._input(n), self._where), order="C", copy=True)
            for n, a in inputs.items()
        }
        sizes = bind_sizes(self._inputs, {n: a.shape for n, a in arrays.items()}, self._where)
        if set(sizes) != set(self.program.sizes()):
            return Prepared(self, arrays, None, None)
        special = self._special(sizes)
        built = special.built
        if not built.packed:
            return Prepared(self, arrays, built, None)
        missing = [n for n in built.prepared if n not in arrays]
        if missing:
            raise DataError(
                f"the kernel packs {', '.join(missing)} too",
                expected=f"prepare({', '.join(f'{n}=...' for n in built.prepared)})",
                got=f"prepare({', '.join(f'{n}=...' for n in inputs)})",
                where=self._where,
            )
        # What a prepare phase does not touch is not there yet: any address will do.
        anywhere = addresses_of(list(arrays.values()))[0]
        given = [arrays.get(t.name) for t in self.program.inputs]
        addresses = [anywhere if a is None else a.ctypes.data for a in given]
        addresses += [anywhere] * len(special.results)
        return Prepared(self, arrays, built, special.caller.prepare(addresses, self.threads))

    # ------------------------------------------------------------------------------- looking

    @property
    def schedule(self) -> str:
        """The schedule as text; handed to compile again it gives the same kernel."""
        return self._shown().built.schedule

    @property
    def requested_schedule(self) -> Schedule | str | None:
        """The schedule that was asked for; None: the cost model's choice."""
        return self._request

    @property
    def loops(self) -> str:
        """The loops after scheduling."""
        return self._shown().built.text("loops")

    @property
    def llvm(self) -> str:
        """LLVM IR after optimization."""
        return self._shown().built.text("llvm")

    @property
    def asm(self) -> str:
        """Assembly."""
        return self._shown().built.text("asm")

    @property
    def packs(self) -> tuple[str, ...]:
        """Inputs that the kernel packs, which `prepare` does ahead."""
        return self._shown().built.prepared

    def report(self, measure: bool = False) -> Report:
        """What was made and how it was used; printable. The first one looks at the assembly, which
        takes some tenths of a second, once. measure: run the kernel on random arrays too."""
        special = self._shown()
        details = details_of(special.program, special.built)
        report = replace(
            report_of(special.built, details, thread_count(self.threads), self.accuracy),
            copied=tuple((n, why, times) for (n, why), times in sorted(self._copies.items())),
            calls=self._calls,
            packed_in_call=self._packed,
            prepared_calls=self._ahead,
        )
        return measured_report(self, report) if measure else report

    def certificate(self) -> Certificate:
        """What can be proved and checked of this kernel, done now and kept beside the cached
        object: see `runtime.verify`. Takes seconds; ``certificate().as_json()`` is the document."""
        special = self._shown()
        return certify(special.program, special.built, schedule_given=self._request is not None)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{t.name}: {t.dtype}{shape_text(t)}" for t in self.program.inputs)
        return f"<kernel {self.program.name}({inputs}) for {self.target.name}>"

    # ------------------------------------------------------------------------------- parts

    @property
    def _where(self) -> str:
        found = ", ".join(f"{n} {tag}" for n, tag in self.layouts.items())
        return f"kernel {self.program.name}" + (
            f" (layouts: {found}; to_layout())" if found else ""
        )

    @property
    def layouts(self) -> Mapping[str, str]:
        """The layouts of the arguments that are not row-major, as text."""
        return self._last.built.layouts if self._last is not None else {}

    def _compiled(self, program: Program, layouts: Mapping[str, str]) -> CompiledKernel:
        key = f"{program}{layouts}"
        if key not in self._copiers:
            self._copiers[key] = compile(program, None, self.target, self.threads, layouts=layouts)
        return self._copiers[key]

    def _names(self) -> str:
        return ", ".join(t.name for t in self.program.inputs)

    def _input(self, name: str) -> Tensor:
        for tensor in self._inputs:
            if tensor.name == name:
                return tensor
        raise DataError(f"there is no input {name!r}", expected=self._names(), where=self._where)

    def _shown(self) -> Special:
        if self._last is None:
            raise ShapeError(
                f"program {self.program.name} has open sizes {', '.join(self.program.sizes())}",
                hint="a call first, or compile(program.bind(...))",
            )
        return self._last

    def _special(self, sizes: Mapping[str, int]) -> Special:
        """The kernel for these sizes, made at their first use."""
        key = tuple(sorted(sizes.items()))
        with self._lock:
            found = self._specials.get(key)
            if found is None:
                missing = [s for s in self.program.sizes() if s not in sizes]
                if missing:
                    raise DataError(
                        f"no input gives the size {', '.join(missing)}",
                        where=self._where,
                        hint="compile(program.bind(...))",
                    )
                program = self.program.bind(**sizes) if sizes else self.program
                built = build_program(program, self.target, self._request, layout=self._layout)
                if built.layouts:
                    self._inputs = tuple(as_laid_out(t, built.layouts) for t in program.inputs)
                found = self._specials[key] = Special.of(program, built)
            self._last = found
            return found

    def _arrange(
        self, inputs: Sequence[Any], named: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[Prepared]]:
        """(input name -> array, prepared handles) of a call."""
        order = [t.name for t in self.program.inputs]
        if len(inputs) > len(order):
            raise DataError(
                "too many inputs",
                expected=f"{len(order)}: {self._names()}",
                got=str(len(inputs)),
                where=self._where,
            )
        given: dict[str, Any] = dict(zip(order, inputs, strict=False))
        for name, value in named.items():
            if name not in order or name in given:
                problem = "is given twice" if name in given else "is no input"
                raise DataError(f"{name} {problem}", expected=self._names(), where=self._where)
            given[name] = value
        prepared: list[Prepared] = []
        for name, value in list(given.items()):
            if isinstance(value, Prepared):
                if value.kernel is not self or name not in value.arrays:
                    raise DataError(
                        f"{value!r} does not stand for {name} of this kernel",
                        expected=f"what its own prepare({name}=...) gave",
                        where=self._where,
                    )
                if all(value is not p for p in prepared):
                    prepared.append(value)
                given[name] = value.arrays[name]
        for handle in prepared:
            for name, array in handle.arrays.items():
                given.setdefault(name, array)
        missing = [n for n in order if n not in given]
        if missing:
            raise DataError(
                f"{', '.join(missing)} missing",
                expected=f"{len(order)} inputs: {self._names()}",
                got=f"{len(given)}",
                where=self._where,
            )
        return {n: given[n] for n in order}, prepared

    def _ready(
        self, special: Special, arrays: Mapping[str, Array], prepared: Sequence[Prepared]
    ) -> dict[str, Array]:
        """The arrays as native code takes them: states checked, awkward inputs copied."""
        ready: dict[str, Array] = {}
        for name, array in arrays.items():
            if name in self._updated:
                dtype = self._input(name).dtype.numpy_name
                ready[name] = check_written(array, name, array.shape, dtype, self._where)
                continue
            ready[name], why = plain(array)
            if why:
                with self._lock:
                    self._copies[name, why] = self._copies.get((name, why), 0) + 1
        return ready

    def _outputs(self, special: Special, out: Any) -> dict[str, Array]:
        """Result name -> array: new ones, or those of the caller."""
        wanted = special.results
        if out is None:
            made = {name: new_array(shape, dtype) for name, dtype, shape in wanted}
            for name in special.padded:
                made[name].fill(0)
            return made
        several = isinstance(out, (tuple, list))
        arrays = list(cast("Sequence[Any]", out)) if several else [out]
        if len(arrays) != len(wanted):
            raise DataError(
                "out= has the wrong number of arrays",
                expected=f"{len(wanted)}: {', '.join(name for name, _, _ in wanted)}",
                got=str(len(arrays)),
                where=self._where,
            )
        return {
            name: check_written(a, f"out {name}", shape, str(dtype), self._where)
            for (name, dtype, shape), a in zip(wanted, arrays, strict=True)
        }

    def _run(self, special: Special, addresses: Sequence[int], ahead: Prepared | None) -> None:
        """Run on the addresses of checked arrays: the inputs in order, then the results."""
        with self._lock:
            self._calls += 1
            if ahead is not None:
                self._ahead += 1
            elif special.built.packed:
                self._packed += 1
        special.caller.run(addresses, self.threads, 0 if ahead is None else ahead.address)


def _several(out: Any) -> Sequence[Any]:
    return cast("Sequence[Any]", out) if isinstance(out, (tuple, list)) else (out,)


def _as_given(out: Any) -> Any:
    """What a call with out= returns: the caller's own objects."""
    made = tuple(_several(out))
    return made[0] if len(made) == 1 else made or None
