"""{{ name }} in Python: needs NumPy and lib{{ name }}.so beside this file, nothing else.

Made by convgen {{ version }} for {{ targets }}. This file belongs to its user.

    from {{ name }} import Bundle
    bundle = Bundle()
    y = bundle.forward(x)
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import threading
from pathlib import Path

import numpy as np

NAME = "{{ name }}"
ABI = {{ abi }}
FORMAT = {{ format }}
_PARTS = ("targets", "arrays", "files", "weights", "batch", "backward", "step", "hyper")
_MACHINES = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "aarch64", "arm64": "aarch64"}


class BundleError(RuntimeError):
    """What is wrong with a bundle or with what was handed to it."""


class _Span(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_int64)]


class _Parallel(ctypes.Structure):
    _fields_ = [("host", ctypes.c_void_p), ("workers", ctypes.c_int), ("run", ctypes.c_void_p)]


def _memory(size):
    """Zero bytes that begin at a multiple of 64."""
    raw = np.zeros(max(int(size), 1) + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + max(int(size), 1)]


_DTYPES = {"f32": "float32", "f64": "float64", "i32": "int32", "i64": "int64", "u8": "uint8",
           "u16": "uint16", "u32": "uint32", "u64": "uint64", "bool": "bool"}


def _shape(port, batch):
    return (batch, *port["shape"][1:]) if port["batch"] else tuple(port["shape"])


def _check_file(path, facts):
    """A file as the manifest has it, or an error that says what is wrong."""
    if not isinstance(facts, dict) or not {"bytes", "sha256"} <= facts.keys():
        raise BundleError(f"there is no digest of {path.name}; take all files from one export")
    if not path.is_file():
        raise BundleError(f"{path.name} is missing from {path.parent}")
    data = path.read_bytes()
    if len(data) != facts["bytes"]:
        raise BundleError(f"{path.name}: expected {facts['bytes']} bytes, got {len(data)}: truncated?")
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise BundleError(f"{path.name} is damaged: its digest is not the one it was made with")


def _read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise BundleError(f"{path.name} cannot be read: {problem}") from None


def _check_manifest(facts):
    """The manifest of this bundle, in the form that this file reads."""
    found = facts if isinstance(facts, dict) else {}
    for key, wanted in (("name", NAME), ("abi", ABI), ("format", FORMAT)):
        if found.get(key) != wanted:
            raise BundleError(
                f"MANIFEST.json is not of this bundle: expected {key} {wanted!r}, "
                f"got {found.get(key)!r}; take all files from one export"
            )
    missing = [key for key in _PARTS if key not in found]
    if missing:
        raise BundleError(f"MANIFEST.json is damaged: {', '.join(missing)} missing")


def _whole(name, value, least, most):
    """A whole number within its limits, or an error."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise BundleError(f"{name}: expected a whole number, got {value!r}")
    if not least <= value <= most:
        raise BundleError(f"{name}: expected {least} to {most}, got {value}")
    return int(value)


def _array(name, value):
    """What NumPy makes of a value, or an error."""
    try:
        return np.asarray(value)
    except Exception as problem:
        raise BundleError(f"{name}: expected an array, got {type(value).__name__}: {problem}") from None


class Bundle:
    """The kernels of {{ name }}.

    weights   None: those of the bundle; else arrays in order, or by name
    threads   workers of the bundled pool
    level     None: the best instruction set of this processor, else its number
    """

    def __init__(self, weights=None, threads=1, folder=None, level=None):
        folder = Path(folder) if folder is not None else Path(__file__).resolve().parent
        self.manifest = _read_json(folder / "MANIFEST.json")
        _check_manifest(self.manifest)
        here = _MACHINES.get(platform.machine().lower(), platform.machine())
        names = [str(t.get("name")) for t in self.manifest["targets"]]
        if not any(n.startswith(here) for n in names):
            raise BundleError(f"made for {', '.join(names)}; this machine is {here}")
        threads = _whole("threads", threads, 1, 1024)
        if level is not None:
            level = _whole(f"level (of {', '.join(names)})", level, 0, len(names) - 1)
        library = folder / f"lib{NAME}.so"
        _check_file(library, _read_json(folder / f"lib{NAME}.so.json"))
        self._library = ctypes.CDLL(str(library))
        self._declare()
        self._arrays = self.manifest["arrays"]
        self._context = _memory(self._call("context_bytes"))
        code = (
            self._call("open", self._context.ctypes.data)
            if level is None
            else self._call("open_level", self._context.ctypes.data, level)
        )
        self._raise(code)
        self.target = self._call("target", self._context.ctypes.data).decode()
        self._packed = _memory(self._call("packed_bytes", self._context.ctypes.data))
        self._start_pool(threads)
        self.states = self._own("states", 1)
        for array in self.states:
            array[...] = 1
        self._optimizer = [_memory(self._optimizer_bytes())]
        self._weights = self._given_weights(weights, folder)
        self.pack()

    def _declare(self):
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        kinds = {
            "abi_version": (ctypes.c_int, []),
            "context_bytes": (number, []),
            "error_text": (ctypes.c_char_p, [ctypes.c_int]),
            "open": (ctypes.c_int, [pointer]),
            "open_level": (ctypes.c_int, [pointer, ctypes.c_int]),
            "target": (ctypes.c_char_p, [pointer]),
            "packed_bytes": (number, [pointer]),
            "workspace_bytes": (number, [pointer, number, ctypes.c_int]),
            "saved_bytes": (number, [pointer, number]),
            "pack_checked": (ctypes.c_int, [pointer] * 3),
            "forward_checked": (
                ctypes.c_int,
                [pointer, number, pointer, pointer, pointer, ctypes.c_uint64, *[pointer] * 4],
            ),
            "pool_bytes": (number, []),
            "pool_start": (ctypes.c_int, [pointer, ctypes.c_int, pointer]),
            "pool_stop": (None, [pointer]),
        }
        if self.manifest["backward"]:
            kinds["backward_checked"] = (ctypes.c_int, [pointer, number, *[pointer] * 8])
        if self.manifest["step"]:
            kinds["step_checked"] = (
                ctypes.c_int,
                [pointer, number, *[pointer] * 7, ctypes.c_uint64, *[pointer] * 3],
            )
            kinds["step_seed"] = (ctypes.c_uint64, [ctypes.c_uint64] * 2)
        self._functions = {}
        for name, (result, arguments) in kinds.items():
            function = getattr(self._library, f"{NAME}_{name}")
            function.restype, function.argtypes = result, arguments
            self._functions[name] = function
        if self._call("abi_version") != ABI:
            raise BundleError(f"lib{NAME}.so has another interface than this loader")

    def _call(self, name, *arguments):
        return self._functions[name](*arguments)

    def _raise(self, code):
        if code:
            raise BundleError(f"{NAME}: {self._call('error_text', code).decode()}")

    def _run(self, name, *arguments):
        """A call of the kernels. The pool serves one at a time."""
        if self._parallel is None:
            self._raise(self._call(name, *arguments))
        else:
            with self._turn:
                self._raise(self._call(name, *arguments))

    def _start_pool(self, threads):
        self._pool = None
        self._parallel = None
        self._turn = threading.Lock()
        self._process = os.getpid()
        if threads > 1:
            self._pool = _memory(self._call("pool_bytes"))
            self._pool_address = self._pool.ctypes.data
            self._parallel = _Parallel()
            self._raise(
                self._call("pool_start", self._pool_address, threads, ctypes.byref(self._parallel))
            )

    def close(self):
        """End the threads of the pool; later calls run in the caller alone."""
        if self._pool is not None:
            if self._process == os.getpid():
                self._call("pool_stop", self._pool_address)
            self._pool = self._parallel = None

    def __del__(self):
        if getattr(self, "_pool", None) is not None:
            self.close()

    @property
    def _workers(self):
        return self._parallel.workers if self._parallel is not None else 1

    def _optimizer_bytes(self):
        return max((p["offset"] + p["bytes"] for p in self._arrays["optimizer"]), default=0)

    def _own(self, group, batch):
        return [np.zeros(_shape(p, batch), _DTYPES[p["dtype"]]) for p in self._arrays[group]]

    def _given_weights(self, weights, folder):
        ports = self._arrays["weights"]
        kind = self.manifest["weights"]["kind"]
        if weights is None and kind == "file":
            path = folder / f"{NAME}.weights"
            _check_file(path, self.manifest["files"].get(path.name))
            block = np.fromfile(path, np.uint8)
            return [
                block[p["offset"] : p["offset"] + p["bytes"]]
                .view(_DTYPES[p["dtype"]]).reshape(p["shape"]).copy()
                for p in ports
            ]
        if weights is None:
            if kind == "argument" and ports:
                names = ", ".join(p["name"] for p in ports)
                raise BundleError(f"weights= is needed: arrays {names}")
            return None
        if isinstance(weights, dict):
            missing = [p["name"] for p in ports if p["name"] not in weights]
            if missing:
                raise BundleError(f"weights: missing {', '.join(missing)}")
            weights = [weights[p["name"]] for p in ports]
        if not isinstance(weights, (list, tuple)):
            kind = type(weights).__name__
            raise BundleError(f"weights: expected arrays in order, or by name, got {kind}")
        return self._checked("weights", weights, None)

    def _checked(self, group, arrays, batch):
        """Arrays in program order, as the library reads them; strided ones are copied."""
        ports = self._arrays[group]
        if len(arrays) != len(ports):
            raise BundleError(f"{group}: expected {len(ports)} arrays, got {len(arrays)}")
        ready = []
        for port, array in zip(ports, arrays):
            array = _array(port["name"], array)
            wanted = _DTYPES[port["dtype"]]
            if array.dtype != wanted:
                raise BundleError(f"{port['name']}: expected dtype {wanted}, got {array.dtype}")
            shape = _shape(port, batch)
            if array.shape != shape:
                free = group == "x" and port["batch"]
                said = str(("N", *shape[1:]) if free else shape).replace("'", "")
                raise BundleError(f"{port['name']}: expected shape {said}, got {array.shape}")
            ready.append(np.require(array, requirements="CA"))
        return ready

    @staticmethod
    def _spans(arrays):
        if arrays is None:
            return None
        spans = (_Span * max(len(arrays), 1))(*((a.ctypes.data, a.nbytes) for a in arrays))
        spans.arrays = arrays  # alive as long as their addresses
        return spans

    def _parallel_pointer(self):
        if self._parallel is None:
            return None
        if self._process != os.getpid():  # forked: the threads stayed behind
            self._start_pool(self._parallel.workers)
        return ctypes.byref(self._parallel)

    def _work(self, batch):
        size = self._call("workspace_bytes", self._context.ctypes.data, batch, self._workers)
        return _memory(max(size, 0))

    def pack(self):
        """Bring the weights into the order that kernels read; after changing them."""
        self._raise(
            self._call(
                "pack_checked",
                self._spans([self._context]),
                self._spans(self._weights),
                self._spans([self._packed]),
            )
        )

    def _batch(self, arrays):
        for port, array in zip(self._arrays["x"], arrays):
            if port["batch"]:
                return next(iter(_array(port["name"], array).shape), 0)
        return self.manifest["batch"]

    def forward(self, *x, seed=0, save=False):
        """Outputs for inputs (the first dimension is the batch): one array, or a tuple.

        save: as in training; keeps what `backward` reads.
        """
        seed = _whole("seed", seed, 0, 2**64 - 1)
        batch = self._batch(x)
        x = self._checked("x", x, batch)
        y = self._own("y", batch)
        saved = None
        if save:
            size = self._call("saved_bytes", self._context.ctypes.data, batch)
            saved = _memory(max(size, 0))
        self._run(
            "forward_checked",
            self._spans([self._context]),
            batch,
            self._spans(x),
            self._spans([self._packed]),
            self._spans(self.states),
            seed,
            self._spans(y),
            self._spans([saved]) if save else None,
            self._spans([self._work(batch)]),
            self._parallel_pointer(),
        )
        if save:
            self._last = (batch, x, saved)
        return y[0] if len(y) == 1 else tuple(y)

    __call__ = forward

    def backward(self, *dy, dx=True):
        """(gradients to the inputs or None, gradients to the weights) of the last
        `forward(..., save=True)`, each a list in program order."""
        if not self.manifest["backward"]:
            raise BundleError(f"{NAME} was made without backward")
        if not hasattr(self, "_last"):
            raise BundleError("backward before forward(..., save=True)")
        batch, x, saved = self._last
        dy = self._checked("dy", dy, batch)
        inputs = self._own("dx", batch) if dx else None
        grads = self._own("grads", batch)
        self._run(
            "backward_checked",
            self._spans([self._context]),
            batch,
            self._spans(x),
            self._spans(dy),
            self._spans([self._packed]),
            self._spans([saved]),
            self._spans(inputs),
            self._spans(grads),
            self._spans([self._work(batch)]),
            self._parallel_pointer(),
        )
        return inputs, grads

    def step(self, *x, labels, hyper, seed=0):
        """One step of training; changes `weights` in place and returns the loss.

        seed   of random layers, another one for each step: see `step_seed`
        """
        if not self.manifest["step"]:
            raise BundleError(f"{NAME} was made without a training step")
        if self._weights is None:
            raise BundleError("a step changes weights: hand them in with weights=")
        fixed = [name for name, array in self.weights.items() if not array.flags.writeable]
        if fixed:
            raise BundleError(f"a step changes weights: {', '.join(fixed)} read-only; hand in copies")
        seed = _whole("seed", seed, 0, 2**64 - 1)
        batch = self._batch(x)
        x = self._checked("x", x, batch)
        if batch != self.manifest["batch"]:
            raise BundleError(f"step: expected a batch of {self.manifest['batch']}, got {batch}")
        labels = self._labels(labels, batch)
        names = self.manifest["hyper"]
        rates = _array("hyper", hyper).reshape(-1)
        if rates.dtype.kind not in "iuf" or rates.size != len(names):
            raise BundleError(f"hyper: expected numbers for {', '.join(names)}, got {hyper!r}")
        element = _DTYPES[self._arrays["weights"][0]["dtype"]]
        rates = np.ascontiguousarray(rates, element)
        loss = np.zeros((), element)
        self._run(
            "step_checked",
            self._spans([self._context]),
            batch,
            self._spans(x),
            self._spans([labels]),
            self._spans(self._weights),
            self._spans([self._packed]),
            self._spans(self._optimizer),
            self._spans(self.states),
            self._spans([rates]),
            seed,
            self._spans([self._work(batch)]),
            self._parallel_pointer(),
            self._spans([loss]),
        )
        return float(loss)

    def _labels(self, labels, batch):
        """Targets of a step; numbers of classes lie within the outputs."""
        (labels,) = self._checked("labels", [labels], batch)
        classes = self._arrays["y"][0]["shape"][1:2]
        if labels.dtype.kind == "i" and labels.size and classes:
            least, most = int(labels.min()), int(labels.max())
            if least < 0 or most >= classes[0]:
                raise BundleError(
                    f"labels: expected 0 to {classes[0] - 1}, got {least} to {most}"
                )
        return labels

    def step_seed(self, seed, step):
        """The seed that convgen's own training with `seed` takes in step number `step` (from 0)."""
        if not self.manifest["step"]:
            raise BundleError(f"{NAME} was made without a training step")
        return self._call("step_seed", seed, step)

    @property
    def weights(self):
        """The weights by name, as arrays that `step` changes; after changing them, `pack()`."""
        names = [p["name"] for p in self._arrays["weights"]]
        return dict(zip(names, self._weights or []))
