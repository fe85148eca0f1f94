"""Programs as formulas of symbols, for the rows of the textbook's table of operations.

A program's elements (each an expression of the inputs' elements) are compared with the row's
formula, written in the test once more as plain loops over arrays of symbols: nothing is shared but
sympy. What chooses (maximum, unpooling) is compared at every order its inputs can have.
"""

from __future__ import annotations

import itertools

import numpy as np
import sympy
from sympy import Max, Symbol, exp

from convgen.symbolic import functions
from convgen.symbolic.expr import Access
from convgen.symbolic.matrix import elements


def symbols(name, *shape):
    """An array of symbols name[0, 0], ..."""
    found = np.empty(shape, dtype=object)
    for at in np.ndindex(*shape):
        found[at] = Symbol(f"{name}[{', '.join(map(str, at))}]", real=True)
    return found


def plain(body):
    """Accesses as symbols, own functions as sympy's."""
    rules = {
        functions.relu: lambda x: Max(0, x),
        functions.abs_: sympy.Abs,
        functions.maximum: Max,
        functions.minimum: sympy.Min,
        functions.sigmoid: lambda x: 1 / (1 + exp(-x)),
        functions.step: lambda x: sympy.Piecewise((1, x > 0), (0, True)),
    }
    body = body.xreplace(
        {
            a: Symbol(f"{a.tensor.name}[{', '.join(str(i.constant) for i in a.index)}]", real=True)
            for a in body.atoms(Access)
        }
    )
    for old, new in rules.items():
        body = body.replace(old, new)
    return body


def written(program, name=None):
    """The elements of an output, as an array of expressions."""
    tensor = next(t for s in program.stages for t in s.tensors if name in (None, t.name))
    tensor = program.output if name is None else tensor
    found = np.empty(tensor.shape, dtype=object)
    found.flat = [plain(e) for e in elements(program)[tensor.name]]
    return found


def inputs(program):
    """Symbols for every input, by name."""
    return {t.name: symbols(t.name, *t.shape) for t in program.inputs}


def same(mine, theirs):
    """True when all elements are the same expression."""
    assert mine.shape == theirs.shape
    for a, b in zip(mine.flat, theirs.flat, strict=True):
        difference = sympy.expand(a - b)
        if difference != 0 and sympy.simplify(difference) != 0:
            return False
    return True


def read(x, *at):
    """Zeros outside."""
    inside = all(0 <= i < e for i, e in zip(at, x.shape, strict=True))
    return x[at] if inside else sympy.Integer(0)


def table(shape, formula):
    """The array of formula(*index)."""
    found = np.empty(shape, dtype=object)
    for at in np.ndindex(*shape):
        found[at] = sympy.sympify(formula(*at))
    return found


def total(spans, term):
    """The sum of term(*point) over a box."""
    return sympy.Add(*(term(*point) for point in itertools.product(*map(range, spans))))


def convolved(x, w, b, out, stride, dil, pad):
    """The row of the convolution layer, in any number of dimensions."""
    maps, taps = w.shape[1], w.shape[2:]

    def element(n, k, *place):
        def term(c, *tap):
            at = [stride * y + dil * r - pad for y, r in zip(place, tap, strict=True)]
            return read(x[n, c], *at) * w[(k, c, *tap)]

        return b[k] + total([maps, *taps], term)

    return table(out, element)
