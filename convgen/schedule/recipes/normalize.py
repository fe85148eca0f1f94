"""What a recipe does to a nest before it chooses: contiguous loops become one, windows are walked
forwards."""

from __future__ import annotations

from convgen.ir.nodes import Combiner, Index, Kernel, Loop, Nest, Param
from convgen.ir.visit import walk
from convgen.schedule.access import in_loops, loads_of, offset_of


def contiguous_pair(nest: Nest, kernel: Kernel) -> tuple[str, str] | None:
    """Two neighbouring loops whose elements follow one another in every operand."""
    for outer, inner in zip(nest.loops, nest.loops[1:], strict=False):
        if _is_contiguous(nest, kernel, outer, inner):
            return outer.name, inner.name
    return None


def backward_windows(nest: Nest, kernel: Kernel) -> list[str]:
    """Reduce loops that walk backwards through an operand along which output loops walk forwards:
    gradients read such windows. Caches fetch ahead of what is read forwards."""
    found: dict[str, int] = {}
    own = {loop.name: loop for loop in nest.loops}
    for load in loads_of(nest):
        for index in load.index:
            place = in_loops(nest, index)
            names = (place.names() - place.hidden_names()) & own.keys()
            steps = {n: place.coefficient(n) for n in names}
            outputs = [step for n, step in steps.items() if own[n].reduce is None]
            for name, step in steps.items():
                if own[name].reduce is not None and outputs and min(outputs) > 0:
                    found[name] = found.get(name, 0) + (1 if step < 0 else -1)
    return [o.name for o in nest.loops if found.get(o.name, 0) > 0 and _is_free(nest, o)]


def _is_free(nest: Nest, loop: Loop) -> bool:
    """True for a reduce loop whose order does not matter."""
    members = [r for i, r in enumerate(nest.reduces) if nest.leader(i) == loop.reduce]
    return loop.extent > 1 and all(r.combiner.commutative for r in members)


def _is_contiguous(nest: Nest, kernel: Kernel, outer: Loop, inner: Loop) -> bool:
    if outer.reduce != inner.reduce or min(outer.extent, inner.extent) < 2:
        return False
    if outer.reduce is not None and not nest.reduces[outer.reduce].combiner.commutative:
        return False
    pair = {outer.name, inner.name}
    axes = {a for a, v in nest.axes if v.names() & pair}
    guards = [*nest.guards, *(g for r in nest.reduces for g in r.guards)]
    if any(g.value.names() & axes for g in guards):
        return False
    if any(isinstance(e, Index) and e.value.names() & axes for e in walk(nest)):
        return False
    if any(_uses_position(r.combiner) for r in nest.reduces) and outer.reduce is not None:
        return False
    places = [(o.buffer, o.index) for o in loads_of(nest)]
    places += [(s.buffer, s.index) for s in nest.stores]
    for load in loads_of(nest):
        for index, edge in zip(load.index, load.edges, strict=True):
            if edge is not None and index.names() & axes:
                return False
    for buffer, index in places:
        offset = offset_of(kernel.buffer(buffer), index, nest)
        if pair & offset.hidden_names():
            return False
        if offset.coefficient(outer.name) != inner.extent * offset.coefficient(inner.name):
            return False
    return True


def _uses_position(combiner: Combiner) -> bool:
    params = (e for part in combiner.lift for e in walk(part) if isinstance(e, Param))
    return any(e.name == "p" for e in params)
