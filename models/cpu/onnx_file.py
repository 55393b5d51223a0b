"""Writes an ONNX model as bytes, in protobuf's wire format.

A graph takes few kinds of messages. onnxruntime runs such bytes; the `onnx` package,
which would make them, is larger than what it is needed for here.
"""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

CONTRIB = "com.microsoft"
_IR_VERSION = 8
_OPSET = 17
_CONTRIB_OPSET = 1
_DTYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int64": 7,
}
# AttributeProto.type
_FLOAT = 1
_INT = 2
_INTS = 7
# Wire types
_VARINT = 0
_BYTES = 2
_FIXED32 = 5

Attribute = int | float | Sequence[int]
Dims = Sequence[int | str]
Piece = bytes | memoryview  # of a model, which is all of them one after the other


@dataclass(frozen=True, slots=True)
class _Node:
    """One operation, before it is known under which names its results are handed out."""

    op: str
    domain: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: dict[str, Attribute]

    def encoded(self, renamed: dict[str, str]) -> bytes:
        """Its message, with the values' last names."""
        parts = [_text(1, renamed.get(name, name)) for name in self.inputs]
        parts += [_text(2, renamed.get(name, name)) for name in self.outputs]
        parts.append(_text(4, self.op))
        for name, value in self.attributes.items():
            attribute = _attribute(name, value)
            parts.append(_bytes(5, attribute))
        parts.append(_text(7, self.domain))
        return b"".join(parts)


class GraphWriter:
    """One graph. Values are named by the strings that `node` and `constant` return."""

    def __init__(self) -> None:
        self._nodes: list[_Node] = []
        self._computed: set[str] = set()  # what nodes return, without outputs
        self._renamed: dict[str, str] = {}  # what is handed out under another name
        self._constants: list[tuple[bytes, memoryview]] = []
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
        if value in self._computed and value not in self._renamed:
            self._renamed[value] = name
        elif value != name:
            self._nodes.append(_Node("Identity", "", [value], [name], {}))
        self._outputs.append(_value_info(name, dtype, dims))

    def constant(self, array: npt.NDArray[Any]) -> str:
        """A weight. Its bytes are not copied: nobody may change them any more."""
        name = f"c{next(self._numbers)}"
        contiguous = np.ascontiguousarray(array)
        self._constants.append(_tensor(name, contiguous))
        return name

    def shape(self, *dims: int) -> str:
        """A constant int64 vector, as shapes, axes and split sizes are.

        Equal ones are made once.
        """
        if dims not in self._shapes:
            vector = np.array(dims, dtype=np.int64)
            self._shapes[dims] = self.constant(vector)
        return self._shapes[dims]

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        domain: str = "",
        **attributes: Attribute,
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
            name = ""
            if is_kept:
                name = f"v{next(self._numbers)}"
            names.append(name)
        self._computed.update(names)
        self._nodes.append(_Node(op, domain, tuple(inputs), names, attributes))
        return names

    def store_into(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        dims: Dims,
    ) -> str:
        """Add an operation whose float32 result is the output `name`.

        Later operations may read it.
        """
        self._nodes.append(_Node(op, "", inputs, [name], {}))
        self._outputs.append(_value_info(name, "float32", dims))
        return name

    @property
    def nbytes(self) -> int:
        """Bytes of the constants so far."""
        return sum(len(data) for _, data in self._constants)

    def model(self) -> list[Piece]:
        """The finished model."""
        graph: list[Piece] = []
        for node in self._nodes:
            graph.append(_bytes(1, node.encoded(self._renamed)))
        graph.append(_text(2, "step"))
        for head, data in self._constants:
            graph.append(_head(5, len(head) + len(data)) + head)
            graph.append(data)
        graph += [_bytes(11, info) for info in self._inputs]
        graph += [_bytes(12, info) for info in self._outputs]
        length = sum(map(len, graph))
        contrib_opset = _text(1, CONTRIB) + _integer(2, _CONTRIB_OPSET)
        return [
            _integer(1, _IR_VERSION),
            _head(7, length),
            *graph,
            _bytes(8, _integer(2, _OPSET)),
            _bytes(8, contrib_opset),
        ]


def _varint(value: int) -> bytes:
    if 0 <= value < 128:
        return bytes((value,))
    value &= (1 << 64) - 1  # negative numbers are written as 64 bits
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


@functools.cache
def _tag(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _integer(field: int, value: int) -> bytes:
    return _tag(field, _VARINT) + _varint(value)


def _head(field: int, length: int) -> bytes:
    """What stands before so many bytes."""
    return _tag(field, _BYTES) + _varint(length)


def _bytes(field: int, value: bytes) -> bytes:
    return _head(field, len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _tensor(name: str, array: npt.NDArray[Any]) -> tuple[bytes, memoryview]:
    """A message up to its data, and the data."""
    dtype = _DTYPES[array.dtype.name]
    parts = [_integer(1, size) for size in array.shape]
    parts.append(_integer(2, dtype))
    parts.append(_text(8, name))
    data = array.reshape(-1).view(np.uint8).data
    parts.append(_head(9, len(data)))
    return b"".join(parts), data


def _dimension(size: int | str) -> bytes:
    if isinstance(size, int):
        return _integer(1, size)
    return _text(2, size)


def _value_info(name: str, dtype: str, dims: Dims) -> bytes:
    sizes = []
    for size in dims:
        sizes.append(_bytes(1, _dimension(size)))
    shape = _bytes(2, b"".join(sizes))
    tensor = _integer(1, _DTYPES[dtype]) + shape
    kind = _bytes(1, tensor)
    return _text(1, name) + _bytes(2, kind)


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, float):
        kind = _FLOAT
        encoded = _tag(2, _FIXED32) + struct.pack("<f", value)
    elif isinstance(value, int):
        kind = _INT
        encoded = _integer(3, value)
    else:
        kind = _INTS
        encoded = b"".join([_integer(8, number) for number in value])
    return _text(1, name) + encoded + _integer(20, kind)
