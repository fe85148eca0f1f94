"""LLVM itself: target machines, optimization, objects and their loading."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import llvmlite
import llvmlite.binding as llvm

from convgen.backends.llvm.elf import undefined_symbols
from convgen.backends.protocol import Part
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
    passes = _passes(machine)
    passes.getModulePassManager().run(module, passes)
    return Compiled(str(module), _emit(machine, module, allowed))


def _passes(machine: llvm.TargetMachine) -> llvm.PassBuilder:
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    options.slp_vectorization = False
    options.loop_vectorization = False
    options.loop_unrolling = False
    options.loop_interleaving = False
    return llvm.create_pass_builder(machine, options)


def _emit(machine: llvm.TargetMachine, module: llvm.ModuleRef, allowed: frozenset[str]) -> bytes:
    data: bytes = machine.emit_object(module)
    stray = sorted(undefined_symbols(data) - allowed)
    if stray:
        raise InternalError(
            f"the object needs {', '.join(stray)}; expected {', '.join(sorted(allowed))} at most",
            stage="llvm",
            dump=str(module),
        )
    return data


def assembly(optimized: str, target: Target) -> str:
    """The assembly of a module that `compile_text` has optimized."""
    return _machine(target).emit_assembly(llvm.parse_assembly(optimized))


def assemble(text: str, target: Target) -> bytes:
    """The object of some assembly, for this machine's own instruction set."""
    llvm.initialize_native_asmparser()
    lines = (line.replace("\\", "\\5C").replace('"', "\\22") for line in text.splitlines())
    module = "\n".join(
        [f'target triple = "{target.llvm_triple}"', *(f'module asm "{line}"' for line in lines)]
    )
    return _emit(_machine(target), llvm.parse_assembly(module), ALLOWED_SYMBOLS)


def join(
    text: str, parts: Sequence[Part], target: Target, allowed: frozenset[str] = ALLOWED_SYMBOLS
) -> Compiled:
    """One module and object of `text` (optimized here) and parts that are optimized already. Every
    part keeps its own instruction set; its entries become private under their new names.
    """
    machine = _machine(target)
    # Names of types are those of the context: a fresh one, so that the text has no history.
    context = llvm.create_context()
    try:
        whole = llvm.parse_assembly(text, context=context)
        whole.verify()
        passes = _passes(machine)
        passes.getModulePassManager().run(whole, passes)
        for part in parts:
            module = llvm.parse_assembly(_for_target(part.ir, part.target), context=context)
            for old, new in part.names.items():
                module.get_function(old).name = new
            whole.link_in(module)
        for new in [n for part in parts for n in part.names.values()]:
            whole.get_function(new).linkage = "internal"
        whole.verify()
    except RuntimeError as problem:
        raise InternalError(str(problem), stage="llvm", dump=text) from None
    return Compiled(str(whole), _emit(machine, whole, allowed))


def _for_target(text: str, target: Target) -> str:
    """The module with its instruction set written on every function."""
    said = f'"target-cpu"="{target.llvm_cpu}"'
    if target.llvm_features:
        said += f' "target-features"="{target.llvm_features}"'
    return re.sub(r"^(attributes #\d+ = \{.*?) ?\}$", rf"\1 {said} }}", text, flags=re.MULTILINE)


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
