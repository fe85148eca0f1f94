"""The auditor tells classic mistakes apart, and passes what is right."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from click.testing import CliRunner

import convgen as cg
from convgen.__main__ import cli
from convgen.errors import DataError, DerivationError
from convgen.inspect.audit import audit
from convgen.symbolic.derive import grad
from convgen.symbolic.mistakes import mistakes_of
from convgen.symbolic.resize import Family

# A convolution with everything in it, by loops over output positions: the way people write it.
STRIDE, DIL, PAD, GROUPS = 2, 3, 2, 2  # taps 3 x 3
LAYER = cg.nn.Conv2d(8, 16, 3, stride=STRIDE, dilation=DIL, padding=PAD, groups=GROUPS)
CONV = LAYER.program((4, 8, 28, 30))


def windows(x, w, dy, stride=STRIDE, dil=DIL, pad=PAD, offset=True):
    """(group, input channels, output channels, tap, position, input position) that meet."""
    inner, maps = w.shape[1], w.shape[0] // GROUPS
    spots = [range(w.shape[2]), range(w.shape[3]), range(dy.shape[2]), range(dy.shape[3])]
    for g, (r, s, y, c) in itertools.product(range(GROUPS), itertools.product(*spots)):
        h, v = stride * y + dil * r - pad, stride * c + dil * s - pad
        if 0 <= h < x.shape[2] and 0 <= v < x.shape[3]:
            first = g * inner if offset else 0
            yield slice(first, first + inner), slice(g * maps, (g + 1) * maps), r, s, y, c, h, v


def grad_w(x, w, b, dy, **options):
    dw = np.zeros_like(w)
    for ci, ko, r, s, y, c, h, v in windows(x, w, dy, **options):
        dw[ko, :, r, s] += dy[:, ko, y, c].T @ x[:, ci, h, v]
    return dw


def grad_x(x, w, b, dy, turn=False, **options):
    dx = np.zeros_like(x)
    for ci, ko, r, s, y, c, h, v in windows(x, w, dy, **options):
        tap = w[ko, :, w.shape[2] - 1 - r, w.shape[3] - 1 - s] if turn else w[ko, :, r, s]
        dx[:, ci, h, v] += dy[:, ko, y, c] @ tap
    return dx


def test_right_gradients_of_a_convolution_pass():
    assert audit(grad_x, CONV, "X").passed
    assert audit(grad_w, CONV, "W").passed
    assert audit(lambda x, w, b, dy: dy.sum((0, 2, 3)), CONV, "b").passed


CONVOLUTION = {
    "stride missing": ("W", lambda *a: grad_w(*a, stride=1)),
    "dilation missing": ("W", lambda *a: grad_w(*a, dil=1)),
    "stride for dilation": ("X", lambda *a: grad_x(*a, stride=DIL, dil=STRIDE)),
    "padding missing": ("X", lambda *a: grad_x(*a, pad=0)),
    "padding sign": ("W", lambda *a: grad_w(*a, pad=-PAD)),
    "padding off by one": ("W", lambda *a: grad_w(*a, pad=PAD + 1)),
    "filter flipped": ("X", lambda *a: grad_x(*a, turn=True)),
    "group offset missing": ("W", lambda *a: grad_w(*a, offset=False)),
    "kernel transposed": ("X", lambda x, w, b, dy: grad_x(x, w.swapaxes(2, 3), b, dy)),
    "sign": ("W", lambda *a: -grad_w(*a)),
    "cotangent ignored": ("W", lambda x, w, b, dy: grad_w(x, w, b, np.ones_like(dy))),
    "row missing": ("W", lambda x, w, b, dy: grad_w(x, w, b, dy[:, :, :-1])),
    "not summed": ("b", lambda x, w, b, dy: dy.sum((2, 3))),
    "mean for sum": ("b", lambda x, w, b, dy: dy.sum((2, 3)).mean(0)),
    "one row only": ("b", lambda x, w, b, dy: dy[0].sum((1, 2))),
    "border missing": ("X", lambda *a: np.pad(grad_x(*a)[:, :, 1:], [(0, 0)] * 2 + [(1, 0), (0, 0)])),
    "roles swapped": ("W", lambda *a: grad_w(*a).swapaxes(0, 1)),
    "result flipped": ("W", lambda *a: grad_w(*a)[:, ::-1]),
    "nothing": ("W", lambda *a: 0 * grad_w(*a)),
    "scale": ("W", lambda *a: 3 * grad_w(*a)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTION)
def test_mistakes_in_a_convolution_are_told_apart(name):
    wrt, wrong = CONVOLUTION[name]
    found = audit(wrong, CONV, wrt)
    assert not found.passed and found.fault == name, str(found)
    if found.counterexample is not None:
        numbers = json.dumps(found.counterexample.arguments)
        assert len(numbers) < 600, numbers


def test_the_smallest_counterexample_is_small():
    wrt, wrong = CONVOLUTION["stride missing"]
    example = audit(wrong, cg.nn.Conv2d(8, 16, 3, stride=2, groups=2).program((4, 8, 28, 30)), wrt)
    # dilation of the function is not the layer's: it is wrong anyway, on something tiny
    arguments = example.counterexample.arguments
    assert np.count_nonzero(arguments["dY"]) == 1
    assert np.asarray(arguments["X"]).size <= 24


def test_the_text_says_what_is_missing():
    found = audit(CONVOLUTION["stride missing"][1], CONV, "W")
    wanted = "the stride is missing: X[n, 4*g + c, y + 3*r - 2, x + 3*s - 2] instead of"
    assert found.message.startswith(wanted), found.message
    assert "WRONG" in str(found) and "smallest counterexample" in str(found)
    assert json.loads(json.dumps(found.as_json()))["faults"][0]["name"] == "stride missing"


# ------------------------------------------------------------------------------ other layers

POOL = cg.nn.MaxPool2d(2, stride=2).program((4, 6, 12, 14))


def pool_grad(x, dy, choose):
    dx = np.zeros_like(x)
    for n, c, y, v in np.ndindex(*dy.shape):
        window = x[n, c, 2 * y : 2 * y + 2, 2 * v : 2 * v + 2]
        dx[n, c, 2 * y : 2 * y + 2, 2 * v : 2 * v + 2] += choose(window) * dy[n, c, y, v]
    return dx


def first(window):
    return np.arange(window.size).reshape(window.shape) == window.argmax()


def last(window):
    return np.arange(window.size).reshape(window.shape) == window.size - 1 - (
        window.ravel()[::-1].argmax()
    )


def every(window):
    return window == window.max()


@pytest.mark.parametrize(
    "choose, fault",
    [
        (first, ""),
        (every, "ties counted twice"),
        (lambda w: every(w) / every(w).sum(), "ties split"),
        (last, "last tie wins"),
    ],
    ids=["first", "twice", "split", "last"],
)
def test_ties_of_a_maximum(choose, fault):
    found = audit(lambda x, dy: pool_grad(x, dy, choose), POOL)
    assert (found.passed, found.fault) == (not fault, fault), str(found)
    if fault:
        assert "it agrees wherever no two elements are equal" in found.message


AVERAGE = cg.nn.AvgPool2d(3, stride=3).program((2, 4, 12, 15))


def spread(x, dy, scale=9):
    return dy.repeat(3, 2).repeat(3, 3) / scale


def test_a_missing_factor_of_an_average():
    assert audit(spread, AVERAGE).passed
    found = audit(lambda x, dy: spread(x, dy, 1), AVERAGE)
    assert found.fault == "factor missing" and "1/9" in found.message


def test_the_mask_of_relu():
    relu = cg.nn.ReLU().program((8, 10))
    assert audit(lambda x, dy: dy * (x > 0), relu).passed
    assert audit(lambda x, dy: dy * (x >= 0), relu).fault == "mask at zero"
    assert audit(lambda x, dy: dy, relu).fault == "mask missing"


def test_derivatives_of_tanh():
    tanh = cg.nn.Tanh().program((8, 10))
    assert audit(lambda x, dy: dy * (1 - np.tanh(x) ** 2), tanh).passed
    assert audit(lambda x, dy: dy * (1 - x**2), tanh).fault == "derivative of the input"
    assert audit(lambda x, dy: dy, tanh).fault == "derivative missing"


SOFTMAX = cg.nn.Softmax(1).program((4, 6))


def soft(x):
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


def test_the_jacobian_of_softmax_is_no_diagonal():
    assert audit(
        lambda x, dy: soft(x) * (dy - (dy * soft(x)).sum(1, keepdims=True)), SOFTMAX
    ).passed
    found = audit(lambda x, dy: dy * soft(x) * (1 - soft(x)), SOFTMAX)
    assert found.fault == "diagonal only" and "Jacobian" in found.message, str(found)


def test_a_factor_left_out():
    scaled = cg.parse("Y[n, k] = g[k] * X[n, k] / s[k]", X=(6, 5), g=5, s=5)
    found = audit(lambda g, x, s, dy: dy * g, scaled, "X")
    assert found.fault == "factor missing" and "1 / s[k]" in found.message, str(found)
    found = audit(lambda g, x, s, dy: (dy * x).sum(0), scaled, "g")
    assert found.fault == "factor missing" and "1 / s[k]" in found.message, str(found)
    norm = lambda x, gamma, beta, dy: dy.sum((0, 2, 3))  # noqa: E731
    found = audit(norm, NORM, "gamma")
    assert found.fault == "factor missing" and "X[n, c, h, w] - mean[c]" in found.message


TRANSPOSED = cg.nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1).program((2, 3, 6, 7))


def gathered(x, w, b, dy, stride=2, pad=1):
    """The gradient to a transposed convolution's input: an ordinary convolution of dY."""
    dx = np.zeros_like(x)
    for y, v, r, s in np.ndindex(*x.shape[2:], *w.shape[2:]):
        h, q = stride * y + r - pad, stride * v + s - pad
        if 0 <= h < dy.shape[2] and 0 <= q < dy.shape[3]:
            dx[:, :, y, v] += dy[:, :, h, q] @ w[:, :, r, s].T
    return dx


def test_mistakes_in_a_layer_of_residue_classes():
    assert audit(gathered, TRANSPOSED, "X").passed
    found = audit(lambda *a: gathered(*a, stride=1), TRANSPOSED, "X")
    assert found.fault == "stride missing", str(found)
    assert "dY[n, c, y + r - 1, x + s - 1] instead of dY[n, c, 2*y + r - 1" in found.message
    found = audit(lambda *a: gathered(*a, pad=0), TRANSPOSED, "X")
    assert found.fault == "padding missing", str(found)


NORM = cg.nn.BatchNorm2d(16, track_running_stats=False).program((8, 16, 14, 14), training=True)


def norm_grad(x, gamma, beta, dy, through_mean=True, through_var=True):
    over, shape = (0, 2, 3), (1, -1, 1, 1)
    n = x.size // x.shape[1]
    mean, var = x.mean(over, keepdims=True), x.var(over, keepdims=True)
    spread = np.sqrt(var + 1e-5)
    hat, g = (x - mean) / spread, dy * gamma.reshape(shape)
    dx = g / spread
    if through_var:
        dx = dx - hat * (g * hat).sum(over, keepdims=True) / (n * spread)
    if through_mean:
        dx = dx - g.sum(over, keepdims=True) / (n * spread)
    return dx


def test_statistics_of_batch_norm_taken_as_constants():
    assert audit(norm_grad, NORM, "X").passed
    for options, words in (
        ({"through_mean": False, "through_var": False}, "through mean, var"),
        ({"through_mean": False}, "through mean is"),
        ({"through_var": False}, "through var is"),
    ):
        found = audit(lambda *a, o=options: norm_grad(*a, **o), NORM, "X")
        assert found.fault == "statistics as constants" and words in found.message, str(found)


def test_a_reflecting_boundary_taken_as_zero():
    layer = cg.nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect", bias=False)
    program = layer.program((4, 2, 20))

    def grad_weights(mode):
        def function(x, w, dy):
            padded = np.pad(x, ((0, 0), (0, 0), (1, 1)), mode=mode)
            taps = [padded[:, :, r : r + dy.shape[2]] for r in range(w.shape[2])]
            return np.stack([np.einsum("nky,ncy->kc", dy, t) for t in taps], axis=2)

        return function

    assert audit(grad_weights("reflect"), program, "W").passed
    assert audit(grad_weights("constant"), program, "W").fault == "boundary as zero"
    assert audit(grad_weights("edge"), program, "W").fault == "another boundary"


def test_the_factor_of_a_power():
    square = cg.parse("Y[i] = X[i]**2 / 2", X=(40,))
    assert audit(lambda x, dy: x * dy, square).passed
    cube = cg.parse("Y[i] = X[i]**3", X=(40,))
    assert audit(lambda x, dy: x**2 * dy, cube).fault == "power's factor missing"


def test_a_contribution_left_out():
    difference = cg.parse("Y[i] = X[i + 1] * X[i]  for i < 39", X=(40,))
    right = audit(lambda x, dy: np.append(dy * x[1:], 0) + np.append(0, dy * x[:-1]), difference)
    assert right.passed
    found = audit(lambda x, dy: np.append(dy * x[1:], 0), difference)
    assert found.fault == "contribution missing" and "X[i + 1]" in found.message


# --------------------------------------------------------------------- functions that are no use

LINEAR = cg.parse("Y[n, k] = sum(c: X[n, c] * W[k, c])", X=(8, 9), W=(7, 9))


@pytest.mark.parametrize(
    "function, kind, words",
    [
        (lambda x, w, dy: None, "nothing", "returned None"),
        (lambda x, w, dy: (dy, w), "kind", "a tuple of 2"),
        (lambda x, w, dy: dy @ w > 0, "dtype", "dtype bool"),
        (lambda x, w, dy: dy, "shape", "shape [2, 3]; expected [2, 4]"),
        (lambda x, w, dy: dy @ w.T, "roles swapped", "ValueError"),
        (lambda x, w, dy: dy @ x, "raised", "given X[2, 4], W[3, 4], dY[2, 3]"),
        (lambda x, w: x, "raised", "TypeError"),
        (lambda x, w, dy: np.multiply(x, 2, out=x), "argument", "changes its argument X"),
        (lambda x, w, dy: (dy @ w)[None], "shape", "only the shape is not"),
        (lambda x, w, dy: (dy @ w).T, "roles swapped", "have changed places"),
    ],
    ids=[
        "nothing",
        "tuple",
        "bool",
        "shape",
        "roles",
        "raises",
        "arguments",
        "in place",
        "extra",
        "turned",
    ],
)
def test_what_is_no_gradient_is_said_clearly(function, kind, words):
    found = audit(function, LINEAR, "X")
    assert not found.passed and found.fault == kind and words in found.message, str(found)


def test_a_function_for_equal_channels_only():
    """What is wrong only where extents happen to be equal is right for this program."""
    square = audit(lambda x, w, dy: dy @ w.T if w.shape[0] == w.shape[1] else dy @ w, LINEAR, "X")
    assert square.passed


def test_nan_is_wrong():
    found = audit(lambda x, w, dy: dy @ w * np.nan, LINEAR, "X")
    assert not found.passed


def test_torch_functions():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)

    def right(x, w, dy):
        return torch.einsum("nk,kc->nc", dy, w)

    def wrong(x, w, dy):
        return torch.einsum("nk,kc->nc", dy, w) / dy.shape[0]

    assert audit(right, LINEAR, "X").passed
    assert audit(wrong, LINEAR, "X").fault == "mean for sum"
    assert audit(lambda x, w, dy: dy.mm(w), LINEAR, "X").passed


def test_gradients_of_torch_pass():
    """Autograd of torch's own layers is right everywhere: also at ties, zeros and borders."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    f, nn = torch.nn.functional, cg.nn
    image = (2, 8, 14, 15)
    layers = [
        (nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1).program(image), "XWb",
         lambda x, w, b: f.conv_transpose2d(x, w, b, stride=2, padding=1)),
        (nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular").program(image), "XW",
         lambda x, w, b: f.conv2d(f.pad(x, (1, 1, 1, 1), mode="circular"), w, b)),
        (nn.Conv2d(8, 8, 3, groups=8).program(image), "XW",
         lambda x, w, b: f.conv2d(x, w, b, groups=len(w))),
        (nn.MaxPool2d(3, stride=2, padding=1).program(image), "X",
         lambda x: f.max_pool2d(x, 3, 2, 1)),
        (nn.GroupNorm(4, 8).program(image), ["X", "gamma"],
         lambda x, g, b: f.group_norm(x, 4, g, b, 1e-5)),
        (nn.Softmax(dim=1).program((8, 10)), "X", lambda x: f.softmax(x, 1)),
        (cg.parse("Y[n, k] = sum(c: X[n, c] * W[k, c])", X=("N", 60), W=(40, 60)), "XW",
         lambda x, w: x @ w.T),
    ]  # fmt: skip
    for program, names, forward in layers:
        for place, name in enumerate(names):

            def backward(*given, place=place, forward=forward):
                inputs = [t.clone() for t in given[:-1]]
                inputs[place].requires_grad_()
                return torch.autograd.grad(forward(*inputs), inputs[place], given[-1])[0]

            found = audit(backward, program, name)
            assert found.passed, str(found)


def test_what_is_asked_must_exist():
    with pytest.raises(DerivationError, match="one of X, W"):
        audit(grad_w, LINEAR)
    with pytest.raises(DerivationError, match="no float input 'V'"):
        audit(grad_w, LINEAR, "V")
    with pytest.raises(DataError, match="no function"):
        audit(3, LINEAR, "X")


def test_mistakes_change_the_gradient():
    """The catalogue of a strided, dilated, grouped layer has no two entries of one name and text,
    and each is a program whose gradient can be derived."""
    small = Family(CONV).smaller()
    found = mistakes_of(small)
    assert len({(m.name, m.text) for m in found}) == len(found) >= 20
    assert all(str(grad(m.program)) != str(grad(small)) for m in found)


# ------------------------------------------------------------------------------- command line


def test_the_command(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\n"
        "def right(x, w, b, dy):\n    return dy.sum((0, 2, 3))\n"
        "def wrong(x, w, b, dy):\n    return dy.sum((2, 3)).mean(0)\n"
    )
    rest = ["--of", "Conv2d(4, 6, 3)", "--input", "8,4,12,12", "--wrt", "b"]
    run = CliRunner().invoke
    assert run(cli, ["audit", f"{file}:right", *rest]).exit_code == 0
    result = run(cli, ["audit", f"{file}:wrong", *rest, "--json"])
    assert result.exit_code == 1
    text = result.stdout
    assert json.loads(text[text.index("{") :])["faults"][0]["name"] == "mean for sum"
    with pytest.raises(DataError, match="one of right, wrong"):
        run(cli, ["audit", f"{file}:none", *rest], catch_exceptions=False)
