"""Static libraries, written without tools: the `ar` format with a symbol index (System V, GNU)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

_MAGIC = b"!<arch>\n"


def defined_symbols(data: bytes) -> list[str]:
    """Names of the global symbols that a 64-bit little-endian ELF object defines, in its order."""
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    found: list[str] = []
    for section in sections:
        if section[1] != 2:  # SHT_SYMTAB
            continue
        offset, length, link, entry = section[4], section[5], section[6], section[9]
        names = sections[link][4]
        for at in range(offset + entry, offset + length, entry):
            name, info, _other, where = struct.unpack_from("<IBBH", data, at)
            if where != 0 and name and info >> 4 in (1, 2):  # global, weak
                start = names + name
                found.append(data[start : data.index(b"\0", start)].decode())
    return found


def archive(members: Mapping[str, bytes]) -> bytes:
    """An archive of ELF objects by name, with its index; same members, same bytes.

    >>> archive({})[:8]
    b'!<arch>\\n'
    """
    long_names = b"".join(name.encode() + b"/\n" for name in members)
    symbols = [(name, s) for name, data in members.items() for s in defined_symbols(data)]
    strings = b"".join(s.encode() + b"\0" for _, s in symbols)
    index_size = 4 + 4 * len(symbols) + len(strings)
    start = len(_MAGIC) + 60 + index_size + index_size % 2
    start += 60 + len(long_names) + len(long_names) % 2
    places: dict[str, int] = {}
    body = b""
    position = 0
    for name, data in members.items():
        places[name] = start + len(body)
        body += _member(f"/{position}", data)
        position += len(name.encode()) + 2
    index = struct.pack(">I", len(symbols))
    index += b"".join(struct.pack(">I", places[name]) for name, _ in symbols) + strings
    return _MAGIC + _member("/", index) + _member("//", long_names) + body


def _member(name: str, data: bytes) -> bytes:
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
    return head + data + b"\n" * (len(data) % 2)
