import itertools
import random

import pytest
from formulas import image_program, piece, program, reduce, tensor

from convgen.affine import Affine, Constraint, FloorDiv, Mod
from convgen.errors import FormulaError, ShapeError
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.expr import Definition, Domain, Range, Result, Size, affine_of, axes
from convgen.symbolic.parse import parse
from convgen.symbolic.program import Program
from convgen.symbolic.proofs import check_program
from convgen.symbolic.proofs_cover import (
    Budget,
    TooLarge,
    Write,
    meet,
    progression,
    prove_cover,
)

i, j, n, u, v, r, h, w = axes("i j n u v r h w")


def a(expr):
    return affine_of(expr)


def le(left, right):
    return Constraint("<=", a(left - right))


def eq(left, right):
    return Constraint("==", a(left - right))


def mod(value, modulus):
    return Constraint("%", a(value), modulus)


def pieces(shape, *parts):
    """A program whose pieces write 0; each part is (index, ranges, *constraints)."""
    Y = tensor("Y", *shape, role="output")
    X = tensor("X", 1)
    return program(
        [X], [piece(Y[index], ranges, X[0], where=where) for index, ranges, *where in parts]
    )


def strided(stride, sizes):
    return pieces((sum(sizes),), *[(stride * u + p, {"u": c}) for p, c in enumerate(sizes)])


def test_progressions_meet_by_chinese_remainders():
    draw = random.Random(0)
    for _ in range(300):
        one = progression(
            draw.randrange(-20, 20), draw.randrange(0, 9), draw.choice([1, 2, 3, 4, 6, -5])
        )
        two = progression(
            draw.randrange(-20, 20), draw.randrange(0, 9), draw.choice([1, 2, 3, 4, 6, -5])
        )
        assert sorted(meet(one, two)) == sorted(set(one) & set(two))
        assert sorted(meet(tuple(one), two)) == sorted(set(one) & set(two))
    assert len(meet(range(0, 10**18, 6), range(4, 10**18, 9))) == 0
    assert meet(range(1, 10**18, 6), range(4, 10**18, 9))[:2] == range(13, 49, 18)


def test_residue_pieces_cover():
    proof = check_program(strided(3, [3, 3, 2]))
    assert str(proof) == (
        "program test\nY[8]: 3 piece(s) write each element once (disjoint residue classes)\n"
        "X[0]: index 0 in 0..0 of 1, inside"
    )
    # without the list of all elements: 2^62 of them
    check_program(
        pieces(
            (2**31, 2**31),
            ((2 * u, j), {"u": 2**30, "j": 2**31}),
            ((2 * u + 1, j), {"u": 2**30, "j": 2**31}),
        )
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: strided(3, [3, 2, 2]), None),
        (
            lambda: pieces((8,), (3 * u, {"u": 3}), (3 * u + 1, {"u": 3})),
            r"Y\[2\] is never written",
        ),
        (
            lambda: pieces((8,), (2 * u, {"u": 4}), (2 * u + 1, {"u": 4}), (3 * u, {"u": (1, 2)})),
            r"Y\[3\] is written twice",
        ),
        (
            lambda: pieces((8,), (2 * u, {"u": 5}), (2 * u + 1, {"u": 4})),
            r"Y\[8\] is written, which is outside",
        ),
        (lambda: pieces((8,), (i - 1, {"i": 8})), r"Y\[-1\] is written, which is outside"),
        (lambda: pieces((4, 4), ((i, i), {"i": 4})), r"Y\[0, 1\] is never written"),
        (lambda: pieces((4,), (i, {"i": 4, "j": 2})), r"is written twice"),
        (lambda: pieces((4,), (i, {"i": 4, "j": (3, 4)})), None),
        (
            lambda: pieces(
                (4, 3), ((i, j), {"i": 4, "j": 3}, le(i, j)), ((i, j), {"i": 4, "j": 3}, le(j, i))
            ),
            r"Y\[0, 0\] is written twice",
        ),
        (
            lambda: pieces(
                (4, 3),
                ((i, j), {"i": 4, "j": 3}, le(i, j)),
                ((i, j), {"i": 4, "j": 3}, le(j + 1, i)),
            ),
            None,
        ),
        (
            lambda: pieces(
                (4, 3),
                ((i, j), {"i": 4, "j": 3}, le(i, j)),
                ((i, j), {"i": 4, "j": 3}, le(j + 2, i)),
            ),
            r"Y\[1, 0\] is never written",
        ),
    ],
)
def test_cover_and_refusals(make, message):
    if message is None:
        check_program(make())
    else:
        with pytest.raises(FormulaError, match=message):
            check_program(make())


def test_ties_between_axes():
    both = {"i": 100, "j": 100, "n": 1000}
    diagonal = pieces(
        (1000, 100, 100),
        ((n, i, i), {"n": 1000, "i": 100}),
        ((n, i, j), both, le(i + 1, j)),
        ((n, i, j), both, le(j + 1, i)),
    )
    assert check_program(diagonal).covers[0].method == "slices"
    chess = pieces((64, 64), *[((h, w), {"h": 64, "w": 64}, mod(h + w + p, 2)) for p in (0, 1)])
    check_program(chess)
    with pytest.raises(FormulaError, match="is never written"):
        check_program(pieces((64, 64), ((h, w), {"h": 64, "w": 64}, mod(h + w, 2))))
    blocks = pieces((3, 4), ((i // 4, i % 4), {"i": 12}))
    check_program(blocks)
    with pytest.raises(FormulaError, match=r"Y\[2, 3\] is never written"):
        check_program(pieces((3, 4), ((i // 4, i % 4), {"i": 11})))
    with pytest.raises(FormulaError, match="is written, which is outside"):
        check_program(pieces((3, 4), ((i // 4, i % 4), {"i": 13})))
    digits = pieces((12,), (h, {"h": 12, "u": 4, "v": 3}, eq(h, 3 * u + v)))
    check_program(digits)
    check_program(pieces((2**40,), (2**20 * u + v, {"u": 2**20, "v": 2**20})))
    with pytest.raises(FormulaError, match="twice"):
        check_program(pieces((9,), (2 * u + v, {"u": 4, "v": 3})))
    with pytest.raises(FormulaError, match="cannot be proved"):
        large = {"i": 2**30, "j": 2**30}
        check_program(
            pieces((2**30, 2**30), ((i, j), large, le(i, j)), ((i, j), large, le(j + 1, i)))
        )


def test_random_pieces_against_listing():
    """The proof says yes exactly where listing every point does."""
    draw = random.Random(1)
    counts = {True: 0, False: 0}
    for _ in range(1500):
        shape = (draw.choice([2, 3, 4]), draw.choice([2, 4]))
        writes = [_random_write(draw, shape) for _ in range(draw.choice([1, 1, 2, 2]))]
        if draw.random() < 0.5:
            writes = _split(draw, shape)
        want = _listed(writes, shape)
        got = prove_cover(writes, dict(enumerate(shape)), Budget()) is None
        assert got == want, (shape, writes)
        counts[want] += 1
    assert min(counts.values()) > 100


def _random_write(draw, shape):
    names = ["i", "j", "u"][: draw.choice([2, 2, 3])]
    sets = tuple(
        (name, range(lo, lo + draw.choice([1, 2, 3, 4])))
        for name in names
        for lo in [draw.choice([0, 0, 1])]
    )

    def affine():
        value = Affine.build(
            [(name, draw.choice([0, 0, 1, 1, 2, -1])) for name in names], draw.choice([0, 0, 1])
        )
        if draw.random() < 0.2:
            value = Affine.of(draw.choice([FloorDiv, Mod])(value, 2))
        return value

    constraints = tuple(
        Constraint(draw.choice(["==", "<=", "%"]), affine(), 2)
        for _ in range(draw.choice([0, 0, 1, 2]))
    )
    plain = tuple(enumerate([Affine.of("i"), Affine.of("j")]))
    index = plain if draw.random() < 0.5 else tuple(enumerate([affine(), affine()]))
    return Write(index, sets, constraints)


def _split(draw, shape):
    """Two pieces that divide the box by one random condition."""
    sets = (("i", range(shape[0])), ("j", range(shape[1])))
    index = ((0, Affine.of("i")), (1, Affine.of("j")))
    value = Affine.build(
        [("i", draw.choice([-1, 0, 1, 2])), ("j", draw.choice([-2, -1, 1]))],
        draw.choice([-1, 0, 1]),
    )
    if draw.random() < 0.5:
        return [Write(index, sets, (Constraint("%", value + p, 2),)) for p in (0, 1)]
    shift = draw.choice([1, 1, 1, 0, 2])
    return [
        Write(index, sets, (Constraint("<=", value),)),
        Write(index, sets, (Constraint("<=", shift - value),)),
    ]


def _listed(writes, shape):
    seen = []
    for write in writes:
        names = [name for name, _ in write.sets]
        for values in itertools.product(*(s for _, s in write.sets)):
            point = dict(zip(names, values, strict=True))
            if all(c.holds(point) for c in write.constraints):
                seen.append(tuple(x.evaluate(point) for _, x in write.index))
    return sorted(seen) == list(itertools.product(*map(range, shape)))


def test_too_large_is_said():
    index, sets = ((0, a(i)), (1, a(j))), (("i", range(10)), ("j", range(10)))
    halves = [Write(index, sets, (le(i, j),)), Write(index, sets, (le(j + 1, i),))]
    assert prove_cover(halves, {0: 10, 1: 10}, Budget(left=160)) is None
    with pytest.raises(TooLarge):
        prove_cover(halves, {0: 10, 1: 10}, Budget(left=159))


def test_boundaries_within_reach():
    for mode, padding, fails in [
        ("reflect", 2, False),
        ("reflect", 3, True),
        ("circular", 3, False),
        ("circular", 4, True),
        ("replicate", 9, False),
        ("zero", 9, False),
    ]:
        p = image_program((3,), (2 * padding + 1,), padding=padding, mode=mode)
        if fails:
            with pytest.raises(ShapeError, match="padding is"):
                check_program(p)
        else:
            proof = check_program(p)
            evaluate(p, {"X": [1, 2, 3], "W": [1] * (2 * padding + 1)})
            assert any(not reach.inside for reach in proof.reaches)


def test_constraints_narrow_the_reach():
    X, Y = tensor("X", 3), tensor("Y", 8, role="output")
    read = X.pad("reflect")[i + r - 3]

    def build(*where):
        return program(
            [X], piece(Y[i], {"i": 8}, Result(0), [reduce("sum", {"r": 8}, read, where)])
        )

    with pytest.raises(ShapeError, match="reflect padding is as wide"):
        check_program(build())
    check_program(build(eq(i + r, 3)))
    check_program(build(le(i + r, 7), le(1, i + r)))
    with pytest.raises(ShapeError):
        check_program(build(le(i + r, 8), le(1, i + r)))
    check_program(build(le(100, i + r)))  # no points at all


def test_empty_ranges_read_nothing():
    X, Y = tensor("X", 0), tensor("Y", 2, role="output")
    body = X.pad("replicate")[r]
    check_program(program([X], piece(Y[i], {"i": 2}, Result(0), [reduce("sum", {"r": 0}, body)])))
    with pytest.raises(ShapeError, match="empty dimension"):
        check_program(
            program([X], piece(Y[i], {"i": 2}, Result(0), [reduce("sum", {"r": 1}, body)]))
        )
    check_program(pieces((0, 3), ((i, j), {"i": 0, "j": 3})))
    with pytest.raises(FormulaError, match="outside"):
        check_program(pieces((0, 3), ((i, j), {"i": 1, "j": 3}, le(i, j))))


def test_omitted_elements_need_a_reduction():
    X, Y = tensor("X", 3), tensor("Y", 3, role="output")
    check_program(program([X], piece(Y[i], {"i": 3}, X.pad("omit")[i])))
    with pytest.raises(FormulaError, match="omitted element"):
        check_program(program([X], piece(Y[i], {"i": 3}, X.pad("omit")[i - 1])))


def test_names_are_checked():
    X, Y, Z = tensor("X", 3), tensor("Y", 3, role="output"), tensor("Z", 3)
    with pytest.raises(FormulaError, match="the index j is undefined"):
        check_program(program([X], piece(Y[i], {"i": 3}, X[j])))
    with pytest.raises(FormulaError, match="which nothing before it computes"):
        check_program(program([X], piece(Y[i], {"i": 3}, Z[i])))
    with pytest.raises(ShapeError, match="another tensor of that name"):
        check_program(program([X], piece(Y[i], {"i": 3}, tensor("X", 4)[i])))
    with pytest.raises(FormulaError, match="no reduction result"):
        check_program(
            program([X], piece(Y[i], {"i": 3}, Result(0, 1), [reduce("sum", {"r": 3}, X[r])]))
        )
    good = program([X], piece(Y[i], {"i": 3}, X[i]))
    with pytest.raises(FormulaError, match="never computed"):
        check_program(Program("p", good.inputs, (Z,), good.stages))
    with pytest.raises(FormulaError, match="expected a state"):
        check_program(Program("p", good.inputs, good.outputs, good.stages, updates=(("X", "Y"),)))
    with pytest.raises(FormulaError, match="is defined twice"):
        check_program(Program("p", good.inputs, good.outputs, good.stages * 2))


def sized(index_of, shape, ranges, where=()):
    X, Y = tensor("X", *shape), tensor("Y", *shape, role="output")
    d = Domain(tuple(Range(name, 0, hi) for name, hi in ranges.items()), tuple(where))
    return program([X], Definition((Y[index_of],), d, (), (X[index_of],)))


def test_symbolic_sizes():
    N = Size("N")
    proof = check_program(sized((n, i), (N, 3), {"n": N, "i": 3}))
    assert str(proof.covers[0]).startswith("Y[N, 3]")
    with pytest.raises(ShapeError, match=r"plain axis that runs over N; try program.bind\(N=8\)"):
        check_program(sized((n + 1, i), (N, 3), {"n": N, "i": 3}))
    with pytest.raises(ShapeError, match="not bound"):
        check_program(sized((i, n), (3, 3), {"n": N, "i": 3}))
    with pytest.raises(ShapeError, match="a condition on n"):
        check_program(sized((n, i), (N, 3), {"n": N, "i": 3}, [le(n, i)]))
    with pytest.raises(FormulaError, match="symbolic"):
        check_program(sized((n, n), (N, N), {"n": N}))
    with pytest.raises(FormulaError, match="never written"):
        check_program(sized((n, i), (N, 3), {"n": N, "i": 2}))


def test_a_message_names_a_program_of_one_tensor_once() -> None:
    """It was Y: Y: ..."""
    with pytest.raises(FormulaError, match=r"^Y: Y\[1\] is never written"):
        parse("Y[2*y] = X[y]", X=(3,)).check()
