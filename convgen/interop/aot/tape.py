"""What a bundle runs, before it is machine code: rows of work over named places of memory.

A `Section` is a recorded sequence of kernel calls, its first `boundary` calls forward, the rest
backward. `Level` collects the rows of all sections for one instruction set and gives everything
that is not the caller's a place: what a kernel packs from weights lies in `packed`, what backward
needs of forward in `saved`, the rest in `work`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from convgen.backends.protocol import Entry
from convgen.errors import InternalError
from convgen.runtime.build import Built
from convgen.runtime.plan import Call, Region, aligned
from convgen.target import Target

COPY, ZERO = "copy", "zero"
_GRAIN = 1 << 16  # bytes that a worker copies at a time, at least


@dataclass(frozen=True, slots=True)
class Place:
    """`offset` bytes behind the pointer in a slot: x0, y0, dy0, dx0, grad0, weight0, state0, ...,
    packed, saved, work, constants, seeds, optimizer, hyper, labels, loss."""

    slot: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A parallel range: phase `entry` of kernel number `kernel` of the level, or COPY or ZERO of
    `extent` bytes. An `optional` row is left out when no gradient to the inputs is wanted."""

    kernel: int | Literal["copy", "zero"]
    entry: int
    extent: int
    grain: int
    scratch_bytes: int
    arguments: tuple[Place, ...]
    optional: bool = False


@dataclass
class Section:
    """Recorded calls, with the places that regions have in the caller's memory.

    forward, backward   id of a region -> its place in that half
    results             regions that forward writes elsewhere too: (region, place)
    wanted              regions that must be computed even when no gradient to the inputs is
    unmade              places of gradients that no call writes: they are zero
    zeroed              regions that must be zero when a half begins
    """

    calls: Sequence[Call]
    boundary: int
    forward: dict[int, Place] = field(default_factory=dict[int, Place])
    backward: dict[int, Place] = field(default_factory=dict[int, Place])
    results: list[tuple[Region, Place]] = field(default_factory=list[tuple[Region, Place]])
    wanted: list[Region] = field(default_factory=list[Region])
    unmade: list[tuple[Place, int]] = field(default_factory=list[tuple[Place, int]])
    zeroed: list[Region] = field(default_factory=list[Region])


def root(region: Region) -> tuple[Region, int]:
    """(the region that owns the memory, offset in it)."""
    offset = 0
    while region.parent is not None:
        offset += region.start
        region = region.parent
    return region, offset


def lay_out(items: Iterable[tuple[Hashable, int, int, int]]) -> tuple[dict[Hashable, int], int]:
    """(offset of each item, bytes in all) for items (key, bytes, first, last use), the largest
    first, each at the lowest place that no item in use at the same time takes."""
    placed: list[tuple[int, int, int, int]] = []
    offsets: dict[Hashable, int] = {}
    for key, size, first, last in sorted(items, key=lambda i: (-i[1], i[2], i[3])):
        offset = 0
        for start, end, other_first, other_last in sorted(placed):
            meets = other_first <= last and first <= other_last
            if meets and start < offset + aligned(size) and offset < end:
                offset = end
        placed.append((offset, offset + aligned(size), first, last))
        offsets[key] = offset
    return offsets, max((end for _, end, _, _ in placed), default=0)


@dataclass
class Level:
    """All rows for one target; `lists` by name (pack, infer, train, back, ...)."""

    target: Target
    build: Callable[..., Built]
    packed_bytes: int
    kernels: list[Built] = field(default_factory=list[Built])
    lists: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])
    saved: dict[str, int] = field(default_factory=dict[str, int])
    work_bytes: int = 0
    scratch_bytes: int = 0
    _packs: dict[Hashable, int] = field(default_factory=dict[Hashable, int])

    def number(self, built: Built) -> int:
        """The kernel's number in this level."""
        for i, known in enumerate(self.kernels):
            if known is built:
                return i
        self.kernels.append(built)
        return len(self.kernels) - 1

    def add(self, name: str, rows: Sequence[Row]) -> None:
        self.lists.setdefault(name, []).extend(rows)
        self.scratch_bytes = max([self.scratch_bytes, *(aligned(r.scratch_bytes) for r in rows)])

    def record(self, section: Section, forward: str, backward: str | None, base: int) -> None:
        """Rows of a section's halves under two names. `work` is free from byte `base` on."""
        halves = [(forward, section.calls[: section.boundary], section.forward)]
        if backward is not None:
            halves.append((backward, section.calls[section.boundary :], section.backward))
        packs = self._place_packs(section)
        homes = self._place_saved(section, packs, forward) if backward is not None else {}
        skipped = _optional(section) if backward is not None else set[int]()
        for half, (name, calls, given) in enumerate(halves):
            known = {**homes, **given, **packs}
            if half == 0:
                known = {**homes, **packs, **given}
            zeroed = [*section.zeroed, *_unwritten(calls, known)]
            places, size = _place_rest(calls, known, base, zeroed)
            self.work_bytes = max(self.work_bytes, size)
            rows = [zero_row(places[id(r)], r.bytes) for r in zeroed if id(r) in places]
            for call in calls:
                rows += self._rows(call, places, id(call) in skipped)
            if half == 0:
                rows += self._ends(section, places, homes)
            else:
                rows += [zero_row(p, size, p.slot.startswith("dx")) for p, size in section.unmade]
            self.add(name, rows)

    def _rows(self, call: Call, places: Mapping[int, Place], optional: bool) -> list[Row]:
        built = call.built
        arguments = tuple(places[id(r)] for r in call.regions)
        ahead = _is_ahead(call, places)
        kernel = self.number(built)
        return [
            _row(kernel, number, entry, arguments, optional)
            for number, entry in enumerate(built.entries)
            if entry.extent > 0 and not (ahead and entry.when == "prepare")
        ]

    def _place_packs(self, section: Section) -> dict[int, Place]:
        """Places of what kernels make of weights alone; it is made once, by `pack`."""
        places: dict[int, Place] = {}
        given = {**section.forward, **section.backward}
        for call in section.calls:
            known = {id(r): _home(r, given) for r in call.regions}
            if not _is_ahead(call, {k: p for k, p in known.items() if p is not None}):
                continue
            built = call.built
            key = (id(built), tuple(known[id(r)] for r in _prepared(call)))
            fresh = key not in self._packs
            if fresh:
                self._packs[key] = self.packed_bytes
            offset = self._packs[key]
            for argument, region in zip(built.arguments, call.regions, strict=True):
                if argument.name in built.packed:
                    places[id(region)] = Place("packed", offset)
                    offset += aligned(argument.bytes)
            if fresh:
                self.packed_bytes = offset
                self._pack(call, {**{k: p for k, p in known.items() if p}, **places})
        return places

    def _pack(self, call: Call, places: Mapping[int, Place]) -> None:
        built = call.built
        arguments = tuple(places.get(id(r), Place("work")) for r in call.regions)
        kernel = self.number(built)
        rows = [
            _row(kernel, number, entry, arguments, False)
            for number, entry in enumerate(built.entries)
            if entry.extent > 0 and entry.when == "prepare"
        ]
        self.add("pack", rows)

    def _place_saved(
        self, section: Section, packs: Mapping[int, Place], name: str
    ) -> dict[int, Place]:
        """Places in `saved` of what both halves use and the caller does not hold for both."""
        ahead = {
            id(root(r)[0]): root(r)[0] for c in section.calls[: section.boundary] for r in c.regions
        }
        ahead.update({id(root(r)[0]): root(r)[0] for r, _ in section.results})
        places: dict[int, Place] = {}
        offset = 0
        for call in section.calls[section.boundary :]:
            for region in call.regions:
                own = root(region)[0]
                if id(own) in places or id(own) in packs or id(own) not in ahead:
                    continue
                if _home(region, section.backward) is None:
                    places[id(own)] = Place("saved", offset)
                    offset += aligned(own.bytes)
        self.saved[name] = offset
        return places

    def _ends(
        self, section: Section, places: Mapping[int, Place], saved: Mapping[int, Place]
    ) -> list[Row]:
        """Copies at the end of forward: results that lie elsewhere, and what is to be saved."""
        rows: list[Row] = []
        for region, place in section.results:
            here = places.get(id(region)) or _home(region, {**saved, **section.forward})
            if here is not None and here != place:
                rows.append(copy_row(place, here, region.bytes))
        sizes = {id(root(r)[0]): root(r)[0].bytes for c in section.calls for r in c.regions}
        for key, place in saved.items():
            here = section.forward.get(key)
            if here is not None:
                rows.append(copy_row(place, here, sizes[key]))
        return rows


def _prepared(call: Call) -> list[Region]:
    """The regions that the call's prepare phases read."""
    pairs = zip(call.built.arguments, call.regions, strict=True)
    return [region for argument, region in pairs if argument.name in call.built.prepared]


def _is_ahead(call: Call, places: Mapping[int, Place]) -> bool:
    """True when the call's prepare phases read nothing but weights."""
    read = [places.get(id(r)) for r in _prepared(call)]
    return bool(call.built.packed) and all(p is not None and p.slot == "packed" for p in read)


def _home(region: Region, places: Mapping[int, Place]) -> Place | None:
    """The place of a region, or the part of its parent's place that it is."""
    if id(region) in places:
        return places[id(region)]
    own, offset = root(region)
    found = places.get(id(own))
    return Place(found.slot, found.offset + offset) if found is not None else None


def _unwritten(calls: Sequence[Call], known: Mapping[int, Place]) -> list[Region]:
    """Regions that are read though no call writes them and nobody hands them in: they are zero."""
    pairs = [(a, r) for c in calls for a, r in zip(c.built.arguments, c.regions, strict=True)]
    written = {id(root(r)[0]) for a, r in pairs if a.role != "input"}
    read = {id(root(r)[0]): root(r)[0] for a, r in pairs if _home(r, known) is None}
    return [region for key, region in read.items() if key not in written]


def _place_rest(
    calls: Sequence[Call], known: Mapping[int, Place], base: int, kept: Sequence[Region]
) -> tuple[dict[int, Place], int]:
    """(place of every region of the calls, bytes of `work` used): what is not known lies in work
    from `base` on, as long as it is in use."""
    lives: dict[int, tuple[Region, int, int]] = {}
    for number, call in enumerate(calls):
        for region in call.regions:
            own = root(region)[0]
            if _home(region, known) is None:
                first = lives[id(own)][1] if id(own) in lives else number
                lives[id(own)] = (own, first, number)
    for region in kept:
        if id(region) in lives:
            lives[id(region)] = (region, 0, len(calls))
    offsets, size = lay_out((key, r.bytes, a, b) for key, (r, a, b) in lives.items())
    places = dict(known)
    places.update({key: Place("work", base + offset) for key, offset in offsets.items()})  # type: ignore[misc]
    for call in calls:
        for region in call.regions:
            place = _home(region, places)
            if place is None:
                raise InternalError(f"no place for {region.name}", stage="export")
            places[id(region)] = place
    return places, base + size


def _optional(section: Section) -> set[int]:
    """ids of the backward calls that serve the gradients to the inputs alone."""
    needed = {id(root(r)[0]) for r in section.wanted}
    found: set[int] = set()
    for call in reversed(section.calls[section.boundary :]):
        pairs = list(zip(call.built.arguments, call.regions, strict=True))
        written = {id(root(r)[0]) for a, r in pairs if a.role == "output"}
        if written & needed:
            needed |= {id(root(r)[0]) for _, r in pairs}
        else:
            found.add(id(call))
    return found


def _row(
    kernel: int, number: int, entry: Entry, arguments: tuple[Place, ...], optional: bool
) -> Row:
    return Row(
        kernel, number, entry.extent, max(entry.grain, 1), entry.scratch_bytes, arguments, optional
    )


def copy_row(to: Place, start: Place, size: int, optional: bool = False) -> Row:
    return Row(COPY, 0, size, _GRAIN, 0, (to, start), optional)


def zero_row(place: Place, size: int, optional: bool = False) -> Row:
    return Row(ZERO, 0, size, _GRAIN, 0, (place,), optional)
