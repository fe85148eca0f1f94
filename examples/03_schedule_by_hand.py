"""Lesson 3: a schedule says how the loops run; each directive is checked, none changes results."""

import numpy as np

import convgen as cg

conv = cg.parse(
    "Y[n, k, y, x] = sum(c, r, s: X[n, c, y + r, x + s] * W[k, c, r, s])",
    X=(1, 16, 21, 21),
    W=(32, 16, 3, 3),
)
rng = np.random.default_rng(0)
x_in = rng.standard_normal((1, 16, 21, 21)).astype(np.float32)
w_in = rng.standard_normal((32, 16, 3, 3)).astype(np.float32)

automatic = cg.compile(conv)
print("chosen by the cost model:\n ", automatic.schedule)

# 19 columns are covered exactly by tiles of 5 and 4; 16 channels fill the vectors of any target,
# and a tile of 5 by 16 fits the registers of AVX2 as well as those of AVX-512.
mine = cg.compile(
    conv,
    schedule="cover(x, 5, 4); split(k, 16); reorder(n, k_out, y, x_out, r, s, c, x_in, k_in); "
    "pack(W, k_in); vectorize(k_in); unroll(x_in); carry(); parallel(n, k_out, y)",
)
print("\nby hand:\n ", mine.schedule)
print("\nits loops:\n")
print(mine.loops)

# Without pack the vector would read W at a stride: refused, with what to do.
try:
    cg.compile(conv, schedule="split(k, 16); vectorize(k_in)")
except cg.ScheduleError as error:
    print("refused:", error)

difference = abs(automatic(x_in, w_in) - mine(x_in, w_in)).max()
print("\nlargest difference between the two:", difference)
assert difference < 1e-4
