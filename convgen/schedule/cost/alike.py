"""Facts without the names of loops and buffers: nests that have the same differ in names alone, and
so take the same candidate. The pieces of a gradient do, and the layers of a network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from convgen.schedule.facts import Facts
from convgen.schedule.tiles import Candidate


@dataclass(frozen=True, slots=True)
class Names:
    """The loops and the buffers that the facts of a nest speak of, each in a fixed order."""

    loops: tuple[str, ...]
    buffers: tuple[str, ...]


def names_of(facts: Facts) -> Names:
    """The names in facts."""
    buffers = dict.fromkeys(o.load.buffer for o in facts.operands)
    return Names((*facts.outputs, *facts.reduces), tuple(buffers))


def without_names(facts: Facts) -> Hashable:
    """All that facts say, with numbers for names."""
    names = names_of(facts)
    loops = {name: number for number, name in enumerate(names.loops)}
    buffers = {name: number for number, name in enumerate(names.buffers)}
    combiners = tuple(
        (c.commutative, c.in_any_order) for c in (r.combiner for r in facts.nest.reduces)
    )
    operands = tuple((buffers[o.load.buffer], _fields(o, "load", loops)) for o in facts.operands)
    rest = (getattr(facts, f.name) for f in fields(facts) if f.name not in ("nest", "operands"))
    return combiners, operands, _numbered(tuple(rest), loops)


def renamed(candidate: Candidate, old: Names, new: Names) -> Candidate:
    """A candidate of one nest as a candidate of another that is alike."""
    loops = dict(zip(old.loops, new.loops, strict=True)) | {"": ""}
    buffers = dict(zip(old.buffers, new.buffers, strict=True))
    return replace(
        candidate,
        vector=loops[candidate.vector],
        tile=tuple((loops[name], sizes) for name, sizes in candidate.tile),
        packs=frozenset(buffers[name] for name in candidate.packs),
        block=loops[candidate.block],
    )


def _fields(value: Any, without: str, loops: Mapping[str, int]) -> Hashable:
    found = (getattr(value, f.name) for f in fields(value) if f.name != without)
    return _numbered(tuple(found), loops)


def _numbered(value: Any, loops: Mapping[str, int]) -> Hashable:
    if isinstance(value, str):
        return loops.get(value, value)
    if isinstance(value, tuple):
        return tuple(_numbered(v, loops) for v in value)
    if isinstance(value, Mapping):
        return tuple((loops.get(k, k), _numbered(v, loops)) for k, v in value.items())
    if isinstance(value, frozenset):
        return frozenset(_numbered(v, loops) for v in value)
    return _fields(value, "", loops) if is_dataclass(value) else value
