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


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where an argument's address comes from: array number `array`, or (-1) `offset` bytes into the
    workspace, the handle's own one if it was prepared `ahead`."""

    array: int
    offset: int = 0
    ahead: bool = False


@dataclass
class _Special:
    """The kernel for one binding of the sizes, with contexts that are free.

    wanted   dtype and shape of each input; results: name, dtype and shape of each result
    """

    built: Built
    wanted: tuple[tuple[np.dtype[Any], tuple[int, ...]], ...]
    results: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]
    slots: tuple[_Slot, ...]
    free: list[_Context]

    @staticmethod
    def of(program: Program, built: Built) -> _Special:
        names = [*dict.fromkeys([*(t.name for t in program.outputs), *program.saved])]
        facts = {
            name: (np.dtype(t.dtype.numpy_name), cast("tuple[int, ...]", t.shape))
            for name, t in program.tensors().items()
        }
        inputs = [t.name for t in program.inputs]
        return _Special(
            built,
            tuple(facts[n] for n in inputs),
            tuple((n, *facts[n]) for n in names),
            _slots(built, [*inputs, *names]),
            [],
        )


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
        self._copies: dict[tuple[str, str], int] = {}
        self._calls = self._packed = self._ahead = 0
        self._last: _Special | None = None
        if not program.sizes():
            self._special({})

    # ------------------------------------------------------------------------------- calling

    def __call__(self, *inputs: Any, out: Any = None, **named: Any) -> Any:
        """Run on arrays. Inputs of another dtype, rank or shape are refused (DataError); strided
        or misaligned ones are copied, which the report counts."""
        if out is None and not named:
            found = self._quick(inputs)
            if found is not None:
                return found
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
        self._run(special, [*arrays.values(), *results.values()], prepared)
        made = tuple(results.values())
        return made[0] if len(made) == 1 else made or None

    def _quick(self, inputs: Sequence[Any]) -> Any:
        """The call when all is as it should be: every input an array that needs no copy, sizes and
        states none. None when a closer look is needed. Saves most of a small call's time."""
        special = self._last
        if special is None or self._updated or len(inputs) != len(special.wanted):
            return None
        for value, (dtype, shape) in zip(inputs, special.wanted, strict=True):
            if type(value) is not np.ndarray or value.dtype != dtype or value.shape != shape:
                return None
            if not (value.flags.c_contiguous and value.flags.aligned):
                return None
        made = [np.empty(shape, dtype) for _, dtype, shape in special.results]
        self._run(special, [*inputs, *made], ())
        return made[0] if len(made) == 1 else tuple(made)

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
        given = [arrays.get(t.name, workspace) for t in self.program.inputs]
        given += [workspace] * len(special.results)
        addresses = _addresses(special.slots, given, workspace, None)
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
                found = self._specials[key] = _Special.of(program, built)
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
        wanted = special.results
        if out is None:
            return {name: np.empty(shape, dtype) for name, dtype, shape in wanted}
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

    def _run(
        self, special: _Special, arrays: Sequence[Array], prepared: Sequence[Prepared]
    ) -> None:
        """Run on checked arrays: the inputs in order, then the results."""
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
        table.bind(0, _addresses(special.slots, arrays, context.workspace, ahead))
        table.run(self.threads)
        with self._lock:
            special.free.append(context)


def _slots(built: Built, names: Sequence[str]) -> tuple[_Slot, ...]:
    """Where each argument's address comes from, when arrays come in the order of `names`."""
    slots: list[_Slot] = []
    for argument in built.arguments:
        if argument.name in names:
            slots.append(_Slot(names.index(argument.name)))
        elif argument.name in built.offsets:
            ahead = argument.name in built.packed
            slots.append(_Slot(-1, built.offsets[argument.name], ahead))
        else:
            raise InternalError(f"nothing to bind {argument.name} to", stage="kernel")
    return tuple(slots)


def _addresses(
    slots: Sequence[_Slot], arrays: Sequence[Array], workspace: Array, ahead: Prepared | None
) -> list[int]:
    """The argument table. What a prepare phase writes lies in the workspace of the handle, if
    there is one."""
    base = packed = workspace.ctypes.data
    if ahead is not None and ahead.workspace is not None:
        packed = ahead.workspace.ctypes.data
    return [
        arrays[slot.array].ctypes.data
        if slot.array >= 0
        else (packed if slot.ahead else base) + slot.offset
        for slot in slots
    ]
