"""The language as Python: what can be said, how programs compose, what is refused."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import sympy

from convgen.errors import FormulaError, ShapeError
from convgen.symbolic import functions
from convgen.symbolic.dsl import (
    argmax_over,
    axes,
    combine,
    define,
    max_over,
    pieces,
    reduction,
    size,
    sum_over,
    tensor,
)
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.parse import parse
from convgen.symbolic.reductions import ARGMAX

n, k, c, y, x, r, s, u = axes("n k c y x r s u")


def lines(program):
    return [t for t in str(program).splitlines() if "] = " in t]


def test_the_example_of_the_readme():
    X, W, b = tensor("X", (8, 64, 56, 56)), tensor("W", (128, 64, 3, 3)), tensor("b", (128,))
    body = sum_over([c, r, s], X.pad("reflect")[n, c, 2 * y + r - 1, 2 * x + s - 1] * W[k, c, r, s])
    conv = define("Y", [n, k, y, x], body + b[k], extents={y: 28, x: 28})
    assert lines(conv) == [
        "Y[n, k, y, x] = sum(c, r, s: X{reflect}[n, c, 2*y + r - 1, 2*x + s - 1]"
        " * W[k, c, r, s]) + b[k]   for y < 28, x < 28"
    ]
    assert [t.name for t in conv.inputs] == ["X", "W", "b"]
    assert conv.output.shape == (8, 128, 28, 28)
    assert parse(str(conv)) == conv


def test_inputs_are_ordered_by_creation_even_if_sympy_remembers_older_ones():
    for names in (("A", "B"), ("B", "A")):
        made = {t: tensor(t, (3,)) for t in names}
        program = define("Y", [n], made["A"][n] * made["B"][n])
        assert tuple(t.name for t in program.inputs) == names


def test_reading_a_program_makes_it_a_stage():
    X = tensor("X", (4, 6))
    mean = define("M", [n], sum_over(c, X[n, c]) / 6)
    var = define("V", [n], sum_over(c, (X[n, c] - mean[n]) ** 2) / 6)
    out = define("Y", [n, c], (X[n, c] - mean[n]) / sympy.sqrt(var[n] + 1e-5))
    assert [t.name for st in out.stages for t in st.tensors] == ["M", "V", "Y"]
    assert [t.role for st in out.stages for t in st.tensors] == ["temporary", "temporary", "output"]
    assert "1e-5" in str(out) and parse(str(out)) == out
    assert out.check() is not None


def test_max_and_its_position_share_one_reduce():
    X = tensor("X", (4, 6))
    both = define(
        [("Y", [n]), ("I", [n])],
        (max_over(c, X[n, c]), functions.cast(argmax_over(c, X[n, c]), "u8")),
    )
    (piece,) = both.stages[0].pieces
    assert [q.reduction for q in piece.reduces] == [ARGMAX]
    assert [str(t.dtype) for t in both.outputs] == ["f32", "u8"]
    alone = define("Y", [n], max_over(c, X[n, c]))
    assert alone.stages[0].pieces[0].reduces[0].reduction.name == "max"


def test_pieces_and_their_shape():
    X = tensor("X", (4,))
    whole = pieces(define("Y", [2 * u], X[u]), define("Y", [2 * u + 1], 0 * u, extents={u: 4}))
    assert whole.output.shape == (8,)
    assert "output Y: f32[8]\nY[2*u] = X[u]\nY[2*u + 1] = 0" in str(whole)
    assert parse(str(whole)) == whole
    whole.check()
    with pytest.raises(FormulaError):
        pieces(define("Y", [2 * u], X[u]), define("Y", [2 * u], X[u])).check()


def test_updates_saved_and_outputs():
    w, m, g = (
        tensor(t, (3,), role=role)
        for t, role in [("w", "parameter"), ("m", "state"), ("g", "input")]
    )
    new_m = define("new_m", [n], 0.9 * m[n] + g[n])
    new_w = define("new_w", [n], w[n] - 0.1 * new_m[n])
    step = combine("sgd", [new_w], outputs=[], updates={"m": "new_m", "w": "new_w"})
    assert step.outputs == () and step.updates == (("m", "new_m"), ("w", "new_w"))
    assert parse(str(step)) == step
    with pytest.raises(FormulaError, match="update q <- new_m"):
        combine("sgd", [new_w], updates={"q": "new_m"})


def test_sizes_are_bound_later():
    X = tensor("X", (size("N"), 3))
    program = define("M", [c], sum_over(n, X[n, c]) / size("N"))
    assert program.sizes() == ("N",)
    bound = program.bind(N=5)
    assert lines(bound) == ["M[c] = sum(n: X[n, c]) / 5"] and bound.sizes() == ()
    with pytest.raises(ShapeError, match="no size Q"):
        program.bind(Q=1)
    with pytest.raises(ShapeError, match="symbolic extent N"):
        define("Y", [n], X[n + 1, 0], extents={n: 2})


def test_programs_can_be_copied_and_pickled():
    X, W = tensor("X", (size("N"), 3)), tensor("W", (4, 3))
    program = define("Y", [n, k], sum_over(c, X[n, c] * W[k, c]) / size("N") + n)
    for again in (pickle.loads(pickle.dumps(program)), copy.deepcopy(program)):
        assert again == program and str(again.bind(N=2)) == str(program.bind(N=2))


def test_comparisons_of_sympy_are_understood():
    T = tensor("T", (5, 5))
    lower = define("Y", [y], sum_over(x, T[y, x], where=x <= y))
    assert lines(lower) == ["Y[y] = sum(x where x <= y: T[y, x])"]
    even = define("Y", [y], sum_over(x, T[y, x], where=[functions.equal((x + y) % 2, 0)]))
    assert lines(even) == ["Y[y] = sum(x where (y + x) % 2 == 0: T[y, x])"]
    chosen = define("Y", [y, x], functions.select(T[y, x] < 0.5, 0, T[y, x]))
    assert lines(chosen) == ["Y[y, x] = select(T[y, x] < 1/2, 0, T[y, x])"]


def test_comparisons_are_joined_by_operators():
    T = tensor("T", (5, 5))
    inner = define("Y", [y], sum_over(x, T[y, x], where=(0 < x) & (x < y)))
    assert lines(inner) == ["Y[y] = sum(x where 1 <= x, x + 1 <= y: T[y, x])"]
    body = functions.select((T[y, x] > 0) & ~(T[y, x] < 3) | (x < y), 1, 0)
    (line,) = lines(define("Y", [y, x], body))
    parts = ("logical_and(0 < T[y, x], 3 <= T[y, x])", "x < y")
    assert line in [
        f"Y[y, x] = select(logical_or({a}, {b}), 1, 0)" for a, b in (parts, parts[::-1])
    ]


def test_numbers_outside_are_exact_or_infinite():
    """A float is its shortest decimal, as in bodies; an infinity is not taken for zero."""
    for value, text in [(0.1, "0.1"), (np.float32(0.25), "1/4"), (float("-inf"), "-inf"), (2, "2")]:
        program = define("Y", [n], V.pad(value)[n - 1], extents={n: 7})
        assert lines(program) == [f"Y[n] = V{{{text}}}[n - 1]   for n < 7"]
        assert parse(str(program)) == program
    lowest = define(
        "Y", [n], max_over(r, V.pad(float("-inf"))[n - r], extents={r: 2}), extents={n: 8}
    )
    found = evaluate(lowest, {"V": [-5, -4, -3, -2, -1, -2, -3]})["Y"]
    assert found.data == [-5, -4, -3, -2, -1, -1, -2, -3]


def test_dtypes_of_numpy_are_understood():
    for dtype in (np.float64, np.dtype("float64"), "float64", "f64"):
        assert str(tensor("Q", (3,), dtype)) == "Q: f64[3]"
    with pytest.raises(FormulaError, match="unknown dtype"):
        tensor("Q", (3,), np.float16)


def test_own_reductions():
    X = tensor("X", (4, 6))
    norm = reduction("norm", lift=lambda v: v * v, combine=lambda a, b: a + b, project=sympy.sqrt)
    program = define("Y", [n], norm.over(c, X[n, c]))
    assert lines(program) == ["Y[n] = norm(c: X[n, c])"]
    other = reduction("norm", lift=lambda v: abs(v), combine=lambda a, b: a + b)
    with pytest.raises(FormulaError, match="two reductions are named norm"):
        define("Y", [n], norm.over(c, X[n, c]) + other.over(c, X[n, c]))
    with pytest.raises(FormulaError, match="not built in"):
        reduction("sum")


def test_sums_of_conditions_count():
    X = tensor("X", (6,))
    program = define("Y", [], sum_over(n, functions.less(X[n], 0)))
    assert str(program.output.dtype) == "i64"


T, V = tensor("T", (5, 6)), tensor("V", (7,))
OTHER = tensor("T", (5, 7))
M = define("M", [y], sum_over(x, T[y, x]))
REFUSED = [
    (lambda: define("Y", [n], T[n, c]), FormulaError, "undefined index c"),
    (lambda: define("Y", [n], T[n, x] + OTHER[n, x]), FormulaError, "undefined index x"),
    (lambda: define("Y", [n, x], T[n, x] + OTHER[n, x]), ShapeError, "axis x has two extents"),
    (lambda: define("Y", [n], T[n, 0] + OTHER[n, 0]), FormulaError, "two different tensors"),
    (lambda: define("T", [n], T[n, 0]), FormulaError, "read before it is written"),
    (lambda: define("M", [n], V[n] * M[n]), ShapeError, "two extents"),
    (lambda: define("M", [n], M[n] * 2), FormulaError, "read before it is written"),
    (lambda: define("Y", [n], sum_over(c, sum_over(x, T[c, x]))), FormulaError, "sum inside a sum"),
    (lambda: define("Y", [n], sum_over(n, V[n])), FormulaError, "both on the left"),
    (lambda: define("Y", [n], sum_over([], V[n])), FormulaError, "over no axis"),
    (lambda: define("Y", [n], V), FormulaError, "without indices"),
    (lambda: define("Y", [n], M), FormulaError, "without indices"),
    (lambda: define("Y", [n], "V[n]"), FormulaError, "V[n]"),
    (lambda: 2 * V, FormulaError, "V stands in a formula without indices; try V[...]"),
    (lambda: V + V, FormulaError, "without indices"),
    (lambda: V[n] * V, FormulaError, "without indices"),
    (lambda: V.pad("reflect") ** 2, FormulaError, "without indices"),
    (lambda: functions.relu(V), FormulaError, "without indices"),
    (lambda: functions.relu(M), FormulaError, "without indices"),
    (lambda: list(V), FormulaError, "without indices"),
    (lambda: V > 0, FormulaError, "without indices"),
    (lambda: sum_over(n, V), FormulaError, "without indices"),
    (lambda: sum_over(n, "V[n]"), FormulaError, "a body is an expression"),
    (lambda: define("Y", [n], V[n], extents={n: None}), ShapeError, "extent of n"),
    (lambda: define("Y", [n], V[n], extents={n: (0, 1, 2)}), ShapeError, "extent of n"),
    (lambda: define("Y", [n], V[n], extents={n: float("nan")}), ShapeError, "extent of n"),
    (lambda: define("Y", [n], V[n], shape=2.5), ShapeError, "shape of Y"),
    (lambda: V.pad(None), FormulaError, "a boundary; expected a name, a number"),
    (lambda: define("Y", [n], sympy.sin(V[n])), FormulaError, "sin"),
    (lambda: define("Y", [n], V[n] * sympy.Symbol("q")), FormulaError, "undefined name q"),
    (lambda: define("Y", [n], V[n], extents={x: 3}), FormulaError, "no axis of the formula"),
    (lambda: define("Y", [n], V[n] / 0), FormulaError, "division by zero"),
    (lambda: T[n], ShapeError, "expected 2 indices, got 1"),
    (lambda: V[V[n]], FormulaError, "data-dependent"),
    (lambda: V[n * n], FormulaError, "not affine"),
    (lambda: V.pad("wavy"), FormulaError, "unknown boundary"),
    (lambda: V.pad("zero", "zero")[n], ShapeError, "boundaries"),
    (lambda: tensor("9", (3,)), FormulaError, "identifier"),
    (lambda: tensor("Q", (-1,)), ShapeError, "extent -1"),
    (lambda: tensor("Q", (2.5,)), ShapeError, "extent 2.5"),
    (lambda: tensor("Q", (3,), "f99"), FormulaError, "unknown dtype"),
    (lambda: tensor("Q", (3,), role="thing"), FormulaError, "role 'thing'"),
    (lambda: tensor("Q", (3,), values=[1, 2]), ShapeError, "expected 3 values"),
    (lambda: tensor("Q", (1,), values=["a"]), FormulaError, "constant Q"),
    (lambda: sum_over("n", V[n]), FormulaError, "not an axis"),
    (lambda: sum_over(n, V[n], where=V[n] < 1), FormulaError, "data-dependent"),
    (lambda: pieces(), FormulaError, "of nothing"),
    (lambda: pieces(M, define("Q", [n], V[n])), FormulaError, "different outputs"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refusals(number):
    make, error, message = REFUSED[number]
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value), str(caught.value)


@pytest.mark.parametrize("equal", [True, False])
def test_truths_of_python_are_no_conditions(equal: bool) -> None:
    """== and != compare how expressions are written; such a condition was lost."""
    i, j = axes("i j")
    with pytest.raises(FormulaError, match=r"== and != compare .* try cg.equal\(a, b\)"):
        sum_over(j, tensor("X", (5,))[j], where=[i == j if equal else i != j])


LAWLESS = {
    "a difference": (lambda a, b: a - b, "is not associative; expected 0, got -6"),
    "a mean": (lambda a, b: (a + b) / 2, "is not associative"),
    "one more": (lambda a, b: a + b + 1, "changes an element joined with its identity"),
    "exponentials": (lambda a, b: a + b + sympy.exp(a * b) - 1, "is not associative"),
}


@pytest.mark.parametrize("name", LAWLESS)
def test_own_reductions_keep_the_laws_that_kernels_rely_on(name: str) -> None:
    """The value of such a reduction was the schedule's."""
    combine, message = LAWLESS[name]
    with pytest.raises(FormulaError, match=message):
        reduction("own", combine=combine, identity=0)


def test_own_reductions_may_depend_on_the_order_where_they_say_so() -> None:
    def then(a, b):
        return (a[0] * b[0], a[1] * b[0] + b[1])

    given = {"lift": lambda v: (v, 1), "combine": then, "identity": (1, 0)}
    assert not reduction("horner", **given, commutative=False).reduction.commutative
    with pytest.raises(FormulaError, match="is not commutative; .*; try commutative=False"):
        reduction("horner", **given)


def test_indices_may_be_integers_of_numpy_and_axes_must_be_axes() -> None:
    x = tensor("X", (4, 4))
    assert x[n, np.int64(2)] == x[n, 2]
    with pytest.raises(FormulaError, match="3 is not an axis; expected axes made by"):
        sum_over(3, x[n, 0])
    with pytest.raises(FormulaError, match="is not an axis"):
        sum_over(x[n, c], [c])
