"""The text form: round trips of whatever the language says, and refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction

import pytest
import sympy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import convgen
from convgen.errors import FormulaError, ShapeError, UserError
from convgen.symbolic import derive, dsl, functions
from convgen.symbolic.expr import Axis, Size
from convgen.symbolic.parse import parse

SHAPES = {"X": (4, 6, 6), "W": (4, 3), "b": (4,), "Z": ("N", 4), "g": ()}
OWN = dsl.reduction(
    "norm",
    lift=lambda v: v * v,
    combine=lambda a, b: a + b,
    project=lambda a: sympy.sqrt(a),
    adjoint=lambda v, y, g: g * v / y,
)
MOMENTS = dsl.reduction(
    "moments",
    lift=lambda v, p: (v, p + 1),
    combine=lambda a, b: (a[0] + b[0], functions.select(functions.less(a[1], b[1]), b[1], a[1])),
    identity=(0, 0),
    project=lambda a: (a[0] / (a[1] + 1), a[1]),
)
RATIONALS = st.fractions(min_value=-3, max_value=3, max_denominator=40).map(
    lambda f: sympy.Rational(f.numerator, f.denominator)
)


@st.composite
def indices(draw, axes):
    """A random quasi-affine index."""
    total = draw(st.integers(-2, 2))
    for axis in draw(st.lists(st.sampled_from(axes), min_size=1, max_size=2, unique=True)):
        total = total + draw(st.sampled_from([1, 2, -1])) * axis
    return {0: total, 1: total // 2, 2: total % 3}[draw(st.sampled_from([0, 0, 0, 0, 1, 2]))]


@st.composite
def bodies(draw, axes, tensors, depth=3):
    """A random body over axes of known extents."""
    if depth == 0 or draw(st.integers(0, 5)) == 0:
        kind = draw(st.integers(0, 5))
        if kind == 0:
            return draw(RATIONALS)
        if kind == 1:
            return draw(st.sampled_from(axes))
        tensor = draw(st.sampled_from(tensors))
        if not tensor.rank:
            return tensor[()]
        index = tuple(draw(indices(axes)) for _ in range(tensor.rank))
        mode = draw(st.sampled_from(["zero", "zero", "replicate", "constant"]))
        if mode == "constant":
            return tensor.pad(*(draw(RATIONALS) for _ in range(tensor.rank)))[index]
        return tensor.pad(mode)[index]
    a = draw(bodies(axes, tensors, depth - 1))
    b = draw(bodies(axes, tensors, depth - 1))
    match draw(st.integers(0, 11)):
        case 0 | 1:
            return a + b
        case 2 | 3:
            return a * b
        case 4:
            return a - b
        case 5:
            return a / (b**2 + 1)
        case 6:
            return functions.select(
                draw(st.sampled_from([functions.less, functions.equal]))(a, b), a, 0
            )
        case 7:
            return functions.maximum(a, functions.minimum(b, draw(RATIONALS)))
        case 8:
            return sympy.sqrt(functions.abs_(a) + 1) ** draw(st.sampled_from([1, -1, 3, -3]))
        case 9:
            return functions.relu(sympy.exp(-functions.abs_(a)) - functions.sigmoid(b))
        case 10:
            return functions.cast(sympy.tanh(a), "f64")
        case _:
            return a**2 / 3 + sympy.log(functions.abs_(b) + 2) * draw(RATIONALS)


@st.composite
def programs(draw):
    """One to three stages; the later ones read the earlier."""
    y, x, r, s = dsl.axes("y x r s")
    tensors = [dsl.tensor(name, shape) for name, shape in SHAPES.items() if name != "Z"]
    program = None
    for number in range(draw(st.integers(1, 3))):
        readable = [*tensors, *([program[f"T{number - 1}"]] if program is not None else [])]
        over = [
            dsl.sum_over, dsl.max_over, dsl.logsumexp_over, dsl.argmin_over, dsl.prod_over, OWN.over,
            MOMENTS.over,
        ]  # fmt: skip
        value = draw(bodies([y, x], readable, 2))
        for _ in range(draw(st.integers(0, 2))):
            inner = draw(bodies([y, x, r, s], readable, 2))
            where = draw(st.sampled_from([(), (r <= s,), (functions.equal((r + y) % 2, 0),)]))
            extents = {r: draw(st.integers(1, 3)), s: (draw(st.integers(0, 1)), 3)}
            reduced = draw(st.sampled_from(over))([r, s], inner, where=where, extents=extents)
            value = draw(st.sampled_from([value + reduced, value * reduced, 2 / 3 - reduced]))
        program = dsl.define(
            f"T{number}", [y, x], value, extents={y: 4, x: draw(st.integers(2, 5))}
        )
    return program


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_round_trip_of_random_programs(program):
    text = str(program)
    again = parse(text)
    assert again == program, f"{text}\n---\n{again}"
    assert str(again) == text


# Everything else the DSL says: each stage of a program is one of these.


def bounded(draw, tensor, index):
    """A read with a boundary of its own in every dimension."""
    kinds = ["zero", "reflect", "replicate", "circular", "constant"]
    chosen = [draw(st.sampled_from(kinds)) for _ in index]
    modes = [draw(RATIONALS) if k == "constant" else k for k in chosen]
    return tensor.pad(*modes)[tuple(a + draw(st.integers(-1, 1)) for a in index)]


def padded_by_a_stage(draw, number, x):
    i, j = dsl.axes("i j")
    mean = dsl.define(f"M{number}", [i], dsl.sum_over([j], x[i, j]) / x.shape[1])
    read = x.pad(".", mean[i])[i, j - 1]
    return [dsl.define(f"T{number}", [i, j], read, extents={i: x.shape[0], j: x.shape[1] + 2})]


def window_with_place(draw, number, x):
    i, j, r = dsl.axes("i j r")
    read = x.pad(".", "omit")[i, j + r - 1]
    outs = [(f"T{number}", [i, j]), (f"I{number}", [i, j])]
    bodies = (dsl.max_over([r], read), dsl.argmax_over([r], read))
    extents = {i: x.shape[0], j: x.shape[1], r: 3}
    kind = draw(st.sampled_from(["u8", "i32", "i64"]))
    return [dsl.define(outs, bodies, extents=extents, dtype=["f32", kind])]


def classes(draw, number, x):
    u, j = dsl.axes("u j")
    rows, columns = x.shape
    shape = (2 * rows, columns)
    made = [
        dsl.define(
            f"T{number}", [2 * u + k, j], x[u, j] * sympy.Rational(2, 3) + k + draw(RATIONALS),
            extents={u: rows, j: columns}, shape=shape,
        )
        for k in (0, 1)
    ]  # fmt: skip
    return [dsl.pieces(*made)]


def constant_filter(draw, number, x):
    i, j, r = dsl.axes("i j r")
    values = draw(st.lists(st.fractions(-2, 2, max_denominator=9), min_size=3, max_size=3))
    taps = dsl.tensor(
        f"K{number}", (3,), draw(st.sampled_from(["f32", "f64"])), role="constant", values=values
    )
    body = dsl.sum_over([r], bounded(draw, x, (i, j)) * taps[r])
    return [dsl.define(f"T{number}", [i, j], body, extents={i: x.shape[0], j: x.shape[1]})]


def chosen_and_held(draw, number, x):
    i, j = dsl.axes("i j")
    here = functions.logical_and(
        functions.less_equal(i, j), functions.logical_not(functions.less(x[i, j], 0))
    )
    body = functions.select(here, functions.stop_gradient(x[i, j]) * x[i, j], draw(RATIONALS))
    return [dsl.define(f"T{number}", [i, j], body)]


def random_mask(draw, number, x):
    i, j = dsl.axes("i j")
    seed = dsl.tensor(f"seed{number}", (), "u64")
    chance = functions.uniform(seed[()], i * x.shape[1] + j)
    body = functions.select(functions.less(chance, sympy.Rational(1, 4)), 0, x[i, j])
    return [dsl.define(f"T{number}", [i, j], body)]


def of_another_dtype(draw, number, x):
    i, j = dsl.axes("i j")
    whole = functions.cast(4 * x[i, j], draw(st.sampled_from(["i32", "i64", "u8", "f64"])))
    kind = draw(st.sampled_from(["f32", "f64"]))
    return [
        dsl.define(f"C{number}", [i, j], whole),
        dsl.define(f"T{number}", [i, j], functions.cast(x[i, j], kind), dtype=kind),
    ]


def given_gradient(draw, number, x):
    i, j = dsl.axes("i j")
    here = dsl.define(f"T{number}", [i, j], functions.relu(x[i, j]), name=f"given{number}")
    if x.role not in ("input", "parameter", "state"):
        return [here]
    cotangent = dsl.tensor(f"dT{number}", here.output.shape, here.output.dtype)
    back = dsl.define(f"d{x.name}", [i, j], functions.relu(cotangent[i, j] - draw(RATIONALS)))
    return [derive.custom_gradient(here, back)]


def blocks(draw, number, x):
    i, j = dsl.axes("i j")
    m = draw(st.integers(2, 3))
    body = x.pad("zero")[i // m, j] + (i % m) * x.pad("replicate")[0, m * (j // m)]
    return [dsl.define(f"T{number}", [i, j], body, extents={i: x.shape[0], j: x.shape[1]})]


def triangle(draw, number, x):
    i, j, k = dsl.axes("i j k")
    rule = draw(
        st.sampled_from([dsl.sum_over, dsl.prod_over, dsl.logsumexp_over, dsl.min_over, OWN.over])
    )
    where = draw(st.sampled_from([(k <= j,), (k <= j, functions.equal((k + i) % 2, 0))]))
    body = rule([k], x[i, k] * (k + 1), where=where, extents={k: x.shape[1]})
    return [dsl.define(f"T{number}", [i, j], body, extents={i: x.shape[0], j: x.shape[1]})]


STAGES = [
    padded_by_a_stage, window_with_place, classes, constant_filter, chosen_and_held, random_mask,
    of_another_dtype, given_gradient, blocks, triangle,
]  # fmt: skip


@st.composite
def programs_of_everything(draw):
    """Stages of every kind after each other, then what a step keeps and changes."""
    role = draw(st.sampled_from(["input", "parameter"]))
    x = dsl.tensor("X", (draw(st.integers(2, 4)), draw(st.integers(2, 4))), "f32", role=role)
    made = []
    for number, stage in enumerate(draw(st.lists(st.sampled_from(STAGES), min_size=1, max_size=4))):
        found = stage(draw, number, x)
        made += found
        x = found[-1][f"T{number}"]
    i, j = dsl.axes("i j")
    updates, saved = {}, []
    if draw(st.booleans()):
        state = dsl.tensor("S", x.shape, x.dtype, role="state")
        made.append(dsl.define("S_new", [i, j], state[i, j] * sympy.Rational(9, 10) + x[i, j]))
        updates = {"S": "S_new"}
    written = [t.name for p in made for t in p.outputs]
    outputs = draw(st.lists(st.sampled_from(written), unique=True, min_size=0 if updates else 1))
    saved = draw(st.lists(st.sampled_from(written), unique=True, max_size=2))
    return dsl.combine("everything", made, outputs=outputs, saved=saved, updates=updates)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs_of_everything())
def test_round_trip_of_everything(program):
    text = str(program)
    again = parse(text)
    assert again == program, f"{text}\n---\n{again}"
    assert str(again) == text
    assert [t.role for t in again.tensors().values()] == [
        t.role for t in program.tensors().values()
    ]
    assert [s.backward for s in again.stages] == [s.backward for s in program.stages]


def test_custom_gradients_are_part_of_the_text():
    layer = parse("Y[i] = relu(X[i])", X=(4,))
    guided = parse("dX[i] = relu(dY[i]) * step(Y[i])", Y=(4,), dY=(4,))
    program = derive.custom_gradient(layer, guided)
    lines = str(program).splitlines()
    assert lines[3:5] == ["gradient of Y", "  program dX"]
    again = parse(str(program))
    assert again == program and again != layer
    assert derive.grad(again) == derive.grad(program) != derive.grad(layer)
    mutant = parse(str(program).replace("step(Y[i])", "step(-Y[i])"))
    assert mutant != program


REFUSED_GRADIENTS = [
    ("gradient of Z\n  dX[i] = dY[i]", "expected one of Y, written above"),
    ("gradient of\n  dX[i] = dY[i]", "the gradient of nothing is given"),
    ("gradient of Y", "the lines of a program, indented, below"),
    ("gradient of Y\ndX[i] = 2", "the lines of a program, indented, below"),
    ("gradient of Y\n  tensor dY: f32[3]\n  dX[i] = dY[i]", "expected shape [4], got [3]"),
    ("gradient of Y\n  tensor Q: f32[4]\n  dX[i] = Q[i]", "Q in dX; expected one of X, Y, dX, dY"),
    ("gradient of Y\n  tensor dY: f32[4]\n  dX[i] = dY[j]", "line 5: undefined index j"),
]


@pytest.mark.parametrize("text, message", REFUSED_GRADIENTS)
def test_refusals_of_custom_gradients(text, message):
    with pytest.raises(UserError) as caught:
        parse("tensor X: f32[4]\nY[i] = X[i]\n" + text)
    assert message in str(caught.value), str(caught.value)


WRITTEN = [
    "Y[n, k] = sum(c: X[n, c] * W[k, c])",
    "Y[i] = sum(j where j <= i: T[i, j])",
    "Y[i] = sum(j < 3, 1 <= k < 3 where i <= j + k, (i + j) % 2 == 0: T[i, j] * k)",
    "Y[n] = argmax(k: T[n, k]).1",
    "Y[n], I[n] = max(k: T[n, k]), argmax(k: T[n, k])",
    "Y[n] = cast(T[n, 0] * 3, u8)",
    "Y[y, x] = T{., -1/2}[y, x - 1]   for x < 7",
    "Y[y, x] = T{circular, reflect}[y + 1, x - 1]   for y < 5, x < 7",
    "Y[y, x] = T{M[x]}[y - 1, x]   for y < 5",
    "Y[i, j] = select(i == j, 1, 0)   for i < 3, j < 3",
    "Y[] = prod(i, j: T[i, j])",
    "Y[i] = T[i, i] + T[i, 5 - i] ** 2 ** T[0, 0] - -T[i // 2, i % 3]   for i < 5",
    "Y[i] = 1e-5 * T[i, 0] + 0.1 + 1/3 + inf * M[i]   for i < 5",
    "Y[i] = select(is_nan(T[i, 0]), nan, pi)",
]


@pytest.mark.parametrize("text", WRITTEN)
def test_round_trip_of_written_programs(text):
    shapes = {"T": (5, 6), "M": (6,), "X": ("N", 3), "W": (4, 3)}
    used = {k: v for k, v in shapes.items() if f"{k}[" in text or f"{k}{{" in text}
    program = parse(text, **used)
    again = parse(str(program))
    assert again == program and str(again) == str(program)


def test_inputs_keep_the_order_of_the_text():
    program = parse("Y[k] = b[k] + sum(c: W[k, c] * X[c])", X=3, W=(2, 3), b=2)
    assert [t.name for t in program.inputs] == ["b", "W", "X"]
    declared = parse(
        "tensor X: f32[3]\ntensor W: f32[2, 3]\ntensor b: f32[2]\n"
        "Y[k] = b[k] + sum(c: W[k, c] * X[c])"
    )
    assert [t.name for t in declared.inputs] == ["X", "W", "b"]
    assert "sum(c: X[c] * W[k, c]) + b[k]" in str(declared)


def test_comments_and_continued_lines():
    text = "# a layer\nY[n, k] = sum(c:   # products\n  X[n, c] *\n  W[k, c])"
    assert parse(text, X=(2, 3), W=(4, 3)) == parse(text.splitlines()[1].split("#")[0] + text[42:].replace("\n", "").split("products")[-1], X=(2, 3), W=(4, 3))  # fmt: skip


def test_full_form_says_everything():
    text = """program everything
reduction norm(lift = v**2, combine = a0 + b0, identity = 0, project = sqrt(a0), adjoint = g * v / y0)
reduction widest(lift = (v, p), combine = (maximum(a0, b0), a1 + b1), identity = (-inf, 0), project = a0, dtypes = (., i64), commutative = false)
tensor X: f32[N, 6]
parameter W: f64[6]
state s: f32[6]
constant K: f32[3] = [1, 1/2, -1]
output Y: f64[N, 6]
output A: f32[12]
M[i] = norm(n: X[n, i])
V[n, i] = widest(j: X[n, i] * K[j])
Y[n, i] = W[i] * M[i] + V[n, i] / N
A[2*u] = s[u]
A[2*u + 1] = M[u]
new[i] = 0.9 * s[i] + A[2*i]
saved M, V
update s <- new"""
    program = parse(text)
    assert str(program) == text
    assert parse(str(program)) == program
    assert program.saved == ("M", "V") and program.updates == (("s", "new"),)
    assert program.sizes() == ("N",)
    assert program.constants()[0].values == (1, Fraction(1, 2), -1)
    assert program.bind(N=2) == parse(str(program.bind(N=2)))


REFUSED = [
    ("Y[i] = X[j]", FormulaError, "undefined index j"),
    ("Y[y] = X{reflect}[y - 1]", ShapeError, "extent of axis y is ambiguous"),
    ("Y[y] = sum(r: X[y + r])", ShapeError, "axis y is ambiguous"),
    ("Y[y] = X[y].real", FormulaError, "column 12"),
    ("Y[y] = X.shape", FormulaError, "attributes are not in the language"),
    ("Y[y] = __import__('os')", FormulaError, "__import__ is not in the language"),
    ("Y[y] = eval(X[y])", FormulaError, "a call of eval"),
    ("Y[y] = X[y]; import os", FormulaError, "character ';'"),
    ("Y[y] = 'a'", FormulaError, "character"),
    ("Y[y] = lambda: 0", FormulaError, "expected"),
    ("Y[y] = X[0*y]", FormulaError, "stride of 0"),
    ("Y[y] = X[y, y]", ShapeError, "X has 1 dimensions; expected 1 indices, got 2"),
    ("Y[y] = sum(r: X[y + r] * Z[r])", ShapeError, "smaller kernel"),
    ("Y[y] = X[Z[y]]", FormulaError, "data-dependent address"),
    ("Y[y] = sum(y: X[y])", FormulaError, "both on the left"),
    ("Y[y] = X[y] + Z[y]", ShapeError, "axis y has two extents"),
    ("Y[y] = X{reflect}[y - 5] for y < 9", ShapeError, "reflect padding is as wide"),
    ("Y[y] = X{circular}[y - 6] for y < 9", ShapeError, "circular padding is wider"),
    ("Y[y] = X{wavy}[y]", FormulaError, "unknown boundary"),
    ("Y[y] = X[y", FormulaError, "the end of the line"),
    ("Y[y] = X[y] / 0", FormulaError, "division by zero"),
    ("Y[y] = 0 ** -1 * X[y]", FormulaError, "division by zero"),
    ("Y[y] = 9 ** 9 ** 9 * X[y]", FormulaError, "too large"),
    ("Y[y] = 1e99999 * X[y]", FormulaError, "too long"),
    ("Y[y] = " + "(" * 500 + "X[y]" + ")" * 500, FormulaError, "nested too deeply"),
    ("Y[y] = " + "-" * 5000 + "X[y]", None, ""),
    ("Y[y] = sum(X[y])", FormulaError, "sum(axes: body)"),
    ("Y[y] = sum(r: sum(s: X[y + r + s]))", FormulaError, "a sum inside a sum"),
    ("Y[y] = sum(r, r: X[r])", FormulaError, "summed twice"),
    ("Y[y] = Q[y]", FormulaError, "unknown tensor Q"),
    ("Y[y] = X[y*y]", FormulaError, "not affine"),
    ("Y[y] = X[y / 2]", FormulaError, "not affine"),
    ("Y[y] = X[y // 0]", FormulaError, "positive integer"),
    ("Y[y] = X[y] Z[y]", FormulaError, "the end of the line"),
    ("Y[y] = relu(X[y], 2)", FormulaError, "relu with 2 arguments"),
    ("Y[y] = cast(X[y], q8)", FormulaError, "cast to q8"),
    ("Y[2*u] = X[u]", FormulaError, "never written"),
    ("Y[u] = X[u] \nY[u] = X[u]", FormulaError, "twice"),
    ("X[u] = X[u]", FormulaError, "read before it is written"),
    ("Y[y] = X", FormulaError, "undefined index X"),
    ("Y{reflect}[y] = X[y]", FormulaError, "boundary on the left"),
    ("tensor Q: f99[3]", FormulaError, "unknown dtype"),
    ("", FormulaError, "no formula"),
    ("update s <- q", FormulaError, ""),
]


@pytest.mark.parametrize("text, error, message", REFUSED)
def test_refusals(text, error, message):
    shapes = {
        k: v for k, v in {"X": (5,), "Z": (7,)}.items() if f"{k}[" in text or f"{k}{{" in text
    }
    if error is None:
        parse(text, **shapes)
        return
    with pytest.raises(error) as caught:
        parse(text, **shapes)
    assert message in str(caught.value), str(caught.value)


def test_a_shape_that_nothing_reads_is_refused():
    with pytest.raises(FormulaError, match="a shape is given for Q"):
        parse("Y[y] = X[y]", X=5, Q=3)


@settings(max_examples=300, deadline=None)
@given(st.text("YXab yx[](){}=+-*/%<>:,.0123456789e'forsumwhere\n", max_size=60))
def test_any_text_is_read_or_refused_cleanly(text):
    try:
        parse("Y[y] = " + text, X=(5,), a=())
    except UserError:
        pass


def test_text_does_not_depend_on_the_hash_seed():
    code = (
        "from convgen.symbolic.parse import parse\n"
        "p = parse('Y[n,k] = relu(sum(c: X[n,c]*W[k,c] + exp(V[c])*W[k,c]) + b[k]*X[n,0] - V[k])',"
        " X=(5,4), W=(4,4), b=4, V=4)\nprint(p)\nprint(p.latex())\nprint(p.to_numpy())"
    )
    folder = os.path.dirname(os.path.dirname(convgen.__file__))
    found = set()
    for seed in ("0", "1", "77"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": folder}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_axes_and_sizes_are_told_apart():
    program = parse("Y[n] = X[n] * N + n", X=("N",))
    (value,) = program.stages[0].pieces[0].values
    assert {type(s) for s in value.free_symbols if not hasattr(s, "tensor")} == {Axis, Size}


def test_a_mapping_is_no_shape():
    with pytest.raises(FormulaError, match=r"shapes= is a mapping.*parse\(text, \*\*shapes\)"):
        parse("Y[n] = X[n]", shapes={"X": (2,)})


def test_lists_say_how_they_may_go_on():
    for text, wanted in [
        ("Y[i] = T[i", "',' or ']'"),
        ("Y[i] = T{zero[i]", "',' or '}'"),
        ("Y[i] = relu(T[i]", "',' or ')'"),
        ("tensor X: f32[4", "',' or ']'"),
    ]:
        with pytest.raises(UserError) as caught:
            parse(text, T=(4,))
        assert f"expected {wanted}, got" in str(caught.value)
    with pytest.raises(UserError, match="maximum\\(a, b\\), or max\\(axes: body\\)"):
        parse("Y[i] = max(T[i], 0)", T=(4,))
