"""Sums of products: which elements add nothing because a factor is 0."""

from __future__ import annotations

from collections.abc import Iterator

from convgen.ir.nodes import Combiner, Expr, Load, Op, Param


def adds_up(combiner: Combiner) -> bool:
    """True for a plain sum of the elements."""
    combine, lift = combiner.combine[0], combiner.lift[0]
    return (
        len(combiner.dtypes) == 1
        and isinstance(combine, Op)
        and combine.name == "add"
        and {a.name for a in combine.args if isinstance(a, Param)} == {"a0", "b0"}
        and isinstance(lift, Param)
        and lift.name == "v"
    )


def factors(element: Expr) -> Iterator[Load]:
    """The loads whose product an element is; of other expressions the load itself, or none."""
    if isinstance(element, Op) and element.name == "mul":
        for part in element.args:
            yield from factors(part)
    elif isinstance(element, Load):
        yield element
