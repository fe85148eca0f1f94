"""What stands in formulas with indices only: X[n, c], never X."""

from __future__ import annotations

from typing import Any, NoReturn

from convgen.errors import FormulaError


class Unindexed:
    """Base of what gives an access when indexed. Without indices it is no number: arithmetic,
    functions and loops over it are refused, since Python would ask for X[0], X[1], ... for ever.

    >>> from convgen.symbolic.dsl import tensor
    >>> 2 * tensor("X", (4,))
    Traceback (most recent call last):
    convgen.errors.FormulaError: X stands in a formula without indices; try X[...]
    """

    name: str

    def _refuse(self, *_: Any) -> NoReturn:
        raise FormulaError(
            f"{self.name} stands in a formula without indices", hint=f"{self.name}[...]"
        )

    __iter__ = _sympy_ = _refuse
    __neg__ = __pos__ = __abs__ = _refuse
    __add__ = __sub__ = __mul__ = __truediv__ = __floordiv__ = __mod__ = __pow__ = _refuse
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rfloordiv__ = __rmod__ = __rpow__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse
