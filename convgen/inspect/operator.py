"""The linear-operator view of a layer, with the kernel as a third witness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convgen.errors import DerivationError, ShapeError
from convgen.runtime.kernel import compile as compile_program
from convgen.symbolic.matrix import Proof, prove_adjoint, small_case
from convgen.symbolic.program import Program


@dataclass(frozen=True)
class OperatorView:
    """A small case of a layer as a matrix over one of its tensors.

    proof           A^T v beside the derived adjoint, both symbolic
    kernel_agrees   A^T v on random integers is what the compiled adjoint computes, exactly
    """

    program: Program
    wrt: str
    proof: Proof
    kernel_agrees: bool

    @property
    def holds(self) -> bool:
        """Matrix, derived adjoint and kernel agree."""
        return self.proof.holds and self.kernel_agrees

    def __str__(self) -> str:
        a = self.proof.matrix
        rows, columns = a.output.elements, a.wrt.elements
        verdict = "agree" if self.holds else "DISAGREE"
        return (
            f"{a.output.name} as a {rows} x {columns} matrix over {self.wrt}:\n{a}\n"
            f"A^T v, the derived adjoint and its kernel {verdict} ({columns} elements)"
        )


def operator_view(
    program: Program, wrt: str, *, small: bool = True, seed: int = 0
) -> OperatorView | None:
    """The view of a program, or of its small case; None where it has none (not linear in `wrt`, no
    elements, entries that are no numbers as those of dropout, or too large to be worked out element
    by element).

    >>> from convgen.symbolic.parse import parse
    >>> print(operator_view(parse("Y[y] = sum(r: X[2*y + r] * W[r])", X=5, W=3), "X"))
    Y as a 2 x 5 matrix over X:
    W[0] W[1] W[2]    .    .
       .    . W[0] W[1] W[2]
    A^T v, the derived adjoint and its kernel agree (5 elements)
    """
    if any(0 in t.shape for t in program.tensors().values()):
        return None
    case = small_case(program) if small else program
    if case is None or len(case.outputs) != 1:
        return None
    try:
        proof = prove_adjoint(case, wrt)
        return OperatorView(case, wrt, proof, _kernel_agrees(proof, seed))
    except (DerivationError, ShapeError):
        return None


def _kernel_agrees(proof: Proof, seed: int) -> bool:
    """The compiled adjoint on small random integers, for which float32 is exact."""
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {}
    for t in proof.adjoint.inputs:
        shape = tuple(int(e) for e in t.shape)
        values[t.name] = rng.integers(-4, 5, size=shape).astype(t.dtype.numpy_name)
    found = compile_program(proof.adjoint)(**values)
    others = {n: v.astype(np.int64).tolist() for n, v in values.items()}
    entries = {
        a.tensor.name
        for e in proof.matrix.entries.values()
        for a in e.atoms()
        if hasattr(a, "tensor")
    }
    a = np.array(proof.matrix.numbers({n: others[n] for n in entries}), dtype=np.float64)
    cotangent = values["d" + proof.matrix.output.name].astype(np.float64).ravel()
    return bool(np.array_equal(a.T @ cotangent, np.asarray(found, np.float64).ravel()))
