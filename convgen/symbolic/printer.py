"""The text form of programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convgen.symbolic.program import Program


def text(program: Program) -> str:
    """The text form; parse gives the same program back."""
    return program.name
