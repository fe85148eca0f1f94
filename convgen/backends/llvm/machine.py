"""LLVM itself: target machines, optimization, objects and their loading."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import llvmlite
import llvmlite.binding as llvm

from convgen.backends.llvm.elf import undefined_symbols
from convgen.errors import InternalError, TargetError
from convgen.target import Target

ALLOWED_SYMBOLS = frozenset({"memcpy", "memset"})


def version() -> str:
    """llvmlite and the LLVM inside it, for cache keys and reports."""
    return f"llvmlite {llvmlite.__version__}, LLVM {'.'.join(map(str, llvm.llvm_version_info))}"


@cache
def _initialize(everything: bool) -> None:
    if everything:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    else:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()


def _machine(target: Target) -> llvm.TargetMachine:
    """A target machine; position-independent, small code model."""
    _initialize(True)
    try:
        found = llvm.Target.from_triple(target.llvm_triple)
    except RuntimeError as problem:
        raise TargetError(
            f"LLVM has no target for {target.llvm_triple}", got=str(problem)
        ) from None
    return found.create_target_machine(
        cpu=target.llvm_cpu,
        features=target.llvm_features,
        opt=2,
        reloc="pic",
        codemodel="small",
    )


@dataclass(frozen=True, slots=True)
class Compiled:
    """What LLVM made of a module: optimized text and object."""

    ir_text: str
    object_bytes: bytes


def compile_text(text: str, target: Target, allowed: frozenset[str] = ALLOWED_SYMBOLS) -> Compiled:
    """Optimize a module and emit it. The loops are ours: LLVM neither unrolls nor vectorizes. Level
    1 gives the hot loops of level 2 in a quarter of its time: what level 2 adds (dead stores,
    global value numbering) looks for what kernels do not have.

    InternalError when LLVM refuses the text or the object needs symbols beyond `allowed`.
    """
    machine = _machine(target)
    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as problem:
        raise InternalError(str(problem), stage="llvm", dump=text) from None
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    options.slp_vectorization = False
    options.loop_vectorization = False
    options.loop_unrolling = False
    options.loop_interleaving = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    optimized = str(module)
    data = machine.emit_object(module)
    stray = sorted(undefined_symbols(data) - allowed)
    if stray:
        raise InternalError(
            f"the object needs {', '.join(stray)}; expected {', '.join(sorted(allowed))} at most",
            stage="llvm",
            dump=optimized,
        )
    return Compiled(optimized, data)


def assembly(optimized: str, target: Target) -> str:
    """The assembly of a module that `compile_text` has optimized."""
    return _machine(target).emit_assembly(llvm.parse_assembly(optimized))


class Library:
    """Object code loaded into this process; unloaded when the last reference goes."""

    def __init__(self, data: bytes, target: Target) -> None:
        module = llvm.parse_assembly(f'target triple = "{target.llvm_triple}"')
        self._engine = llvm.create_mcjit_compiler(module, _machine(target))
        self._object = llvm.ObjectFileRef.from_data(data)
        self._engine.add_object_file(self._object)
        self._engine.finalize_object()

    def address(self, symbol: str) -> int:
        """The address of a function; InternalError if there is none of that name."""
        found = self._engine.get_function_address(symbol)
        if not found:
            raise InternalError(f"the object has no function {symbol}", stage="load")
        return found
