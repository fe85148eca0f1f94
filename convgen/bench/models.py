"""A layer as an ONNX model in memory, in the wire format of protocol buffers, for the engines that
read such models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from convgen.bench.cases import Case, Dense, Measured

Field = tuple[int, "int | str | bytes"]
_FLOAT = {"float32": 1, "float64": 11}  # TensorProto.DataType
_INT, _INTS = 2, 7  # AttributeProto.AttributeType
_OPSET, _IR = 17, 8


def model_of(case: Measured, weights: NDArray[Any]) -> bytes:
    """Y of X for those weights: one node, arrays (n, c, h, w) or (n, c).

    Field numbers are those of onnx.proto: ModelProto, GraphProto, NodeProto, TensorProto,
    ValueInfoProto, AttributeProto.
    """
    kind = _FLOAT[weights.dtype.name]
    operator, attributes = _operator(case)
    node = [(1, "X"), (1, "W"), (2, "Y"), (4, operator), *((5, a) for a in attributes)]
    weight = [*((1, n) for n in weights.shape), (2, kind), (8, "W"), (9, weights.tobytes())]
    graph = message(
        (1, message(*node)),
        (2, case.name),
        (5, message(*weight)),
        (11, _value("X", kind, case.shape("X", "nchw"))),
        (12, _value("Y", kind, case.shape("Y", "nchw"))),
    )
    return message((1, _IR), (7, graph), (8, message((1, ""), (2, _OPSET))))


def message(*fields: Field) -> bytes:
    """Fields (number, value) on the wire: varints for integers, lengths before text and messages.

    >>> message((1, 300), (2, "ab")).hex()
    '08ac0212026162'
    """
    found = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            found += _varint(number << 3) + _varint(value)
        else:
            text = value.encode() if isinstance(value, str) else value
            found += _varint(number << 3 | 2) + _varint(len(text)) + text
    return bytes(found)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 128:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _value(name: str, kind: int, shape: Sequence[int]) -> bytes:
    sizes = message(*((1, message((1, n))) for n in shape))
    return message((1, name), (2, message((1, message((1, kind), (2, sizes))))))


def _operator(case: Measured) -> tuple[str, list[bytes]]:
    """(operator, attributes) of a layer."""
    if isinstance(case, Dense):
        return "Gemm", [message((1, "transB"), (3, 1), (20, _INT))]
    assert isinstance(case, Case)
    several = {
        "strides": [case.stride] * 2,
        "pads": [case.padding] * 4,
        "dilations": [case.dilation] * 2,
        "kernel_shape": [case.kernel] * 2,
    }
    found = [
        message((1, name), *((8, v) for v in values), (20, _INTS))
        for name, values in several.items()
    ]
    return "Conv", [*found, message((1, "group"), (3, case.groups), (20, _INT))]
