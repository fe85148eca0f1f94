"""Other libraries on the same arrays. Each peer gives one call for each layout it may prefer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.bench.cases import Case
from convgen.errors import UserError

Calls = dict[str, Callable[[], object]]
Arrays = Mapping[str, NDArray[Any]]


def torch_calls(case: Case, which: str, layout: str, threads: int, arrays: Arrays) -> Calls:
    """torch's convolution and its gradients, in NCHW and in channels_last."""
    try:
        import torch
    except ImportError:
        raise UserError("torch is not installed", hint="pip install 'convgen[torch]'") from None
    torch.set_num_threads(threads)

    def tensor(name: str, form: Any) -> Any:
        array = arrays[name]
        if name != "W" and layout == "nhwc":
            array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
        return torch.from_numpy(array).contiguous(memory_format=form)

    stride, padding, dilation = ([v] * 2 for v in (case.stride, case.padding, case.dilation))
    wanted = [which == "input", which == "weights", False]

    def call_in(form: Any) -> Callable[[], object]:
        x, w, dy = (tensor(name, form) for name in ("X", "W", "dY"))

        def forward() -> object:
            return torch.conv2d(x, w, None, stride, padding, dilation, case.groups)

        def backward() -> object:
            found = torch.ops.aten.convolution_backward(
                dy, x, w, None, stride, padding, dilation, False, [0, 0], case.groups, wanted
            )
            return found[wanted.index(True)]

        return forward if which == "forward" else backward

    forms = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
    return {f"torch {name}": call_in(form) for name, form in forms.items()}


PEERS: dict[str, Callable[[Case, str, str, int, Arrays], Calls]] = {"torch": torch_calls}
