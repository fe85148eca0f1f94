"""The LLVM backend: FLAT kernels to object code through llvmlite. Nothing else speaks to it."""

from __future__ import annotations

from collections.abc import Sequence

from convgen.backends.llvm.emit import arguments, module_text, symbols
from convgen.backends.llvm.machine import (
    ALLOWED_SYMBOLS,
    Library,
    assemble,
    assembly,
    compile_text,
    join,
    version,
)
from convgen.backends.protocol import Argument, Artifact, Entry, Part, digest_of, register
from convgen.ir.layout import scratch_offsets, size_in_bytes
from convgen.ir.nodes import Kernel
from convgen.target import Target

__all__ = ["LlvmBackend", "assemble", "compile_kernel", "load", "module_text"]


def compile_kernel(kernel: Kernel, target: Target) -> Artifact:
    """Machine code of a FLAT kernel; InternalError when it breaks a rule of its form."""
    made = compile_text(module_text(kernel, target), target)
    _, scratch = scratch_offsets(kernel.buffers)
    entries = tuple(
        Entry(
            symbol,
            phase.name,
            phase.extent,
            max(phase.grain, 1),
            max(scratch, phase.scratch_bytes),
            phase.when,
        )
        for phase, symbol in zip(kernel.phases, symbols(kernel), strict=True)
    )
    signature = tuple(
        Argument(b.name, b.dtype.name, b.shape, b.role, size_in_bytes(b)) for b in arguments(kernel)
    )
    return Artifact(
        kernel.name,
        target.name,
        entries,
        signature,
        made.ir_text,
        lambda ir: assembly(ir, target),
        made.object_bytes,
        digest_of(made.object_bytes),
    )


def load(data: bytes, target: Target) -> Library:
    """Object code as callable addresses in this process."""
    return Library(data, target)


class LlvmBackend:
    """The backend named llvm."""

    name = "llvm"

    def version(self) -> str:
        return version()

    def compile_kernel(self, kernel: Kernel, target: Target) -> Artifact:
        return compile_kernel(kernel, target)

    def compile_text(
        self, text: str, target: Target, allowed: frozenset[str] | None = None
    ) -> tuple[str, bytes]:
        made = compile_text(text, target, ALLOWED_SYMBOLS if allowed is None else allowed)
        return made.ir_text, made.object_bytes

    def join(
        self,
        text: str,
        parts: Sequence[Part],
        target: Target,
        allowed: frozenset[str] | None = None,
    ) -> tuple[str, bytes]:
        made = join(text, parts, target, ALLOWED_SYMBOLS if allowed is None else allowed)
        return made.ir_text, made.object_bytes

    def assembly(self, ir: str, target: Target) -> str:
        return assembly(ir, target)

    def load(self, data: bytes, target: Target) -> Library:
        return load(data, target)


register("llvm", LlvmBackend)
