"""Writes an ONNX model as bytes: protobuf's wire format, for the few messages that a graph takes.

onnxruntime runs such bytes; the `onnx` package, which would make them, is larger than what it is needed for here.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

CONTRIB = "com.microsoft"
_IR_VERSION, _OPSET, _CONTRIB_OPSET = 8, 17, 1
_DTYPES = {"float32": 1, "uint8": 2, "int8": 3, "int64": 7}
_FLOAT, _INT, _INTS = 1, 2, 7  # AttributeProto.type
_VARINT, _BYTES, _FIXED32 = 0, 2, 5  # wire types

Attribute = int | float | Sequence[int]
Dims = Sequence[int | str]


class GraphWriter:
    """One graph. Values are named by the strings that `node` and `constant` return."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._numbers = itertools.count()
        self._shapes: dict[tuple[int, ...], str] = {}

    def input(self, name: str, dtype: str, dims: Dims) -> str:
        """Declare an input; a dimension that is a string may be of any size."""
        self._inputs.append(_value_info(name, dtype, dims))
        return name

    def output(self, value: str, name: str, dtype: str, dims: Dims) -> None:
        """Hand `value` out under `name`."""
        if value != name:
            self._nodes.append(_node("Identity", "", [value], [name], {}))
        self._outputs.append(_value_info(name, dtype, dims))

    def constant(self, array: npt.NDArray[Any]) -> str:
        """A weight. Its bytes are copied into the model."""
        name = f"c{next(self._numbers)}"
        self._constants.append(_tensor(name, np.ascontiguousarray(array)))
        return name

    def shape(self, *dims: int) -> str:
        """A constant int64 vector, as shapes, axes and split sizes are; made once for equal ones."""
        if dims not in self._shapes:
            self._shapes[dims] = self.constant(np.array(dims, dtype=np.int64))
        return self._shapes[dims]

    def node(
        self, op: str, inputs: Sequence[str], domain: str = "", **attributes: Attribute
    ) -> str:
        """Add an operation of one output; an empty input name leaves that input out."""
        return self.nodes(op, inputs, (True,), domain, **attributes)[0]

    def nodes(
        self,
        op: str,
        inputs: Sequence[str],
        kept: Sequence[bool],
        domain: str = "",
        **attributes: Attribute,
    ) -> list[str]:
        """Add an operation of several outputs; those that are not kept have empty names."""
        names = []
        for is_kept in kept:
            names.append(f"v{next(self._numbers)}" if is_kept else "")
        self._nodes.append(_node(op, domain, inputs, names, attributes))
        return names

    def store_into(self, op: str, inputs: Sequence[str], name: str, dims: Dims) -> str:
        """Add an operation whose float32 result is the output `name`, which later operations may read."""
        self._nodes.append(_node(op, "", inputs, [name], {}))
        self._outputs.append(_value_info(name, "float32", dims))
        return name

    @property
    def nbytes(self) -> int:
        """Bytes of the constants so far."""
        return sum(map(len, self._constants))

    def model(self) -> bytes:
        """The finished model."""
        parts = [_bytes(1, node) for node in self._nodes]
        parts.append(_bytes(2, b"step"))
        parts += [_bytes(5, constant) for constant in self._constants]
        parts += [_bytes(11, info) for info in self._inputs]
        parts += [_bytes(12, info) for info in self._outputs]
        return b"".join(
            [
                _integer(1, _IR_VERSION),
                _bytes(7, b"".join(parts)),
                _bytes(8, _integer(2, _OPSET)),
                _bytes(8, _bytes(1, CONTRIB.encode()) + _integer(2, _CONTRIB_OPSET)),
            ]
        )


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers are written as 64 bits
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def _tensor(name: str, array: npt.NDArray[Any]) -> bytes:
    parts = [_integer(1, size) for size in array.shape]
    parts.append(_integer(2, _DTYPES[array.dtype.name]))
    parts.append(_bytes(8, name.encode()))
    parts.append(_bytes(9, array.tobytes()))
    return b"".join(parts)


def _value_info(name: str, dtype: str, dims: Dims) -> bytes:
    sizes = []
    for size in dims:
        if isinstance(size, int):
            sizes.append(_bytes(1, _integer(1, size)))
        else:
            sizes.append(_bytes(1, _bytes(2, size.encode())))
    tensor = _integer(1, _DTYPES[dtype]) + _bytes(2, b"".join(sizes))
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor))


def _node(
    op: str,
    domain: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    attributes: dict[str, Attribute],
) -> bytes:
    parts = [_bytes(1, name.encode()) for name in inputs]
    parts += [_bytes(2, name.encode()) for name in outputs]
    parts.append(_bytes(4, op.encode()))
    parts += [_bytes(5, _attribute(*item)) for item in attributes.items()]
    parts.append(_bytes(7, domain.encode()))
    return b"".join(parts)


def _attribute(name: str, value: Attribute) -> bytes:
    encoded = _bytes(1, name.encode())
    if isinstance(value, float):
        tag = _varint(2 << 3 | _FIXED32)
        return encoded + tag + struct.pack("<f", value) + _integer(20, _FLOAT)
    if isinstance(value, int):
        return encoded + _integer(3, value) + _integer(20, _INT)
    numbers = b"".join(_integer(8, number) for number in value)
    return encoded + numbers + _integer(20, _INTS)
