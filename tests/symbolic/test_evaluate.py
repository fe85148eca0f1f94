import math
from fractions import Fraction

import numpy as np
import pytest
import reference
import sympy
from formulas import domain, image_program, piece, program, reduce, tensor

from convgen.affine import Affine, Constraint
from convgen.errors import DataError, FormulaError
from convgen.symbolic import functions as fn
from convgen.symbolic.boundary import Constant
from convgen.symbolic.evaluate import Array, evaluate
from convgen.symbolic.evaluate_scalar import Arithmetic, philox
from convgen.symbolic.expr import Access, Domain, Range, Result, Size, affine_of, axes
from convgen.symbolic.reductions import reduction

F = Fraction
i, j, n, k, y, x, c, r, s = axes("i j n k y x c r s")


def one(expr, inputs, shapes, out=(), ranges=None, dtype="f32", dtypes=None, **options):
    """Evaluate Y[...] = expr(**tensors)."""
    tensors = {
        name: tensor(name, *shape, dtype=(dtypes or {}).get(name, "f32"))
        for name, shape in shapes.items()
    }
    Y = tensor("Y", *out, role="output", dtype=dtype)
    value, reduces = expr(**tensors)
    index = tuple(axes("i j")[: len(out)])
    ranges = ranges or dict(zip("ij", out, strict=False))
    return evaluate(
        program(list(tensors.values()), piece(Y[index], ranges, value, reduces)), inputs, **options
    )["Y"].tolist()


# Textbook 3


def test_true_convolution_same_size():
    p = image_program((3, 3), (3, 3), flip=True, out=(3, 3))
    X = [[[[0, 1, 3], [1, 2, 2], [0, 0, 0]]]]
    W = [[[[0, 1, 2], [2, 2, 0], [0, 1, 2]]]]
    assert evaluate(p, {"X": X, "W": W})["Y"].tolist() == [[[[0, 0, 1], [0, 3, 12], [2, 6, 9]]]]


def test_valid_cross_correlation():
    p = image_program((5, 5), (3, 3))
    X = [3, 3, 2, 1, 0, 0, 0, 1, 3, 1, 3, 1, 2, 2, 3, 2, 0, 0, 2, 2, 2, 0, 0, 0, 1]
    W = [0, 1, 2, 2, 2, 0, 0, 1, 2]
    assert evaluate(p, {"X": X, "W": W})["Y"].data == [12, 12, 17, 10, 17, 19, 9, 6, 14]


def test_valid_true_convolution_with_fractions():
    p = image_program((3, 3), (2, 2), flip=True, out=(3, 3))
    X, W = [0, 80, 40, 20, 40, 0, 0, 0, 40], [0, F(1, 4), F(1, 2), 1]
    full = evaluate(p, {"X": X, "W": W})["Y"].tolist()[0][0]
    assert [row[1:] for row in full[1:]] == [[45, 110], [40, 40]]


X3 = [
    [[2, 1, 0, 0], [0, 0, 2, 1], [0, 2, 0, 1], [2, 1, 0, 1]],
    [[2, 2, 0, 0], [0, 0, 2, 1], [0, 0, 2, 0], [0, 1, 0, 1]],
    [[2, 1, 0, 0], [0, 0, 2, 1], [2, 0, 0, 0], [0, 1, 0, 1]],
]
W3 = [
    [[1, 0, 0], [0, -2, 0], [0, 0, -1]],
    [[1, 2, 0], [2, 0, -1], [0, -1, 1]],
    [[0, 0, -2], [0, 1, 2], [-2, 2, 0]],
]


@pytest.mark.parametrize("numbers", ["exact", "float", "mp"])
def test_three_channel_exercise_through_relu_and_pools(numbers):
    X, W, b = tensor("X", 3, 4, 4), tensor("W", 3, 3, 3), tensor("b")
    Y = tensor("Y", 4, 4, role="temporary")
    P, Q = tensor("P", 2, 2, role="output"), tensor("Q", 2, 2, role="output")
    body = X[c, y + r - 1, x + s - 1] * W[c, r, s]
    first = piece(
        Y[y, x],
        {"y": 4, "x": 4},
        fn.relu(Result(0) + b[()]),
        [reduce("sum", {"c": 3, "r": 3, "s": 3}, body)],
    )
    window, over = Y[2 * y + r, 2 * x + s], {"r": 2, "s": 2}
    pools = piece(
        [P[y, x], Q[y, x]],
        {"y": 2, "x": 2},
        [Result(0), Result(1) / 4],
        [reduce("max", over, window), reduce("sum", over, window)],
    )
    net = program([X, W, b], first, pools)
    got = evaluate(net, {"X": X3, "W": W3, "b": 2}, numbers=numbers, temporaries=True)
    assert got["Y"].tolist() == [[0, 5, 8, 0], [6, 10, 1, 5], [4, 0, 2, 11], [0, 1, 11, 3]]
    assert got["P"].tolist() == [[10, 8], [4, 11]]
    assert got["Q"].tolist() == [[F(21, 4), F(7, 2)], [F(5, 4), F(27, 4)]]


# Boundaries, against NumPy


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_against_numpy(mode, stride, dilation):
    draw = np.random.default_rng(0)
    X, W = draw.integers(-4, 5, (2, 3, 6, 5)), draw.integers(-4, 5, (2, 3, 3, 2))
    p = image_program((6, 5), (3, 2), (2, 3), 2, stride, dilation, padding=2, mode=mode)
    want = reference.conv(X, W, stride=stride, padding=2, dilation=dilation, mode=mode)
    assert evaluate(p, {"X": X, "W": W})["Y"].tolist() == want.tolist()
    mutant = image_program(
        (6, 5), (3, 2), (2, 3), 2, stride, dilation, padding=1, mode=mode, out=want.shape[2:]
    )
    assert evaluate(mutant, {"X": X, "W": W})["Y"].tolist() != want.tolist()


def test_reference_transposed_and_gradients_agree():
    draw = np.random.default_rng(1)
    x = draw.integers(-4, 5, (2, 4, 5, 4)).astype(float)
    w = draw.integers(-4, 5, (6, 2, 3, 2)).astype(float)
    how = {"stride": 2, "padding": 1, "groups": 2}
    dy = draw.integers(-4, 5, reference.conv(x, w, **how).shape).astype(float)
    dx, dw = reference.conv_gradients(x, w, dy, **how)
    back = reference.conv_transpose(dy, w, output_padding=(0, 0), **how)
    pad = [(0, 0)] * 2 + [(0, a - b) for a, b in zip(x.shape[2:], back.shape[2:], strict=True)]
    assert np.array_equal(dx, np.pad(back, pad))
    assert (reference.conv(x, w, **how) * dy).sum() == (dx * x).sum() == (dw * w).sum()


def test_constant_boundary_may_read_another_tensor():
    X, M, Y = tensor("X", 2, 3), tensor("M", 2, role="temporary"), tensor("Y", 2, 5, role="output")
    mean = piece(M[i], {"i": 2}, Result(0) / 3, [reduce("sum", {"j": 3}, X[i, j])])
    read = Access(X, (affine_of(i), affine_of(j - 1)), (X[0, 0].boundary[0], Constant(M[i])))
    padded = piece(Y[i, j], {"i": 2, "j": 5}, read)
    got = evaluate(program([X], mean, padded), {"X": [[1, 2, 4], [0, 0, 6]]})["Y"]
    assert got.tolist() == [[F(7, 3), 1, 2, 4, F(7, 3)], [2, 0, 0, 6, 2]]


def test_constant_boundary_of_a_number():
    assert one(lambda X: (X.pad(-7)[i - 1], []), {"X": [1, 2]}, {"X": (2,)}, (4,)) == [-7, 1, 2, -7]


def test_omit_differs_from_zero():
    inputs, shapes = {"X": [-3, -1, -2]}, {"X": (3,)}
    for mode, want in (("omit", [-1, -1, -1]), ("zero", [0, -1, 0])):
        got = one(
            lambda X, mode=mode: (Result(0), [reduce("max", {"r": 3}, X.pad(mode)[i + r - 1])]),
            inputs,
            shapes,
            (3,),
        )
        assert got == want
    count = one(
        lambda X: (
            Result(0),
            [reduce("sum", {"r": 3}, 1 + 0 * X[i] + X.pad("omit")[i + r - 1] * 0 + 1)],
        ),
        inputs,
        shapes,
        (3,),
    )
    assert count == [6, 6, 6]  # sympy drops 0 * X, and with it the omission
    with pytest.raises(FormulaError, match="omitted element is read outside"):
        one(lambda X: (X.pad("omit")[i - 1], []), inputs, shapes, (3,))


def test_folding_too_far_is_refused():
    with pytest.raises(FormulaError, match="cannot fold"):
        one(lambda X: (X.pad("reflect")[i - 3], []), {"X": [1, 2, 3]}, {"X": (3,)}, (3,))


# Reductions

NAN = math.nan


@pytest.mark.parametrize(
    ("kind", "data", "position", "value"),
    [
        ("argmax", [1, 3, 3, 2], 1, 3),
        ("argmin", [1, 0, 3, 0], 1, 0),
        ("argmax", [1, NAN, 5, NAN], 3, NAN),
        ("argmin", [1, NAN, -5, 0], 1, NAN),
        ("argmax", [-math.inf] * 4, 0, -math.inf),
    ],
)
def test_argmax_first_wins_and_nan_wins(kind, data, position, value):
    reduces = [reduce(kind, {"r": 4}, tensor("X", 4)[r])]
    got = one(lambda X: (Result(0, 0), reduces), {"X": data}, {"X": (4,)}, dtype="i64")
    assert got == position
    got = one(lambda X: (Result(0, 1), reduces), {"X": data}, {"X": (4,)})
    assert got == value or (got != got and value != value)


def test_argmax_position_counts_omitted_elements():
    X = tensor("X", 2, 2)
    body = X.pad("omit")[i + r - 1, s]
    got = one(
        lambda X: (Result(0, 0), [reduce("argmax", {"r": 3, "s": 2}, body)]),
        {"X": [[1, 2], [0, 5]]},
        {"X": (2, 2)},
        (2,),
        dtype="u8",
    )
    assert got == [5, 3]


@pytest.mark.parametrize(
    ("kind", "want"),
    [("sum", 0), ("prod", 1), ("max", -math.inf), ("min", math.inf), ("logsumexp", -math.inf)],
)
def test_empty_reductions_give_the_identity(kind, want):
    assert (
        one(lambda X: (Result(0), [reduce(kind, {"r": 0}, X[r])]), {"X": [1]}, {"X": (1,)}) == want
    )


@pytest.mark.parametrize(
    ("data", "want"),
    [
        ([0, 0], math.log(2)),
        ([1000, 1000, 1000], 1000 + math.log(3)),
        ([-math.inf] * 2, -math.inf),
        ([math.inf, 1], math.inf),
        ([-math.inf, 2], 2),
    ],
)
def test_logsumexp_is_stable(data, want):
    got = one(
        lambda X: (Result(0), [reduce("logsumexp", {"r": len(data)}, X[r])]),
        {"X": data},
        {"X": (len(data),)},
    )
    assert got == pytest.approx(want)


def test_own_reductions_and_order():
    horner = reduction(
        "horner",
        lambda v: (v, 2),
        lambda a, b: (a[0] * b[1] + b[0], a[1] * b[1]),
        (0, 1),
        lambda a: a[0],
        commutative=False,
    )
    assert (
        one(
            lambda X: (Result(0), [reduce(horner, {"r": 4}, X[r])]),
            {"X": [1, 0, 1, 1]},
            {"X": (4,)},
        )
        == 11
    )
    norm = reduction("norm", lift=lambda v: v * v, project=sympy.sqrt)
    assert (
        one(lambda X: (Result(0), [reduce(norm, {"r": 2}, X[r])]), {"X": [3, 4]}, {"X": (2,)}) == 5
    )


def test_constraints_of_a_reduction_see_the_outer_axes():
    lower = Constraint("<=", Affine.of("r") - Affine.of("i"))
    even = Constraint("%", Affine.of("r") + Affine.of("i"), 2)
    X = tensor("X", 4)
    got = one(
        lambda X: (Result(0), [reduce("sum", {"r": 4}, X[r], [lower, even])]),
        {"X": [1, 10, 100, 1000]},
        {"X": (4,)},
        (4,),
    )
    assert got == [1, 10, 101, 1010]
    assert X.rank == 1


# Scalars


@pytest.mark.parametrize(
    ("build", "value", "want"),
    [
        (lambda v: fn.relu(v), -3, 0),
        (lambda v: fn.relu(v), NAN, NAN),
        (lambda v: fn.maximum(v, 1), NAN, NAN),
        (lambda v: fn.minimum(v, 1), F(1, 3), F(1, 3)),
        (lambda v: fn.select(fn.less(v, 0), 1 / (v - 2), 7), 2, 7),
        (lambda v: fn.select(fn.is_nan(v), 1, 2), NAN, 1),
        (lambda v: fn.select(fn.equal(v, v + 0), 1, 2), 3, 1),
        (lambda v: fn.logical_and(fn.less(0, v), fn.less_equal(v, 2)), 2, 1),
        (lambda v: fn.logical_or(fn.less(v, 0), fn.logical_not(fn.equal(v, 2))), 2, 0),
        (lambda v: fn.step(v) + 2 * fn.sign(v) + fn.abs_(v), 0, 0),
        (lambda v: fn.step(v) + 2 * fn.sign(v) + fn.abs_(v), -5, 3),
        (lambda v: fn.round_down(v), F(-7, 2), -4),
        (lambda v: 1 / v, 0, math.inf),
        (lambda v: -1 / v, 0, -math.inf),
        (lambda v: v / (v + 0 * v), 4, 1),
        (lambda v: sympy.sqrt(v), F(9, 16), F(3, 4)),
        (lambda v: 1 / sympy.sqrt(v), F(9, 16), F(4, 3)),
        (lambda v: sympy.sqrt(v), -1, NAN),
        (lambda v: sympy.log(v), 0, -math.inf),
        (lambda v: sympy.exp(v), 0, 1),
        (lambda v: sympy.exp(v), 10000, math.inf),
        (lambda v: fn.sigmoid(v), 0, F(1, 2)),
        (lambda v: fn.sigmoid(v), -1000, 0.0),
        (lambda v: sympy.tanh(v) + sympy.erf(v), 0, 0),
        (lambda v: v**3 + v**-2, 2, F(33, 4)),
        (lambda v: fn.cast(v, "i32"), F(-7, 2), -3),
        (lambda v: fn.cast(v, "u8"), 257, 1),
    ],
)
def test_scalar_functions(build, value, want):
    got = one(lambda v: (build(v[()]), []), {"v": value}, {"v": ()}, dtype="f64")
    assert got == want or (got != got and want != want)


def test_integers_wrap_at_the_store():
    for dtype, want in (("u8", 44), ("i32", 300), ("bool", 1), ("f32", 300)):
        assert one(lambda v: (v[()] * 30, []), {"v": 10}, {"v": ()}, dtype=dtype) == want
    assert one(
        lambda v: (v[()] * 2, []), {"v": 2**30}, {"v": ()}, dtype="i32", dtypes={"v": "i32"}
    ) == -(2**31)


def test_numbers_of_fifty_digits():
    got = one(lambda v: (sympy.exp(v[()]) / 3, []), {"v": 1}, {"v": ()}, numbers="mp")
    assert abs(got * 3 - sympy.E.evalf(50)) < sympy.Float("1e-48")
    assert isinstance(one(lambda v: (v[()] / 3, []), {"v": 1}, {"v": ()}, exact=False), float)
    assert one(lambda v: (v[()] / 3, []), {"v": 1}, {"v": ()}) == F(1, 3)
    with pytest.raises(DataError, match="exact, float or mp"):
        Arithmetic("fixed")


def test_axes_are_numbers_and_division_rounds_down():
    assert one(
        lambda X: (X[()] * i + sympy.floor(i / 2) + sympy.Mod(i, 3), []), {"X": 10}, {"X": ()}, (4,)
    ) == [0, 11, 23, 31]
    tiled = one(lambda X: (X[sympy.Mod(i, 2)], []), {"X": [5, 6]}, {"X": (2,)}, (5,))
    assert tiled == [5, 6, 5, 6, 5]


def test_philox_known_answers():
    assert philox((0, 0), (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert philox((ones, ones), (ones,) * 4) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox((0xA4093822, 0x299F31D0), pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_uniform_depends_on_seed_and_index_only():
    draws = one(
        lambda S: (fn.uniform(S[()], i), []), {"S": 0}, {"S": ()}, (200,), dtypes={"S": "u64"}
    )
    assert draws[0] == F(0x6627E8D5 >> 8, 1 << 24) and len(set(draws)) == 200
    assert 0.4 < sum(draws) / 200 < 0.6 and all(0 <= u < 1 for u in draws)


# Programs


def test_pieces_updates_saved_and_constants():
    X, m = tensor("X", 4), tensor("m", role="state")
    K = tensor("K", 2, role="constant", values=(F(1), F(1, 2)))
    Y, T, new = (
        tensor("Y", 4, role="output"),
        tensor("T", role="temporary"),
        tensor("new", role="temporary"),
    )
    total = piece(T[()], {}, Result(0), [reduce("sum", {"i": 4}, X[i])])
    after = piece(new[()], {}, m[()] / 2 + T[()] / 2)
    phases = [
        piece(Y[2 * i], {"i": 2}, X[2 * i] * K[0]),
        piece(Y[2 * i + 1], {"i": 2}, X[2 * i + 1] * K[1]),
    ]
    p = program([X, m], total, after, phases, saved=("T",), updates=(("m", "new"),))
    got = evaluate(p, {"X": [1, 2, 3, 4], "m": 2})
    assert {name: a.tolist() for name, a in got.items()} == {"Y": [1, 1, 3, 2], "T": 10, "m": 6}
    hole = program([X, m], phases[:1])
    with pytest.raises(FormulaError, match=r"Y\[1\] is never written"):
        evaluate(hole, {"X": [1, 2, 3, 4], "m": 0})
    twice = program([X, m], [*phases, phases[0]])
    with pytest.raises(FormulaError, match=r"Y\[0\] is written twice"):
        evaluate(twice, {"X": [1, 2, 3, 4], "m": 0})
    with pytest.raises(FormulaError, match="writes outside"):
        evaluate(program([X, m], piece(Y[i + 1], {"i": 4}, 0)), {"X": [1, 2, 3, 4], "m": 0})


def test_sizes_come_from_the_inputs():
    N = Size("N")
    X, Y = tensor("X", N, 2), tensor("Y", N, role="output")
    d = Domain((Range("n", 0, N),))
    p = program([X], piece(Y[n], {}, Result(0) / N, [reduce("sum", {"c": 2}, X[n, c])]))
    stage = p.stages[0]
    fixed = type(stage.pieces[0])(
        stage.pieces[0].outs, d, stage.pieces[0].reduces, stage.pieces[0].values
    )
    p = program([X], fixed)
    assert evaluate(p, {"X": [[1, 2], [3, 4], [5, 6]]})["Y"].tolist() == [1, F(7, 3), F(11, 3)]
    assert evaluate(p, {"X": [1, 2, 3, 4]})["Y"].tolist() == [F(3, 2), F(7, 2)]
    assert evaluate(p, {"X": []})["Y"].tolist() == []
    assert evaluate(p, {"X": Array((1, 2), [1, 2])})["Y"].tolist() == [3]


def test_inputs_are_checked():
    p = image_program((3, 3), (2, 2))
    with pytest.raises(DataError, match="input W is missing"):
        evaluate(p, {"X": [0] * 9})
    with pytest.raises(DataError, match=r"expected shape \[1, 1, 3, 3\], got shape \[8\]"):
        evaluate(p, {"X": [0] * 8, "W": [0] * 4})
    with pytest.raises(DataError, match="ragged"):
        evaluate(p, {"X": [[1, 2], [3]], "W": [0] * 4})
    with pytest.raises(DataError, match="no input is named 'Z'"):
        evaluate(p, {"X": [0] * 9, "W": [0] * 4, "Z": 1})


def test_magnitude_adds_absolute_values():
    p = image_program((3,), (2,))
    inputs = {"X": [1, -2, 3], "W": [1, 1]}
    assert evaluate(p, inputs)["Y"].data == [-1, 1]
    assert evaluate(p, inputs, magnitude=True)["Y"].data == [3, 5]
    got = one(lambda v: (sympy.exp(v[0] - v[1]), []), {"v": [30, 30]}, {"v": (2,)}, magnitude=True)
    assert got == 60  # exp' times the magnitude of what cancelled
    assert (
        one(lambda v: (fn.relu(v[0] - v[1]), []), {"v": [1, 3]}, {"v": (2,)}, magnitude=True) == 0
    )


def test_error_measure():
    assert reference.error([1, 2], [1, 2]) == 0
    assert reference.error([0.5], [0], [100]) == 0.005
    assert reference.error([NAN], [0]) == math.inf and reference.error([NAN, 1], [NAN, 1]) == 0
    assert reference.error(Array((2,), [F(1, 2), 0]), np.array([0.5, 0])) == 0
    with pytest.raises(AssertionError):
        reference.error([1, 2], [1])


def test_domain_helper():
    assert domain({"i": (1, 3)}).bounds() == {"i": (1, 3)}
