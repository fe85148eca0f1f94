"""How gradients read: goldens of text and LaTeX, and equality with the formulas of the textbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from derive_oracle import check_gradients

from convgen.layers import activation, convolution, elementwise, normalization, pooling
from convgen.symbolic.derive import adjoint, grad
from convgen.symbolic.evaluate import evaluate
from convgen.symbolic.matrix import elements
from convgen.symbolic.parse import parse

PROGRAMS = Path(__file__).parent.parent / "golden" / "programs"


def written(name):
    return parse((PROGRAMS / f"{name}.txt").read_text())


def second_order():
    """The gradient of <dX(W, dY), V>: what a penalty on the input gradient needs."""
    layer = parse("Y[y] = sum(r: X[y + r - 1] * W[r]) for y < 6", X=6, W=3)
    return grad(grad(layer, ["X"]), ["W", "dY"])


def strided():
    return parse(
        "Y[n, k, y, x] = sum(c, r, s: X[n, c, 2*y + r - 1, 2*x + s - 1] * W[k, c, r, s])"
        " for y < 4, x < 4",
        X=(2, 3, 8, 8), W=(4, 3, 3, 3),
    )  # fmt: skip


def first_order(program):
    return lambda: grad(program())


CASES = {
    "conv1d": first_order(lambda: convolution.Conv1d(2, 3, 3, padding=1).program((2, 2, 8))),
    "conv2d": first_order(lambda: convolution.Conv2d(3, 4, 3, padding=1).program((2, 3, 8, 8))),
    "conv3d": first_order(lambda: convolution.Conv3d(2, 3, 3).program((1, 2, 6, 6, 6))),
    "stride2": first_order(
        lambda: convolution.Conv2d(3, 4, 3, stride=2, padding=1).program((2, 3, 8, 8))
    ),
    "stride3": first_order(lambda: convolution.Conv1d(2, 3, 5, stride=3).program((2, 2, 14))),
    "dilation": first_order(
        lambda: convolution.Conv2d(3, 4, 3, padding=2, dilation=2).program((2, 3, 8, 8))
    ),
    "groups": first_order(
        lambda: convolution.Conv2d(4, 6, 3, padding=1, groups=2).program((2, 4, 8, 8))
    ),
    "transposed": first_order(
        lambda: convolution.ConvTranspose1d(2, 3, 4, stride=2, padding=1).program((2, 2, 5))
    ),
    "transposed2d": first_order(
        lambda: convolution.ConvTranspose2d(2, 3, 3, stride=2, padding=1).program((2, 2, 5, 5))
    ),
    "transposed3d": first_order(
        lambda: convolution.ConvTranspose3d(2, 3, 4, stride=2, padding=1).program((1, 2, 5, 5, 5))
    ),
    "transposed_one_tap": first_order(
        lambda: convolution.ConvTranspose2d(4, 6, 3, stride=3, padding=1, dilation=2, groups=2)
        .program((2, 4, 5, 5))
    ),
    "depthwise_reflect": first_order(
        lambda: convolution.Conv2d(3, 3, 3, padding=1, padding_mode="reflect", groups=3)
        .program((2, 3, 8, 8))
    ),
    "tiled": first_order(lambda: written("tiled_conv")),
    "locally_connected": first_order(
        lambda: parse(
            "Y[n, k, y, x] = sum(c, r, s: X[n, c, y + r, x + s] * W[y, x, k, c, r, s])",
            X=(2, 3, 6, 6), W=(4, 4, 2, 3, 3, 3),
        )
    ),
    "correlation": first_order(
        lambda: parse(
            "Y[n, i, j, y, x] = sum(c: A[n, c, y, x] * B[n, c, y + i - 1, x + j - 1])"
            " for i < 3, j < 3",
            A=(2, 4, 6, 6), B=(2, 4, 6, 6),
        )
    ),
    "max_pool": first_order(lambda: pooling.MaxPool2d(3, stride=2).program((2, 3, 7, 7))),
    "average_pool": first_order(lambda: pooling.AvgPool2d(2).program((2, 3, 8, 8))),
    "batch_norm": first_order(
        lambda: normalization.BatchNorm2d(3, track_running_stats=False).program((4, 3, 4, 4))
    ),
    "lcn": first_order(lambda: written("lcn")),
    "softmax_cross_entropy": first_order(lambda: written("softmax_cross_entropy")),
    "second_order": second_order,
    "second_order_stride2": lambda: grad(grad(strided(), ["X"]), ["W", "dY"]),
    "second_order_weights": lambda: grad(grad(strided(), ["W"]), ["X", "dY"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_golden(name, golden):
    program = CASES[name]()
    assert parse(str(program)) == program
    golden(f"formulas/{name}.txt", str(program))
    golden(f"formulas/{name}.tex", program.latex())
    golden(f"formulas/{name}.unicode", program.unicode())


# ---------------------------------------------------------------------------------------------
# LaTeX and MathML are well formed

COMMANDS = set(
    r"""\\ \, \; \; \# \& \_ \{ \} \begin \end \sum \prod \max \min \exp \log \tanh \frac \sqrt \left
    \right \le \leftarrow \mathrm \operatorname \operatorname* \text \qquad \quad \cdot \bmod
    \equiv \lfloor \rfloor \infty \substack""".split()
) | {rf"\{g}" for g in "alpha beta gamma sigma mu eta theta lambda rho tau epsilon".split()}
TOKEN = re.compile(r"\\operatorname\*|\\[A-Za-z]+|\\.|[{}^_&]|[^\\{}^_&\s]+|\s+")


def check_latex(text):
    """A parser of the part of LaTeX that is written: commands known, groups and environments
    closed in order, left and right in pairs, no script twice."""
    tokens = [t for t in TOKEN.findall(text) if not t.isspace()]
    stack: list[str] = []
    scripts: list[set[str]] = [set()]
    i = 0
    while i < len(tokens):
        t = tokens[i]
        if t[0] == "\\":
            assert t in COMMANDS, t
        if t in ("^", "_"):
            assert t not in scripts[-1], f"double script near {tokens[i - 5 : i + 5]}"
            assert tokens[i + 1] == "{", "scripts are in braces"
            scripts[-1].add(t)
            i += 1
            stack.append("script")
            scripts.append(set())
        elif t == "{":
            stack.append("{")
            scripts.append(set())
        elif t == "}":
            kind = stack.pop()
            assert kind in ("{", "script"), f"closes {kind}"
            scripts.pop()
            if kind == "{":
                scripts[-1] = set()
        elif t in (r"\begin", r"\end"):
            name = tokens[i + 2]
            if t == r"\begin":
                stack.append(name)
                scripts.append(set())
            else:
                assert stack.pop() == name
                scripts.pop()
            i += 3
        elif t == r"\left":
            stack.append("left")
            scripts.append(set())
        elif t == r"\right":
            assert stack.pop() == "left"
            scripts.pop()
            scripts[-1] = set()
        elif t == "&":
            assert stack[-1] in ("aligned", "cases"), stack
        else:
            scripts[-1] = {"^"} if t.endswith("'") else set()
        i += 1
    assert not stack


@pytest.mark.parametrize("name", CASES)
def test_latex_is_well_formed(name):
    check_latex(CASES[name]().latex())


@pytest.mark.parametrize(
    "wrong",
    [
        r"X_{1}_{2}",
        r"\frac{1}{2",
        r"\begin{aligned} x \end{cases}",
        r"\left( x",
        r"\foo",
        r"X'^{2}",
    ],
)
def test_malformed_latex_is_noticed(wrong):
    with pytest.raises((AssertionError, IndexError)):
        check_latex(wrong)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX engine here")
def test_a_tex_engine_takes_it(tmp_path):
    head = (
        r"\documentclass{article}\usepackage[a1paper]{geometry}\usepackage{amsmath}\begin{document}"
    )
    body = "\n".join(rf"\[{CASES[name]().latex()}\]" for name in CASES)
    (tmp_path / "all.tex").write_text(head + body + r"\end{document}")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1500:]


class Tree(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.children: list[int] = [0]
        self.wrong: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.children[-1] += 1
        self.open.append(tag)
        self.children.append(0)

    def handle_endtag(self, tag):
        count = self.children.pop()
        wanted = {"msub": 2, "msup": 2, "mfrac": 2, "munder": 2, "msubsup": 3}.get(tag)
        if self.open.pop() != tag or wanted not in (None, count):
            self.wrong.append(f"{tag} with {count}")


@pytest.mark.parametrize("name", CASES)
def test_mathml_is_well_formed(name):
    tree = Tree()
    tree.feed(CASES[name]().mathml())
    assert not tree.open and not tree.wrong


def test_names_are_escaped():
    program = parse("new_x[i] = X[i]", X=3)
    assert r"\mathrm{new\_x}_{i}" in program.latex()


def test_a_choice_of_several_is_one_brace():
    program = parse("Y[i] = select(X[i] < 0, 1, select(X[i] < 2, 5, X[i]))", X=3)
    assert program.latex().count(r"\begin{cases}") == 1 and program.latex().count("otherwise") == 1


def test_letters_that_are_not_latin():
    alpha, sigma, accent = "\N{GREEK SMALL LETTER ALPHA}", "\N{GREEK CAPITAL LETTER SIGMA}", "\xe9"
    program = parse(f"{sigma}[i] = {alpha}[i] * {accent}[i]", **{alpha: 3, accent: 3})
    assert parse(str(program)) == program
    found = program.latex()
    assert rf"\Sigma_{{i}} &= \alpha_{{i}} \, \text{{{accent}}}_{{i}}" in found
    assert alpha in program.mathml() and accent in program.mathml()


def test_constants_stay_exact():
    """No seventeen digits of the root of two: the layer says it, the gradient keeps it."""
    for layer in (elementwise.GELU(), elementwise.GELU("tanh")):
        text = grad(layer.program((4,))).unicode()
        assert "\N{SQUARE ROOT}(2)" in text and not re.search(r"\d{7}", text)


def test_the_gradient_of_softmax_does_not_go_through_its_maximum():
    found = lines(grad(activation.Softmax(1).program((4, 5))))
    assert not any("dM" in x or "argmax" in x for x in found)
    assert any(x.startswith("dX[") and x.count("dE[") == 1 for x in found)


# ---------------------------------------------------------------------------------------------
# The forms of the design, and the textbook's formulas


def lines(program):
    return [x.split("   for")[0] for x in str(program).splitlines()]


def test_stride_one_is_the_textbooks():
    layer = parse(
        "Y[n, k, y, x] = sum(c, r, s: X[n, c, y + r - 1, x + s - 1] * W[k, c, r, s])"
        " for y < 8, x < 8",
        X=(2, 3, 8, 8), W=(4, 3, 3, 3),
    )  # fmt: skip
    found = lines(grad(layer))
    assert "dX[n, c, h, w] = sum(k, r, s: dY[n, k, h + 1 - r, w + 1 - s] * W[k, c, r, s])" in found
    assert "dW[k, c, r, s] = sum(n, y, x: dY[n, k, y, x] * X[n, c, y + r - 1, x + s - 1])" in found
    flipped = lines(grad(layer, ["X"], flip=True))
    assert (
        "dX[n, c, h, w] = sum(k, r < 3, s < 3: dY[n, k, h + r - 1, w + s - 1]"
        " * W[k, c, 2 - r, 2 - s])"
    ) in flipped


POSITIONS_BEFORE_TAPS = {
    "conv2d": "dY[n, k, y, x] * X[n, c, y + r - 1, x + s - 1]",
    "conv3d": "dY[n, k, z, y, x] * X[n, c, z + q, y + r, x + s]",
    "stride2": "dY[n, k, y, x] * X[n, c, 2*y + r - 1, 2*x + s - 1]",
    "dilation": "dY[n, k, y, x] * X[n, c, y + 2*r - 2, x + 2*s - 2]",
    "groups": "dY[n, 3*g + k, y, x] * X[n, 2*g + c, y + r - 1, x + s - 1]",
    "transposed2d": "dY[n, c, 2*y + r - 1, 2*x + s - 1] * X[n, k, y, x]",
    "transposed_one_tap": ("dY[n, 3*g + c, 3*y + 2*r - 1, 3*x + 2*s - 1] * X[n, 2*g + k, y, x]"),
    "locally_connected": "dY[n, k, y, x] * X[n, c, y + r, x + s]",
    "tiled": "dY[n, k, 2*y_out + h, 2*x_out + w] * X[n, c, 2*y_out + h + r, 2*x_out + w + s]",
    "depthwise_reflect": "dY[n, g, y, x] * X{., ., reflect, reflect}[n, g, y + r - 1, x + s - 1]",
    "second_order_stride2": "dY[n, k, y, x] * ddX[n, c, 2*y + r - 1, 2*x + s - 1]",
}


@pytest.mark.parametrize("name", POSITIONS_BEFORE_TAPS)
def test_gradients_to_the_weights_read_alike(name):
    (found,) = [x for x in lines(CASES[name]()) if x.startswith("dW[")]
    assert found.endswith(f": {POSITIONS_BEFORE_TAPS[name]})"), found
    assert found.index("n") < found.index("y", found.index("= sum("))


def test_positions_before_taps_whatever_their_extents():
    """A kernel larger than the map, a displacement larger than the image, a flipped filter."""
    large = parse("Y[y] = sum(r: X[2*y + r - 4] * W[r]) for y < 2", X=4, W=9)
    assert "dW[r] = sum(y: dY[y] * X[2*y + r - 4])" in lines(grad(large))
    far = parse(
        "Y[i, j, y, x] = sum(c: A[c, y, x] * B[c, y + i - 4, x + j - 4]) for i < 9, j < 9",
        A=(2, 3, 3), B=(2, 3, 3),
    )  # fmt: skip
    assert "dA[c, y, x] = sum(i, j: dY[i, j, y, x] * B[c, y + i - 4, x + j - 4])" in lines(
        grad(far)
    )


def test_one_tap_in_each_class_is_one_formula():
    """Sums, products and pieces of one element each that run on evenly are put together."""
    stencil = parse("Y[x] = X[x] * W[0] + X[x + 1] * W[1] + X[x + 2] * W[2]", X=9, W=3)
    found = lines(grad(stencil))
    assert "dX[h] = sum(r: dY[h - r] * W[r])" in found
    assert "dW[r] = sum(x: dY[x] * X[x + r])" in found
    uneven = parse("Y[x] = X[x] * W[0] + X[x + 1] * W[1] + X[x + 3] * W[2]", X=9, W=3)
    assert sum(x.startswith("dW[") for x in lines(grad(uneven))) > 1
    for program in (stencil, uneven):
        check_gradients(program)


def test_blocks_that_stand_only_together_are_one_axis():
    up = convolution.ConvTranspose2d(4, 2, 2, stride=2).program((2, 4, 5, 5))
    assert "db[c] = sum(n, y, x: dY[n, c, y, x])" in lines(grad(up))
    kept = parse("Y[2*y + r] = X[y] * W[r] for y < 5, r < 2", X=5, W=2)
    assert "dW[r] = sum(y: dY[2*y + r] * X[y])" in lines(grad(kept))
    for program in (up, kept):
        check_gradients(program)


# (what is derived, what the textbook prints); letters of the notes, sizes small
TEXTBOOK = {
    "gradient to the input": (
        lambda: adjoint(
            parse("H[k, m, j] = sum(c, i: V[k + c, i, j] * W[c, i, m])", V=(6, 2, 3), W=(3, 2, 4)),
            "V",
        ),
        "dV[c, i, j] = sum(k < 4, m: select(c - k < 3, dH[k, m, j] * W[c - k, i, m], 0)) for c < 6",
        {"W": (3, 2, 4), "dH": (4, 4, 3)},
    ),
    "gradient to the weights": (
        lambda: adjoint(
            parse("H[k, j, n] = sum(c, i: V[k + c, i, n] * W[c, i, j])", V=(6, 2, 3), W=(3, 2, 4)),
            "W",
        ),
        "dW[c, i, j] = sum(k, n: dH[k, j, n] * V[k + c, i, n]) for c < 3",
        {"V": (6, 2, 3), "dH": (4, 4, 3)},
    ),
    "average pooling": (
        lambda: adjoint(parse("Y[i, j] = sum(p < 2: X[i, 2*j + p]) / 2 for j < 3", X=(2, 6)), "X"),
        "dX[i, h] = dY[i, h // 2] / 2 for h < 6",
        {"dY": (2, 3)},
    ),
    "transposed is the gradient": (
        lambda: adjoint(parse("S[t] = sum(i: x[i] * w[t - i]) for t < 6", x=4, w=3), "x"),
        "dx[i] = sum(t: dS[t] * w[t - i]) for i < 4",
        {"w": (3,), "dS": (6,)},
    ),
    "true convolution commutes": (
        lambda: parse("S[t] = sum(i: x[i] * w[t - i]) for t < 6", x=4, w=3),
        "S[t] = sum(j: x[t - j] * w[j]) for t < 6",
        {"x": (4,), "w": (3,)},
    ),
}


# Layers against what the textbook prints, written down here once more in its own way.
LAYERS = {
    "1-D": (
        convolution.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2), (2, 2, 9),
        "Y[n, k, y] = sum(c, r: X[n, c, 2*y + 2*r - 2] * W[k, c, r]) + b[k] for y < 5",
    ),
    "2-D": (
        convolution.Conv2d(2, 2, 2, padding=1), (1, 2, 3, 3),
        "Y[n, k, y, x] = sum(c, r, s: X[n, c, y + r - 1, x + s - 1] * W[k, c, r, s]) + b[k]"
        " for y < 4, x < 4",
    ),
    "3-D": (
        convolution.Conv3d(1, 2, 2), (1, 1, 3, 3, 3),
        "Y[n, k, z, y, x] = sum(c, q, r, s: X[n, c, z + q, y + r, x + s] * W[k, c, q, r, s]) + b[k]",
    ),
    "grouped is block-diagonal": (
        convolution.Conv1d(4, 6, 3, padding=1, groups=2), (1, 4, 4),
        "Y[n, k, y] = sum(c < 4, r: select(c // 2 == k // 3, X[n, c, y + r - 1] * W[k, c % 2, r], 0))"
        " + b[k] for y < 4",
    ),
    "depthwise": (
        convolution.Conv1d(3, 6, 3, groups=3), (1, 3, 5),
        "Y[n, k, y] = sum(r: X[n, k // 2, y + r] * W[k, 0, r]) + b[k]",
    ),
    "1x1": (
        convolution.Conv2d(3, 2, 1), (1, 3, 2, 2),
        "Y[n, k, y, x] = sum(c: X[n, c, y, x] * W[k, c, 0, 0]) + b[k]",
    ),
    "fully connected as a full-size kernel": (
        convolution.Conv2d(2, 2, 3), (1, 2, 3, 3),
        "Y[n, k, y, x] = sum(c, r, s: X[n, c, r, s] * W[k, c, r, s]) + b[k] for y < 1, x < 1",
    ),
    "transposed is a scatter": (
        convolution.ConvTranspose1d(2, 3, 4, stride=2, padding=1), (1, 2, 3),
        "Y[n, k, h] = sum(c, y, r where 2*y + r - 1 == h: X[n, c, y] * W[c, k, r]) + b[k] for h < 6",
    ),
    "average pooling": (
        pooling.AvgPool2d(2), (1, 2, 4, 4),
        "Y[n, c, y, x] = sum(p < 2, q < 2: X[n, c, 2*y + p, 2*x + q]) / 4",
    ),
    "batch normalization": (
        normalization.BatchNorm1d(2, track_running_stats=False), (3, 2),
        "program norm\ntensor X: f32[3, 2]\ntensor gamma: f32[2]\ntensor beta: f32[2]\n"
        "m[c] = sum(n: X[n, c]) / 3\ns[c] = sum(n: X[n, c]**2) / 3 - m[c]**2\n"
        "Y[n, c] = gamma[c] * ((X[n, c] - m[c]) / sqrt(s[c] + 1/100000)) + beta[c]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_the_textbooks(name):
    layer, shape, text = LAYERS[name]
    program = layer.program(shape)
    if text.startswith("program"):
        printed = parse(text)
    else:
        used = {t.name: t.shape for t in program.inputs}
        printed = parse(text, **used)
    for a, b in zip(elements(program)["Y"], elements(printed)["Y"], strict=True):
        difference = (a - b).expand()
        assert difference == 0 or difference.simplify() == 0


def test_tiled_is_between_convolution_and_locally_connected():
    text = "Y[k, y] = sum(c, r: X[c, y + r] * W[{}, k, c, r])"
    shapes = {"X": (2, 6), "W": (4, 2, 2, 3)}
    shared = parse("Y[k, y] = sum(c, r: X[c, y + r] * W[0, k, c, r])", **shapes)
    one = parse(text.format("y % 1"), **shapes)
    local, whole = parse(text.format("y"), **shapes), parse(text.format("y % 4"), **shapes)
    assert elements(one)["Y"] == elements(shared)["Y"]
    assert elements(whole)["Y"] == elements(local)["Y"]


def test_max_pooling_sends_the_gradient_to_the_winner():
    program = grad(pooling.MaxPool1d(3, stride=2).program((1, 1, 7)))
    found = evaluate(program, {"X": [[[1, 5, 2, 5, 5, 0, 3]]], "dY": [[[10, 20, 30]]]})
    assert found["dX"].tolist() == [[[0, 10, 0, 20, 30, 0, 0]]]


@pytest.mark.parametrize("name", TEXTBOOK)
def test_symbolic_equality_with_the_textbook(name):
    derive, text, shapes = TEXTBOOK[name]
    derived = derive()
    printed = parse(text, **shapes)
    mine, theirs = elements(derived), elements(printed)
    name = derived.output.name
    assert printed.output.name == name
    for a, b in zip(mine[name], theirs[name], strict=True):
        assert (a - b).expand().doit() == 0


def test_a_wrong_textbook_is_noticed():
    derive, text, shapes = TEXTBOOK["gradient to the weights"]
    printed = parse(text.replace("V[k + c", "V[k - c"), **shapes)
    mine, theirs = elements(derive())["dW"], elements(printed)["dW"]
    assert any((a - b).expand() != 0 for a, b in zip(mine, theirs, strict=True))


def test_activation_gradient_reads_naturally():
    program = grad(activation.ReLU().program((2, 3)))
    assert any("step(X[" in line for line in lines(program))
    out = evaluate(program, {"X": [[1, -1, 0], [2, 3, -4]], "dY": [[5, 6, 7], [8, 9, 10]]})
    assert out["dX"].tolist() == [[5, 0, 0], [8, 9, 0]]
