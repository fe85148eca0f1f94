"""Names that an ELF object needs from outside."""

from __future__ import annotations

import struct

_SYMBOL_TABLE = 2


def undefined_symbols(data: bytes) -> frozenset[str]:
    """Undefined symbols of a 64-bit little-endian ELF object; none for other formats, whose JIT is
    best effort.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        return frozenset()
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    found: set[str] = set()
    for section in sections:
        if section[1] != _SYMBOL_TABLE:
            continue
        offset, length, link, entry = section[4], section[5], section[6], section[9]
        names = sections[link][4]
        for at in range(offset + entry, offset + length, entry):
            name, _info, _other, where = struct.unpack_from("<IBBH", data, at)
            if where == 0 and name:
                start = names + name
                found.add(data[start : data.index(b"\0", start)].decode())
    return frozenset(found - {"_GLOBAL_OFFSET_TABLE_"})
