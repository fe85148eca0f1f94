"""Every error convgen raises on purpose.

What the user did (`UserError`) and what convgen did wrong (`InternalError`) are different
types. A user error says what was expected, what was given, where, and what to try.
"""

from __future__ import annotations


class ConvgenError(Exception):
    """Base of all errors raised by convgen."""


class UserError(ConvgenError):
    """Something given to convgen cannot be accepted; nothing was changed or lost.

    The message is built from up to four parts, each optional but the first:

    >>> print(UserError("split(x, 6): the factor does not divide 56",
    ...                 expected="a factor of 56", got="6", hint="tail='peel'"))
    split(x, 6): the factor does not divide 56; expected a factor of 56, got 6; try tail='peel'
    """

    def __init__(
        self,
        message: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        where: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.expected = expected
        self.got = got
        self.where = where
        self.hint = hint
        super().__init__(self._text())

    def _text(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        facts = [
            f"{word} {value}"
            for word, value in (("expected", self.expected), ("got", self.got))
            if value
        ]
        if facts:
            text += "; " + ", ".join(facts)
        if self.hint:
            text += f"; try {self.hint}"
        return text


class FormulaError(UserError):
    """A formula is malformed: an undefined index, a call that is not in the language.

    Smallest example: ``cg.parse("Y[i] = X[j]", X=(3,))``: j appears on the right only and is
    not summed. Cure: write ``sum(j: X[j])`` or use ``i``.
    """


class ShapeError(UserError):
    """Shapes or extents do not fit together, or an extent cannot be inferred.

    Smallest example: ``cg.parse("Y[y] = X{reflect}[y - 1]", X=(5,))``: nothing bounds y.
    Cure: give the extent, ``... for y < 5`` or ``extents={y: 5}``.
    """


class DerivationError(UserError):
    """A gradient that does not exist or cannot be written as a gather (data-dependent address)."""


class ScheduleError(UserError):
    """A scheduling directive is not legal where it was applied."""


class TargetError(UserError):
    """A target name is unknown, or the machine cannot run code for it."""


class DataError(UserError):
    """Arrays, files or labels handed in at run time do not fit: shape, dtype, contents."""


class InternalError(ConvgenError):
    """convgen broke one of its own rules; never the user's fault. Carries the stage and a dump."""

    def __init__(self, message: str, *, stage: str = "", dump: str = "") -> None:
        self.message = message
        self.stage = stage
        self.dump = dump
        text = f"[{stage}] {message}" if stage else message
        if dump:
            text += "\n" + dump
        super().__init__(text)
