"""A kernel as one C function: an address for ctypes, cffi, numba, or any program in the process.

    void NAME(const float *X, const float *W, float *Y, void *workspace)

The arrays are the inputs and then the results in the program's order, C-contiguous; the workspace
has `workspace_bytes` bytes, zero before its first use and then left alone. The function runs in the
calling thread, allocates nothing, keeps nothing, and may run in several threads at a time, each
with a workspace of its own. Nothing is checked.
"""

from __future__ import annotations

import ctypes
import re
from typing import Any, Protocol

from convgen.backends.llvm import LlvmBackend
from convgen.backends.protocol import Backend, Part
from convgen.errors import TargetError
from convgen.ir.layout import ALIGNMENT
from convgen.runtime.build import Built
from convgen.target import runs_here
from convgen.types import DType, dtype_of

_C_TYPES = {"f32": "float", "f64": "double", "bool": "bool"}


def _c_type(dtype: DType) -> str:
    if str(dtype) in _C_TYPES:
        return _C_TYPES[str(dtype)]
    return f"{'u' if str(dtype).startswith('u') else ''}int{8 * dtype.bytes}_t"


class NativeFunction:
    """The C function of a built program; made when it is first asked for, lives as long as this."""

    def __init__(self, built: Built, names: tuple[str, ...]) -> None:
        if not runs_here(built.target):
            raise TargetError(
                f"kernel {built.name} was made for another machine",
                expected="target='native'",
                got=built.target.name,
                hint="convgen.export for files that another machine links",
            )
        self.built, self.names = built, names
        self._scratch = -(-built.workspace_bytes // ALIGNMENT) * ALIGNMENT
        scratch = max((e.scratch_bytes for e in built.entries), default=0)
        self.workspace_bytes = self._scratch + scratch + ALIGNMENT
        backend: Backend = LlvmBackend()
        own = {e.symbol: f"phase{i}" for i, e in enumerate(built.entries)}
        part = Part(built.text("llvm"), built.target, own)
        _, code = backend.join(self._text(), [part], built.target)
        self._library = backend.load(code, built.target)
        self.address = self._library.address("convgen_function")
        self.ctypes = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (len(names) + 1))(self.address)
        self.ctypes._keep = self._library  # type: ignore[attr-defined]
        self.declaration = self._declare()

    def _text(self) -> str:
        """The function as an LLVM module: fill the argument table, run the phases."""
        count = len(self.built.arguments)
        given = ", ".join(f"ptr %a{i}" for i in range(len(self.names)))
        phases = range(len(self.built.entries))
        lines = [
            f'target triple = "{self.built.target.llvm_triple}"',
            "declare ptr @llvm.ptrmask.p0.i64(ptr, i64)",
            *(f"declare void @phase{i}(ptr, ptr, i64, i64)" for i in phases),
            f"define void @convgen_function({given}, ptr %given) {{",
            f"  %table = alloca [{max(count, 1)} x ptr], align 16",
            f"  %past = getelementptr i8, ptr %given, i64 {ALIGNMENT - 1}",
            f"  %base = call ptr @llvm.ptrmask.p0.i64(ptr %past, i64 -{ALIGNMENT})",
            f"  %scratch = getelementptr i8, ptr %base, i64 {self._scratch}",
        ]
        for i, argument in enumerate(self.built.arguments):
            value = f"%w{i}"
            if argument.name in self.names:
                value = f"%a{self.names.index(argument.name)}"
            else:
                offset = self.built.offsets[argument.name]
                lines.append(f"  {value} = getelementptr i8, ptr %base, i64 {offset}")
            lines.append(f"  %p{i} = getelementptr ptr, ptr %table, i64 {i}")
            lines.append(f"  store ptr {value}, ptr %p{i}")
        lines += [
            f"  call void @phase{i}(ptr %table, ptr %scratch, i64 0, i64 {entry.extent})"
            for i, entry in enumerate(self.built.entries)
            if entry.extent > 0
        ]
        return "\n".join([*lines, "  ret void", "}", ""])

    def _declare(self) -> str:
        known = {a.name: a for a in self.built.arguments}
        words: list[str] = []
        for i, name in enumerate(self.names):
            # An input that the kernel does not read is no argument of its.
            kind, role = "void", "input"
            if name in known:
                kind, role = _c_type(dtype_of(known[name].dtype)), known[name].role
            label = name if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) else f"argument{i}"
            words.append(f"{'const ' if role in ('input', 'parameter') else ''}{kind} *{label}")
        title = re.sub(r"\W", "_", self.built.name, flags=re.ASCII)
        return f"typedef void (*{title}_kernel)({', '.join(words)}, void *workspace);"


class _Caller(Protocol):
    @property
    def function(self) -> NativeFunction: ...


class _Shown(Protocol):
    @property
    def caller(self) -> _Caller: ...


class Addressed:
    """What a compiled kernel offers to callers that are not Python."""

    def _shown(self) -> _Shown:
        raise TypeError("a kernel says which function it shows")

    @property
    def address(self) -> int:
        """The address of the kernel as a C function (see `cffi_declaration` for its type): the
        arrays in order, then a workspace. Valid as long as the kernel lives. It runs in the
        calling thread and checks nothing."""
        return self._shown().caller.function.address

    @property
    def ctypes(self) -> Any:
        """The function of `address` for ctypes; takes addresses of arrays."""
        return self._shown().caller.function.ctypes

    @property
    def cffi_declaration(self) -> str:
        """The type of `address` in C: ``ffi.cdef(kernel.cffi_declaration)``, then
        ``ffi.cast("NAME_kernel", kernel.address)``."""
        return self._shown().caller.function.declaration

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the workspace that calls of `address` need, zero before the first use."""
        return self._shown().caller.function.workspace_bytes
