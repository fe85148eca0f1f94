"""Programs as torch functions: gradients of all orders, opcheck, compile, export, refusals."""

import pickle

import pytest

torch = pytest.importorskip("torch")

import convgen as cg  # noqa: E402
from convgen.errors import DerivationError  # noqa: E402
from convgen.interop.torch import function, operator, recipe  # noqa: E402

torch.set_num_threads(1)

SHAPES = {"X": (2, 3, 6, 5), "W": (4, 3, 3, 3), "b": (4,)}
SOFTMAX = """program softmax
tensor X: f64[3, 5]
M[n] = max(c: X[n, c])
E[n, c] = exp(X[n, c] - M[n])
S[n] = sum(c: E[n, c])
Y[n, c] = E[n, c] / S[n]
"""


def conv(dtype="f64"):
    tensors = {n: cg.tensor(n, s, dtype) for n, s in SHAPES.items()}
    X, W, b = tensors.values()
    n, k, y, x, c, r, s = cg.axes("n k y x c r s")
    body = cg.sum_over([c, r, s], X[n, c, 2 * y + r - 1, 2 * x + s - 1] * W[k, c, r, s]) + b[k]
    return cg.define("Y", [n, k, y, x], body, extents={y: 3, x: 3})


def pool(dtype="f64"):
    X = cg.tensor("X", (2, 6, 6), dtype)
    n, y, x, r, s = cg.axes("n y x r s")
    body = cg.max_over([r, s], X[n, 2 * y + r, 2 * x + s], extents={r: 2, s: 2})
    return cg.define("Y", [n, y, x], body, extents={y: 3, x: 3})


def softmax():
    return cg.parse(SOFTMAX)


def inputs_of(program, seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(
            tuple(int(e) for e in t.shape),
            generator=generator,
            dtype=recipe.torch_dtype(t.dtype),
            requires_grad=grad,
        )
        for t in program.inputs
    ]


PROGRAMS = {"conv": conv, "pool": pool, "softmax": softmax}


@pytest.mark.parametrize("name", PROGRAMS)
def test_first_and_second_derivatives(name):
    program = PROGRAMS[name]()
    f = cg.torch.function(program, threads=1)
    given = inputs_of(program)
    assert torch.autograd.gradcheck(f, given)
    assert torch.autograd.gradgradcheck(f, given)


def test_a_wrong_gradient_is_caught(monkeypatch):
    """The mutant: gradcheck must fail when the backward kernel's result is spoiled."""
    run = recipe.Backward.run
    monkeypatch.setattr(recipe.Backward, "run", lambda self, *a: [g * 1.01 for g in run(self, *a)])
    program = conv()
    f = cg.torch.function(program, threads=1)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(f, inputs_of(program))


def test_third_derivative_of_a_product():
    program = cg.parse("program cube\ntensor X: f64[4]\nY[i] = X[i] * X[i] * X[i]")
    f = cg.torch.function(program, threads=1)
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    g = f(x).sum()
    for want in (3 * x**2, 6 * x, torch.full_like(x, 6)):
        (g_x,) = torch.autograd.grad(g, x, create_graph=True)
        assert torch.allclose(g_x, want)
        g = g_x.sum()


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("save", [0, 1])
def test_opcheck(name, save):
    program = PROGRAMS[name]()
    f = cg.torch.function(program, threads=1)
    given = inputs_of(program)
    torch.library.opcheck(f.op, (*given, save * ((1 << len(given)) - 1)))
    plain = tuple(t.detach() for t in given)
    torch.library.opcheck(f._operator.infer_op, plain)


def test_forward_is_torch():
    program = conv("f32")
    f = cg.torch.function(program, threads=1)
    given = inputs_of(program)
    want = torch.nn.functional.conv2d(*given, stride=2, padding=1)
    assert torch.allclose(f(*given), want, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(f(*given), f(*(t.detach() for t in given)))


def test_kernels_read_tensors_where_they_are(monkeypatch):
    seen = []
    run = recipe.Caller.run
    monkeypatch.setattr(
        recipe.Caller, "run", lambda self, a, *r: (seen.append(list(a)), run(self, a, *r))[1]
    )
    program = conv("f32")
    f = cg.torch.function(program, threads=1)
    given = inputs_of(program, grad=False)
    out = f(*given)
    assert seen[-1][:4] == [t.data_ptr() for t in (*given, out)]


def test_strided_and_misaligned_tensors():
    program = conv("f32")
    f = cg.torch.function(program, threads=1)
    x, w, b = inputs_of(program, grad=False)
    want = f(x, w, b)
    assert torch.equal(f(x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0), w, b), want)
    expanded = b[:1].expand(4)
    assert torch.equal(f(x, w, expanded), f(x, w, expanded.contiguous()))
    raw = torch.zeros(4 * x.numel() + 1, dtype=torch.uint8)
    odd = torch.frombuffer(raw.numpy(), dtype=torch.uint8)[1:].numpy().view("float32")
    odd = torch.from_numpy(odd.reshape(x.shape))
    odd.copy_(x)
    assert odd.data_ptr() % 4 and torch.equal(f(odd, w, b), want)


FULL = [pytest.param(name, "inductor", marks=pytest.mark.full) for name in ("pool", "softmax")]


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "aot_eager") for name in PROGRAMS), ("conv", "inductor"), *FULL]
)
def test_compile_without_graph_breaks(name, backend):
    if backend == "inductor" and not has_compiler():
        pytest.skip("inductor needs a C++ compiler")
    program = PROGRAMS[name]()
    f = cg.torch.function(program, threads=1)

    def loss(*tensors):
        return (f(*tensors).sigmoid() * 2).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    given = inputs_of(program)
    got = torch.autograd.grad(compiled(*given), given)
    want = torch.autograd.grad(loss(*given), given)
    assert all(torch.allclose(a, b) for a, b in zip(got, want, strict=True))


def has_compiler():
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except Exception:
        return False


def test_symbolic_sizes_are_read_off_the_tensors():
    n, k, c = cg.axes("n k c")
    X, W = cg.tensor("X", (cg.size("N"), 3), "f64"), cg.tensor("W", (4, 3), "f64")
    f = cg.torch.function(cg.define("Y", [n, k], cg.sum_over(c, X[n, c] * W[k, c])), threads=1)
    w = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    for batch in (5, 2, 7):
        x = torch.randn(batch, 3, dtype=torch.float64, requires_grad=True)
        assert torch.allclose(f(x, w), x @ w.T)
        (dx,) = torch.autograd.grad(f(x, w).sum(), x)
        assert torch.allclose(dx, w.sum(0).expand(batch, 3))
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (5, 2, 7):
        x = torch.randn(batch, 3, dtype=torch.float64)
        assert torch.allclose(compiled(x, w), x @ w.T)


def test_states_change_in_place():
    program = cg.parse(
        "program running\ntensor X: f64[4]\nstate R: f64[4]\n"
        "Y[i] = X[i] - R[i]\nR2[i] = R[i]/2 + X[i]/2\nupdate R <- R2"
    )
    f = cg.torch.function(program, threads=1)
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    r = torch.zeros(4, dtype=torch.float64)
    before = r.clone()
    y = f(x, r)
    y = y[0] if isinstance(y, tuple) else y
    assert torch.allclose(y, x - before) and torch.allclose(r, x.detach() / 2)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_two_functions_of_one_program_share_an_operator():
    assert cg.torch.function(conv())._operator is cg.torch.function(conv())._operator
    assert cg.torch.function(conv())._operator is not cg.torch.function(conv("f32"))._operator


def test_schema_names():
    names = operator._argument_names(["X", "X", "lambda", "dY'", "save", "b"])
    assert names == ["X", "argument1", "argument2", "argument3", "argument4", "b"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, w, b: (x, w), "wrong number of inputs; expected 3: X, W, b, got 2"),
        (lambda x, w, b: (x, w, b.numpy()), "b is no tensor; expected a torch.Tensor, got ndarray"),
        (lambda x, w, b: (x.double(), w, b), "X has the wrong dtype; expected torch.float32"),
        (lambda x, w, b: (x, w[:, :2], b), "W has the wrong shape"),
        (lambda x, w, b: (x, w, b[None]), "b has the wrong rank"),
        (lambda x, w, b: (x, w, 3.0), "b is no tensor"),
    ],
)
def test_refusals(spoil, message):
    program = conv("f32")
    f = cg.torch.function(program, threads=1)
    with pytest.raises(cg.DataError, match=message):
        f(*spoil(*inputs_of(program, grad=False)))


def test_other_devices_and_layouts_are_refused_with_a_text():
    program = conv("f32")
    f = cg.torch.function(program, threads=1)
    x, w, b = inputs_of(program, grad=False)
    with pytest.raises((RuntimeError, NotImplementedError), match="Sparse"):
        f(x.to_sparse(), w, b)
    assert f(*(t.to("meta") for t in (x, w, b))).shape == (2, 4, 3, 3)
    with pytest.raises(cg.ShapeError, match="takes a program"):
        cg.torch.function(cg.nn.ReLU())


def test_tangents_are_refused_not_dropped():
    f = function(cg.parse("Y[n,k] = sum(c: X[n,c]*W[k,c])", X=(2, 3), W=(4, 3)))
    x, w = torch.randn(2, 3), torch.randn(4, 3)
    with pytest.raises(DerivationError, match="forward-mode"):
        torch.func.jvp(lambda a: f(a, w), (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(f(x, w), f(x, w))


def test_torch_func_and_pickle() -> None:
    """Transforms of torch.func, and copies through a file, as of torch's own functions."""
    program = cg.parse("Y[n, k] = sum(c: X[n, c] * W[k, c])", X=("N", 5), W=(3, 5))
    ours = function(program)
    x, w = torch.randn(4, 5), torch.randn(3, 5)

    def cubes(f):
        return lambda w: (f(x, w) ** 3).sum()

    def theirs(x, w):
        return x @ w.T

    for transform in (
        torch.func.grad,
        torch.func.jacrev,
        lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    ):
        got, want = (transform(cubes(f))(w) for f in (ours, theirs))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert torch.equal(pickle.loads(pickle.dumps(ours))(x, w), ours(x, w))
