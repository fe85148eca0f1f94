"""Layers that are measured as they stand: maps and windows, and layers that no library ships."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from convgen.errors import UserError
from convgen.layers.contrast import LocalContrastNorm
from convgen.symbolic import dsl
from convgen.symbolic import functions as f
from convgen.symbolic.parse import parse
from convgen.symbolic.program import Program

n, k, c, d, g, i, j, p, q, r, s, t, u, x, y, z = dsl.axes("n k c d g i j p q r s t u x y z")
h, w = dsl.axes("h w")


@dataclass(frozen=True, slots=True)
class Subject:
    """A layer and the inputs that get gradients. last: its four-dimensional arrays are channels
    last, and torch gets them as views of that form."""

    name: str
    program: Callable[[], Program]
    wrt: tuple[str, ...]
    last: bool = False


# -- maps and windows ------------------------------------------------------------------------------

_IMAGE = (16, 56, 56, 64)
_HALF = {y: 28, x: 28}


def batch_norm() -> Program:
    """Batch normalization over the batch's own statistics."""
    return parse("""program batch_norm
tensor X: f32[16, 56, 56, 64]
parameter gamma: f32[64]
parameter beta: f32[64]
mean[c] = sum(n, h, w: X[n, h, w, c]) / 50176
var[c] = sum(n, h, w: (X[n, h, w, c] - mean[c])**2) / 50176
Y[n, h, w, c] = (X[n, h, w, c] - mean[c]) * gamma[c] / sqrt(var[c] + 1e-5) + beta[c]
""")


def relu() -> Program:
    """The positive part."""
    return dsl.define("Y", [n, h, w, c], f.relu(dsl.tensor("X", _IMAGE)[n, h, w, c]), name="relu")


def max_pool() -> Program:
    """The largest of 3 x 3, stride 2."""
    read = dsl.tensor("X", _IMAGE).pad("omit")[n, 2 * y + r - 1, 2 * x + s - 1, c]
    extents = {**_HALF, r: 3, s: 3}
    return dsl.define(
        "Y", [n, y, x, c], dsl.max_over([r, s], read), extents=extents, name="max_pool"
    )


def average_pool() -> Program:
    """The mean of 2 x 2, stride 2."""
    read = dsl.tensor("X", _IMAGE)[n, 2 * y + r, 2 * x + s, c]
    extents = {**_HALF, r: 2, s: 2}
    body = dsl.sum_over([r, s], read) / 4
    return dsl.define("Y", [n, y, x, c], body, extents=extents, name="average_pool")


def softmax() -> Program:
    """Softmax over the channels, in three stages."""
    return parse("""program softmax
tensor X: f32[16, 56, 56, 64]
top[n, h, w] = max(d: X[n, h, w, d])
E[n, h, w, c] = exp(X[n, h, w, c] - top[n, h, w])
total[n, h, w] = sum(d: E[n, h, w, d])
Y[n, h, w, c] = E[n, h, w, c] / total[n, h, w]
""")


MAPS = (
    Subject("batch_norm", batch_norm, ("X", "gamma", "beta"), last=True),
    Subject("relu", relu, ("X",), last=True),
    Subject("max_pool", max_pool, ("X",), last=True),
    Subject("average_pool", average_pool, ("X",), last=True),
    Subject("softmax", softmax, ("X",), last=True),
)

# -- layers that no library ships ------------------------------------------------------------------


def locally_connected() -> Program:
    """A filter of its own at every position."""
    data, weight = dsl.tensor("X", (8, 32, 34, 34)), dsl.tensor("W", (32, 32, 32, 32, 3, 3))
    body = dsl.sum_over([c, r, s], data[n, c, y + r, x + s] * weight[y, x, k, c, r, s])
    return dsl.define("Y", [n, k, y, x], body, name="locally_connected")


def tiled() -> Program:
    """Filters that repeat with period 2."""
    data, weight = dsl.tensor("X", (8, 32, 34, 34)), dsl.tensor("W", (2, 2, 32, 32, 3, 3))
    read = weight[y % 2, x % 2, k, c, r, s]
    body = dsl.sum_over([c, r, s], data[n, c, y + r, x + s] * read)
    return dsl.define("Y", [n, k, y, x], body, extents={y: 32, x: 32}, name="tiled")


def contrast() -> Program:
    """Local contrast normalization, c the mean of sigma over the image."""
    return LocalContrastNorm(7).program((8, 16, 64, 64))


def capsule() -> Program:
    """Matrix capsules: a product of 4 x 4 matrices for each tap."""
    data, weight = dsl.tensor("X", (4, 14, 14, 16, 4, 4)), dsl.tensor("W", (3, 3, 16, 16, 4, 4))
    read = data[n, y + r, x + s, c, p, q] * weight[r, s, c, d, q, u]
    body = dsl.sum_over([r, s, c, q], read)
    return dsl.define("Y", [n, y, x, d, p, u], body, name="capsule")


def involution() -> Program:
    """Kernels that differ between positions and are shared by 16 channels."""
    data, weight = dsl.tensor("X", (4, 64, 56, 56)), dsl.tensor("K", (4, 4, 3, 3, 56, 56))
    read = data[n, 16 * g + i, y + r - 1, x + s - 1] * weight[n, g, r, s, y, x]
    body = dsl.sum_over([r, s], read)
    extents = {i: 16, y: 56, x: 56}
    shape = (4, 64, 56, 56)
    return dsl.define(
        "Y", [n, 16 * g + i, y, x], body, extents=extents, shape=shape, name="involution"
    )


def correlation() -> Program:
    """Products of two feature maps under 9 x 9 displacements."""
    one, two = dsl.tensor("A", (2, 64, 32, 48)), dsl.tensor("B", (2, 64, 32, 48))
    body = dsl.sum_over([c], one[n, c, y, x] * two[n, c, y + i - 4, x + j - 4]) / 64
    return dsl.define("Y", [n, i, j, y, x], body, extents={i: 9, j: 9}, name="correlation")


def depthwise_volume() -> Program:
    """One 3 x 3 x 3 filter a channel."""
    data, weight = dsl.tensor("X", (2, 64, 16, 28, 28)), dsl.tensor("W", (64, 1, 3, 3, 3))
    read = data[n, c, z + t - 1, y + r - 1, x + s - 1] * weight[c, 0, t, r, s]
    body = dsl.sum_over([t, r, s], read)
    extents = {z: 16, y: 28, x: 28}
    return dsl.define("Y", [n, c, z, y, x], body, extents=extents, name="depthwise_3d")


def circular() -> Program:
    """The image continued around its edges."""
    data, weight = dsl.tensor("X", (8, 64, 56, 56)), dsl.tensor("W", (64, 64, 3, 3))
    read = data.pad("circular")[n, c, y + r - 1, x + s - 1]
    body = dsl.sum_over([c, r, s], read * weight[k, c, r, s])
    return dsl.define("Y", [n, k, y, x], body, extents={y: 56, x: 56}, name="circular")


EXOTIC = (
    Subject("locally_connected", locally_connected, ("X", "W")),
    Subject("tiled", tiled, ("X", "W")),
    Subject("contrast", contrast, ("X",)),
    Subject("capsule", capsule, ("X", "W")),
    Subject("involution", involution, ("X", "K")),
    Subject("correlation", correlation, ("A", "B")),
    Subject("depthwise_3d", depthwise_volume, ("X", "W")),
    Subject("circular", circular, ("X", "W")),
)


def chosen(subjects: tuple[Subject, ...], names: tuple[str, ...]) -> tuple[Subject, ...]:
    """The subjects of those names; all of them for none or ``all``.

    >>> [s.name for s in chosen(MAPS, ("relu",))]
    ['relu']
    """
    table: Mapping[str, Subject] = {one.name: one for one in subjects}
    if not names or "all" in names:
        return subjects
    for name in names:
        if name not in table:
            raise UserError(
                f"there is no case {name!r}", expected="all or one of " + " ".join(table)
            )
    return tuple(table[name] for name in names)
