"""Reading once round a circle: a circular boundary whose adjoint is a circular boundary.

Where a dimension of P elements is read at y + rest modulo P and y runs over all P values, each
element h is read exactly once for every rest, at y = h - rest modulo P. So h takes the place of y,
and what was read at y is read at h - rest, round the circle: no padded copy, nothing to fold.
"""

from __future__ import annotations

from dataclasses import replace

from sympy import Expr

from convgen.affine import Affine
from convgen.symbolic.boundary import CIRCULAR, ZERO
from convgen.symbolic.domain import Domain
from convgen.symbolic.expr import Access, Axis, accesses_of, axes_of

LETTERS = {1: ("h",), 2: ("h", "w"), 3: ("d", "h", "w")}


def go_round(access: Access, added: Expr, domain: Domain) -> tuple[Access, Expr, Domain]:
    """The access at plain elements, what is added there, and their domain: the same sum over other
    names where dimensions are read once round; what was given where none is.

    >>> from convgen.symbolic.expr import Range, Tensor
    >>> X, dY, W = Tensor("X", (5,)), Tensor("dY", (5,)), Tensor("W", (3,))
    >>> y, r = Affine.of("y"), Affine.of("r")
    >>> read = Access(X, (y + r - 1,), (CIRCULAR,))
    >>> domain = Domain((Range("y", 0, 5), Range("r", 0, 3)))
    >>> go_round(read, Access(dY, (y,)) * Access(W, (r,)), domain)[:2]
    (X[h], W[r]*dY{circular}[h - r + 1])
    """
    found = {d: n for d in range(len(access.index)) if (n := _round(access, d, added, domain))}
    letters = LETTERS.get(len(found), tuple(f"e{d}" for d in found))
    taken = {*domain.names, *axes_of(added), *(n for a in accesses_of(added) for n in a.names())}
    for (dim, name), letter in zip(found.items(), letters, strict=True):
        element = letter if letter not in taken else name
        access, added, domain = _turned(access, added, domain, dim, name, element)
    return access, added, domain


def _round(access: Access, dim: int, added: Expr, domain: Domain) -> str | None:
    """The axis that goes once round a dimension and stands for itself everywhere else."""
    extent = access.tensor.shape[dim]
    if access.boundary[dim] != CIRCULAR or access.index[dim].single is not None:
        return None
    index = access.index[dim]
    for name in sorted(index.names()):
        if name not in domain or abs(index.coefficient(name)) != 1:
            continue
        around = domain[name]
        others = [i for d, i in enumerate(access.index) if d != dim]
        alone = name not in index.hidden_names() and not any(name in i.names() for i in others)
        free = not any(name in c.value.names() for c in domain.constraints)
        whole = (around.lo, around.hi) == (0, extent) and isinstance(extent, int)
        if whole and alone and free and _stands_alone(name, added, extent):
            return name
    return None


def _stands_alone(name: str, added: Expr, extent: object) -> bool:
    """True where an axis occurs only as the whole index of dimensions of that extent."""
    if any(a.name == name for a in added.atoms(Axis) if isinstance(a, Axis)):
        return False
    for other in accesses_of(added):
        for index, size, kind in zip(other.index, other.tensor.shape, other.boundary, strict=True):
            if name in index.names():
                plain = index.single == name and size == extent and kind in (ZERO, CIRCULAR)
                if not plain:
                    return False
        if any(b.value is not None and name in _names(b.value) for b in other.boundary):
            return False
    return True


def _names(body: Expr) -> set[str]:
    return {*axes_of(body), *(n for a in accesses_of(body) for n in a.names())}


def _turned(
    access: Access, added: Expr, domain: Domain, dim: int, name: str, element: str
) -> tuple[Access, Expr, Domain]:
    index = access.index[dim]
    sign, rest = index.coefficient(name), index.without(name)
    place = (Affine.of(element) - rest) * sign
    changed: dict[Expr, Expr] = {}
    for other in added.atoms(Access):
        assert isinstance(other, Access)
        if name in other.names():
            kinds = [
                CIRCULAR if i.single == name else k
                for i, k in zip(other.index, other.boundary, strict=True)
            ]
            where = [i.substitute({name: place}) for i in other.index]
            changed[other] = Access(other.tensor, where, kinds)
    plain = [Affine.of(element) if d == dim else i for d, i in enumerate(access.index)]
    kinds = [ZERO if d == dim else k for d, k in enumerate(access.boundary)]
    ranges = tuple(replace(r, axis=element) if r.axis == name else r for r in domain.ranges)
    turned = Access(access.tensor, plain, kinds)
    return turned, added.xreplace(changed), Domain(ranges, domain.constraints)  # type: ignore[return-value]
