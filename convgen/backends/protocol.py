"""What a backend is, and what it hands back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from convgen.errors import TargetError
from convgen.ir.nodes import Kernel
from convgen.target import Target


@dataclass(frozen=True, slots=True)
class Argument:
    """One pointer of the argument table: a buffer of the kernel and the bytes it occupies."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One phase: ``void symbol(void **args, void *scratch, int64 begin, int64 end)`` runs the tasks
    begin..end-1 of `extent`, at least `grain` at a time. `when` is prepare or run.
    """

    symbol: str
    phase: str
    extent: int
    grain: int
    scratch_bytes: int
    when: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """A kernel as machine code for one target.

    entries     the phases in order
    signature   the argument table, in order
    ir          LLVM IR after optimization; `asm` is made from it when asked for
    object      an object file; `digest` is its SHA-256
    """

    name: str
    target: str
    entries: tuple[Entry, ...]
    signature: tuple[Argument, ...]
    ir: str = field(repr=False)
    assemble: Callable[[str], str] = field(repr=False, compare=False)
    object: bytes = field(repr=False)
    digest: str = ""

    @property
    def asm(self) -> str:
        """The assembly, as the object has it."""
        return self.assemble(self.ir)

    @property
    def scratch_bytes(self) -> int:
        """Scratch that one worker needs for any phase."""
        return max((e.scratch_bytes for e in self.entries), default=0)


@dataclass(frozen=True, slots=True)
class Part:
    """An optimized module to be joined with others: `names` maps its entries to new names."""

    ir: str = field(repr=False)
    target: Target
    names: Mapping[str, str]


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Loaded(Protocol):
    """Machine code in this process, alive as long as this object."""

    def address(self, symbol: str) -> int: ...


class Backend(Protocol):
    """Turns FLAT kernels into artifacts, and artifacts into callable code."""

    name: str

    def version(self) -> str:
        """Part of every cache key."""
        ...

    def compile_kernel(self, kernel: Kernel, target: Target) -> Artifact: ...

    def compile_text(
        self, text: str, target: Target, allowed: frozenset[str] | None = None
    ) -> tuple[str, bytes]:
        """(ir, object) of a module written by hand, such as the thread pool. `allowed` are
        the outside symbols it may need; None: those a kernel may."""
        ...

    def join(
        self,
        text: str,
        parts: Sequence[Part],
        target: Target,
        allowed: frozenset[str] | None = None,
    ) -> tuple[str, bytes]:
        """(ir, object) of a module written by hand together with optimized kernels, which keep
        their own instruction sets and are not seen from outside."""
        ...

    def assembly(self, ir: str, target: Target) -> str:
        """The assembly of a module that is optimized already."""
        ...

    def load(self, data: bytes, target: Target) -> Loaded: ...


_makers: dict[str, Callable[[], Backend]] = {}


def register(name: str, maker: Callable[[], Backend]) -> None:
    """Make a backend known under a name."""
    _makers[name] = maker


def backend(name: str = "llvm") -> Backend:
    """The backend of that name; TargetError lists the names there are."""
    if name not in _makers:
        raise TargetError(
            f"unknown backend {name!r}", expected="one of " + " ".join(sorted(_makers))
        )
    return _makers[name]()
