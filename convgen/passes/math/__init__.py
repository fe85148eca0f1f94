"""Elementary functions as polynomials over primitive operations; what a target lacks, replaced.

`expand` removes every exp, log, tanh, sigmoid, erf, pow and uniform from a FLAT kernel: no kernel
calls a math library. Values are within 2 ulp of the exact result, for subnormal, huge and special
arguments too, with or without FMA. `legalize` removes the operations a target does not have.
"""

from __future__ import annotations

from convgen.passes.math.expand import expand
from convgen.passes.math.legalize import legalize

__all__ = ["expand", "legalize"]
