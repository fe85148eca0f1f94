"""Comparisons in formulas are conditions, which hold at some elements and not at others; Python's
if, and, or, not and chains of comparisons ask for one truth, now, and are refused."""

from __future__ import annotations

from typing import Any, NoReturn

import sympy

from convgen.errors import FormulaError


def refuse_truth(condition: Any) -> NoReturn:
    """For `__bool__` of a condition."""
    raise FormulaError(
        f"the condition {condition} has no truth of its own: it may hold at some elements only",
        expected="conditions inside the formula",
        got="one that Python decides (if, and, or, not, or a chain a < b < c)",
        hint="cg.select(condition, a, b) for if; (a < b) & (b < c) for a chain; & | ~ to join",
    )


def refuse_bool(value: Any) -> NoReturn:
    """For Python's True or False where a number or a condition is expected."""
    raise FormulaError(
        f"{value} is not a condition: == and != compare how expressions are written",
        expected="comparisons of expressions: V[i] > 0, cg.equal(V[i], 0)",
        got=str(value),
        hint="cg.equal(a, b) for a == b, cg.logical_not(cg.equal(a, b)) for a != b",
    )


class _Undecided:
    """A comparison of sympy's with `refuse_truth`. To sympy it is of the class it inherits."""

    __slots__ = ()

    def __bool__(self) -> bool:
        refuse_truth(self)

    @property
    def func(self) -> Any:
        return type(self).__mro__[2]

    def _refuse(self, *_: Any) -> NoReturn:
        raise FormulaError(
            f"the condition {self} stands in arithmetic", hint="cg.select(condition, 1, 0)"
        )

    __neg__ = __pos__ = __abs__ = __pow__ = __rpow__ = _refuse
    __add__ = __sub__ = __mul__ = __truediv__ = _refuse
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = _refuse


class _Less(_Undecided, sympy.StrictLessThan): ...  # pyright: ignore


class _LessEqual(_Undecided, sympy.LessThan): ...  # pyright: ignore


class _Greater(_Undecided, sympy.StrictGreaterThan): ...  # pyright: ignore


class _GreaterEqual(_Undecided, sympy.GreaterThan): ...  # pyright: ignore


_UNDECIDED = {kind.__mro__[2]: kind for kind in (_Less, _LessEqual, _Greater, _GreaterEqual)}


def _undecided(found: Any) -> Any:
    kind = _UNDECIDED.get(type(found))
    return found if kind is None else kind(*found.args, evaluate=False)


class Compared:
    """Base of the expressions of formulas: comparing one with < <= > >= gives a condition.

    >>> from convgen.symbolic.domain import axes
    >>> i, j = axes("i j")
    >>> i <= j
    i <= j
    """

    __slots__ = ()

    def __lt__(self, other: Any) -> Any:
        return _undecided(super().__lt__(other))  # type: ignore[misc]

    def __le__(self, other: Any) -> Any:
        return _undecided(super().__le__(other))  # type: ignore[misc]

    def __gt__(self, other: Any) -> Any:
        return _undecided(super().__gt__(other))  # type: ignore[misc]

    def __ge__(self, other: Any) -> Any:
        return _undecided(super().__ge__(other))  # type: ignore[misc]
