"""The tables of a bundle and the module around them, as LLVM text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from convgen.interop.aot.subject import Port, Ports
from convgen.interop.aot.tape import COPY, ZERO, Level, Place, Row
from convgen.types import DType

# Numbers of the lists of a level, as bundle.ll and the doors use them.
LISTS = ("pack", "infer", "infer.1", "train", "train.1", "back", "back.1", "add", "clear", "step")
_FIXED = (
    "packed", "saved", "work", "seeds", "constants", "optimizer", "hyper", "labels", "loss",
)  # fmt: skip
ERRORS = (
    "ok",
    "the context is not an open one of this bundle",
    "the processor lacks instructions this bundle was made for",
    "the batch is negative, or not the one that this function is made for",
    "a pointer is null",
    "a buffer is too small",
    "a buffer is not aligned",
    "the parallel structure has no worker or no run function",
    "this bundle was made without this function",
    "unknown error code",
)


class Slots:
    """Numbers of the slots of the pointer table."""

    def __init__(self, ports: Ports) -> None:
        groups = {
            "x": len(ports.x),
            "y": len(ports.y),
            "dy": len(ports.dy),
            "dx": len(ports.dx),
            "grad": len(ports.grads),
            "sum": len(ports.grads),
            "weight": len(ports.weights),
            "state": len(ports.states),
        }
        self.first: dict[str, int] = {name: i for i, name in enumerate(_FIXED)}
        self.numbers = dict(self.first)
        count = len(_FIXED)
        for name, size in groups.items():
            self.first[name] = count
            self.numbers.update({f"{name}{i}": count + i for i in range(size)})
            count += size
        self.count = count

    def strides(self, ports: Ports) -> list[int]:
        """Bytes by which each slot moves on for one sample."""
        found = [0] * self.count
        for name, group in {"x": ports.x, "y": ports.y, "dy": ports.dy, "dx": ports.dx}.items():
            for i, port in enumerate(group):
                found[self.numbers[f"{name}{i}"]] = port.sample_bytes
        return found


def symbol(level: int, kernel: int, entry: int) -> str:
    """The private name of a kernel's phase in the bundle."""
    return f"level{level}.kernel{kernel}.phase{entry}"


def numbers(name: str, values: Sequence[int]) -> str:
    """A constant array of i64; one 0 where there is nothing."""
    items = list(values) or [0]
    text = ", ".join(f"i64 {v}" for v in items)
    return f"@{name} = internal constant [{len(items)} x i64] [{text}], align 16\n"


def string(name: str, text: str) -> str:
    """A constant C string."""
    data = text.encode() + b"\0"
    return f'@{name} = internal constant [{len(data)} x i8] c"{escaped(data)}"\n'


def escaped(data: bytes) -> str:
    """Bytes as LLVM writes them between quotes."""
    return "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:02X}" for b in data)


def ports_table(name: str, ports: Sequence[Port]) -> str:
    """What the checked doors know of a group of arrays."""
    rows = [
        f"%port {{ i64 {p.sample_bytes}, i64 {0 if p.sampled else p.bytes}, i64 {p.dtype.bytes} }}"
        for p in ports
    ] or ["%port zeroinitializer"]
    return f"@ports.{name} = internal constant [{len(rows)} x %port] [{', '.join(rows)}]\n"


def constants(dtype: DType) -> str:
    """The number one, for gradients of a loss to itself."""
    kind = {32: "float", 64: "double"}[dtype.bits]
    return f"@constants = internal constant [1 x {kind}] [{kind} 1.0], align 64\n"


def level_tables(number: int, level: Level, slots: Slots) -> tuple[str, str]:
    """(definitions of a level's tables, its row in the table of levels)."""
    arguments: list[Place] = []
    known: dict[tuple[Place, ...], int] = {}
    lines: list[str] = []
    lists: list[str] = []
    for position, name in enumerate(LISTS):
        rows = level.lists.get(name, [])
        items = [_row(number, row, arguments, known) for row in rows]
        table = f"@rows.{number}.{position}"
        if items:
            body = ",\n  ".join(items)
            lines.append(f"{table} = internal constant [{len(items)} x %row] [\n  {body}]\n")
        lists.append(f"%list {{ ptr {table if items else 'null'}, i64 {len(items)} }}")
    cells = [f"%arg {{ i64 {slots.numbers[p.slot]}, i64 {p.offset} }}" for p in arguments]
    cells = cells or ["%arg zeroinitializer"]
    lines.append(f"@args.{number} = internal constant [{len(cells)} x %arg] [{', '.join(cells)}]\n")
    lines.append(
        f"@lists.{number} = internal constant [{len(lists)} x %list] [{', '.join(lists)}]\n"
    )
    lines.append(string(f"target.{number}", level.target.name))
    needs = {"x86-64-v2": 2, "x86-64-v3": 3, "x86-64-v4": 4}.get(level.target.name, 0)
    row = (
        f"%level {{ i64 {needs}, ptr @lists.{number}, ptr @args.{number}, "
        f"i64 {level.packed_bytes}, i64 {level.packed_bytes + level.scratch_bytes}, "
        f"i64 {level.saved.get('train', 0)}, i64 {level.saved.get('train.1', 0)}, "
        f"i64 {level.work_bytes}, i64 {level.scratch_bytes}, ptr @target.{number} }}"
    )
    return "".join(lines), row


def _row(number: int, row: Row, arguments: list[Place], known: dict[tuple[Place, ...], int]) -> str:
    if row.arguments not in known:
        known[row.arguments] = len(arguments)
        arguments.extend(row.arguments)
    name = row.kernel if row.kernel in (COPY, ZERO) else symbol(number, int(row.kernel), row.entry)
    return (
        f"%row {{ ptr @{name}, i64 {row.extent}, i64 {row.grain}, "
        f"i64 {known[row.arguments]}, i64 {len(row.arguments)}, i64 {int(row.optional)} }}"
    )


def error_tables() -> dict[str, str]:
    """The texts of the error codes."""
    return {
        "error_strings": "".join(string(f"error.{i}", text) for i, text in enumerate(ERRORS)),
        "error_pointers": ", ".join(f"ptr @error.{i}" for i in range(len(ERRORS))),
    }


def door_values(
    name: str,
    ports: Ports,
    slots: Slots,
    levels: Sequence[Level],
    facts: Mapping[str, object],
) -> dict[str, object]:
    """Everything the templates of the doors ask for."""
    counts = {
        "x": len(ports.x),
        "y": len(ports.y),
        "dy": len(ports.dy),
        "dx": len(ports.dx),
        "grads": len(ports.grads),
        "weights": len(ports.weights),
        "states": len(ports.states),
    }
    widest = [len(row.arguments) for lv in levels for rows in lv.lists.values() for row in rows]
    return {
        "name": name,
        "slots": slots.count,
        "bases_bytes": 8 * slots.count,
        "levels": len(levels),
        "last_level": len(levels) - 1,
        "seeds": ports.seeds,
        "most_arguments": max([1, *widest]),
        "optimizer_bytes": ports.optimizer_bytes,
        **{f"slot_{stem}": first for stem, first in slots.first.items()},
        **counts,
        **{f"{stem}_least": max(1, count) for stem, count in counts.items()},
        **error_tables(),
        **facts,
    }
