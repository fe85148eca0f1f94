"""Other libraries on the same arrays. Each peer gives one call for each layout it may prefer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.bench.arrays import own_copy
from convgen.bench.cases import Case, Measured
from convgen.bench.models import model_of
from convgen.errors import UserError
from convgen.runtime.arrays import new_array

Calls = dict[str, Callable[[], object]]
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Peer:
    """calls: of (case, pass, layout, threads, arrays) the calls by name, none where the library
    does not have the pass; each returns the result with channels second. ahead: it packs the
    weights when its model is loaded, and not in each call."""

    calls: Callable[[Any, str, str, int, Arrays], Calls]
    ahead: bool = False


def torch_calls(case: Measured, which: str, layout: str, threads: int, arrays: Arrays) -> Calls:
    """torch's layer and its gradients; convolutions in NCHW and in channels_last."""
    try:
        import torch
    except ImportError:
        raise _missing("torch", "torch") from None
    torch.set_num_threads(threads)
    given = {
        name: np.ascontiguousarray(case.as_peers_have(arrays[name], name[-1], layout))
        for name in ("X", "W", "dY")
    }
    if not isinstance(case, Case):
        x, w, dy = (torch.from_numpy(given[name]).clone() for name in ("X", "W", "dY"))
        products: Calls = {
            "forward": lambda: torch.nn.functional.linear(x, w),
            "input": lambda: dy @ w,
            "weights": lambda: dy.T @ x,
        }
        return {"torch": products[which]}
    stride, padding, dilation = ([v] * 2 for v in (case.stride, case.padding, case.dilation))
    wanted = [which == "input", which == "weights", False]

    def call_in(form: Any) -> Callable[[], object]:
        x, w, dy = (torch.from_numpy(a).clone(memory_format=form) for a in given.values())

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


def onnxruntime_calls(
    case: Measured, which: str, layout: str, threads: int, arrays: Arrays
) -> Calls:
    """ONNX Runtime's forward pass on bound arrays, in NCHW, the one layout ONNX has."""
    try:
        import onnxruntime
    except ImportError:
        raise _missing("onnxruntime", "bench") from None
    if which != "forward" or arrays["X"].dtype != np.float32:
        return {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(
        model_of(case, arrays["W"]), options, providers=["CPUExecutionProvider"]
    )
    x = own_copy(case.as_peers_have(arrays["X"], "X", layout))
    y = new_array(case.shape("Y", "nchw"), x.dtype)
    bound = session.io_binding()
    bound.bind_ortvalue_input("X", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    bound.bind_output("Y", "cpu", 0, y.dtype, y.shape, y.ctypes.data)

    def call(held: object = x) -> object:  # what is bound is pointed to, not held
        session.run_with_iobinding(bound)
        return y

    return {"ort": call}


def openvino_calls(case: Measured, which: str, layout: str, threads: int, arrays: Arrays) -> Calls:
    """OpenVINO's forward pass in float32, for one request at a time; convolutions on arrays in
    NCHW and in NHWC."""
    try:
        import openvino
        from openvino.preprocess import PrePostProcessor
    except ImportError:
        raise _missing("openvino", "bench") from None
    if which != "forward" or arrays["X"].dtype != np.float32:
        return {}
    core = openvino.Core()
    first = case.as_peers_have(arrays["X"], "X", layout)
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }

    def call_in(last: bool) -> Callable[[], object]:
        text = model_of(case, arrays["W"])
        model = core.read_model(text)
        if last:
            steps = PrePostProcessor(model)
            for one in (steps.input(), steps.output()):
                one.tensor().set_layout(openvino.Layout("NHWC"))
                one.model().set_layout(openvino.Layout("NCHW"))
            model = steps.build()
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        x = own_copy(first.transpose(0, 2, 3, 1) if last else first)
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
        n, c, *size = case.shape("Y", "nchw")
        y = new_array((n, *size, c) if last else (n, c, *size), x.dtype)
        request.set_output_tensor(openvino.Tensor(y, shared_memory=True))
        seen = y.transpose(0, 3, 1, 2) if last else y

        def call(held: object = (text, x)) -> object:  # what the engine points to, not holds
            request.infer(share_outputs=True)
            return seen

        return call

    if not isinstance(case, Case):
        return {"openvino": call_in(False)}
    return {"openvino nchw": call_in(False), "openvino nhwc": call_in(True)}


def _missing(package: str, extra: str) -> UserError:
    return UserError(f"{package} is not installed", hint=f"pip install 'convgen[{extra}]'")


PEERS: dict[str, Peer] = {
    "torch": Peer(torch_calls),
    "ort": Peer(onnxruntime_calls, ahead=True),
    "openvino": Peer(openvino_calls, ahead=True),
}
