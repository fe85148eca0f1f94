"""What a PyTorch user writes today for the layers of `subjects`: functions of torch, its functional
module and the inputs. torch is handed in, since it may not be installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convgen.layers.contrast import gaussian


def batch_norm(torch: Any, functional: Any, x: Any, gamma: Any, beta: Any) -> Any:
    return functional.batch_norm(x, None, None, gamma, beta, True)


def relu(torch: Any, functional: Any, x: Any) -> Any:
    return functional.relu(x)


def max_pool(torch: Any, functional: Any, x: Any) -> Any:
    return functional.max_pool2d(x, 3, 2, 1)


def average_pool(torch: Any, functional: Any, x: Any) -> Any:
    return functional.avg_pool2d(x, 2)


def softmax(torch: Any, functional: Any, x: Any) -> Any:
    return functional.softmax(x, 1)


def locally_connected(torch: Any, functional: Any, x: Any, w: Any) -> Any:
    return torch.einsum("ncyxrs,yxkcrs->nkyx", x.unfold(2, 3, 1).unfold(3, 3, 1), w)


def tiled(torch: Any, functional: Any, x: Any, w: Any) -> Any:
    def part(a: int, b: int) -> Any:
        return functional.conv2d(x[:, :, a : 33 + a, b : 33 + b], w[a, b], stride=2)

    rows = [torch.stack([part(a, b) for b in (0, 1)], -1) for a in (0, 1)]
    return torch.stack(rows, 3).reshape(8, 32, 32, 32)


def contrast(torch: Any, functional: Any, x: Any) -> Any:
    window = torch.tensor([[float(v / 16) for v in row] for row in gaussian(7, 7 / 4)])
    window = window.expand(1, 16, 7, 7)
    centred = x - functional.conv2d(x, window, padding=3)
    sigma = functional.conv2d(centred * centred, window, padding=3).sqrt()
    return centred / torch.maximum(sigma.mean((1, 2, 3), keepdim=True), sigma)


def capsule(torch: Any, functional: Any, x: Any, w: Any) -> Any:
    return torch.einsum("nyxcpqrs,rscdqu->nyxdpu", x.unfold(1, 3, 1).unfold(2, 3, 1), w)


def involution(torch: Any, functional: Any, x: Any, kernel: Any) -> Any:
    patches = functional.unfold(x, 3, padding=1).view(4, 4, 16, 9, 56, 56)
    return (patches * kernel.view(4, 4, 1, 9, 56, 56)).sum(3).view(4, 64, 56, 56)


def correlation(torch: Any, functional: Any, a: Any, b: Any) -> Any:
    wide = functional.pad(b, (4, 4, 4, 4))

    def row(i: int) -> Any:
        return torch.stack([(a * wide[:, :, i : i + 32, j : j + 48]).mean(1) for j in range(9)], 1)

    return torch.stack([row(i) for i in range(9)], 1)


def depthwise_3d(torch: Any, functional: Any, x: Any, w: Any) -> Any:
    return functional.conv3d(x, w, padding=1, groups=64)


def circular(torch: Any, functional: Any, x: Any, w: Any) -> Any:
    return functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="circular"), w)


WRITTEN: dict[str, Callable[..., Any]] = {
    "batch_norm": batch_norm,
    "relu": relu,
    "max_pool": max_pool,
    "average_pool": average_pool,
    "softmax": softmax,
    "locally_connected": locally_connected,
    "tiled": tiled,
    "contrast": contrast,
    "capsule": capsule,
    "involution": involution,
    "correlation": correlation,
    "depthwise_3d": depthwise_3d,
    "circular": circular,
}
