"""Lesson 20: classic filters on a photograph, each a formula: blur, sharpen, Sobel, edges.

Needs scikit-learn (for the photograph) and Pillow (extra ``demo``). Pictures go to the folder named
on the command line, or nowhere.
"""

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

import convgen as cg

photo = load_sample_image("china.jpg").astype(np.float32) / 255  # (427, 640, 3)
height, width, _ = photo.shape
print("photograph:", photo.shape)

y, x, c, r, s = cg.axes("y x c r s")
Z = cg.tensor("Z", photo.shape)


def filtered(image, weights, name):
    """sum(r, s: image[y + r - R/2, x + s - S/2, c] * K[r, s]), the border continued."""
    rows, columns = len(weights), len(weights[0])
    K = cg.tensor(name + "_K", (rows, columns), role="constant", values=weights)
    at = image.pad("replicate")[y + r - rows // 2, x + s - columns // 2, c]
    body = cg.sum_over([r, s], at * K[r, s])
    return cg.define(name, [y, x, c], body, extents={y: height, x: width})


BELL = [
    [1, 4, 7, 4, 1],
    [4, 16, 26, 16, 4],
    [7, 26, 41, 26, 7],
    [4, 16, 26, 16, 4],
    [1, 4, 7, 4, 1],
]
GAUSS = [[Fraction(weight, 273) for weight in row] for row in BELL]

blur = filtered(Z, GAUSS, "blur")
sharpen = filtered(Z, [[0, -1, 0], [-1, 5, -1], [0, -1, 0]], "sharpen")
edges = filtered(Z, [[0, 1, 0], [1, -4, 1], [0, 1, 0]], "edges")
across = filtered(Z, [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], "Sx")
down = filtered(Z, [[-1, -2, -1], [0, 0, 0], [1, 2, 1]], "Sy")
sobel = cg.define("sobel", [y, x, c], cg.sqrt(across[y, x, c] ** 2 + down[y, x, c] ** 2))

folder = Path(sys.argv[1]) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else None
found = {}
for program in (blur, sharpen, edges, sobel):
    print()
    print(program)
    image = found[program.name] = cg.compile(program)(photo)
    print(f"values {image.min():.2f} to {image.max():.2f}, mean {image.mean():.3f}")
    if folder is not None:
        shown = np.abs(image) if program is edges else image
        picture = Image.fromarray((255 * np.clip(shown, 0, 1)).astype(np.uint8))
        picture.save(folder / f"{program.name}.png")

# The same with NumPy: sums of shifted pictures.
wide = np.pad(photo.astype(np.float64), ((1, 1), (1, 1), (0, 0)), mode="edge")


def shifted(weights):
    return sum(
        w * wide[i : i + height, j : j + width]
        for i, row in enumerate(weights)
        for j, w in enumerate(row)
    )


sx, sy = shifted([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]), shifted([[-1, -2, -1], [0] * 3, [1, 2, 1]])
assert np.abs(found["sobel"] - np.hypot(sx, sy)).max() < 1e-5
assert np.abs(found["edges"] - shifted([[0, 1, 0], [1, -4, 1], [0, 1, 0]])).max() < 1e-5
# A blur keeps the mean and takes the detail; sharpening is the picture less its edges.
assert abs(found["blur"].mean() - photo.mean()) < 1e-3
assert np.abs(np.diff(found["blur"], axis=0)).mean() < np.abs(np.diff(photo, axis=0)).mean()
assert np.abs(found["sharpen"] - (photo - found["edges"])).max() < 1e-5
