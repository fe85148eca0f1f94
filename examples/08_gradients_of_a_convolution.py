"""Lesson 8: the gradients of a convolution, as one would teach them.

Forward formula, chain rule, index equation, residue classes, the operator view, and the machine's
answer to each: every line that is printed can be run.
"""

import numpy as np

import convgen as cg
from convgen.inspect.operator import operator_view
from convgen.inspect.windows import reads_and_reaches, residue_classes
from convgen.symbolic.matrix import matrix

# 1. A layer is a sum over what it reads. One dimension, kernel of 3, padding 1, stride 1.
layer = cg.parse("Y[y] = sum(r: X[y + r - 1] * W[r]) for y < 6", X=6, W=3)
print("1. The layer:", layer.unicode(), sep="\n")

# 2. Its gradients. For the input the index equation h = y + r - 1 is solved for y: the kernel is
#    read the other way round. For the weights there is nothing to solve: fixed tap, all positions.
print("\n2. Its gradients:", cg.grad(layer).unicode(), sep="\n")
print(
    "\nThe same with the kernel flipped instead:",
    cg.grad(layer, "X", flip=True).unicode(),
    sep="\n",
)

# 3. Stride 2. An input element h is reached only by taps r with h + 1 - r even: even elements by
#    the middle tap alone, odd ones by the two outer taps. No multiplication is wasted.
strided = cg.parse("Y[y] = sum(r: X[2*y + r - 1] * W[r]) for y < 4", X=8, W=3)
print("\n3. With stride 2, step by step:")
rng = np.random.default_rng(0)
w, dy = rng.integers(-4, 5, 3), rng.integers(-4, 5, 4)
answers = []
for step in cg.steps(strided, "X"):
    print(f"\n   {step.title}: {step.formula}")
    for line in step.lines:
        print("      ", line)
    space = {}
    exec(step.program.to_numpy(), space)  # the step as NumPy source: paste it, change it, compare
    given = {"W": w, "dY": dy}
    answers.append(space[step.program.name](*(given[t.name] for t in step.program.inputs)))
print("\n   every step computes", answers[-1])
assert all((a == answers[-1]).all() for a in answers)

# 4. The layer is a matrix, its input gradient the transposed matrix. Stride 1 gives a Toeplitz
#    matrix; with stride 2 every other row is missing. Over the weights it is im2col.
print("\n4. Y = A X with A =", matrix(strided, "X"), sep="\n")
print("\n   and Y = B W with B =", matrix(strided, "W"), sep="\n")
for tensor in ("X", "W"):
    view = operator_view(strided, tensor, small=False)
    assert view is not None and view.holds
print("\n   A^T v, the derived adjoint and its kernel agree, for X and for W.")

# 5. Two dimensions, stride, dilation: the same rules in each dimension.
plane = cg.parse(
    "Y[n, k, y, x] = sum(c, r, s: X[n, c, 2*y + r - 1, x + 2*s - 2] * W[k, c, r, s])"
    " for y < 4, x < 8",
    X=(2, 3, 8, 8), W=(4, 3, 3, 3),
)  # fmt: skip
grad = cg.grad(plane)
print("\n5. Stride 2 down, dilation 2 across:", grad.unicode(), sep="\n")
print("\nIn LaTeX:", grad.latex(), sep="\n")

# 6. The kernels agree with finite sums: <dY, Y(X)> is linear in X and in W.
x_in = rng.integers(-3, 4, (2, 3, 8, 8)).astype(np.float32)
w_in = rng.integers(-3, 4, (4, 3, 3, 3)).astype(np.float32)
dy_in = rng.integers(-3, 4, (2, 4, 4, 8)).astype(np.float32)
dx, dw = cg.compile(grad)(x_in, w_in, dy_in)
total = (cg.compile(plane)(x_in, w_in) * dy_in).sum()
assert total == (dx * x_in).sum() == (dw * w_in).sum()
print("\n6. <dY, Y> = <dX, X> = <dW, W> =", total)

# 7. What a gradient needs across stages: batch normalization in closed form, by named rewrites.
norm = cg.parse(
    "program norm\ntensor X: f32[8, 3]\nM[c] = sum(n: X[n, c]) / 8\n"
    "V[c] = sum(n: (X[n, c] - M[c])**2) / 8\n"
    "Y[n, c] = (X[n, c] - M[c]) / sqrt(V[c] + 1/100000)\n"
)
print("\n7. Normalization:", cg.closed_form(cg.grad(norm)).unicode(), sep="\n")

# 8. Pictures: what an output reads and what an input reaches; the residue classes in colour.
pictures = {
    "window.svg": reads_and_reaches(plane),
    "classes.svg": residue_classes(cg.grad(plane, ["X"])),
}
for name, picture in pictures.items():
    if picture is not None:
        print("8. wrote", picture.save(name))
print("   All on one page: convgen report FILE.py:plane -o report.html")
