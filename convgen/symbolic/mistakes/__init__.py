"""Classic mistakes in hand-written gradients, as programs.

A wrong gradient is the right gradient of a wrong formula: each mistake changes one thing in the
forward program (a stride forgotten, a filter turned round, a statistic taken as constant), and its
derivative is what the mistake computes. Comparing with them names what went wrong.
"""

from convgen.symbolic.mistakes.gradients import gradient_mistakes
from convgen.symbolic.mistakes.indices import index_mistakes
from convgen.symbolic.mistakes.mistake import Mistake
from convgen.symbolic.mistakes.values import has_kinks, value_mistakes
from convgen.symbolic.program import Program

__all__ = [
    "Mistake",
    "gradient_mistakes",
    "has_kinks",
    "index_mistakes",
    "mistakes_of",
    "value_mistakes",
]


def mistakes_of(program: Program) -> list[Mistake]:
    """All mistakes that change this program, whose extents are bound; the likely ones first.

    >>> from convgen.symbolic.parse import parse
    >>> layer = parse("Y[y] = sum(r: X[2*y + r - 1] * W[r]) for y < 4", X=(8,), W=(3,))
    >>> for mistake in mistakes_of(layer)[:3]:
    ...     print(mistake)
    the stride is missing: X[y + r - 1] instead of X[2*y + r - 1]
    filter not flipped, or flipped twice: W[2 - r] instead of W[r]
    stride and dilation are exchanged: X[y + 2*r - 1] instead of X[2*y + r - 1]
    """
    return [*index_mistakes(program), *value_mistakes(program)]
