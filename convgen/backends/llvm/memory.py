"""Vector loads and stores, whole and partial, at any stride."""

from __future__ import annotations

from dataclasses import dataclass

from convgen.backends.llvm.builder import Builder, Value, element_type, memory_type, vector_type
from convgen.target import Target
from convgen.types import DType, bool_, i64, u8


@dataclass(frozen=True, slots=True)
class Place:
    """Where a vector access starts: the address of its lane 0, alignment of the elements in bytes,
    and metadata to append."""

    pointer: str
    dtype: DType
    align: int
    tags: str = ""

    @property
    def element(self) -> str:
        return memory_type(self.dtype)

    @property
    def stored(self) -> DType:
        return u8 if self.dtype.kind == "bool" else self.dtype

    def shifted(self, b: Builder, elements: int) -> Place:
        """The same some elements further."""
        if elements == 0:
            return self
        pointer = b.assign(
            f"getelementptr inbounds {self.element}, ptr {self.pointer}, i64 {elements}"
        )
        return Place(pointer, self.dtype, self.align, self.tags)


def has_masked_loads(target: Target, dtype: DType) -> bool:
    """True where a load under a constant mask is one instruction."""
    if target.isa != "x86-64" or target.vector_bits < 256:
        return False
    return target.vector_bits >= 512 or dtype.bits >= 32


def has_masked_stores(target: Target) -> bool:
    """True where a store under a constant mask takes about as long as a whole one: those of AVX2
    take many times as long on some CPUs."""
    return target.isa == "x86-64" and target.vector_bits >= 512


def load(b: Builder, place: Place, stride: int, lanes: int, valid: int, target: Target) -> Value:
    """`lanes` elements from `place`, `stride` apart; lanes from `valid` on are 0 and not read."""
    if valid <= 0:
        return b.constant(0, place.dtype, lanes)
    if lanes == 1:
        return _to_register(b, _contiguous(b, place, 1), place.dtype)
    if stride == 0:
        one = b.splat(_to_register(b, _contiguous(b, place, 1), place.dtype), lanes)
        return one if valid >= lanes else _keep(b, one, valid)
    if stride == 1:
        raw = _partial(b, place, lanes, valid, target)
    elif stride == -1 and valid >= lanes:
        raw = _reversed(b, _contiguous(b, place.shifted(b, 1 - lanes), lanes))
    elif stride == 2:
        raw = _partly_second(b, place, lanes, valid)
    else:
        raw = b.constant(0, place.stored, lanes)
        for lane in range(min(valid, lanes)):
            one = _contiguous(b, place.shifted(b, lane * stride), 1)
            raw = b.insert(raw, one, lane)
    return _to_register(b, raw, place.dtype)


def store(b: Builder, place: Place, stride: int, value: Value, valid: int, target: Target) -> None:
    """The lanes of value below `valid` to `place`, `stride` apart."""
    value = _to_memory(b, value, place.stored)
    valid = min(valid, value.lanes)
    if stride == 1 or value.lanes == 1:
        if valid == value.lanes:
            _put(b, place, value)
        elif valid > 0:
            _put_partial(b, place, value, valid, target)
    elif stride == -1 and valid == value.lanes:
        _put(b, place.shifted(b, 1 - valid), _reversed(b, value))
    else:
        for lane in range(valid):
            _put(b, place.shifted(b, lane * stride), b.extract(value, lane))


def gather(b: Builder, base: Place, offsets: Value, valid: int, mask: Value | None) -> Value:
    """In each lane below `valid` (and in `mask`) the element at that lane of `offsets`; else 0."""
    lanes = offsets.lanes
    raw = b.constant(0, base.stored, lanes)
    if mask is None:
        for lane in range(min(valid, lanes)):
            place = _at(b, base, b.extract(offsets, lane))
            raw = b.insert(raw, _contiguous(b, place, 1), lane)
    elif valid > 0:
        kind = vector_type(base.element, lanes)
        name = f"llvm.masked.gather.v{lanes}{_short(base)}.v{lanes}p0"
        bits = f"<{lanes} x i1>"
        b.declarations.setdefault(name, f"declare {kind} @{name}(<{lanes} x ptr>, {bits}, {kind})")
        text = b.assign(
            f"call {kind} @{name}(<{lanes} x ptr> align {base.align} {_at_all(b, base, offsets)}, "
            f"{_limited(b, mask, valid).typed}, {raw.typed})"
        )
        raw = Value(text, base.stored, lanes)
    return _to_register(b, raw, base.dtype)


def load_masked(
    b: Builder, place: Place, stride: int, lanes: int, valid: int, mask: Value
) -> Value:
    """Like `load`; lanes where `mask` is false are 0 and not read."""
    if stride != 1:
        return gather(b, place, _steps(b, stride, lanes), valid, mask)
    kind, bits = vector_type(place.element, lanes), f"<{lanes} x i1>"
    name = f"llvm.masked.load.v{lanes}{_short(place)}.p0"
    b.declarations.setdefault(name, f"declare {kind} @{name}(ptr, {bits}, {kind})")
    text = b.assign(
        f"call {kind} @{name}(ptr align {place.align} {place.pointer}, "
        f"{_limited(b, mask, valid).typed}, {kind} zeroinitializer){place.tags}"
    )
    return _to_register(b, Value(text, place.stored, lanes), place.dtype)


def store_masked(
    b: Builder, place: Place, stride: int, value: Value, valid: int, mask: Value
) -> None:
    """Like `store`, only lanes where `mask` is true."""
    value, lanes = _to_memory(b, value, place.stored), value.lanes
    bits = f"<{lanes} x i1>"
    where = _limited(b, mask, valid)
    if stride == 1:
        name = f"llvm.masked.store.v{lanes}{_short(place)}.p0"
        b.declarations.setdefault(name, f"declare void @{name}({value.type}, ptr, {bits})")
        target = f"ptr align {place.align} {place.pointer}"
    else:
        name = f"llvm.masked.scatter.v{lanes}{_short(place)}.v{lanes}p0"
        kind = f"<{lanes} x ptr>"
        b.declarations.setdefault(name, f"declare void @{name}({value.type}, {kind}, {bits})")
        target = f"{kind} align {place.align} {_at_all(b, place, _steps(b, stride, lanes))}"
    b.emit(f"call void @{name}({value.typed}, {target}, {where.typed}){place.tags}")


def _at(b: Builder, base: Place, offset: Value) -> Place:
    pointer = b.assign(
        f"getelementptr inbounds {base.element}, ptr {base.pointer}, i64 {offset.text}"
    )
    return Place(pointer, base.dtype, base.align, base.tags)


def _at_all(b: Builder, base: Place, offsets: Value) -> str:
    """A vector of pointers; lanes that are masked off may point anywhere, so not inbounds."""
    return b.assign(f"getelementptr {base.element}, ptr {base.pointer}, {offsets.typed}")


def _steps(b: Builder, stride: int, lanes: int) -> Value:
    return Value("<" + ", ".join(f"i64 {stride * i}" for i in range(lanes)) + ">", i64, lanes)


def _limited(b: Builder, mask: Value, valid: int) -> Value:
    if valid >= mask.lanes:
        return mask
    both = b.assign(f"and {mask.typed}, {_mask(mask.lanes, max(valid, 0))}")
    return Value(both, mask.dtype, mask.lanes)


def _contiguous(b: Builder, place: Place, lanes: int) -> Value:
    kind = vector_type(place.element, lanes)
    text = b.assign(f"load {kind}, ptr {place.pointer}, align {place.align}{place.tags}", "l")
    return Value(text, place.stored, lanes)


def _partial(b: Builder, place: Place, lanes: int, valid: int, target: Target) -> Value:
    if valid >= lanes:
        return _contiguous(b, place, lanes)
    kind = vector_type(place.element, lanes)
    if has_masked_loads(target, place.stored):
        name = f"llvm.masked.load.v{lanes}{_short(place)}.p0"
        mask = f"<{lanes} x i1>"
        b.declarations.setdefault(name, f"declare {kind} @{name}(ptr, {mask}, {kind})")
        text = b.assign(
            f"call {kind} @{name}(ptr align {place.align} {place.pointer}, "
            f"{mask} {_mask(lanes, valid)}, {kind} zeroinitializer){place.tags}"
        )
        return Value(text, place.stored, lanes)
    raw = b.constant(0, place.stored, lanes)
    start = 0
    while start < valid:
        count = _power(valid - start)
        piece = _contiguous(b, place.shifted(b, start), count)
        raw = _merge(b, raw, piece, start)
        start += count
    return raw


def _merge(b: Builder, whole: Value, piece: Value, start: int) -> Value:
    """`whole` with the lanes of `piece` at `start`."""
    if piece.lanes == 1:
        return b.insert(whole, piece, start)
    lanes, stop = whole.lanes, start + piece.lanes
    wide = shuffle(b, piece, [i - start if start <= i < stop else stop for i in range(lanes)])
    order = [lanes + i if start <= i < stop else i for i in range(lanes)]
    return shuffle(b, whole, order, wide)


def shuffle(b: Builder, first: Value, order: list[int], second: Value | None = None) -> Value:
    """The lanes `order` of both vectors, those of `second` counted on; beyond both: any value."""
    other = second.typed if second else f"{first.type} poison"
    top = 2 * first.lanes if second else first.lanes
    places = ", ".join("i32 poison" if i >= top else f"i32 {i}" for i in order)
    text = b.assign(f"shufflevector {first.typed}, {other}, <{len(order)} x i32> <{places}>")
    return Value(text, first.dtype, len(order))


def _reversed(b: Builder, value: Value) -> Value:
    return shuffle(b, value, list(range(value.lanes - 1, -1, -1)))


def _every_second(b: Builder, place: Place, lanes: int) -> Value:
    """Two whole loads between the first and the last element wanted, and one shuffle."""
    low = _contiguous(b, place, lanes)
    high = _contiguous(b, place.shifted(b, lanes - 1), lanes)
    order = [2 * i if 2 * i < lanes else lanes + 2 * i - (lanes - 1) for i in range(lanes)]
    return shuffle(b, low, order, high)


def _partly_second(b: Builder, place: Place, lanes: int, valid: int) -> Value:
    """Every second element, the lanes from `valid` on 0: by pieces of a power of two."""
    if valid >= lanes:
        return _every_second(b, place, lanes)
    raw = b.constant(0, place.stored, lanes)
    start = 0
    while start < valid:
        count = _power(valid - start)
        there = place.shifted(b, 2 * start)
        piece = _every_second(b, there, count) if count > 1 else _contiguous(b, there, 1)
        raw = _merge(b, raw, piece, start)
        start += count
    return raw


def _put(b: Builder, place: Place, value: Value) -> None:
    b.emit(f"store {value.typed}, ptr {place.pointer}, align {place.align}{place.tags}")


def _put_partial(b: Builder, place: Place, value: Value, valid: int, target: Target) -> None:
    if has_masked_stores(target):
        name = f"llvm.masked.store.v{value.lanes}{_short(place)}.p0"
        mask = f"<{value.lanes} x i1>"
        b.declarations.setdefault(name, f"declare void @{name}({value.type}, ptr, {mask})")
        b.emit(
            f"call void @{name}({value.typed}, ptr align {place.align} {place.pointer}, "
            f"{mask} {_mask(value.lanes, valid)}){place.tags}"
        )
        return
    start = 0
    while start < valid:
        count = _power(valid - start)
        piece = (
            b.extract(value, start)
            if count == 1
            else shuffle(b, value, list(range(start, start + count)))
        )
        _put(b, place.shifted(b, start), piece)
        start += count


def _mask(lanes: int, valid: int) -> str:
    return "<" + ", ".join(f"i1 {'true' if i < valid else 'false'}" for i in range(lanes)) + ">"


def _power(count: int) -> int:
    """The largest power of two not above count."""
    return 1 << (count.bit_length() - 1)


def _short(place: Place) -> str:
    return {"float": "f32", "double": "f64"}.get(place.element, place.element)


def _keep(b: Builder, value: Value, valid: int) -> Value:
    zero = b.constant(0, value.dtype, value.lanes)
    mask = f"<{value.lanes} x i1> {_mask(value.lanes, valid)}"
    text = b.assign(f"select {mask}, {value.typed}, {zero.typed}")
    return Value(text, value.dtype, value.lanes)


def _to_register(b: Builder, raw: Value, dtype: DType) -> Value:
    if dtype.kind != "bool":
        return Value(raw.text, dtype, raw.lanes)
    zero = b.constant(0, raw.dtype, raw.lanes)
    return Value(b.assign(f"icmp ne {raw.typed}, {zero.text}"), bool_, raw.lanes)


def _to_memory(b: Builder, value: Value, stored: DType) -> Value:
    if value.dtype.kind != "bool":
        return value
    kind = vector_type(element_type(stored), value.lanes)
    return Value(b.assign(f"zext {value.typed} to {kind}"), stored, value.lanes)
