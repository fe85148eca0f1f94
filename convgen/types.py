"""Element types, shared by formulas and kernels."""

from __future__ import annotations

from dataclasses import dataclass

from convgen.errors import FormulaError


@dataclass(frozen=True, slots=True)
class DType:
    """An element type: `name` as written in formulas (f32), `kind` (float int uint bool), `bits`.

    bool is stored as one byte holding 0 or 1.

    >>> f32.numpy_name, f32.bytes, f32.is_float
    ('float32', 4, True)
    """

    name: str
    kind: str
    bits: int

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        """True for signed and unsigned integers; bool is neither."""
        return self.kind in ("int", "uint")

    @property
    def numpy_name(self) -> str:
        return "bool" if self.kind == "bool" else f"{self.kind}{self.bits}"

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name


f32 = DType("f32", "float", 32)
f64 = DType("f64", "float", 64)
i32 = DType("i32", "int", 32)
i64 = DType("i64", "int", 64)
u8 = DType("u8", "uint", 8)
u16 = DType("u16", "uint", 16)
u32 = DType("u32", "uint", 32)
u64 = DType("u64", "uint", 64)
bool_ = DType("bool", "bool", 8)

DTYPES: dict[str, DType] = {d.name: d for d in (f32, f64, i32, i64, u8, u16, u32, u64, bool_)}
_BY_NUMPY: dict[str, DType] = {d.numpy_name: d for d in DTYPES.values()}


def dtype_of(value: object) -> DType:
    """The DType that a name ("f32", "float32"), a DType, or a NumPy dtype or scalar type means.

    >>> dtype_of("float64")
    f64
    """
    if isinstance(value, DType):
        return value
    # np.dtype("float32").name and np.float32.__name__ are both "float32".
    name = value if isinstance(value, str) else getattr(value, "name", None)
    name = str(name or getattr(value, "__name__", ""))
    found = DTYPES.get(name) or _BY_NUMPY.get(name)
    if found is None:
        raise FormulaError(
            f"unknown dtype {value!r}", expected="one of " + " ".join(DTYPES), got=repr(value)
        )
    return found


def promote(a: DType, b: DType) -> DType:
    """The dtype in which an operation on a and b is computed.

    Floats win over integers, wider over narrower; bool gives way to everything. Mixed signed and
    unsigned integers give the signed type that holds both, i64 at most.

    >>> promote(u8, f32), promote(i32, u32), promote(f32, f64), promote(i64, f32)
    (f32, i64, f64, f32)
    """
    if a == b:
        return a
    if a.kind == "bool":
        return b
    if b.kind == "bool":
        return a
    if a.is_float != b.is_float:
        return a if a.is_float else b
    if a.kind == b.kind:
        return a if a.bits >= b.bits else b
    signed, unsigned = (a, b) if a.kind == "int" else (b, a)
    return signed if signed.bits > unsigned.bits else i64


def smallest_unsigned(count: int) -> DType:
    """The smallest unsigned type that holds 0..count-1 (tap indices of max pooling).

    >>> smallest_unsigned(256), smallest_unsigned(257)
    (u8, u16)
    """
    for dtype in (u8, u16, u32):
        if count <= 1 << dtype.bits:
            return dtype
    return u64
