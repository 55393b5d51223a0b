"""The bytes of a recurrent state, as they are kept on disk or while a row waits.

A record begins with its form, so that one of another form is known for what it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from rvllm_local.memory.state import Arrays

# Shape and type of each array; None for one that the model leaves empty.
StateForm = tuple[tuple[tuple[int, ...], mx.Dtype] | None, ...]


def form_of(arrays: Arrays) -> StateForm:
    """The form of some arrays. Nothing is evaluated."""
    form: list[tuple[tuple[int, ...], mx.Dtype] | None] = []
    for part in arrays:
        if part is None:
            form.append(None)
        else:
            form.append((tuple(part.shape), part.dtype))
    return tuple(form)


def form_bytes(form: StateForm) -> int:
    """What a record of this form takes."""
    return len(_head(form)) + sum(_part_bytes(form))


def encode_state(arrays: Arrays) -> list[bytes | memoryview]:
    """The record in parts: its form, then the arrays' memory. Evaluates the arrays."""
    parts: list[bytes | memoryview] = [_head(form_of(arrays))]
    for part in arrays:
        if part is not None:
            flat = mx.contiguous(part).reshape(-1).view(mx.uint8)
            parts.append(memoryview(flat))  # type: ignore[arg-type]
    return parts


def decode_state(record: bytes | bytearray, form: StateForm) -> Arrays:
    """The arrays again. Raises `ValueError` for a record of another form or length."""
    head = _head(form)
    sizes = _part_bytes(form)
    if not record.startswith(head):
        raise ValueError("the state record has another form than this model's")
    if len(record) != len(head) + sum(sizes):
        raise ValueError(
            f"the state record has {len(record)} bytes, not {len(head) + sum(sizes)}"
        )
    start = len(head)
    arrays: list[mx.array | None] = []
    for part, size in zip(form, sizes, strict=True):
        if part is None:
            arrays.append(None)
            continue
        shape, dtype = part
        flat = mx.array(np.frombuffer(record, np.uint8, size, start))
        arrays.append(flat.view(dtype).reshape(shape))
        start += size
    return tuple(arrays)


def _part_bytes(form: StateForm) -> Sequence[int]:
    sizes = []
    for part in form:
        size = 0
        if part is not None:
            shape, dtype = part
            size = math.prod(shape) * dtype.size
        sizes.append(size)
    return sizes


def _head(form: StateForm) -> bytes:
    """The form as a line of text."""
    described: list[list[object] | None] = []
    for part in form:
        if part is None:
            described.append(None)
        else:
            described.append([str(part[1]), list(part[0])])
    return json.dumps(described).encode() + b"\n"
