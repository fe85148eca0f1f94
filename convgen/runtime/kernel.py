"""`compile`: a program as a function on NumPy arrays."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from convgen.errors import DataError, InternalError, ShapeError
from convgen.runtime.arrays import (
    Array,
    as_array,
    bind_sizes,
    check_apart,
    check_written,
    plain,
    shape_text,
)
from convgen.runtime.build import Built, build_program
from convgen.runtime.report import PhaseRow, Report
from convgen.runtime.threads import Table, thread_count
from convgen.schedule.schedule import Schedule
from convgen.symbolic.expr import Tensor
from convgen.symbolic.program import Program
from convgen.target import Target
from convgen.target import target as target_of

__all__ = ["Built", "CompiledKernel", "Prepared", "build_program", "compile"]

_ALIGN = 64


def compile(
    program: Program,
    schedule: Schedule | str | None = None,
    target: Target | str = "native",
    threads: int | None = None,
    accuracy: float = 1e-4,
) -> CompiledKernel:
    """Machine code for a program, called on arrays.

    schedule   None: chosen by the cost model; else a Schedule or its text
    target     native, x86-64-v2, x86-64-v3, x86-64-v4 or aarch64
    threads    None: as set_num_threads, CONVGEN_NUM_THREADS or the cores say
    accuracy   largest error allowed, relative to the largest output; direct kernels stay below
               1e-5 in float32, algorithms that round more are used only where this allows

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
    if not 0 < accuracy < float("inf"):
        raise DataError(f"accuracy={accuracy!r}", expected="a number above 0", got=repr(accuracy))
    thread_count(threads)
    return CompiledKernel(program, schedule, target_of(target), threads, accuracy)


@dataclass(frozen=True)
class Prepared:
    """Inputs packed ahead by `CompiledKernel.prepare`; stands for them in calls of that kernel.

    It keeps its own copy: later changes of the arrays it was made from do not matter.
    """

    kernel: CompiledKernel
    arrays: Mapping[str, Array]
    built: Built | None
    workspace: Array | None

    def __repr__(self) -> str:
        return f"Prepared({', '.join(self.arrays)})"


class _Context:
    """One call's memory: workspace, argument tables of both kinds of call. Used by one call at a
    time, then by another."""

    def __init__(self, built: Built) -> None:
        self.workspace = _zeros(built.workspace_bytes)
        blank = [0] * len(built.arguments)
        self.whole = Table([(built, blank)])
        self.after = Table([(built, blank)], when="run")


def _zeros(size: int) -> Array:
    """Zero bytes that start at a multiple of 64."""
    raw = np.zeros(size + _ALIGN, np.uint8)
    start = -raw.ctypes.data % _ALIGN
    return raw[start : start + size]


@dataclass
class _Special:
    """The kernel for one binding of the sizes, with contexts that are free."""

    program: Program
    built: Built
    free: list[_Context]


class CompiledKernel:
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
    ) -> None:
        self.program = program
        self.target = target
        self.threads = threads
        self.accuracy = accuracy
        self._request = schedule
        self._lock = threading.Lock()
        self._specials: dict[tuple[tuple[str, int], ...], _Special] = {}
        self._updated = frozenset(state for state, _ in program.updates)
        self._results = _results(program)
        self._copies: dict[tuple[str, str], int] = {}
        self._calls = self._packed = self._ahead = 0
        self._last: _Special | None = None
        if not program.sizes():
            self._special({})

    # ------------------------------------------------------------------------------- calling

    def __call__(self, *inputs: Any, out: Any = None, **named: Any) -> Any:
        """Run on arrays. Inputs of another dtype, rank or shape are refused (DataError); strided
        or misaligned ones are copied, which the report counts."""
        given, prepared = self._arrange(inputs, named)
        arrays = {n: as_array(a, self._input(n), self._where) for n, a in given.items()}
        sizes = bind_sizes(
            self.program.inputs, {n: a.shape for n, a in arrays.items()}, self._where
        )
        special = self._special(sizes)
        arrays = self._ready(special, arrays, prepared)
        results = self._outputs(special, out)
        written = [*results.items(), *((n, arrays[n]) for n in arrays if n in self._updated)]
        read = [(n, a) for n, a in arrays.items() if n not in self._updated]
        check_apart(written, read, self._where)
        self._run(special, {**arrays, **results}, prepared)
        found = tuple(results.values())
        return found[0] if len(found) == 1 else found or None

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
        sizes = bind_sizes(
            self.program.inputs, {n: a.shape for n, a in arrays.items()}, self._where
        )
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
        workspace = _zeros(built.workspace_bytes)
        # What a prepare phase does not touch is not there yet: any address will do.
        absent = {t.name: workspace for t in self.program.inputs if t.name not in arrays}
        absent |= dict.fromkeys(self._results, workspace)
        addresses = _addresses(built, {**absent, **arrays}, workspace, None)
        Table([(built, addresses)], when="prepare").run(self.threads)
        return Prepared(self, arrays, built, workspace)

    # ------------------------------------------------------------------------------- looking

    @property
    def schedule(self) -> str:
        """The schedule as text; handed to compile again it gives the same kernel."""
        return self._shown().built.schedule

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

    def report(self) -> Report:
        """What was made and how it was used; printable."""
        built = self._shown().built
        return Report(
            name=built.name,
            target=built.target.name,
            threads=thread_count(self.threads),
            accuracy=self.accuracy,
            schedule=built.schedule,
            phases=tuple(
                PhaseRow(e.phase, e.extent, e.grain, e.scratch_bytes, e.when) for e in built.entries
            ),
            object_bytes=len(built.object),
            workspace_bytes=built.workspace_bytes,
            build_seconds=built.seconds,
            from_cache=built.from_cache,
            notes=built.notes,
            packs=built.prepared,
            copied=tuple((n, why, times) for (n, why), times in sorted(self._copies.items())),
            calls=self._calls,
            packed_in_call=self._packed,
            prepared_calls=self._ahead,
        )

    def __repr__(self) -> str:
        inputs = ", ".join(f"{t.name}: {t.dtype}{shape_text(t)}" for t in self.program.inputs)
        return f"<kernel {self.program.name}({inputs}) for {self.target.name}>"

    # ------------------------------------------------------------------------------- parts

    @property
    def _where(self) -> str:
        return f"kernel {self.program.name}"

    def _names(self) -> str:
        return ", ".join(t.name for t in self.program.inputs)

    def _input(self, name: str) -> Tensor:
        for tensor in self.program.inputs:
            if tensor.name == name:
                return tensor
        raise DataError(f"there is no input {name!r}", expected=self._names(), where=self._where)

    def _shown(self) -> _Special:
        if self._last is None:
            raise ShapeError(
                f"program {self.program.name} has open sizes {', '.join(self.program.sizes())}",
                hint="a call first, or compile(program.bind(...))",
            )
        return self._last

    def _special(self, sizes: Mapping[str, int]) -> _Special:
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
                built = build_program(program, self.target, self._request)
                found = self._specials[key] = _Special(program, built, [])
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
        self, special: _Special, arrays: Mapping[str, Array], prepared: Sequence[Prepared]
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

    def _outputs(self, special: _Special, out: Any) -> dict[str, Array]:
        """Result name -> array: new ones, or those of the caller."""
        tensors = [special.program.tensor(name) for name in self._results]
        shapes = [cast("tuple[int, ...]", t.shape) for t in tensors]
        if out is None:
            return {
                t.name: np.empty(s, t.dtype.numpy_name)
                for t, s in zip(tensors, shapes, strict=True)
            }
        several = isinstance(out, (tuple, list))
        arrays = list(cast("Sequence[Any]", out)) if several else [out]
        if len(arrays) != len(tensors):
            raise DataError(
                "out= has the wrong number of arrays",
                expected=f"{len(tensors)}: {', '.join(self._results)}",
                got=str(len(arrays)),
                where=self._where,
            )
        return {
            t.name: check_written(a, f"out {t.name}", s, t.dtype.numpy_name, self._where)
            for t, s, a in zip(tensors, shapes, arrays, strict=True)
        }

    def _run(
        self, special: _Special, arrays: Mapping[str, Array], prepared: Sequence[Prepared]
    ) -> None:
        built = special.built
        ahead = next((p for p in prepared if p.built is built and p.workspace is not None), None)
        with self._lock:
            context = special.free.pop() if special.free else None
            self._calls += 1
            if built.packed:
                self._ahead += ahead is not None
                self._packed += ahead is None
        context = context or _Context(built)
        table = context.whole if ahead is None else context.after
        table.bind(0, _addresses(built, arrays, context.workspace, ahead))
        table.run(self.threads)
        with self._lock:
            special.free.append(context)


def _results(program: Program) -> tuple[str, ...]:
    names = dict.fromkeys(t.name for t in program.outputs)
    names.update(dict.fromkeys(program.saved))
    return tuple(names)


def _addresses(
    built: Built, arrays: Mapping[str, Array], workspace: Array, ahead: Prepared | None
) -> list[int]:
    """The argument table: callers' arrays by name, everything else in the workspace. What a
    prepare phase writes lies in the workspace of the handle, if there is one."""
    base = workspace.ctypes.data
    packed = base
    if ahead is not None and ahead.workspace is not None:
        packed = ahead.workspace.ctypes.data
    addresses: list[int] = []
    for argument in built.arguments:
        array = arrays.get(argument.name)
        if array is not None:
            addresses.append(array.ctypes.data)
        elif argument.name in built.offsets:
            start = packed if argument.name in built.packed else base
            addresses.append(start + built.offsets[argument.name])
        else:
            raise InternalError(f"nothing to bind {argument.name} to", stage="kernel")
    return addresses
