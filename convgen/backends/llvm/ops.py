"""Each operation of the kernel language as LLVM instructions."""

from __future__ import annotations

from collections.abc import Callable

from convgen.backends.llvm.builder import (
    Builder,
    Value,
    element_type,
    suffix,
    vector_type,
)
from convgen.errors import InternalError
from convgen.ir.nodes import Broadcast, Const, Expr, Op
from convgen.target import Target
from convgen.types import DType, bool_

_Emit = Callable[[Builder, Op, list[Value], Target], Value]


def emit_op(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
    """The value of an operation whose arguments are already there."""
    emit = _TABLE.get(op.name)
    if emit is None:
        raise InternalError(f"operation {op.name} was not expanded", stage="llvm")
    for a in args:
        if a.lanes != op.lanes:
            raise InternalError(
                f"{op.name}: expected {op.lanes} lanes, got {a.lanes}", stage="llvm", dump=str(op)
            )
    return emit(b, op, args, target)


def _result(b: Builder, op: Op, instruction: str) -> Value:
    return Value(b.assign(instruction), op.dtype, op.lanes)


def _binary(float_name: str, integer_name: str) -> _Emit:
    def emit(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
        name = float_name if args[0].dtype.is_float else integer_name
        return _result(b, op, f"{name} {args[0].typed}, {args[1].text}")

    return emit


def _intrinsic(b: Builder, op: Op, name: str, args: list[Value]) -> Value:
    kind = vector_type(element_type(op.dtype), op.lanes)
    full = f"llvm.{name}.{suffix(element_type(op.dtype), op.lanes)}"
    return Value(b.call(full, kind, [(a.type, a.text) for a in args]), op.dtype, op.lanes)


def _unary_intrinsic(name: str) -> _Emit:
    def emit(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
        return _intrinsic(b, op, name, args)

    return emit


def _fma(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
    if not op.dtype.is_float or not target.has_fma:
        times, plus = ("fmul", "fadd") if op.dtype.is_float else ("mul", "add")
        product = b.assign(f"{times} {args[0].typed}, {args[1].text}")
        return _result(b, op, f"{plus} {args[2].type} {product}, {args[2].text}")
    return _intrinsic(b, op, "fma", args)


def _neg(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
    if op.dtype.is_float:
        return _result(b, op, f"fneg {args[0].typed}")
    zero = b.constant(0, op.dtype, op.lanes)
    return _result(b, op, f"sub {zero.typed}, {args[0].text}")


def _abs(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
    if op.dtype.is_float:
        return _intrinsic(b, op, "fabs", args)
    if op.dtype.kind != "int":
        return args[0]
    full = f"llvm.abs.{suffix(element_type(op.dtype), op.lanes)}"
    typed = [(args[0].type, args[0].text), ("i1", "false")]
    return Value(b.call(full, args[0].type, typed), op.dtype, op.lanes)


def _is_number(expr: Expr) -> bool:
    """A constant that is not NaN."""
    if isinstance(expr, Broadcast):
        expr = expr.value
    return isinstance(expr, Const) and expr.value == expr.value


# Bits of a vector -> instruction family and what its names end in.
_EXTREME = {128: ("sse", ""), 256: ("avx", ".256"), 512: ("avx512", ".512")}


def _family(family: str, kind: str) -> str:
    return "sse2" if (family, kind) == ("sse", "pd") else family


def _is_literal(value: Value) -> bool:
    """A constant of LLVM's that is not NaN."""
    return not value.text.startswith("%") and "7FF8" not in value.text


def _extreme(float_test: str, integer_name: str, intrinsic: str) -> _Emit:
    """max and min. On x86 the compare and select become one vmaxps whose second operand wins when
    unordered: with a constant that is all; else a NaN in the first operand is put back. Whole
    vectors call it by its own name: LLVM would join the two tests and keep neither.
    """

    def emit(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
        if op.dtype.kind == "bool":
            return _result(
                b,
                op,
                f"{'or' if intrinsic == 'maximum' else 'and'} {args[0].typed}, {args[1].text}",
            )
        if not op.dtype.is_float:
            sign = "s" if op.dtype.kind == "int" else "u"
            return _intrinsic(b, op, sign + integer_name, args)
        if target.isa != "x86-64":
            return _intrinsic(b, op, intrinsic, args)
        first, second = args
        numbers = [_is_number(e) or _is_literal(a) for e, a in zip(op.args, args, strict=True)]
        known = any(numbers)
        if numbers[1]:
            first, second = second, first
        mask = vector_type("i1", op.lanes)
        named = "max" if intrinsic == "maximum" else "min"
        bits = op.dtype.bits * op.lanes
        if not known and bits <= target.vector_bits and bits in _EXTREME:
            family, tail = _EXTREME[bits]
            kind = "ps" if op.dtype.bits == 32 else "pd"
            name = f"llvm.x86.{_family(family, kind)}.{named}.{kind}{tail}"
            rest = [("i32", "4")] if bits == 512 else []  # 4: rounding as it stands
            best = b.call(name, first.type, [(a.type, a.text) for a in (first, second)] + rest)
        else:
            test = b.assign(f"fcmp {float_test} {first.typed}, {second.text}")
            best = b.assign(f"select {mask} {test}, {first.typed}, {second.typed}")
        if known:
            return Value(best, op.dtype, op.lanes)
        odd = b.assign(f"fcmp uno {first.typed}, {first.text}")
        return _result(b, op, f"select {mask} {odd}, {first.typed}, {first.type} {best}")

    return emit


def _compare(float_test: str, integer_test: str) -> _Emit:
    def emit(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
        dtype = args[0].dtype
        if dtype.is_float:
            test = f"fcmp {float_test}"
        elif integer_test == "eq":
            test = "icmp eq"
        else:
            test = f"icmp {'s' if dtype.kind == 'int' else 'u'}{integer_test}"
        return _result(b, op, f"{test} {args[0].typed}, {args[1].text}")

    return emit


def _divide(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
    if not op.dtype.is_float:
        raise InternalError("div is for floats; integers use floordiv", stage="llvm", dump=str(op))
    return _result(b, op, f"fdiv {args[0].typed}, {args[1].text}")


def _floor_division(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
    quotient, _ = _floor_parts(b, op, args)
    return quotient


def _modulo(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
    return _floor_parts(b, op, args)[1]


def _floor_parts(b: Builder, op: Op, args: list[Value]) -> tuple[Value, Value]:
    """Quotient rounded down and remainder. A divisor of 0 gives 0 and 0, as in NumPy: an integer
    trap would end the process; the smallest integer divided by -1 wraps."""
    value, divisor = args
    kind, mask = value.type, vector_type("i1", op.lanes)
    zero, one = b.constant(0, op.dtype, op.lanes).text, b.constant(1, op.dtype, op.lanes).text
    given = op.args[1]
    known = isinstance(given, Const) and given.value not in (0, -1)
    safe, none = divisor.text, ""
    signed = op.dtype.kind == "int"
    minus = ""
    if not known:
        none = b.assign(f"icmp eq {kind} {safe}, {zero}")
        safe = b.assign(f"select {mask} {none}, {kind} {one}, {kind} {safe}")
        if signed:
            all_ones = b.constant(-1, op.dtype, op.lanes).text
            minus = b.assign(f"icmp eq {kind} {safe}, {all_ones}")
            safe = b.assign(f"select {mask} {minus}, {kind} {one}, {kind} {safe}")
    if not signed:
        quotient = b.assign(f"udiv {kind} {value.text}, {safe}")
        rest = b.assign(f"urem {kind} {value.text}, {safe}")
    else:
        cut = b.assign(f"sdiv {kind} {value.text}, {safe}")
        left = b.assign(f"srem {kind} {value.text}, {safe}")
        uneven = b.assign(f"icmp ne {kind} {left}, {zero}")
        mixed = b.assign(f"xor {kind} {left}, {safe}")
        negative = b.assign(f"icmp slt {kind} {mixed}, {zero}")
        fix = b.assign(f"and {mask} {uneven}, {negative}")
        less = b.assign(f"sub {kind} {cut}, {one}")
        more = b.assign(f"add {kind} {left}, {safe}")
        quotient = b.assign(f"select {mask} {fix}, {kind} {less}, {kind} {cut}")
        rest = b.assign(f"select {mask} {fix}, {kind} {more}, {kind} {left}")
    if minus:
        opposite = b.assign(f"sub {kind} {zero}, {value.text}")
        quotient = b.assign(f"select {mask} {minus}, {kind} {opposite}, {kind} {quotient}")
    if none:
        quotient = b.assign(f"select {mask} {none}, {kind} {zero}, {kind} {quotient}")
        rest = b.assign(f"select {mask} {none}, {kind} {zero}, {kind} {rest}")
    return Value(quotient, op.dtype, op.lanes), Value(rest, op.dtype, op.lanes)


def _not(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
    ones = b.constant(True if op.dtype.kind == "bool" else -1, op.dtype, op.lanes)
    return _result(b, op, f"xor {args[0].typed}, {ones.text}")


def _shift(left: bool) -> _Emit:
    def emit(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
        amount = args[1].text
        if not isinstance(op.args[1], Const):
            limit = b.constant(op.dtype.bits - 1, op.dtype, op.lanes)
            amount = b.assign(f"and {args[1].typed}, {limit.text}")
        name = "shl" if left else ("ashr" if op.dtype.kind == "int" else "lshr")
        return _result(b, op, f"{name} {args[0].typed}, {amount}")

    return emit


def _is_nan(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
    if not args[0].dtype.is_float:
        return b.constant(False, bool_, op.lanes)
    return _result(b, op, f"fcmp uno {args[0].typed}, {args[0].text}")


def _select(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
    test, yes, no = args
    return _result(b, op, f"select {test.typed}, {yes.typed}, {no.typed}")


def _cast(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
    value = args[0]
    narrower = value.dtype.is_integer and op.dtype.is_integer and op.dtype.bits < value.dtype.bits
    if narrower and value.lanes * value.dtype.bits == target.vector_bits:
        value = _kept(b, value, target)
    return convert(b, value, op.dtype)


def _kept(b: Builder, value: Value, target: Target) -> Value:
    """A whole vector of integers that LLVM does not see through: it would compute all that leads to
    a narrower value in the narrow lanes, and carry every condition across the lanes to them."""
    place = "w" if target.isa == "aarch64" else "v" if target.vector_bits == 512 else "x"
    text = f'call {value.type} asm "", "={place},0"({value.typed})'
    return Value(b.assign(text), value.dtype, value.lanes)


def convert(b: Builder, value: Value, dtype: DType) -> Value:
    """A value as another dtype: floats to integers toward zero, saturating, NaN to 0."""
    old, kind = value.dtype, vector_type(element_type(dtype), value.lanes)
    if old == dtype:
        return value
    if dtype.kind == "bool":
        zero = b.constant(0, old, value.lanes).text
        name = f"{'fcmp une' if old.is_float else 'icmp ne'} {value.typed}, {zero}"
        return Value(b.assign(name), dtype, value.lanes)
    if old.is_float and not dtype.is_float:
        sign = "s" if dtype.kind == "int" else "u"
        ends = (
            f"{suffix(element_type(dtype), value.lanes)}.{suffix(element_type(old), value.lanes)}"
        )
        text = b.call(f"llvm.fpto{sign}i.sat.{ends}", kind, [(value.type, value.text)])
        return Value(text, dtype, value.lanes)
    if old.is_float:
        name = "fpext" if dtype.bits > old.bits else "fptrunc"
    elif dtype.is_float:
        name = "sitofp" if old.kind == "int" else "uitofp"
    elif old.kind == "bool" or dtype.bits > old.bits:
        name = "sext" if old.kind == "int" else "zext"
    elif dtype.bits < old.bits:
        name = "trunc"
    else:
        return Value(value.text, dtype, value.lanes)
    return Value(b.assign(f"{name} {value.typed} to {kind}"), dtype, value.lanes)


def _bitcast(b: Builder, op: Op, args: list[Value], target: Target) -> Value:
    kind = vector_type(element_type(op.dtype), op.lanes)
    if args[0].type == kind:
        return Value(args[0].text, op.dtype, op.lanes)
    return _result(b, op, f"bitcast {args[0].typed} to {kind}")


_TABLE: dict[str, _Emit] = {
    "add": _binary("fadd", "add"),
    "sub": _binary("fsub", "sub"),
    "mul": _binary("fmul", "mul"),
    "div": _divide,
    "fma": _fma,
    "neg": _neg,
    "abs": _abs,
    "max": _extreme("ogt", "max", "maximum"),
    "min": _extreme("olt", "min", "minimum"),
    "floordiv": _floor_division,
    "mod": _modulo,
    "sqrt": _unary_intrinsic("sqrt"),
    "floor": _unary_intrinsic("floor"),
    "eq": _compare("oeq", "eq"),
    "lt": _compare("olt", "lt"),
    "le": _compare("ole", "le"),
    "and": _binary("and", "and"),
    "or": _binary("or", "or"),
    "xor": _binary("xor", "xor"),
    "not": _not,
    "shl": _shift(left=True),
    "shr": _shift(left=False),
    "is_nan": _is_nan,
    "select": _select,
    "cast": _cast,
    "bitcast": _bitcast,
}
