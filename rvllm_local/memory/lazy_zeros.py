"""Large arrays of zeros whose memory the system gives out when it is first written, on a Linux CPU.

`mx.zeros` writes every page, which takes time and resident memory for blocks that nobody uses yet. Knows nothing of
what the arrays are for.
"""

from __future__ import annotations

import ctypes
import io
import json
import math
import mmap
import struct
import sys
from typing import BinaryIO, cast

import mlx.core as mx

_MADV_DONTNEED = 4
_NAMES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.int8: "I8"}


def lazy_zeros(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """An evaluated array of zeros. On a Linux CPU only pages that are written to become resident."""
    if (
        sys.platform == "linux"
        and mx.default_device() == mx.Device(mx.cpu)
        and dtype in _NAMES
    ):
        # MLX allocates an array that it loads from a file object, and has the object fill it in.
        loaded = mx.load(cast(BinaryIO, _Zeros(shape, dtype)), format="safetensors")
        assert isinstance(loaded, dict)
        array: mx.array = loaded["zeros"]
    else:
        array = mx.zeros(shape, dtype=dtype)
    mx.eval(array)
    return array


class _Zeros(io.RawIOBase):
    """Reads as a safetensors file of one array, whose data is zeroed where it lies and not copied."""

    def __init__(self, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
        size = math.prod(shape) * dtype.size
        row = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [0, size]}
        header = json.dumps({"zeros": row}).encode()
        self._header = struct.pack("<Q", len(header)) + header
        self._size = len(self._header) + size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = (
            offset
            + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[
                whence
            ]
        )
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), self._size - self._place)
        head = self._header[self._place : self._place + count]
        buffer[: len(head)] = head
        _clear(buffer[len(head) : count])
        self._place += count
        return count


def _clear(buffer: memoryview) -> None:
    """Zero private memory: whole pages are given back, and the system hands out zeroed ones when they are used."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if len(buffer) else 0
    first = -address % mmap.PAGESIZE
    whole = max(0, len(buffer) - first) // mmap.PAGESIZE * mmap.PAGESIZE
    given_back = whole and not ctypes.CDLL(None).madvise(
        ctypes.c_void_p(address + first), ctypes.c_size_t(whole), _MADV_DONTNEED
    )
    edges = (
        [(0, first), (first + whole, len(buffer))] if given_back else [(0, len(buffer))]
    )
    for start, end in edges:
        if start < end:
            buffer[start:end] = bytes(end - start)
