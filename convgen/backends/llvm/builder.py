"""The text of one LLVM function while it is written: fresh names, blocks, declarations."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

from convgen.types import DType

_FLOATS = {32: "float", 64: "double"}


@dataclass(frozen=True, slots=True)
class Value:
    """An SSA value or literal: `text` as written, element `dtype`, `lanes`.

    Booleans are i1 in registers and i8 (0 or 1) in memory.
    """

    text: str
    dtype: DType
    lanes: int = 1

    @property
    def type(self) -> str:
        return vector_type(element_type(self.dtype), self.lanes)

    @property
    def typed(self) -> str:
        return f"{self.type} {self.text}"


def element_type(dtype: DType) -> str:
    """The LLVM type of an element in a register."""
    if dtype.kind == "bool":
        return "i1"
    return _FLOATS[dtype.bits] if dtype.is_float else f"i{dtype.bits}"


def memory_type(dtype: DType) -> str:
    """The LLVM type of an element in memory."""
    return "i8" if dtype.kind == "bool" else element_type(dtype)


def vector_type(element: str, lanes: int) -> str:
    return element if lanes == 1 else f"<{lanes} x {element}>"


def suffix(element: str, lanes: int) -> str:
    """The mangled type in an intrinsic's name: v16f32, f64, v4i32."""
    short = {"float": "f32", "double": "f64"}.get(element, element)
    return short if lanes == 1 else f"v{lanes}{short}"


def literal(value: float, dtype: DType) -> str:
    """A number as LLVM writes it; floats in the hexadecimal form of their double.

    >>> from convgen.types import f32, u8
    >>> literal(0.1, f32), literal(255, u8)
    ('0x3FB99999A0000000', '-1')
    """
    if dtype.kind == "bool":
        return "true" if value else "false"
    if dtype.is_float:
        number = float(value)
        if dtype.bits == 32 and math.isfinite(number):
            try:
                number = struct.unpack("<f", struct.pack("<f", number))[0]
            except OverflowError:
                number = math.copysign(math.inf, number)
        if math.isnan(number):
            return "0x7FF8000000000000"
        return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"
    wrapped = int(value) & ((1 << dtype.bits) - 1)
    return str(wrapped - (1 << dtype.bits) if wrapped >> (dtype.bits - 1) else wrapped)


@dataclass
class Builder:
    """Lines of a function body. `declarations` is shared by all functions of a module."""

    declarations: dict[str, str]
    lines: list[str] = field(default_factory=list[str])
    block: str = "%entry"
    _count: int = 0

    def fresh(self, hint: str = "v") -> str:
        self._count += 1
        return f"%{hint}{self._count}"

    def emit(self, line: str) -> None:
        self.lines.append("  " + line)

    def assign(self, instruction: str, hint: str = "v") -> str:
        """A new name for the result of an instruction."""
        name = self.fresh(hint)
        self.lines.append(f"  {name} = {instruction}")
        return name

    def label(self, name: str) -> None:
        """Start a block."""
        self.lines.append(f"{name[1:]}:")
        self.block = name

    def jump(self, target: str) -> None:
        self.emit(f"br label {target}")

    def branch(self, condition: str, yes: str, no: str) -> None:
        self.emit(f"br i1 {condition}, label {yes}, label {no}")

    def call(self, name: str, result: str, args: list[tuple[str, str]]) -> str:
        """Call an intrinsic, declaring it on first use; args are (type, text)."""
        types = ", ".join(t for t, _ in args)
        self.declarations.setdefault(name, f"declare {result} @{name}({types})")
        text = ", ".join(f"{t} {v}" for t, v in args)
        if result == "void":
            self.emit(f"call void @{name}({text})")
            return ""
        return self.assign(f"call {result} @{name}({text})")

    def splat(self, value: Value, lanes: int) -> Value:
        """A scalar in every lane."""
        if lanes == 1:
            return value
        if not value.text.startswith("%"):
            element = element_type(value.dtype)
            if value.text == literal(0, value.dtype):
                return Value("zeroinitializer", value.dtype, lanes)
            return Value(f"splat ({element} {value.text})", value.dtype, lanes)
        kind = vector_type(element_type(value.dtype), lanes)
        first = self.assign(f"insertelement {kind} poison, {value.typed}, i64 0")
        name = self.assign(
            f"shufflevector {kind} {first}, {kind} poison, <{lanes} x i32> zeroinitializer"
        )
        return Value(name, value.dtype, lanes)

    def extract(self, value: Value, lane: int) -> Value:
        """One lane of a vector."""
        if value.lanes == 1:
            return value
        return Value(self.assign(f"extractelement {value.typed}, i64 {lane}"), value.dtype)

    def insert(self, vector: Value, value: Value, lane: int) -> Value:
        name = self.assign(f"insertelement {vector.typed}, {value.typed}, i64 {lane}")
        return Value(name, vector.dtype, vector.lanes)

    def constant(self, value: float, dtype: DType, lanes: int = 1) -> Value:
        return self.splat(Value(literal(value, dtype), dtype), lanes)
