"""Expanded functions against mpmath, through an evaluator of statements that knows only numpy."""

import ctypes
import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import mpmath
import numpy as np
import pytest

from convgen.affine import Affine
from convgen.backends import llvm
from convgen.backends.llvm.elf import undefined_symbols
from convgen.errors import InternalError
from convgen.ir.nodes import (
    Block,
    Buffer,
    Const,
    Expr,
    For,
    Form,
    If,
    Index,
    Kernel,
    Layout,
    Op,
    Phase,
    Register,
    Set,
    Store,
    VectorLoad,
)
from convgen.ir.visit import walk
from convgen.passes.math import coefficients, expand, legalize
from convgen.passes.math.functions import _POLYNOMIALS as TABLE
from convgen.passes.math.values import Lines
from convgen.target import Target, runs_here, target
from convgen.types import DType, bool_, f32, f64, i64, u64

FLOATS = [f32, f64]
UNARY = ["exp", "log", "tanh", "sigmoid", "erf"]
FMA, PLAIN = target("x86-64-v3"), target("x86-64-v2")
ULPS = 2.0


# ------------------------------------------------------------------------------- evaluator


def fma(a, b, c):
    if a.dtype == np.float32:
        return (a.astype(np.float64) * b + c).astype(np.float32)
    wide = np.longdouble  # 64 bits of fraction: nearly one rounding
    return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(np.float64)


PRIMITIVES = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "fma": fma,
    "neg": np.negative, "abs": np.abs, "floor": np.floor, "sqrt": np.sqrt,
    "eq": np.equal, "lt": np.less, "le": np.less_equal, "is_nan": np.isnan,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "shl": np.left_shift, "shr": np.right_shift, "select": np.where,
}  # fmt: skip


def run(kernel: Kernel, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Evaluate a kernel of one Block whose vectors are as long as the arrays."""
    registers: dict[str, np.ndarray] = {}

    def value(e: Expr) -> np.ndarray:
        if isinstance(e, Const):
            return np.array(e.value, e.dtype.numpy_name)
        if isinstance(e, Register):
            return registers[e.name]
        if isinstance(e, VectorLoad):
            return arrays[e.buffer]
        assert isinstance(e, Op)
        args = [value(a) for a in e.args]
        if e.name == "cast":
            return args[0].astype(e.dtype.numpy_name)
        if e.name == "bitcast":
            return args[0].view(e.dtype.numpy_name)
        out = PRIMITIVES[e.name](*args)
        assert out.dtype == e.dtype.numpy_name, e
        return out

    body = kernel.phases[0].body
    for stmt in body.body if isinstance(body, Block) else (body,):
        if isinstance(stmt, Set):
            registers[stmt.register] = value(stmt.value)
        else:
            return value(stmt.value)
    raise AssertionError("no store")


def kernel_of(name: str, dtype: DType, args: tuple[DType, ...], lanes: int) -> Kernel:
    """out[0..lanes) = name(in0[..], in1[..]) as one vector statement."""
    zero = Index(Affine())
    loads = tuple(VectorLoad(f"in{i}", zero, 1, t, lanes, lanes) for i, t in enumerate(args))
    store = Store("out", zero, 1, Op(name, loads, dtype, lanes), lanes)
    layout = Layout.rowmajor(1)
    buffers = tuple(Buffer(f"in{i}", t, (lanes,), layout, "input") for i, t in enumerate(args))
    buffers += (Buffer("out", dtype, (lanes,), layout, "output"),)
    return Kernel(name, buffers, (Phase("out", store),), Form.FLAT)


def compute(name, dtype, arrays, machine=FMA, args=None):
    args = args or (dtype,) * len(arrays)
    kernel = kernel_of(name, dtype, args, len(arrays[0]))
    kernel = legalize(expand(kernel, machine), machine)
    inputs = {
        f"in{i}": a.astype(t.numpy_name) for i, (a, t) in enumerate(zip(arrays, args, strict=True))
    }
    with np.errstate(all="ignore"):
        return run(kernel, inputs)


def native(name, dtype, arrays, machine: Target, args=None, lanes=None):
    """The same as machine code: a loop over vectors of `lanes`, the target's width by default."""
    args = args or (dtype,) * len(arrays)
    lanes = lanes or machine.lanes(dtype)
    count = -(-len(arrays[0]) // lanes) * lanes
    kernel = kernel_of(name, dtype, args, count)
    at = Index(Affine.of("i"))
    loads = tuple(VectorLoad(f"in{i}", at, 1, t, lanes, lanes) for i, t in enumerate(args))
    store = Store("out", at, 1, Op(name, loads, dtype, lanes), lanes)
    body = For("i", Affine(), Affine((), count), lanes, store)
    kernel = replace(kernel, phases=(Phase("out", body),))
    artifact = llvm.compile_kernel(legalize(expand(kernel, machine), machine), machine)
    assert not undefined_symbols(artifact.object)
    library = llvm.load(artifact.object, machine)
    inputs = [np.resize(a, count).astype(t.numpy_name) for a, t in zip(arrays, args, strict=True)]
    out = np.zeros(count, dtype.numpy_name)
    pointers = (ctypes.c_void_p * (len(inputs) + 1))(*(a.ctypes.data for a in [*inputs, out]))
    entry = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2)
    entry(library.address(artifact.entries[0].symbol))(pointers, None, 0, 1)
    return out[: len(arrays[0])]


# ------------------------------------------------------------------------------- the oracle


def exact(name, *args):
    """The value with 60 digits; special values as C99 has them."""
    x = args[0]
    if name == "pow":
        return exact_power(*args)
    if math.isnan(x):
        return math.nan
    if name == "log" and x <= 0:
        return -math.inf if x == 0 else math.nan
    if math.isinf(x):
        table = {"tanh": 1, "erf": 1, "sigmoid": 1 if x > 0 else 0, "log": math.inf}
        table |= {"exp": math.inf if x > 0 else 0}
        return math.copysign(1, x) if name in ("tanh", "erf") else table[name]
    x = mpmath.mpf(x)
    if name == "sigmoid":
        return 1 / (1 + mpmath.exp(-x))
    return getattr(mpmath, name)(x)


def exact_power(x, y):
    if y == 0 or x == 1:
        return 1.0
    if math.isnan(x) or math.isnan(y):
        return math.nan
    if -math.inf < x < 0 and not math.isinf(y) and y % 1 != 0:
        return math.nan
    odd = not math.isinf(y) and y % 2 == 1
    sign = -1 if odd and math.copysign(1, x) < 0 else 1
    size = abs(x)
    if math.isinf(y) or size in (0, math.inf):
        grows = (size > 1) == (y > 0)
        return sign * (1.0 if size == 1 else math.inf if grows else 0.0)
    return sign * mpmath.power(mpmath.mpf(size), mpmath.mpf(y))


def ulps(got, want, dtype):
    """|got - want| in units in the last place of `want`; 0 where special values agree."""
    precision, smallest, largest = (24, -149, 128) if dtype == f32 else (53, -1074, 1024)
    if isinstance(want, float) and not math.isfinite(want):
        same = math.isnan(got) if math.isnan(want) else got == want
        return 0.0 if same else math.inf
    want = mpmath.mpf(want)
    if abs(want) >= mpmath.ldexp(1 - mpmath.ldexp(1, -precision - 1), largest):
        return 0.0 if math.isinf(got) and (got > 0) == (want > 0) else math.inf
    if math.isnan(got) or math.isinf(got):
        return math.inf
    exponent = max(int(mpmath.frexp(want)[1]) - precision, smallest) if want else smallest
    return float(abs(mpmath.mpf(float(got)) - want) / mpmath.ldexp(1, exponent))


def worst(name, dtype, arrays, machine=FMA, how=compute):
    arrays = [a.astype(dtype.numpy_name) for a in arrays]
    got = how(name, dtype, arrays, machine)
    with mpmath.workdps(60):
        errors = [
            ulps(g, exact(name, *map(float, x)), dtype)
            for g, x in zip(got.tolist(), zip(*arrays, strict=True), strict=True)
        ]
    at = int(np.argmax(errors))
    return errors[at], [a[at] for a in arrays], got[at]


def points(name, dtype, count, seed=0):
    """Arguments that matter: the function's active range, every magnitude, subnormal, special."""
    rng = np.random.default_rng(seed)
    info = np.finfo(dtype.numpy_name)
    reach = {"exp": (-760, 720), "log": (0.1, 4), "erf": (-7, 7)}.get(name, (-25, 25))
    if name == "exp" and dtype == f32:
        reach = (-106, 90)
    exponents = rng.uniform(math.log2(info.smallest_subnormal), math.log2(info.max), count)
    magnitudes = np.exp2(exponents) * rng.choice([-1, 1], count)
    special = np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, info.max, info.min, info.tiny])
    special = np.r_[special, info.smallest_subnormal, -info.smallest_subnormal, 0.625, -0.625]
    near_one = 1 + rng.uniform(-1, 1, count // 4) * 10.0 ** rng.uniform(-7, 0, count // 4)
    small = rng.uniform(-1.1, 1.1, count // 2)
    return np.r_[rng.uniform(*reach, count), magnitudes, near_one, small, special]


# ------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("machine", [FMA, PLAIN], ids=lambda t: t.name)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_function_is_within_two_ulp(name, dtype, machine):
    error, at, got = worst(name, dtype, [points(name, dtype, 500)], machine)
    assert error <= ULPS, f"{name}({at}) = {got!r}: {error:.2f} ulp"


def power_points(dtype, count, seed=0):
    rng = np.random.default_rng(seed)
    info = np.finfo(dtype.numpy_name)
    x = np.exp2(rng.uniform(-12, 12, count))
    y = rng.uniform(-1, 1, count) * math.log2(info.max) / np.maximum(np.abs(np.log2(x)), 1e-3)
    near = 1 + rng.uniform(-1, 1, count) * 2.0 ** rng.uniform(-20, -1, count)
    steep = rng.uniform(-1.05, 1.05, count) * math.log(info.max) / np.log(near)
    whole = rng.integers(-9, 10, count).astype(float)
    signed = rng.normal(size=count) * 3
    tiny = info.smallest_subnormal * rng.integers(1, 1000, count)
    special = [0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 0.5, -0.5, 2, -2, 3, -3, info.max]
    grid = np.array(np.meshgrid(special, special)).reshape(2, -1)
    return [np.r_[x, near, signed, tiny, grid[0]], np.r_[y, steep, whole, whole / 16, grid[1]]]


@pytest.mark.parametrize("machine", [FMA, PLAIN], ids=lambda t: t.name)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_power_is_within_two_ulp(dtype, machine):
    error, at, got = worst("pow", dtype, power_points(dtype, 400), machine)
    assert error <= ULPS, f"pow{tuple(at)} = {got!r}: {error:.2f} ulp"


def machines():
    """Every level that this machine runs."""
    return [
        t for t in map(target, ("x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64")) if runs_here(t)
    ]


@pytest.mark.parametrize("machine", machines(), ids=lambda t: t.name)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", [*UNARY, "pow"])
def test_machine_code_is_within_two_ulp(name, dtype, machine):
    made = [points(name, dtype, 250, 2)] if name != "pow" else power_points(dtype, 150, 2)
    error, at, got = worst(name, dtype, made, machine, native)
    assert error <= ULPS, f"{name}({at}) = {got!r}: {error:.2f} ulp"


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", [*UNARY, "pow"])
def test_lanes_do_not_matter(name, dtype):
    arrays = [points(name, dtype, 60, 3)] if name != "pow" else power_points(dtype, 60, 3)
    machine = machines()[-1]
    wide = native(name, dtype, arrays, machine)
    for lanes in (1, 3, 2 * machine.lanes(dtype)):
        assert np.array_equal(
            native(name, dtype, arrays, machine, lanes=lanes), wide, equal_nan=True
        )


def test_uniform_as_machine_code():
    seed = np.array([0, 1, 2**64 - 1, 12345678901234567890], np.uint64)
    index = np.array([0, -1, 2**40, 7])
    want = [philox(int(s), int(i) % (1 << 64)) for s, i in zip(seed, index, strict=True)]
    for machine in machines():
        got = native("uniform", f32, [seed, index], machine, args=(u64, i64))
        assert got.tolist() == want


@pytest.mark.full
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", [*UNARY, "pow"])
def test_many_points(name, dtype):
    make = [points(name, dtype, 20000, 1)] if name != "pow" else power_points(dtype, 10000, 1)
    error, at, got = worst(name, dtype, make, machines()[-1], native)
    assert error <= ULPS, f"{name}({at}) = {got!r}: {error:.2f} ulp"


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_zero_keeps_its_sign(name, dtype):
    got = compute(name, dtype, [np.array([0.0, -0.0])])
    assert np.signbit(got).tolist() == [False, True]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_power_keeps_the_sign_of_zero(dtype):
    x = np.array([-0.0, -0.0, -0.0, 0.0, -np.inf, -np.inf])
    y = np.array([3.0, 2.0, 0.5, 3.0, -1.0, -2.0])
    got = compute("pow", dtype, [x, y])
    assert np.signbit(got).tolist() == [True, False, False, False, True, False]


def philox(seed: int, index: int) -> float:
    """Philox4x32-10 by its definition, in Python integers."""
    word = (1 << 32) - 1
    counter = [index & word, index >> 32 & word, 0, 0]
    key = [seed & word, seed >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [q >> 32 ^ counter[1] ^ key[0], q & word, p >> 32 ^ counter[3] ^ key[1], p & word]
        key = [(key[0] + 0x9E3779B9) & word, (key[1] + 0xBB67AE85) & word]
    return (counter[0] >> 8) * 2.0**-24


def test_uniform_is_philox():
    rng = np.random.default_rng(0)
    seed = rng.integers(0, 1 << 64, 200, dtype=np.uint64)
    index = rng.integers(-(1 << 63), 1 << 63, 200)
    index[:100] = np.arange(100)
    got = compute("uniform", f32, [seed, index], args=(u64, i64))
    want = [philox(int(s), int(i) % (1 << 64)) for s, i in zip(seed, index, strict=True)]
    assert got.tolist() == want


def test_uniform_known_answer():
    # Random123's known answer: counter 0, key 0 gives 6627e8d5 as the first word.
    assert philox(0, 0) == (0x6627E8D5 >> 8) * 2.0**-24


def test_uniform_is_uniform():
    got = compute("uniform", f32, [np.full(20000, 7), np.arange(20000)], args=(u64, i64))
    assert got.min() >= 0 and got.max() < 1
    assert abs(got.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(got[:-1], got[1:])[0, 1]) < 0.03


def test_mutant_coefficient_is_caught(monkeypatch):
    poly = coefficients.EXP_32
    spoiled = (poly.coefficients[0] * (1 + 1e-5), *poly.coefficients[1:])
    table = {f32: (replace(poly, coefficients=spoiled), *TABLE[f32][1:])}
    monkeypatch.setitem(TABLE, f32, table[f32])
    assert worst("exp", f32, [points("exp", f32, 200)])[0] > ULPS


def test_expand_reaches_every_statement():
    x = Register("x", f32)
    flag = Op("lt", (Op("tanh", (x,), f32), Const(0.5, f32)), bool_)
    inner = Set("x", Op("exp", (Op("log", (x,), f32),), f32))
    store = Store("out", Index(Affine.of("i")), 1, Op("erf", (x,), f32), 1)
    loop = For("i", Affine(), Affine((), 4), 1, inner)
    body = Block((Set("x", Const(1.0, f32)), loop, If(flag, Block((store,)), inner)))
    kernel = Kernel(
        "k",
        (Buffer("out", f32, (4,), Layout.rowmajor(1), "output"),),
        (Phase("p", body),),
        Form.FLAT,
    )
    done = expand(kernel, FMA)
    ops = {e.name for e in walk(done.phases[0].body) if isinstance(e, Op)}
    assert not ops & {"tanh", "exp", "log", "erf"}
    names = [s.register for s in walk(done.phases[0].body) if isinstance(s, Set)]
    assert len({n for n in names if n != "x"}) == len([n for n in names if n != "x"])
    assert expand(done, FMA) is done
    assert "fma" not in {
        e.name for e in walk(legalize(done, PLAIN).phases[0].body) if isinstance(e, Op)
    }
    assert legalize(done, FMA) is done


@pytest.mark.parametrize("count", [2, 3, 9, 18])
def test_pairs_of_terms_are_the_polynomial_in_half_as_many_steps(count):
    numbers = [1 / (k + 1) for k in range(count)]
    load = VectorLoad("in0", Index(Affine()), 1, f64, 3, 3)
    array = np.array([-0.75, 0.5, 1.0])
    chains = []
    for pairs in (False, True):
        names = iter(f"r{i}" for i in range(100))
        lines = Lines(lambda names=names: next(names))
        x = lines.keep(load)
        total = x.polynomial_by_pairs(numbers, x * x) if pairs else x.polynomial(numbers)
        sets, last = lines.finish(total)
        store = Store("out", Index(Affine()), 1, last, 3)
        kernel = replace(
            kernel_of("exp", f64, (f64,), 3), phases=(Phase("out", Block((*sets, store))),)
        )
        wanted = np.polynomial.polynomial.polyval(array, numbers)
        assert np.allclose(run(kernel, {"in0": array}), wanted, rtol=1e-15, atol=0)
        chains.append(chain([*sets, Set("out", last)]))
    assert chains == [count - 1, -(-count // 2)]


def chain(sets) -> int:
    """How many operations follow one another."""
    steps: dict[str, int] = {}

    def depth(e: Expr) -> int:
        if isinstance(e, Register):
            return steps.get(e.name, 0)
        return 1 + max(map(depth, e.args)) if isinstance(e, Op) else 0

    for one in sets:
        steps[one.register] = depth(one.value)
    return max(steps.values())


def test_refusals():
    kernel = kernel_of("exp", i64, (i64,), 4)
    with pytest.raises(InternalError, match="exp of i64: expected f32 or f64"):
        expand(kernel, FMA)
    with pytest.raises(InternalError, match="expected a FLAT kernel, got nest"):
        expand(replace(kernel, form=Form.NEST), FMA)


def test_coefficients_follow_their_recipe():
    path = Path(__file__).parent / "make_coefficients.py"
    spec = importlib.util.spec_from_file_location("make_coefficients", path)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    for bits in (32, 64):
        for name, made in recipe.table(bits).items():
            found = getattr(coefficients, f"{name}_{bits}")
            assert found.coefficients == made[-1]
            assert made[3] < 2.0 ** (-27 if bits == 32 else -56) and found.error >= 0.9 * made[3]
