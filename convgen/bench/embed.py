"""What it costs to enter one kernel through each door, over the kernel itself.

The doors take turns on the same arrays, in one thread: the kernel's own C function in a native
loop, NAME_forward of an exported bundle in a loop that the system's C compiler made, the Python
call with ``out=`` and without, the torch function, and beside them a plain torch operator that only
allocates its result, which is the least that torch asks of any operator; each of the two also on
tensors that require gradients (the forward pass, which notes what the backward needs).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convgen.backends.llvm import LlvmBackend
from convgen.backends.protocol import Backend
from convgen.bench.embed_c import forward_in_c
from convgen.bench.timing import interleave
from convgen.layers.convolution import Conv2d
from convgen.runtime import kernel as kernels
from convgen.runtime.call import zeros_on_line
from convgen.target import target

Array = NDArray[Any]
# Small enough that the way in is seen beside it, large enough that it is not lost in where code and
# stack happen to lie (up to 0.1 us a call). Its kernel packs no weights, so that every door does
# the same work.
LAYER, SHAPE = Conv2d(8, 8, 3, padding=1), (4, 8, 28, 28)

# A loop of calls in native code, so that the C function is timed without Python.
_REPEAT = """
target triple = "{triple}"
define void @repeat(ptr %function, i64 %count, {parameters}) {{
entry:
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %body, label %done
body:
  call void %function({parameters})
  %next = add i64 %i, 1
  br label %head
done:
  ret void
}}
"""
_CALLS = 16  # in one native loop
_KERNEL = "kernel itself"
_PLAIN = "plain torch operator"
_NOTED = ", gradients wanted"


@dataclass(frozen=True, slots=True)
class Door:
    """Microseconds of a call through one door: the median; how much that is over what it is
    compared with; and that as a share of what it is compared with."""

    name: str
    microseconds: float
    over: str = ""
    overhead: float = 0.0
    share: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Doors:
    """All doors that were measured; `notes` say which could not be, and why."""

    doors: tuple[Door, ...]
    notes: tuple[str, ...] = ()


def measure_doors(
    seconds: float = 2.0,
    function: Callable[..., Any] | None = None,
    export: Callable[..., object] | None = None,
) -> Doors:
    """The doors of a small convolution with a bias: `SHAPE` through `LAYER`.

    function   makes a torch function of a program; None: torch's doors are left out
    export     writes a bundle; None: the C call is left out
    """
    program = LAYER.program(SHAPE)
    rng = np.random.default_rng(0)
    shapes = [tuple(int(e) for e in t.shape) for t in program.inputs]  # type: ignore[arg-type]
    inputs = [_on_line(rng.uniform(-1, 1, s).astype(np.float32)) for s in shapes]
    kernel = kernels.compile(program, threads=1)
    out = _on_line(kernel(*inputs))
    work = zeros_on_line(kernel.workspace_bytes)
    # ctypes converts these once; the loop then calls the kernel as C does.
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*inputs, out, work)]
    repeat = _repeater(len(pointers), kernel.address)
    direct = kernel.ctypes
    looped: dict[str, Callable[[], object]] = {_KERNEL: lambda: repeat(_CALLS, *pointers)}
    notes: list[str] = []
    if export is not None:
        in_c, note = forward_in_c(export, program, inputs, out)
        notes += [note] * bool(note)
        if in_c is not None:
            looped["C call"] = lambda: in_c(_CALLS)
    calls: dict[str, Callable[[], object]] = {
        "ctypes call": lambda: direct(*pointers),
        "Python call with out=": lambda: kernel(*inputs, out=out),
        "Python call": lambda: kernel(*inputs),
    }
    torch_calls = (
        {} if function is None else _torch_calls(function(program, threads=1), inputs, out)
    )
    timings = interleave({**looped, **calls, **torch_calls}, seconds)
    taken = {n: t.median * 1e6 / (_CALLS if n in looped else 1) for n, t in timings.items()}
    base = taken[_KERNEL]
    doors = [Door(_KERNEL, base)]
    doors += [_door(n, taken[n], _KERNEL, base) for n in [*looped, *calls][1:]]
    for name in torch_calls:
        if name.startswith(_PLAIN):
            doors.append(Door(name, taken[name]))
        else:
            plain = _PLAIN + name.removeprefix("torch call")
            doors.append(_door(name, taken[name], f"{_PLAIN} + kernel", taken[plain] + base))
    return Doors(tuple(doors), tuple(notes))


def _door(name: str, taken: float, over: str, base: float) -> Door:
    return Door(name, taken, over, taken - base, (taken - base) / base)


def _on_line(array: Array) -> Array:
    """A copy that begins at a multiple of 64, as packed weights do."""
    made = zeros_on_line(array.nbytes).view(array.dtype).reshape(array.shape)
    made[...] = array
    return made


def _repeater(count: int, address: int) -> Callable[..., None]:
    parameters = ", ".join(f"ptr %a{i}" for i in range(count))
    machine = target("native")
    backend: Backend = LlvmBackend()
    text = _REPEAT.format(triple=machine.llvm_triple, parameters=parameters)
    library = backend.load(backend.compile_text(text, machine)[1], machine)
    kinds = [ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * count]
    native = ctypes.CFUNCTYPE(None, *kinds)(library.address("repeat"))

    def call(times: int, *pointers: Any) -> None:
        native(address, times, *pointers)

    call.library = library  # type: ignore[attr-defined]
    return call


def _torch_calls(
    function: Callable[..., Any], inputs: list[Array], out: Array
) -> dict[str, Callable[[], object]]:
    """The torch function without and with gradients, behind an operator that does nothing."""
    import torch

    shape = out.shape

    def empty(X: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.empty(shape)

    # Annotations are text in this file; torch reads types.
    empty.__annotations__ = dict.fromkeys(("X", "W", "b", "return"), torch.Tensor)
    plain = torch.library.custom_op("convgen_bench::empty", empty, mutates_args=())
    noted = torch.library.custom_op("convgen_bench::noted", empty, mutates_args=())
    noted.register_autograd(
        lambda ctx, gradient: (None, None, None),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    tensors = [torch.from_numpy(a) for a in inputs]
    trained = [t.clone().requires_grad_() for t in tensors]
    return {
        _PLAIN: lambda: plain(*tensors),
        "torch call": lambda: function(*tensors),
        f"{_PLAIN}{_NOTED}": lambda: noted(*trained),
        f"torch call{_NOTED}": lambda: function(*trained),
    }
